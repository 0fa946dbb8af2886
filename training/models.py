"""The networks, as functional Keras models, and the form in which they are trained.

Each network takes uint8 pixels, (n, height, width, channels), 0-255, returns a float32 softmax, (n, classes), and
contains its normalisation. It has built-in layers only, so plain `keras.models.load_model` loads it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from common.errors import InputError

VERSION = 1  # raise this to retrain finished runs when a builder changes


def build_cifar10(input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Return the CNN of Keras's CIFAR-10 example, the baseline of the second student project."""
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
    """Return the 32/64/128 network of the first student project, with standardised images."""
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
    dropout: float = 0.4,
) -> keras.Model:
    """Return a VGG-like network: stages of 3x3 convolutions with batch normalisation, then global average pooling.

    Args:
        input_shape: (height, width, channels) of the images, pixels.
        classes: Number of classes.
        filters: Filters of each stage; max pooling halves the image between stages.
        convolutions: Convolutions per stage.
        dropout: Rate before the last layer, 0-1.
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
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, _softmax(x, classes), name="vgg")


NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "cifar10": build_cifar10,
    "project1": build_project1,
    "vgg": build_vgg,
}


def build(network: str, input_shape: tuple[int, int, int], classes: int, **shape: Any) -> keras.Model:
    """Return a new network.

    Args:
        network: A name in `NETWORKS`.
        input_shape: (height, width, channels) of the images, pixels.
        classes: Number of classes.
        shape: Arguments such as `filters` and `dropout`; a builder gets those that it has.

    Raises:
        InputError: The name is unknown, or the images are too small.
    """
    if network not in NETWORKS:
        raise InputError(f"network {network!r} is not one of {', '.join(NETWORKS)}")
    if min(input_shape[:2]) < 24:
        raise InputError(f"images of {input_shape[1]}x{input_shape[0]} pixels are too small; at least 24x24 are needed")
    builder = NETWORKS[network]
    known = inspect.signature(builder).parameters
    return builder(input_shape, classes, **{name: value for name, value in shape.items() if name in known})


def _standardize(inputs: Any) -> Any:
    """Scale each image to mean 0 and standard deviation 1; epsilon makes a constant image all zeros."""
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(inputs)
    image_axes: Any = (1, 2, 3)
    return keras.layers.LayerNormalization(image_axes, center=False, scale=False, epsilon=1e-5, dtype="float32")(x)


def _softmax(x: Any, classes: int) -> Any:
    x = keras.layers.Dense(classes)(x)
    return keras.layers.Activation("softmax", dtype="float32", name="probabilities")(x)


class FusedBatchNormalization(keras.layers.Layer):
    """Batch normalisation by TensorFlow's fused kernel, with the variables of a Keras layer.

    Keras composes it from single float32 operations. The kernel also takes bfloat16; on two cores it reduced a training
    step of the released network to three fifths of the time.

    Args:
        layer: The layer, over the last axis of (n, height, width, channels), with scale and center.
    """

    def __init__(self, layer: keras.layers.BatchNormalization):
        super().__init__(dtype=layer.dtype_policy, name=f"fused_{layer.name}")
        self.layer = layer

    def call(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        """Return the normalised values, same shape and dtype; in training, update the moving statistics."""
        layer: Any = self.layer
        learning = training and layer.trainable
        if mask is not None:
            return layer(inputs, training=training, mask=mask)
        import tensorflow as tf

        nothing = tf.zeros((0,))
        values, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=layer.gamma.value,
            offset=layer.beta.value,
            mean=nothing if learning else layer.moving_mean.value,
            variance=nothing if learning else layer.moving_variance.value,
            epsilon=layer.epsilon,
            is_training=learning,
        )
        if not learning:
            return values
        count = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
        variance *= (count - 1) / count  # the kernel returns the unbiased variance, Keras keeps the biased one
        for moving, new in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + new * (1 - layer.momentum))
        return values

    @classmethod
    def fits(cls, layer: Any) -> bool:
        """Return whether the kernel computes the same as this layer under the current backend."""
        return (
            keras.backend.backend() == "tensorflow"
            and len(layer.output.shape) == 4
            and type(layer) is keras.layers.BatchNormalization
            and layer.axis in (-1, 3)
            and bool(layer.scale and layer.center and not layer.renorm and not layer.synchronized)
        )


def training_form(network: keras.Model, any_size: bool = False) -> keras.Model:
    """Return a model with the variables of a network, computed faster or for images of any size.

    It is trained in place of the network and never saved.

    Args:
        network: A functional network with one image input, (n, height, width, channels).
        any_size: Accept images of any height and width.

    Raises:
        InputError: `any_size`, and the network flattens its features.
    """

    def same_or_fused(layer: keras.layers.Layer) -> keras.layers.Layer:
        return FusedBatchNormalization(layer) if FusedBatchNormalization.fits(layer) else layer

    shape: Any = network.input_shape[1:]
    if any_size and any(isinstance(layer, keras.layers.Flatten) for layer in network.layers):
        raise InputError(
            f"network {network.name!r} takes images of {shape[1]}x{shape[0]} pixels only; train it with crop 1"
        )
    inputs = keras.Input((None, None, shape[2]) if any_size else shape, dtype="uint8")
    as_given: Any = keras.tree.map_structure(lambda _: inputs, network.input)  # some have a list of one input
    form: Any = keras.models.clone_model(network, input_tensors=as_given, clone_function=same_or_fused)
    return form
