"""Comparison of a model's scores between groups: intervals, largest gaps and permutation tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from configuration import EVALUATION, FAIRNESS, EvaluationConfig, FairnessConfig
from evaluation.metrics.fairness import (
    ODDS,
    OVERALL,
    Limits,
    codes,
    contingency_tables,
    enough_images,
    gaps,
    group_sizes,
    large_groups,
    permuted_gaps,
    permuted_tables,
    rate_limits,
    rates,
    scores_by_group,
    simultaneous_width,
)
from evaluation.metrics.intervals import MIN_SUBJECTS, resampled_counts


@dataclass(frozen=True)
class GroupComparison:
    """Scores by group and the gaps between groups.

    Attributes:
        images: Number of images in scored groups.
        scores: A row per group and score: `group`, `score`, `emotion`, `images`, `value`, `low`, `high`.
        gaps: A row per gap: `score`, `emotion`, `worst group`, `best group`, `gap`, `low`, `high` (simultaneous over
            all pairs of groups; NaN for equalised odds), `by chance` (median under permutation), `critical gap`
            (quantile under permutation at the significance level), and `p`.
        too_small: `group_sizes` of the groups that are not scored.
        few_subjects: `group_sizes` of the scored groups whose intervals are too narrow.
        unknown: Images without a group.
        mixed_subjects: Whether a subject is in two groups, so that images were permuted instead of subjects.
        not_compared: Emotions of which fewer than two groups have enough images.
    """

    images: int
    scores: pd.DataFrame
    gaps: pd.DataFrame
    too_small: pd.DataFrame
    few_subjects: pd.DataFrame
    unknown: int
    mixed_subjects: bool
    not_compared: list[str]


def compare_groups(
    group: pd.Series,
    truth: Sequence[str] | np.ndarray,
    prediction: Sequence[str] | np.ndarray,
    labels: Sequence[str],
    clusters: np.ndarray | None,
    fairness: FairnessConfig = FAIRNESS,
    options: EvaluationConfig = EVALUATION,
) -> GroupComparison | None:
    """Compare a model's scores between groups.

    Args:
        group: Group of each image; empty where it is unknown.
        truth: True emotion of each image.
        prediction: Predicted emotion of each image.
        labels: Emotions in class order.
        clusters: Subject of each image, int (n,), resampled and permuted as a whole; None: images are.
        fairness: Smallest groups, permutations and significance level.
        options: Resamples, level and seed.

    Returns:
        None where fewer than two groups are large enough.
    """
    sizes = group_sizes(group, clusters)
    names = large_groups(sizes, fairness)
    if len(names) < 2:
        return None
    keep = group.isin(names).to_numpy()
    of_group, of_truth, of_prediction = (
        codes(np.asarray(column)[keep], categories)
        for column, categories in ((group, names), (truth, labels), (prediction, labels))
    )
    own_clusters = None if clusters is None else np.unique(clusters[keep], return_inverse=True)[1]
    pairs = None if own_clusters is None else np.unique(np.stack([own_clusters, of_group]), axis=1)
    mixed = own_clusters is not None and pairs is not None and pairs.shape[1] > own_clusters.max() + 1
    counts = contingency_tables(of_group, of_truth, of_prediction, len(names), len(labels))
    compared = enough_images(counts, fairness.min_emotion_images)
    random = np.random.default_rng(options.seed)
    cells = np.ravel_multi_index((of_group, of_truth, of_prediction), counts.shape)
    drawn = resampled_counts(cells, counts.size, own_clusters, options.resamples, random)
    resampled = rates(drawn.reshape(-1, *counts.shape))
    tables = permuted_tables(
        of_group, of_truth, of_prediction, counts.shape[:2], None if mixed else own_clusters, random
    )
    permuted = permuted_gaps(tables, compared, fairness.permutations)
    limits = rate_limits(resampled, of_group, of_truth, of_prediction, counts, own_clusters, options.level)
    return GroupComparison(
        len(of_group),
        _score_rows(counts, limits, names, labels),
        _gap_rows(counts, compared, resampled, limits, permuted, names, labels, fairness, options),
        sizes.drop(names),
        sizes.loc[[name for name in names if int(sizes["subjects"][name]) < MIN_SUBJECTS]],
        int((group == "").sum()),
        mixed,
        [label for label, enough in zip(labels, compared.sum(axis=0) >= 2, strict=True) if not enough],
    )


def _score_rows(counts: np.ndarray, limits: Limits, names: list[str], labels: Sequence[str]) -> pd.DataFrame:
    by_group, support = scores_by_group(counts, names, labels).by_group.loc[names], counts.sum(axis=2)
    total = support.sum(axis=1)
    rows = []
    for score, sides in limits.items():
        for column, emotion in _columns(score, labels):
            low, high = (_pick(side, column) for side in sides)
            images = total if column is None else support[:, column]
            images = total - images if score == "false positive rate" else images
            values = by_group[f"{score} {emotion}".strip()]
            rows += zip(names, [score] * len(names), [emotion] * len(names), images, values, low, high, strict=True)
    return pd.DataFrame(rows, columns=["group", "score", "emotion", "images", "value", "low", "high"])


def _columns(score: str, labels: Sequence[str]) -> list[tuple[int | None, str]]:
    return [(None, "")] if score in OVERALL else list(enumerate(labels))


def _pick(values: np.ndarray, column: int | None) -> np.ndarray:
    return values if column is None else values[..., column]


def _gap_rows(
    counts: np.ndarray,
    compared: np.ndarray,
    resampled: dict[str, np.ndarray],
    limits: Limits,
    permuted: dict[str, np.ndarray],
    names: list[str],
    labels: Sequence[str],
    fairness: FairnessConfig,
    options: EvaluationConfig,
) -> pd.DataFrame:
    """Return the gaps, each with an interval that holds for the differences of all pairs of groups at once.

    An interval of one pair alone would ignore that the pair was selected by its difference. Resampled gaps would not
    do either: they are never negative, and mostly larger than the gap itself.
    """
    observed, own = gaps(counts, compared), rates(counts)
    rows = []
    for score, column, emotion in [(name, *each) for name in observed for each in _columns(name, labels)]:
        gap, by_chance = float(_pick(observed[score], column)), _pick(permuted[score], column)
        if np.isnan(gap):
            continue
        groups, low, high = ("", ""), np.nan, np.nan  # the two halves of equalised odds have their own
        if score != ODDS:
            scored = own[score] if column is None else np.where(compared[:, column], own[score][:, column], np.nan)
            lowest, highest = int(np.nanargmin(scored)), int(np.nanargmax(scored))
            is_cost = score == "false positive rate"
            groups = (names[highest], names[lowest]) if is_cost else (names[lowest], names[highest])
            sides = _pick(limits[score][0], column), _pick(limits[score][1], column)
            half = simultaneous_width(_pick(resampled[score], column), scored, sides, lowest, highest, options.level)
            low, high = max(gap - half, -1.0), min(gap + half, 1.0)
        p = (1 + (by_chance >= gap - 1e-9).sum()) / (1 + len(by_chance))
        median, critical = np.quantile(by_chance, [0.5, 1 - fairness.significance])
        rows.append((score, emotion, *groups, gap, low, high, median, critical, p))
    columns = ["score", "emotion", "worst group", "best group", "gap", "low", "high", "by chance", "critical gap", "p"]
    return pd.DataFrame(rows, columns=columns)
