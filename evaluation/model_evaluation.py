"""Say how good a trained network is on a split that it did not learn from.

Reads:  a network and its card; data/NAME/split.csv and the crops it names
Writes: reports/NAME/MODEL/: metrics.json, classification_report.txt, confusion_matrix.csv and .png, predictions.csv

    python -m evaluation.model_evaluation --dataset fer2013 --model models/fer2013/best.keras --split test
"""

import sys
from pathlib import Path
from typing import Annotated, Any

if not __package__:  # run as a plain file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import typer

from configuration import PATHS, SAMPLE
from preprocessing.command_line import DataRoot, DatasetName, ModelsRoot, ReportsRoot, dataset_folder, run
from preprocessing.emotions import LabelRule, relate
from preprocessing.errors import InputError
from preprocessing.files import atomic_file
from preprocessing.image_tables import SPLITS, digest, labels_of, read_table, usable, write_table
from training.emotion_classifier import EmotionClassifier, crop_options, read_card, write_card

REPORT_FILES = (
    "metrics.json", "classification_report.txt", "confusion_matrix.csv", "confusion_matrix.png", "predictions.csv",
)  # fmt: skip
PROTOCOL = "one network, one crop per face, no test-time averaging, no extra labels"


def main(
    dataset: DatasetName = SAMPLE.name,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    reports: ReportsRoot = PATHS.reports,
    model: Annotated[Path | None, typer.Option(help="The network; left out: MODELS/DATASET/best.keras.")] = None,
    split: Annotated[str | None, typer.Option(help=f"{', '.join(SPLITS)}; left out: test, or dev without one.")] = None,
    update_card: Annotated[bool, typer.Option("--update-card", help="Write the scores into the model's card.")] = False,
) -> None:
    """Evaluate a trained network on a held-out split."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")
    model_file = model or models / dataset / "best.keras"
    rows, split, notes = rows_of_split(table, split, folder)
    report = reports / dataset / model_file.stem
    metrics = evaluate(model_file, folder, table, rows, split, notes, report)
    if update_card:
        update_scores(model_file, metrics)
        print(f"scores written into {model_file.with_suffix('.json')}")


def rows_of_split(table: pd.DataFrame, split: str | None, folder: Path) -> tuple[pd.DataFrame, str, list[str]]:
    """Return a split's usable rows, the split's name, and notes for the reader.

    Raises:
        InputError: the split has another name than `train`, `dev` or `test`, or no usable rows.
    """
    rows = usable(table)
    notes = []
    if split is None:
        split = "test" if (rows["split"] == "test").any() else "dev"
        if split == "dev":
            notes.append("the table has no test split: these are figures on dev, by which the epoch was chosen")
    if split not in SPLITS:
        raise InputError(f"--split {split!r} is not one of {', '.join(SPLITS)}")
    chosen = rows.loc[rows["split"] == split]
    if chosen.empty:
        present = ", ".join(name for name in SPLITS if (rows["split"] == name).any()) or "none"
        raise InputError(f"{folder / 'split.csv'} has no usable rows in split {split!r}; it has: {present}")
    return chosen, split, notes


def evaluate(
    model_file: Path,
    folder: Path,
    table: pd.DataFrame,
    rows: pd.DataFrame,
    split: str,
    notes: list[str],
    report: Path,
) -> dict[str, Any]:
    """Evaluate a network on rows of a data set's table, and write the report.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: the model cannot be used, or no rule relates its labels to the data's.
    """
    card = read_card(model_file)  # before Keras is imported, so that a mistake is told at once
    rule = relate(card["labels"], labels_of(usable(table)))
    inputs = {
        "model": _file_hash(model_file),
        "card": _card_hash(card),
        "rows": digest(rows),
        "crops": crop_options(folder),
        "split": split,
    }
    earlier = _earlier_metrics(report, inputs)
    if earlier:
        _print_summary(earlier, report)
        print("unchanged: same model, same rows; the report was kept and nothing was done")
        return earlier
    classifier = EmotionClassifier.load(model_file)
    scored = rows.loc[rows["emotion"].isin(rule.labels)]
    notes = [*notes, *_notes(classifier, folder, split, rule, len(rows) - len(scored))]
    if absent := [label for label in rule.labels if label not in set(scored["emotion"])]:
        notes.append(f"no image shows {', '.join(absent)}: balanced accuracy and macro F1 are over the other emotions")
    probabilities = _predict(classifier, folder, scored, rule)
    metrics = {
        "dataset": folder.name,
        "split": split,
        "model": model_file.name,
        "protocol": PROTOCOL,
        "labels": list(rule.labels),
        "label_rule": rule.text,
        "left_out": len(rows) - len(scored),
        "notes": notes,
        **_write_report(scored, probabilities, rule, f"{model_file.stem} on {folder.name}, {split}", report),
        "inputs": inputs,
    }
    with atomic_file(report / "metrics.json") as temporary:  # last: it vouches for the other files
        temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    _print_summary(metrics, report)
    return metrics


def _notes(classifier: EmotionClassifier, folder: Path, split: str, rule: LabelRule, left_out: int) -> list[str]:
    """Return what a reader must know to read the figures rightly."""
    card = classifier.card
    notes = []
    if rule.text:
        notes.append(f"labels: {rule.text}" + (f" ({left_out} images)" if left_out else ""))
    if card.get("dataset") == folder.name and split == "train":
        notes.append("NOT A HELD-OUT SCORE: the model was trained on this split")
    if card.get("dataset") == SAMPLE.name or folder.name == SAMPLE.name:
        notes.append("the sample is one portrait, warped: no score on it means anything")
    align = crop_options(folder)["align"]
    if align != classifier.faces.align:
        notes.append(f"crops are aligned by {align}, the model was trained on {classifier.faces.align}")
    return notes


def _predict(classifier: EmotionClassifier, folder: Path, rows: pd.DataFrame, rule: LabelRule) -> np.ndarray:
    from evaluation.metrics import apply_rule
    from training.datasets import flow_from_dataframe

    batches = flow_from_dataframe(
        rows,
        folder,
        target_size=(classifier.input_size, classifier.input_size),
        color_mode="grayscale" if classifier.channels == 1 else "rgb",
        class_mode=None,
        shuffle=False,
    )
    return apply_rule(classifier.predict(batches.images), rule)


def _write_report(
    rows: pd.DataFrame, probabilities: np.ndarray, rule: LabelRule, title: str, report: Path
) -> dict[str, Any]:
    """Write every file but `metrics.json`, and return the scores."""
    from evaluation.metrics import classification_report, confusion, predicted_labels, scores
    from evaluation.plots import draw_confusion

    truth = rows["emotion"].tolist()
    prediction = predicted_labels(probabilities, rule.labels).tolist()
    (report / "metrics.json").unlink(missing_ok=True)
    predictions = pd.DataFrame({"path": rows["path"].tolist(), "truth": truth, "prediction": prediction})
    for index, label in enumerate(rule.labels):
        predictions[f"p_{label}"] = probabilities[:, index].round(6)
    write_table(predictions, report / "predictions.csv")
    matrix = confusion(truth, prediction, rule.labels)
    write_table(matrix.reset_index(), report / "confusion_matrix.csv")
    draw_confusion(matrix, f"{title} (n = {len(truth)})", report / "confusion_matrix.png")
    with atomic_file(report / "classification_report.txt") as temporary:
        temporary.write_text(classification_report(truth, prediction, rule.labels), encoding="utf-8")
    return scores(truth, prediction, rule.labels)


def _print_summary(metrics: dict[str, Any], report: Path) -> None:
    print(f"{metrics['model']} on {metrics['dataset']}, split {metrics['split']} ({metrics['protocol']})")
    for note in metrics["notes"]:
        print(f"  ! {note}")
    print((report / "classification_report.txt").read_text(encoding="utf-8"))
    print(
        f"n = {metrics['n']}  accuracy {metrics['accuracy']:.4f}  balanced accuracy {metrics['balanced_accuracy']:.4f}"
        f"  macro F1 {metrics['macro_f1']:.4f}\nreport: {report}"
    )
    for name in REPORT_FILES:
        print(f"  {name}")


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _card_hash(card: dict[str, Any]) -> str:
    """Return a hash of the card without its scores, which the evaluation itself writes."""
    content = {name: value for name, value in card.items() if name != "scores"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _earlier_metrics(report: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the metrics of an earlier evaluation of the same model on the same rows, if its report is whole."""
    if not all((report / name).is_file() for name in REPORT_FILES):
        return None
    try:
        metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    except ValueError:
        return None
    return metrics if metrics.get("inputs") == inputs else None


def update_scores(model_file: Path, metrics: dict[str, Any]) -> None:
    """Write an evaluation's scores into the model's card, in place of earlier ones on the same data and protocol."""
    card = read_card(model_file)
    score = {name: metrics[name] for name in ("dataset", "split", "protocol", "label_rule", "n")}
    score |= {name: round(metrics[name], 4) for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    score["measured"] = datetime.now(UTC).date().isoformat()
    same = ("dataset", "split", "protocol")
    kept = [old for old in card.get("scores", []) if any(old.get(name) != score[name] for name in same)]
    write_card({**card, "scores": [*kept, score]}, model_file)


if __name__ == "__main__":
    run(main)
