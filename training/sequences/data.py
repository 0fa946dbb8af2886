"""Table rows to sequences: which frames belong together, what a network sees in each, and batches of windows."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from common.command_line import progress_bar
from common.emotions import in_class_order
from common.errors import InputError
from common.files import fingerprint, write_file
from configuration import SequenceConfig
from inference.emotion_classifier import EmotionClassifier
from inference.sequence_classifier import window_of
from preprocessing.tables import has_image
from training.data import read_cache, read_crops

VERSION = 1  # raise this when sequences are to be read or augmented otherwise: finished runs are then repeated
_AT_ONCE = 256  # images whose features are computed at once


@dataclass(frozen=True)
class SequenceSet:
    """Labelled sequences of frames.

    Attributes:
        frames: The rows of `split.csv` that the sequences are made of, numbered from 0.
        steps: Of each sequence, int (t,): its frames in the order of time, as rows of `frames`.
        table: A row per sequence: `sequence`, `subject`, `emotion`, `split` (all as its last frame has them), and
            `starts_neutral`, whether its first frame is labelled neutral.
        classes: All emotions that they show, in class order.
        note: What a user must know of how they were read.
    """

    frames: pd.DataFrame
    steps: list[np.ndarray]
    table: pd.DataFrame
    classes: tuple[str, ...]
    note: str

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def shown(self) -> set[str]:
        """The emotions at the sequences' ends, and neutral where one starts so."""
        return set(self.table["emotion"]) | ({"neutral"} if self.table["starts_neutral"].any() else set())

    def of_split(self, split: str) -> "SequenceSet":
        """Return the sequences of a split; `frames` stays as it is."""
        chosen = (self.table["split"] == split).to_numpy()
        steps = [steps for steps, keep in zip(self.steps, chosen, strict=True) if keep]
        return replace(self, steps=steps, table=self.table.loc[chosen].reset_index(drop=True))


def read_sequences(table: pd.DataFrame, folder: Path) -> SequenceSet:
    """Return the labelled sequences of a data set that was listed with all frames.

    A frame that is missing in a sequence's middle, or that shows no face, is stood in for by the frame before it, as a
    face that is lost for a moment is on camera. A sequence without its labelled last frame, or of which more than half
    is missing, is left out; the note counts all of it.

    Args:
        table: `split.csv`.
        folder: The data set's folder.

    Raises:
        InputError: there are no sequences, only their peaks are listed, or a frame has no number.
    """
    file = folder / "split.csv"
    rows = table.loc[table["sequence"] != ""]
    if rows.empty:
        raise InputError(
            f"{file} has no sequences: its pictures stand alone; give a data set of sequences, such as CK+ "
            "(python -m preprocessing.step1_inventory --source CK+/ --frames all)"
        )
    numbers = pd.to_numeric(rows["frame"], errors="coerce")
    if numbers.isna().any():
        wrong = rows.loc[numbers.isna()].iloc[0]
        raise InputError(f"{file}: frame {wrong['frame']!r} of sequence {wrong['sequence']} is no number; list again")
    rows = rows.assign(number=numbers.astype(int), seen=has_image(rows)).sort_values(
        ["sequence", "number"], kind="stable"
    )
    labelled = [part for _, part in rows.groupby("sequence", sort=True) if part["emotion"].iloc[-1] != ""]
    if not any((part["emotion"].iloc[:-1] == "").any() for part in labelled):
        raise InputError(
            f"{file} lists no frames between a sequence's first and its labelled last one; list them all, then run "
            f"steps 2 and 3 again: python -m preprocessing.step1_inventory --dataset {folder.name} --source ... "
            "--frames all"
        )
    whole, missing, holed, left_out, in_no_split = [], 0, 0, 0, 0
    for part in labelled:
        seen = part.loc[part["seen"]]
        if not part["seen"].iloc[-1]:
            left_out += 1
            continue
        if part["split"].iloc[-1] == "":
            in_no_split += 1
            continue
        gaps = int(seen["number"].iloc[-1] - seen["number"].iloc[0] + 1 - seen["number"].nunique())
        if len(seen) < 2 or gaps > len(seen):
            left_out += 1
            continue
        missing, holed = missing + gaps, holed + (gaps > 0)
        whole.append(seen.drop_duplicates("number"))
    if not whole:
        raise InputError(f"{file} has no sequence with two readable frames and its label on the last; see its statuses")
    note = f"sequences: {len(whole):,} with a label, of {min(map(len, whole))} to {max(map(len, whole))} frames"
    if holed:
        note += f"; {missing:,} frames of {holed:,} of them are missing: the frame before stands in for each"
    if left_out:
        note += f"; left out: {left_out:,} without a usable last frame, or with more than half of the frames missing"
    if in_no_split:
        note += f"; {in_no_split:,} are in no split (step 3, such as --without)"
    return _gathered(whole, note)


def _gathered(parts: list[pd.DataFrame], note: str) -> SequenceSet:
    frames = pd.concat(parts, ignore_index=True)
    steps, first = [], 0
    for part in parts:
        present = part["number"].to_numpy()
        every = np.arange(present[0], present[-1] + 1)
        steps.append(first + np.searchsorted(present, every, side="right") - 1)
        first += len(part)
    ends = frames.iloc[[each[-1] for each in steps]]
    table = ends[["sequence", "subject", "emotion", "split"]].reset_index(drop=True)
    starts = frames.iloc[[each[0] for each in steps]]
    neutral = (starts["emotion"] == "neutral") & (starts["split"] != "")  # step 3 may have left neutral out
    table = table.assign(starts_neutral=neutral.to_numpy())
    shown = set(table["emotion"]) | ({"neutral"} if table["starts_neutral"].any() else set())
    return SequenceSet(frames.drop(columns=["number", "seen"]), steps, table, tuple(in_class_order(shown)), note)


def frame_features(classifier: EmotionClassifier, folder: Path, frames: pd.DataFrame) -> np.ndarray:
    """Return what a network sees in each frame's crop, as it is and mirrored; computed once and kept.

    Args:
        classifier: Loaded with its features.
        folder: The data set's folder; its `cache/` keeps the numbers.
        frames: Rows with `face_path`.

    Returns:
        float32, (2, n, size): of the crops, of the mirrored crops; see `EmotionClassifier.features`.

    Raises:
        InputError: a crop is missing, or of another size than the network takes.
    """
    images = read_crops(classifier, folder, frames)
    crops = fingerprint({path: folder / path for path in frames["face_path"]})
    key = hashlib.sha256(f"{classifier.features_of}{crops}".encode()).hexdigest()[:16]
    file = folder / "cache" / f"{key}.npy"
    known = read_cache(file, (2, len(images), None), np.float32)
    if known is not None:
        return known
    parts: list[np.ndarray] = []
    with progress_bar() as bar:
        for start in bar.track(range(0, len(images), _AT_ONCE), description="features"):
            part = np.asarray(images[start : start + _AT_ONCE])
            parts.append(np.stack([classifier.features(part), classifier.features(part[:, :, ::-1])]))
    features = np.concatenate(parts, axis=1)
    content = io.BytesIO()
    np.save(content, features)
    write_file(file, content.getvalue())
    return features


class SequenceBatches(keras.utils.PyDataset):
    """Batches of windows, their targets at each step, and how much each step weighs in the loss.

    The last step of a sequence has its label and the weight 1. Where it is augmented, an earlier one that has seen the
    share s has the same label and the weight s ** ramp, since nobody has said where the expression begins; and a first
    frame that is labelled neutral has that label and the weight 1. Only the last step counts otherwise, so that the
    accuracy of a batch is that of its sequences. Every epoch's changes depend on the seed and the epoch's number alone.

    Args:
        sequences: Whose batches.
        features: float32 (2, n, size), as `frame_features` gives them.
        classes: Class names in class order.
        options: Window, augmentation, batch size and seed.
        augment: Random start, speed and mirroring, in a new order in every epoch; for training.

    Attributes:
        classes: Class names in class order.
        epoch: Number of the epoch being served; set it before a run is resumed.
    """

    def __init__(
        self,
        sequences: SequenceSet,
        features: np.ndarray,
        classes: Sequence[str],
        options: SequenceConfig,
        augment: bool,
    ):
        super().__init__()
        self.classes = tuple(classes)
        self.epoch = 0
        self._sequences, self._features, self._options, self._augment = sequences, features, options, augment
        self._label = [self.classes.index(emotion) for emotion in sequences.table["emotion"]]
        self._starts_neutral = sequences.table["starts_neutral"].to_numpy()

    def __len__(self) -> int:
        return -(-len(self._sequences) // self._options.config.batch_size)

    def __getitem__(self, index: int) -> Any:
        size, seed = self._options.config.batch_size, self._options.config.seed
        order = np.arange(len(self._sequences))
        if self._augment:
            np.random.default_rng([seed, self.epoch]).shuffle(order)
        random = np.random.default_rng([seed, self.epoch, index])
        windows, targets, weights = zip(*(self._one(n, random) for n in order[index * size :][:size]), strict=True)
        return np.stack(windows), np.stack(targets), np.stack(weights)

    def on_epoch_end(self) -> None:
        """Go on to the next epoch's order and changes."""
        self.epoch += 1

    def _one(self, number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        steps, mirrored, whole = self._sequences.steps[number], 0, True
        if self._augment:
            steps, whole = _replayed(steps, self._options, random)
            mirrored = int(self._options.mirror and random.random() < 0.5)
        frames = self._features[mirrored][steps]
        window = self._options.window
        rows, count = window_of(frames, frames[0], window)
        targets = np.zeros((window, len(self.classes)), np.float32)
        targets[:, self._label[number]] = 1
        weights = np.zeros(window, np.float32)
        if self._augment:
            weights[:count] = ((np.arange(count) + 1) / count) ** self._options.ramp
            if whole and self._starts_neutral[number] and count == len(frames):
                targets[0] = np.eye(len(self.classes))[self.classes.index("neutral")]
                weights[0] = 1
        weights[count - 1] = 1
        return rows, targets, weights


def _replayed(steps: np.ndarray, options: SequenceConfig, random: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Return a sequence's steps as if it had begun later or run faster or slower, and whether it has its first one.

    Its last step stays, and at least two steps.
    """
    start = 0
    if random.random() < 0.5:
        start = int(random.uniform(0, options.cut) * (len(steps) - 1))
    speed = options.speed ** random.uniform(-1, 1)
    count = max(2, round((len(steps) - start) / speed))
    return steps[np.round(np.linspace(start, len(steps) - 1, count)).astype(int)], start == 0
