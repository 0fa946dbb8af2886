"""A training of a tiny network, for tests."""

import csv
from pathlib import Path

import keras

from configuration import TrainingConfig
from preprocessing.tables import read_table
from training.trainer import train_network

TINY = TrainingConfig(network="tiny", epochs=6, batch_size=8, learning_rate=0.02, precision="float32")


def build_tiny(input_shape, classes, dropout=0.2):
    inputs = keras.Input(input_shape, dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.AveragePooling2D(3)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax", dtype="float32")(x))


def history_of(models_folder: Path) -> list[dict[str, str]]:
    (file,) = models_folder.glob("runs/*/history.csv")
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def fit(folder: Path, model_file: Path, config: TrainingConfig = TINY, **options) -> bool:
    table = read_table(folder, "split.csv")
    return train_network(table, folder, model_file, config, "python -m some.step", **options)
