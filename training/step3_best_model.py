"""Train the configured best network.

Reads:  data/NAME/split.csv and the crops it names; with --settings a file of settings, such as the
        models/NAME/tuned.json of step2_tuning
Writes: models/NAME/best.keras and its card (or --output); models/NAME/runs/ (history, curves, states to resume from)

    python -m training.step3_best_model --dataset fer2013
    python -m training.step3_best_model --dataset fer2013 --settings models/fer2013/tuned.json
    python -m training.step3_best_model --dataset ckplus --start-from models/pretrained.keras
    python -m training.step3_best_model --dataset ckplus --folds 10

With `--folds` it trains one network per fold, `best-folds/0.keras` and so on (`--loose`: `best-loose-folds/`).
"""

import sys
from pathlib import Path
from typing import Annotated

if not __package__:  # run as a plain file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import replace

import typer

from configuration import BEST, FINE_TUNING, PATHS, SAMPLE
from inference.keras_networks import check_output
from inference.model_card import check_crops, read_card
from preprocessing.command_line import (
    DataRoot,
    DatasetName,
    Force,
    ModelsRoot,
    dataset_folder,
    run,
    typed_command,
)
from preprocessing.errors import InputError
from preprocessing.image_tables import crop_options, read_table
from preprocessing.quiet import quiet_start
from training.folds import LOOSE, STRICT, check_number, fit_folds
from training.lineage import settings_images
from training.settings import read_settings, shortened, tuned_file


def main(
    dataset: DatasetName = SAMPLE.name,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="Settings: a tuned.json of step2_tuning, or a network's card.", show_default="configuration.py"
        ),
    ] = None,
    start_from: Annotated[
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
    teaching: Annotated[
        str | None,
        typer.Option(
            help="once: teachers answer about each training image; views: about what the network sees, in every step.",
            show_default=BEST.teaching,
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
    cover: Annotated[
        int | None,
        typer.Option(
            help="Largest side of a black box over half of the training images, pixels; 0: none.",
            show_default=str(BEST.augmentation.cover),
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
    loose: Annotated[
        bool, typer.Option("--loose", help="With --folds: folds that ignore who is in the pictures.")
    ] = False,
    force: Force = False,
) -> None:
    """Train the best known network on a data set's training split; typed options go before tuned settings."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")  # before Keras is imported, so that a mistake is told at once
    column = LOOSE if loose else STRICT
    model_file = output or models / dataset / "best.keras"
    check_output(model_file)
    if folds is not None:
        check_number(table, folds, column, folder)
    elif loose:
        raise InputError("--loose goes with --folds K: it says which folds")
    if start_from is not None:
        check_crops(start_from, read_card(start_from), crop_options(folder), dataset)
    with quiet_start():
        from training.fitting import fit_table

    teachers = tuple(map(str, teacher or []))
    start = str(start_from) if start_from else ""
    fitting = read_settings(settings, teachers, start) if settings else FINE_TUNING if start else BEST
    print(f"settings: {settings or 'configuration.py'}", flush=True)
    tuned = tuned_file(models / dataset, targets or BEST.targets)
    if settings is None and not start and tuned.is_file():
        print(f"note: {tuned} is not used; to use it: --settings {tuned}", flush=True)
    settings_hashes = settings_images(settings, table, dataset) if settings else None
    typed = {
        "start_from": start or None,
        "teachers": teachers or None,
        "teaching": teaching,
        "targets": targets,
        "balance": balance,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
        "augmentation": None if cover is None else replace(fitting.augmentation, cover=cover),
    }
    fitting = shortened(replace(fitting, **{name: value for name, value in typed.items() if value is not None}))
    if teaching is not None and not fitting.teachers:
        raise InputError("--teaching says how teachers are asked; name them by --teacher A.keras")
    if folds is not None and fitting.teachers:
        raise InputError("teachers do not go with --folds: they may have learnt from the people of every fold")
    if folds is None:
        fit_table(table, folder, model_file, fitting, typed_command(), settings_hashes, force)
    else:
        fit_folds(table, folder, model_file, fitting, typed_command(), column, settings_hashes, force)


if __name__ == "__main__":
    run(main)
