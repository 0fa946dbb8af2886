"""The form in which a network is trained: the very same variables, computed faster, or for images of any size.

What is saved is the network itself, built-in layers only; this form exists while it learns.
"""

from typing import Any

import keras

from common.errors import InputError


class FusedBatchNormalization(keras.layers.Layer):
    """A network's batch normalisation, computed by TensorFlow's one kernel for it.

    Keras computes it from single operations, in float32. The kernel takes bfloat16 as it is, and a whole training step
    of the released network took three fifths of the time on two cores; TensorFlow joins it with the convolution before
    it where nothing is learnt. The variables stay the wrapped layer's.

    Args:
        layer: The layer, over the last axis of (n, height, width, channels), with scale and center.
    """

    def __init__(self, layer: keras.layers.BatchNormalization):
        super().__init__(dtype=layer.dtype_policy, name=f"fused_{layer.name}")
        self.layer = layer

    def call(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        """Return the normalised values, of the same shape and kind; learn the moving statistics in training."""
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
        variance *= (count - 1) / count  # the kernel gives the unbiased one, Keras keeps the biased one
        for moving, new in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + new * (1 - layer.momentum))
        return values

    @classmethod
    def fits(cls, layer: Any) -> bool:
        """Tell whether the kernel computes what this layer does, under the backend that is in use."""
        return (
            keras.backend.backend() == "tensorflow"
            and len(layer.output.shape) == 4
            and type(layer) is keras.layers.BatchNormalization
            and layer.axis in (-1, 3)
            and bool(layer.scale and layer.center and not layer.renorm and not layer.synchronized)
        )


def training_form(network: keras.Model, any_size: bool = False) -> keras.Model:
    """Return a model of the network's own layers and variables, to be trained in its place.

    Args:
        network: A functional network of one image input, (n, height, width, channels).
        any_size: The form takes images of any height and width.

    Raises:
        InputError: `any_size`, of a network that is bound to its size, as it flattens its features.
    """

    def same_or_fused(layer: keras.layers.Layer) -> keras.layers.Layer:
        return FusedBatchNormalization(layer) if FusedBatchNormalization.fits(layer) else layer

    shape: Any = network.input_shape[1:]
    if any_size and any(isinstance(layer, keras.layers.Flatten) for layer in network.layers):
        raise InputError(
            f"network {network.name!r} takes pictures of {shape[1]}x{shape[0]} pixels alone; train it with crop 1"
        )
    inputs = keras.Input((None, None, shape[2]) if any_size else shape, dtype="uint8")
    as_given: Any = keras.tree.map_structure(lambda _: inputs, network.input)  # some have a list of one input
    form: Any = keras.models.clone_model(network, input_tensors=as_given, clone_function=same_or_fused)
    return form
