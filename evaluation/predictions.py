"""A model's answers on the rows of a table: what every part of the evaluation starts from."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from common.emotions import LabelRule, relate
from common.errors import InputError
from common.logging import quiet_start
from evaluation.metrics.calibration import with_temperature
from evaluation.metrics.scores import apply_rule, predicted_labels
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import ModelCard, read_card
from preprocessing.datasets.votes import MAJORITY
from preprocessing.tables import labels_of, usable
from training.lineage import Exposure, exposure_of


@dataclass(frozen=True)
class Predictions:
    """A model's answers.

    Attributes:
        name: What the report calls the model.
        model_file: The network.
        card: What its card says.
        dataset: Name of the data set.
        split: Name of the split.
        rows: The rows of `split.csv` that were scored, (n, columns), numbered from 0.
        images: What the network saw, uint8 (n, side, side, channels), 0-255.
        rule: How the model's classes answer for the data's labels.
        left_out: Images of the split whose label the model does not know.
        probabilities: As the card calibrates them, float64 (n, labels); rows sum to one.
        exposure: What the network, or its lineage, was trained and selected on among these images.
        fold_column: Where each image was answered by the network of its fold: the column that tells which. Else empty.
    """

    name: str
    model_file: Path
    card: ModelCard
    dataset: str
    split: str
    rows: pd.DataFrame
    images: np.ndarray
    rule: LabelRule
    left_out: int
    probabilities: np.ndarray
    exposure: Exposure
    fold_column: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that are scored, in class order."""
        return self.rule.labels

    @property
    def trained_on(self) -> bool:
        """Whether the model, or a network in its lineage, was trained on these images."""
        return self.exposure.held_out is False

    @property
    def title(self) -> str:
        """What was measured on what, and on how many images, for captions."""
        return f"{self.heading} (n = {len(self.rows):,})"

    @property
    def heading(self) -> str:
        """What was measured on what, for figures of some of the images."""
        unfit = ", which it was trained on: not a held-out score" if self.trained_on else ""
        return f"{self.name} on {self.dataset}, {self.part}{unfit}"

    @property
    def part(self) -> str:
        """What part of the data set was scored."""
        return self.split if self.fold_column else f"{self.split} split"

    @cached_property
    def truth(self) -> np.ndarray:
        """True labels, int (n,): indices of `labels`."""
        return pd.Categorical(self.rows["emotion"], categories=self.labels).codes.astype(np.int64)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The likeliest labels, int (n,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def prediction(self) -> np.ndarray:
        """Their names, object (n,)."""
        return predicted_labels(self.probabilities, self.labels)

    @property
    def scored_by_majority(self) -> bool:
        """Whether the truth is the crowd's majority, not the data set's own labels."""
        return bool((self.rows["label_source"] == MAJORITY).all())

    @property
    def correct(self) -> np.ndarray:
        """Whether each answer is right, bool (n,)."""
        return self.predicted == self.truth

    @property
    def uncalibrated(self) -> np.ndarray:
        """The probabilities as the network gives them, at temperature 1, float64 (n, labels)."""
        return with_temperature(self.probabilities, 1 / self.card.temperature)

    @property
    def has_subjects(self) -> bool:
        """Whether it is known of every image who is in it."""
        return bool((self.rows["subject"] != "").all())

    @cached_property
    def clusters(self) -> np.ndarray:
        """What is resampled together, int (n,) from 0: a person's images, or each image alone where nobody is known."""
        return pd.factorize(self.rows["subject"])[0] if self.has_subjects else np.arange(len(self.rows))

    def select(self, keep: np.ndarray) -> "Predictions":
        """Return the answers on some of the images, bool (n,)."""
        return replace(
            self,
            rows=self.rows.loc[keep].reset_index(drop=True),
            images=self.images if keep.all() else self.images[keep],  # they may lie on disk, more than memory holds
            probabilities=self.probabilities[keep],
            exposure=self.exposure.select(keep),
        )


def label_rule(model_file: Path, table: pd.DataFrame) -> LabelRule:
    """Relate a model's labels to those of a table's splits.

    Raises:
        InputError: the card is missing or wrong, or no rule relates the two.
    """
    rows = usable(table)
    return relate(read_card(model_file).labels, labels_of(rows[rows["split"] != ""]))


def predict(
    model_file: Path, name: str, folder: Path, table: pd.DataFrame, rows: pd.DataFrame, split: str
) -> Predictions:
    """Ask a model about rows of a data set.

    Args:
        model_file: The network; its card lies beside it.
        name: What the report calls it.
        folder: The data set's folder, `data/NAME`.
        table: Its `split.csv`, whose labels decide what is scored.
        rows: The usable rows of it that are asked about.
        split: What these rows are.

    Raises:
        InputError: the model cannot be used, no rule relates its labels to the data's, or a crop is missing.
    """
    with quiet_start():
        from training.data import read_crops  # imports Keras

    rule = label_rule(model_file, table)
    classifier = EmotionClassifier.load(model_file)
    scored = rows.loc[rows["emotion"].isin(rule.labels)].reset_index(drop=True)
    if scored.empty:
        raise InputError(f"split {split!r} of {folder.name} shows no emotion that {model_file} knows; use another")
    images = read_crops(classifier, folder, scored)
    return Predictions(
        name=name,
        model_file=model_file,
        card=classifier.card,
        dataset=folder.name,
        split=split,
        rows=scored,
        images=images,
        rule=rule,
        left_out=len(rows) - len(scored),
        probabilities=apply_rule(classifier.predict(images), rule),
        exposure=exposure_of(model_file, classifier.card, scored, table, folder.name),
    )
