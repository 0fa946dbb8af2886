"""The lineage of a network: the networks that it was made from, and their training and selection images.

The lineage contains the network itself, the network that it was initialised from, its teachers and its feature network,
recursively. `X.hashes.npz` beside `X.keras` lists the pixel hashes of all training and selection images. Images are
recognised under any file name and in any data set, but not after resizing, mirroring or compression.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from common.errors import InputError
from common.files import file_hash, write_file
from configuration import PATHS, ROOT

_HEX_16 = re.compile("[0-9a-f]{16}")


class TrainingHistory:
    """The data sets that a network and the networks of its lineage were trained on."""

    @property
    def training_splits(self) -> tuple[tuple[str | None, str | None], ...]:
        """Data set name and split hash of each training; `(None, None)` is unnamed data."""
        raise NotImplementedError

    def was_trained_on(self, dataset: str) -> bool:
        """Return whether a network of the lineage was trained on a data set."""
        return any(name == dataset for name, _ in self.training_splits)

    def was_trained_on_another_split(self, dataset: str, split_hash: str) -> bool:
        """Return whether a network of the lineage was trained on another split of a data set."""
        return any(name == dataset and other != split_hash for name, other in self.training_splits)


@dataclass(frozen=True, kw_only=True)
class SourceNetwork(TrainingHistory):
    """An entry of a model card: a network that another one was initialised or distilled from.

    Attributes:
        file: Path of the `.keras` file, relative to the project's folder if it lies inside.
        sha256: Content hash of the file, 16 hex digits.
        dataset: Name of its training data.
        split_hash: Hash of the split of that data.
        labels: Class names, in class order.
        trained_on: Data of its whole lineage, such as `fer2013 (labels)`.
        splits: Data set name and split hash of each training in its lineage; `(None, None)` is unnamed data.
        command: The command that trained it.
    """

    file: str
    sha256: str
    dataset: str | None = None
    split_hash: str | None = None
    labels: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    splits: tuple[tuple[str | None, str | None], ...] = ()
    command: str = ""

    @property
    def training_splits(self) -> tuple[tuple[str | None, str | None], ...]:
        """Data set name and split hash of each training in the lineage of this network, itself included."""
        return self.splits or ((self.dataset, self.split_hash),)

    def find(self) -> Path | None:
        """Return the path of the file with this content hash, or None.

        `file` is tried relative to the current folder and to the project's folder, then the released network.
        """
        for file in (Path(self.file), ROOT / self.file, PATHS.pretrained):
            if file.is_file() and file_hash(file) == self.sha256:
                return file
        return None

    @classmethod
    def from_json(cls, entries: Any) -> Self:
        """Return the network of an entry of a card.

        Raises:
            ValueError: The entry has no file or content hash, or a value of another type.
        """
        splits = entries.get("splits", []) if isinstance(entries, dict) else None
        usable = (
            isinstance(splits, list)
            and all(isinstance(split, list) and len(split) == 2 for split in splits)
            and all(isinstance(entries.get(name), str) for name in ("file", "sha256"))
            and all(isinstance(entries.get(name, []), list) for name in ("labels", "trained_on"))
        )
        if not usable:
            raise ValueError(f"{str(entries)[:80]!r} is not a network of the lineage")
        known = {entry.name: entries[entry.name] for entry in fields(cls) if entry.name in entries}
        return cls(**{name: as_tuple(value) for name, value in known.items()})


def as_tuple(value: Any) -> Any:
    """Return a JSON list, of texts or of lists of them, as a tuple; any other value unchanged."""
    return tuple(as_tuple(part) for part in value) if isinstance(value, list) else value


def hash_codes(pixel_hashes: Iterable[str]) -> np.ndarray:
    """Return pixel hashes as integers.

    Args:
        pixel_hashes: Values of a table's column `pixel_hash`: 16 hexadecimal digits, or any other text.

    Returns:
        uint64 (n,), in the same order.
    """

    def code(text: str) -> int:
        if _HEX_16.fullmatch(text):
            return int(text, 16)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")  # made by hand

    return np.fromiter((code(text) for text in pixel_hashes), dtype=np.uint64)


@dataclass(frozen=True)
class ImageHashes:
    """The training and selection images of a network.

    Attributes:
        training: Hashes of the training images of its whole lineage: uint64, sorted, unique.
        selection: Hashes of the images that an epoch, a setting, a temperature or a threshold was selected on.
        complete: Whether the lists cover the whole lineage.
    """

    training: np.ndarray
    selection: np.ndarray
    complete: bool = True

    @classmethod
    def of(cls, training: Iterable[str] = (), selection: Iterable[str] = (), complete: bool = True) -> ImageHashes:
        """Return the hashes of images with these values of `pixel_hash`."""
        return cls(np.unique(hash_codes(training)), np.unique(hash_codes(selection)), complete)

    def __or__(self, other: ImageHashes) -> ImageHashes:
        return ImageHashes(
            np.union1d(self.training, other.training),
            np.union1d(self.selection, other.selection),
            self.complete and other.complete,
        )

    @property
    def all(self) -> np.ndarray:
        """Training and selection images together: uint64, sorted, unique."""
        return np.union1d(self.training, self.selection)

    @property
    def content_hash(self) -> str:
        """Content hash of both lists (SHA-256, 16 hex digits)."""
        return hashlib.sha256(b"|".join((self.training.tobytes(), self.selection.tobytes()))).hexdigest()[:16]


UNKNOWN = ImageHashes.of(complete=False)


def hashes_file(model_file: Path) -> Path:
    """Return the path of the list of images beside a network."""
    return model_file.with_suffix(".hashes.npz")


def write_hashes(model_file: Path, hashes: ImageHashes) -> None:
    """Write the list of images beside a network, with the content hash of the network.

    Args:
        model_file: The network; for `tuned.json`, `tuned.keras`, which does not exist.
        hashes: Its images.
    """
    network_hash = file_hash(model_file) if model_file.is_file() else ""
    write_file(hashes_file(model_file), hashes_content(hashes, network_hash))


def hashes_content(hashes: ImageHashes, network_hash: str) -> bytes:
    """Return the content of the file that lists the images of a network."""
    content = io.BytesIO()
    np.savez_compressed(
        content,
        belongs_to=np.array(network_hash),
        training=hashes.training,
        selection=hashes.selection,
        complete=np.array(hashes.complete),
    )
    return content.getvalue()


def read_hashes(model_file: Path) -> ImageHashes:
    """Return the training and selection images of a network; `UNKNOWN` without a list beside it.

    Raises:
        InputError: The list is damaged, or belongs to another file.
    """
    file = hashes_file(model_file)
    remedy = "restore it, or delete it (the images then count as unknown)"
    try:
        with np.load(file, allow_pickle=False) as content:
            belongs_to = str(content["belongs_to"])
            training, selection = (np.unique(content[name].astype(np.uint64)) for name in ("training", "selection"))
            complete = bool(content["complete"])
    except FileNotFoundError:
        return UNKNOWN
    except Exception as error:  # a damaged file may raise almost anything
        raise InputError(f"{file}, the list of training images, is damaged ({error}); {remedy}") from error
    if model_file.is_file() and belongs_to != file_hash(model_file):
        raise InputError(f"{file}, the list of training images, belongs to another file than {model_file}; {remedy}")
    return ImageHashes(training, selection, complete)


def lineage_hashes(own: ImageHashes, sources: Iterable[Path]) -> ImageHashes:
    """Return the images of a new network: its own images and those of its lineage.

    Args:
        own: The images that the network itself is trained and selected on.
        sources: The pretrained network, the teachers and the feature network.

    Raises:
        InputError: As `read_hashes`.
    """
    for source in sources:
        own |= read_hashes(source)
    return own
