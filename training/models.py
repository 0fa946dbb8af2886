"""The networks, as functional Keras models.

Each takes uint8 pixels in 0-255, (n, height, width, channels), gives a float32 softmax, (n, classes), and holds its
own normalisation. Built-in layers only, so that plain `keras.models.load_model` loads what is saved.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from common.errors import InputError

VERSION = (
    1  # raise this when a builder is to make another network of the same settings: finished runs are then repeated
)


def build_cifar10(input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Return the CNN of Keras's CIFAR-10 example, the second student project's baseline."""
    inputs = keras.Input(input_shape, dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for filters in (32, 64):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.Conv2D(filters, 3, activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
        x = keras.layers.Dropout(0.25)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(512, activation="relu")(x)
    x = keras.layers.Dropout(0.5)(x)
    return keras.Model(inputs, _softmax(x, classes), name="cifar10")


def build_project1(input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Return the 32/64/128 network of the first student project, on standardised images."""
    inputs = keras.Input(input_shape, dtype="uint8")
    x = _standardize(inputs)
    for filters in (32, 64, 128):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.MaxPooling2D()(x)
        x = keras.layers.Dropout(0.25)(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, _softmax(x, classes), name="project1")


def build_vgg(
    input_shape: tuple[int, int, int],
    classes: int,
    filters: tuple[int, ...] = (32, 64, 128, 256),
    convolutions: int = 2,
    se_reduction: int = 0,
    dropout: float = 0.4,
) -> keras.Model:
    """Return a plain VGG-like network: a few 3x3 convolutions per width, batch norm, global average pooling.

    With `squeeze`, each stage ends in squeeze-and-excitation (Hu et al. 2018, https://arxiv.org/abs/1709.01507): its
    filters are weighed by two small dense layers that see the mean of each, the first with a `squeeze`-th of them.
    """
    inputs = keras.Input(input_shape, dtype="uint8")
    x = _standardize(inputs)
    for index, count in enumerate(filters):
        if index:
            x = keras.layers.MaxPooling2D()(x)
        for _ in range(convolutions):
            x = keras.layers.Conv2D(count, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.Activation("relu")(x)
        if se_reduction:
            weights = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
            weights = keras.layers.Conv2D(max(1, count // se_reduction), 1, activation="relu")(weights)
            x = keras.layers.Multiply()([x, keras.layers.Conv2D(count, 1, activation="sigmoid")(weights)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, _softmax(x, classes), name="vgg")


NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "cifar10": build_cifar10,
    "project1": build_project1,
    "vgg": build_vgg,
}


def build(network: str, input_shape: tuple[int, int, int], classes: int, **shape: Any) -> keras.Model:
    """Return a new network by its name.

    Args:
        network: A name of `NETWORKS`.
        input_shape: (height, width, channels) of the images, pixels.
        classes: Number of classes.
        shape: Such as `widths` and `dropout`; a builder is given those that it names, the others mean nothing to it.

    Raises:
        InputError: no network has that name, or the images are too small for it.
    """
    if network not in NETWORKS:
        raise InputError(f"no network is called {network!r}; there are {', '.join(NETWORKS)}")
    if min(input_shape[:2]) < 24:
        raise InputError(f"images of {input_shape[1]}x{input_shape[0]} pixels are too small; the least is 24x24")
    builder = NETWORKS[network]
    known = inspect.signature(builder).parameters
    return builder(input_shape, classes, **{name: value for name, value in shape.items() if name in known})


def _standardize(inputs: Any) -> Any:
    """Scale each image to mean 0 and standard deviation 1; the epsilon lets a constant image become all zeros."""
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(inputs)
    image_axes: Any = (1, 2, 3)
    return keras.layers.LayerNormalization(image_axes, center=False, scale=False, epsilon=1e-5, dtype="float32")(x)


def _softmax(x: Any, classes: int) -> Any:
    x = keras.layers.Dense(classes)(x)
    return keras.layers.Activation("softmax", dtype="float32", name="probabilities")(x)
