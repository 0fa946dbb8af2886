from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from training.fast_training import training_form

from common.errors import InputError
from configuration import NO_AUGMENTATION, TrainingConfig
from training.data import FaceBatches
from training.models import build
from training.trainer import build_trainer, full_images_last

RANDOM = np.random.default_rng(8)
CLASSES = ("anger", "happiness", "neutral")
SILENT: Any = 0  # Keras types it as text
IMAGES = RANDOM.integers(0, 256, (48, 24, 24, 1)).astype(np.uint8)
TARGETS = RANDOM.integers(0, 3, 48)
SMALL = TrainingConfig(
    filters=(4, 8), convolutions=1, dropout=0.0, optimizer="sgd", learning_rate=0.05, schedule="constant",
    weight_decay=0.0, precision="float32", augmentation=NO_AUGMENTATION,
)  # fmt: skip


def batches() -> FaceBatches:
    return FaceBatches(IMAGES, TARGETS, CLASSES, batch_size=16, seed=1)


def test_the_training_form_learns_what_the_plain_network_learns():
    """The plain one computes its batch normalisation by Keras, from single operations."""
    keras.utils.set_random_seed(5)
    network, trainer = build_trainer(batches(), SMALL)
    plain = keras.models.clone_model(network)
    plain.set_weights(network.get_weights())
    plain.compile(keras.optimizers.SGD(0.05), keras.losses.CategoricalCrossentropy(label_smoothing=0.1))
    for index in range(3):
        images, targets = batches()[index]
        by_form = trainer.train_on_batch(images, targets, return_dict=True)["loss"]
        assert by_form == pytest.approx(plain.train_on_batch(images, targets), abs=1e-5)
    for learnt, expected in zip(network.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(learnt, expected, atol=1e-5)
    moving = [weight for weight in network.weights if weight.path.endswith("moving_variance")]
    assert len(moving) == 2 and all(np.abs(np.asarray(weight) - 1).max() > 1e-3 for weight in moving)


def test_the_form_answers_as_its_network_and_leaves_it_free_of_its_own_layers(tmp_path):
    network = build("vgg", (24, 24, 1), 3, filters=(4, 8), se_reduction=2)
    form = training_form(network, any_size=True)
    assert {id(weight) for weight in form.weights} == {id(weight) for weight in network.weights}
    np.testing.assert_allclose(form(IMAGES, training=False), network(IMAGES, training=False), atol=1e-6)
    network.save(tmp_path / "network.keras")
    again: Any = keras.models.load_model(tmp_path / "network.keras", safe_mode=True)
    np.testing.assert_allclose(again(IMAGES), network(IMAGES), atol=1e-6)


def test_frozen_batch_normalisation_stays_as_it_is():
    network = build("vgg", (24, 24, 1), 3, filters=(4,))
    for layer in network.layers:
        layer.trainable = False
    before = [np.array(weight) for weight in network.get_weights()]
    training_form(network)(IMAGES, training=True)
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_network_learns_from_parts_of_faces_then_from_whole_ones_and_answers_for_whole_ones():
    config = replace(SMALL, epochs=3, augmentation=replace(NO_AUGMENTATION, crop=2 / 3, full_image_epoch_fraction=0.6))
    network, trainer = build_trainer(batches(), config)
    sizes: list[tuple[int, ...]] = []
    first = trainer.layers[-1].layers[1]
    call = first.call
    first.call = lambda images, **options: (sizes.append(tuple(images.shape[1:3])), call(images, **options))[1]
    by_epoch = {}
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: by_epoch.update({epoch: set(sizes)}))
    trainer.fit(batches(), epochs=3, verbose=SILENT, callbacks=[*full_images_last(config), keep])
    assert by_epoch == {0: {(16, 16)}, 1: {(16, 16), (24, 24)}, 2: {(16, 16), (24, 24)}}
    np.testing.assert_allclose(
        trainer.predict(IMAGES, verbose=SILENT), network.predict(IMAGES, verbose=SILENT), atol=1e-5
    )
    assert network.input_shape == (None, 24, 24, 1) and not full_images_last(SMALL)


def test_a_network_bound_to_its_size_cannot_learn_from_parts():
    with pytest.raises(InputError, match="'cifar10' takes pictures of 24x24 pixels alone; train it with crop 1"):
        training_form(build("cifar10", (24, 24, 1), 3), any_size=True)
