from typing import Any

import keras
import numpy as np
import pytest

from common.errors import InputError
from training import models


@pytest.mark.parametrize("name", models.NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_takes_uint8_and_gives_a_float32_softmax_and_survives_saving(name, channels, tmp_path):
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
def test_standardised_networks_do_not_see_gain_and_offset(name):
    keras.utils.set_random_seed(1)
    network = models.build(name, (48, 48, 1), 7)
    image = np.random.default_rng(1).integers(0, 60, (1, 48, 48, 1)).astype(np.uint8)
    np.testing.assert_allclose(np.asarray(network(image)), np.asarray(network(3 * image + 20)), atol=2e-3)


def test_the_best_network_keeps_its_size():
    assert models.build("vgg", (48, 48, 1), 7).count_params() == 1_176_359


@pytest.mark.parametrize(("name", "size", "message"), [("resnet", 48, "'resnet'"), ("vgg", 16, "16x16")])
def test_refuses_unknown_networks_and_small_images(name, size, message):
    with pytest.raises(InputError, match=message):
        models.build(name, (size, size, 1), 7)
