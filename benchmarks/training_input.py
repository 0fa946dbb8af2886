"""Compare training with Keras's own: reading and augmentation with `ImageDataGenerator`, and batch normalization.

    python -m benchmarks.training_input --dataset fer2013

Keras's generator reads the same CSV and augments as strongly. The last row gives the input's share of a training step.
Figures are medians over pairs that are measured in turn. Ratios are comparable between machines; times are not.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common import SEED, JsonFile, Row, compare, finish
from common.command_line import DataRoot, DatasetName, dataset_folder, run
from common.errors import InputError
from common.logging import quiet_start
from configuration import BEST, NO_AUGMENTATION, PATHS, SAMPLE_NAME, AugmentationConfig, TrainingConfig
from preprocessing.tables import read_table, usable

ROUNDS, BATCHES = 15, 4  # pairs of the reading test, and batches of each side in a pair
STEPS = 40  # pairs of the training step


def main(dataset: DatasetName = SAMPLE_NAME, data: DataRoot = PATHS.data, output: JsonFile = None) -> None:
    """Compare the input pipeline and the training step with Keras's own."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")
    with quiet_start():
        import keras

        from training.data.splits import read_batches
        from training.trainer import choose_precision
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"KERAS_BACKEND={keras.backend.backend()} does not run Keras's generator; use tensorflow")
    # Keras's generator has neither mixup nor training crops.
    config = replace(BEST, mixup=0.0, augmentation=replace(BEST.augmentation, crop=1.0))
    train, _, _ = read_batches(table, folder, config)
    rows = usable(table)
    rows = rows.loc[rows["split"] == "train"]
    read = input_pipeline(train, config)
    results = [compare_reading(rows, folder, train, read, config.augmentation)]
    config = replace(config, precision=choose_precision(train, config))
    finish([*results, *compare_step(train, read, config)], output)


def keras_flow(rows: pd.DataFrame, folder: Path, train: Any, options: AugmentationConfig) -> Any:
    """Return Keras's batches of the same images, augmented as strongly."""
    import tensorflow as tf

    height, width, channels = train.images.shape[1:]
    generator: Any = tf.keras.preprocessing.image.ImageDataGenerator(  # type: ignore[attr-defined]
        rotation_range=options.rotation,
        width_shift_range=options.shift / width,
        height_shift_range=options.shift / height,
        zoom_range=options.zoom,
        horizontal_flip=options.flip,
        channel_shift_range=options.brightness,
        fill_mode="nearest",
        preprocessing_function=contrast_and_erasing(options),
    )
    return generator.flow_from_dataframe(
        rows,
        directory=folder,
        x_col="face_path",
        y_col="emotion",
        target_size=(height, width),
        color_mode="grayscale" if channels == 1 else "rgb",
        batch_size=train.batch_size,
        shuffle=True,
        seed=SEED,
    )


def contrast_and_erasing(options: AugmentationConfig) -> Callable[[np.ndarray], np.ndarray]:
    """Return the augmentation that Keras's generator has no argument for, in numpy."""
    random = np.random.default_rng(SEED)

    def change(image: np.ndarray) -> np.ndarray:
        mean = image.mean()
        image = np.clip((image - mean) * random.uniform(1 - options.contrast, 1 + options.contrast) + mean, 0, 255)
        for _ in range(options.small_erasing_count):
            if random.random() < 0.5:
                sides = [int(random.integers(1, limit + 1)) for limit in options.small_erasing_size]
                height, width = sides if random.random() < 0.5 else sides[::-1]
                top = random.integers(0, image.shape[0] - height + 1)
                left = random.integers(0, image.shape[1] - width + 1)
                image[top : top + height, left : left + width] = 0
        return image

    return change


def input_pipeline(train: Any, config: TrainingConfig) -> Callable[[int], int]:
    """Return a function that reads and augments a batch, as the training graph does, and returns its size."""
    import tensorflow as tf

    from training.augmentation import build_augmentation

    augmentation = build_augmentation(config.augmentation, train.images.shape[1:], seed=SEED)
    compiled = tf.function(lambda images: augmentation(images, training=True)[0])
    whole = max(1, len(train.rows) // train.batch_size)  # batches of the full size
    return lambda index: len(np.asarray(compiled(train[index % whole][0])))


def compare_reading(
    rows: pd.DataFrame, folder: Path, train: Any, read: Callable[[int], int], options: AugmentationConfig
) -> Row:
    """Compare whole input pipelines: reading, shuffling, augmentation, targets."""
    theirs = keras_flow(rows, folder, train, options)
    row = compare(
        f"read and augment {BATCHES} batches of {train.batch_size} images, against ImageDataGenerator",
        lambda _: [next(theirs) for _ in range(BATCHES)],
        lambda turn: [read(BATCHES * turn + index) for index in range(BATCHES)],
        range(ROUNDS),
    )
    return row | {"images_per_second": BATCHES * min(train.batch_size, len(rows)) / row["ours_ms"] * 1000}


def compare_step(train: Any, read: Callable[[int], int], config: TrainingConfig) -> list[Row]:
    """Compare a training step with Keras's batch normalization, and with the input of a batch."""
    import keras

    from training.trainer import build_trainer

    network, ours = build_trainer(train, replace(config, augmentation=NO_AUGMENTATION))
    theirs = keras.models.clone_model(network)  # plain Keras would train the network itself
    off: Any = False
    theirs.compile(ours.optimizer.__class__(), ours.loss, jit_compile=off)
    batch = train[0]
    work = f"training step of {network.name}, {config.precision}"
    steps = range(STEPS)
    normalization = compare(
        f"{work}, against Keras's batch normalization",
        lambda _: theirs.train_on_batch(*batch),
        lambda _: ours.train_on_batch(*batch),
        steps,
    )
    share = compare(f"input of a batch, against the {work}", lambda _: ours.train_on_batch(*batch), read, steps)
    total = share["reference_ms"] + share["ours_ms"]
    return [normalization, share | {"input_share": share["ours_ms"] / total}]


if __name__ == "__main__":
    run(main)
