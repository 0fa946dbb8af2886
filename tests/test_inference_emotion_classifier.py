from functools import partial
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from cards import model_card

from configuration import PATHS
from inference.crops import read_image_rgb
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from preprocessing.datasets.sample import PORTRAIT
from training import models

CARD = {"labels": ["anger", "neutral"], "input_size": 48, "channels": 1, "align": "box", "temperature": 1.3}


def images_of(n: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 1)).astype(np.uint8)


def test_network_of_mixed_precision_is_saved_in_float32_and_uncompiled(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = models.build("vgg", (48, 48, 1), 2, filters=(8,), convolutions=1)
    finally:
        keras.config.set_dtype_policy("float32")
    network.compile("adam", "categorical_crossentropy")
    images = images_of(32, 48)
    network.fit(images, np.eye(2)[np.arange(32) % 2], batch_size=16, epochs=1, verbose="0")
    save(network, model_card(**CARD), tmp_path / "network.keras")
    loaded: Any = keras.models.load_model(tmp_path / "network.keras", safe_mode=True)
    assert not loaded.compiled and {layer.dtype_policy.name for layer in loaded.layers} <= {"float32", "uint8"}
    np.testing.assert_allclose(loaded.predict_on_batch(images), network.predict_on_batch(images), atol=0.05)
    for ours, theirs in zip(loaded.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def load_litert(tmp_path):
    return partial(EmotionClassifier.load_litert, folder=tmp_path / "converted", int8=False)


@pytest.fixture(params=["keras", "litert", "int8"])
def load(request, load_litert):
    return EmotionClassifier.load if request.param == "keras" else partial(load_litert, int8=request.param == "int8")


def test_predictions_do_not_depend_on_the_batch_and_temperature_divides_the_logits(tiny_model, load):
    classifier = load(tiny_model())
    images = images_of(300)
    together = classifier.predict(images)
    assert together.dtype == np.float32
    network: Any = keras.models.load_model(tiny_model())
    np.testing.assert_allclose(together, network.predict(images, verbose=0), atol=1e-6)
    for n in (0, 1, 7):
        np.testing.assert_allclose(classifier.predict(images[:n]), together[:n], atol=1e-6)
    cooled = load(tiny_model(name="cooled.keras", temperature=2.5)).predict(images[:5])
    powers = together[:5].astype(np.float64) ** (1 / 2.5)
    np.testing.assert_allclose(cooled, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    assert np.abs(cooled - together[:5]).max() > 0.01


@pytest.mark.parametrize("network", models.NETWORKS)
def test_litert_gives_what_keras_gives_for_every_architecture(tmp_path, load_litert, network):
    keras.utils.set_random_seed(3)
    built = models.build(network, (48, 48, 1), 2)
    save(built, model_card(**CARD), tmp_path / "network.keras")
    images = images_of(7, 48)
    expected = EmotionClassifier.load(tmp_path / "network.keras").predict(images)
    found = load_litert(tmp_path / "network.keras", threads=2).predict(images)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.system
def test_litert_gives_what_keras_gives_for_the_released_network(load_litert):
    gray = cv2.cvtColor(read_image_rgb(PORTRAIT), cv2.COLOR_RGB2GRAY)
    parts = [gray[40 + step : 300 + step, 140 + step : 400 + step] for step in range(-40, 41, 8)]
    images = np.stack([cv2.resize(part, (48, 48), interpolation=cv2.INTER_AREA) for part in parts])[..., None]
    exact, quantised = (load_litert(PATHS.pretrained, int8=int8).predict(images) for int8 in (False, True))
    np.testing.assert_allclose(exact, EmotionClassifier.load(PATHS.pretrained).predict(images), atol=1e-4)
    np.testing.assert_allclose(quantised, exact, atol=0.05)
    assert (quantised != exact).any() and exact.std(axis=0).max() > 0.01


def test_input_options_are_those_of_the_card(tiny_model):
    classifier = EmotionClassifier.load(tiny_model(align="box"))
    assert (classifier.faces.size, classifier.faces.channels, classifier.faces.align) == (24, 1, "box")
    for wrong in (images_of(2, 48), images_of(2).astype(np.float32), images_of(2)[..., 0]):
        with pytest.raises(ValueError, match=r"images must be uint8 \(n, 24, 24, 1\)"):
            classifier.predict(wrong)
