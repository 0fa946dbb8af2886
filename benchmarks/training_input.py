"""Time a training: reading and augmenting against Keras's generator, steps against Keras's batch norm, input's share.

    python -m benchmarks.training_input --dataset fer2013

Keras's `ImageDataGenerator.flow_from_dataframe` reads the same CSV and changes images as strongly. Each figure is the
median over pairs: Keras and ours on as many images, one after the other; the whole training step and the network
alone, step by step. Ratios decide, times inform. Prints a table; `--json FILE` keeps it.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from common.command_line import DataRoot, DatasetName, dataset_folder, progress_bar, run
from common.errors import InputError
from common.logging import quiet_start
from configuration import BEST, NO_AUGMENTATION, PATHS, SAMPLE_NAME, AugmentationConfig
from evaluation.report.writer import write_json
from preprocessing.tables import read_table, usable

Row = dict[str, Any]
COLD_IMAGES = 4000  # decoded anew, to time the first reading


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = BEST.batch_size,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of the reading test.")] = 15,
    batches: Annotated[int, typer.Option(min=1, help="Batches of each side in a pair.")] = 4,
    steps: Annotated[int, typer.Option(min=0, help="Pairs of the training step; 0: leave it out.")] = 40,
    precision: Annotated[str, typer.Option(help="float32, mixed_bfloat16, or auto: the faster.")] = BEST.precision,
    output: Annotated[Path | None, typer.Option("--json", help="File that keeps the figures.")] = None,
) -> None:
    """Compare our input path with Keras's generator, and a training step with Keras's and with its network alone."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")
    with quiet_start():
        import keras

        from training.trainer import choose_precision, read_batches
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"the backend is {keras.backend.backend()}; Keras's generator needs TensorFlow: KERAS_BACKEND")
    # What Keras's generator knows nothing of: mixing images, and training on parts of them.
    full_image_epoch_fraction = replace(BEST, mixup=0.0, augmentation=replace(BEST.augmentation, crop=1.0))
    config = replace(full_image_epoch_fraction, batch_size=batch_size, precision=precision)
    train, _, _ = read_batches(table, folder, config)
    rows = usable(table)
    rows = rows.loc[rows["split"] == "train"]
    results = [
        compare_reading(rows, folder, train, config.augmentation, rounds, batches),
        compare_first_reading(rows, folder, train.images.shape[1:], batch_size),
    ]
    if steps:
        config = replace(config, precision=choose_precision(train, config))
        results += [compare_normalization(train, config, steps), compare_step(train, config, steps)]
    print_table(results)
    if output:
        write_json(output, results)
        print(f"wrote {output}")


def keras_flow(
    rows: pd.DataFrame, folder: Path, shape: tuple[int, ...], batch_size: int, options: AugmentationConfig
) -> Any:
    """Return Keras's batches of the same images, changed as strongly as ours."""
    import tensorflow as tf

    generator: Any = tf.keras.preprocessing.image.ImageDataGenerator(  # type: ignore[attr-defined]
        rotation_range=options.rotation,
        width_shift_range=options.shift / shape[1],
        height_shift_range=options.shift / shape[0],
        zoom_range=options.zoom,
        horizontal_flip=options.flip,
        channel_shift_range=options.brightness,
        fill_mode="nearest",
        preprocessing_function=contrast_and_scars(options) if options.contrast or options.small_erasing_count else None,
    )
    return generator.flow_from_dataframe(
        rows,
        directory=folder,
        x_col="face_path",
        y_col="emotion",
        target_size=shape[:2],
        color_mode="grayscale" if shape[2] == 1 else "rgb",
        batch_size=batch_size,
        shuffle=True,
        seed=7,
    )


def contrast_and_scars(options: AugmentationConfig) -> Any:
    """Return what Keras's generator has no argument for, as one would write it in numpy."""
    random = np.random.default_rng(7)

    def change(image: np.ndarray) -> np.ndarray:
        mean = image.mean()
        image = np.clip((image - mean) * random.uniform(1 - options.contrast, 1 + options.contrast) + mean, 0, 255)
        for _ in range(options.small_erasing_count):
            if random.random() < 0.5:
                sides = (
                    random.integers(1, options.small_erasing_length + 1),
                    random.integers(1, options.small_erasing_width + 1),
                )
                height, width = sides if random.random() < 0.5 else sides[::-1]
                top = random.integers(0, image.shape[0] - height + 1)
                left = random.integers(0, image.shape[1] - width + 1)
                image[top : top + height, left : left + width] = 0
        return image

    return change


def compare_reading(
    rows: pd.DataFrame, folder: Path, train: Any, options: AugmentationConfig, rounds: int, batches: int
) -> Row:
    """Compare whole input paths: reading, shuffling, augmenting, targets."""
    import tensorflow as tf

    from training.augmentation import build_augmentation

    shape = train.images.shape[1:]
    theirs = keras_flow(rows, folder, shape, train.batch_size, options)
    augmentation = build_augmentation(options, shape, seed=7)
    compiled = tf.function(lambda images: augmentation(images, training=True))  # as in the training graph
    whole = [index for index in range(len(train)) if (index + 1) * train.batch_size <= len(train.images)] or [0]
    position = 0

    def read_ours() -> int:
        nonlocal position
        count = 0
        for _ in range(batches):
            images, _ = train[whole[position % len(whole)]]
            count += len(np.asarray(compiled(images)))
            position += 1
        return count

    def read_theirs() -> int:
        return sum(len(next(theirs)[0]) for _ in range(batches))

    pairs = []
    with progress_bar() as bar:
        for _ in bar.track(range(rounds + 1), description="reading"):  # the first round warms up
            start = time.perf_counter()
            count = read_theirs()
            middle = time.perf_counter()
            ours = read_ours()
            pairs.append((count / (middle - start), ours / (time.perf_counter() - middle)))
    work = "images/s, read and augmented"
    return rates(work, pairs[1:])


def compare_first_reading(rows: pd.DataFrame, folder: Path, shape: tuple[int, ...], batch_size: int) -> Row:
    """Compare the first reading alone: we decode every image once, Keras in every epoch."""
    from training.data import flow_from_dataframe

    rows = rows.iloc[:COLD_IMAGES]
    theirs = keras_flow(rows, folder, shape, batch_size, NO_AUGMENTATION)
    pairs = []
    for _ in range(3):
        start = time.perf_counter()
        for index in range(len(theirs)):
            _ = theirs[index]
        middle = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            for name in {Path(path).parts[0] for path in rows["face_path"]}:
                (Path(temporary) / name).symlink_to((folder / name).resolve())
            flow_from_dataframe(
                rows,
                Path(temporary),
                target_size=(shape[0], shape[1]),
                color_mode="grayscale" if shape[2] == 1 else "rgb",
            )
            seconds = time.perf_counter() - middle
        pairs.append((len(rows) / (middle - start), len(rows) / seconds))
    return rates("images/s, first reading, not augmented", pairs)


def rates(work: str, pairs: list[tuple[float, float]]) -> Row:
    """Return the medians of images per second and of their ratio."""
    return {
        "work": work,
        "keras": median(theirs for theirs, _ in pairs),
        "ours": median(ours for _, ours in pairs),
        "ratio": median(ours / theirs for theirs, ours in pairs),
    }


def compare_normalization(train: Any, config: Any, steps: int) -> Row:
    """Compare the network's own training step with batch normalisation as Keras computes it and as we do."""
    import keras

    from training.trainer import build_trainer

    config = replace(config, augmentation=NO_AUGMENTATION)
    network, ours = build_trainer(train, config)  # the network itself is what Keras would train
    theirs = keras.models.clone_model(network)
    off: Any = False
    theirs.compile(ours.optimizer.__class__(), ours.loss, jit_compile=off)
    batch = train[0]
    pairs = []
    with progress_bar() as bar:
        for _ in bar.track(range(steps + 1), description="batch norm"):  # the first step traces
            seconds = []
            for model in (theirs, ours):
                start = time.perf_counter()
                model.train_on_batch(*batch)
                seconds.append(time.perf_counter() - start)
            pairs.append((len(batch[0]) / seconds[0], len(batch[0]) / seconds[1]))
    return rates(f"images/s, training step of {network.name}, {config.precision}", pairs[1:])


def compare_step(train: Any, config: Any, steps: int) -> Row:
    """Compare a training step, from one batch's end to the next one's, with the same step on a batch that is there.

    The first is a plain `fit` with everything that it does; the second is the network's forward and backward pass and
    the optimiser alone. They take turns, so that a busy machine slows both. Reading and augmenting a batch takes its
    turn too: where the network takes most of the time, that small share is lost in the difference of two large times.
    """
    import keras
    import tensorflow as tf

    from training.augmentation import build_augmentation
    from training.trainer import build_trainer

    augmentation = build_augmentation(config.augmentation, train.images.shape[1:], seed=7)
    _, trainer = build_trainer(train, config)
    _, bare = build_trainer(train, replace(config, augmentation=NO_AUGMENTATION))
    images, labels = train[0]
    there = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
    bare.make_train_function()
    step: Any = bare.train_function  # type: ignore[attr-defined]
    compiled = tf.function(lambda images: augmentation(images, training=True))
    turns: list[tuple[float, float, float]] = []  # seconds: whole step, network alone, input alone

    class TakeTurns(keras.callbacks.Callback):
        """After each step of the training, run and time the network alone, then the input alone."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            _ = {name: float(value) for name, value in (logs or {}).items()}  # waits for the step's end
            end = time.perf_counter()
            whole = end - self.last if hasattr(self, "last") else 0.0
            _ = {name: float(value) for name, value in step(there).items()}
            alone = time.perf_counter() - end
            _ = np.asarray(compiled(train[batch % len(train)][0]))
            self.last = time.perf_counter()
            if whole:
                turns.append((whole, alone, self.last - end - alone))
                bar.advance(shown)
            trainer: Any = self.model
            trainer.stop_training = len(turns) > steps

    with progress_bar() as bar:
        shown = bar.add_task("training steps", total=steps + 1)
        silent: Any = 0
        epochs = steps // len(train) + 3
        trainer.fit(train, epochs=epochs, callbacks=[TakeTurns()], shuffle=False, verbose=silent)
    turns = turns[1:]  # the first step has traced the networks
    return {
        "work": f"training step of {train.batch_size} images, {config.network}, {config.precision}",
        "step_ms": 1000 * median(whole for whole, _, _ in turns),
        "network_ms": 1000 * median(alone for _, alone, _ in turns),
        "input_ms": 1000 * median(read for _, _, read in turns),
        "not_in_network": median(1 - alone / whole for whole, alone, _ in turns),
        "input_share": median(read / (alone + read) for _, alone, read in turns),
    }


def print_table(rows: list[Row]) -> None:
    """Print the figures as a table."""
    table = Table("work", "Keras", "ours", "ratio", "step ms", "network ms", "input ms", "not in the network", "input")
    for row in rows:
        cells = [f"{row[key]:.{digits}f}" if key in row else "" for key, digits in (
            ("keras", 0), ("ours", 0), ("ratio", 1), ("step_ms", 1), ("network_ms", 1), ("input_ms", 1))]  # fmt: skip
        shares = [f"{100 * row[key]:.1f} %" if key in row else "" for key in ("not_in_network", "input_share")]
        table.add_row(row["work"], *cells, *shares)
    Console(width=150).print(table)


if __name__ == "__main__":
    run(main)
