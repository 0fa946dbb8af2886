"""Networks and cards that come from outside this program: what works, and what is refused in one line."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cards import model_card
from conftest import ROOT

from common.errors import InputError
from evaluation.sections.grad_cam import grad_cam
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import card_path, check_unchanged, labels_hash, read_card, write_card
from training.fine_tuning import build_from

LABELS = ["anger", "happiness", "neutral"]
CARD = {"labels": LABELS, "input_size": 24, "channels": 1, "align": "box", "temperature": 1.0}
IMAGES = np.random.default_rng(2).integers(0, 256, (5, 24, 24, 1)).astype(np.uint8)


def own_network(activation: str | None = "softmax", dtype: str = "float32", size: int = 24, classes: int = 3) -> Any:
    """Return a network as a user may train it: augmentation inside, scaling outside."""
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
    """Save a network with a card, as its user does: by Keras alone, the card written by hand."""

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


# ---------------------------------------------------------------- float input


@pytest.mark.parametrize("ends", [(0, 1), (-1, 1), (0, 255)])
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


def test_kept_conversion_serves_only_the_card_that_it_was_made_for(keep, tmp_path):
    def predict() -> np.ndarray:
        return EmotionClassifier.load_litert(file, folder=tmp_path / "converted", int8=False).predict(IMAGES)

    file = keep(own_network(), input_range=[0, 1])
    before = predict()
    card_path(file).write_text(json.dumps({**CARD, "input_range": [0, 4]}))
    assert np.abs(predict() - before).max() > 0.01
    for card, message in (
        (CARD, "input_range"),
        ({**CARD, "input_range": [0, 1], "network_hash": "0", "card_version": 2}, "network_hash"),
    ):
        card_path(file).write_text(json.dumps(card))
        with pytest.raises(InputError, match=message):
            predict()


@pytest.mark.parametrize("load", [EmotionClassifier.load, EmotionClassifier.load_litert])
def test_float_network_without_input_range_is_refused_with_the_remedy(keep, load):
    assert re.search(r"float32 images.*own\.json.*\"input_range\": \[0, 1\]", refusal(keep(own_network()), load))


def test_input_range_that_contradicts_the_network_is_refused(keep):
    pixels = keras.Sequential([keras.Input((24, 24, 1), dtype="uint8"), keras.layers.Rescaling(1 / 255), own_network()])
    assert EmotionClassifier.load(keep(pixels, input_range=[0, 255])).predict(IMAGES).shape == (5, 3)
    assert "takes uint8 pixels" in refusal(keep(pixels, input_range=[0, 1]))
    integers = keras.Sequential([keras.Input((24, 24, 1), dtype="int32"), keras.layers.Rescaling(1.0), own_network()])
    assert "takes int32 images" in refusal(keep(integers, input_range=[0, 255]))


def test_training_starts_from_a_float_network(keep):
    file = keep(own_network(), input_range=[0, 1])
    expected = EmotionClassifier.load(file).predict(IMAGES)
    same = build_from(file, LABELS)(IMAGES, training=False)
    np.testing.assert_allclose(np.asarray(same), expected, atol=1e-5)
    kept = np.asarray(build_from(file, [*LABELS[:2], "sadness", LABELS[2]])(IMAGES, training=False))[:, [0, 1, 3]]
    np.testing.assert_allclose(kept / kept.sum(axis=1, keepdims=True), expected, atol=1e-4)


def test_grad_cam_scales_pixels_as_the_card_says(keep):
    file = keep(own_network(), input_range=[0, 1])
    maps = grad_cam(file, IMAGES, np.zeros(5, int), [0, 1])
    assert maps is not None and maps.shape == (5, 24, 24)
    with pytest.raises(InputError, match="input_range"):
        grad_cam(file, IMAGES, np.zeros(5, int))


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
        (lambda: own_network(activation="sigmoid"), "last layer must be a softmax"),
        (lambda: own_network(activation="relu"), "last layer must be a softmax"),
        (lambda: with_weight(np.nan), "NaN or infinite"),
        (lambda: with_weight(np.inf), "NaN or infinite"),
        (with_two_outputs, "inputs: 1, outputs: 2"),
        (lambda: own_network(classes=4), "does not describe"),
        (lambda: own_network(size=32), "does not describe"),
    ],
)
def test_networks_that_give_no_probabilities_are_refused_at_loading(keep, make, message):
    assert message in refusal(keep(make(), input_range=[0, 1]))


# ---------------------------------------------------------------- the card


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("abstention_threshold", (2, -0.1, float("nan"), float("inf"), True, "0.5", None, 10**300)),
        ("temperature", (True, float("nan"), 10**300)),
        ("input_size", (True, 0, -24, 10**300)),
        ("channels", (True, 2, 4)),
        ("input_range", (None, 255, [1], [1, 0], [0, 0], ["0", "1"], [0, float("nan")], [False, True], [0, 10**300])),
        ("scores", ([5], [{"accuracy": 0.5}])),
    ],
)
def test_card_numbers_out_of_range_are_refused(tmp_path, name, values):
    file = tmp_path / "own.keras"
    file.touch()
    card_path(file).write_text(json.dumps(CARD))
    assert read_card(file) == model_card(**CARD)
    for value in values:
        card_path(file).write_text(json.dumps({**CARD, name: value}))
        message = refusal(file, read_card)
        assert name in message and len(message) < 400


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_card_saved_by_a_windows_editor_is_read(tmp_path, encoding):
    file = tmp_path / "own.keras"
    file.touch()
    card_path(file).write_text(json.dumps(CARD), encoding=encoding)
    assert read_card(file) == model_card(**CARD)


@pytest.mark.parametrize("content", ['{"labels": "é"}'.encode("latin-1"), b"[" * 100_000, bytes(100), b""])
def test_card_that_is_no_json_is_refused(tmp_path, content):
    file = tmp_path / "own.keras"
    file.touch()
    card_path(file).write_bytes(content)
    assert "not readable JSON" in refusal(file, read_card)


def test_card_with_other_labels_than_the_network_was_saved_with_is_refused(tiny_model):
    file = tiny_model()
    card = json.loads(card_path(file).read_text())
    card_path(file).write_text(json.dumps({**card, "labels": card["labels"][::-1]}))
    assert "labels_hash" in refusal(file)


def test_card_of_another_network_is_refused(tiny_model):
    file, other = tiny_model(), tiny_model(name="other.keras", labels=("fear", "sadness", "surprise"))
    shutil.copy(card_path(other), card_path(file))
    assert "network_hash" in refusal(file)


def test_card_that_the_evaluation_updates_still_fits_its_network(tiny_model):
    file = tiny_model()
    write_card(replace(read_card(file), temperature=2.0), file)
    assert EmotionClassifier.load(file).card.temperature == 2.0


@pytest.mark.parametrize("name", ["pretrained", "fer2013"])
def test_released_cards_name_their_network_and_its_labels(name):
    file = ROOT / "models" / f"{name}.keras"
    card = read_card(file)
    check_unchanged(card, file)
    assert card.network_hash and card.labels_hash == labels_hash(card.labels)


def test_card_of_the_readme_describes_a_float_network(keep):
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    card = json.loads(text)
    file = keep(own_network(size=card["input_size"], classes=len(card["labels"])))
    card_path(file).write_text(text)
    classifier = EmotionClassifier.load(file)
    assert classifier.predict(np.zeros((1, 48, 48, 1), np.uint8)).shape == (1, 7)
    assert (classifier.faces.size, classifier.faces.align) == (48, "box")


# ---------------------------------------------------------------- the file


class Own(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def own_function(inputs):
    return inputs


def with_layer(layer: Any) -> Any:
    inputs = keras.Input((24, 24, 1))
    return keras.Model(inputs, own_network()(layer(inputs)))


def save_hdf5(file: Path) -> None:
    own_network().save(file.with_suffix(".h5"))
    file.with_suffix(".h5").rename(file)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: with_layer(keras.layers.Lambda(lambda x: x)).save(file), "Lambda layer's function"),
        (lambda file: with_layer(keras.layers.Lambda(own_function)).save(file), "the function own_function"),
        (lambda file: with_layer(Own()).save(file), "not part of Keras (Own)"),
        (save_hdf5, "is an HDF5 file"),
        (lambda file: file.mkdir(), "is a folder"),
    ],
)
def test_files_of_another_kind_are_refused_with_their_remedy(tmp_path, make, message):
    file = tmp_path / "own.keras"
    card_path(file).write_text(json.dumps({**CARD, "input_range": [0, 1]}))
    make(file)
    assert message in refusal(file)


def test_zip_without_a_network_is_refused(tmp_path):
    file = tmp_path / "own.keras"
    card_path(file).write_text(json.dumps(CARD))
    shutil.make_archive(str(tmp_path / "own"), "zip", ROOT / "docs", "experiments.md")
    file.with_suffix(".zip").rename(file)
    assert "not a usable Keras model" in refusal(file)


@pytest.mark.parametrize("version", [1, 3, "2"])
def test_card_of_another_version_is_refused_with_the_command_that_trains_again(tiny_model, version):
    file = tiny_model()
    card = json.loads(card_path(file).read_text())
    del card["card_version"]
    for entries in (card, card | {"card_version": version}):
        card_path(file).write_text(json.dumps(entries))
        message = refusal(file, read_card)
        assert "another version of this program" in message and "training.step3_best_model" in message


def test_card_keeps_entries_that_no_code_reads(tiny_model):
    file = tiny_model()
    card = json.loads(card_path(file).read_text()) | {"author": "me", "teachers": [{"file": "a.keras", "sha256": "0"}]}
    card_path(file).write_text(json.dumps(card))
    write_card(read_card(file), file)
    assert json.loads(card_path(file).read_text()) == card
