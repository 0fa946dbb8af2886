"""Plain metric functions over true labels and predicted probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.sparse import csr_array
from scipy.stats import norm
from sklearn import metrics

from common.emotions import LabelRule
from configuration import EvaluationConfig
from evaluation.metrics.calibration import squared_errors
from evaluation.metrics.intervals import (
    Statistic,
    bootstrap,
    boundary_interval,
    effective_size,
    f1_boundary_interval,
    percentile_intervals,
    widened,
)

NOTHING_FOUND: Any = 0.0  # precision of an emotion that is never predicted


def apply_rule(probabilities: np.ndarray, rule: LabelRule) -> np.ndarray:
    """Return the probabilities of the labels of a rule, (n, labels), scaled to sum to one.

    A row of zeros becomes uniform.
    """
    kept = probabilities[:, list(rule.columns)].astype(np.float64)
    total = kept.sum(axis=1, keepdims=True)
    return np.divide(kept, total, out=np.full_like(kept, 1 / kept.shape[1]), where=total > 0)


def probability_columns(probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns of a table of predictions: `p_EMOTION` -> probabilities, six decimals.

    Args:
        probabilities: (n, classes).
        labels: Class names in their order.
    """
    return {f"p_{label}": column.round(6) for label, column in zip(labels, probabilities.T, strict=True)}


def predicted_labels(probabilities: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return the most probable label of each row."""
    return np.asarray(labels, dtype=object)[probabilities.argmax(axis=1)]


def confusion(truth: Sequence[str], prediction: Sequence[str], labels: Sequence[str]) -> pd.DataFrame:
    """Return the counts, true labels as rows and predicted labels as columns."""
    matrix = metrics.confusion_matrix(truth, prediction, labels=list(labels))
    return pd.DataFrame(matrix, index=pd.Index(labels, name="truth"), columns=pd.Index(labels, name="prediction"))


def classification_report(truth: Sequence[str], prediction: Sequence[str], labels: Sequence[str]) -> str:
    """Return scikit-learn's classification report as text."""
    return str(
        metrics.classification_report(truth, prediction, labels=list(labels), digits=3, zero_division=NOTHING_FOUND)
    )


def in_top_two(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return whether the true class is among the two most probable ones, bool (n,).

    Ties count against the true class, so that uniform probabilities are not rewarded.

    Args:
        probabilities: (n, classes).
        truth: True classes, int (n,).
    """
    own = probabilities[np.arange(len(truth)), truth]
    return (probabilities >= own[:, None]).sum(axis=1) <= 2


def score_statistic(probabilities: np.ndarray, truth: np.ndarray, labels: Sequence[str]) -> Statistic:
    """Return all scores as a function of the images' weights, which computes them for many resamples at once.

    Names: `accuracy`, `balanced_accuracy` (mean recall), `macro_f1` (mean F1), `top2_accuracy`, `roc_auc` (mean),
    `brier`, and per emotion `precision/EMOTION`, `recall/...`, `f1/...`, `roc_auc/...` (one-vs-rest). Means are over
    the emotions that occur. Recall, F1 and ROC AUC of an emotion that does not occur are NaN.

    Args:
        probabilities: (n, labels); rows sum to one.
        truth: True labels, int (n,).
        labels: Names in class order.
    """
    k, n = len(labels), len(truth)
    predicted = probabilities.argmax(axis=1)
    cell = csr_array((np.ones(n), (np.arange(n), truth * k + predicted)), shape=(n, k * k))
    means = np.stack([in_top_two(probabilities, truth), squared_errors(probabilities, truth)], axis=1)
    areas = {label: _auc_statistic(probabilities[:, index], truth == index) for index, label in enumerate(labels)}

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        matrices = np.asarray(weights @ cell).reshape(-1, k, k)
        total = weights.sum(axis=1)
        hits = matrices.diagonal(axis1=1, axis2=2)
        support, predictions = matrices.sum(axis=2), matrices.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = hits / support
            precision = np.where(predictions > 0, hits / predictions, NOTHING_FOUND)
            f1 = np.where(support > 0, 2 * hits / (support + predictions), np.nan)
        area = np.stack([areas[label](weights) for label in labels], axis=1)
        top2, squared = ((weights @ means) / total[:, None]).T
        values = {
            "accuracy": hits.sum(axis=1) / total,
            "balanced_accuracy": _mean_of_known(recall),
            "macro_f1": _mean_of_known(f1),
            "top2_accuracy": top2,
            "roc_auc": _mean_of_known(area),
            "brier": squared,
        }
        for index, label in enumerate(labels):
            values |= {f"precision/{label}": precision[:, index], f"recall/{label}": recall[:, index]}
            values |= {f"f1/{label}": f1[:, index], f"roc_auc/{label}": area[:, index]}
        return values

    return statistic


def score_values(probabilities: np.ndarray, truth: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """Return the scores of `score_statistic`, which has the same arguments, with equal weights."""
    return _values(score_statistic(probabilities, truth, labels), len(truth))


def _values(statistic: Statistic, images: int) -> dict[str, float]:
    return {name: float(value[0]) for name, value in statistic(np.ones((1, images))).items()}


def estimate_scores(
    probabilities: np.ndarray, truth: np.ndarray, labels: Sequence[str], clusters: np.ndarray, options: EvaluationConfig
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return every score of `score_statistic`, and its interval.

    Args:
        probabilities: (n, labels); rows sum to one.
        truth: True labels, int (n,).
        labels: Names in class order.
        clusters: int (n,): cluster of each image, numbered from 0.
        options: Resamples, seed and level.
    """
    statistic = score_statistic(probabilities, truth, labels)
    values = _values(statistic, len(truth))
    drawn = bootstrap(statistic, clusters, options.resamples, options.seed)
    return values, score_intervals(drawn, values, probabilities, truth, labels, clusters, options.level)


def score_intervals(
    drawn: Mapping[str, np.ndarray],
    values: Mapping[str, float],
    probabilities: np.ndarray,
    truth: np.ndarray,
    labels: Sequence[str],
    clusters: np.ndarray,
    level: float,
) -> dict[str, tuple[float, float]]:
    """Return the interval of each score: its bootstrap interval, or another where that has no width.

    A share and an F1 score of 0 or 1, or of images of one cluster, have the intervals of `boundary_interval` and
    `f1_boundary_interval`. An area under the ROC curve of 0 or 1 has Newcombe's (2006, method 5). A mean over the
    emotions is widened by those of its emotions.

    Args:
        drawn: Resampled scores by their names in `score_statistic`, all of them or some.
        values: The scores themselves.
        probabilities: (n, labels); rows sum to one.
        truth: True labels, int (n,).
        labels: Names in class order.
        clusters: int (n,): cluster of each image, numbered from 0.
        level: Level of the intervals, 0-1.
    """
    predicted, every = probabilities.argmax(axis=1), np.ones(len(truth))
    found = {
        "accuracy": boundary_interval(predicted == truth, every, clusters, level),
        "top2_accuracy": boundary_interval(in_top_two(probabilities, truth), every, clusters, level),
    }
    means: dict[str, list[str]] = {"balanced_accuracy": [], "macro_f1": [], "roc_auc": []}
    for index, label in enumerate(labels):
        shown, named = truth == index, predicted == index
        found[f"precision/{label}"] = boundary_interval(shown & named, named, clusters, level)
        found[f"recall/{label}"] = boundary_interval(shown & named, shown, clusters, level)
        if not shown.any():
            continue
        found[f"f1/{label}"] = f1_boundary_interval(shown, named, clusters, level)
        means["balanced_accuracy"].append(f"recall/{label}")
        means["macro_f1"].append(f"f1/{label}")
        if not shown.all():
            area = _auc_statistic(probabilities[:, index], shown)(every[None])[0]
            found[f"roc_auc/{label}"] = _auc_boundary_interval(float(area), shown, clusters, level)
            means["roc_auc"].append(f"roc_auc/{label}")
    intervals = percentile_intervals(drawn, level)
    intervals |= {name: ends for name, ends in found.items() if ends and name in intervals}
    for mean, parts in means.items():
        ends = [(values[name], limits) for name in parts if (limits := found[name])]
        if mean in intervals and ends:
            intervals[mean] = widened(intervals[mean], values[mean], ends, len(parts))
    return intervals


def _auc_boundary_interval(
    area: float, positive: np.ndarray, clusters: np.ndarray, level: float
) -> tuple[float, float] | None:
    """Return the interval of an area under the ROC curve of 0 or 1; None for any other (Newcombe 2006, method 5)."""
    if 1e-12 < area < 1 - 1e-12:
        return None
    sizes = [effective_size(rows.astype(float), clusters) for rows in (positive, ~positive)]
    squared, half = norm.ppf((1 + level) / 2) ** 2 / (sizes[0] * sizes[1]), sum(sizes) / 2 - 1

    def excess(limit: float) -> float:
        return float(1 - limit - squared * limit * (1 + half * ((1 - limit) / (2 - limit) + limit / (1 + limit))))

    root: Any = brentq(excess, 0, 1)
    limit = float(root)
    return (limit, 1.0) if area > 0.5 else (0.0, 1 - limit)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row without its NaN values; NaN for a row of NaN only."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)


def _auc_statistic(score: np.ndarray, positive: np.ndarray):
    """Return the area under the ROC curve as a function of weights: P(positive above negative) + P(equal) / 2."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(score[order]) != 0))  # equal scores are one step of the curve
    is_positive = positive[order]

    def statistic(weights: np.ndarray) -> np.ndarray:
        ordered = weights[:, order]
        all_of_step = np.add.reduceat(ordered, starts, axis=1)
        positives = np.add.reduceat(ordered * is_positive, starts, axis=1)
        negatives = all_of_step - positives
        below = negatives.cumsum(axis=1) - negatives / 2
        with np.errstate(invalid="ignore"):
            return (positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))

    return statistic
