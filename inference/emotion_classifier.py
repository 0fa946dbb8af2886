"""A trained network of single faces: load, predict, extract features.

Keras runs it, imported when the first network is loaded, or LiteRT, which runs a converted copy without Keras.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import file_hash
from common.processes import available_cores
from configuration import FACES, PATHS, SERVING, FaceConfig
from inference.keras_networks import check_fit, check_probabilities, load_pixel_network, test_images, with_features
from inference.litert import Network, converted
from inference.model_card import ModelCard, check_unchanged, read_card

KERAS_BATCHES = tuple(1 << power for power in range(9))  # batch sizes for Keras, which traces each of them once
LITERT_BATCHES = (1, 2)  # batch sizes for LiteRT, prepared at the start; larger ones are no faster per image
MOST_THREADS = 4  # more cores are no faster for a face or two


class EmotionClassifier:
    """A trained network with its card: `load` runs it by Keras, `load_litert` by LiteRT.

    Args:
        run: The network: uint8 images (n, input_size, input_size, channels) to its softmax (n, classes), with its
            features (n, size) before it where there is a `features_of`.
        card: What its card says.
        batch_sizes: The values of n that `run` is given, ascending, the first one 1.
        features_of: SHA-256 of the file of the network, where `run` also gives its features.

    Attributes:
        card: What its card says.
        labels: Class names, in class order.
        input_size: Side of its square input, pixels.
        channels: 1 (gray) or 3 (RGB).
        abstention_threshold: Least probability, 0-1, from which on the most probable class is worth telling.
        features_of: SHA-256 of the network's file where it was loaded to give its features; else empty.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        card: ModelCard,
        batch_sizes: tuple[int, ...],
        features_of: str = "",
    ):
        self.card = card
        self.labels = card.labels
        self.input_size: int = card.input_size
        self.channels: int = card.channels
        self.abstention_threshold: float = card.abstention_threshold
        self.features_of = features_of
        self._run, self._batch_sizes = run, batch_sizes

    @classmethod
    def load(cls, model_file: Path, features: bool = False) -> EmotionClassifier:
        """Load a network and its card, to be run by Keras.

        Args:
            model_file: The `.keras` file.
            features: It shall give its features too.

        Raises:
            InputError: a file is missing, is no Keras model, or the two do not belong together.
        """
        model_file = Path(model_file)
        card = read_card(model_file)
        network: Any = load_pixel_network(model_file, card)
        if features:
            network = with_features(network)
        origin = file_hash(model_file) if features else ""
        return cls(lambda images: np.asarray(network.predict_on_batch(images)), card, KERAS_BATCHES, origin)

    @classmethod
    def load_litert(
        cls,
        model_file: Path,
        threads: int | None = None,
        folder: Path = PATHS.converted,
        int8: bool = SERVING.int8,
        features: bool = False,
    ) -> EmotionClassifier:
        """Load a network and its card, to be run by LiteRT: ready in a moment, and warm.

        The network is converted with Keras the first time, and kept beside the face detector's.

        Args:
            model_file: The `.keras` file.
            threads: Cores used at once; None: all, up to four. The probabilities do not depend on it.
            folder: Where converted networks are kept.
            int8: Weights in 8 bits: faster, and within a few hundredths of the probabilities that Keras gives; else
                within 1e-4 of them.
            features: It shall give its features too; then never in 8 bits, as sequence networks learn from exact ones.

        Raises:
            InputError: as `load`.
        """
        model_file = Path(model_file)
        card = read_card(model_file)
        if features:
            name, build = f"{model_file.stem}-features", lambda: with_features(load_pixel_network(model_file, card))
        else:
            name, build = model_file.stem, lambda: load_pixel_network(model_file, card)
        # A file that was converted for this range passed the checks of the range.
        variant = json.dumps([features, card.input_range])
        file = converted(name, [model_file], build, folder, int8 and not features, variant)
        check_unchanged(card, model_file)
        network = Network(file, threads or min(available_cores(), MOST_THREADS))
        given, returned = network.shapes()
        check_fit(given, (None, len(card.labels)) if features else returned, card, model_file)
        images, classes = test_images(card), len(card.labels)
        try:
            outputs = [network(images[:2])[0], network(images[2:])[0], network(images[:1])[0]]  # both sizes get ready
        except RuntimeError as error:
            reason = str(error).splitlines()[0].split(". ")[0][:200]
            raise InputError(f"{model_file} cannot be run by LiteRT ({reason}); use layers that it knows") from error
        check_probabilities(np.concatenate(outputs)[:, -classes:], model_file.name)
        origin = file_hash(model_file) if features else ""
        return cls(lambda images: network(images)[0], card, LITERT_BATCHES, origin)

    @property
    def faces(self) -> FaceConfig:
        """The crop options with which this network was trained; crop with these."""
        return replace(FACES, size=self.input_size, channels=self.channels, align=self.card.align)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the calibrated probabilities of each class.

        Args:
            images: uint8, (n, input_size, input_size, channels), 0-255; n may be 0.

        Returns:
            float32, (n, classes); rows sum to one.

        Raises:
            ValueError: another shape or dtype.
        """
        if not len(images):
            return np.zeros((0, len(self.labels)), np.float32)
        return self._calibrated(self._outputs(images)[:, -len(self.labels) :])

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return what the network sees in each image: its features, then its probabilities as it gives them.

        The features are what its last layer of weights is given: of a network that pools, the pooled maps.

        Args:
            images: As for `predict`; at least one.

        Returns:
            float32, (n, features + classes).

        Raises:
            ValueError: the network was loaded without its features, or as `predict`.
        """
        if not self.features_of:
            raise ValueError("features need a network that was loaded with features=True")
        return self._outputs(images)

    def _outputs(self, images: np.ndarray) -> np.ndarray:
        shape = (self.input_size, self.input_size, self.channels)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise ValueError(f"images must be uint8 (n, {', '.join(map(str, shape))}). Received: {images.dtype} "
                             f"{images.shape}")  # fmt: skip
        return np.concatenate([self._run(padded)[:n] for padded, n in self._batches(images)])

    def _calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        check_probabilities(probabilities, "the network")
        scaled = probabilities.astype(np.float64) ** (1 / self.card.temperature)
        return (scaled / scaled.sum(axis=1, keepdims=True)).astype(np.float32)

    def _batches(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the images in batches of the few sizes, the last one filled up, and how many of each count."""
        for start in range(0, len(images), self._batch_sizes[-1]):
            batch = images[start : start + self._batch_sizes[-1]]
            size = next(size for size in self._batch_sizes if size >= len(batch))
            padded = np.zeros((size, *images.shape[1:]), np.uint8)
            padded[: len(batch)] = batch
            yield padded, len(batch)
