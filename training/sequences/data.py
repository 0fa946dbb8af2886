"""Sequences of a data set: their frames, the features of each frame, and batches of windows."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from filelock import FileLock

from common.command_line import progress_bar
from common.emotions import in_class_order
from common.errors import InputError
from common.files import fingerprint, write_file
from configuration import SequenceConfig
from inference.emotion_classifier import EmotionClassifier
from inference.sequence_classifier import window_of
from preprocessing.tables import has_image, make_command
from training.data.crops import read_cache, read_crops

VERSION = 1  # raise this to retrain finished runs when sequences are read or augmented differently
RAMP = 2.0  # the loss weight of a step is the share of the sequence seen so far, to this power
CUT = 0.5  # largest share cut off the start of a training sequence, with probability 0.5
SPEED = 1.5  # largest factor by which a training sequence is played faster or slower
_FEATURE_BATCH = 256  # images
_KEPT_FEATURES = 12  # cache files; the least recently used ones are removed


@dataclass(frozen=True)
class SequenceSet:
    """Labelled sequences of frames.

    Attributes:
        frames: The rows of `split.csv` that the sequences are made of, numbered from 0.
        steps: Frames of each sequence in order of time, as positions in `frames`, int (t,).
        table: A row per sequence: `sequence`, `subject`, `emotion`, `split` (those of its last frame), and
            `starts_neutral`, whether its first frame is labelled neutral.
        classes: All emotions of the sequences, in class order.
        note: Number of sequences, and what was left out or filled in.
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
        """Emotions of the last frames, and neutral if a first frame has it."""
        return set(self.table["emotion"]) | ({"neutral"} if self.table["starts_neutral"].any() else set())

    def of_split(self, split: str) -> "SequenceSet":
        """Return the sequences of a split; `frames` does not change."""
        chosen = (self.table["split"] == split).to_numpy()
        steps = [steps for steps, keep in zip(self.steps, chosen, strict=True) if keep]
        return replace(self, steps=steps, table=self.table.loc[chosen].reset_index(drop=True))


def read_sequences(table: pd.DataFrame, folder: Path) -> SequenceSet:
    """Return the labelled sequences of a data set that was listed with all frames.

    A missing frame, or one without a face, is replaced by the frame before it, as in the realtime program. Sequences
    without their labelled last frame, or with more than half of the frames missing, are left out. `note` counts both.

    Args:
        table: `split.csv`.
        folder: The data set's folder.

    Raises:
        InputError: There are no sequences, only their peaks are listed, or a frame has no number.
    """
    file = folder / "split.csv"
    rows = table.loc[table["sequence"] != ""]
    if rows.empty:
        raise InputError(
            f"{file} has no sequences, only single images; give a data set of sequences, such as CK+ "
            "(listed by preprocessing.step1_inventory with --frames all)"
        )
    numbers = pd.to_numeric(rows["frame"], errors="coerce")
    if numbers.isna().any():
        wrong = rows.loc[numbers.isna()].iloc[0]
        raise InputError(
            f"{file}: frame {wrong['frame']!r} of sequence {wrong['sequence']} is no number; run step 1 again"
        )
    rows = rows.assign(number=numbers.astype(int), seen=has_image(rows))
    rows = rows.sort_values(["sequence", "number"], kind="stable")
    labelled = [part for _, part in rows.groupby("sequence", sort=True) if part["emotion"].iloc[-1] != ""]
    if not any((part["emotion"].iloc[:-1] == "").any() for part in labelled):
        raise InputError(
            f"{file} lists no frames between a sequence's first and its labelled last one; list them all, then run "
            f"steps 2 and 3 again: {make_command(folder, 'inventory.csv', frames='all')}"
        )
    return _joined(*_usable(labelled, file))


def _usable(labelled: list[pd.DataFrame], file: Path) -> tuple[list[pd.DataFrame], str]:
    """Return the readable frames of the sequences that are not left out, and a note with counts."""
    parts, missing, incomplete, left_out, in_no_split = [], 0, 0, 0, 0
    for part in labelled:
        seen = part.loc[part["seen"]]
        gaps = len(seen) and int(seen["number"].iloc[-1] - seen["number"].iloc[0] + 1 - seen["number"].nunique())
        has_end = part["seen"].iloc[-1]
        if has_end and part["split"].iloc[-1] == "":
            in_no_split += 1
        elif not has_end or len(seen) < 2 or gaps > len(seen):
            left_out += 1
        else:
            missing, incomplete = missing + gaps, incomplete + (gaps > 0)
            parts.append(seen.drop_duplicates("number"))
    if not parts:
        raise InputError(f"{file} has no sequence with two readable frames and its label on the last; see its statuses")
    note = f"sequences: {len(parts):,} with a label, of {min(map(len, parts))} to {max(map(len, parts))} frames"
    if incomplete:
        note += f"; {missing:,} frames of {incomplete:,} of them are missing and replaced by the frame before"
    if left_out:
        note += f"; left out: {left_out:,} without a usable last frame, or with more than half of the frames missing"
    if in_no_split:
        note += f"; {in_no_split:,} have no split (step 3, such as --without)"
    return parts, note


def _joined(parts: list[pd.DataFrame], note: str) -> SequenceSet:
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
    found = SequenceSet(frames.drop(columns=["number", "seen"]), steps, table, (), note)
    return replace(found, classes=tuple(in_class_order(found.shown)))


def frame_features(classifier: EmotionClassifier, folder: Path, frames: pd.DataFrame) -> np.ndarray:
    """Return the features of each frame's crop and of its flip, from a cache if they were computed before.

    Args:
        classifier: A network loaded with its features.
        folder: The data set's folder, with `cache/`.
        frames: Rows with `face_path`.

    Returns:
        float32 (2, n, size): of the crops, and of the flipped crops; see `EmotionClassifier.features`.

    Raises:
        InputError: A crop is missing or has another size than the network takes.
    """
    images = read_crops(classifier, folder, frames)
    crops = fingerprint({path: folder / path for path in frames["face_path"]})
    key = hashlib.sha256(f"{classifier.features_of}{crops}".encode()).hexdigest()[:16]
    file = folder / "cache" / f"features-{key}.npy"
    known = read_cache(file, (2, len(images), None), np.float32)
    if known is not None:
        os.utime(file)
        return known
    parts: list[np.ndarray] = []
    with progress_bar() as bar:
        for start in bar.track(range(0, len(images), _FEATURE_BATCH), description="features"):
            part = np.asarray(images[start : start + _FEATURE_BATCH])
            parts.append(np.stack([classifier.features(part), classifier.features(part[:, :, ::-1])]))
    features = np.concatenate(parts, axis=1)
    content = io.BytesIO()
    np.save(content, features)
    with FileLock(file.with_suffix(".lock")):  # another training may write the same file
        write_file(file, content.getvalue())
    for old in sorted(file.parent.glob("features-*.npy"), key=lambda f: f.stat().st_mtime)[:-_KEPT_FEATURES]:
        old.unlink(missing_ok=True)
    return features


class SequenceBatches(keras.utils.PyDataset):
    """Batches of windows, with a target and a loss weight for each step.

    The last step of a sequence has its label and weight 1. In training, a step after the share s of the sequence has
    the same label and weight s ** RAMP, since the onset of the expression is not labelled. A first frame labelled
    neutral has that label and weight 1. In evaluation only the last step counts, so the accuracy of a batch is that of
    its sequences. The augmentation of an epoch depends only on the seed and the epoch's number.

    Args:
        sequences: The sequences.
        features: float32 (2, n, size) of `frame_features`.
        classes: Class names, in class order.
        options: Window, batch size and seed.
        augment: Random start, speed and flip, in a new order in every epoch; for training.

    Attributes:
        classes: Class names, in class order.
        epoch: Number of the current epoch, from 0; set it before a run is resumed.
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
        windows, targets, weights = zip(*(self._window(n, random) for n in order[index * size :][:size]), strict=True)
        return np.stack(windows), np.stack(targets), np.stack(weights)

    def on_epoch_end(self) -> None:
        """Go on to the order and augmentation of the next epoch."""
        self.epoch += 1

    def _window(self, number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        steps, flipped, complete = self._sequences.steps[number], 0, True
        if self._augment:
            steps, complete = _replayed(steps, random)
            flipped = int(random.random() < 0.5)
        frames = self._features[flipped][steps]
        window = self._options.window
        rows, count = window_of(frames, frames[0], window)
        targets = np.zeros((window, len(self.classes)), np.float32)
        targets[:, self._label[number]] = 1
        weights = np.zeros(window, np.float32)
        if self._augment:
            weights[:count] = ((np.arange(count) + 1) / count) ** RAMP
            if complete and self._starts_neutral[number] and count == len(frames):
                targets[0] = np.eye(len(self.classes))[self.classes.index("neutral")]
                weights[0] = 1
        weights[count - 1] = 1
        return rows, targets, weights


def _replayed(steps: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Return the steps of a sequence with a random start and speed, and whether the first step is among them.

    The last step and at least two steps are kept.
    """
    start = 0
    if random.random() < 0.5:
        start = int(random.uniform(0, CUT) * (len(steps) - 1))
    speed = SPEED ** random.uniform(-1, 1)
    count = max(2, round((len(steps) - start) / speed))
    return steps[np.round(np.linspace(start, len(steps) - 1, count)).astype(int)], start == 0
