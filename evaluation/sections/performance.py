"""Performance: scores overall and per emotion, each with an interval."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.files import write_file
from configuration import EvaluationConfig
from evaluation.metrics.intervals import MIN_SUBJECTS
from evaluation.metrics.scores import classification_report, confusion, estimate_scores
from evaluation.predictions import Predictions
from evaluation.report.plots import draw_confusion, draw_emotions
from evaluation.report.section import NO_BREAK, Figure, Section, Table, interval_text, percent
from preprocessing.tables import write_table

HEADLINE = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "macro_f1": "macro F1 (mean F1)",
    "top2_accuracy": "top-2 accuracy",
    "roc_auc": "ROC AUC, one-vs-rest (mean)",
}
MAIN_SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1"}  # for the comparison of protocols and networks
SHARES = ("accuracy", "balanced_accuracy", "top2_accuracy", "precision", "recall")
_PER_EMOTION = {"precision": "precision", "recall": "recall", "f1": "F1", "roc_auc": "ROC AUC"}
_MIN_IMAGES = 100  # fewer images of an emotion: a warning


def format_score(name: str, value: float) -> str:
    """Return a score as text: shares as percentages, others with three digits, a dash for NaN."""
    if np.isnan(value):
        return "–"
    return percent(value) if name.split("/")[0] in SHARES else f"{value:.3f}"


def format_interval(name: str, interval: tuple[float, float]) -> str:
    """Return an interval in the form of its score, with one unit."""
    low, high = (format_score(name, limit) for limit in interval)
    return f"{low.removesuffix(NO_BREAK + '%')} to {high}" if high.endswith("%") else f"{low} to {high}"


def format_estimate(name: str, value: float, interval: tuple[float, float]) -> str:
    """Return a score with its interval in brackets."""
    return f"{format_score(name, value)} [{format_interval(name, interval)}]"


@dataclass(frozen=True)
class Performance:
    """Scores with their intervals.

    Attributes:
        scores: Scores by their names in `score_statistic`.
        intervals: Interval of each score.
        support: Number of images of each emotion.
        confusion: Counts, true labels as rows.
        report: scikit-learn's classification report.
    """

    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    support: pd.Series
    confusion: pd.DataFrame
    report: str

    @property
    def per_emotion(self) -> pd.DataFrame:
        """A row per emotion: precision, recall, F1 and ROC AUC with interval limits, and support."""
        table = pd.DataFrame(index=pd.Index(self.support.index, name="emotion"))
        for name in _PER_EMOTION:
            table[name] = [self.scores[f"{name}/{label}"] for label in table.index]
            for side, end in enumerate(("low", "high")):
                table[f"{name}_{end}"] = [self.intervals[f"{name}/{label}"][side] for label in table.index]
        return table.assign(support=self.support.to_numpy())


def measure_performance(predictions: Predictions, options: EvaluationConfig) -> Performance:
    """Return the scores of predictions with bootstrap intervals."""
    scores, intervals = estimate_scores(
        predictions.probabilities, predictions.truth, predictions.labels, predictions.clusters, options
    )
    truth, predicted = predictions.rows["emotion"].tolist(), predictions.prediction.tolist()
    return Performance(
        scores,
        intervals,
        pd.Series(np.bincount(predictions.truth, minlength=len(predictions.labels)), index=predictions.labels),
        confusion(truth, predicted, predictions.labels),
        classification_report(truth, predicted, predictions.labels),
    )


def performance_section(predictions: Predictions, report: Path, options: EvaluationConfig) -> Section:
    """Measure the performance, write its figures and tables, and return the section."""
    found = measure_performance(predictions, options)
    emotions, interval = found.per_emotion, interval_text(options.level)
    write_table(emotions.reset_index(), report / "emotions.csv")
    write_table(found.confusion.reset_index(), report / "confusion_matrix.csv")
    heading = f"{predictions.title}\n\n" if predictions.trained_on else ""
    write_file(report / "classification_report.txt", (heading + found.report).encode())
    headline = pd.DataFrame(
        {
            "value": [format_score(name, found.scores[name]) for name in HEADLINE],
            interval: [format_interval(name, found.intervals[name]) for name in HEADLINE],
        },
        index=pd.Index(HEADLINE.values(), name="score"),
    )
    recalls = "Recall: " + ", ".join(
        f"{label} {format_score('recall', found.scores[f'recall/{label}'])}" for label in predictions.labels
    )
    return Section(
        name="performance",
        title="Performance",
        sentences=_sentences(found, predictions, options),
        warnings=_warnings(found, predictions),
        tables=[
            Table(headline, f"Scores, {predictions.title}"),
            Table(_printed(emotions), f"Scores per emotion, {interval}s in brackets; support: number of images"),
        ],
        figures=[
            Figure(
                draw_confusion(found.confusion, predictions.title, report / "confusion_matrix.png"),
                f"Confusion matrix, {predictions.title}: row percentages with counts below.",
                f"Rows: true emotions; columns: predictions. {recalls}.",
            ),
            Figure(
                draw_emotions(emotions, predictions.title, report / "emotions.png", interval),
                f"Recall and precision per emotion, {predictions.title}.",
                f"{recalls}.",
            ),
        ],
        values=_values(found, predictions, options),
        texts=[found.report],
    )


def _sentences(found: Performance, predictions: Predictions, options: EvaluationConfig) -> list[str]:
    n, interval = len(predictions.rows), format_interval("accuracy", found.intervals["accuracy"])
    resampled = f"{predictions.clusters.max() + 1:,} subjects" if predictions.has_subjects else "single images"
    return [
        f"Accuracy: {percent(found.scores['accuracy'])} of {n:,} images ({interval_text(options.level)} {interval}). "
        f"Baseline, always {found.support.idxmax()}: {percent(found.support.max() / n)}.",
        f"Intervals: {options.resamples:,} bootstrap resamples of {resampled}. They cover sampling variation of "
        "similar images, not other kinds of images. Scores of 0 or 1 have Wilson intervals.",
    ]


def _warnings(found: Performance, predictions: Predictions) -> list[str]:
    warnings = []
    absent = [str(label) for label, count in found.support.items() if count == 0]
    few = [f"{label} ({count})" for label, count in found.support.items() if 0 < count < _MIN_IMAGES]
    if absent:
        warnings.append(f"no images of {', '.join(absent)}: balanced accuracy and macro F1 exclude them")
    if few:
        warnings.append(f"few images of {', '.join(few)}: their intervals are wide")
    subjects = int(predictions.clusters.max()) + 1
    if predictions.has_subjects and subjects < MIN_SUBJECTS:
        warnings.append(f"only {subjects} subjects: intervals resampled by subject are too narrow")
    return warnings


def _values(found: Performance, predictions: Predictions, options: EvaluationConfig) -> dict[str, Any]:
    def entry(name: str, label: str) -> dict[str, Any]:
        return {"value": found.scores[f"{name}/{label}"], "interval": list(found.intervals[f"{name}/{label}"])}

    return {
        "scores": {name: found.scores[name] for name in HEADLINE},
        "intervals": {name: list(found.intervals[name]) for name in HEADLINE},
        "per_emotion": {
            label: {"support": int(found.support[label]), **{name: entry(name, label) for name in _PER_EMOTION}}
            for label in predictions.labels
        },
        "interval_level": options.level,
        "resamples": options.resamples,
        "resampled_by": "subject" if predictions.has_subjects else "image",
        "confusion": found.confusion.to_numpy().tolist(),
    }


def _printed(emotions: pd.DataFrame) -> pd.DataFrame:
    printed = pd.DataFrame(index=emotions.index)
    for name, heading in _PER_EMOTION.items():
        printed[heading] = [
            format_estimate(name, row[name], (row[f"{name}_low"], row[f"{name}_high"]))
            for _, row in emotions.iterrows()
        ]
    return printed.assign(support=emotions["support"])
