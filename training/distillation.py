"""Knowledge distillation: targets that mix labels with the predictions of teachers.

The predictions have temperature 1 (Hinton et al. 2015, https://arxiv.org/abs/1503.02531). There are two kinds:

- `precomputed`: predictions for each training image and its flip, computed once. A training step takes no longer.
- `per_view`: predictions for the augmented images that the network sees, in every step (consistent teaching, Beyer et
  al. 2022, https://arxiv.org/abs/2106.05237). Each teacher adds about a third to the time of a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from common.errors import InputError
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import check_crops
from training.data import FaceBatches
from training.lineage import exposure_of
from training.models import training_form
from training.pretrained import PretrainedNetwork, build_from

ops: Any = keras.ops  # Keras does not type the results of its operations
VERSION = 1  # raise this to retrain finished runs when the targets change


def read_teachers(
    files: Sequence[str], classes: Sequence[str], about: Mapping[str, Any], table: pd.DataFrame
) -> list[PretrainedNetwork]:
    """Return the teachers, checked.

    Args:
        files: The `.keras` files.
        classes: Class names of the data, in class order.
        about: Card entries about the data: at least `dataset`, `split_hash` and `crops`.
        table: The data set's `split.csv`.

    Raises:
        InputError: A network is missing, takes other crops, has other classes, or its lineage was trained on images
            of the dev or test split, other than cross-split duplicates.
    """
    teachers = [PretrainedNetwork.read(Path(file)) for file in files]
    held_out = table.loc[table["split"].isin(["dev", "test"])]
    for teacher in teachers:
        check_crops(teacher.file, teacher.card, about["crops"], about["dataset"])
        if list(teacher.card.labels) != list(classes):
            raise InputError(
                f"teacher {teacher.file} has the classes {', '.join(teacher.card.labels)}; it must have those of the "
                f"data: {', '.join(classes)}"
            )
        remedy = "which score the new network; train the teacher again on this split"
        exposure = exposure_of(teacher.file, teacher.card, held_out, table, about["dataset"])
        if exposure.trained:
            raise InputError(
                f"teacher {teacher.file} was trained on {exposure.trained:,} images of the dev or test split of "
                f"{about['dataset']}, {remedy}"
            )
        if teacher.card.was_trained_on_another_split(about["dataset"], about["split_hash"]):
            raise InputError(
                f"teacher {teacher.file} was trained on another split of {about['dataset']}, perhaps on images {remedy}"
            )
    return teachers


def set_teacher_targets(
    train: FaceBatches, teachers: Sequence[PretrainedNetwork], weight: float, smoothing: float
) -> None:
    """Replace the targets of the batches by precomputed distillation targets.

    Args:
        train: The training batches.
        teachers: The teachers.
        weight: Share of the teachers' mean prediction in each target, 0-1.
        smoothing: Label smoothing of the other share, 0-1.
    """
    images, predictions = train.images[train.rows], []
    for teacher in teachers:
        classifier = EmotionClassifier.load(teacher.file)
        classifier.card = replace(classifier.card, temperature=1.0)  # the same targets with and without calibration
        predictions += [classifier.predict(images), classifier.predict(images[:, :, ::-1])]
    own: Any = train.labels
    if own.ndim == 1:
        own = np.eye(len(train.classes), dtype=np.float32)[own]
    train.set_targets(_mixed(own, np.mean(predictions, axis=0, dtype=np.float32), weight, smoothing))


def _mixed(own: Any, teacher: Any, weight: float, smoothing: float) -> Any:
    """Return distillation targets, (n, classes), from own targets and teacher predictions of that shape."""
    own = (1 - smoothing) * own + smoothing / teacher.shape[-1]
    return (1 - weight) * own + weight * teacher


class Teachers(keras.layers.Layer):
    """The mean prediction of the teachers for the augmented images of a training step.

    Input is uint8 (n, height, width, channels), output float32 (n, classes). Each image is flipped with probability
    0.5, which averages over both versions at half the cost. Outside training the output is zero.

    Args:
        files: The networks, as accepted by `read_teachers`.
        classes: Class names of the data, in class order.
        any_size: Accept images of another size than the networks have.
        seed: Random seed.

    Raises:
        InputError: A network does not match its card, or cannot take `any_size`.
    """

    def __init__(self, files: Sequence[str], classes: Sequence[str], any_size: bool, seed: int):
        super().__init__(name="teachers")
        self.networks = []
        for file in files:
            network = build_from(Path(file), classes)
            try:
                self.networks.append(training_form(network, any_size))
            except InputError as error:
                raise InputError(f"teacher {file}: {error}") from error
        self.classes = len(classes)
        self.random = keras.random.SeedGenerator(seed)
        self.trainable = False

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the mean predictions."""
        if not training:
            return ops.zeros((ops.shape(images)[0], self.classes))
        predictions = []
        for network in self.networks:
            flipped = keras.random.uniform((ops.shape(images)[0], 1, 1, 1), seed=self.random) < 0.5
            views = ops.where(flipped, images[:, :, ::-1], images)
            predictions += keras.tree.flatten(network(views, training=False))
        return sum(predictions) / len(predictions)

    def compute_output_spec(self, images: Any, training: bool = False) -> Any:
        """Return the symbolic output."""
        return keras.KerasTensor((images.shape[0], self.classes), dtype="float32")


class DistillationModel(keras.Model):
    """A model with two outputs, student and teacher predictions, trained on labels and teachers.

    It is compiled as if it had the first output only; metrics and the dev loss use the labels.

    Args:
        inputs: Its input.
        outputs: Predictions of the student and of `Teachers`, (n, classes) each.
        weight: Share of the teachers' predictions in each target, 0-1.
        smoothing: Label smoothing, 0-1.
    """

    def __init__(self, inputs: Any, outputs: Sequence[Any], weight: float, smoothing: float, name: str):
        super().__init__(inputs=inputs, outputs=list(outputs), name=name)
        self.weight, self.smoothing = weight, smoothing

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the loss of the student."""
        student, teacher = y_pred
        if training:
            y = _mixed(y, ops.stop_gradient(teacher), self.weight, self.smoothing)
        return super().compute_loss(x, y, student, sample_weight, training)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the metrics of the student."""
        return super().compute_metrics(x, y, y_pred[0], sample_weight)
