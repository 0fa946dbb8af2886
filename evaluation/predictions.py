"""The predictions of a network for the rows of a table: the input of every section of a report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from common.emotions import LabelRule, relate
from common.errors import InputError
from common.logging import quiet_start
from evaluation.metrics.calibration import with_temperature
from evaluation.metrics.intervals import subject_clusters
from evaluation.metrics.scores import apply_rule, predicted_labels
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import ModelCard, read_card
from preprocessing.datasets.votes import MAJORITY
from preprocessing.tables import labels_of, usable
from training.lineage import Exposure, exposure_of

Load = Callable[[Path], EmotionClassifier]


@dataclass(frozen=True)
class Predictions:
    """The predictions of one network, or of the networks of all folds.

    Attributes:
        name: Name of the model in the report.
        model_file: The network.
        card: Its model card.
        dataset: Name of the data set.
        split: Name of the split.
        rows: The scored rows of `split.csv`, (n, columns), numbered from 0.
        images: Input images, uint8 (n, side, side, channels), 0-255.
        rule: Mapping from the classes of the model to the labels of the data.
        left_out: Number of images of the split whose label the model does not know.
        probabilities: Calibrated by the card, float64 (n, labels); rows sum to one.
        exposure: The images that the network or its lineage was trained or selected on.
        fold_column: Column with the fold of each image; empty for a single network.
        classifiers: The loaded networks, by the value of `fold_column`; by "" for a single network.
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
    classifiers: Mapping[str, EmotionClassifier] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The scored classes, in class order."""
        return self.rule.labels

    @property
    def trained_on(self) -> bool:
        """Whether the model or a network of its lineage was trained on these images."""
        return self.exposure.held_out is False

    @property
    def title(self) -> str:
        """Model, data and number of images, for captions."""
        return f"{self.heading} (n = {len(self.rows):,})"

    @property
    def heading(self) -> str:
        """Model and data, for figures of a subset of the images."""
        warning = ", training images: not a held-out score" if self.trained_on else ""
        return f"{self.name} on {self.dataset}, {self.part}{warning}"

    @property
    def part(self) -> str:
        """The scored part of the data set."""
        return self.split if self.fold_column else f"{self.split} split"

    @cached_property
    def truth(self) -> np.ndarray:
        """True labels, int (n,): indices of `labels`."""
        return pd.Categorical(self.rows["emotion"], categories=self.labels).codes.astype(np.int64)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Most probable labels, int (n,): indices of `labels`."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def prediction(self) -> np.ndarray:
        """Names of the most probable labels, object (n,)."""
        return predicted_labels(self.probabilities, self.labels)

    @property
    def scored_by_majority(self) -> bool:
        """Whether the true labels are the majority of the annotators."""
        return bool((self.rows["label_source"] == MAJORITY).all())

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct, bool (n,)."""
        return self.predicted == self.truth

    @property
    def uncalibrated(self) -> np.ndarray:
        """Probabilities at temperature 1, float64 (n, labels)."""
        return with_temperature(self.probabilities, 1 / self.card.temperature)

    @property
    def has_subjects(self) -> bool:
        """Whether the subject of every image is known, and there are several subjects."""
        return subject_clusters(self.rows) is not None

    @cached_property
    def clusters(self) -> np.ndarray:
        """Clusters of the bootstrap, int (n,) from 0: subjects; or single images, of one or of unknown subjects."""
        clusters = subject_clusters(self.rows)
        return np.arange(len(self.rows)) if clusters is None else clusters

    def select(self, keep: np.ndarray) -> "Predictions":
        """Return the predictions for a subset of the images, bool (n,)."""
        return replace(
            self,
            rows=self.rows.loc[keep].reset_index(drop=True),
            images=self.images if keep.all() else self.images[keep],  # may be memory-mapped
            probabilities=self.probabilities[keep],
            exposure=self.exposure.select(keep),
        )

    def predict_images(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the same networks for changed versions of the images.

        Args:
            images: As `images`, in the same order; of a single network, any images.

        Returns:
            float64 (n, labels), calibrated by the card; of folds at temperature 1.
        """
        if not self.fold_column:
            return apply_rule(self.classifiers[""].predict(images), self.rule)
        probabilities = np.empty_like(self.probabilities)
        for fold, classifier in self.classifiers.items():
            own = (self.rows[self.fold_column] == fold).to_numpy()
            scaled = apply_rule(classifier.predict(images[own]), self.rule)
            probabilities[own] = with_temperature(scaled, 1 / classifier.card.temperature)
        return probabilities


def label_rule(model_file: Path, table: pd.DataFrame) -> LabelRule:
    """Relate the labels of a model to those of the splits of a table.

    Raises:
        InputError: The card is missing or invalid, or no rule relates the two.
    """
    rows = usable(table)
    return relate(read_card(model_file).labels, labels_of(rows[rows["split"] != ""]))


def predict(
    model_file: Path,
    name: str,
    folder: Path,
    table: pd.DataFrame,
    rows: pd.DataFrame,
    split: str,
    load: Load = EmotionClassifier.load,
) -> Predictions:
    """Return the predictions of a network for rows of a data set.

    Args:
        model_file: The network, with its card beside it.
        name: Name of the model in the report.
        folder: Folder of the data set, `data/NAME`.
        table: Its `split.csv`; its labels determine the scored classes.
        rows: Usable rows of the table.
        split: Name of these rows.
        load: Loads the network.

    Raises:
        InputError: The model is unusable, no rule relates its labels to the data, or a crop is missing.
    """
    with quiet_start():
        from training.data import read_crops  # imports Keras

    rule = label_rule(model_file, table)
    classifier = load(model_file)
    scored = rows.loc[rows["emotion"].isin(rule.labels)].reset_index(drop=True)
    if scored.empty:
        raise InputError(f"split {split!r} of {folder.name} has no emotion that {model_file} knows; use another split")
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
        classifiers={"": classifier},
    )
