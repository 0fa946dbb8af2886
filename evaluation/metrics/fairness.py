"""Scores by group, gaps between groups, and their uncertainty, from contingency tables (group x truth x prediction).

To resample or permute images is to draw such tables, so that memory does not grow with the number of images.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from fairlearn.metrics import MetricFrame
from scipy.stats import norm, random_table
from sklearn import metrics

from configuration import FairnessConfig
from evaluation.metrics.intervals import boundary_interval, f1_boundary_interval, percentile_interval, widened

OVERALL = ("accuracy", "macro F1")
HALVES = ("recall", "false positive rate")  # of equalised odds
ODDS = "equalised odds"
_CHUNK = 1_000_000  # cells of permuted tables in memory at a time

Limits = dict[str, tuple[np.ndarray, np.ndarray]]  # score -> lower and upper limits, shaped like the score


def codes(values: np.ndarray, categories: Sequence[str]) -> np.ndarray:
    """Return the position of each value among the categories, int (n,)."""
    return pd.Categorical(values, categories=list(categories)).codes.astype(np.int64)


def group_sizes(group: pd.Series, clusters: np.ndarray | None) -> pd.DataFrame:
    """Return the number of `images` and of `subjects` of each group; unknown subjects count as one per image.

    Args:
        group: Group of each image; empty where it is unknown.
        clusters: Subject of each image, int (n,); None: not known.
    """
    numbers = pd.Series(np.arange(len(group)) if clusters is None else clusters, group.index)
    sizes = numbers[group != ""].groupby(group[group != ""]).agg(["size", "nunique"])
    return sizes.set_axis(["images", "subjects"], axis=1)


def large_groups(sizes: pd.DataFrame, fairness: FairnessConfig) -> list[str]:
    """Return the names of the groups of `group_sizes` that are scored."""
    enough = (sizes["images"] >= fairness.min_images) & (sizes["subjects"] >= fairness.min_subjects)
    return sorted(sizes.index[enough])


# ---------------------------------------------------------------- scores of contingency tables


def contingency_tables(
    group: np.ndarray, truth: np.ndarray, prediction: np.ndarray, groups: int, labels: int
) -> np.ndarray:
    """Return the counts, (groups, labels, labels), of group, truth and prediction; all int (n,)."""
    cells = (group * labels + truth) * labels + prediction
    return np.bincount(cells, minlength=groups * labels**2).reshape(groups, labels, labels)


def enough_images(counts: np.ndarray, least: int) -> np.ndarray:
    """Return where an emotion's rates are compared, bool (groups, labels): `least` images of it and of the others."""
    per_emotion = counts.sum(axis=2)
    return (per_emotion >= least) & (per_emotion.sum(axis=1, keepdims=True) - per_emotion >= least)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of contingency tables; NaN where a denominator is zero.

    Args:
        counts: (..., groups, labels, labels): group, truth, prediction.

    Returns:
        `accuracy` and `macro F1`, (..., groups); `recall` and `false positive rate`, (..., groups, labels). Macro F1 is
        the mean over the emotions that occur in the group.
    """
    correct = np.diagonal(counts, axis1=-2, axis2=-1)
    support, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    total = support.sum(axis=-1)
    f1 = np.where(support > 0, _share(2 * correct, support + predicted), 0)
    return {
        "accuracy": _share(correct.sum(axis=-1), total),
        "macro F1": _share(f1.sum(axis=-1), (support > 0).sum(axis=-1)),
        "recall": _share(correct, support),
        "false positive rate": _share(predicted - correct, total[..., None] - support),
    }


def gaps(counts: np.ndarray, compared: np.ndarray) -> dict[str, np.ndarray]:
    """Return the largest differences between groups.

    Args:
        counts: (..., groups, labels, labels).
        compared: bool (groups, labels), as `enough_images` returns it.

    Returns:
        `accuracy` and `macro F1`, (...); `recall`, `false positive rate`, and the larger of the two, `equalised odds`,
        (..., labels); NaN for an emotion that is compared in fewer than two groups.
    """
    found = rates(counts)
    spread = {name: np.ptp(np.nan_to_num(found[name]), axis=-1) for name in OVERALL}
    enough = compared.sum(axis=0) >= 2
    for name in HALVES:
        known = compared & ~np.isnan(found[name])
        highest = np.where(known, found[name], -np.inf).max(axis=-2)
        lowest = np.where(known, found[name], np.inf).min(axis=-2)
        spread[name] = np.where(enough, np.maximum(highest - lowest, 0), np.nan)
    return spread | {ODDS: np.maximum(*(spread[name] for name in HALVES))}


def scores_by_group(counts: np.ndarray, names: Sequence[str], labels: Sequence[str]) -> MetricFrame:
    """Return fairlearn's scores by group: `accuracy`, `macro F1`, and each emotion's one-against-rest rates.

    It is given a weighted row per cell, which is as fast for a million images as for a thousand.

    Args:
        counts: (groups, labels, labels): group, truth, prediction.
        names: Groups.
        labels: Emotions.
    """
    cells = np.nonzero(counts)
    columns = (np.asarray(of, object)[cell] for cell, of in zip(cells, (names, labels, labels), strict=True))
    group, truth, prediction = columns
    scores: dict[str, Callable[..., Any]] = {"accuracy": metrics.accuracy_score, "macro F1": _macro_f1}
    for label in labels:
        scores[f"recall {label}"] = partial(_recall, label=label)
        scores[f"false positive rate {label}"] = partial(_false_positive_rate, label=label)
    return MetricFrame(
        metrics=scores,
        y_true=truth,
        y_pred=prediction,
        sensitive_features=group,
        sample_params={name: {"sample_weight": counts[cells]} for name in scores},
    )


def _macro_f1(truth: np.ndarray, prediction: np.ndarray, sample_weight: np.ndarray) -> float:
    score: Callable[..., Any] = metrics.f1_score
    shown = sorted(set(truth))
    return score(truth, prediction, labels=shown, average="macro", sample_weight=sample_weight, zero_division=0.0)


def _recall(truth: Any, prediction: Any, sample_weight: np.ndarray, label: str, positive: bool = True) -> float:
    score: Callable[..., Any] = metrics.recall_score
    options = {"sample_weight": sample_weight, "pos_label": positive, "zero_division": np.nan}
    return score(np.asarray(truth) == label, np.asarray(prediction) == label, **options)


def _false_positive_rate(truth: Any, prediction: Any, sample_weight: np.ndarray, label: str) -> float:
    return 1 - _recall(truth, prediction, sample_weight, label, positive=False)


# ---------------------------------------------------------------- permutation test


def permuted_tables(
    group: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    shape: tuple[int, ...],
    clusters: np.ndarray | None,
    random: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Yield tables, (some, groups, labels, labels), in which group and prediction are independent; without end.

    The group is permuted within each true emotion, so that every permutation keeps the number of images of each group
    and emotion. Without clusters this gives a random table with the margins of the real one. With clusters, each of
    one group, the images of a cluster stay together: one random order of the clusters is drawn and used for every
    emotion, and the emotion's images in that order are dealt to the groups, as many as each group has. Where the groups
    have the same mix of emotions, this permutes whole clusters.
    """
    groups, labels = shape
    if clusters is None:
        size = max(_CHUNK // (groups * labels**2), 1)
        counts = contingency_tables(group, truth, prediction, groups, labels)
        margins = [(label, counts[:, label].sum(axis=1), counts[:, label].sum(axis=0)) for label in np.unique(truth)]
        while True:
            tables = np.zeros((size, groups, labels, labels), np.int64)
            for label, by_group, by_prediction in margins:
                tables[:, :, label] = random_table.rvs(by_group, by_prediction, size=size, random_state=random)
            yield tables
    count = int(clusters.max()) + 1
    blocks, block = np.unique(truth * count + clusters, return_inverse=True)  # by emotion, then cluster
    emotion_of, cluster_of = np.divmod(blocks, count)
    by_block, sizes = np.argsort(block, kind="stable"), np.bincount(block)
    starts = np.cumsum(sizes) - sizes
    sorted_groups, truth, prediction = group[np.lexsort((group, truth))], truth[by_block], prediction[by_block]
    while True:
        order = np.lexsort((random.permutation(count)[cluster_of], emotion_of))
        moved = np.repeat(starts[order] - (np.cumsum(sizes[order]) - sizes[order]), sizes[order])
        rows = np.arange(len(truth)) + moved
        yield contingency_tables(sorted_groups, truth[rows], prediction[rows], groups, labels)[None]


def permuted_gaps(tables: Iterator[np.ndarray], compared: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """Return the `gaps` of a number of permuted tables."""
    parts, missing = list[dict[str, np.ndarray]](), number
    while missing > 0:
        parts.append(gaps(next(tables)[:missing], compared))
        missing -= len(parts[-1]["accuracy"])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ---------------------------------------------------------------- intervals


def rate_limits(
    resampled: dict[str, np.ndarray],
    groups: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    counts: np.ndarray,
    clusters: np.ndarray | None,
    level: float,
) -> Limits:
    """Return the interval of each of `rates`: by bootstrap, or Wilson's for a rate of 0 or 1 or of one cluster.

    Args:
        resampled: `rates` of resampled tables.
        groups: Group of each image, int (n,).
        truth: True emotion of each image, int (n,).
        predicted: Predicted emotion of each image, int (n,).
        counts: Their tables, (groups, labels, labels).
        clusters: Subject of each image, int (n,), or None.
        level: 0-1.
    """
    limits = {score: percentile_interval(values, level) for score, values in resampled.items()}
    macro_f1 = rates(counts)["macro F1"]

    def settle(score: str, place: Any, part: np.ndarray, whole: np.ndarray) -> None:
        if whole.any() and (found := boundary_interval(part & whole, whole, clusters, level)):
            for side, limit in zip(limits[score], found, strict=True):
                side[place] = limit

    for group in range(len(counts)):
        inside, extreme_f1 = groups == group, []
        settle("accuracy", group, truth == predicted, inside)
        for label in range(counts.shape[1]):
            shown, named = inside & (truth == label), inside & (predicted == label)
            settle("recall", (group, label), named, shown)
            settle("false positive rate", (group, label), named, inside & ~shown)
            if shown.any() and (found := f1_boundary_interval(shown, named, clusters, level)):
                extreme_f1.append((2 * float((shown & named).sum() / (shown.sum() + named.sum())), found))
        low, high = limits["macro F1"]
        emotions = int((counts[group].sum(axis=1) > 0).sum())
        if extreme_f1:
            pair = float(low[group]), float(high[group])
            low[group], high[group] = widened(pair, float(macro_f1[group]), extreme_f1, emotions)
    return limits


def simultaneous_width(
    resampled: np.ndarray,
    values: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray],
    first: int,
    second: int,
    level: float,
) -> float:
    """Return the half width of the interval of a difference that was selected among those of all pairs of groups.

    The widths of all pairs are in proportion to their standard errors. Their factor is the quantile of the largest
    studentised deviation among all pairs in the resamples (Romano and Wolf 2005). The selected pair has extreme rates,
    whose standard errors are too small, so no width is below the quantile of the largest deviation itself. A rate that
    is the same in all resamples adds the width of its own interval.

    Args:
        resampled: A rate in resamples, (resamples, groups).
        values: The rate, (groups,); NaN where a group is not compared.
        limits: Lower and upper limit of each group's own interval, (groups,) each.
        first: Group with the lowest rate.
        second: Group with the highest rate.
        level: Level of the interval, 0-1.
    """
    normal = float(norm.ppf((1 + level) / 2))
    groups = np.flatnonzero(~np.isnan(values))
    deviations = resampled[:, groups] - values[groups]
    is_constant = np.nanmax(np.abs(deviations), axis=0, initial=0) < 1e-12
    extra = np.where(is_constant, (limits[1] - limits[0])[groups], 0.0)
    one, other = np.triu_indices(len(groups), 1)
    errors = np.nanstd(deviations[:, one] - deviations[:, other], axis=0)
    differences = np.abs(deviations[:, one] - deviations[:, other])
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = np.nanmax(differences / errors, axis=1, initial=0)
    factor = max(normal, float(np.quantile(largest, level)))
    least = float(np.quantile(np.nanmax(differences, axis=1, initial=0), level))
    total = errors**2 + (extra[one] ** 2 + extra[other] ** 2) / normal**2
    if first != second:  # equal where all rates are equal: then the pair with the widest interval
        pair = sorted(int(np.flatnonzero(groups == group)[0]) for group in (first, second))
        total = total[(one == pair[0]) & (other == pair[1])]
    return max(least, factor * float(np.sqrt(total.max())))
