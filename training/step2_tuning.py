"""Search for better settings of the configured network.

Reads:  data/NAME/split.csv and the crops it names
Writes: models/NAME/tuned.json, which step3_best_model reads; models/NAME/tuning.journal, the study (or --storage);
        models/NAME/tuning/ (trials.csv; history, importance and parallel coordinates as PNG)

    python -m training.step2_tuning --dataset fer2013

Start it several times to use several processes; start it again after a kill to go on.
"""

from dataclasses import replace
from typing import Annotated

import typer

from common.command_line import DataRoot, DatasetName, ModelsRoot, dataset_folder, run, typed_command
from common.logging import quiet_start
from configuration import BEST, PATHS, SAMPLE_NAME, SAMPLE_TUNING, TUNING
from preprocessing.tables import read_table


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    targets: Annotated[
        str, typer.Option(help="labels: the data set's own; votes: crowd votes as a distribution.")
    ] = BEST.targets,
    trials: Annotated[
        int | None,
        typer.Option(
            help="Trials of the whole study, all processes and restarts together.",
            show_default=f"{TUNING.trials}; sample: {SAMPLE_TUNING.trials}",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes of one trial, at most.", show_default=f"{TUNING.epochs}; sample: {SAMPLE_TUNING.epochs}"
        ),
    ] = None,
    train_images: Annotated[
        int, typer.Option(help="Training images of a trial, drawn once for all trials; 0: all.")
    ] = TUNING.train_images,
    timeout: Annotated[
        float, typer.Option(help="Minutes after which this process starts no further trial; 0: never.")
    ] = TUNING.timeout,
    seed: Annotated[int, typer.Option(help="Seed of the study and of every trial.")] = TUNING.seed,
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that several machines share; else the journal file.")
    ] = None,
) -> None:
    """Search for better settings on a data set's training split, judged on its dev split."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported, so that a mistake is told at once
    with quiet_start():
        from training.tuning import tune

    tuning = SAMPLE_TUNING if dataset == SAMPLE_NAME else TUNING
    tuning = replace(
        tuning,
        trials=tuning.trials if trials is None else trials,
        epochs=tuning.epochs if epochs is None else epochs,
        train_images=train_images,
        timeout=timeout,
        seed=seed,
    )
    base = replace(BEST, targets=targets)
    tune(table, folder, models / dataset, base, tuning, typed_command(), storage)


if __name__ == "__main__":
    run(main)
