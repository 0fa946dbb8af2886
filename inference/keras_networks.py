"""Save and load Keras networks, and check files of unknown origin. Keras is imported at the first use."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import InputError
from common.files import atomic_file, write_checked
from common.logging import quiet_start
from configuration import ROOT
from inference.lineage import ImageHashes, hashes_content, hashes_file
from inference.model_card import ModelCard, SequenceCard, card_content, card_path, check_unchanged, sealed

if TYPE_CHECKING:
    import keras

RELEASED = tuple(
    ROOT / "models" / name for name in ("pretrained.keras", "fer2013.keras")
)  # training steps never replace these


def save(
    network: keras.Model, card: ModelCard | SequenceCard, model_file: Path, hashes: ImageHashes | None = None
) -> None:
    """Save a network as an uncompiled float32 copy, with its card and its list of images.

    All files are written under temporary names first, so a full disk leaves earlier files unchanged. The earlier card
    and list are removed before the network is renamed, so a kill never leaves them beside the new network.

    Args:
        network: The network.
        card: Its card; `labels_hash` and `network_hash` are added.
        model_file: Path of the `.keras` file.
        hashes: The images of its lineage; None: unknown.

    Raises:
        InputError: The card does not describe the network.
        OSError: The disk is full, or a file does not read back as written.
    """
    import keras

    copy: Any = keras.models.clone_model(network, clone_function=_float32_layer)
    copy = keras.Model(copy.inputs, copy.outputs, name=network.name)  # the clone of a compiled network is compiled
    copy.set_weights(network.get_weights())
    check_fit(copy.input_shape, copy.output_shape, card, model_file)
    content = io.BytesIO()  # in memory, as HDF5 crashes on a full disk
    copy.save(content, zipped=False)  # `zipped` only relaxes the check of the file name
    network_hash = hashlib.sha256(content.getvalue()).hexdigest()[:16]  # equals `file_hash`
    card = sealed(card, network_hash)
    with ExitStack() as files:  # renamed in reverse order: the network first, the card last
        write_checked(files.enter_context(atomic_file(card_path(model_file))), card_content(card))
        if hashes is not None:
            list_file = files.enter_context(atomic_file(hashes_file(model_file)))
            write_checked(list_file, hashes_content(hashes, network_hash))
        write_checked(files.enter_context(atomic_file(model_file)), content.getvalue())
        card_path(model_file).unlink(missing_ok=True)
        hashes_file(model_file).unlink(missing_ok=True)


def _float32_layer(layer: Any) -> Any:
    """Return a new layer with the configuration of another one, in float32."""
    config = layer.get_config()
    if "dtype" in config:
        config["dtype"] = "float32"
    return layer.__class__.from_config(config)


def check_fit(
    input_shape: Sequence[Any], output_shape: Sequence[Any], card: ModelCard | SequenceCard, model_file: Path
) -> None:
    """Refuse a card whose input or output shape differs from the network's."""
    classes = len(card.labels)
    if isinstance(card, ModelCard):
        expected = ((None, card.input_size, card.input_size, card.channels), (None, classes))
    else:
        expected = ((None, 1 + card.window, card.feature_size), (None, card.window, classes))
    found = (tuple(input_shape), tuple(output_shape))
    if found != expected:
        raise InputError(
            f"{card_path(model_file)} does not describe {model_file.name}: the card says input and output "
            f"{expected}, the network has {found}"
        )


def is_whole(model_file: Path) -> bool:
    """Return whether a `.keras` file, a zip archive, is complete and matches its checksums."""
    try:
        with zipfile.ZipFile(model_file) as archive:
            return archive.testzip() is None
    except PermissionError:
        raise
    except Exception:  # a damaged archive may raise any error
        return False


def check_whole(model_file: Path) -> None:
    """Refuse a `.keras` file that is incomplete or does not match its checksums."""
    if not is_whole(model_file):
        raise InputError(f"{model_file} is damaged: it is not a complete .keras file; restore it, or train it again")


def export_network(network: Any, file: Path, kind: str, failure: str, reader: str, **options: Any) -> None:
    """Write a network in another format by Keras's converter.

    Args:
        network: The Keras model.
        file: The file, or the folder of a SavedModel.
        kind: Format of `Model.export`: `litert`, `onnx` or `tf_saved_model`.
        failure: Start of the message where the converter fails.
        reader: What must support the layers, for that message.
        options: Further arguments of `Model.export`.

    Raises:
        InputError: The converter fails, mostly at a layer that the format lacks.
        OSError: The file cannot be written.
    """
    try:
        # Keras's code for ONNX tests numpy for attributes of earlier versions.
        with quiet_start(), warnings.catch_warnings(action="ignore", category=FutureWarning):
            network.export(str(file), format=kind, verbose=False, **options)
    except OSError:
        raise
    except Exception as error:  # the converters have no public exception class
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{failure} ({reason}); use layers that {reader} supports") from error


def load_network(model_file: Path) -> keras.Model:
    """Load a network without its card.

    Raises:
        InputError: The file is damaged, or is not a Keras model.
    """
    _refuse_hdf5(model_file)
    check_whole(model_file)
    with quiet_start():
        import keras
    try:
        network: Any = keras.models.load_model(model_file, compile=False, safe_mode=True)
        if not network.built or not network.layers:
            raise ValueError("it has no layers, or was never built")
    except Exception as error:  # foreign files may raise any error of Keras, h5py and zlib
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
    """Refuse a network that needs Python code outside Keras: Lambda functions and custom layers."""
    entries: list[dict[str, Any]] = []
    with suppress(Exception), zipfile.ZipFile(model_file) as archive:  # the caller reports the error of Keras
        json.loads(archive.read("config.json"), object_hook=lambda entry: entries.append(entry) or entry)
    foreign = sorted({*map(_foreign_name, entries)} - {""})
    if foreign:
        raise InputError(
            f"{model_file} needs code that is not part of Keras ({', '.join(foreign)[:200]}), which is never run from "
            "a file; rebuild the network with built-in layers, copy the weights and save it again"
        )


def _foreign_name(entry: dict[str, Any]) -> str:
    """Return the name of an object in the configuration of a network; empty if it is part of Keras."""
    name, module = entry.get("class_name"), entry.get("module", "keras")
    if name == "__lambda__":
        return "a Lambda layer's function"
    if (name, module) == ("function", "builtins"):
        return f"the function {entry.get('config')}"
    is_foreign = name and str(module).split(".")[0] not in ("keras", "builtins")
    return str(entry.get("registered_name") or name) if is_foreign else ""


def load_pixel_network(model_file: Path, card: ModelCard) -> keras.Model:
    """Load a network of single faces, and check that it takes uint8 pixels and returns probabilities.

    Args:
        model_file: The network.
        card: Its card.

    Raises:
        InputError: The file is not a Keras model, does not fit its card, has an unknown input range, or its outputs
            are not probabilities.
    """
    network: Any = with_pixel_input(load_network(model_file), card.input_range, model_file)
    import keras  # late: `load_network` imports it without the messages of native libraries

    check_unchanged(card, model_file)
    check_fit(network.input_shape, network.output_shape, card, model_file)
    outputs: Any = keras.ops.convert_to_numpy(network(test_images(card), training=False))
    check_probabilities(outputs, model_file.name)
    return network


def with_pixel_input(network: Any, input_range: Sequence[float] | None, model_file: Path) -> keras.Model:
    """Return a network that takes uint8 pixels, 0-255.

    A network that takes scaled floats is copied with the scaling as its first layer, in float32, which LiteRT needs.

    Args:
        network: A network with one input, (n, height, width, channels), and one output, (n, classes).
        input_range: The input values of black and white pixels; None if the card has none.
        model_file: The network's file, for the message.

    Raises:
        InputError: The network has several inputs or outputs, takes neither uint8 nor floats, or takes floats of an
            unknown range.
    """
    import keras

    counts = [len(getattr(network, ends, None) or []) for ends in ("inputs", "outputs")]
    if counts != [1, 1]:
        raise InputError(
            f"{model_file} cannot be used (inputs: {counts[0]}, outputs: {counts[1]}); accepted: one input, the "
            "images, and one output, the class probabilities; save keras.Model(images, probabilities)"
        )
    network = keras.Model(network.inputs[0], network.outputs[0], name=network.name)  # without lists and dicts
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
            f"{model_file} takes {dtype} images in an unknown range; add the range of its training to {card_file}, "
            'such as "input_range": [0, 1] (or [-1, 1], or [0, 255])'
        )
    low, high = map(float, input_range)
    pixels = keras.Input(network.input_shape[1:], dtype="uint8", name="pixels")
    scaled = keras.layers.Rescaling((high - low) / 255, low, dtype="float32", name="pixels_to_input_range")(pixels)

    def call_on_scaled(layer: Any, *inputs: Any, **options: Any) -> Any:
        """Call a layer, with the scaled image in place of the pixels."""
        given: Any = keras.tree.map_structure(lambda one: scaled if one is pixels else one, (inputs, options))
        return layer(*given[0], **given[1])

    copy: Any = keras.models.clone_model(
        network,
        input_tensors=pixels,
        clone_function=_float32_layer,
        call_function=call_on_scaled,
        recursive=True,
    )
    copy.set_weights(network.get_weights())
    return copy


def test_images(card: ModelCard) -> np.ndarray:
    """Return a black, a white, a gradient and a noise image, uint8 (4, input_size, input_size, channels)."""
    images = np.zeros((4, card.input_size, card.input_size, card.channels), np.uint8)
    images[1] = 255
    images[2] = np.linspace(0, 255, card.input_size, dtype=np.uint8)[:, None]
    images[3] = np.random.default_rng(0).integers(0, 256, images.shape[1:], np.uint8)
    return images


def check_probabilities(outputs: np.ndarray, model: str) -> None:
    """Refuse outputs that are not probabilities.

    Args:
        outputs: Outputs of a network, (..., classes).
        model: Name of the network in the message.

    Raises:
        InputError: An output is negative or not finite, or the outputs of an image do not sum to one.
    """
    sums = outputs.sum(axis=-1)
    if not np.isfinite(outputs).all():
        raise InputError(
            f"{model}: the outputs are not probabilities: some are NaN or infinite, as after a diverged training, or "
            "when a constant image is divided by its standard deviation; train it again"
        )
    if outputs.min() < 0 or (np.abs(sums - 1) > 0.01).any():
        raise InputError(
            f"{model}: the outputs are not probabilities: their sums are {sums.min():.3g} to {sums.max():.3g} instead "
            f"of 1, the smallest output is {outputs.min():.3g}; the last layer must be a softmax"
        )


def with_features(network: Any) -> keras.Model:
    """Return a network that outputs its features, the input of its last layer with weights, then its probabilities."""
    import keras

    head = next(layer for layer in reversed(network.layers) if layer.weights)
    features = keras.layers.Flatten()(head.input)
    return keras.Model(network.inputs, keras.layers.Concatenate()([features, network.outputs[0]]))
