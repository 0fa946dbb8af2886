"""The emotion classifier: load a trained network of single faces, predict, extract features.

Keras, imported when the first network is loaded, or LiteRT runs the network.
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
LITERT_BATCHES = (1, 2)  # batch sizes for LiteRT; larger ones are no faster per image
MAX_THREADS = 4  # more cores do not speed up a face or two


def converted_classifier(
    model_file: Path,
    card: ModelCard,
    folder: Path = PATHS.converted,
    int8: bool = SERVING.int8,
    features: bool = False,
) -> Path:
    """Return the `.tflite` file of a network; options and errors are those of `EmotionClassifier.load_litert`."""

    def build() -> Any:
        network = load_pixel_network(model_file, card)
        return with_features(network) if features else network

    name = f"{model_file.stem}-features" if features else model_file.stem
    variant = json.dumps([features, card.input_range])  # a change of the range needs another conversion
    return converted(name, [model_file], build, folder, int8 and not features, variant)


class EmotionClassifier:
    """A trained network with its card: `load` runs it with Keras, `load_litert` with LiteRT.

    Args:
        run: The network: uint8 images (n, input_size, input_size, channels) to probabilities (n, classes), preceded by
            features (n, size) if `features_of` is given.
        card: Its card.
        batch_sizes: Values of n for `run`, ascending, the first one 1.
        features_of: Content hash of the network's file if `run` also returns features.
        network: The Keras network with pixel input, if Keras runs it.

    Attributes:
        card: Its card.
        labels: Class names, in class order.
        input_size: Side of its square input, pixels.
        channels: 1 (gray) or 3 (RGB).
        abstention_threshold: Smallest probability, 0-1, with which a label is shown.
        features_of: Content hash of the network's file if it was loaded with features; else empty.
        network: The Keras network with pixel input; None if LiteRT runs it.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        card: ModelCard,
        batch_sizes: tuple[int, ...],
        features_of: str = "",
        network: Any = None,
    ):
        self.card = card
        self.labels = card.labels
        self.input_size: int = card.input_size
        self.channels: int = card.channels
        self.abstention_threshold: float = card.abstention_threshold
        self.features_of = features_of
        self.network = network
        self._run, self._batch_sizes = run, batch_sizes

    @classmethod
    def load(cls, model_file: Path, features: bool = False) -> EmotionClassifier:
        """Load a network and its card, to run it with Keras.

        Args:
            model_file: The `.keras` file.
            features: Also extract features.

        Raises:
            InputError: A file is missing or damaged, or the two do not belong together.
        """
        model_file = Path(model_file)
        card = read_card(model_file)
        network: Any = load_pixel_network(model_file, card)
        if features:
            network = with_features(network)
        features_of = file_hash(model_file) if features else ""

        def run(images: np.ndarray) -> np.ndarray:
            return np.asarray(network.predict_on_batch(images))

        return cls(run, card, KERAS_BATCHES, features_of, network)

    @classmethod
    def load_litert(
        cls,
        model_file: Path,
        threads: int | None = None,
        folder: Path = PATHS.converted,
        int8: bool = SERVING.int8,
        features: bool = False,
    ) -> EmotionClassifier:
        """Load a network and its card, to run it with LiteRT. Keras converts it at the first use, unless it is shipped.

        Args:
            model_file: The `.keras` file.
            threads: Cores; None: all, up to four. The probabilities do not depend on it.
            folder: Folder of converted networks.
            int8: Quantise the weights to 8 bits: faster, and within a few hundredths of the probabilities of Keras;
                otherwise within 1e-4.
            features: Also extract features; then `int8` has no effect, as sequence networks need exact features.

        Raises:
            InputError: As `load`.
        """
        model_file = Path(model_file)
        card = read_card(model_file)

        file = converted_classifier(model_file, card, folder, int8, features)
        check_unchanged(card, model_file)
        network = Network(file, threads or min(available_cores(), MAX_THREADS))
        given, returned = network.shapes()
        classes = len(card.labels)
        check_fit(given, (None, classes) if features else returned, card, model_file)
        images = test_images(card)
        try:  # this also prepares both batch sizes
            outputs = [network(images[:2])[0], network(images[2:])[0], network(images[:1])[0]]
        except RuntimeError as error:
            reason = str(error).splitlines()[0].split(". ")[0][:200]
            raise InputError(
                f"{model_file} cannot be run by LiteRT ({reason}); use layers that LiteRT supports"
            ) from error
        check_probabilities(np.concatenate(outputs)[:, -classes:], model_file.name)
        features_of = file_hash(model_file) if features else ""
        return cls(lambda images: network(images)[0], card, LITERT_BATCHES, features_of)

    @property
    def faces(self) -> FaceConfig:
        """The crop options that this network was trained with."""
        return replace(FACES, size=self.input_size, channels=self.channels, align=self.card.align)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the calibrated probabilities of each class.

        Args:
            images: uint8 (n, input_size, input_size, channels), 0-255; n may be 0.

        Returns:
            float32 (n, classes); rows sum to one.

        Raises:
            ValueError: The shape or the dtype differs.
        """
        if not len(images):
            return np.zeros((0, len(self.labels)), np.float32)
        probabilities = self._outputs(images)[:, -len(self.labels) :]
        check_probabilities(probabilities, "the network")
        return self.card.calibrated(probabilities)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the features of each image, the input of the last layer with weights, and its raw probabilities.

        Args:
            images: As for `predict`; at least one.

        Returns:
            float32 (n, features + classes).

        Raises:
            ValueError: The network was loaded without features, or as `predict`.
        """
        if not self.features_of:
            raise ValueError("features need a network that was loaded with features=True")
        return self._outputs(images)

    def _outputs(self, images: np.ndarray) -> np.ndarray:
        shape = (self.input_size, self.input_size, self.channels)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"images must be uint8 (n, {expected}). Received: {images.dtype} {images.shape}")
        return np.concatenate([self._run(padded)[:n] for padded, n in self._batches(images)])

    def _batches(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Yield batches of the accepted sizes, padded with zeros, and the number of images in each."""
        for start in range(0, len(images), self._batch_sizes[-1]):
            batch = images[start : start + self._batch_sizes[-1]]
            size = next(size for size in self._batch_sizes if size >= len(batch))
            padded = np.zeros((size, *images.shape[1:]), np.uint8)
            padded[: len(batch)] = batch
            yield padded, len(batch)
