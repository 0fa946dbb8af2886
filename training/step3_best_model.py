"""Train the configured best network.

Reads:  data/NAME/split.csv and the crops it names
Writes: models/NAME/best.keras and its card (or --output); models/NAME/runs/ (history, curves, states to resume from)

    python -m training.step3_best_model --dataset fer2013
"""

import sys
from pathlib import Path
from typing import Annotated

if not __package__:  # run as a plain file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import replace

import typer

from configuration import BEST, PATHS, SAMPLE
from preprocessing.command_line import (
    DataRoot,
    DatasetName,
    ModelsRoot,
    dataset_folder,
    run,
    typed_command,
)
from preprocessing.image_tables import read_table
from preprocessing.quiet import quiet_start


def main(
    dataset: DatasetName = SAMPLE.name,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = BEST.epochs,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = BEST.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Step size at the start.")] = BEST.learning_rate,
    precision: Annotated[str, typer.Option(help="float32, mixed_bfloat16, or auto: the faster.")] = BEST.precision,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = BEST.seed,
    output: Annotated[Path | None, typer.Option(help="Where the network goes; else models/NAME/best.keras.")] = None,
) -> None:
    """Train the best known network on a data set's training split."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported, so that a mistake is told at once
    with quiet_start():
        from training.fitting import fit_table

    fitting = replace(
        BEST, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, precision=precision, seed=seed
    )
    fit_table(table, folder, output or models / dataset / "best.keras", fitting, typed_command())


if __name__ == "__main__":
    run(main)
