"""Train the configured best network.

Reads:  data/NAME/split.csv and the crops it names; with --settings a file of settings, such as the
        models/NAME/tuned.json of step2_tuning
Writes: models/NAME/best.keras and its card (or --output); models/NAME/runs/ (history, curves, states to resume from)

    python -m training.step3_best_model --dataset fer2013
    python -m training.step3_best_model --dataset fer2013 --settings models/fer2013/tuned.json
    python -m training.step3_best_model --dataset ckplus --pretrained models/pretrained.keras
    python -m training.step3_best_model --dataset ckplus --folds 10

With `--folds` it trains one network per fold: `best-folds/0.keras` and so on. With `--subject-dependent` they lie in
`best-subject-dependent-folds/`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import DataRoot, DatasetName, Force, ModelsRoot, dataset_folder, run, typed_command
from common.errors import InputError
from common.logging import quiet_start
from configuration import BEST, FINE_TUNING, PATHS, SAMPLE_NAME
from inference.keras_networks import check_output
from inference.model_card import check_crops, read_card
from preprocessing.tables import crop_options, read_table
from training.cross_validation import SUBJECT_DEPENDENT, SUBJECT_INDEPENDENT, check_number, fit_folds
from training.lineage import settings_images
from training.settings import read_settings, shortened, tuned_file


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="Settings: a tuned.json of step2_tuning, or a network's card.", show_default="configuration.py"
        ),
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option(
            help="A finished network to fine-tune, such as models/pretrained.keras; without --settings then by the "
            "configured FINE_TUNING.",
            show_default="from scratch",
        ),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="A finished network whose answers are learnt beside the labels; may be given several times."),
    ] = None,
    teacher_targets: Annotated[
        str | None,
        typer.Option(
            help="once: teachers answer about each training image; views: about what the network sees, in every step.",
            show_default=BEST.teacher_targets,
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="labels: the data set's own; votes: crowd votes as a distribution.", show_default=BEST.targets
        ),
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(
            help="Weigh the images so that this is balanced: emotion, gender, gender+emotion, ...",
            show_default="not balanced",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training split.", show_default=f"{BEST.epochs}, or as tuned")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step.", show_default=f"{BEST.batch_size}, or as tuned")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Step size at the start.", show_default=f"{BEST.learning_rate}, or as tuned")
    ] = None,
    cutout_max_size: Annotated[
        int | None,
        typer.Option(
            help="Largest side of a black box over half of the training images, pixels; 0: none.",
            show_default=str(BEST.augmentation.cutout_max_size),
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, mixed_bfloat16, or auto: the faster.", show_default=BEST.precision)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.", show_default=str(BEST.seed))] = None,
    output: Annotated[Path | None, typer.Option(help="Where the network goes; else models/NAME/best.keras.")] = None,
    folds: Annotated[
        int | None, typer.Option(min=3, help="Train one network per fold of the split: the number of its folds.")
    ] = None,
    subject_dependent: Annotated[
        bool, typer.Option("--subject-dependent", help="With --folds: folds that ignore who is in the pictures.")
    ] = False,
    force: Force = False,
) -> None:
    """Train the best known network on a data set's training split; typed options go before tuned settings."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported, so that a mistake is told at once
    column = SUBJECT_DEPENDENT if subject_dependent else SUBJECT_INDEPENDENT
    model_file = output or models / dataset / "best.keras"
    check_output(model_file)
    if folds is not None:
        check_number(table, folds, column, folder)
    elif subject_dependent:
        raise InputError("--subject-dependent goes with --folds K: it says which folds")
    if pretrained is not None:
        check_crops(pretrained, read_card(pretrained), crop_options(folder), dataset)
    with quiet_start():
        from training.trainer import train_network

    teachers = tuple(map(str, teacher or []))
    start = str(pretrained) if pretrained else ""
    config = read_settings(settings, teachers, start) if settings else FINE_TUNING if start else BEST
    print(f"settings: {settings or 'configuration.py'}", flush=True)
    tuned = tuned_file(models / dataset, targets or BEST.targets)
    if settings is None and not start and tuned.is_file():
        print(f"note: {tuned} is not used; to use it: --settings {tuned}", flush=True)
    settings_hashes = settings_images(settings, table, dataset) if settings else None
    typed = {
        "pretrained": start or None,
        "teachers": teachers or None,
        "teacher_targets": teacher_targets,
        "targets": targets,
        "balance": balance,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
        "augmentation": None
        if cutout_max_size is None
        else replace(config.augmentation, cutout_max_size=cutout_max_size),
    }
    config = shortened(replace(config, **{name: value for name, value in typed.items() if value is not None}))
    if teacher_targets is not None and not config.teachers:
        raise InputError("--teacher-targets says how teachers are asked; name them by --teacher A.keras")
    if folds is not None and config.teachers:
        raise InputError("teachers do not go with --folds: they may have learnt from the people of every fold")
    if folds is None:
        train_network(table, folder, model_file, config, typed_command(), settings_hashes, force)
    else:
        fit_folds(table, folder, model_file, config, typed_command(), column, settings_hashes, force)


if __name__ == "__main__":
    run(main)
