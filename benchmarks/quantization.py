"""What a smaller number format costs and gains: the network in float32, float16 and int8, on the same faces.

    python -m benchmarks.quantization --dataset fer2013 --model models/pretrained.keras

Each variant is converted from the same `.keras` and answers the data set's dev split; time is the median over rounds in
which all variants take one face after the other, in changing order. Accuracy decides, times inform. int8 is calibrated
on training images. Prints a table; `--json FILE` keeps it.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from common.command_line import DataRoot, DatasetName, dataset_folder, run
from common.emotions import relate
from common.errors import InputError
from common.files import named_errors
from common.logging import quiet_start
from configuration import PATHS, SAMPLE_NAME
from evaluation.report.writer import write_json
from inference.emotion_classifier import EmotionClassifier
from inference.litert import Network
from inference.model_card import read_card
from preprocessing.datasets.votes import with_majority_labels
from preprocessing.tables import labels_of, read_table, usable

CALIBRATION = 400  # training images that int8's ranges are taken from
BATCH = 64  # images at once while accuracy is measured
THREADS = 2
VARIANTS = ("float32", "float16 weights", "int8 weights", "int8")


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    model: Annotated[Path, typer.Option(help="Trained network; its card lies beside it.")] = PATHS.pretrained,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds over all variants.")] = 300,
    output: Annotated[Path | None, typer.Option("--json", help="File that keeps the figures.")] = None,
) -> None:
    """Compare number formats of a network by accuracy, size and time for one face."""
    folder = dataset_folder(data, dataset)
    table, card = read_table(folder, "split.csv"), read_card(model)
    if card.targets == "votes":
        table = with_majority_labels(table)
    rows = usable(table)
    rule = relate(card.labels, labels_of(rows))
    dev = rows.loc[(rows["split"] == "dev") & rows["emotion"].isin(rule.labels)]
    known = rows.loc[rows["split"] == "train"]
    if dev.empty or known.empty:
        raise InputError(f"{folder / 'split.csv'} needs usable train and dev images; split again with step3_split")
    with quiet_start():
        import keras

        from training.data import read_crops

        if keras.backend.backend() != "tensorflow":
            raise InputError(f"the backend is {keras.backend.backend()}; TensorFlow converts networks: KERAS_BACKEND")
        classifier = EmotionClassifier.load(model)
        images = read_crops(classifier, folder, dev)
        ranges = read_crops(classifier, folder, known.sample(min(CALIBRATION, len(known)), random_state=7))
    truth = np.array([rule.labels.index(emotion) for emotion in dev["emotion"]])
    columns = list(rule.columns)
    with tempfile.TemporaryDirectory() as scratch:
        networks = convert(model, ranges, Path(scratch))
        sizes = {name: (Path(scratch) / f"{name}.tflite").stat().st_size for name in networks}
        predictions = {name: ask(network, images)[:, columns] for name, network in networks.items()}
        times = time_one_face(networks, images, rounds)
    results = [
        {
            "variant": name,
            "kilobytes": round(sizes[name] / 1024),
            "accuracy": round(float((predictions[name].argmax(1) == truth).mean()), 4),
            "same_answer": round(float((predictions[name].argmax(1) == predictions["float32"].argmax(1)).mean()), 4),
            "milliseconds": round(1000 * times[name], 3),
            "speed": round(times["float32"] / times[name], 2),
        }
        for name in networks
    ]
    print_table(results, f"{model.name} on {dataset}, dev split, n = {len(dev):,}; one face, {THREADS} threads")
    if output:
        write_json(output, results)
        print(f"wrote {output}")


def convert(model: Path, images: np.ndarray, folder: Path) -> dict[str, Network]:
    """Convert a network into every format.

    Args:
        model: The `.keras` file.
        images: uint8 (n, side, side, channels), from which int8 learns the ranges of its activations.
        folder: Where the converted files go, one per format.
    """
    with quiet_start():
        import keras
        import tensorflow as tf

        network: Any = keras.models.load_model(model, compile=False, safe_mode=True)
        for name in VARIANTS:
            lite: Any = tf.lite  # type: ignore[attr-defined]
            converter = lite.TFLiteConverter.from_keras_model(network)
            if name != "float32":
                converter.optimizations = [lite.Optimize.DEFAULT]
            if name == "float16 weights":
                converter.target_spec.supported_types = [tf.float16]
            if name == "int8":
                converter.representative_dataset = lambda: ([image[None]] for image in images)
            with named_errors(folder):
                (folder / f"{name}.tflite").write_bytes(converter.convert())
    return {name: Network(folder / f"{name}.tflite", THREADS) for name in VARIANTS}


def ask(network: Network, images: np.ndarray) -> np.ndarray:
    """Return a network's probabilities, (n, classes), for images, uint8 (n, side, side, channels)."""
    return np.concatenate([network(images[start : start + BATCH])[0] for start in range(0, len(images), BATCH)])


def time_one_face(networks: dict[str, Network], images: np.ndarray, rounds: int) -> dict[str, float]:
    """Return the median time of each network for one face, in seconds."""
    order, times = np.random.default_rng(7), {name: [] for name in networks}
    for network in networks.values():
        network(images[:1])
    for turn in range(rounds):
        image = images[turn % len(images)][None]
        for name in order.permutation(list(networks)):
            start = time.perf_counter()
            networks[name](image)
            times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def print_table(results: list[dict[str, Any]], title: str) -> None:
    """Print one line per variant."""
    table = Table("format", "size, KiB", "accuracy, %", "answers as float32, %", "ms", "times as fast", title=title)
    for row in results:
        table.add_row(
            row["variant"],
            f"{row['kilobytes']:,}",
            f"{100 * row['accuracy']:.2f}",
            f"{100 * row['same_answer']:.2f}",
            f"{row['milliseconds']:.2f}",
            f"{row['speed']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    run(main)
