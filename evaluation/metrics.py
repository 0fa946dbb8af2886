"""Plain metric functions over true labels and predicted probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics

from preprocessing.emotions import LabelRule

NOTHING_FOUND: Any = 0.0  # precision of an emotion that is never predicted


def apply_rule(probabilities: np.ndarray, rule: LabelRule) -> np.ndarray:
    """Return the probabilities of the rule's labels, (n, labels), scaled to sum to one.

    A row that gives nothing to any of these labels becomes uniform.
    """
    kept = probabilities[:, list(rule.columns)].astype(np.float64)
    total = kept.sum(axis=1, keepdims=True)
    return np.divide(kept, total, out=np.full_like(kept, 1 / kept.shape[1]), where=total > 0)


def predicted_labels(probabilities: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return the likeliest label of each row."""
    return np.asarray(labels, dtype=object)[probabilities.argmax(axis=1)]


def confusion(truth: Sequence[str], prediction: Sequence[str], labels: Sequence[str]) -> pd.DataFrame:
    """Return the counts, true labels as rows and predicted labels as columns."""
    matrix = metrics.confusion_matrix(truth, prediction, labels=list(labels))
    return pd.DataFrame(matrix, index=pd.Index(labels, name="truth"), columns=pd.Index(labels, name="prediction"))


def scores(truth: Sequence[str], prediction: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Return accuracy, balanced accuracy, macro F1 and the per-emotion figures, all in 0-1.

    Balanced accuracy is the mean recall, macro F1 the mean F1, both over the emotions that occur in `truth`.
    """
    report: Any = metrics.classification_report(
        truth, prediction, labels=list(labels), output_dict=True, zero_division=NOTHING_FOUND
    )
    per_emotion = {label: {name: float(value) for name, value in report[label].items()} for label in labels}
    occurring = [figures for figures in per_emotion.values() if figures["support"]]
    return {
        "n": len(truth),
        "accuracy": float(metrics.accuracy_score(truth, prediction)),
        "balanced_accuracy": float(np.mean([figures["recall"] for figures in occurring])),
        "macro_f1": float(np.mean([figures["f1-score"] for figures in occurring])),
        "per_emotion": per_emotion,
    }


def classification_report(truth: Sequence[str], prediction: Sequence[str], labels: Sequence[str]) -> str:
    """Return scikit-learn's classification report as text."""
    return str(
        metrics.classification_report(truth, prediction, labels=list(labels), digits=3, zero_division=NOTHING_FOUND)
    )
