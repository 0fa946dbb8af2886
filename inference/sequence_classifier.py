"""The sequence classifier: load a trained network over the frames of a face, and predict.

Its input are the features and probabilities of the single-face network in each frame (`EmotionClassifier.features`). It
is causal: its prediction for a frame depends on that frame and earlier ones. A window has one row for the reference (a
neutral frame of the same face), then the frames in time order, then unused rows. Keras is imported only to load
with `load`, and to convert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import file_hash
from configuration import PATHS
from inference.keras_networks import check_fit, check_probabilities, load_network
from inference.litert import Network, converted
from inference.model_card import SequenceCard, check_unchanged, read_sequence_card

_BATCH = 64  # windows in a batch of Keras


def window_of(frames: np.ndarray, reference: np.ndarray, window: int) -> tuple[np.ndarray, int]:
    """Return the input of a network for one face.

    Args:
        frames: float (t, size), features of each frame in time order; at least one frame.
        reference: float (size,), features of the reference.
        window: Length of the window in frames; earlier frames are dropped.

    Returns:
        float32 (1 + window, size): the reference, the frames, zeros. And the number of frames.
    """
    frames = frames[-window:]
    rows = np.zeros((1 + window, len(reference)), np.float32)
    rows[0] = reference
    rows[1 : 1 + len(frames)] = frames
    return rows, len(frames)


def _test_windows(card: SequenceCard) -> np.ndarray:
    """Return one window of noise, float32 (1, 1 + window, feature_size)."""
    shape = (1, 1 + card.window, card.feature_size)
    return np.random.default_rng(0).random(shape, np.float32)


class SequenceClassifier:
    """A trained sequence network with its card: `load` runs it with Keras, `load_litert` with LiteRT.

    Args:
        run: The network: float32 windows (n, 1 + window, size) to probabilities at each frame (n, window, classes).
        card: Its card.
        name: Name of the network in messages.
        batch_size: Number of windows in a call of `run`.

    Attributes:
        card: Its card.
        labels: Class names, in class order.
        window: Length of the window in frames.
        rate: Frames per second of the training sequences.
        abstention_threshold: Smallest probability, 0-1, with which a label is shown.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], card: SequenceCard, name: str, batch_size: int):
        self.card = card
        self.labels: tuple[str, ...] = card.labels
        self.window: int = card.window
        self.rate: float = float(card.rate)
        self.abstention_threshold: float = card.abstention_threshold
        self._run, self._name, self._batch_size = run, name, batch_size

    @classmethod
    def load(cls, model_file: Path) -> SequenceClassifier:
        """Load a sequence network and its card, to run it with Keras.

        Raises:
            InputError: A file is missing or damaged, or the two do not belong together.
        """
        model_file = Path(model_file)
        card = read_sequence_card(model_file)
        network: Any = load_network(model_file)
        check_unchanged(card, model_file)
        check_fit(network.input_shape, network.output_shape, card, model_file)

        def run(windows: np.ndarray) -> np.ndarray:
            predictions = np.asarray(network([windows], training=False))
            return predictions.reshape(len(windows), card.window, -1)

        check_probabilities(run(_test_windows(card)), model_file.name)
        return cls(run, card, model_file.name, _BATCH)

    @classmethod
    def load_litert(cls, model_file: Path, folder: Path = PATHS.converted) -> SequenceClassifier:
        """Load a sequence network and its card, to run it with LiteRT. Keras converts it at the first use.

        Args:
            model_file: The `.keras` file.
            folder: Folder of converted networks.

        Raises:
            InputError: As `load`.
        """
        model_file = Path(model_file)
        card = read_sequence_card(model_file)
        file = converted(model_file.stem, [model_file], lambda: load_network(model_file), folder)
        network = Network(file)
        check_unchanged(card, model_file)
        check_fit(*network.shapes(), card, model_file)
        check_probabilities(network(_test_windows(card))[0], model_file.name)
        return cls(lambda windows: network(windows)[0], card, model_file.name, batch_size=1)

    def check_features(self, features_of: str) -> None:
        """Refuse features of another network than the one of the training.

        Args:
            features_of: Content hash of the feature network, as in `EmotionClassifier.features_of`.

        Raises:
            InputError: The content hash differs from the card's.
        """
        expected = self.card.features
        if features_of != expected["sha256"]:
            raise InputError(
                f"{self._name} needs the features of {expected.get('file', 'another network')} (SHA-256 "
                f"{expected['sha256'][:8]}...), not of the given one; give that network as --model of the webcam or "
                "--features of evaluation.sequences, or train again: training.step4_sequence_model with --features FILE"
            )

    def predict(self, faces: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Return the calibrated probabilities of each class at the last frame of each face.

        Args:
            faces: Frames, float (t, size) with t at least 1, and reference, float (size,), of each face.

        Returns:
            float32 (n, classes); rows sum to one.
        """
        found = np.zeros((len(faces), len(self.labels)), np.float32)
        for start in range(0, len(faces), self._batch_size):
            part = [
                window_of(frames, reference, self.window) for frames, reference in faces[start:][: self._batch_size]
            ]
            predictions = self._run(np.stack([rows for rows, _ in part]))
            for index, (_, count) in enumerate(part):
                found[start + index] = predictions[index, count - 1]
        return self.card.calibrated(found)


def described(model_file: Path) -> dict[str, str]:
    """Return the entry for a feature network in the card of a sequence network."""
    return {"file": model_file.name, "sha256": file_hash(model_file)}
