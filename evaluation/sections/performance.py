"""How good a model is: its scores, overall and per emotion, each with an interval."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.files import atomic_file
from configuration import EvaluationConfig
from evaluation.metrics.scores import classification_report, confusion, estimate_scores, in_top, roc_auc, scores
from evaluation.predictions import Predictions
from evaluation.report.plots import draw_confusion, draw_emotions
from evaluation.report.section import NO_BREAK, Figure, Section, Table, interval_text, percent
from preprocessing.tables import write_table

HEADLINE = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "macro_f1": "macro F1 (mean F1)",
    "top2_accuracy": "top-2 accuracy",
    "roc_auc": "ROC AUC, one against the rest (mean)",
}
MAIN_SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1"}  # what protocols and networks are compared by
SHARES = ("accuracy", "balanced_accuracy", "top2_accuracy", "precision", "recall")


def format_score(name: str, value: float) -> str:
    """Return a score as one reads it: shares as percentages, the others with three digits, a dash for none."""
    if np.isnan(value):
        return "–"
    return percent(value) if name.split("/")[0] in SHARES else f"{value:.3f}"


def format_interval(name: str, interval: tuple[float, float]) -> str:
    """Return an interval in the form of its score; the unit stands once."""
    low, high = (format_score(name, limit) for limit in interval)
    return f"{low.removesuffix(NO_BREAK + '%')} to {high}" if high.endswith("%") else f"{low} to {high}"


def measure(predictions: Predictions) -> dict[str, float]:
    """Return every score of `score_statistic` but the Brier score, by scikit-learn, under the same names."""
    names = np.asarray(predictions.labels, dtype=object)
    basic = scores(names[predictions.truth].tolist(), names[predictions.predicted].tolist(), predictions.labels)
    areas = roc_auc(predictions.probabilities, predictions.truth, predictions.labels)
    known = [area for area in areas.values() if not np.isnan(area)]
    measured = {name: basic[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    measured["top2_accuracy"] = float(in_top(predictions.probabilities, predictions.truth, 2).mean())
    measured["roc_auc"] = float(np.mean(known)) if known else float("nan")
    for label in predictions.labels:
        figures = basic["per_emotion"][label]
        measured |= {f"precision/{label}": figures["precision"], f"roc_auc/{label}": areas[label]}
        measured |= {f"recall/{label}": figures["recall"] if figures["support"] else float("nan")}
        measured |= {f"f1/{label}": figures["f1-score"] if figures["support"] else float("nan")}
    return measured


def performance_section(predictions: Predictions, report: Path, options: EvaluationConfig) -> Section:
    """Return the scores and their intervals, and write the figures and tables behind them."""
    names = np.asarray(predictions.labels, dtype=object)
    truth, predicted = names[predictions.truth].tolist(), names[predictions.predicted].tolist()
    measured = measure(predictions)
    _, intervals = estimate_scores(
        predictions.probabilities, predictions.truth, predictions.labels, predictions.clusters, options
    )
    interval = interval_text(options.level)

    headline = pd.DataFrame(
        {
            "value": [format_score(name, measured[name]) for name in HEADLINE],
            interval: [format_interval(name, intervals[name]) for name in HEADLINE],
        },
        index=pd.Index(HEADLINE.values(), name="score"),
    )
    support = pd.Series(np.bincount(predictions.truth, minlength=len(names)), index=predictions.labels)
    emotions = _per_emotion(measured, intervals, support)
    write_table(emotions.reset_index(), report / "emotions.csv")
    matrix = confusion(truth, predicted, predictions.labels)
    write_table(matrix.reset_index(), report / "confusion_matrix.csv")
    text = classification_report(truth, predicted, predictions.labels)
    with atomic_file(report / "classification_report.txt") as temporary:
        heading = f"{predictions.title}\n\n" if predictions.trained_on else ""
        temporary.write_text(heading + text, encoding="utf-8")
    low, high = intervals["accuracy"]
    commonest = int(np.argmax(support.to_numpy()))
    sentences = [
        f"The model names {percent(measured['accuracy'])} of the {len(truth):,} images rightly ({interval} "
        f"{percent(low)} to {percent(high)}). Always answering {names[commonest]} would be right for "
        f"{percent(support.iloc[commonest] / len(truth))}.",
        f"Intervals come from {options.resamples:,} bootstrap resamples of {_resampled(predictions)} They tell how "
        "much "
        "the score would move with other images of the same kind, not with other kinds of images. A score of 0 or 1 "
        "does not vary between resamples. It has Wilson's interval, in which the images of one person count once.",
    ]
    return Section(
        name="performance",
        title="How good",
        sentences=sentences,
        warnings=_warnings(predictions, support, options),
        tables=[
            Table(headline, f"Scores, {predictions.title}"),
            Table(_printed(emotions), f"Each emotion, {interval}s in brackets; support: its number of images"),
        ],
        figures=[
            Figure(
                draw_confusion(matrix, predictions.title, report / "confusion_matrix.png"),
                f"Confusion matrix, {predictions.title}: percentages of each true emotion, counts below.",
                f"Rows are true emotions, columns the model's answers. {_in_words(measured, predictions)}",
            ),
            Figure(
                draw_emotions(emotions, predictions.title, report / "emotions.png", interval),
                "Recall (of the images of an emotion, how many were found) and precision (of the answers, how many "
                f"were right), {predictions.title}.",
                _in_words(measured, predictions),
            ),
        ],
        values={
            "scores": {name: measured[name] for name in HEADLINE},
            "intervals": {name: list(intervals[name]) for name in HEADLINE},
            "per_emotion": {
                label: {
                    "support": int(support[label]),
                    **{
                        name: {"value": measured[f"{name}/{label}"], "interval": list(intervals[f"{name}/{label}"])}
                        for name in ("precision", "recall", "f1", "roc_auc")
                    },
                }
                for label in predictions.labels
            },
            "interval_level": options.level,
            "resamples": options.resamples,
            "resampled_by": "subject" if predictions.has_subjects else "image",
            "confusion": matrix.to_numpy().tolist(),
        },
        texts=[text],
    )


def _resampled(predictions: Predictions) -> str:
    if predictions.has_subjects:
        return f"the {predictions.clusters.max() + 1:,} people, whose images stay together."
    return "single images: the table does not say who is in each of them."


def _per_emotion(
    measured: dict[str, float], intervals: dict[str, tuple[float, float]], support: pd.Series
) -> pd.DataFrame:
    """Return one row per emotion: precision, recall, F1 and ROC AUC with the limits of their intervals, and support."""
    table = pd.DataFrame(index=pd.Index(support.index, name="emotion"))
    for name in ("precision", "recall", "f1", "roc_auc"):
        table[name] = [measured[f"{name}/{label}"] for label in support.index]
        table[f"{name}_low"] = [intervals[f"{name}/{label}"][0] for label in support.index]
        table[f"{name}_high"] = [intervals[f"{name}/{label}"][1] for label in support.index]
    return table.assign(support=support.to_numpy())


def _printed(emotions: pd.DataFrame) -> pd.DataFrame:
    """Return the table of the emotions as one reads it."""
    printed = pd.DataFrame(index=emotions.index)
    for name, heading in {"precision": "precision", "recall": "recall", "f1": "F1", "roc_auc": "ROC AUC"}.items():
        printed[heading] = [
            f"{format_score(name, row[name])} [{format_interval(name, (row[f'{name}_low'], row[f'{name}_high']))}]"
            for _, row in emotions.iterrows()
        ]
    return printed.assign(support=emotions["support"])


def _in_words(measured: dict[str, float], predictions: Predictions) -> str:
    recalls = {label: measured[f"recall/{label}"] for label in predictions.labels}
    return "Recall: " + ", ".join(f"{label} {format_score('recall', value)}" for label, value in recalls.items()) + "."


def _warnings(predictions: Predictions, support: pd.Series, options: EvaluationConfig) -> list[str]:
    warnings = []
    absent = [str(label) for label, count in support.items() if count == 0]
    few = [f"{label} ({count})" for label, count in support.items() if 0 < count < options.few_images]
    if absent:
        warnings.append(
            f"no image shows {', '.join(absent)}: balanced accuracy and macro F1 are over the other emotions"
        )
    if few:
        warnings.append(f"few images show {', '.join(few)}: their figures are rough, see their intervals")
    people = int(predictions.clusters.max()) + 1
    if predictions.has_subjects and people < options.few_subjects:
        warnings.append(f"only {people} people: intervals resampled by person are too narrow with so few")
    return warnings
