"""Random changes of training images, as Keras layers in the training graph; none of them is saved with a network."""

from typing import Any

import keras
import numpy as np

from configuration import AugmentationConfig

ops: Any = keras.ops  # Keras does not type what its operations give
VERSION = 1  # raise this when the same settings are to change images otherwise: finished runs are then repeated


class RandomAffine(keras.layers.Layer):
    """Mirror, turn, scale and shift each image by one bilinear sampling; edges are repeated outwards.

    Takes and gives float images, (n, height, width, channels). Outside training it changes nothing.

    Args:
        flip: Mirror left and right, half of the time.
        rotation: Degrees, at most, either way.
        zoom: Share of the size, at most, smaller or larger.
        shift: Pixels, at most, in each direction.
        seed: Seed of the random numbers.
    """

    def __init__(self, flip: bool, rotation: float, zoom: float, shift: float, seed: int):
        super().__init__(dtype="float32")
        self.flip, self.rotation, self.zoom, self.shift = flip, rotation, zoom, shift
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the changed images, float32, of the same shape."""
        if not training:
            return images
        n, height, width = ops.shape(images)[0], images.shape[1], images.shape[2]

        def uniform(limit: float) -> Any:
            return keras.random.uniform((n,), -limit, limit, seed=self.random)

        angle = uniform(self.rotation * np.pi / 180)
        scale = 1 + uniform(self.zoom)
        mirror = ops.where(uniform(1.0) < 0, -1.0, 1.0) if self.flip else ops.ones((n,))
        cosine, sine = scale * ops.cos(angle), scale * ops.sin(angle)
        # Each output pixel is read at center + matrix (pixel - center) + shift.
        x, y = (width - 1) / 2, (height - 1) / 2
        a, b, c, d = cosine * mirror, -sine, sine * mirror, cosine
        move_x, move_y = x - a * x - b * y + uniform(self.shift), y - c * x - d * y + uniform(self.shift)
        zero = ops.zeros((n,))
        transform = ops.stack([a, b, move_x, c, d, move_y, zero, zero], axis=1)
        return ops.image.affine_transform(images, transform, interpolation="bilinear", fill_mode="nearest")


class RandomLight(keras.layers.Layer):
    """Change each image's contrast (about its mean) and brightness.

    Args:
        contrast: Share of the contrast, at most, more or less.
        brightness: Gray levels of 255, at most, more or less.
        seed: Seed of the random numbers.
    """

    def __init__(self, contrast: float, brightness: float, seed: int):
        super().__init__(dtype="float32")
        self.contrast, self.brightness = contrast, brightness
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the changed images, float32, within 0-255."""
        if not training:
            return images
        shape = (ops.shape(images)[0], 1, 1, 1)
        factor = keras.random.uniform(shape, 1 - self.contrast, 1 + self.contrast, seed=self.random)
        offset = keras.random.uniform(shape, -self.brightness, self.brightness, seed=self.random)
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        return ops.clip((images - mean) * factor + mean + offset, 0, 255)


class RandomScars(keras.layers.Layer):
    """Cover boxes with black, so that no single feature of a face decides.

    Each of `count` boxes is there half of the time, lies anywhere, and is up to `length` x `width` pixels, upright or
    lying.

    Args:
        count: Boxes per image, at most.
        length: Pixels of the longer side, at most.
        width: Pixels of the shorter side, at most.
        seed: Seed of the random numbers.
    """

    def __init__(self, count: int, length: int, width: int, seed: int):
        super().__init__(dtype="float32")
        self.count, self.length, self.width = count, length, width
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the scarred images, float32."""
        if not training:
            return images
        shape = (ops.shape(images)[0], 1, 1, self.count)

        def whole_number(low: int, high: Any) -> Any:
            return low + ops.floor(keras.random.uniform(shape, seed=self.random) * (high - low + 1))

        def yes() -> Any:
            return keras.random.uniform(shape, seed=self.random) < 0.5

        longer, shorter, lying = whole_number(1, self.length), whole_number(1, self.width), yes()
        box_height, box_width = ops.where(lying, shorter, longer), ops.where(lying, longer, shorter)
        height, width = images.shape[1], images.shape[2]
        top, left = whole_number(0, height - box_height), whole_number(0, width - box_width)
        rows = ops.reshape(ops.arange(height, dtype="float32"), (1, height, 1, 1))
        columns = ops.reshape(ops.arange(width, dtype="float32"), (1, 1, width, 1))
        in_rows = ops.cast((rows >= top) & (rows < top + box_height) & yes(), "float32")
        in_columns = ops.cast((columns >= left) & (columns < left + box_width), "float32")
        # Counts the boxes over each pixel, (n, height, width, 1); comparing every pixel with every box takes longer.
        covering = ops.matmul(in_rows[:, :, 0], ops.transpose(in_columns[:, 0], (0, 2, 1)))[..., None]
        return ops.where(covering > 0, 0.0, images)


class RandomNoise(keras.layers.Layer):
    """Add a camera's noise to half of the images: normal, of its own strength in each image, alike in all channels.

    Args:
        noise: Gray levels of 255: the standard deviation, at most.
        seed: Seed of the random numbers.
    """

    def __init__(self, noise: float, seed: int):
        super().__init__(dtype="float32")
        self.noise = noise
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the noisy images, float32; they may leave 0-255."""
        if not training:
            return images
        n, height, width = ops.shape(images)[0], images.shape[1], images.shape[2]
        strength = ops.maximum(keras.random.uniform((n, 1, 1, 1), -self.noise, self.noise, seed=self.random), 0.0)
        return images + strength * keras.random.normal((n, height, width, 1), seed=self.random)


class TrainingCrop(keras.layers.Layer):
    """Give the middle of each image in training, and the whole image else.

    After `RandomAffine` has moved the image, that is a part drawn anywhere. Parts at their true size take less time,
    and are another kind of augmentation; `WholeFacesLast` ends with whole faces, as the network will be given.

    Args:
        share: Share of the height and of the width that is given, 0-1. It may be changed between epochs.
    """

    def __init__(self, share: float):
        super().__init__(dtype="float32")
        self.share = share

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the images, float32, smaller in training."""
        if not training:
            return images
        height, width = (round(self.share * side) for side in images.shape[1:3])
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return images[:, top : top + height, left : left + width]

    def compute_output_spec(self, images: Any, training: bool = False) -> Any:
        """Return what is known of the images before they come: not their height and width."""
        return keras.KerasTensor((images.shape[0], None, None, images.shape[3]), dtype="float32")


class WholeFacesLast(keras.callbacks.Callback):
    """Let a training that sees parts of faces see whole ones in its last epochs.

    A network that has only seen parts answers less well for whole faces (Touvron et al. 2019,
    https://arxiv.org/abs/1906.06423); a few epochs mend it.

    Args:
        share: Share of a face's side that is trained on before that, 0-1.
        first: Number of the first epoch, from 0, that trains on whole faces.
    """

    def __init__(self, share: float, first: int):
        super().__init__()
        self.share, self.first = share, first

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Set the share of this epoch, and trace the training step anew where it is another one."""
        trainer: Any = self.model
        share = self.share if epoch < self.first else 1.0
        for layer in trainer.get_layer("augmentation").layers:
            if isinstance(layer, TrainingCrop) and layer.share != share:
                layer.share = share
                trainer.make_train_function(force=True)


class ToPixels(keras.layers.Layer):
    """Round to uint8, 0-255: what the network takes, when serving as when training."""

    def call(self, images: Any) -> Any:
        """Return uint8 images."""
        return ops.cast(ops.round(ops.clip(images, 0, 255)), "uint8")


def build_augmentation(options: AugmentationConfig, input_shape: tuple[int, int, int], seed: int) -> keras.Model:
    """Return a model from uint8 images to randomly changed uint8 images, (n, height, width, channels).

    Changes whose strength is zero leave no layer behind. With `crop`, images are smaller in training.
    """
    inputs = keras.Input(input_shape, dtype="uint8")
    images = keras.layers.Rescaling(1.0, dtype="float32")(inputs)
    if options.flip or options.rotation or options.zoom or options.shift:
        images = RandomAffine(options.flip, options.rotation, options.zoom, options.shift, seed)(images)
    if options.contrast or options.brightness:
        images = RandomLight(options.contrast, options.brightness, seed + 1)(images)
    if options.small_erasing_count:
        images = RandomScars(
            options.small_erasing_count, options.small_erasing_length, options.small_erasing_width, seed + 2
        )(images)
    if options.cutout_max_size:
        images = RandomScars(1, options.cutout_max_size, options.cutout_max_size, seed + 3)(images)
    if options.noise:
        images = RandomNoise(options.noise, seed + 4)(images)
    if options.crop < 1:
        images = TrainingCrop(options.crop)(images)
    return keras.Model(inputs, ToPixels()(images), name="augmentation")
