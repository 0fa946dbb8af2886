"""Paired comparisons of two sets of predictions on the same images: differences with intervals, and McNemar's test."""

from collections.abc import Collection, Sequence

import numpy as np
from scipy.stats import binomtest

from configuration import EvaluationConfig
from evaluation.metrics.intervals import Estimate, Statistic, bootstrap, percentile_interval


def paired_difference(
    first: Statistic,
    second: Statistic,
    clusters: np.ndarray,
    options: EvaluationConfig,
    names: Collection[str] | None = None,
) -> dict[str, Estimate]:
    """Return second minus first of each statistic, with its paired cluster bootstrap interval.

    Each resample weights the same images for both, so that what is hard for both cancels out.

    Args:
        first: Statistics of the first predictions, as functions of the weights of the images.
        second: The same of the second predictions, on the same images in the same order.
        clusters: int (n,): the cluster of each image, numbered from 0.
        options: Resamples, seed and level.
        names: Statistics to compare; None: all.

    Returns:
        Differences by name; NaN where a statistic is not defined.
    """

    def differences(weights: np.ndarray) -> dict[str, np.ndarray]:
        before, after = first(weights), second(weights)
        return {name: after[name] - before[name] for name in names or before}

    values = differences(np.ones((1, len(clusters))))
    resampled = bootstrap(differences, clusters, options.resamples, options.seed)
    found = {}
    for name, value in values.items():
        low, high = percentile_interval(resampled[name], options.level)
        found[name] = Estimate(float(value[0]), float(low), float(high))
    return found


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> dict[str, float | int]:
    """Return McNemar's exact test (1947) of equal accuracy on the same images: two-sided binomial test.

    Args:
        correct_a: bool (n,): whether model A is correct.
        correct_b: The same of model B.

    Returns:
        `only_a` and `only_b`, the numbers of images that one model alone classifies correctly, and the `p_value`.
    """
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p_value = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p_value": p_value}


def is_significant(change: Estimate, p_value: float, level: float) -> bool:
    """Return whether a paired difference is significant by its interval and by McNemar's test.

    The interval alone is too narrow where few images decide: with four of them, all for one model, it excludes zero.
    """
    return not change.low <= 0 <= change.high and p_value <= 1 - level


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return p-values adjusted for their number (Holm 1979), in the given order; NaN stays NaN and is not counted."""
    p_values = np.asarray(p_values, np.float64)
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values, kind="stable")[: np.count_nonzero(~np.isnan(p_values))]  # NaN comes last
    steps = p_values[order] * (len(order) - np.arange(len(order)))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
