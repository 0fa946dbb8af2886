"""Grad-CAM (Selvaraju et al. 2017): the regions of an image that support a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    import keras

_CONVOLUTIONS = ("Conv2D", "SeparableConv2D", "DepthwiseConv2D")
_BATCH = 64  # images


def grad_cam(network: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """Return the Grad-CAM of a class for each image.

    The maps of the last convolution are weighted by the mean gradient of the logit of the class. The positive part of
    their sum is resized to the image.

    Args:
        network: A network with pixel input.
        images: uint8, (n, height, width, channels).
        classes: Index of the class among the outputs of the network, int (n,).

    Returns:
        float32, (n, height, width), 0-1, scaled to the maximum of each image, 0 without support; None if the network
        has no convolution, or Keras does not use TensorFlow.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return None
    maps_of = _with_maps(network)
    if maps_of is None:
        return None
    height, width = images.shape[1:3]
    parts = [np.zeros((0, height, width), np.float32)]
    for start in range(0, len(images), _BATCH):
        maps = _weighted_maps(network, maps_of, images[start : start + _BATCH], classes[start : start + _BATCH])
        maps /= np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)
        parts.append(np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in maps]))
    return np.concatenate(parts)


def _with_maps(network: keras.Model) -> keras.Model | None:
    """Return a network that outputs the activated maps of the last convolution, and the input of the last layer."""
    import keras

    layers = network.layers
    convolutions = [index for index, layer in enumerate(layers) if type(layer).__name__ in _CONVOLUTIONS]
    if not convolutions:
        return None
    last = convolutions[-1]
    shape = layers[last].output.shape
    while last + 1 < len(layers) and layers[last + 1].output.shape == shape:  # normalisation and activation
        last += 1
    return keras.Model(network.inputs, [layers[last].output, layers[-1].input])


def _weighted_maps(network: keras.Model, maps_of: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the positive part of the weighted sum of channels, float32 (n, rows, columns)."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        channels, before_last = maps_of(tf.constant(images), training=False)
        logits = _logits(network.layers[-1], before_last)
        own = tf.gather(logits, tf.constant(classes), batch_dims=1)
    gradients = np.asarray(tape.gradient(own, channels))
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    return np.maximum((weights * np.asarray(channels)).sum(axis=3), 0)


def _logits(last_layer: Any, inputs: Any) -> Any:
    """Return the input of the softmax: gradients of a probability near one vanish."""
    import keras

    if hasattr(last_layer, "kernel"):  # a dense layer with its own softmax
        logits = keras.ops.matmul(inputs, last_layer.kernel)
        return logits if last_layer.bias is None else logits + last_layer.bias
    return inputs
