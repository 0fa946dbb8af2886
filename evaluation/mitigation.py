"""Before and after: whether a model trained with `--balance` treats groups more alike, and what that cost."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from configuration import GROUPS, Groups
from evaluation.groups import check_columns, crossed, gaps, rates, tables_of
from evaluation.intervals import Estimate, percentile_interval, resampled_counts, units_of
from evaluation.sections import Section, Table


def before_and_after(
    rows: pd.DataFrame,
    before: Sequence[str],
    after: Sequence[str],
    names: tuple[str, str],
    labels: Sequence[str],
    columns: Sequence[str],
    options: Groups = GROUPS,
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
    sentences, tables, values = [], [], {}
    for column in columns:
        group = crossed(rows, [column])
        found = compare(group, rows["emotion"], before, after, labels, units_of(rows), options)
        if found is None:
            sentences.append(f"{column}: not compared, fewer than two groups have {options.smallest} images.")
            continue
        caption = f"By {column}: {names[0]} (before) and {names[1]} (after); the change with its paired 95 % interval"
        tables.append(Table(found, caption, tuple(map(str, found.columns))))
        values[column] = found.reset_index().to_dict("records")
        sentences.append(_sentence(column, found, names))
    return Section("mitigation", "Before and after balancing", sentences, [], tables, [], values)


def compare(
    group: pd.Series,
    truth: Sequence[str] | pd.Series,
    before: Sequence[str],
    after: Sequence[str],
    labels: Sequence[str],
    units: np.ndarray | None,
    options: Groups = GROUPS,
) -> pd.DataFrame | None:
    """Return `before`, `after`, `change`, `low`, `high` of accuracy and of its differences between groups.

    The interval is of the change, from resamples of the same images for both models. None where fewer than two groups
    are large enough.
    """
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
    own_units = None if units is None else np.unique(units[keep], return_inverse=True)[1]
    drawn = resampled_counts(codes, len(joint), own_units, options.resamples, options.seed)
    exact = np.bincount(codes, minlength=len(joint))[None]
    group_of, shown_of, first_of, second_of = np.unravel_index(joint, (*shape, len(labels)))
    figures = []
    for answer in (first_of, second_of):
        place = np.ravel_multi_index((group_of, shown_of, answer), shape)
        onto = csr_array((np.ones(len(joint)), (np.arange(len(joint)), place)), shape=(len(joint), int(np.prod(shape))))
        figures.append([_figures((counts @ onto).reshape(-1, *shape), compared) for counts in (exact, drawn)])
    (exact_before, drawn_before), (exact_after, drawn_after) = figures
    rows = []
    for name in exact_before:
        low, high = percentile_interval(drawn_after[name] - drawn_before[name])
        was, now = float(exact_before[name][0]), float(exact_after[name][0])
        rows.append((name, was, now, now - was, float(low), float(high)))
    return pd.DataFrame(rows, columns=["score", "before", "after", "change", "low", "high"]).set_index("score")


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


def _sentence(column: str, found: pd.DataFrame, names: tuple[str, str]) -> str:
    changes = {name: Estimate(*figures) for name, *figures in found[["change", "low", "high"]].itertuples()}
    odds, accuracy = changes["equalised odds, worst emotion"], changes["accuracy"]
    if odds.high < 0:
        verdict = f"{names[1]} treats the groups more alike"
    elif odds.low > 0:
        verdict = f"{names[1]} treats the groups less alike"
    else:
        verdict = "that either treats the groups more alike is not shown"
    return (
        f"{column}: {verdict}: the equalised-odds difference of its worst emotion changes by {odds} points, the gap in "
        f"accuracy by {changes['accuracy gap']}, the worst group's accuracy by "
        f"{changes['accuracy of the worst group']}, and accuracy over all by {accuracy}."
    )
