import json
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import keras
import matplotlib
import numpy as np
import pytest
from cards import model_card
from conftest import ROOT

from common.errors import InputError
from configuration import PATHS, SERVING
from inference.crops import read_image_rgb
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.model_card import labels_hash
from training import models

CARD = {"labels": ["anger", "neutral"], "input_size": 48, "channels": 1, "align": "box", "temperature": 1.0}


def images_of(n: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 1)).astype(np.uint8)


def test_a_network_trained_in_mixed_precision_is_saved_plain_float32_and_uncompiled(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = models.build("vgg", (48, 48, 1), 2)
    finally:
        keras.config.set_dtype_policy("float32")
    network.compile("adam", "categorical_crossentropy")
    images = images_of(64, 48)
    network.fit(images, np.eye(2)[np.arange(64) % 2], batch_size=16, epochs=2, verbose="0")
    save(network, model_card(**CARD), tmp_path / "network.keras")
    loaded: Any = keras.models.load_model(tmp_path / "network.keras", safe_mode=True)
    assert not loaded.compiled
    assert {layer.dtype_policy.name for layer in loaded.layers} <= {"float32", "uint8"}
    np.testing.assert_allclose(loaded.predict_on_batch(images), network.predict_on_batch(images), atol=0.05)
    for ours, theirs in zip(loaded.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    parameters = 4 * network.count_params()
    assert (tmp_path / "network.keras").stat().st_size < 1.2 * parameters + 100_000  # no optimiser state came along


@pytest.fixture
def load_litert(tmp_path):
    return partial(EmotionClassifier.load_litert, folder=tmp_path / "converted", int8=False)


@pytest.fixture(params=["keras", "litert", "int8"])
def load(request, load_litert):
    return EmotionClassifier.load if request.param == "keras" else partial(load_litert, int8=request.param == "int8")


def test_predictions_do_not_depend_on_the_batch(tiny_model, load):
    classifier = load(tiny_model())
    images = images_of(300)
    together = classifier.predict(images)
    assert together.shape == (300, 3) and together.dtype == np.float32
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-6)
    for n in (1, 3, 7):
        np.testing.assert_allclose(classifier.predict(images[:n]), together[:n], atol=1e-6)
    assert classifier.predict(images[:0]).shape == (0, 3)
    network: Any = keras.models.load_model(tiny_model())
    raw = network.predict(images, verbose=0)
    np.testing.assert_allclose(together, raw, atol=1e-6)
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_allclose(classifier.predict(images[order]), together[order], atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("network", "se_reduction"), [(network, 0) for network in models.NETWORKS] + [("vgg", 16)])
def test_litert_gives_what_keras_gives_whatever_the_network(tmp_path, load_litert, network, se_reduction, threads):
    keras.utils.set_random_seed(3)
    save(
        models.build(network, (48, 48, 1), 2, se_reduction=se_reduction),
        model_card(**CARD | {"temperature": 1.3}),
        tmp_path / "network.keras",
    )
    images = images_of(7, 48)
    expected = EmotionClassifier.load(tmp_path / "network.keras").predict(images)
    found = load_litert(tmp_path / "network.keras", threads=threads).predict(images)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_litert_gives_what_keras_gives_for_the_released_network(load_litert):
    images = images_of(33, 48)
    expected, found = (load(PATHS.pretrained).predict(images) for load in (EmotionClassifier.load, load_litert))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.std(axis=0).max() > 0.01  # the network does tell these images apart


def test_eight_bits_keep_the_released_network_s_answers(load_litert):
    portrait_rgb = read_image_rgb(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    portrait_gray = cv2.cvtColor(portrait_rgb, cv2.COLOR_RGB2GRAY)
    parts = [portrait_gray[40 + step : 300 + step, 140 + step : 400 + step] for step in range(-40, 41, 8)]
    images = np.stack([cv2.resize(part, (48, 48), interpolation=cv2.INTER_AREA) for part in parts])[..., None]
    exact, short = (load_litert(PATHS.pretrained, int8=int8).predict(images) for int8 in (False, True))
    np.testing.assert_allclose(short, exact, atol=0.05)
    assert (short != exact).any()
    sizes = {"int8" in file.name: file.stat().st_size for file in load_litert.keywords["folder"].glob("*.tflite")}
    assert 3.5 * sizes[True] < sizes[False]


def test_once_converted_a_network_is_served_without_tensorflow(tiny_model, load_litert, tmp_path):
    file = tiny_model()
    load_litert(file, int8=SERVING.int8)
    code = f"""
import sys
from pathlib import Path
import numpy as np
from inference.emotion_classifier import EmotionClassifier
classifier = EmotionClassifier.load_litert(Path({str(file)!r}), folder=Path({str(tmp_path / "converted")!r}))
print(classifier.predict(np.zeros((1, 24, 24, 1), np.uint8)).shape)
print(*{{"tensorflow", "keras", "pandas", "matplotlib"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(1, 3)", ""]


def test_temperature_divides_the_logits(tiny_model, load):
    images = images_of(5)
    plain = load(tiny_model()).predict(images)
    cooled = load(tiny_model(name="cooled.keras", temperature=2.5)).predict(images)
    logits = np.log(plain.astype(np.float64)) / 2.5
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(cooled, expected, atol=1e-5)
    assert np.abs(cooled - plain).max() > 0.01


def test_crops_are_made_as_the_card_says(tiny_model):
    faces = EmotionClassifier.load(tiny_model(align="box")).faces
    assert (faces.size, faces.channels, faces.align) == (24, 1, "box")


@pytest.mark.parametrize("wrong", [images_of(2, 48), images_of(2).astype(np.float32), images_of(2)[..., 0]])
def test_other_pixels_are_a_programming_error(tiny_model, wrong):
    with pytest.raises(ValueError, match=r"images must be uint8 \(n, 24, 24, 1\)"):
        EmotionClassifier.load(tiny_model()).predict(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["anger", "neutral"]}, "labels_hash"),
        ({"labels": ["anger", "neutral"], "labels_hash": labels_hash(["anger", "neutral"])}, "does not describe"),
        ({"input_size": 48}, "does not describe"),
        ({"labels": ["cat", "dog", "cow"]}, r"among anger"),
        ({"labels": [["anger"], "happiness", "neutral"]}, "not two or more"),
        ({"labels": ["anger", "anger", "neutral"]}, "each once"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 1e-9}, "temperature"),
        ({"scores": "good"}, "scores"),
        ({"align": None}, "'align'"),
        ({"abstention_threshold": "x"}, "abstention_threshold 'x'"),
        ({"calibration": "x"}, "calibration 'x'"),
        ({"teachers": None}, "teachers None"),
        ({"teachers": ["x"]}, "'x' is no network"),
        ({"pretrained": {"file": "x.keras"}}, "is no network"),
        ({"pretrained": {"file": "x.keras", "sha256": "0", "splits": ["fer2013"]}}, "is no network"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tiny_model, change, message, load):
    file = tiny_model()
    card = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps({**card, **change}))
    with pytest.raises(InputError, match=message):
        load(file)


def spoil_the_weights(file):
    """Change a byte within the zip's longest member, as a bad disk does."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        longest = max(archive.infolist(), key=lambda member: member.compress_size)
    content[longest.header_offset + longest.compress_size // 2] ^= 255
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "does not exist"),
        (lambda file: file.with_suffix(".json").unlink(), "has no card"),
        (lambda file: file.with_suffix(".json").write_text("{"), "not readable JSON"),
        (lambda file: file.with_suffix(".json").write_text("[]"), "lacks a valid"),
        (lambda file: spoil_the_weights(file), "is damaged: .*; restore it, or train it again"),
        (lambda file: file.write_bytes(b"PK no zip"), "is damaged"),
        (lambda file: keras.Sequential([keras.layers.Dense(3)]).save(file), "not a usable Keras model"),
        (lambda file: file.write_bytes(file.read_bytes()[:3000]), "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is damaged"),
    ],
)
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_missing_and_broken_files_are_refused_in_one_line(tiny_model, spoil, message, load):
    file = tiny_model()
    spoil(file)
    with pytest.raises(InputError, match=message) as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_a_kill_while_saving_leaves_no_earlier_card_beside_the_new_network(tiny_model, monkeypatch):
    file = tiny_model()
    replace_file = Path.replace

    def die_before_the_card(temporary, target):
        if target.suffix == ".json":
            raise ZeroDivisionError
        return replace_file(temporary, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die_before_the_card)
        with pytest.raises(ZeroDivisionError):
            tiny_model(labels=("fear", "anger", "disgust"))
    with pytest.raises(InputError, match="has no card"):
        EmotionClassifier.load(file)
