"""Compare number formats of a network: float32, float16 weights, int8 weights and full int8, on the same faces.

    python -m benchmarks.quantization --dataset fer2013 --model models/pretrained.keras

Every format is converted from the same `.keras` and classifies the dev split. Times are medians over rounds in which
all formats classify one face, in changing order. Full int8 is calibrated on training images.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.common import SEED, JsonFile, finish
from common.command_line import DataRoot, DatasetName, dataset_folder, run
from common.emotions import relate
from common.errors import InputError
from common.logging import quiet_start
from configuration import PATHS, SAMPLE_NAME
from inference.emotion_classifier import EmotionClassifier
from inference.litert import Network
from inference.model_card import read_card
from preprocessing.datasets.votes import has_votes, with_majority_labels
from preprocessing.tables import labels_of, read_table, usable

ROUNDS = 300  # of the timing
CALIBRATION = 400  # training images that give the ranges of full int8
BATCH = 64  # images
THREADS = 2
FORMATS = ("float32", "float16 weights", "int8 weights", "int8")


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    model: Annotated[Path, typer.Option(help="Trained network, with its card beside it.")] = PATHS.pretrained,
    output: JsonFile = None,
) -> None:
    """Compare number formats of a network by accuracy, size and time for one face."""
    folder = dataset_folder(data, dataset)
    table, card = read_table(folder, "split.csv"), read_card(model)
    rows = usable(with_majority_labels(table) if card.targets == "votes" and has_votes(table) else table)
    rule = relate(card.labels, labels_of(rows))
    dev = rows.loc[(rows["split"] == "dev") & rows["emotion"].isin(rule.labels)]
    train = rows.loc[rows["split"] == "train"]
    if dev.empty or train.empty:
        raise InputError(f"{folder / 'split.csv'} has no usable train or dev images; run step3_split again")
    with quiet_start():
        import keras

        from training.data import read_crops

        if keras.backend.backend() != "tensorflow":
            raise InputError(f"KERAS_BACKEND={keras.backend.backend()} cannot convert networks; use tensorflow")
        classifier = EmotionClassifier.load(model)
        images = read_crops(classifier, folder, dev)
        calibration = read_crops(classifier, folder, train.sample(min(CALIBRATION, len(train)), random_state=SEED))
    truth = np.array([rule.labels.index(emotion) for emotion in dev["emotion"]])
    with tempfile.TemporaryDirectory() as scratch:
        networks = convert(model, calibration, Path(scratch))
        sizes = {name: (Path(scratch) / f"{name}.tflite").stat().st_size for name in networks}
        labels = {name: predict(network, images)[:, list(rule.columns)].argmax(1) for name, network in networks.items()}
        seconds = time_one_face(networks, images)
    results = [
        {
            "work": name,
            "reference_ms": 1000 * seconds["float32"],
            "ours_ms": 1000 * seconds[name],
            "ratio": seconds["float32"] / seconds[name],
            "kilobytes": round(sizes[name] / 1024),
            "accuracy": round(float((labels[name] == truth).mean()), 4),
            "agrees_with_float32": round(float((labels[name] == labels["float32"]).mean()), 4),
        }
        for name in networks
    ]
    title = f"{model.name} on {dataset}, dev split, n = {len(dev):,}; one face, {THREADS} threads, against float32"
    finish(results, output, title)


def convert(model: Path, images: np.ndarray, folder: Path) -> dict[str, Network]:
    """Convert a network into every format.

    Args:
        model: The `.keras` file.
        images: uint8 (n, side, side, channels) that calibrate full int8.
        folder: Folder for the converted files.
    """
    with quiet_start():
        import keras
        import tensorflow as tf

        network: Any = keras.models.load_model(model, compile=False, safe_mode=True)
        lite: Any = tf.lite  # type: ignore[attr-defined]
        for name in FORMATS:
            converter = lite.TFLiteConverter.from_keras_model(network)
            if name != "float32":
                converter.optimizations = [lite.Optimize.DEFAULT]
            if name == "float16 weights":
                converter.target_spec.supported_types = [tf.float16]
            if name == "int8":
                converter.representative_dataset = lambda: ([image[None]] for image in images)
            (folder / f"{name}.tflite").write_bytes(converter.convert())
    return {name: Network(folder / f"{name}.tflite", THREADS) for name in FORMATS}


def predict(network: Network, images: np.ndarray) -> np.ndarray:
    """Return probabilities, (n, classes), for images, uint8 (n, side, side, channels)."""
    return np.concatenate([network(images[start : start + BATCH])[0] for start in range(0, len(images), BATCH)])


def time_one_face(networks: dict[str, Network], images: np.ndarray) -> dict[str, float]:
    """Return the median time of each network for one face, in seconds."""
    order, times = np.random.default_rng(SEED), {name: [] for name in networks}
    for network in networks.values():
        network(images[:1])
    for turn in range(ROUNDS):
        image = images[turn % len(images)][None]
        for name in order.permutation(list(networks)):
            start = time.perf_counter()
            networks[name](image)
            times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


if __name__ == "__main__":
    run(main)
