"""Knowledge distillation and logit adjustment.

Teachers predict the same augmented images that the student sees (consistent teaching, Beyer et al. 2022,
https://arxiv.org/abs/2106.05237), but before black boxes, blur and noise are added. Their temperature is 1. Each
teacher adds about a third to the time of a training step.

Logit adjustment (Menon et al. 2021, https://arxiv.org/abs/2007.07314) adds `tau log(prior)` to the logits in the loss.
The network itself then predicts p(class | image) / prior^tau, up to a factor: with tau 1 as if all classes were
equally frequent. It is applied to the probabilities, which gives the same loss.
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
from inference.model_card import check_crops, read_card
from training.data import FaceBatches
from training.lineage import check_held_out
from training.models import training_form
from training.pretrained import PretrainedNetwork, build_from

ops: Any = keras.ops  # Keras does not type the results of its operations
PRIOR_IMAGES = 4000
VERSION = 5  # raise this to retrain finished runs when the targets change


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
    for teacher in teachers:
        check_crops(teacher.file, teacher.card, about["crops"], about["dataset"])
        if other := [label for label in teacher.card.labels if label not in classes]:
            raise InputError(
                f"teacher {teacher.file} has the classes {', '.join(other)}, which the data has not; its classes must "
                f"be among {', '.join(classes)}"
            )
        check_held_out("teacher", teacher.file, teacher.card, table, about["dataset"])
        if teacher.card.was_trained_on_another_split(about["dataset"], about["split_hash"]):
            raise InputError(
                f"teacher {teacher.file} was trained on another split of {about['dataset']}, perhaps on images which "
                "score the new network; train the teacher again on this split"
            )
    known = {label for teacher in teachers for label in teacher.card.labels}
    if teachers and (unknown := [label for label in classes if label not in known]):
        raise InputError(f"no teacher has the classes {', '.join(unknown)}; give one more --teacher that has them")
    return teachers


def class_prior(train: FaceBatches, weighted: bool = True) -> np.ndarray:
    """Return the share of each class in the training targets, float, (classes,), at least 1e-6.

    Args:
        train: The training batches.
        weighted: With `--balance`, give each image the weight that it has in the loss.
    """
    labels: Any = train.labels
    targets = np.eye(len(train.classes))[labels] if labels.ndim == 1 else labels
    return np.maximum(np.average(targets, axis=0, weights=train.weights if weighted else None), 1e-6)


def assumed_prior(prior: np.ndarray, tau: float) -> np.ndarray:
    """Return the prior that a network assumes after logit adjustment: prior^(1 - tau), normalised, (classes,)."""
    assumed = prior ** (1 - tau)
    return assumed / assumed.sum()


def teacher_priors(train: FaceBatches, files: Sequence[str]) -> list[np.ndarray]:
    """Return the prior that each teacher assumes, in the order of its own classes.

    For a teacher trained with logit adjustment, it is in the card. For others, the mean prediction on training images
    estimates it.

    Args:
        train: The training batches; about `PRIOR_IMAGES` images are predicted.
        files: The networks.
    """
    images, priors = train.images[train.rows[:: max(len(train.rows) // PRIOR_IMAGES, 1)]], []
    for file in files:
        card = read_card(Path(file))
        if card.hyperparameters.get("logit_adjustment") and card.assumed_prior:
            priors.append(np.maximum([float(card.assumed_prior.get(label, 0)) for label in card.labels], 1e-6))
            continue
        classifier = EmotionClassifier.load(Path(file))
        classifier.card = replace(classifier.card, temperature=1.0)  # calibration does not change the targets
        priors.append(classifier.predict(images).mean(axis=0))
    return priors


class Teachers(keras.layers.Layer):
    """The mean prediction of the teachers for the augmented images of a training step.

    Input is uint8 (n, height, width, channels), output float32 (n, classes). Each image is flipped with probability
    0.5, which averages over both versions at half the cost. Outside training the output is zero.

    The log-probabilities of each teacher, minus the log of the prior that it learned, are averaged over the teachers
    that know the class. `log_prior` is added, and a softmax gives the targets.

    Args:
        files: The networks, as accepted by `read_teachers`.
        classes: Class names of the data, in class order.
        any_size: Accept images of another size than the networks have.
        seed: Random seed.
        priors: Prior of each network, in the order of its own classes, as `teacher_priors` returns them.
        log_prior: Logarithm of the prior of the targets, (classes,); zeros: all classes are equally frequent.

    Raises:
        InputError: A network does not match its card, or cannot take `any_size`.
    """

    def __init__(
        self,
        files: Sequence[str],
        classes: Sequence[str],
        any_size: bool,
        seed: int,
        priors: Sequence[np.ndarray],
        log_prior: np.ndarray,
    ):
        super().__init__(name="teachers")
        self.networks, self.columns = [], []
        for file in files:
            labels = read_card(Path(file)).labels
            try:
                self.networks.append(training_form(build_from(Path(file), labels), any_size))
            except InputError as error:
                raise InputError(f"teacher {file}: {error}") from error
            self.columns.append(np.eye(len(classes), dtype=np.float32)[[list(classes).index(name) for name in labels]])
        self.log_priors = [np.log(prior).astype(np.float32) for prior in priors]
        self.counts = sum(columns.sum(axis=0) for columns in self.columns)  # teachers that know each class
        self.log_prior = log_prior.astype(np.float32)
        self.random = keras.random.SeedGenerator(seed)
        self.trainable = False

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the mean predictions."""
        n, classes = ops.shape(images)[0], len(self.log_prior)
        if not training:
            return ops.zeros((n, classes))
        logits: Any = 0.0
        for network, log_prior, columns in zip(self.networks, self.log_priors, self.columns, strict=True):
            flipped = keras.random.uniform((n, 1, 1, 1), seed=self.random) < 0.5
            (predicted,) = keras.tree.flatten(network(ops.where(flipped, images[:, :, ::-1], images), training=False))
            logits += ops.log_softmax(ops.log(ops.maximum(predicted, 1e-7)) - log_prior) @ columns
        return ops.softmax(logits / self.counts + self.log_prior)

    def compute_output_spec(self, images: Any, training: bool = False) -> Any:
        """Return the symbolic output."""
        return keras.KerasTensor((images.shape[0], len(self.log_prior)), dtype="float32")


class StudentModel(keras.Model):
    """A model that trains a network with logit adjustment, and on teachers.

    Its outputs are the predictions of the network and, with teachers, those of `Teachers`. It is compiled as if it had
    the first output only; metrics and the dev loss use the labels.

    Args:
        inputs: Its input.
        outputs: One or two outputs, (n, classes) each.
        weight: Share of the teachers in the loss, 0-1.
        smoothing: Label smoothing, 0-1.
        factors: The adjustment of the training loss, prior^tau, (classes,); ones: none.
        dev_factors: The adjustment of the dev loss, (classes,).
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Sequence[Any],
        weight: float,
        smoothing: float,
        factors: np.ndarray,
        dev_factors: np.ndarray,
    ):
        super().__init__(inputs=inputs, outputs=list(outputs), name="trainer")
        self.weight, self.smoothing = weight, smoothing
        self.factors, self.dev_factors = factors.astype(np.float32), dev_factors.astype(np.float32)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the loss: (1 - weight) H(labels, adjusted predictions) + weight H(teachers, predictions)."""
        student, *teachers = keras.tree.flatten(y_pred)
        factors = self.factors if training else self.dev_factors
        adjusted = student
        if (factors != 1).any():
            adjusted = student * factors / ops.sum(student * factors, axis=-1, keepdims=True)
        if training:
            y = (1 - self.smoothing) * y + self.smoothing / student.shape[-1]
        loss = super().compute_loss(x, y, adjusted, sample_weight, training)
        if not (training and teachers):
            return loss
        distilled = super().compute_loss(x, ops.stop_gradient(teachers[0]), student, sample_weight, training)
        return (1 - self.weight) * loss + self.weight * distilled

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the metrics of the network: every image counts the same, unless its weight is 0."""
        counted = None if sample_weight is None else ops.cast(sample_weight > 0, "float32")
        return super().compute_metrics(x, y, keras.tree.flatten(y_pred)[0], counted)
