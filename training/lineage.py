"""What a network has seen of the images that it is scored on, or that its settings were selected on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from inference.lineage import ImageHashes, hash_codes, read_hashes
from inference.model_card import Card
from preprocessing.tables import split_hash

# Above this share, duplicates that a data set publishes across its own splits make a score no held-out score.
MAX_DUPLICATE_SHARE = 0.2


@dataclass(frozen=True)
class Exposure:
    """What a network has seen of the images that it is scored on.

    Attributes:
        training: Whether each image is a training image of the lineage, bool (n,).
        selection: Whether each image is a selection image of the lineage, bool (n,).
        duplicate_of_training: Whether the table itself has the image in its training split too, bool (n,); of an image
            of the training split it is False. Data sets publish such cross-split duplicates (FER2013: 8 % of dev).
        duplicate_of_selection: The same, of the dev split.
        complete: Whether the lists cover the whole lineage. Where they do not, an image may be exposed all the same.
    """

    training: np.ndarray
    selection: np.ndarray
    duplicate_of_training: np.ndarray
    duplicate_of_selection: np.ndarray
    complete: bool

    @property
    def trained(self) -> int:
        """Number of images that the network was trained on, other than by cross-split duplicates of the data set."""
        return _exposed(self.training, self.duplicate_of_training)

    @property
    def selected(self) -> int:
        """Number of images that the network was selected on, other than by cross-split duplicates of the data set."""
        return _exposed(self.selection, self.duplicate_of_selection)

    @property
    def held_out(self) -> bool | None:
        """Whether the network was trained on none of the images; None where the lineage is not known in full."""
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
        """Return the exposure of several sets of images, one after the other, each scored by its own network."""
        parts = list(parts)
        names = parts[0]._arrays()
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**arrays, complete=all(part.complete for part in parts))


def _exposed(seen: np.ndarray, duplicate: np.ndarray) -> int:
    if seen.size and seen.mean() > MAX_DUPLICATE_SHARE:
        return int(seen.sum())
    return int((seen & ~duplicate).sum())


def exposure_of(model_file: Path, card: Card, rows: pd.DataFrame, table: pd.DataFrame, dataset: str) -> Exposure:
    """Return what a network has seen of some rows of a data set.

    A network without a list of images is judged by its card, which names the data sets and splits of its lineage: it
    has seen the training and dev rows of a table whose name and split hash are those of the card. Whether it has seen
    the images of any other table is not known.

    Args:
        model_file: The network.
        card: Its card.
        rows: The rows that are scored, with `pixel_hash` and `split`.
        table: All rows of the data set, with the split that is scored.
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


def knows_images(model_file: Path, card: Card, rows: pd.DataFrame, dataset: str) -> bool:
    """Return whether any of a data set's images shaped a network.

    Args:
        model_file: The network.
        card: Its card. It decides, by the name of the data set, where no complete list of images lies beside it.
        rows: The images, with `pixel_hash`.
        dataset: Name of the data set.

    Raises:
        InputError: The list of images is damaged, or belongs to another network.
    """
    hashes = read_hashes(model_file)
    known = bool(np.isin(hash_codes(rows["pixel_hash"]), hashes.all).any())
    return known or (not hashes.complete and card.was_trained_on(dataset))


def settings_images(settings: Path, table: pd.DataFrame, dataset: str) -> ImageHashes | None:
    """Return the images by which the settings in a file were selected; None for settings that were written by hand.

    They are complete only where the list beside the file is the one that the file names, or that of a network's card.

    Args:
        settings: A `tuned.json`, or a network's card.
        table: `split.csv` of the data set that the settings are used on.
        dataset: Name of that data set.

    Raises:
        InputError: The list of images is damaged.
    """
    hashes = read_hashes(settings.with_suffix(".keras"))
    try:
        content = dict(json.loads(settings.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return replace(hashes, complete=False)  # whoever reads the settings says what is wrong with the file
    found = content.get("found", content)
    if hashes.complete:
        named = "config" not in content or (isinstance(found, Mapping) and found.get("images") == hashes.content_hash)
        if named:
            return hashes
        hashes = replace(hashes, complete=False)  # the list of another search
    if "config" in content and "found" not in content and not len(hashes.all):
        return None
    if isinstance(found, Mapping) and (found.get("dataset"), found.get("split_hash")) == (dataset, split_hash(table)):
        rows = table.loc[table["split"].isin(["train", "dev"])]
        images = {name: rows.loc[rows["split"] == name, "pixel_hash"] for name in ("train", "dev")}
        return hashes | ImageHashes.of(images["train"], images["dev"])
    return hashes
