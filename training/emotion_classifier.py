"""A saved network and its card: save, load, check, predict.

Two files make a model: `X.keras`, the network, and `X.json`, its card, which says what the network is, how its input
is cropped, how it was trained, and every score that was measured. Only this file knows what runs the network: Keras,
imported when the first one is loaded or saved, or LiteRT, which runs a converted copy without importing Keras.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configuration import FACES, PATHS, ROOT, SERVING, Faces
from preprocessing.emotions import EMOTIONS, in_class_order
from preprocessing.errors import InputError
from preprocessing.files import atomic_file, file_hash, write_checked
from preprocessing.litert import Network, converted
from preprocessing.processes import available_cores
from preprocessing.quiet import quiet_start

if TYPE_CHECKING:
    import keras

    from training.lineage import ImageHashes

KERAS_BATCHES = tuple(1 << power for power in range(9))  # sizes of what Keras is given: each is traced once
LITERT_BATCHES = (1, 2)  # the same for LiteRT, which is prepared for each; larger ones are no faster per image
MOST_THREADS = 4  # cores: more than these gain nothing on a face or two
RELEASED = tuple(ROOT / "models" / name for name in ("pretrained.keras", "fer2013.keras"))  # no training replaces these
TEMPERATURES = (0.01, 100.0)  # least and most that a card may say: beyond, every answer is certain or none is
_NEEDED = {"labels": list, "input_size": int, "channels": int, "align": str, "temperature": (int, float)}
_IF_THERE = {
    "calibration": dict,
    "scores": list,
    "caveats": list,
    "start_from": dict,
    "teachers": list,
}


# Least and most of a card's numbers. The crop sizes are those of `preprocessing.faces.check_options`.
_RANGES = {
    "input_size": (8, 1024),
    "channels": (1, 3),
    "temperature": TEMPERATURES,
    "unsure_below": (0, 1),
    "window": (1, 10_000),
    "rate": (0.1, 1000),
    "feature_size": (1, 1_000_000),
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
    if model_file.is_dir():
        raise InputError(
            f"{model_file} is a folder, not a .keras file; load it where it was made and save it with "
            "network.save('NAME.keras')"
        )
    if not model_file.is_file():
        raise InputError(f"{model_file} does not exist; train one with {train}")
    file = card_path(model_file)
    if not file.is_file():
        raise InputError(f"{model_file} has no card; {file} must lie beside it (training writes both)")
    try:
        card = json.loads(file.read_bytes())  # bytes: editors on Windows also write UTF-16, or a byte order mark
    except (ValueError, RecursionError) as error:
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
    check_entries(card, file)
    for name, kind in _IF_THERE.items():
        if name in card and not isinstance(card[name], kind):
            raise InputError(f"{file}: {name} {card[name]!r} cannot be used; train again, or restore the card")
    for entry in networks_behind(card):
        if not _names_a_network(entry):
            raise InputError(f"{file}: {str(entry)[:80]!r} is no network that it learnt from; restore the card")
    return card


def check_entries(card: dict[str, Any], file: Path) -> None:
    """Refuse numbers of a card that are out of range, and labels that are not those of its network.

    Args:
        card: The card; its labels are known emotions.
        file: Its path, for the message.

    Raises:
        InputError: an entry is out of range, or `labels_hash` is not that of the labels.
    """
    for name, (least, most) in _RANGES.items():
        if name in card and not _is_number(card[name], least, most):
            raise InputError(f"{file}: {name} {card[name]!r:.40} is not a number from {least} to {most}; correct it")
    if card.get("channels") == 2:
        raise InputError(f"{file}: channels 2 cannot be used; accepted: 1 (gray) or 3 (RGB)")
    if "input_range" in card and not _is_range(card["input_range"]):
        raise InputError(
            f"{file}: input_range {card['input_range']!r:.80} cannot be used; accepted: the two numbers that black and "
            "white pixels become, the smaller one first, such as [0, 1], [-1, 1] or [0, 255]"
        )
    scores = card.get("scores", [])
    for score in scores if isinstance(scores, list) else []:
        if not (
            isinstance(score, dict)
            and all(isinstance(score.get(name), str) for name in ("dataset", "split", "protocol"))
            and _is_number(score.get("accuracy"), 0, 1)
        ):
            raise InputError(f"{file}: scores has {score!r:.80}, which is no score; restore the card")
    if card.get("labels_hash", labels_hash(card["labels"])) != labels_hash(card["labels"]):
        raise InputError(
            f"{file}: labels are not those that the network was saved with, or in another order (labels_hash differs); "
            "restore the card"
        )


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_number(end, -1e6, 1e6) for end in value)
        and value[0] < value[1]
    )


def labels_hash(labels: Sequence[str]) -> str:
    """Return a hash of class names in their order (SHA-256, 16 hex digits)."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()[:16]


def check_unchanged(card: dict[str, Any], model_file: Path) -> None:
    """Refuse a card that was written for another network file.

    A card from outside this program has no `network_hash`, and is accepted.

    Raises:
        InputError: the file is not the one that the card was saved with.
    """
    if "network_hash" in card and card["network_hash"] != file_hash(model_file):
        raise InputError(
            f"{card_path(model_file)} was saved with another network than {model_file.name} (network_hash differs); "
            "restore both files, or, where you changed the network, remove network_hash, scores and calibration"
        )


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
    `[None, None]` stands for images that the card does not name: those that selected its settings, those of a
    calibration on another data set, and those of the network whose features it reads.
    """
    if "splits" in card:  # as a network's entry in another one's card has them
        return card["splits"]
    own = [card.get("dataset"), card.get("split_hash")]
    elsewhere = card.get("calibration", {}).get("dataset", own[0]) != own[0]
    unnamed = elsewhere or "features" in card or "settings_selected_on" in card
    behind = (split for entry in networks_behind(card) for split in splits_learnt_from(entry) if split != own)
    return [own, *behind, *([[None, None]] if unnamed else [])]


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


def check_output(model_file: Path) -> None:
    """Refuse a name that a trained network must not have; commands call this before they train.

    Args:
        model_file: Where the network is to go.

    Raises:
        InputError: it is no `.keras` file, or it is a released network in any spelling of its path.
    """
    if model_file.suffix != ".keras" or model_file.is_dir():
        raise InputError(f"--output {model_file} is not the name of a .keras file; the card goes beside it as .json")
    target = Path(os.path.realpath(model_file))  # unlike `resolve`, it takes a link to itself
    for released in RELEASED:
        # Some disks do not distinguish upper and lower case, and a folder may be reached by several paths.
        same_name = target.name.casefold() == released.name.casefold()
        if target == released.resolve() or (same_name and _is_same_folder(target.parent, released.parent)):
            raise InputError(
                f"--output {model_file} would replace the released network {released.name}; give another name, such "
                "as models/mine.keras"
            )


def _is_same_folder(folder: Path, other: Path) -> bool:
    return folder.exists() and other.exists() and folder.samefile(other)


def write_card(card: dict[str, Any], model_file: Path) -> None:
    """Write a network's card so that a reader sees all of it or none."""
    with atomic_file(card_path(model_file)) as temporary:
        temporary.write_bytes(_card_content(card))


def _card_content(card: dict[str, Any]) -> bytes:
    return (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode()


def save(network: keras.Model, card: dict[str, Any], model_file: Path, hashes: ImageHashes | None = None) -> None:
    """Write a network, as an uncompiled float32 copy, and its card.

    A compiled network would drag its optimiser's state along, and a mixed precision would survive the saving.

    Args:
        network: The network.
        card: Its card.
        model_file: Path of the `.keras` file.
        hashes: The images that shaped it and its lineage; left out, they count as unknown.
    """
    copy: Any = copy_with(network, dtype="float32")
    check_fit(copy.input_shape, copy.output_shape, card, model_file)
    write_model(copy, card, model_file, hashes)


def copy_with(network: keras.Model, **settings: Any) -> keras.Model:
    """Return an uncompiled copy of a network, its layers built with other settings where they have such ones."""
    import keras

    # The clone is compiled, too, if the network is.
    copy = keras.models.clone_model(network, clone_function=lambda layer: _rebuilt(layer, **settings))
    copy = keras.Model(copy.inputs, copy.outputs, name=network.name)
    copy.set_weights(network.get_weights())
    return copy


def _rebuilt(layer: Any, **settings: Any) -> Any:
    """Return a new layer with some other settings, where it has such ones."""
    config = layer.get_config()
    return layer.__class__.from_config(config | {name: v for name, v in settings.items() if name in config})


def write_model(
    network: keras.Model, card: dict[str, Any], model_file: Path, hashes: ImageHashes | None = None
) -> None:
    """Write a network as it is, its list of images and its card.

    The card and the list of an earlier network are removed first, so a kill never leaves them beside the new network.
    All files are on disk under temporary names before any replaces an earlier one, so a full disk leaves those as they
    were.

    Args:
        network: The network.
        card: Its card; `labels_hash` and `network_hash` are added.
        model_file: Path of the `.keras` file.
        hashes: The images that shaped the network and its lineage; left out, they count as unknown.

    Raises:
        OSError: The disk is full, or a file does not read back as it was written.
    """
    from training.lineage import hashes_content, hashes_file

    content = io.BytesIO()  # HDF5 must not write to a disk that may be full: see `write_file`
    network.save(content, zipped=False)  # `zipped` only relaxes the check of the file's name: the content is a zip
    network_hash = hashlib.sha256(content.getvalue()).hexdigest()[:16]  # as `file_hash` gives it
    card = {**card, "labels_hash": labels_hash(card["labels"]), "network_hash": network_hash}
    with ExitStack() as files:  # the network takes its name first, the card last
        write_checked(files.enter_context(atomic_file(card_path(model_file))), _card_content(card))
        if hashes is not None:
            list_file = files.enter_context(atomic_file(hashes_file(model_file)))
            write_checked(list_file, hashes_content(hashes, network_hash))
        write_checked(files.enter_context(atomic_file(model_file)), content.getvalue())
        card_path(model_file).unlink(missing_ok=True)
        hashes_file(model_file).unlink(missing_ok=True)


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


def is_whole(model_file: Path) -> bool:
    """Tell whether a `.keras` file, which is a zip archive, is complete and matches its checksums."""
    try:
        with zipfile.ZipFile(model_file) as archive:
            return archive.testzip() is None
    except PermissionError:
        raise
    except Exception:  # a damaged archive may raise almost anything
        return False


def load_network(model_file: Path) -> keras.Model:
    """Return a saved network without its card.

    Raises:
        InputError: the file is damaged, or is no Keras model.
    """
    _refuse_hdf5(model_file)
    if not is_whole(model_file):
        raise InputError(f"{model_file} is damaged: it is not a complete .keras file; restore it, or train it again")
    with quiet_start():
        import keras
    try:
        network: Any = keras.models.load_model(model_file, compile=False, safe_mode=True)
        if not network.built or not network.layers:
            raise ValueError("it has no layers, or was never built")
    except Exception as error:  # a file from elsewhere may break Keras, h5py and zlib in any way
        _refuse_foreign_code(model_file)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{model_file} is not a usable Keras model ({reason}); train it again") from error
    return network


def _refuse_hdf5(model_file: Path) -> None:
    with model_file.open("rb") as stream:
        is_hdf5 = stream.read(8) == b"\x89HDF\r\n\x1a\n"
    if is_hdf5:
        raise InputError(
            f"{model_file} is an HDF5 file, not a .keras file; rename it to .h5, load it with keras.models.load_model, "
            "and save it with network.save('NAME.keras')"
        )


def _refuse_foreign_code(model_file: Path) -> None:
    """Refuse a network that Keras could not load because it needs Python code that is not part of Keras."""
    try:
        with zipfile.ZipFile(model_file) as archive:
            foreign = sorted(set(_foreign_code(json.loads(archive.read("config.json")))))
    except Exception:  # the caller reports what Keras says
        return
    if foreign:
        raise InputError(
            f"{model_file} needs code that is not part of Keras ({', '.join(foreign)[:200]}), which is never run from "
            "a file; rebuild the network with Keras's own layers, copy the weights and save it again"
        )


def _foreign_code(config: Any) -> Iterator[str]:
    """Yield the names of the objects in a network's configuration that are Lambda functions or not part of Keras."""
    if isinstance(config, dict):
        name, module = config.get("class_name"), config.get("module", "keras")
        if name == "__lambda__":
            yield "a Lambda layer's function"
        elif (name, module) == ("function", "builtins"):
            yield f"the function {config.get('config')}"
        elif name and str(module).split(".")[0] not in ("keras", "builtins"):
            yield str(config.get("registered_name") or name)
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _foreign_code(part)


def load_pixel_network(model_file: Path, card: dict[str, Any]) -> keras.Model:
    """Return a saved network of single faces, checked: it takes uint8 pixels and returns probabilities.

    Args:
        model_file: The network.
        card: Its card.

    Raises:
        InputError: the file is no Keras model, does not fit its card, takes values in an unknown range, or its outputs
            are no probabilities.
    """
    network: Any = with_pixel_input(load_network(model_file), card.get("input_range"), model_file)
    import keras  # late: `load_network` imports it without the notes of native libraries

    check_unchanged(card, model_file)
    check_fit(network.input_shape, network.output_shape, card, model_file)
    outputs: Any = keras.ops.convert_to_numpy(network(_test_images(card), training=False))
    check_probabilities(outputs, model_file.name)
    return network


def with_pixel_input(network: Any, input_range: Sequence[float] | None, model_file: Path) -> keras.Model:
    """Return a network that takes uint8 pixels, 0-255.

    Many networks are trained on images that were scaled beforehand, and take floats. Such a network is copied in
    float32, which LiteRT needs, with the scaling as its first layer.

    Args:
        network: A network with one input, (n, height, width, channels), and one output, (n, classes).
        input_range: The values that 0 and 255 become before this network takes them; None where the card has none.
        model_file: The network's file, for the message.

    Raises:
        InputError: the network has several inputs or outputs, takes floats of an unknown range, takes uint8 although
            the card has another range, or takes neither.
    """
    import keras

    counts = [len(getattr(network, ends, None) or []) for ends in ("inputs", "outputs")]
    if counts != [1, 1]:
        raise InputError(
            f"{model_file} cannot be used (inputs: {counts[0]}, outputs: {counts[1]}); accepted: one input, the "
            "images, and one output, the class probabilities; save keras.Model(images, probabilities)"
        )
    network = keras.Model(network.inputs[0], network.outputs[0], name=network.name)  # out of lists and dicts
    dtype, card_file = str(network.inputs[0].dtype), card_path(model_file)
    if dtype == "uint8":
        if input_range is not None and list(input_range) != [0, 255]:
            raise InputError(
                f"{card_file}: input_range {list(input_range)} cannot be used: {model_file.name} takes uint8 pixels, "
                "0-255; remove the entry"
            )
        return network
    if "float" not in dtype:
        raise InputError(f"{model_file} takes {dtype} images; accepted: uint8, or floats with input_range in the card")
    if input_range is None:
        raise InputError(
            f"{model_file} takes {dtype} images, and its card does not say in which range; add the range that it was "
            f'trained with to {card_file}, such as "input_range": [0, 1] (or [-1, 1], or [0, 255])'
        )
    low, high = map(float, input_range)
    pixels = keras.Input(network.input_shape[1:], dtype="uint8", name="pixels")
    scaled = keras.layers.Rescaling((high - low) / 255, low, dtype="float32", name="pixels_to_input_range")(pixels)

    def call_on_scaled(layer: Any, *inputs: Any, **options: Any) -> Any:
        """Call a layer, with the scaled image where the network itself was given the image."""
        given: Any = keras.tree.map_structure(lambda one: scaled if one is pixels else one, (inputs, options))
        return layer(*given[0], **given[1])

    copy: Any = keras.models.clone_model(
        network,
        input_tensors=pixels,
        clone_function=lambda layer: _rebuilt(layer, dtype="float32"),
        call_function=call_on_scaled,
        recursive=True,
    )
    copy.set_weights(network.get_weights())
    return copy


def _test_images(card: dict[str, Any]) -> np.ndarray:
    """Return a black, a white, a graded and a noisy image, uint8 (4, input_size, input_size, channels)."""
    images = np.zeros((4, card["input_size"], card["input_size"], card["channels"]), np.uint8)
    images[1] = 255
    images[2] = np.linspace(0, 255, card["input_size"], dtype=np.uint8)[:, None]
    images[3] = np.random.default_rng(0).integers(0, 256, images.shape[1:], np.uint8)
    return images


def check_probabilities(outputs: np.ndarray, model: str) -> None:
    """Refuse outputs that are no probabilities.

    Args:
        outputs: What a network returned, (..., classes).
        model: What the message calls it.

    Raises:
        InputError: one is negative or not finite, or those of an image do not sum to one.
    """
    sums = outputs.sum(axis=-1)
    if not np.isfinite(outputs).all():
        raise InputError(
            f"{model}: the outputs are no probabilities: some are NaN or infinite, as after a training that diverged, "
            "or where a plain image is divided by its standard deviation, 0; train it again"
        )
    if outputs.min() < 0 or (np.abs(sums - 1) > 0.01).any():
        raise InputError(
            f"{model}: the outputs are no probabilities: those of an image sum to {sums.min():.3g} to "
            f"{sums.max():.3g}, not to 1, the least is {outputs.min():.3g}; its last layer must be a softmax"
        )


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
        network: Any = load_pixel_network(model_file, card)
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
            name, build = f"{model_file.stem}-features", lambda: _with_features(load_pixel_network(model_file, card))
        else:
            name, build = model_file.stem, lambda: load_pixel_network(model_file, card)
        # A file that was converted for this range passed the checks of the range.
        variant = json.dumps([features, card.get("input_range")])
        file = converted(name, [model_file], build, folder, int8 and not features, variant)
        check_unchanged(card, model_file)
        network = Network(file, threads or min(available_cores(), MOST_THREADS))
        given, returned = network.shapes()
        check_fit(given, (None, len(card["labels"])) if features else returned, card, model_file)
        images, classes = _test_images(card), len(card["labels"])
        try:
            outputs = [network(images[:2])[0], network(images[2:])[0], network(images[:1])[0]]  # both sizes get ready
        except RuntimeError as error:
            reason = str(error).splitlines()[0].split(". ")[0][:200]
            raise InputError(f"{model_file} cannot be run by LiteRT ({reason}); use layers that it knows") from error
        check_probabilities(np.concatenate(outputs)[:, -classes:], model_file.name)
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
        check_probabilities(probabilities, "the network")
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
