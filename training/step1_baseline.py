"""Train one of the two student projects' networks: the floor that everything later is measured against.

Reads:  data/NAME/split.csv and the crops it names
Writes: models/NAME/baseline_NETWORK.keras and its card; models/NAME/runs/ (history, curves, states to resume from)

    python -m training.step1_baseline --dataset fer2013 --network project1
"""

from dataclasses import replace
from typing import Annotated

import typer

from common.command_line import DataRoot, DatasetName, Force, ModelsRoot, dataset_folder, run, typed_command
from common.errors import InputError
from common.logging import quiet_start
from configuration import BASELINES, PATHS, SAMPLE_NAME
from preprocessing.tables import read_table


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    network: Annotated[str, typer.Option(help=f"Which baseline: {' or '.join(BASELINES)}.")] = "project1",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split; else the baseline's own.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run; else the baseline's own.")] = None,
    force: Force = False,
) -> None:
    """Train a student project's network on a data set's training split."""
    if network not in BASELINES:
        raise InputError(f"--network {network!r} is not one of {', '.join(BASELINES)}")
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported, so that a mistake is told at once
    with quiet_start():
        from training.trainer import train_network

    model_file = models / dataset / f"baseline_{network}.keras"
    config = BASELINES[network]
    if epochs is not None:
        config = replace(config, epochs=epochs)
    if seed is not None:
        config = replace(config, seed=seed)
    train_network(table, folder, model_file, config, typed_command(), force=force)


if __name__ == "__main__":
    run(main)
