from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from common.errors import InputError
from configuration import NO_AUGMENTATION, TrainingConfig
from training import models
from training.augmentation import full_images_last
from training.data import FaceBatches
from training.models import training_form
from training.trainer import build_trainer

SILENT: Any = 0  # Keras types it as text
RANDOM = np.random.default_rng(8)
IMAGES = RANDOM.integers(0, 256, (48, 24, 24, 1)).astype(np.uint8)
TARGETS = RANDOM.integers(0, 3, 48)
SMALL = TrainingConfig(
    filters=(4, 8),
    convolutions=1,
    dropout=0.0,
    optimizer="sgd",
    learning_rate=0.05,
    schedule="constant",
    precision="float32",
    augmentation=NO_AUGMENTATION,
)


@pytest.mark.parametrize("name", models.NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_network_takes_uint8_returns_float32_softmax_and_can_be_saved(name, channels, tmp_path):
    network = models.build(name, (48, 48, channels), 7)
    images = np.random.default_rng(1).integers(0, 256, (3, 48, 48, channels)).astype(np.uint8)
    images[0] = 0  # a constant image must not become NaN
    images[1] = 255
    result = np.asarray(network(images))
    assert result.shape == (3, 7) and result.dtype == np.float32
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-5)
    network.save(tmp_path / "network.keras")
    loaded: Any = keras.models.load_model(tmp_path / "network.keras", safe_mode=True)
    np.testing.assert_allclose(loaded.predict_on_batch(images), result, atol=1e-6)


@pytest.mark.parametrize("name", ["project1", "vgg"])
def test_standardised_networks_ignore_gain_and_offset(name):
    keras.utils.set_random_seed(1)
    network = models.build(name, (48, 48, 1), 7)
    image = np.random.default_rng(1).integers(0, 60, (1, 48, 48, 1)).astype(np.uint8)
    np.testing.assert_allclose(np.asarray(network(image)), np.asarray(network(3 * image + 20)), atol=2e-3)


def test_refuses_unknown_network_small_images_and_crops_for_a_network_of_fixed_size():
    for name, size, message in (("resnet", 48, "'resnet'"), ("vgg", 16, "16x16")):
        with pytest.raises(InputError, match=message):
            models.build(name, (size, size, 1), 7)
    with pytest.raises(InputError, match="'cifar10' takes images of 24x24 pixels only; train it with crop 1"):
        training_form(models.build("cifar10", (24, 24, 1), 3), any_size=True)


# ---------------------------------------------------------------- the form in which a network is trained


def batches() -> FaceBatches:
    return FaceBatches(IMAGES, TARGETS, ("anger", "happiness", "neutral"), batch_size=16, seed=1)


def test_training_form_learns_like_the_plain_network():
    """The plain network has Keras's own batch normalisation."""
    keras.utils.set_random_seed(5)
    network, trainer = build_trainer(batches(), SMALL)
    plain = keras.models.clone_model(network)
    plain.set_weights(network.get_weights())
    plain.compile(keras.optimizers.SGD(0.05), keras.losses.CategoricalCrossentropy(label_smoothing=0.1))
    for index in range(3):
        images, targets = batches()[index]
        by_form = trainer.train_on_batch(images, targets, return_dict=True)["loss"]
        assert by_form == pytest.approx(plain.train_on_batch(images, targets), abs=1e-5)
    for trained, expected in zip(network.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(trained, expected, atol=1e-5)
    moving = [weight for weight in network.weights if weight.path.endswith("moving_variance")]
    assert len(moving) == 2 and all(np.abs(np.asarray(weight) - 1).max() > 1e-3 for weight in moving)


def test_training_form_predicts_like_its_network():
    network = models.build("vgg", (24, 24, 1), 3, filters=(4, 8))
    form = training_form(network, any_size=True)
    assert {id(weight) for weight in form.weights} == {id(weight) for weight in network.weights}
    np.testing.assert_allclose(form(IMAGES, training=False), network(IMAGES, training=False), atol=1e-6)
    for layer in network.layers:
        layer.trainable = False
    before = [np.array(weight) for weight in network.get_weights()]
    training_form(network)(IMAGES, training=True)  # frozen batch normalisation does not change
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_trains_on_crops_then_on_full_images():
    config = replace(SMALL, epochs=3, augmentation=replace(NO_AUGMENTATION, crop=2 / 3, full_image_epoch_fraction=0.6))
    network, trainer = build_trainer(batches(), config)
    sizes: list[tuple[int, ...]] = []
    first = trainer.layers[-1].layers[1]
    call = first.call
    first.call = lambda images, **options: (sizes.append(tuple(images.shape[1:3])), call(images, **options))[1]
    by_epoch = {}
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: by_epoch.update({epoch: set(sizes)}))
    callbacks = [*full_images_last(config.augmentation, 3), keep]
    trainer.fit(batches(), epochs=3, verbose=SILENT, callbacks=callbacks)
    assert by_epoch == {0: {(16, 16)}, 1: {(16, 16), (24, 24)}, 2: {(16, 16), (24, 24)}}
    expected = network.predict(IMAGES, verbose=SILENT)
    np.testing.assert_allclose(trainer.predict(IMAGES, verbose=SILENT), expected, atol=1e-5)
    assert network.input_shape == (None, 24, 24, 1) and not full_images_last(SMALL.augmentation, 3)
