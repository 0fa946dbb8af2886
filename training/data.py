"""Table rows to batches: Keras's `flow_from_dataframe`, decoded once and served from memory."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import keras
import numpy as np
import pandas as pd

from common import images as raw_images
from common.command_line import progress_bar
from common.errors import InputError
from common.files import atomic_file
from inference.emotion_classifier import EmotionClassifier
from preprocessing.tables import check_unchanged, labels_of
from training.workers import one_at_a_time

VERSION = 1  # raise this when batches are to come or to be mixed otherwise: finished runs are then repeated
CHANNELS = {"grayscale": 1, "rgb": 3}
MEMORY_LIMIT = 2 << 30  # bytes: larger caches are memory-mapped, not loaded
KEPT_CACHES = 12  # files: the least recently used beyond these are removed


class FaceBatches(keras.utils.PyDataset):
    """Batches of images and their targets.

    Each epoch's order depends on the seed and the epoch's number alone, so a resumed run sees the same batches as an
    uninterrupted one.

    Attributes:
        images: uint8, (n, height, width, channels), 0-255; read-only.
        labels: int64, (n,): class indices; or float32, (n, classes): targets as they are; None with `class_mode=None`.
        classes: Class names in class order.
        batch_size: Images per batch; the last batch may be smaller.
        epoch: Number of the epoch being served; set it before a run is resumed.
        weights: float32, (n,): weight of each image in the loss, served third; None: (images, labels) alone.
        mixup: Each image of a batch is mixed with another one of the batch, in a share drawn for each from a beta
            distribution with this as both its parameters; 0: none are (Zhang et al. 2018,
            https://arxiv.org/abs/1710.09412). Targets and weights are mixed as `_mixed` says.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        classes: Sequence[str],
        batch_size: int,
        class_mode: str | None = "categorical",
        shuffle: bool = True,
        seed: int | None = None,
        weights: np.ndarray | None = None,
        mixup: float = 0.0,
    ):
        super().__init__()
        self.images = images
        self.labels: np.ndarray | None = labels
        self.classes = tuple(classes)
        self.batch_size = batch_size
        self.weights = weights
        self.mixup = mixup
        self.epoch = 0
        self._class_mode = class_mode
        self._shuffle = shuffle
        self._seed = seed if seed is not None else int(np.random.default_rng().integers(1 << 31))
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        chosen = self._epoch_order()[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.images[chosen]
        if self.labels is None:
            return images
        targets = self.labels[chosen]
        if self._class_mode == "categorical":
            targets = np.eye(len(self.classes), dtype=np.float32)[targets]
        served = (images, targets) if self.weights is None else (images, targets, self.weights[chosen])
        return self._mixed(served, index) if self.mixup else served

    def set_targets(self, targets: np.ndarray) -> None:
        """Serve other targets from now on, float32 (n, classes)."""
        self.labels, self._class_mode = targets.astype(np.float32), "raw"

    def on_epoch_end(self) -> None:
        """Go on to the next epoch's order."""
        self.epoch += 1

    def _mixed(self, served: tuple[np.ndarray, ...], index: int) -> tuple[np.ndarray, ...]:
        """Return a batch mixed with itself in another order.

        Two images x with targets y and weights w are mixed by the share s into

            x = s x1 + (1 - s) x2,  w = s w1 + (1 - s) w2,  y = (s w1 y1 + (1 - s) w2 y2) / w.

        Cross-entropy is linear in its target, so the loss w H(y, p) is s w1 H(y1, p) + (1 - s) w2 H(y2, p): each part
        keeps its own weight. Targets mixed without the weights would give each part a share of its partner's weight.
        """
        random = np.random.default_rng([self._seed, self.epoch, index])
        n = len(served[0])
        partners, shares = random.permutation(n), random.beta(self.mixup, self.mixup, n).astype(np.float32)

        def mix(values: np.ndarray) -> np.ndarray:
            share = shares.reshape(n, *[1] * (values.ndim - 1))
            mixed = share * values + (1 - share) * values[partners]
            return mixed.round().astype(np.uint8) if values.dtype == np.uint8 else mixed

        if len(served) == 2:
            return tuple(mix(values) for values in served)
        images, targets, weights = served
        mixed_weights = mix(weights)
        divisor = np.maximum(mixed_weights, np.finfo(np.float32).tiny)  # weights may be zero
        return mix(images), mix(weights[:, None] * targets) / divisor[:, None], mixed_weights

    def _epoch_order(self) -> np.ndarray:
        if self._order is None or (self._shuffle and self._order[0] != self.epoch):
            order = np.arange(len(self.images))
            if self._shuffle:
                np.random.default_rng([self._seed, self.epoch]).shuffle(order)
            self._order = (self.epoch, order)
        return self._order[1]


def flow_from_dataframe(
    dataframe: pd.DataFrame,
    directory: Path,
    x_col: str = "face_path",
    y_col: str | Sequence[str] = "emotion",
    target_size: tuple[int, int] = (48, 48),
    color_mode: str = "grayscale",
    classes: Sequence[str] | None = None,
    class_mode: str | None = "categorical",
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int | None = None,
    weight_col: str | None = None,
    mixup: float = 0.0,
) -> FaceBatches:
    """Return batches of the table's images; arguments are named as in Keras's `flow_from_dataframe`.

    Unlike Keras's, it decodes every image once, in parallel, into a uint8 cache under `directory/cache` (keyed by the
    paths and the files' sizes and times); it never resizes, never drops a file in silence, and takes the class order
    from `classes`, not from the alphabet.

    Args:
        dataframe: Rows to serve, such as `image_tables.usable(table)` gives.
        directory: Folder that the paths are relative to.
        x_col: Column of the paths.
        y_col: Column of the labels, or with `raw` one column per class; not read with `class_mode=None`.
        target_size: (height, width) in pixels that every image must have.
        color_mode: `grayscale` or `rgb`.
        classes: Class names in class order; left out, the table's emotions.
        class_mode: `categorical` (one-hot float32), `sparse` (class indices), `raw` (the columns' values, float32),
            or None (images alone).
        batch_size: Images per batch.
        shuffle: A new order in every epoch.
        seed: Seed of that order.
        weight_col: Column of the images' weights in the loss, such as `balancing.sample_weights` gives.
        mixup: As `FaceBatches` takes it; not with `sparse`, whose targets cannot be mixed.

    Raises:
        InputError: no rows; a file missing, unreadable, or of another size; a label outside `classes`.
    """
    if color_mode not in CHANNELS:
        raise InputError(f"color_mode {color_mode!r} is not one of {', '.join(CHANNELS)}")
    if class_mode not in ("categorical", "sparse", "raw", None):
        raise InputError(f"class_mode {class_mode!r} is not one of categorical, sparse, raw, None")
    if mixup and class_mode not in ("categorical", "raw"):
        raise InputError(f"class_mode {class_mode!r} gives no targets that mixup can mix; use categorical or raw")
    if not len(dataframe):
        raise InputError(f"the table for {directory} has no rows to serve; look at its split and status columns")
    labels = None
    if class_mode == "raw":
        labels = dataframe[list(y_col)].to_numpy(np.float32)
    elif class_mode is not None:
        emotions = dataframe[str(y_col)]
        classes = list(classes) if classes is not None else labels_of(dataframe)
        codes = pd.Categorical(emotions, categories=classes).codes
        if (codes < 0).any():
            wrong = emotions.iloc[int(np.argmax(codes < 0))]
            raise InputError(f"label {wrong!r} is not one of the classes {', '.join(classes)}")
        labels = codes.astype(np.int64)
    images = _cached_images(list(dataframe[x_col]), Path(directory), target_size, color_mode)
    weights = None if weight_col is None else dataframe[weight_col].to_numpy(np.float32)
    return FaceBatches(images, labels, classes or (), batch_size, class_mode, shuffle, seed, weights, mixup)


def read_crops(classifier: EmotionClassifier, directory: Path, rows: pd.DataFrame) -> np.ndarray:
    """Return the crops of a table's rows as a network takes them, uint8 (n, size, size, channels).

    Raises:
        InputError: no rows; a crop is missing, or of another size; the images were replaced after the rows were read.
    """
    images = flow_from_dataframe(
        rows,
        directory,
        target_size=(classifier.input_size, classifier.input_size),
        color_mode="grayscale" if classifier.channels == 1 else "rgb",
        class_mode=None,
        shuffle=False,
    ).images
    check_unchanged(rows, directory)
    return images


def _cached_images(paths: list[str], directory: Path, target_size: tuple[int, int], color_mode: str) -> np.ndarray:
    """Return the decoded images, from the cache where the same files were decoded before."""
    key = _cache_key(paths, directory, target_size, color_mode)
    file = directory / "cache" / f"{key}.npy"
    shape = (len(paths), *target_size, CHANNELS[color_mode])
    images = read_cache(file, shape, np.uint8)
    if images is None:
        with one_at_a_time(file.with_name(".lock")):
            images = read_cache(file, shape, np.uint8)  # another process may have decoded them meanwhile
            if images is None:
                _write_cache(file, [directory / path for path in paths], target_size, color_mode)
                if _cache_key(paths, directory, target_size, color_mode) != key:
                    file.unlink()
                    raise InputError(
                        f"crops in {directory} changed while they were read; wait for step 2 and try again"
                    )
                images = read_cache(file, shape, np.uint8)
        assert images is not None, f"{file} cannot be read back"
    images.flags.writeable = False
    return images


def _cache_key(paths: list[str], directory: Path, target_size: tuple[int, int], color_mode: str) -> str:
    """Return a hash of what a cache is made from: the format, and each file's path, size and time of last change."""
    key = hashlib.sha256(repr((target_size, color_mode)).encode())
    for path in paths:
        try:
            state = (directory / path).stat()
        except OSError as error:
            raise InputError(f"{directory / path} is missing; make the crops again with step2_face_crops") from error
        key.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return key.hexdigest()[:16]


def _write_cache(file: Path, sources: list[Path], target_size: tuple[int, int], color_mode: str) -> None:
    """Decode images into a cache file, and remove the least recently used caches."""
    with atomic_file(file) as temporary, temporary.open("wb") as stream:
        # Not into a memory map: on a full disk, writing to one kills the process.
        shape = (len(sources), *target_size, CHANNELS[color_mode])
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        _write_decoded(stream, sources, target_size, color_mode)
    for old in sorted(file.parent.glob("*.npy"), key=lambda f: f.stat().st_mtime)[:-KEPT_CACHES]:
        old.unlink(missing_ok=True)


def read_cache(file: Path, shape: tuple[int | None, ...], dtype: type) -> np.ndarray | None:
    """Return the array of a cache file; None where it must be made anew, which is printed where the file is damaged.

    Args:
        file: The `.npy` file; it need not exist. A large one is memory-mapped.
        shape: The lengths that it must have; None: any.
        dtype: The type that its values must have.
    """
    try:
        array = np.load(file, mmap_mode="r" if file.stat().st_size > MEMORY_LIMIT else None)
        fits = all(wanted in (None, length) for length, wanted in zip(array.shape, shape, strict=True))
        if array.dtype != dtype or not fits:
            raise ValueError(f"it holds {array.dtype} {array.shape}")
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # a damaged file may raise almost anything
        print(f"{file} is damaged; it is made anew", flush=True)
        file.unlink(missing_ok=True)
        return None
    os.utime(file)
    return array


def _write_decoded(stream: BinaryIO, files: list[Path], target_size: tuple[int, int], color_mode: str) -> None:
    def decode(file: Path) -> bytes:
        return read_image(file, target_size, color_mode).tobytes()

    with ThreadPoolExecutor() as pool, progress_bar() as bar:
        for pixels in bar.track(pool.map(decode, files), total=len(files), description="decoding"):
            stream.write(pixels)


def read_image(file: Path, target_size: tuple[int, int], color_mode: str) -> np.ndarray:
    """Return one image, uint8 (height, width, channels), gray or RGB.

    Raises:
        InputError: the file cannot be decoded, or has another size than `target_size`.
    """
    flags = cv2.IMREAD_GRAYSCALE if color_mode == "grayscale" else cv2.IMREAD_COLOR_RGB
    try:
        image = raw_images.read_image(file, flags)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; make the crops again with step2_face_crops") from error
    if image is None:
        raise InputError(f"{file} is not a readable image; make the crops again with step2_face_crops")
    if image.shape[:2] != tuple(target_size):
        raise InputError(
            f"{file} is {image.shape[1]}x{image.shape[0]} pixels, not {target_size[1]}x{target_size[0]}; "
            "nothing is resized here: make the crops again with step2_face_crops --size"
        )
    return image.reshape(*target_size, CHANNELS[color_mode])
