"""Leakage: which of the scored images a network or its lineage was trained or selected on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError
from inference.lineage import hash_codes, read_hashes
from inference.model_card import Card
from preprocessing.tables import split_hash

# With a larger share of cross-split duplicates, a score is no held-out score.
MAX_DUPLICATE_SHARE = 0.2


@dataclass(frozen=True)
class Exposure:
    """Which of the scored images a network was trained or selected on.

    Attributes:
        training: Whether each image is a training image of the lineage, bool (n,).
        selection: Whether each image is a selection image of the lineage, bool (n,).
        duplicate_of_training: Whether each image is also in the training split of its own table, bool (n,); False for
            training rows. Data sets publish such cross-split duplicates (FER2013: 8 % of dev).
        duplicate_of_selection: The same for the dev split.
        complete: Whether the lists cover the whole lineage; if not, other images may be exposed too.
    """

    training: np.ndarray
    selection: np.ndarray
    duplicate_of_training: np.ndarray
    duplicate_of_selection: np.ndarray
    complete: bool

    @property
    def trained(self) -> int:
        """Number of images that the network was trained on, without cross-split duplicates."""
        return _exposed(self.training, self.duplicate_of_training)

    @property
    def selected(self) -> int:
        """Number of images that the network was selected on, without cross-split duplicates."""
        return _exposed(self.selection, self.duplicate_of_selection)

    @property
    def held_out(self) -> bool | None:
        """Whether the network was trained on none of the images; None if its lineage is incomplete."""
        return False if self.trained else True if self.complete else None

    def select(self, keep: np.ndarray) -> Exposure:
        """Return the exposure of some of the images.

        Args:
            keep: Mask, bool (n,), or positions, int (m,).
        """
        return replace(self, **{name: value[keep] for name, value in self._arrays().items()})

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @classmethod
    def joined(cls, parts: Iterable[Exposure]) -> Exposure:
        """Return the concatenated exposure of several sets of images, each scored by its own network."""
        parts = list(parts)
        names = parts[0]._arrays()
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**arrays, complete=all(part.complete for part in parts))


def _exposed(seen: np.ndarray, duplicate: np.ndarray) -> int:
    if seen.size and seen.mean() > MAX_DUPLICATE_SHARE:
        return int(seen.sum())
    return int((seen & ~duplicate).sum())


def exposure_of(model_file: Path, card: Card, rows: pd.DataFrame, table: pd.DataFrame, dataset: str) -> Exposure:
    """Return which rows of a data set a network was trained or selected on.

    Without a list of images the card decides: it names the data sets and splits of the lineage. The network then knows
    the training and dev rows of a table whose name and split hash the card has; for other tables it is unknown.

    Args:
        model_file: The network.
        card: Its card.
        rows: The scored rows, with `pixel_hash` and `split`.
        table: All rows of the data set, with the scored split.
        dataset: Name of the data set.

    Raises:
        InputError: The list of images is damaged, or belongs to another network.
    """
    hashes, codes, part = read_hashes(model_file), hash_codes(rows["pixel_hash"]), rows["split"].to_numpy()
    in_train, in_dev = (
        np.isin(codes, hash_codes(table.loc[table["split"] == name, "pixel_hash"])) for name in ("train", "dev")
    )
    training, selection = np.isin(codes, hashes.training), np.isin(codes, hashes.selection)
    complete = hashes.complete
    if not complete:
        splits = card.training_splits
        complete = all(list(split) == [dataset, split_hash(table)] for split in splits)
        learned_here = card.was_trained_on(dataset)
        calibrated_here = card.calibration.get("dataset") == dataset
        training = training | (in_train & (complete | (learned_here & (part == "train"))))
        selection = selection | (in_dev & (complete | ((learned_here | calibrated_here) & (part == "dev"))))
    return Exposure(training, selection, in_train & (part != "train"), in_dev & (part != "dev"), complete)


def check_held_out(option: str, model_file: Path, card: Card, table: pd.DataFrame, dataset: str) -> None:
    """Refuse a network that was trained on dev or test images, which score the new network.

    The networks of its lineage count, too. Cross-split duplicates are accepted.

    Args:
        option: What uses the network, for the message.
        model_file: The network.
        card: Its card.
        table: All rows of the data set, with the split of the new network.
        dataset: Name of the data set.

    Raises:
        InputError: It was trained on images of the dev or test split.
    """
    held_out = table.loc[table["split"].isin(["dev", "test"])]
    exposure = exposure_of(model_file, card, held_out, table, dataset)
    if trained := int((exposure.training & ~exposure.duplicate_of_training).sum()):
        raise InputError(
            f"{option} {model_file} was trained on {trained:,} images of the dev or test split of {dataset}, which "
            "score the new network; train it again on this split"
        )


def knows_images(model_file: Path, card: Card, rows: pd.DataFrame, dataset: str) -> bool:
    """Return whether a network was trained or selected on any image of a data set.

    Args:
        model_file: The network.
        card: Its card; decides by the data set's name if there is no complete list of images.
        rows: The images, with `pixel_hash`.
        dataset: Name of the data set.

    Raises:
        InputError: The list of images is damaged, or belongs to another network.
    """
    hashes = read_hashes(model_file)
    known = bool(np.isin(hash_codes(rows["pixel_hash"]), hashes.all).any())
    return known or (not hashes.complete and card.was_trained_on(dataset))
