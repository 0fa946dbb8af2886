"""Search for better hyperparameters of the configured network.

Reads:  data/NAME/split.csv and its crops
Writes: models/NAME/tuned.json, for step3_best_model --settings; models/NAME/tuning.db, the study (or --storage);
        models/NAME/tuning/ (trials.csv, and plots of the history, the importance and parallel coordinates)

    python -m training.step2_tuning --dataset fer2013

Start it several times to use several processes. Start it again after an interruption to continue.
"""

from dataclasses import replace
from typing import Annotated

import typer

from common.command_line import (
    DataRoot,
    DatasetName,
    ModelsRoot,
    Targets,
    TensorBoardFolder,
    dataset_folder,
    run,
    typed_command,
)
from common.logging import quiet_start
from configuration import BEST, PATHS, SAMPLE_NAME, SAMPLE_TUNING, TUNING
from preprocessing.tables import read_table
from training.settings import tensorboard


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    targets: Targets = BEST.targets,
    trials: Annotated[
        int | None,
        typer.Option(
            help="Trials of the whole study, over all processes and restarts.",
            show_default=f"{TUNING.trials}; sample: {SAMPLE_TUNING.trials}",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Largest number of epochs of a trial.",
            show_default=f"{TUNING.epochs}; sample: {SAMPLE_TUNING.epochs}",
        ),
    ] = None,
    train_images: Annotated[
        int, typer.Option(help="Random subset of training images, same for all trials; 0: all.")
    ] = TUNING.train_images,
    storage: Annotated[
        str | None, typer.Option(help="Database URL of the study.", show_default="SQLite file in the models folder")
    ] = None,
    board: TensorBoardFolder = None,
) -> None:
    """Search for better hyperparameters on the training split, by dev accuracy."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported: mistakes are reported at once
    with quiet_start():
        from training.tuning import tune

    budget = {"trials": trials, "epochs": epochs, "train_images": train_images}
    tuning = replace(
        SAMPLE_TUNING if dataset == SAMPLE_NAME else TUNING,
        **{name: value for name, value in budget.items() if value is not None},
    )
    base, command = replace(BEST, targets=targets), typed_command()
    tune(table, folder, models / dataset, base, tuning, command, storage, tensorboard(board))


if __name__ == "__main__":
    run(main)
