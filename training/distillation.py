"""Learn from finished networks as well as from labels: knowledge distillation.

The teachers' answers, at temperature 1, are mixed with the labels into one target per image (Hinton et al. 2015,
https://arxiv.org/abs/1503.02531). They are asked in one of two ways:

- `precomputed`, about each training image and its mirror image: such a training takes no longer than another one;
- about the `per_view`, the turned, mixed and covered images that the network itself sees, in every step (Beyer et al.
  2022, https://arxiv.org/abs/2106.05237). Each teacher adds a third of a step's time, but none knows these by heart.
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
from training.fast_training import training_form
from training.fine_tuning import Start, build_from
from training.lineage import exposure_of

ops: Any = keras.ops  # Keras does not type what its operations give
VERSION = 1  # raise this when teachers are to shape the targets otherwise: finished runs are then repeated


def read_teachers(
    files: Sequence[str], classes: Sequence[str], about: Mapping[str, Any], table: pd.DataFrame
) -> list[Start]:
    """Return the networks to learn from.

    Args:
        files: The `.keras` files.
        classes: Class names of the data, in class order.
        about: What a card says of the data: at least `dataset`, `split_hash` and `crops`.
        table: The data set's `split.csv`.

    Raises:
        InputError: One is missing, takes other crops, knows other emotions, or its lineage was trained on images of
            the dev or test split, other than cross-split duplicates.
    """
    teachers = [Start.read(Path(file)) for file in files]
    for teacher in teachers:
        check_crops(teacher.file, teacher.card, about["crops"], about["dataset"])
        if list(teacher.card.labels) != list(classes):
            raise InputError(
                f"teacher {teacher.file} knows {', '.join(teacher.card.labels)}; it must know what is to be learnt: "
                f"{', '.join(classes)}"
            )
        judged = table.loc[table["split"].isin(["dev", "test"])]
        exposure = exposure_of(teacher.file, teacher.card, judged, table, about["dataset"])
        if exposure.trained:
            raise InputError(
                f"teacher {teacher.file} was trained on {exposure.trained:,} images of the dev or test split of "
                f"{about['dataset']}, by which the new network is judged; train the teacher again on this split"
            )
        if teacher.card.was_trained_on_another_split(about["dataset"], about["split_hash"]):
            raise InputError(
                f"teacher {teacher.file} was trained on another split of {about['dataset']}, so it may know the images "
                "by which the new network is judged; train the teacher again on this split"
            )
    return teachers


def teach(train: FaceBatches, teachers: Sequence[Start], share: float, smoothing: float) -> None:
    """Give the batches targets in which the teachers have their share.

    Args:
        train: Batches to learn from; their targets are class indices or distributions.
        teachers: The networks.
        share: Share of each target that is the mean of their answers, 0-1.
        smoothing: Label smoothing, 0-1, of the batches' own targets; the answers are soft already.
    """
    predictions = []
    for teacher in teachers:
        classifier = EmotionClassifier.load(teacher.file)
        # Its targets do not depend on whether the teacher was calibrated.
        classifier.card = replace(classifier.card, temperature=1.0)
        predictions += [classifier.predict(images) for images in (train.images, train.images[:, :, ::-1])]
    own: Any = train.labels
    if own.ndim == 1:
        own = np.eye(len(train.classes), dtype=np.float32)[own]
    train.set_targets(_mixed(own, np.mean(predictions, axis=0, dtype=np.float32), share, smoothing))


def _mixed(own: Any, told: Any, share: float, smoothing: float) -> Any:
    """Return targets, (n, classes): the data's own, smoothed, and in their share what teachers told."""
    own = (1 - smoothing) * own + smoothing / told.shape[-1]
    return (1 - share) * own + share * told


class Teachers(keras.layers.Layer):
    """Finished networks that answer, in training, about the images that a network learns from.

    Takes uint8 images, (n, height, width, channels), and gives the mean of the answers, float32 (n, classes). Each is
    about the image or about its mirror image, by chance: in the long run the mean of both, in half of the time.
    Outside training nobody is asked, and the answers are zeros.

    Args:
        files: The networks, as `read_teachers` accepts them.
        classes: Class names of the data, in class order.
        any_size: The images may be of another size than the networks were made for.
        seed: Seed of the random numbers.

    Raises:
        InputError: a network is not the one of its card; or `any_size`, and it is bound to its size.
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
        """Return the mean answers."""
        if not training:
            return ops.zeros((ops.shape(images)[0], self.classes))
        predictions = []
        for network in self.networks:
            mirrored = keras.random.uniform((ops.shape(images)[0], 1, 1, 1), seed=self.random) < 0.5
            asked = ops.where(mirrored, images[:, :, ::-1], images)
            predictions += keras.tree.flatten(network(asked, training=False))
        return sum(predictions) / len(predictions)

    def compute_output_spec(self, images: Any, training: bool = False) -> Any:
        """Return what is known of the answers before the images come."""
        return keras.KerasTensor((images.shape[0], self.classes), dtype="float32")


class TaughtModel(keras.Model):
    """A model of two outputs, a network's answers and its teachers', that learns from both labels and teachers.

    It is compiled as if it had the first output alone, and is judged by labels alone.

    Args:
        inputs: Its input.
        outputs: The network's answers and those of `Teachers`, (n, classes) each.
        share: Share of each target that the teachers' answers are, 0-1.
        smoothing: Label smoothing, 0-1, of the labels.
    """

    def __init__(self, inputs: Any, outputs: Sequence[Any], share: float, smoothing: float, name: str):
        super().__init__(inputs=inputs, outputs=list(outputs), name=name)
        self.share, self.smoothing = share, smoothing

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the loss of the network's answers."""
        predictions, told = y_pred
        if training:
            y = _mixed(y, ops.stop_gradient(told), self.share, self.smoothing)
        return super().compute_loss(x, y, predictions, sample_weight, training)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the figures of the network's answers."""
        return super().compute_metrics(x, y, y_pred[0], sample_weight)
