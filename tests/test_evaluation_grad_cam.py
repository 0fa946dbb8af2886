import keras
import numpy as np
import pytest

from evaluation.sections.grad_cam import grad_cam


def make_network(softmax_in_dense: bool):
    """Two classes: the first likes bright places, the second dislikes them."""
    inputs = keras.Input((16, 16, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(1, 1, use_bias=False, name="convolution")(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.Flatten()(x)
    dense = keras.layers.Dense(2, activation="softmax" if softmax_in_dense else None, name="dense")
    x = dense(x)
    outputs = x if softmax_in_dense else keras.layers.Activation("softmax")(x)
    network = keras.Model(inputs, outputs)
    network.get_layer("convolution").set_weights([np.ones((1, 1, 1, 1))])
    network.get_layer("dense").set_weights([np.tile([[1.0, -1.0]], (64, 1)), np.zeros(2)])
    return network


@pytest.mark.parametrize("softmax_in_dense", [True, False])
def test_map_shows_the_evidence_for_the_class(softmax_in_dense):
    network = make_network(softmax_in_dense)
    images = np.zeros((70, 16, 16, 1), np.uint8)
    for number in range(70):  # more than one batch
        images[number, 2:5, number % 12 : number % 12 + 4] = 200
    maps = grad_cam(network, images, np.zeros(70, int))
    assert maps is not None and maps.shape == (70, 16, 16)
    np.testing.assert_allclose(maps, images[..., 0] / 200, atol=1e-5)
    against = grad_cam(network, images[:1], np.array([1]))
    assert against is not None and not against.any()
