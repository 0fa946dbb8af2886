"""Evaluate trained networks on a held-out split, and compare them.

Reads:  networks and their cards; data/NAME/split.csv and its crops
Writes: reports/NAME/MODEL/SPLIT-TRUTH/: report.html, metrics.json, predictions.csv, classification_report.txt, and
        each figure as PNG and CSV; for several models also reports/NAME/comparison-A-B/SPLIT-TRUTH/.
        SPLIT-TRUTH is for example test-labels, dev-majority or folds-labels; --pictures and --quick are appended.

    python -m evaluation.model_evaluation --dataset fer2013 --model models/fer2013/best.keras --split test
    python -m evaluation.model_evaluation --dataset fer2013 --model A.keras --model B.keras
    python -m evaluation.model_evaluation --dataset ckplus --folds
"""

from pathlib import Path
from typing import Annotated

import typer

from common.command_line import DataRoot, DatasetName, ModelsRoot, ReportsRoot, dataset_folder, run
from configuration import PATHS, SAMPLE_NAME
from evaluation.evaluator import evaluate
from evaluation.request import Request
from evaluation.selection import default_model
from preprocessing.tables import SPLITS


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    reports: ReportsRoot = PATHS.reports,
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Network; repeat to compare. [default: MODELS/DATASET/best.keras, or the only network]"),
    ] = None,
    split: Annotated[str | None, typer.Option(help=f"{', '.join(SPLITS)}. [default: test, else dev]")] = None,
    truth: Annotated[
        str | None,
        typer.Option(help="labels: of the data set; majority: of the annotators. [default: as in training]"),
    ] = None,
    groups: Annotated[
        list[str] | None, typer.Option(help="Column to compare groups by, such as gender; repeatable.")
    ] = None,
    group_table: Annotated[
        Path | None, typer.Option(help="CSV with further columns for --groups, joined by path.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Images in folders named by emotion, for end-to-end evaluation.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Also report flip test-time augmentation (TTA).")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use fewer resamples and images, and no gallery: takes seconds.")
    ] = False,
    no_faces: Annotated[bool, typer.Option("--no-faces", help="Leave images of people out of the report.")] = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="First fit temperature and threshold on dev, and write them to the card."),
    ] = False,
    update_card: Annotated[bool, typer.Option("--update-card", help="Write the scores into the card.")] = False,
    folds: Annotated[
        bool, typer.Option("--folds", help="Evaluate the networks of step3_best_model --folds, each on its fold.")
    ] = False,
) -> None:
    """Evaluate trained networks on a held-out split, and compare them."""
    files = model or [models / dataset / "best.keras" if folds else default_model(models / dataset)]
    evaluate(
        Request(
            dataset_folder(data, dataset), files, reports / dataset, split, truth, groups or [], group_table, pictures,
            flip, quick, not no_faces, calibrate, update_card, folds,
        )
    )  # fmt: skip


def console() -> None:
    """Run the installed command."""
    run(main)


if __name__ == "__main__":
    console()
