"""A saved network and its card: save, load, check, predict.

Two files make a model: `X.keras`, the network, and `X.json`, its card, which says what the network is, how its input
is cropped, how it was trained, and every score that was measured. Only this file knows what runs the network: Keras,
imported when the first one is loaded or saved, or LiteRT, which runs a converted copy without importing Keras.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configuration import FACES, PATHS, ROOT, SERVING, Faces
from preprocessing.emotions import EMOTIONS, in_class_order
from preprocessing.errors import InputError
from preprocessing.files import atomic_file, file_hash
from preprocessing.litert import Network, converted
from preprocessing.processes import available_cores
from preprocessing.quiet import quiet_start

if TYPE_CHECKING:
    import keras

KERAS_BATCHES = tuple(1 << power for power in range(9))  # sizes of what Keras is given: each is traced once
LITERT_BATCHES = (1, 2)  # the same for LiteRT, which is prepared for each; larger ones are no faster per image
MOST_THREADS = 4  # cores: more than these gain nothing on a face or two
TEMPERATURES = (0.01, 100.0)  # least and most that a card may say: beyond, every answer is certain or none is
_NEEDED = {"labels": list, "input_size": int, "channels": int, "align": str, "temperature": (int, float)}
_IF_THERE = {
    "unsure_below": (int, float),
    "calibration": dict,
    "scores": list,
    "caveats": list,
    "start_from": dict,
    "teachers": list,
}


def card_path(model_file: Path) -> Path:
    """Return the path of a network's card."""
    return model_file.with_suffix(".json")


def read_card(
    model_file: Path, needed: Mapping[str, Any] = _NEEDED, train: str = "python -m training.step3_best_model"
) -> dict[str, Any]:
    """Return a network's card.

    Args:
        model_file: The network.
        needed: Entries that the card must have, with their types.
        train: The command that makes such a network.

    Raises:
        InputError: the network or its card is missing, the card is no JSON, or it lacks a needed entry.
    """
    if model_file.suffix != ".keras":
        raise InputError(f"{model_file} is not a .keras file; give the network, its card is found beside it")
    if not model_file.is_file():
        raise InputError(f"{model_file} does not exist; train one with {train}")
    file = card_path(model_file)
    if not file.is_file():
        raise InputError(f"{model_file} has no card; {file} must lie beside it (training writes both)")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not readable JSON ({error}); train again, or restore it") from error
    if isinstance(card, dict) and "window" in card and "window" not in needed:
        raise InputError(
            f"{model_file} reads sequences, not single faces: evaluation.sequences scores it, realtime.webcam takes it "
            "as --temporal"
        )
    if isinstance(card, dict) and "input_size" in card and "input_size" not in needed:
        raise InputError(f"{model_file} sees single faces, not sequences; train a sequence network with {train}")
    for name, kind in needed.items():
        if not isinstance(card, dict) or not isinstance(card.get(name), kind):
            raise InputError(f"{file} lacks a valid {name!r}; train again, or restore the card")
    labels = card["labels"]
    if len(labels) < 2 or not all(label in EMOTIONS for label in labels) or len(in_class_order(labels)) < len(labels):
        raise InputError(f"{file}: labels {labels} are not two or more, each once, among {', '.join(EMOTIONS)}")
    if not TEMPERATURES[0] <= card["temperature"] <= TEMPERATURES[1]:
        raise InputError(f"{file}: temperature {card['temperature']} is not in {TEMPERATURES[0]} to {TEMPERATURES[1]}")
    for name, kind in _IF_THERE.items():
        if name in card and not isinstance(card[name], kind):
            raise InputError(f"{file}: {name} {card[name]!r} cannot be used; train again, or restore the card")
    for entry in networks_behind(card):
        if not _names_a_network(entry):
            raise InputError(f"{file}: {str(entry)[:80]!r} is no network that it learnt from; restore the card")
    return card


def _names_a_network(entry: Any) -> bool:
    """Tell whether an entry of a card has what `find_network` and `splits_learnt_from` ask of it."""
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in ("file", "sha256"))
        and all(isinstance(entry.get(name, []), list) for name in ("learnt", "splits"))
        and all(isinstance(split, list) and len(split) == 2 for split in entry.get("splits", []))
    )


def crop_options(folder: Path) -> dict[str, Any]:
    """Return how a data set's crops were made, as step 2 noted it beside its table: `size`, `channels`, `align`, ...

    Raises:
        InputError: step 2 left no such note.
    """
    from preprocessing.image_tables import read_origin  # late: it imports pandas, which the camera does not need

    try:
        options = read_origin(folder, "faces.csv").get("options")
    except InputError:
        options = None
    kinds = {"size": int, "channels": int, "align": str}
    if not isinstance(options, dict) or not all(isinstance(options.get(name), kind) for name, kind in kinds.items()):
        raise InputError(
            f"{folder / 'faces.json'}, which says how the crops were made, is missing or damaged; run first: "
            f"python -m preprocessing.step2_face_crops --dataset {folder.name}"
        )
    return options


def check_crops(model_file: Path, card: dict[str, Any], crops: dict[str, Any], dataset: str) -> None:
    """Refuse crops that a network does not take.

    Args:
        model_file: The network.
        card: Its card.
        crops: How the crops were made, as `crop_options` gives it.
        dataset: Name of the data set that they are of.

    Raises:
        InputError: another size, or other channels, than the card says.
    """
    if (crops["size"], crops["channels"]) != (card["input_size"], card["channels"]):
        raise InputError(
            f"the crops of {dataset} are {_pixels(crops['size'], crops['channels'])}, {model_file} takes "
            f"{_pixels(card['input_size'], card['channels'])}; make them again: python -m "
            f"preprocessing.step2_face_crops --dataset {dataset} --size {card['input_size']} "
            f"--channels {card['channels']}"
        )


def _pixels(size: int, channels: int) -> str:
    return f"{size}x{size} pixels {'gray' if channels == 1 else 'RGB'}"


def networks_behind(card: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the networks that a network started or learnt from, as its card has them."""
    return [entry for entry in (card.get("start_from"), *card.get("teachers", [])) if entry]


def splits_learnt_from(card: dict[str, Any]) -> list[list[Any]]:
    """Return what a network learnt from, as its card tells: each data set's name with its split's hash, `[name, hash]`.

    First its own, then those of the networks that it started or learnt from, of what they learnt from, and so on.
    """
    if "splits" in card:  # as a network's entry in another one's card has them
        return card["splits"]
    own = [card.get("dataset"), card.get("split_hash")]
    return [own, *(split for entry in networks_behind(card) for split in splits_learnt_from(entry) if split != own)]


def has_learnt_from(card: dict[str, Any], dataset: str) -> bool:
    """Tell whether a network, or one that it learnt from, learnt from a data set; its card or its entry tells."""
    return any(name == dataset for name, _ in splits_learnt_from(card))


def knows_another_split(card: dict[str, Any], dataset: str, split: str) -> bool:
    """Tell whether a network, or one that it learnt from, learnt from another split of a data set than this one.

    Then it may know the very images that it, or what learns from it, is judged by.

    Args:
        card: Its card, or its entry in another one's card.
        dataset: Name of the data set.
        split: Hash of the split.
    """
    return any(name == dataset and other != split for name, other in splits_learnt_from(card))


def find_start(card: dict[str, Any]) -> Path | None:
    """Return where the network is that a card says it started from; None where it is gone, or another by now."""
    return find_network(card["start_from"])


def find_network(entry: dict[str, Any]) -> Path | None:
    """Return where a network is that another one's card names by `file` and `sha256`; None where it is gone.

    It is looked for where the card says, and as the released network.
    """
    for file in (Path(entry["file"]), ROOT / entry["file"], PATHS.pretrained):
        if file.is_file() and file_hash(file) == entry["sha256"]:
            return file
    return None


def write_card(card: dict[str, Any], model_file: Path) -> None:
    """Write a network's card so that a reader sees all of it or none."""
    with atomic_file(card_path(model_file)) as temporary:
        temporary.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(network: keras.Model, card: dict[str, Any], model_file: Path) -> None:
    """Write a network, as an uncompiled float32 copy, and its card.

    A compiled network would drag its optimiser's state along, and a mixed precision would survive the saving.
    """
    copy: Any = copy_with(network, dtype="float32")
    check_fit(copy.input_shape, copy.output_shape, card, model_file)
    write_model(copy, card, model_file)


def copy_with(network: keras.Model, **settings: Any) -> keras.Model:
    """Return an uncompiled copy of a network, its layers built with other settings where they have such ones."""
    import keras

    def rebuilt(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        return layer.__class__.from_config(config | {name: v for name, v in settings.items() if name in config})

    copy = keras.models.clone_model(network, clone_function=rebuilt)  # compiled too, if the network is
    copy = keras.Model(copy.inputs, copy.outputs, name=network.name)
    copy.set_weights(network.get_weights())
    return copy


def write_model(network: keras.Model, card: dict[str, Any], model_file: Path) -> None:
    """Write a network as it is, and its card; a kill never leaves an earlier network's card beside it."""
    with atomic_file(model_file) as temporary:
        network.save(temporary)
        card_path(model_file).unlink(missing_ok=True)
    write_card(card, model_file)


def check_fit(input_shape: Sequence[Any], output_shape: Sequence[Any], card: dict[str, Any], model_file: Path) -> None:
    """Refuse a card that describes another network."""
    side = card["input_size"]
    expected = ((None, side, side, card["channels"]), (None, len(card["labels"])))
    found = (tuple(input_shape), tuple(output_shape))
    if found != expected:
        raise InputError(
            f"{card_path(model_file)} does not describe {model_file.name}: the card says input and output "
            f"{expected}, the network has {found}"
        )


def load_network(model_file: Path) -> keras.Model:
    """Return a saved network without its card.

    Raises:
        InputError: the file is no Keras model.
    """
    with quiet_start():
        import keras
    try:
        network: Any = keras.models.load_model(model_file, compile=False, safe_mode=True)
        if not network.built or not network.layers:
            raise ValueError("it has no layers, or was never built")
    except (ValueError, OSError, TypeError, KeyError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{model_file} is not a usable Keras model ({reason}); train it again") from error
    return network


def _with_features(network: Any) -> keras.Model:
    """Return a network that gives, before its probabilities, what its last layer of weights is given: its features."""
    import keras

    head = next(layer for layer in reversed(network.layers) if layer.weights)
    features = keras.layers.Flatten()(head.input)
    return keras.Model(network.inputs, keras.layers.Concatenate()([features, network.outputs[0]]))


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
        unsure_below: Least probability, 0-1, from which on the most probable class is worth telling.
        features_of: SHA-256 of the network's file where it was loaded to give its features; else empty.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        card: dict[str, Any],
        batch_sizes: tuple[int, ...],
        features_of: str = "",
    ):
        self.card = card
        self.labels: tuple[str, ...] = tuple(card["labels"])
        self.input_size: int = card["input_size"]
        self.channels: int = card["channels"]
        self.unsure_below: float = card.get("unsure_below", 0.0)
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
        network: Any = load_network(model_file)
        check_fit(network.input_shape, network.output_shape, card, model_file)
        if features:
            network = _with_features(network)
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
            name, build = f"{model_file.stem}-features", lambda: _with_features(load_network(model_file))
        else:
            name, build = model_file.stem, lambda: load_network(model_file)
        file = converted(name, [model_file], build, folder, int8 and not features)
        network = Network(file, threads or min(available_cores(), MOST_THREADS))
        given, returned = network.shapes()
        check_fit(given, (None, len(card["labels"])) if features else returned, card, model_file)
        for size in LITERT_BATCHES:
            network(np.zeros((size, card["input_size"], card["input_size"], card["channels"]), np.uint8))
        origin = file_hash(model_file) if features else ""
        return cls(lambda images: network(images)[0], card, LITERT_BATCHES, origin)

    @property
    def faces(self) -> Faces:
        """The crop options with which this network was trained; crop with these."""
        return replace(FACES, size=self.input_size, channels=self.channels, align=self.card["align"])

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
        sums = probabilities.sum(axis=1)
        if not (np.abs(sums - 1) < 0.01).all() or probabilities.min() < 0:  # also refuses NaN
            raise InputError(
                f"the network's answers are no probabilities: those of an image sum to {sums.min():.3g} to "
                f"{sums.max():.3g}, not to 1; its last layer must be a softmax"
            )
        scaled = probabilities.astype(np.float64) ** (1 / self.card["temperature"])
        return (scaled / scaled.sum(axis=1, keepdims=True)).astype(np.float32)

    def _batches(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the images in batches of the few sizes, the last one filled up, and how many of each count."""
        for start in range(0, len(images), self._batch_sizes[-1]):
            batch = images[start : start + self._batch_sizes[-1]]
            size = next(size for size in self._batch_sizes if size >= len(batch))
            padded = np.zeros((size, *images.shape[1:]), np.uint8)
            padded[: len(batch)] = batch
            yield padded, len(batch)
