"""The report of one model: files, page, and summary on the console."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from common.command_line import progress_bar, typed_command
from evaluation.request import Task
from preprocessing.tables import write_table

if TYPE_CHECKING:  # they import Keras and matplotlib
    from evaluation.predictions import Predictions
    from evaluation.report.section import Section
    from evaluation.report.writer import Page

Part = Callable[[], "Section | None"]


def write_model_report(
    task: Task,
    predictions: "Predictions",
    parts: Callable[[Path], list[Part]],
    report: Path,
    inputs: dict[str, Any],
) -> dict[str, Any]:
    """Write the report of one model, print a summary, and return the content of `metrics.json`."""
    from evaluation.report.writer import report_folder, write_report
    from evaluation.sections.provenance import banner, protocol

    with report_folder(report) as folder:
        _write_predictions(predictions, folder)
        with progress_bar() as bar:
            made = [part() for part in bar.track(parts(folder), description=f"evaluating {predictions.name}")]
        sections = [section for section in made if section]
        performance = sections[0].values
        metrics = {
            "dataset": task.folder.name,
            "split": task.split,
            "model": predictions.model_file.name,
            "protocol": protocol(predictions),
            "labels": list(predictions.labels),
            "label_rule": predictions.rule.text,
            "left_out": predictions.left_out,
            "held_out": predictions.exposure.held_out,
            "banner": banner(predictions),
            "notes": [warning for section in sections for warning in section.warnings],
            "n": len(predictions.rows),
            **{score: performance["scores"][score] for score in ("accuracy", "balanced_accuracy", "macro_f1")},
            "accuracy_interval": performance["intervals"]["accuracy"],
            "per_emotion": {
                label: {score: entry[score]["value"] for score in ("precision", "recall", "f1")}
                for label, entry in performance["per_emotion"].items()
            },
            "inputs": inputs,
        }
        page = _page(task, predictions, performance, inputs)
        metrics = write_report(folder, page, sections, metrics, task.request.show_faces)
    print_summary(metrics, report)
    return metrics


def _write_predictions(predictions: "Predictions", report: Path) -> None:
    from evaluation.metrics.scores import probability_columns

    table = pd.DataFrame(
        {"path": predictions.rows["path"], "truth": predictions.rows["emotion"], "prediction": predictions.prediction}
    )
    if predictions.fold_column:
        table.insert(1, "fold", predictions.rows[predictions.fold_column])
    table = table.assign(**probability_columns(predictions.probabilities, predictions.labels))
    write_table(table, report / "predictions.csv")


def _page(task: Task, predictions: "Predictions", performance: dict[str, Any], inputs: dict[str, Any]) -> "Page":
    from evaluation.report.section import interval_text
    from evaluation.report.writer import Page, Tile
    from evaluation.sections.performance import HEADLINE, format_interval, format_score
    from evaluation.sections.provenance import banner

    level, scores, intervals = interval_text(task.options.level), performance["scores"], performance["intervals"]
    return Page(
        title=f"{predictions.name} on {predictions.dataset}",
        subtitle=f"{predictions.part}, {len(predictions.rows):,} images, {len(predictions.labels)} emotions",
        banner=banner(predictions),
        tiles=[
            Tile(
                text.split(" (")[0],
                format_score(name, scores[name]),
                f"{level} {format_interval(name, tuple(intervals[name]))}",
            )
            for name, text in HEADLINE.items()
        ],
        made_by=made_by()
        | {
            "model": f"{predictions.model_file.name}, SHA-256 {inputs['model']}…",
            "rows": f"SHA-256 {inputs['rows']}…",
        },
    )


def made_by() -> dict[str, str]:
    """Return the command and the version of Python, for the foot of a page."""
    return {"command": typed_command(), "python": platform.python_version()}


def print_summary(metrics: dict[str, Any], report: Path) -> None:
    """Print the main scores of a report, its warnings, and where it is."""
    from evaluation.report.section import interval_text

    print(f"{metrics['model']} on {metrics['dataset']}, split {metrics['split']} ({metrics['protocol']})")
    for note in metrics["notes"]:
        print(f"  ! {note}")
    print((report / "classification_report.txt").read_text(encoding="utf-8"))
    low, high = metrics["accuracy_interval"]
    print(
        f"n = {metrics['n']}  accuracy {metrics['accuracy']:.4f} "
        f"({interval_text(metrics['performance']['interval_level'])} {low:.4f} to {high:.4f})  balanced accuracy "
        f"{metrics['balanced_accuracy']:.4f}  macro F1 {metrics['macro_f1']:.4f}"
    )
    if "folds" in metrics:
        print(metrics["folds"]["summary"])
        for row in metrics["folds"]["protocols"][1:]:
            print(
                f"  {row['protocol']}: accuracy {row['accuracy']:.1%}, macro F1 {row['macro_f1']:.3f}, n = {row['n']:,}"
            )
    if "tta" in metrics:
        print(metrics["tta"]["summary"])
    print(f"report: {report / 'report.html'}")
