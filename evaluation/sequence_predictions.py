"""Predictions of sequence networks and of single-frame networks on sequences, and the checks against leakage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from common.errors import InputError
from configuration import PATHS
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import Card, read_card, read_sequence_card
from inference.sequence_classifier import SequenceClassifier
from preprocessing.tables import crop_options, split_by_fold, split_hash
from training.cross_validation import features_without, fold_file
from training.lineage import Exposure, exposure_of, knows_images

if TYPE_CHECKING:
    from training.sequences.data import SequenceSet

SHARES = tuple(tenth / 10 for tenth in range(1, 11))  # of the frames of each sequence, from its start


@dataclass(frozen=True)
class Part:
    """Sequences that one set of networks is scored on: a split, or the test sequences of a fold.

    Attributes:
        table: `split.csv` as the networks were trained on it.
        sequences: The sequences.
        features_file: Network whose features the sequence network reads.
        fold: Number of the fold; None for a split.
    """

    table: pd.DataFrame
    sequences: "SequenceSet"
    features_file: Path
    fold: int | None = None

    @classmethod
    def of_fold(cls, table: pd.DataFrame, folder: Path, features: Path, fold: int) -> "Part":
        """Return the test sequences of a fold."""
        from training.sequences.data import read_sequences

        divided = split_by_fold(table, fold)
        features_file = features_without(features, folder.name, table, fold)
        return cls(divided, read_sequences(divided, folder).of_split("test"), features_file, fold)

    def network(self, model_file: Path) -> Path:
        """Return the network for this part: the file itself, or its counterpart that was trained without the fold."""
        return model_file if self.fold is None else fold_file(model_file, self.fold)

    def frames(self) -> pd.DataFrame:
        """Return the rows of the scored frames, each with the split of its sequence."""
        steps = self.sequences.steps
        split = np.repeat(self.sequences.table["split"].to_numpy(), [len(each) for each in steps])
        return self.sequences.frames.iloc[np.concatenate(steps)].assign(split=split)

    def exposure(self, model_file: Path, card: Card, folder: Path) -> Exposure:
        """Return which scored frames the lineage of a network was trained or selected on."""
        return exposure_of(model_file, card, self.frames(), self.table, folder.name)

    def is_held_out(self, model_file: Path, card: Card, folder: Path) -> bool:
        """Return whether a lineage was trained on no scored frame outside the training split of this part."""
        judged = self.frames().query("split != 'train'")
        exposure = exposure_of(model_file, card, judged, self.table, folder.name)
        return not exposure.trained and not card.was_trained_on_another_split(folder.name, split_hash(self.table))


@dataclass(frozen=True)
class SequencePredictions:
    """Predictions of a network from a share of each sequence.

    Attributes:
        name: Name of the network in tables.
        labels: Its classes.
        probabilities: float (shares, sequences, classes), at each of `SHARES`.
        sequences: Name of each sequence, (sequences,).
    """

    name: str
    labels: tuple[str, ...]
    probabilities: np.ndarray
    sequences: np.ndarray


def check_split(model_file: Path, part: Part, folder: Path) -> None:
    """Refuse a sequence network that was trained on scored sequences, itself or by its features.

    Raises:
        InputError: It, or the network whose features it reads, was trained on another split of this data.
    """
    cards = {model_file: read_sequence_card(model_file), part.features_file: read_card(part.features_file)}
    for file, card in cards.items():
        if not part.is_held_out(file, card, folder):
            remedy = "train it again: step4_sequence_model" if file == model_file else (
                "train it again, or give --features of a network that was trained on other data")  # fmt: skip
            raise InputError(
                f"{file}, or a network in its lineage, was trained on another split of {folder.name}, or on scored "
                f"images; {remedy}"
            )


def predict_all(
    parts: Sequence[Part], folder: Path, model_file: Path, peak_file: Path
) -> tuple[list[SequencePredictions], list[str]]:
    """Return the predictions of the sequence network, of the peak-only one if it can be used, and the released one.

    Args:
        parts: What is scored.
        folder: Folder of the data set.
        model_file: Sequence network; with folds, the name that its networks share.
        peak_file: Network of single frames; likewise.

    Returns:
        Predictions, and notes for the reader.

    Raises:
        InputError: The sequence network cannot be used, or was trained on another split.
    """
    notes: list[str] = []
    for part in parts:
        check_split(part.network(model_file), part, folder)
    predictions = [_joined("sequence", parts, lambda part: predict_sequences(part.network(model_file), part, folder))]
    peak_files = {part.network(peak_file): part for part in parts}
    absent = [file for file in peak_files if not file.is_file()]
    if absent:
        notes.append(f"no peak-only network of this data to compare with: {absent[0]} does not exist")
    elif not all(part.is_held_out(file, read_card(file), folder) for file, part in peak_files.items()):
        notes.append(f"{peak_file} is not compared: it was trained on another split, or on scored images")
    else:
        exposures = [part.exposure(file, read_card(file), folder) for file, part in peak_files.items()]
        notes += leakage_notes(peak_file, Exposure.joined(exposures))
        name = f"peak only ({peak_file.stem})"
        predictions.append(_joined(name, parts, lambda part: predict_frames(part.network(peak_file), part, folder)))
    released, crops = read_card(PATHS.pretrained), crop_options(folder)
    if (released.input_size, released.channels) != (crops["size"], crops["channels"]):
        notes.append(
            f"the released network is not compared: it takes {released.input_size} pixels, {released.channels} channel"
        )
    elif not any(knows_images(PATHS.pretrained, released, part.frames(), folder.name) for part in parts):
        name = f"peak only, cross-dataset ({PATHS.pretrained.stem})"
        predictions.append(_joined(name, parts, lambda part: predict_frames(PATHS.pretrained, part, folder)))
    return predictions, notes


def leakage_notes(model_file: Path, exposure: Exposure) -> list[str]:
    """Return what a reader needs to know about training and selection images among the scored frames."""
    notes, frames = [], len(exposure.training)
    if exposure.held_out is False:
        notes.append(
            f"NOT A HELD-OUT SCORE: {model_file} was trained on {exposure.trained:,} of the {frames:,} scored frames"
        )
    elif exposure.held_out is None:
        notes.append(f"NOT KNOWN WHETHER HELD OUT: there is no complete list of the training images of {model_file}")
    if exposure.selected:
        notes.append(
            f"{model_file} was selected on {exposure.selected:,} of the {frames:,} scored frames: expect a lower score "
            "on other images"
        )
    return notes


def _joined(
    name: str, parts: Sequence[Part], predict: Callable[[Part], tuple[tuple[str, ...], np.ndarray]]
) -> SequencePredictions:
    labels, probabilities = zip(*map(predict, parts), strict=True)
    if len(set(labels)) > 1:
        raise InputError(f"{name}: the networks of the folds have different labels; train all folds again")
    sequences = np.concatenate([part.sequences.table["sequence"].to_numpy() for part in parts])
    return SequencePredictions(name, labels[0], np.concatenate(probabilities, axis=1), sequences)


def predict_sequences(model_file: Path, part: Part, folder: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the labels of a sequence network and its probabilities, (shares, sequences, classes)."""
    from training.sequences.data import frame_features

    network, classifier = SequenceClassifier.load(model_file), _frame_classifier(part.features_file)
    network.check_features(classifier.features_of)
    features = frame_features(classifier, folder, part.sequences.frames)[0]
    return network.labels, np.stack([
        network.predict([(features[seen], features[seen[0]]) for seen in _seen(part, share)]) for share in SHARES
    ])  # fmt: skip


def predict_frames(model_file: Path, part: Part, folder: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the labels of a single-frame network and its probabilities at the last frame of each share."""
    from training.data import read_crops

    classifier = _frame_classifier(model_file)
    needed = np.unique(np.concatenate(part.sequences.steps))
    probabilities = classifier.predict(read_crops(classifier, folder, part.sequences.frames.iloc[needed]))
    last = [[seen[-1] for seen in _seen(part, share)] for share in SHARES]
    return classifier.labels, np.stack([probabilities[np.searchsorted(needed, each)] for each in last])


@cache
def _frame_classifier(model_file: Path) -> EmotionClassifier:
    return EmotionClassifier.load(model_file, features=True)  # shared by all folds


def _seen(part: Part, share: float) -> list[np.ndarray]:
    """Return the steps of a share of each sequence; at least one."""
    return [steps[: max(1, round(share * len(steps)))] for steps in part.sequences.steps]
