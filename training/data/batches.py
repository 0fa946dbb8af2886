"""Batches of images and targets in a seeded order, with arguments like Keras's `flow_from_dataframe`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from common.errors import InputError
from preprocessing.tables import labels_of
from training.data.crops import CHANNELS, cached_images

VERSION = 1  # raise this to retrain finished runs when batches change
CLASS_MODES = ("categorical", "raw")


class FaceBatches(keras.utils.PyDataset):
    """Batches of images and targets.

    The order of an epoch depends only on the seed and the epoch's number, so a resumed run sees the same batches as an
    uninterrupted one.

    Attributes:
        images: uint8 (m, height, width, channels), 0-255: the pixel array.
        rows: int64 (n,): position of each served image in `images`.
        labels: int64 (n,): class indices; or float32 (n, classes): targets.
        classes: Class names, in class order.
        batch_size: Images per batch; the last batch may be smaller.
        weights: float32 (n,): loss weight of each image, the third part of a batch; None: (images, targets) only.
        mixup: Alpha of the beta distribution of mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412); 0: off.
        epoch: Number of the current epoch, from 0; set it before a run is resumed.
        devices: Number of devices that share a batch, which must divide its size: see `_pad`.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        batch_size: int,
        class_mode: str = "categorical",
        shuffle: bool = True,
        seed: int | None = None,
        weights: np.ndarray | None = None,
        mixup: float = 0.0,
        rows: np.ndarray | None = None,
    ):
        super().__init__()
        self.images = images
        self.rows = np.arange(len(images)) if rows is None else rows
        self.labels = labels
        self.classes = tuple(classes)
        self.batch_size = batch_size
        self.weights = weights
        self.mixup = mixup
        self.epoch = 0
        self.devices = 1
        self._class_mode = class_mode
        self._shuffle = shuffle
        self._seed = seed if seed is not None else int(np.random.default_rng().integers(1 << 31))
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        chosen = self._epoch_order()[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.images[self.rows[chosen]]
        targets = self.labels[chosen]
        if self._class_mode == "categorical":
            targets = np.eye(len(self.classes), dtype=np.float32)[targets]
        batch = (images, targets) if self.weights is None else (images, targets, self.weights[chosen])
        batch = self._mix(batch, index) if self.mixup else batch
        return self._pad(*batch) if self.devices > 1 else batch

    def on_epoch_end(self) -> None:
        """Go on to the order of the next epoch."""
        self.epoch += 1

    def _mix(self, batch: tuple[np.ndarray, ...], index: int) -> tuple[np.ndarray, ...]:
        """Return a batch mixed with a permutation of itself.

        Images x with targets y and weights w are mixed with a random share s:

            x = s x1 + (1 - s) x2,  w = s w1 + (1 - s) w2,  y = (s w1 y1 + (1 - s) w2 y2) / w.

        Cross-entropy is linear in the target, so w H(y, p) = s w1 H(y1, p) + (1 - s) w2 H(y2, p): each part keeps its
        own weight. Mixing targets without the weights would transfer weight between the partners.
        """
        random = np.random.default_rng([self._seed, self.epoch, index])
        n = len(batch[0])
        partners, shares = random.permutation(n), random.beta(self.mixup, self.mixup, n).astype(np.float32)

        def mix(values: np.ndarray) -> np.ndarray:
            share = shares.reshape(n, *[1] * (values.ndim - 1))
            mixed = share * values + (1 - share) * values[partners]
            return mixed.round().astype(np.uint8) if values.dtype == np.uint8 else mixed

        if len(batch) == 2:
            return tuple(mix(values) for values in batch)
        images, targets, weights = batch
        mixed_weights = mix(weights)
        divisor = np.maximum(mixed_weights, np.finfo(np.float32).tiny)  # weights may be zero
        return mix(images), mix(weights[:, None] * targets) / divisor[:, None], mixed_weights

    def _pad(self, images: np.ndarray, targets: np.ndarray, weights: Any = 1.0) -> tuple[np.ndarray, ...]:
        """Return a batch whose size the devices divide. Its first images are repeated with weight 0 to fill it.

        The repeated images enter the statistics of batch norm; they change these less than empty images would. Keras
        divides a loss by the number of all images, so the weights of the others are increased. In training, the loss of
        each batch is then the mean of its own images. For dev data, the loss of the epoch is the mean of all images.
        """
        n, total = len(images), len(self.rows)
        rows = np.arange(n + -n % self.devices) % n
        growth = 1 + (-n % self.devices / n if self._shuffle else -total % self.devices / total)
        padded = np.where(np.arange(len(rows)) < n, np.broadcast_to(weights, n)[rows] * growth, 0)
        return images[rows], targets[rows], padded.astype(np.float32)

    def _epoch_order(self) -> np.ndarray:
        if self._order is None or (self._shuffle and self._order[0] != self.epoch):
            order = np.arange(len(self.rows))
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
    class_mode: str = "categorical",
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int | None = None,
    weight_col: str | None = None,
    mixup: float = 0.0,
) -> FaceBatches:
    """Return batches of a table's images; the arguments are named as in Keras's `flow_from_dataframe`.

    Unlike Keras, it decodes each image once into a cache, never resizes or skips a file, and takes the class order from
    `classes`.

    Args:
        dataframe: The rows, such as `usable(table)`.
        directory: Folder of the paths.
        x_col: Column of the paths.
        y_col: Column of the labels; with `raw` one column per class.
        target_size: (height, width) in pixels that every image must have.
        color_mode: `grayscale` or `rgb`.
        classes: Class names, in class order; default: the emotions of the table.
        class_mode: `categorical` (one-hot float32), or `raw` (values of the columns, float32).
        batch_size: Images per batch.
        shuffle: Use a new order in every epoch.
        seed: Random seed of the order and of mixup.
        weight_col: Column of the loss weights.
        mixup: Alpha of mixup.

    Raises:
        InputError: An argument is not accepted, there are no rows, a file is missing, unreadable or of another size, or
            a label is not in `classes`.
    """
    if color_mode not in CHANNELS:
        raise InputError(f"color_mode {color_mode!r} is not one of {', '.join(CHANNELS)}")
    if class_mode not in CLASS_MODES:
        raise InputError(f"class_mode {class_mode!r} is not one of {', '.join(CLASS_MODES)}")
    if class_mode == "raw":
        labels = dataframe[list(y_col)].to_numpy(np.float32)
    else:
        emotions = dataframe[str(y_col)]
        classes = list(classes) if classes is not None else labels_of(dataframe)
        codes = pd.Categorical(emotions, categories=classes).codes
        if (codes < 0).any():
            wrong = emotions.iloc[int(np.argmax(codes < 0))]
            raise InputError(f"label {wrong!r} is not one of the classes {', '.join(classes)}")
        labels = codes.astype(np.int64)
    images, rows = cached_images(Path(directory), list(dataframe[x_col]), target_size, color_mode)
    weights = None if weight_col is None else dataframe[weight_col].to_numpy(np.float32)
    return FaceBatches(images, labels, classes or (), batch_size, class_mode, shuffle, seed, weights, mixup, rows)
