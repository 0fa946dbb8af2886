"""Bias mitigation: how a model trained with `--balance` changes the gaps between groups, against one without."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from configuration import EVALUATION, FAIRNESS, EvaluationConfig, FairnessConfig
from evaluation.metrics.fairness import ODDS, codes, enough_images, gaps, group_sizes, large_groups, rates
from evaluation.metrics.intervals import Estimate, percentile_interval, resampled_counts, subject_clusters
from evaluation.metrics.paired import holm
from evaluation.report.section import Section, Table, interval_text
from evaluation.sections.fairness import check_columns, intersection

_WORST_ODDS = "equalised odds, worst emotion"


def mitigation_section(
    rows: pd.DataFrame,
    before: Sequence[str],
    after: Sequence[str],
    names: tuple[str, str],
    labels: Sequence[str],
    columns: Sequence[str],
    fairness: FairnessConfig = FAIRNESS,
    options: EvaluationConfig = EVALUATION,
) -> Section:
    """Compare the gaps between groups of two models on the same images.

    Args:
        rows: Evaluated rows, with `emotion`, the columns, and `subject`.
        before: Predictions of the first model.
        after: Predictions of the second model.
        names: Names of the two models.
        labels: Emotions in class order.
        columns: Columns to group by, one at a time.
        fairness: Smallest groups, permutations and significance level.
        options: Resamples, level and seed.

    Raises:
        InputError: A column does not define groups; see `fairness.check_columns`.
    """
    check_columns(rows, columns)
    section = Section("mitigation", "Fairness before and after balancing")
    compared: dict[str, pd.DataFrame] = {}
    for column in columns:
        group, clusters = intersection(rows, [column]), subject_clusters(rows)
        found = compare_fairness(group, rows["emotion"], before, after, labels, clusters, fairness, options)
        if found is None:
            section.warnings.append(
                f"groups not compared: {column}, fewer than two groups of {fairness.min_images} images, or of "
                f"{fairness.min_subjects} known subjects"
            )
            continue
        caption = (
            f"By {column}: {names[0]} (before) and {names[1]} (after). The change of accuracy has a paired "
            f"{interval_text(options.level)}. The others have a p-value: the share of random exchanges of the two "
            "models' predictions with a change as large"
        )
        section.tables.append(Table(found, caption, tuple(str(name) for name in found.columns if name != "p")))
        section.values[column] = found.reset_index().to_dict("records")
        compared[column] = found
    adjusted = holm([found["p"].get(_WORST_ODDS, np.nan) for found in compared.values()])
    for (column, found), p_value in zip(compared.items(), adjusted, strict=True):
        section.sentences.append(_sentence(column, found, names[1], float(p_value), fairness))
    if len(compared) > 1:
        section.sentences.append(
            "A change of the gaps is significant if the p-value of equalised odds, adjusted for the number of columns "
            f"(Holm), is below {fairness.significance:g}."
        )
    return section


def compare_fairness(
    group: pd.Series,
    truth: Sequence[str] | pd.Series,
    before: Sequence[str],
    after: Sequence[str],
    labels: Sequence[str],
    clusters: np.ndarray | None,
    fairness: FairnessConfig = FAIRNESS,
    options: EvaluationConfig = EVALUATION,
) -> pd.DataFrame | None:
    """Return `before`, `after`, `change`, `low`, `high`, `p` of accuracy and of the gaps between groups.

    The change of accuracy has a paired bootstrap interval. The other figures are extremes over groups, for which a
    bootstrap interval is not valid. Their changes have a two-sided p-value: the predictions of the two models are
    exchanged at random, by subject or by image. None where fewer than two groups are large enough.
    """
    scored = large_groups(group_sizes(group, clusters), fairness)
    if len(scored) < 2:
        return None
    keep = group.isin(scored).to_numpy()
    columns = ((group, scored), (truth, labels), (before, labels), (after, labels))
    cells = [codes(np.asarray(column)[keep], categories) for column, categories in columns]
    shape = len(scored), len(labels), len(labels), len(labels)
    joint, code = np.unique(np.ravel_multi_index(cells, shape), return_inverse=True)  # only combinations that occur
    own_clusters = None if clusters is None else np.unique(clusters[keep], return_inverse=True)[1]
    of_group, of_truth, of_before, of_after = np.unravel_index(joint, shape)
    tables = [
        csr_array((np.ones(len(joint)), (np.arange(len(joint)), np.ravel_multi_index(place, shape[:3]))),
                  shape=(len(joint), int(np.prod(shape[:3]))))
        for place in ((of_group, of_truth, of_before), (of_group, of_truth, of_after))
    ]  # fmt: skip

    def figures(by_before: np.ndarray, by_after: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures of predictions taken from the first model for some images, from the second for others."""
        counts = (by_before @ tables[0] + by_after @ tables[1]).reshape(-1, *shape[:3])
        return _figures(counts, enough_images(counts[0], fairness.min_emotion_images))

    exact = np.bincount(code, minlength=len(joint))[None]
    was, now = figures(exact, 0 * exact), figures(0 * exact, exact)
    drawn = resampled_counts(code, len(joint), own_clusters, options.resamples, options.seed)
    change = (of_truth == of_after).astype(int) - (of_truth == of_before)
    low, high = percentile_interval(drawn @ change / drawn.sum(axis=1), options.level)
    exchanged = _exchanged_counts(code, len(joint), own_clusters, fairness.permutations, options.seed)
    one, other = figures(exact - exchanged, exchanged), figures(exchanged, exact - exchanged)
    rows = []
    for name in was:
        if np.isnan(was[name][0]):
            continue
        size = float(now[name][0] - was[name][0])
        limits, p = (float(low), float(high)), np.nan
        if name != "accuracy":
            limits, p = (np.nan, np.nan), _p_value(other[name] - one[name], size)
        rows.append((name, float(was[name][0]), float(now[name][0]), size, *limits, p))
    return pd.DataFrame(rows, columns=["score", "before", "after", "change", "low", "high", "p"]).set_index("score")


def _p_value(by_chance: np.ndarray, change: float) -> float:
    return (1 + (np.abs(by_chance) >= abs(change) - 1e-9).sum()) / (1 + len(by_chance))


def _exchanged_counts(
    code: np.ndarray, size: int, clusters: np.ndarray | None, permutations: int, seed: int
) -> np.ndarray:
    """Return how many rows of each code are exchanged, (permutations, size): each cluster with probability 1/2."""
    random = np.random.default_rng([seed, 1])
    if clusters is None:
        return random.binomial(np.bincount(code, minlength=size), 0.5, size=(permutations, size))
    count = int(clusters.max()) + 1
    by_cluster = csr_array((np.ones(len(code)), (clusters, code)), shape=(count, size))
    return np.asarray(random.integers(2, size=(permutations, count)) @ by_cluster)


def _figures(counts: np.ndarray, compared: np.ndarray) -> dict[str, np.ndarray]:
    """Return the figures of contingency tables, (tables,) each."""
    own, spread, enough = rates(counts), gaps(counts, compared), compared.sum(axis=0) >= 2
    worst = np.nanmax(spread[ODDS], axis=1) if enough.any() else np.full(len(counts), np.nan)
    return {
        "accuracy": np.trace(counts.sum(axis=1), axis1=1, axis2=2) / counts.sum(axis=(1, 2, 3)),
        "accuracy of the worst group": np.nanmin(own["accuracy"], axis=1),
        "accuracy gap": spread["accuracy"],
        "macro F1 gap": spread["macro F1"],
        _WORST_ODDS: worst,
    }


def _sentence(column: str, found: pd.DataFrame, after: str, adjusted: float, fairness: FairnessConfig) -> str:
    rows: dict[Any, Any] = found.to_dict("index")
    accuracy, odds = rows.pop("accuracy"), rows.get(_WORST_ODDS)
    if odds is None:
        verdict = "too few images of each emotion to compare equalised odds"
    elif adjusted < fairness.significance:
        verdict = f"{after} has {'smaller' if odds['change'] < 0 else 'larger'} gaps between the groups"
    else:
        verdict = "no significant change of the gaps between the groups"
    p_values = {name: f"p = {row['p']:.2g}" for name, row in rows.items()}
    if odds:
        p_values[_WORST_ODDS] += f", adjusted {adjusted:.2g}"
    changes = [f"{name} {100 * row['change']:+.1f} points ({p_values[name]})" for name, row in rows.items()]
    changes.append(f"accuracy {Estimate(accuracy['change'], accuracy['low'], accuracy['high'])} points")
    return f"{column}: {verdict}. Changes: {'; '.join(changes)}."
