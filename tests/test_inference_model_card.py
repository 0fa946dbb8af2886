"""Model cards, and network files of unknown origin: what is accepted, and what is refused in one line."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cards import model_card
from conftest import ROOT, spoil_longest_member

from common.errors import InputError
from evaluation.sections.grad_cam import grad_cam
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import card_path, check_unchanged, labels_hash, read_card, write_card
from training.pretrained import build_from

LABELS = ["anger", "happiness", "neutral"]
CARD = {"labels": LABELS, "input_size": 24, "channels": 1, "align": "box", "temperature": 1.0}
IMAGES = np.random.default_rng(2).integers(0, 256, (5, 24, 24, 1)).astype(np.uint8)


def own_network(activation: str | None = "softmax", dtype: str = "float32", size: int = 24, classes: int = 3) -> Any:
    """Return a typical network of a user, with augmentation inside and scaling outside."""
    keras.utils.set_random_seed(4)
    return keras.Sequential(
        [
            keras.Input((size, size, 1), dtype=dtype),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(classes, activation=activation),
        ]
    )


@pytest.fixture
def keep(tmp_path):
    """Save a network with Keras alone, and a card made by hand."""

    def keep(network: Any, **card: Any) -> Path:
        file = tmp_path / "own.keras"
        network.save(file)
        card_path(file).write_text(json.dumps({**CARD, **card}))
        return file

    return keep


def refusal(file: Path, load: Any = EmotionClassifier.load) -> str:
    with pytest.raises(InputError) as caught:
        load(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_card(file: Path, **entries: Any) -> None:
    card_path(file).write_text(json.dumps(json.loads(card_path(file).read_text()) | entries))


# ---------------------------------------------------------------- float input


@pytest.mark.parametrize("ends", [(-1, 1), (0, 255)])
def test_float_network_gets_pixels_in_the_range_of_its_card(keep, ends):
    network, (low, high) = own_network(), ends
    kernel, *others = network.get_weights()
    network.set_weights([kernel / (high - low), *others])  # so that no range saturates the softmax
    expected = network.predict(IMAGES / 255.0 * (high - low) + low, verbose=0)
    assert expected.std(axis=0).max() > 1e-3
    file = keep(network, input_range=[low, high])
    np.testing.assert_allclose(EmotionClassifier.load(file).predict(IMAGES), expected, atol=1e-5)


def test_litert_scales_pixels_as_keras_does(keep, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")  # as on most GPUs; LiteRT has no such convolutions
    try:
        file = keep(own_network(), input_range=[-1, 1])
    finally:
        keras.config.set_dtype_policy("float32")
    expected = EmotionClassifier.load(file).predict(IMAGES)
    for int8, tolerance in ((False, 1e-4), (True, 0.02)):
        found = EmotionClassifier.load_litert(file, folder=tmp_path / "converted", int8=int8).predict(IMAGES)
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_kept_conversion_is_used_only_with_an_unchanged_card(keep, tmp_path):
    def predict() -> np.ndarray:
        return EmotionClassifier.load_litert(file, folder=tmp_path / "converted", int8=False).predict(IMAGES)

    file = keep(own_network(), input_range=[0, 1])
    before = predict()
    edit_card(file, input_range=[0, 4])
    assert np.abs(predict() - before).max() > 0.01
    edit_card(file, input_range=[0, 1], network_hash="0", card_version=3)
    with pytest.raises(InputError, match="network_hash"):
        predict()


def test_unknown_or_contradicting_input_ranges_are_refused(keep):
    for load in (EmotionClassifier.load, EmotionClassifier.load_litert):
        message = refusal(keep(own_network()), load)
        assert re.search(r"float32 images.*own\.json.*\"input_range\": \[0, 1\]", message)
    pixels = keras.Sequential([keras.Input((24, 24, 1), dtype="uint8"), keras.layers.Rescaling(1 / 255), own_network()])
    assert EmotionClassifier.load(keep(pixels, input_range=[0, 255])).predict(IMAGES).shape == (5, 3)
    assert "takes uint8 pixels" in refusal(keep(pixels, input_range=[0, 1]))
    integers = keras.Sequential([keras.Input((24, 24, 1), dtype="int32"), keras.layers.Rescaling(1.0), own_network()])
    assert "takes int32 images" in refusal(keep(integers, input_range=[0, 255]))


def test_fine_tuning_and_grad_cam_take_a_float_network(keep):
    file = keep(own_network(), input_range=[0, 1])
    expected = EmotionClassifier.load(file).predict(IMAGES)
    np.testing.assert_allclose(np.asarray(build_from(file, LABELS)(IMAGES, training=False)), expected, atol=1e-5)
    kept = np.asarray(build_from(file, [*LABELS[:2], "sadness", LABELS[2]])(IMAGES, training=False))[:, [0, 1, 3]]
    np.testing.assert_allclose(kept / kept.sum(axis=1, keepdims=True), expected, atol=1e-4)
    maps = grad_cam(EmotionClassifier.load(file).network, IMAGES, np.zeros(5, int))
    assert maps is not None and maps.shape == (5, 24, 24)


# ---------------------------------------------------------------- outputs


def with_weight(value: float) -> Any:
    network = own_network()
    weights = network.get_weights()
    weights[0][0, 0, 0, 0] = value
    network.set_weights(weights)
    return network


def with_two_outputs() -> Any:
    network = own_network()
    return keras.Model(network.inputs, [network.outputs[0], keras.layers.Dense(1)(network.outputs[0])])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: own_network(activation=None), "last layer must be a softmax"),
        (lambda: with_weight(np.nan), "NaN or infinite"),
        (lambda: own_network(size=32), "does not describe"),
        (lambda: own_network(activation="sigmoid"), "last layer must be a softmax"),
        (lambda: own_network(classes=4), "does not describe"),
        (with_two_outputs, "inputs: 1, outputs: 2"),
    ],
)
def test_networks_without_probabilities_are_refused(keep, make, message):
    assert message in refusal(keep(make(), input_range=[0, 1]))


# ---------------------------------------------------------------- the card


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("labels", (["cat", "dog"], [["anger"], "neutral"], ["anger", "anger"], LABELS[::-1], "anger")),
        ("abstention_threshold", (2, -0.1, float("nan"), True, "0.5", None)),
        ("temperature", (True, float("nan"), 0, 1e-9, 10**300)),
        ("input_size", (True, 0, -24, 10**300)),
        ("channels", (True, 2)),
        ("align", (None,)),
        ("input_range", (None, 255, [1], [1, 0], ["0", "1"], [0, float("nan")])),
        ("scores", ("good", [5], [{"accuracy": 0.5}])),
        ("calibration", ("x",)),
        ("teachers", (None, ["x"])),
        ("pretrained", ({"file": "x.keras"}, {"file": "x.keras", "sha256": "0", "splits": ["fer2013"]})),
    ],
)
def test_entries_out_of_range_are_refused(tmp_path, name, values):
    file = tmp_path / "own.keras"
    file.touch()
    card = CARD | {"labels_hash": labels_hash(LABELS)}
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # of Windows editors
        card_path(file).write_text(json.dumps(card), encoding=encoding)
        assert read_card(file) == model_card(**card)
    for value in values:
        card_path(file).write_text(json.dumps(card | {name: value}))
        message = refusal(file, read_card)
        assert (name in message or "is not a network" in message) and len(message) < 400, message


def test_written_card_keeps_all_entries_and_another_card_is_refused(tiny_model):
    file, other = tiny_model(temperature=2.0), tiny_model(name="other.keras", labels=("fear", "sadness", "surprise"))
    edit_card(file, author="me", teachers=[{"file": "a.keras", "sha256": "0"}])
    card = json.loads(card_path(file).read_text())
    write_card(read_card(file), file)
    assert json.loads(card_path(file).read_text()) == card and card["temperature"] == 2
    shutil.copy(card_path(other), card_path(file))
    assert "network_hash" in refusal(file)
    for version in (None, 2, "3"):
        card_path(file).write_text(json.dumps(card | {"card_version": version}))
        message = refusal(file, read_card)
        assert "another version of this program" in message and "training.step3_best_model" in message


def test_cards_of_the_released_networks_and_of_the_documentation_are_valid(keep):
    for file in (ROOT / "models/pretrained.keras", ROOT / "models/fer2013.keras"):
        card = read_card(file)
        check_unchanged(card, file)
        assert card.network_hash and card.labels_hash == labels_hash(card.labels)
        assert model_card(**card.to_json()) == card
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/realtime.md").read_text(encoding="utf-8"), re.DOTALL)
    file = keep(own_network(size=48, classes=7))
    card_path(file).write_text(text)
    assert EmotionClassifier.load(file).predict(np.zeros((1, 48, 48, 1), np.uint8)).shape == (1, 7)


# ---------------------------------------------------------------- the file


class Own(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def with_layer(layer: Any) -> Any:
    inputs = keras.Input((24, 24, 1))
    return keras.Model(inputs, own_network()(layer(inputs)))


def save_hdf5(file: Path) -> None:
    own_network().save(file.with_suffix(".h5"))
    file.with_suffix(".h5").rename(file)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def own_function(inputs):
    return inputs


def save_other_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("note.txt", "not a network")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: with_layer(keras.layers.Lambda(lambda x: x)).save(file), "Lambda layer's function"),
        (lambda file: with_layer(keras.layers.Lambda(own_function)).save(file), "the function own_function"),
        (lambda file: with_layer(Own()).save(file), "not part of Keras (Own)"),
        (save_other_zip, "not a usable Keras model"),
        (save_hdf5, "is an HDF5 file"),
        (lambda file: file.mkdir(), "is a folder"),
    ],
)
def test_other_files_are_refused_with_their_remedy(tmp_path, make, message):
    file = tmp_path / "own.keras"
    card_path(file).write_text(json.dumps({**CARD, "input_range": [0, 1]}))
    make(file)
    assert message in refusal(file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "does not exist"),
        (lambda file: card_path(file).unlink(), "has no card"),
        (lambda file: card_path(file).write_bytes(b"[" * 100_000), "not readable JSON"),
        (lambda file: card_path(file).write_text("[]"), "lacks a valid"),
        (lambda file: card_path(file).write_text("{}"), "lacks a valid"),
        (lambda file: edit_card(file, note="x" * 20_000_000), "larger than 10 MB"),
        (lambda file: edit_card(file, labels=["anger"] * 100_000), "labels"),
        (lambda file: edit_card(file, labels=LABELS[:2]), "labels"),
        (spoil_longest_member, "is damaged: .*; restore it, or train it again"),
    ],
)
def test_missing_and_damaged_files_are_refused_in_one_line(tiny_model, spoil, message):
    file = tiny_model()
    spoil(file)
    for load in (EmotionClassifier.load, EmotionClassifier.load_litert):
        assert re.search(message, refusal(file, load))


def test_kill_while_saving_leaves_no_earlier_card_beside_the_new_network(tiny_model, monkeypatch):
    file = tiny_model()

    def die_before_the_card(temporary, target, replace=Path.replace):
        if target.suffix == ".json":
            raise ZeroDivisionError
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", die_before_the_card)
    with pytest.raises(ZeroDivisionError):
        tiny_model(labels=("fear", "anger", "disgust"))
    assert "has no card" in refusal(file)
