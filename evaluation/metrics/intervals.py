"""Cluster bootstrap and Wilson intervals.

A resample draws clusters: all images of a subject, which are similar, or single images where subjects are unknown.
Memory does not grow with the number of resamples. A `seed` may be a generator.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import norm

from configuration import EVALUATION

# A statistic takes how often each image was drawn, float (resamples, images), and returns its values by name, each
# (resamples,). Statistics of two models on the same weights are paired.
Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]
Seed = int | np.random.Generator

MIN_SUBJECTS = 20  # with fewer clusters, bootstrap intervals are too narrow
_CHUNK = 1 << 21  # weights in memory at a time: 16 MB


class Estimate(NamedTuple):
    """A share or a difference of shares with its interval."""

    value: float
    low: float
    high: float

    def __neg__(self) -> "Estimate":
        return Estimate(-self.value, -self.high, -self.low)

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


def subject_clusters(rows: pd.DataFrame) -> np.ndarray | None:
    """Return each row's subject as a number, int (n,), where every row has one and they are several; else None."""
    if "subject" not in rows.columns or (rows["subject"].isin(["", None]) | rows["subject"].isna()).any():
        return None
    clusters, names = pd.factorize(rows["subject"])
    return clusters if len(names) > 1 else None


# ---------------------------------------------------------------- resamples


def bootstrap(statistic: Statistic, clusters: np.ndarray, resamples: int, seed: Seed) -> dict[str, np.ndarray]:
    """Return a statistic's values on resamples of the data (Efron and Tibshirani 1993, chapter 6).

    Whole clusters are drawn with replacement: images of one subject are not independent, and resampling single images
    would give too narrow intervals.

    Args:
        statistic: What to compute.
        clusters: int (images,): cluster of each image, numbered from 0.
        resamples: Number of resamples.
        seed: The same seed gives the same resamples, also to another statistic.

    Returns:
        By name, float (resamples,); NaN where a resample does not allow the value.
    """
    count = int(clusters.max()) + 1
    each_its_own = np.array_equal(clusters, np.arange(count))
    parts = [
        statistic(drawn if each_its_own else drawn[:, clusters])
        for drawn in _draws(count, max(len(clusters), count), resamples, seed)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def resampled_counts(
    codes: np.ndarray, size: int, clusters: np.ndarray | None, resamples: int, seed: Seed
) -> np.ndarray:
    """Return how often each code occurs in resamples of the rows, (resamples, size) int64.

    Args:
        codes: (n,) int, 0 to size - 1: the cell of a contingency table that each row falls into.
        size: Number of cells.
        clusters: (n,) int: cluster of each row; None: each row by itself.
        resamples: Number of resamples.
        seed: Of the draws.
    """
    if clusters is None:  # the counts of rows drawn with replacement are multinomial
        shares = np.bincount(codes, minlength=size) / len(codes)
        return np.random.default_rng(seed).multinomial(len(codes), shares, size=resamples)
    count = int(clusters.max()) + 1
    by_cluster = csr_array((np.ones(len(codes)), (clusters, codes)), shape=(count, size))
    return np.concatenate([drawn @ by_cluster for drawn in _draws(count, count, resamples, seed)]).astype(np.int64)


def resampled_means(values: np.ndarray, clusters: np.ndarray | None, resamples: int, seed: Seed) -> np.ndarray:
    """Return the columns' means in resamples of the rows, (resamples, columns); the same rows in all columns.

    Args:
        values: (n, columns) numbers or truth values.
        clusters: As in `resampled_counts`.
        resamples: Number of resamples.
        seed: Of the draws.
    """
    numbers = np.arange(len(values)) if clusters is None else clusters
    count = int(numbers.max()) + 1
    sums = np.zeros((count, values.shape[1] + 1))
    np.add.at(sums, numbers, np.column_stack([values, np.ones(len(values))]))
    totals = np.concatenate([drawn @ sums for drawn in _draws(count, count, resamples, seed)])
    return totals[:, :-1] / totals[:, -1:]


def _draws(count: int, width: int, resamples: int, seed: Seed) -> Iterator[np.ndarray]:
    """Yield how often each of `count` clusters is drawn, float (some of the resamples, count).

    `width` is the row length of what is made of them, which bounds how many come at a time; the draws are the same
    however many do.
    """
    random = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // width)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


# ---------------------------------------------------------------- intervals


def percentile_interval(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile interval of resampled values, (resamples, ...): lower and upper ends, (...).

    Resamples that do not allow a value (NaN) are left out; where none allows it, both ends are NaN.
    """
    tail = (1 - level) / 2
    empty = np.isnan(values).all(axis=0)  # quantiles of nothing give a warning
    low, high = np.nanquantile(np.where(empty, 0.0, values), [tail, 1 - tail], axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def percentile_intervals(values: Mapping[str, np.ndarray], level: float) -> dict[str, tuple[float, float]]:
    """Return each statistic's percentile interval; NaN where no resample allows a value."""
    intervals = {name: percentile_interval(drawn, level) for name, drawn in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in intervals.items()}


def wilson_interval(share: float, size: float, level: float) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share.

    Args:
        share: 0-1.
        size: Number of independent observations; an effective sample size may be fractional.
        level: Level of the interval, 0-1.

    Returns:
        Lower and upper limit, 0-1; NaN without an observation.
    """
    if not size > 0:
        return float("nan"), float("nan")
    squared = norm.ppf((1 + level) / 2) ** 2 / size
    half = np.sqrt(squared * (share * (1 - share) + squared / 4))
    low, high = ((share + squared / 2 + side * half) / (1 + squared) for side in (-1, 1))
    return float(low) if share > 0 else 0.0, float(high) if share < 1 else 1.0  # exact at the boundary


def effective_size(weights: np.ndarray, clusters: np.ndarray | None) -> float:
    """Return the effective sample size of rows if those of a cluster are identical.

    Kish's (1965) size for an intra-class correlation of one: the squared sum of the cluster weights over the sum
    of their squares. It is 0 without a positive weight.

    Args:
        weights: (n,) weight of each row, at least 0.
        clusters: As in `resampled_counts`.
    """
    sizes = weights.astype(np.float64) if clusters is None else np.bincount(clusters, weights=weights)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else 0.0


def boundary_interval(
    part: np.ndarray, whole: np.ndarray, clusters: np.ndarray | None, level: float
) -> tuple[float, float] | None:
    """Return the interval of a share that is 0 or 1, or whose rows are of one cluster; None for any other share.

    All resamples of such rows give the same share, so that a bootstrap interval has no width. Wilson's interval has
    one. The rows of a cluster count as identical, as their similarity cannot be estimated.

    Args:
        part: (n,) what each row adds to the numerator, from 0 to its `whole`.
        whole: (n,) what each row adds to the denominator, at least 0.
        clusters: As in `resampled_counts`.
        level: Level of the interval, 0-1.

    Returns:
        Lower and upper limit, 0-1; NaN where the denominator is 0.
    """
    total = whole.sum()
    share = part.sum() / total if total > 0 else 0.0
    size, is_extreme = effective_size(whole, clusters), not 1e-12 < share < 1 - 1e-12
    if not is_extreme and size > 1 + 1e-9:
        return None
    return wilson_interval(round(float(share)) if is_extreme else float(share), size, level)


def f1_boundary_interval(
    shown: np.ndarray, named: np.ndarray, clusters: np.ndarray | None, level: float
) -> tuple[float, float] | None:
    """Return the `boundary_interval` of an F1 score; None where that of its Jaccard index is None.

    F1 is 2 J / (1 + J), where J = TP / (TP + FP + FN) is the Jaccard index, which is a share.

    Args:
        shown: (n,) whether each row has the label.
        named: (n,) whether it is predicted.
        clusters: As in `resampled_counts`.
        level: Level of the interval, 0-1.
    """
    jaccard = boundary_interval(shown & named, shown | named, clusters, level)
    return jaccard and (2 * jaccard[0] / (1 + jaccard[0]), 2 * jaccard[1] / (1 + jaccard[1]))


def widened(
    interval: tuple[float, float], value: float, parts: Sequence[tuple[float, tuple[float, float]]], count: int
) -> tuple[float, float]:
    """Widen the bootstrap interval of a mean of scores, some of which have no bootstrap variance.

    Those are the ones that have a `boundary_interval`. The distances of the limits from their values are added in
    quadrature (Zou and Donner 2008).

    Args:
        interval: The mean's bootstrap interval.
        value: The mean, 0-1.
        parts: Value and interval of each of these scores.
        count: Number of all parts of the mean.
    """
    if np.isnan(interval).any():
        return interval
    down, up = max(value - interval[0], 0.0) ** 2, max(interval[1] - value, 0.0) ** 2
    down += sum((own - low) ** 2 for own, (low, _) in parts) / count**2
    up += sum((high - own) ** 2 for own, (_, high) in parts) / count**2
    return max(min(value - float(np.sqrt(down)), interval[0]), 0.0), min(
        max(value + float(np.sqrt(up)), interval[1]), 1.0
    )


def estimate_share(
    hits: np.ndarray, clusters: np.ndarray | None, resamples: int, seed: Seed, level: float = EVALUATION.level
) -> Estimate:
    """Return a share with its interval.

    The interval is Wilson's for independent rows and for a share of 0 or 1. Otherwise it is by bootstrap.

    Args:
        hits: (n,) truth values, n > 0.
        clusters: As in `resampled_counts`.
        resamples: Number of resamples.
        seed: Of the draws.
        level: Level of the interval, 0-1.
    """
    share = float(hits.mean())
    if clusters is None:
        return Estimate(share, *wilson_interval(share, len(hits), level))
    if ends := boundary_interval(hits, np.ones(len(hits)), clusters, level):
        return Estimate(share, *ends)
    low, high = percentile_interval(resampled_means(hits[:, None], clusters, resamples, seed), level)
    return Estimate(share, float(low[0]), float(high[0]))
