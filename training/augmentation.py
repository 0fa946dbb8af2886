"""Data augmentation as Keras layers in the training graph; they are not saved with a network."""

from typing import Any

import keras
import numpy as np

from configuration import AugmentationConfig

ops: Any = keras.ops  # Keras does not type what its operations give
VERSION = 1  # raise this to retrain finished runs when a layer changes


class RandomAffine(keras.layers.Layer):
    """Flip, rotate, zoom and shift each image with one bilinear sampling; edge pixels are repeated outwards.

    Input and output are float images, (n, height, width, channels). It is the identity outside training.

    Args:
        flip: Flip horizontally with probability 0.5.
        rotation: Degrees: largest rotation in either direction.
        zoom: Largest relative change of the size.
        shift: Pixels: largest shift in each direction.
        seed: Random seed.
    """

    def __init__(self, flip: bool, rotation: float, zoom: float, shift: float, seed: int):
        super().__init__(dtype="float32")
        self.flip, self.rotation, self.zoom, self.shift = flip, rotation, zoom, shift
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the changed images, float32, same shape."""
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
    """Change the contrast (about the mean) and the brightness of each image.

    Args:
        contrast: Largest relative change of the contrast.
        brightness: Gray levels of 255: largest change.
        seed: Random seed.
    """

    def __init__(self, contrast: float, brightness: float, seed: int):
        super().__init__(dtype="float32")
        self.contrast, self.brightness = contrast, brightness
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the changed images, float32, 0-255."""
        if not training:
            return images
        shape = (ops.shape(images)[0], 1, 1, 1)
        factor = keras.random.uniform(shape, 1 - self.contrast, 1 + self.contrast, seed=self.random)
        offset = keras.random.uniform(shape, -self.brightness, self.brightness, seed=self.random)
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        return ops.clip((images - mean) * factor + mean + offset, 0, 255)


class RandomErasing(keras.layers.Layer):
    """Set random boxes to black (random erasing, Zhong et al. 2020; one large box is Cutout).

    Each of `count` boxes appears with probability 0.5 at a random position, and is up to `length` x `width` pixels in
    either orientation.

    Args:
        count: Largest number of boxes per image.
        length: Pixels: largest longer side.
        width: Pixels: largest shorter side.
        seed: Random seed.
    """

    def __init__(self, count: int, length: int, width: int, seed: int):
        super().__init__(dtype="float32")
        self.count, self.length, self.width = count, length, width
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the images with the boxes, float32."""
        if not training:
            return images
        shape = (ops.shape(images)[0], 1, 1, self.count)

        def integer(low: int, high: Any) -> Any:
            return low + ops.floor(keras.random.uniform(shape, seed=self.random) * (high - low + 1))

        def coin() -> Any:
            return keras.random.uniform(shape, seed=self.random) < 0.5

        longer, shorter, horizontal = integer(1, self.length), integer(1, self.width), coin()
        box_height, box_width = ops.where(horizontal, shorter, longer), ops.where(horizontal, longer, shorter)
        height, width = images.shape[1], images.shape[2]
        top, left = integer(0, height - box_height), integer(0, width - box_width)
        rows = ops.reshape(ops.arange(height, dtype="float32"), (1, height, 1, 1))
        columns = ops.reshape(ops.arange(width, dtype="float32"), (1, 1, width, 1))
        in_rows = ops.cast((rows >= top) & (rows < top + box_height) & coin(), "float32")
        in_columns = ops.cast((columns >= left) & (columns < left + box_width), "float32")
        # Number of boxes over each pixel, (n, height, width, 1); comparing every pixel with every box is slower.
        covering = ops.matmul(in_rows[:, :, 0], ops.transpose(in_columns[:, 0], (0, 2, 1)))[..., None]
        return ops.where(covering > 0, 0.0, images)


class RandomNoise(keras.layers.Layer):
    """Add Gaussian noise to half of the images, with a random strength per image, the same in all channels.

    Args:
        noise: Gray levels of 255: largest standard deviation.
        seed: Random seed.
    """

    def __init__(self, noise: float, seed: int):
        super().__init__(dtype="float32")
        self.noise = noise
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the noisy images, float32; values may leave 0-255."""
        if not training:
            return images
        n, height, width = ops.shape(images)[0], images.shape[1], images.shape[2]
        strength = ops.maximum(keras.random.uniform((n, 1, 1, 1), -self.noise, self.noise, seed=self.random), 0.0)
        return images + strength * keras.random.normal((n, height, width, 1), seed=self.random)


class RandomBlur(keras.layers.Layer):
    """Blur half of the images with a Gaussian of random width; edge pixels are mirrored.

    Args:
        blur: Pixels: largest standard deviation.
        seed: Random seed.
    """

    def __init__(self, blur: float, seed: int):
        super().__init__(dtype="float32")
        self.blur = blur
        self.random = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the blurred images, float32, same shape and range."""
        if not training:
            return images
        n, height, width = ops.shape(images)[0], images.shape[1], images.shape[2]
        deviation = ops.maximum(keras.random.uniform((n, 1, 1, 1), -self.blur, self.blur, seed=self.random), 1e-3)
        radius = int(np.ceil(2 * self.blur))
        weights = [ops.exp(-((offset / deviation) ** 2) / 2) for offset in range(-radius, radius + 1)]
        total = sum(weights)
        padded = ops.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="symmetric")
        rows: Any = sum(weight * padded[:, i : i + height] for i, weight in enumerate(weights)) / total
        return sum(weight * rows[:, :, i : i + width] for i, weight in enumerate(weights)) / total

    def compute_output_spec(self, images: Any, training: bool = False) -> Any:
        """Return the symbolic output: same shape."""
        return keras.KerasTensor(images.shape, dtype="float32")


class TrainingCrop(keras.layers.Layer):
    """Crop the center of each image in training.

    After the shift of `RandomAffine` this is a random crop. Smaller images train faster; `FullImagesLast` ends with
    full images, which the network takes later.

    Args:
        share: Share of the height and of the width, 0-1. It may change between epochs.
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
        """Return the symbolic output, whose height and width are unknown."""
        return keras.KerasTensor((images.shape[0], None, None, images.shape[3]), dtype="float32")


class FullImagesLast(keras.callbacks.Callback):
    """Train the last epochs on full images after a training on crops.

    A network trained on crops only is less accurate on full images; a few epochs correct that (Touvron et al. 2019,
    https://arxiv.org/abs/1906.06423).

    Args:
        share: Share of the side that the crops have, 0-1.
        first: Number of the first epoch, from 0, with full images.
    """

    def __init__(self, share: float, first: int):
        super().__init__()
        self.share, self.first = share, first

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Set the share of this epoch; retrace the training step if it changed."""
        trainer: Any = self.model
        share = self.share if epoch < self.first else 1.0
        for layer in trainer.get_layer("augmentation").layers:
            if isinstance(layer, TrainingCrop) and layer.share != share:
                layer.share = share
                trainer.make_train_function(force=True)


def full_images_last(options: AugmentationConfig, epochs: int) -> list[keras.callbacks.Callback]:
    """Return the callback that ends a training on crops with full images; none if the crop is the full image."""
    if options.crop == 1:
        return []
    fraction = options.full_image_epoch_fraction
    first = round(epochs * (1 - fraction))
    return [FullImagesLast(options.crop, min(first, epochs - 1) if fraction else first)]


class ToPixels(keras.layers.Layer):
    """Round to uint8, 0-255, the input type of the networks."""

    def call(self, images: Any) -> Any:
        """Return uint8 images."""
        return ops.cast(ops.round(ops.clip(images, 0, 255)), "uint8")


def build_augmentation(options: AugmentationConfig, input_shape: tuple[int, int, int], seed: int) -> keras.Model:
    """Return a model from uint8 images to two views of each, uint8 (n, height, width, channels).

    The first view has all augmentations and is the student's input. The second has no black boxes, no blur and no noise
    and is the teachers' input: their predictions are better if they see the whole face.

    Augmentations of strength zero add no layer. With `crop`, views are smaller in training.
    """
    inputs = keras.Input(input_shape, dtype="uint8")
    images = keras.layers.Rescaling(1.0, dtype="float32")(inputs)
    if options.flip or options.rotation or options.zoom or options.shift:
        images = RandomAffine(options.flip, options.rotation, options.zoom, options.shift, seed)(images)
    if options.contrast or options.brightness:
        images = RandomLight(options.contrast, options.brightness, seed + 1)(images)
    clean = images
    if options.small_erasing_count:
        images = RandomErasing(options.small_erasing_count, *options.small_erasing_size, seed + 2)(images)
    if options.cutout_max_size:
        images = RandomErasing(1, options.cutout_max_size, options.cutout_max_size, seed + 3)(images)
    if options.blur:
        images = RandomBlur(options.blur, seed + 5)(images)
    if options.noise:
        images = RandomNoise(options.noise, seed + 4)(images)
    views = [images, clean]
    if options.crop < 1:
        crop = TrainingCrop(options.crop)
        views = [crop(view) for view in views]
    return keras.Model(inputs, [ToPixels()(view) for view in views], name="augmentation")
