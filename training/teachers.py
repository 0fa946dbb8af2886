r"""Train the teachers of a distilled network: networks with different widths and seeds.

Reads:  data/NAME/split.csv and its crops
Writes: models/NAME/teachers/1.keras, 2.keras, ... and their cards (or --output); their runs beside them

    python -m training.teachers         --dataset fer2013
    python -m training.step3_best_model --dataset fer2013 --teacher models/fer2013/teachers \
        --pretrained models/fer2013/teachers/1.keras

`TEACHERS` in configuration.py lists them. An interrupted training resumes; a finished teacher is not trained again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import (
    DataRoot,
    DatasetName,
    Devices,
    Force,
    ModelsRoot,
    Targets,
    TensorBoardFolder,
    dataset_folder,
    run,
    step_command,
    typed_command,
)
from common.logging import quiet_start
from configuration import BEST, PATHS, SAMPLE_NAME, TEACHERS
from preprocessing.tables import read_table
from training.settings import check_output, shortened, tensorboard


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    targets: Targets = BEST.targets,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Number of epochs of each teacher.", show_default="as in configuration.py")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the teachers.", show_default="models/NAME/teachers")
    ] = None,
    devices: Devices = 1,
    board: TensorBoardFolder = None,
    force: Force = False,
) -> None:
    """Train the teachers of a distilled network, one after the other."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported: mistakes are reported at once
    teachers, command = output or models / dataset / "teachers", typed_command()
    files = [teachers / f"{number}.keras" for number in range(1, len(TEACHERS) + 1)]
    for file in files:
        check_output(file)
    with quiet_start():
        from training.trainer import train_network

    callbacks = tensorboard(board)
    for file, config in zip(files, TEACHERS, strict=True):
        config = shortened(replace(config, targets=targets, epochs=epochs or config.epochs))
        train_network(table, folder, file, config, command, force=force, callbacks=callbacks, devices=devices)
    options = ["--teacher", teachers, "--pretrained", files[0], "--targets", targets]
    if models != PATHS.models:
        options += ["--models", models]
    step = step_command("training.step3_best_model", folder, *options)
    print(f"train the first one further on all of them: {step}")


if __name__ == "__main__":
    run(main)
