"""Train the configured or tuned network, fine-tune a pretrained one, or cross-validate.

Reads:  data/NAME/split.csv and its crops; with --settings a JSON file, such as models/NAME/tuned.json of step2_tuning
Writes: models/NAME/best.keras and its card (or --output); models/NAME/runs/ (history, curves, checkpoints)

    python -m training.step3_best_model --dataset fer2013
    python -m training.step3_best_model --dataset fer2013 --settings models/fer2013/tuned.json
    python -m training.step3_best_model --dataset ckplus --pretrained models/pretrained.keras
    python -m training.step3_best_model --dataset ckplus --folds 10
    python -m training.step3_best_model --dataset fer2013 --teacher models/fer2013/teachers

`--folds` trains one network per fold in `best-folds/`, with `--subject-dependent` in `best-subject-dependent-folds/`.
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
    TensorBoardFolder,
    dataset_folder,
    run,
    typed_command,
)
from common.errors import InputError
from common.logging import quiet_start
from configuration import BEST, FINE_TUNING, PATHS, PRETRAINED_STUDENT, SAMPLE_NAME, STUDENT
from inference.model_card import check_crops, read_card
from preprocessing.tables import crop_options, read_table
from training.cross_validation import SUBJECT_DEPENDENT, SUBJECT_INDEPENDENT, check_number, fit_folds
from training.settings import check_output, choose_settings, settings_images, teacher_files, tensorboard


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    settings: Annotated[
        Path | None,
        typer.Option(help="Settings: a tuned.json or a model card.", show_default="configuration.py"),
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option(
            help="Network to fine-tune; its architecture and weights are taken.", show_default="train from scratch"
        ),
    ] = None,
    teacher: Annotated[
        list[Path] | None, typer.Option(help="Teacher network for distillation, or a folder of them; may be repeated.")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="Targets: labels, or votes (distribution of the annotators' votes).", show_default=BEST.targets
        ),
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(help="Balance the loss by emotion, gender, gender+emotion, ...", show_default="off"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Number of epochs.",
            show_default=f"as in --settings; {FINE_TUNING.epochs} with --pretrained; {PRETRAINED_STUDENT.epochs} with "
            f"--pretrained and --teacher; else {BEST.epochs}",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate after warm-up.",
            show_default=f"as in --settings; {FINE_TUNING.learning_rate} with --pretrained; "
            f"{PRETRAINED_STUDENT.learning_rate} with --pretrained and --teacher; else {BEST.learning_rate}",
        ),
    ] = None,
    cutout_max_size: Annotated[
        int | None,
        typer.Option(
            help="Largest side of the Cutout box, pixels; 0: off.", show_default=str(BEST.augmentation.cutout_max_size)
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, mixed_bfloat16, or auto: the faster.", show_default=BEST.precision)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default=str(BEST.seed))] = None,
    output: Annotated[
        Path | None, typer.Option(help="File of the network.", show_default="models/NAME/best.keras")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=3, help="Cross-validate: train one network per fold of the split.")
    ] = None,
    subject_dependent: Annotated[
        bool, typer.Option("--subject-dependent", help="With --folds: use folds that ignore the subjects.")
    ] = False,
    devices: Devices = 1,
    board: TensorBoardFolder = None,
    force: Force = False,
) -> None:
    """Train the best network on a data set's training split; options take precedence over --settings."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported: mistakes are reported at once
    column = SUBJECT_DEPENDENT if subject_dependent else SUBJECT_INDEPENDENT
    model_file, command = output or models / dataset / "best.keras", typed_command()
    check_output(model_file)
    if folds is not None:
        check_number(table, folds, column, folder)
    elif subject_dependent:
        raise InputError("--subject-dependent needs --folds K")
    if pretrained is not None:
        check_crops(pretrained, read_card(pretrained), crop_options(folder), dataset)
    typed = {
        "targets": targets,
        "balance": balance,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
    }
    teachers = teacher_files(teacher or [])
    start = str(pretrained or "")
    from_scratch, further = (STUDENT, PRETRAINED_STUDENT) if teachers else (BEST, FINE_TUNING)
    configured = further if pretrained else from_scratch
    config = choose_settings(settings, teachers, start, typed, models / dataset, configured)
    if cutout_max_size is not None:
        config = replace(config, augmentation=replace(config.augmentation, cutout_max_size=cutout_max_size))
    if folds is not None and config.teachers:
        raise InputError("--folds does not support teachers: they may know the test images of a fold")
    hashes = settings_images(settings, table, dataset) if settings else None
    if folds is not None:
        fit_folds(
            table,
            folder,
            model_file,
            config,
            command,
            column,
            hashes,
            force,
            callbacks=tensorboard(board),
            devices=devices,
        )
        return
    with quiet_start():
        from training.trainer import train_network

    train_network(
        table, folder, model_file, config, command, hashes, force, callbacks=tensorboard(board), devices=devices
    )


if __name__ == "__main__":
    run(main)
