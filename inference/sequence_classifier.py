"""A saved network over the frames of a face, and its card: save, load, check, predict.

It does not see pixels, but what another network, the classifier of single faces, sees in each frame: its features and
probabilities (`EmotionClassifier.features`). It is causal: what it says of a frame depends on that frame and those
before it. Its input is a window: one row for the reference, the face without expression that the others are compared
with, then the frames in the order of time, then rows that are not used. As with `inference.emotion_classifier`, Keras
is imported only where it is needed; the live program runs a converted copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import InputError
from common.files import file_hash
from configuration import PATHS
from inference.keras_networks import check_probabilities, float32_copy, load_network, write_model
from inference.lineage import ImageHashes
from inference.litert import Network, converted
from inference.model_card import SequenceCard, card_path, check_unchanged, read_sequence_card

if TYPE_CHECKING:
    import keras


_BATCH = 64  # windows that Keras is given at once


def save_sequence_network(
    network: keras.Model, card: SequenceCard, model_file: Path, hashes: ImageHashes | None = None
) -> None:
    """Write a sequence network, as an uncompiled float32 copy, its card, and the images that shaped its lineage."""
    copy: Any = float32_copy(network)
    _check_fit(copy.input_shape, copy.output_shape, card, model_file)
    write_model(copy, card, model_file, hashes)


def _check_fit(given: Sequence[Any], returned: Sequence[Any], card: SequenceCard, model_file: Path) -> None:
    window = card.window
    expected = ((None, 1 + window, card.feature_size), (None, window, len(card.labels)))
    found = (tuple(given), tuple(returned))
    if found != expected:
        raise InputError(
            f"{card_path(model_file)} does not describe {model_file.name}: the card says input and output "
            f"{expected}, the network has {found}"
        )


def window_of(frames: np.ndarray, reference: np.ndarray, window: int) -> tuple[np.ndarray, int]:
    """Return a network's input for one face.

    Args:
        frames: float, (t, size): what is known of each frame, in the order of time; at least one.
        reference: float, (size,): the same of the frame that the others are compared with.
        window: Frames that the network looks back over; earlier ones are left out.

    Returns:
        float32, (1 + window, size): the reference, the frames, zeros; and the number of frames.
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
    """A trained sequence network with its card: `load` runs it by Keras, `load_litert` by LiteRT.

    Args:
        run: The network: float32 windows (n, 1 + window, size) to its softmax at each frame (n, window, classes).
        card: What its card says.
        name: What a person calls it.
        batch_size: How many windows `run` is given at once.

    Attributes:
        card: What its card says.
        labels: Class names, in class order.
        window: Frames that it looks back over at most.
        rate: Frames per second that it was trained on.
        abstention_threshold: Least probability, 0-1, from which on the most probable class is worth telling.
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
        """Load a sequence network and its card, to be run by Keras.

        Raises:
            InputError: a file is missing, is no Keras model, or the two do not belong together.
        """
        model_file = Path(model_file)
        card = read_sequence_card(model_file)
        network: Any = load_network(model_file)
        check_unchanged(card, model_file)
        _check_fit(network.input_shape, network.output_shape, card, model_file)

        def run(windows: np.ndarray) -> np.ndarray:
            predictions = np.asarray(network([windows], training=False))
            return predictions.reshape(len(windows), card.window, -1)

        check_probabilities(run(_test_windows(card)), model_file.name)
        return cls(run, card, model_file.name, _BATCH)

    @classmethod
    def load_litert(cls, model_file: Path, folder: Path = PATHS.converted) -> SequenceClassifier:
        """Load a sequence network and its card, to be run by LiteRT; converted with Keras the first time.

        Args:
            model_file: The `.keras` file.
            folder: Where converted networks are kept.

        Raises:
            InputError: as `load`.
        """
        model_file = Path(model_file)
        card = read_sequence_card(model_file)
        file = converted(model_file.stem, [model_file], lambda: load_network(model_file), folder)
        network = Network(file)
        check_unchanged(card, model_file)
        _check_fit(*network.shapes(), card, model_file)
        check_probabilities(network(_test_windows(card))[0], model_file.name)
        return cls(lambda windows: network(windows)[0], card, model_file.name, batch_size=1)

    def check_features(self, features_of: str) -> None:
        """Refuse the features of another network than this one was trained on.

        Args:
            features_of: SHA-256 of that network's file, as `EmotionClassifier.features_of` has it.

        Raises:
            InputError: with the remedy.
        """
        wanted = self.card.features
        if features_of != wanted["sha256"]:
            raise InputError(
                f"{self._name} reads the features of {wanted.get('file', 'another network')} (SHA-256 "
                f"{wanted['sha256'][:8]}...), not of the model that was given; give that one as --model, or train on "
                "this one's features: python -m training.step4_sequence_model --features MODEL"
            )

    def predict(self, faces: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Return the calibrated probabilities of each class at each face's last frame.

        Args:
            faces: For each face its frames, float (t, size), t at least 1, and the reference, float (size,).

        Returns:
            float32, (n, classes); rows sum to one.
        """
        found = np.zeros((len(faces), len(self.labels)), np.float32)
        for start in range(0, len(faces), self._batch_size):
            part = [
                window_of(frames, reference, self.window) for frames, reference in faces[start:][: self._batch_size]
            ]
            predictions = self._run(np.stack([rows for rows, _ in part]))
            for index, (_, count) in enumerate(part):
                found[start + index] = predictions[index, count - 1]
        scaled = found.astype(np.float64) ** (1 / self.card.temperature)
        return (scaled / scaled.sum(axis=1, keepdims=True)).astype(np.float32)


def described(model_file: Path) -> dict[str, str]:
    """Return how a card names the network whose features a sequence network reads."""
    return {"file": model_file.name, "sha256": file_hash(model_file)}
