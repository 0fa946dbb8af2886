"""Before and after: whether a model trained with `--balance` treats groups more alike, and what that cost."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from configuration import FAIRNESS, FairnessConfig
from evaluation.metrics.intervals import Estimate, percentile_interval, resampled_counts, subject_clusters
from evaluation.report.section import Section, Table, interval_text
from evaluation.sections.fairness import check_columns, crossed, gaps, rates, tables_of


def before_and_after(
    rows: pd.DataFrame,
    before: Sequence[str],
    after: Sequence[str],
    names: tuple[str, str],
    labels: Sequence[str],
    columns: Sequence[str],
    options: FairnessConfig = FAIRNESS,
) -> Section:
    """Compare how two models treat groups, on the same images.

    Args:
        rows: The evaluated rows, with `emotion`, the columns, and `subject`.
        before: The first model's answer to each of them.
        after: The second model's.
        names: What the two are called.
        labels: What they tell apart.
        columns: Columns to group by; each by itself.
        options: Least group, resamples, seed.

    Raises:
        InputError: a column that gives no groups; see `groups.check_columns`.
    """
    check_columns(rows, columns, options)
    sentences, warnings, tables, values = [], [], [], {}
    for column in columns:
        group = crossed(rows, [column])
        found = compare(group, rows["emotion"], before, after, labels, subject_clusters(rows), options)
        if found is None:
            sentences.append(f"{column}: not compared, fewer than two groups have {options.smallest} images.")
            warnings.append(f"groups not compared: {column}, fewer than two groups of {options.smallest} images")
            continue
        caption = (
            f"By {column}: {names[0]} (before) and {names[1]} (after). The accuracy's change has its paired "
            f"{interval_text(options.level)}. The figures of best and worst groups have p-values instead: the share of "
            "random exchanges of the two models' predictions with a change as large"
        )
        tables.append(Table(found, caption, tuple(str(name) for name in found.columns if name != "p")))
        values[column] = found.reset_index().astype(object).where(found.reset_index().notna(), None).to_dict("records")
        sentences.append(_sentence(column, found, names, options))
    return Section("mitigation", "Before and after balancing", sentences, warnings, tables, [], values)


def compare(
    group: pd.Series,
    truth: Sequence[str] | pd.Series,
    before: Sequence[str],
    after: Sequence[str],
    labels: Sequence[str],
    clusters: np.ndarray | None,
    options: FairnessConfig = FAIRNESS,
) -> pd.DataFrame | None:
    """Return `before`, `after`, `change`, `low`, `high`, `p` of accuracy and of its differences between groups.

    The accuracy's change has an interval, from resamples of the same images for both models. The other figures are
    extremes over groups, for which a bootstrap interval does not hold. Their changes have a two-sided p-value: the
    predictions of the two models are exchanged at random, subject by subject or image by image. None where fewer than
    two groups are large enough.

    Raises:
        ValueError: the models did not answer the same number of images.
    """
    if not len(group) == len(truth) == len(before) == len(after):
        raise ValueError(f"paired models need the same images. Received: {len(before)} and {len(after)} predictions")
    sizes = group[group != ""].value_counts()
    scored = sorted(sizes.index[sizes >= options.smallest])
    if len(scored) < 2:
        return None
    keep = group.isin(scored).to_numpy()
    shown_groups, shown, first, second = (
        pd.Categorical(np.asarray(column)[keep], categories=list(of)).codes.astype(np.int64)
        for column, of in ((group, scored), (truth, labels), (before, labels), (after, labels))
    )
    shape = len(scored), len(labels), len(labels)
    per_emotion = tables_of(shown_groups, shown, first, *shape[:2]).sum(axis=2)
    compared = per_emotion >= options.smallest_emotion
    cells = np.ravel_multi_index((shown_groups, shown, first, second), (*shape, len(labels)))
    joint, codes = np.unique(cells, return_inverse=True)  # the few combinations that occur
    own_units = None if clusters is None else np.unique(clusters[keep], return_inverse=True)[1]
    drawn = resampled_counts(codes, len(joint), own_units, options.resamples, options.seed)
    exact = np.bincount(codes, minlength=len(joint))[None]
    group_of, shown_of, first_of, second_of = np.unravel_index(joint, (*shape, len(labels)))
    exchanged = _exchanged_counts(codes, len(joint), own_units, options)
    onto = []
    for answer in (first_of, second_of):
        place = np.ravel_multi_index((group_of, shown_of, answer), shape)
        onto.append(
            csr_array((np.ones(len(joint)), (np.arange(len(joint)), place)), shape=(len(joint), int(np.prod(shape))))
        )

    def figures(of_first: np.ndarray, of_second: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures of predictions that are the first model's for some images, the second's for others."""
        return _figures((of_first @ onto[0] + of_second @ onto[1]).reshape(-1, *shape), compared)

    none = np.zeros((1, len(joint)))
    exact_before, exact_after = figures(exact, none), figures(none, exact)
    drawn_change = figures(0 * drawn, drawn)["accuracy"] - figures(drawn, 0 * drawn)["accuracy"]
    first_swapped, second_swapped = figures(exact - exchanged, exchanged), figures(exchanged, exact - exchanged)
    rows = []
    for name in exact_before:
        was, now = float(exact_before[name][0]), float(exact_after[name][0])
        low, high = percentile_interval(drawn_change, options.level) if name == "accuracy" else (np.nan, np.nan)
        by_chance = np.abs(second_swapped[name] - first_swapped[name])
        p = np.nan if name == "accuracy" else (1 + (by_chance >= abs(now - was) - 1e-9).sum()) / (1 + len(by_chance))
        rows.append((name, was, now, now - was, float(low), float(high), float(p)))
    return pd.DataFrame(rows, columns=["score", "before", "after", "change", "low", "high", "p"]).set_index("score")


def _exchanged_counts(codes: np.ndarray, size: int, clusters: np.ndarray | None, options: FairnessConfig) -> np.ndarray:
    """Return how many rows of each code are exchanged, (permutations, size): each unit with probability 1/2."""
    random = np.random.default_rng([options.seed, 1])
    if clusters is None:
        return random.binomial(np.bincount(codes, minlength=size), 0.5, size=(options.permutations, size))
    count = int(clusters.max()) + 1
    by_unit = csr_array((np.ones(len(codes)), (clusters, codes)), shape=(count, size))
    return np.asarray(random.integers(2, size=(options.permutations, count)) @ by_unit)


def _figures(counts: np.ndarray, compared: np.ndarray) -> dict[str, np.ndarray]:
    """Return figures of contingency tables, (resamples,) each."""
    own, spread = rates(counts), gaps(counts, compared)
    right, number = np.trace(counts.sum(axis=1), axis1=1, axis2=2), counts.sum(axis=(1, 2, 3))
    odds = spread["equalised odds"]
    return {
        "accuracy": right / number,
        "accuracy of the worst group": np.nanmin(own["accuracy"], axis=1),
        "accuracy gap": spread["accuracy"],
        "macro F1 gap": spread["macro F1"],
        "equalised odds, worst emotion": np.where(np.isnan(odds), 0, odds).max(axis=1),
    }


def _sentence(column: str, found: pd.DataFrame, names: tuple[str, str], options: FairnessConfig) -> str:
    rows = {name: figures for name, *figures in found[["change", "low", "high", "p"]].itertuples()}
    odds, _, _, odds_p = rows["equalised odds, worst emotion"]
    if odds_p >= options.alarm:
        verdict = "that either treats the groups more alike is not shown"
    else:
        verdict = f"{names[1]} treats the groups {'more' if odds < 0 else 'less'} alike"

    def change(name: str) -> str:
        return f"{100 * rows[name][0]:+.1f} (p = {rows[name][3]:.2g})"

    accuracy = Estimate(*rows["accuracy"][:3])
    return (
        f"{column}: {verdict}: the equalised-odds difference of its worst emotion changes by "
        f"{change('equalised odds, worst emotion')} points, the gap in accuracy by {change('accuracy gap')}, the worst "
        f"group's accuracy by {change('accuracy of the worst group')}, and accuracy over all by {accuracy}."
    )
