"""Train the network of one of two student projects, as a baseline.

Reads:  data/NAME/split.csv and its crops
Writes: models/NAME/baseline_NETWORK.keras and its card; models/NAME/runs/ (history, curves, checkpoints)

    python -m training.step1_baseline --dataset fer2013 --network project1
"""

from dataclasses import replace
from typing import Annotated

import typer

from common.command_line import (
    DataRoot,
    DatasetName,
    Force,
    ModelsRoot,
    TensorBoardFolder,
    dataset_folder,
    run,
    typed_command,
)
from common.errors import InputError
from common.logging import quiet_start
from configuration import BASELINES, PATHS, SAMPLE_NAME
from preprocessing.tables import read_table
from training.settings import tensorboard


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    network: Annotated[str, typer.Option(help=f"Baseline: {' or '.join(BASELINES)}.")] = "project1",
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.", show_default="as in configuration.py")] = None,
    board: TensorBoardFolder = None,
    force: Force = False,
) -> None:
    """Train a student project's network on a data set's training split."""
    if network not in BASELINES:
        raise InputError(f"--network {network!r} is not one of {', '.join(BASELINES)}")
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported: mistakes are reported at once
    with quiet_start():
        from training.trainer import train_network

    config = BASELINES[network]
    if epochs is not None:
        config = replace(config, epochs=epochs)
    model_file = models / dataset / f"baseline_{network}.keras"
    train_network(table, folder, model_file, config, typed_command(), force=force, callbacks=tensorboard(board))


if __name__ == "__main__":
    run(main)
