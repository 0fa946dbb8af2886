"""For whom a model fails: its scores by group, the gaps between groups, and whether chance explains them.

Scores by group are fairlearn's `MetricFrame`. Intervals and p-values come from contingency tables (group x truth x
prediction): to resample or shuffle rows is to draw such tables, so a million rows take no more memory than a thousand.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib.figure
import numpy as np
import pandas as pd
from fairlearn.metrics import MetricFrame
from matplotlib.axes import Axes
from scipy.stats import norm, random_table
from sklearn import metrics

from common.command_line import progress_bar
from common.errors import InputError
from common.files import atomic_file
from configuration import FAIRNESS, FairnessConfig
from evaluation.metrics.intervals import (
    Estimate,
    boundary_interval,
    percentile_interval,
    resampled_counts,
    subject_clusters,
    widened,
)
from evaluation.metrics.paired import holm
from evaluation.report.section import Figure, Section, Table, interval_text
from preprocessing.tables import FACE_COLUMNS, INVENTORY_COLUMNS, unescaped, write_table

_AT_ONCE = 1_000_000  # cells of shuffled tables held at once
_NOT_GROUPS = {*INVENTORY_COLUMNS, *FACE_COLUMNS, "split", "fold", "dataset_emotion"} - {
    "usage",
    "label_source",
    "status",
    "face_status",
}


# ---------------------------------------------------------------- the columns


def join_group_table(rows: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Return the rows with the columns of a second CSV, joined by `path`; rows that it does not name stay, unknown.

    Raises:
        InputError: no such table, no column `path`, a path twice, a column that the rows have already, or no path of it
            is among the rows'.
    """
    if not file.is_file():
        raise InputError(f"--group-table {file} does not exist; give a CSV with the column path and one per grouping")
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"--group-table {file} is not a readable CSV table ({error})") from error
    table = unescaped(table)  # its paths may be copied from our tables
    if "path" not in table.columns:
        raise InputError(
            f"--group-table {file} has the columns {', '.join(table.columns)}; it needs path (as in inventory.csv)"
        )
    twice = table["path"].duplicated()
    if twice.any():
        raise InputError(f"--group-table {file} has path {table.loc[twice, 'path'].iloc[0]!r} twice; keep one line")
    taken = [column for column in table.columns if column != "path" and column in rows.columns]
    if taken:
        raise InputError(f"--group-table {file}: the data set has a column {taken[0]!r} already; rename it in the file")
    if not table["path"].isin(rows["path"]).any():
        raise InputError(
            f"--group-table {file}: none of its paths (such as {next(iter(table['path']), '')!r}) is evaluated here "
            f"(such as {rows['path'].iloc[0]!r}); write them as in inventory.csv"
        )
    joined = rows.merge(table, on="path", how="left").fillna(dict.fromkeys(table.columns, ""))
    return joined.set_axis(rows.index)


def check_columns(rows: pd.DataFrame, columns: Sequence[str], options: FairnessConfig = FAIRNESS) -> None:
    """Refuse columns that give no groups to compare.

    Raises:
        InputError: an unknown column, one that describes the picture or what is recognised, one with a single value
            or with too many.
    """
    usable = [column for column in rows.columns if column not in _NOT_GROUPS and not column.startswith("votes_")]
    for column in columns:
        if column not in usable:
            raise InputError(
                f"--groups {column!r} is no column to group people by; the table has {', '.join(usable) or 'none'}; "
                "join labels of your own with --group-table FILE (columns path and, say, gender)"
            )
        values = set(_values(rows, column)) - {""}
        if len(values) < 2:
            known = f"the one value {next(iter(values))!r}" if values else "no value"
            raise InputError(f"--groups {column!r} has {known} in this split; two groups or more can be compared")
        if len(values) > options.most:
            raise InputError(
                f"--groups {column!r} has {len(values)} values, more than {options.most}; sort them into fewer groups"
            )


def _values(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows[column].fillna("").astype(str).str.strip()


def crossed(rows: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """Return the intersection that each row belongs to, such as `female, Asian`; empty where a part is unknown."""
    parts = [_values(rows, column) for column in columns]
    known = np.logical_and.reduce([(part != "").to_numpy() for part in parts])
    joined = pd.Series([", ".join(values) for values in zip(*parts, strict=True)], index=rows.index, dtype=object)
    return joined.where(known, "")


# ---------------------------------------------------------------- rates of contingency tables


def tables_of(group: np.ndarray, truth: np.ndarray, prediction: np.ndarray, groups: int, labels: int) -> np.ndarray:
    """Return the counts, (groups, labels, labels): group, truth, prediction."""
    cells = (group * labels + truth) * labels + prediction
    return np.bincount(cells, minlength=groups * labels**2).reshape(groups, labels, labels)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of contingency tables, NaN where there is nothing to score.

    Args:
        counts: (..., groups, labels, labels): group, truth, prediction.

    Returns:
        `accuracy` and `macro F1`, (..., groups); `recall` and `false positives`, (..., groups, labels). Macro F1 is
        over the emotions that occur in the group.
    """
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    shown, named = counts.sum(axis=-1), counts.sum(axis=-2)
    number = shown.sum(axis=-1)
    f1 = np.where(shown > 0, _share(2 * right, shown + named), 0)
    return {
        "accuracy": _share(right.sum(axis=-1), number),
        "macro F1": _share(f1.sum(axis=-1), (shown > 0).sum(axis=-1)),
        "recall": _share(right, shown),
        "false positives": _share(named - right, number[..., None] - shown),
    }


def gaps(counts: np.ndarray, compared: np.ndarray) -> dict[str, np.ndarray]:
    """Return the largest differences between groups.

    Args:
        counts: (..., groups, labels, labels).
        compared: bool (groups, labels): where an emotion's rates are compared.

    Returns:
        `accuracy` and `macro F1`, (...); `recall`, `false positives`, and the greater of the two, `equalised odds`,
        (..., labels), NaN for an emotion that is compared in fewer than two groups.
    """
    found = rates(counts)
    spread = {name: np.ptp(np.nan_to_num(found[name]), axis=-1) for name in ("accuracy", "macro F1")}
    enough = compared.sum(axis=0) >= 2
    for name in ("recall", "false positives"):
        known = compared & ~np.isnan(found[name])
        highest = np.where(known, found[name], -np.inf).max(axis=-2)
        lowest = np.where(known, found[name], np.inf).min(axis=-2)
        spread[name] = np.where(enough, np.maximum(highest - lowest, 0), np.nan)
    spread["equalised odds"] = np.maximum(spread["recall"], spread["false positives"])
    return spread


def shuffled_tables(
    group: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    shape: tuple[int, ...],
    clusters: np.ndarray | None,
    random: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Yield tables, (some, groups, labels, labels), in which the group has nothing to do with the prediction; endless.

    The group is shuffled within each true emotion, so that every shuffle has the real number of images of each group
    and emotion. Without units this gives a random table with the margins of the real one. With units, each of one
    group, the images of a unit stay together: all emotions rank the units in one random order, and each group takes
    its number of images along it. Where the groups show the same mix of emotions, this shuffles whole units.
    """
    groups, labels = shape
    if clusters is None:
        size = max(_AT_ONCE // (groups * labels**2), 1)
        counts = tables_of(group, truth, prediction, groups, labels)
        margins = [(label, counts[:, label].sum(axis=1), counts[:, label].sum(axis=0)) for label in np.unique(truth)]
        while True:
            tables = np.zeros((size, groups, labels, labels), np.int64)
            for label, by_group, by_prediction in margins:
                tables[:, :, label] = random_table.rvs(by_group, by_prediction, size=size, random_state=random)
            yield tables
    blocks, block = np.unique(
        truth * (int(clusters.max()) + 1) + clusters, return_inverse=True
    )  # by emotion, then unit
    emotion_of, unit_of = np.divmod(blocks, int(clusters.max()) + 1)
    by_block, sizes = np.argsort(block, kind="stable"), np.bincount(block)
    starts = np.cumsum(sizes) - sizes
    sorted_groups, truth, prediction = group[np.lexsort((group, truth))], truth[by_block], prediction[by_block]
    while True:
        order = np.lexsort((random.permutation(int(clusters.max()) + 1)[unit_of], emotion_of))
        moved = np.repeat(starts[order] - (np.cumsum(sizes[order]) - sizes[order]), sizes[order])
        rows = np.arange(len(truth)) + moved
        yield tables_of(sorted_groups, truth[rows], prediction[rows], groups, labels)[None]


# ---------------------------------------------------------------- one grouping


@dataclass(frozen=True)
class Audit:
    """What one grouping gave.

    Attributes:
        name: The column, or the columns crossed.
        images: Rows in scored groups.
        scores: One row per group and score: `group`, `score`, `emotion`, `images`, `value`, `low`, `high`.
        gaps: One row per gap: `score`, `emotion`, `worst group`, `best group`, `gap`, `low`, `high` (simultaneous
            over all pairs of groups; NaN for equalised odds), `by chance` (median of the shuffles), `unnoticed` (the
            gap that a test at the level `alarm` needs), `p`.
        unscored: Images in each group that is too small.
        unknown: Rows without a group.
        mixed_subjects: Some subject is in two groups, so that images were shuffled and not subjects.
        uncompared: Emotions whose rates no two groups have enough images for.
    """

    name: str
    images: int
    scores: pd.DataFrame
    gaps: pd.DataFrame
    unscored: dict[str, int]
    unknown: int
    mixed_subjects: bool
    uncompared: list[str]


def frame_of(counts: np.ndarray, names: Sequence[str], labels: Sequence[str]) -> MetricFrame:
    """Return fairlearn's scores by group: `images`, `accuracy`, `macro F1`, and each emotion's against the rest.

    It is given one weighted row per cell, which gives the same as a row per image and is as quick for a million. A
    recall without images of the emotion, and a false-positive rate without others, are NaN.

    Args:
        counts: (groups, labels, labels): group, truth, prediction.
        names: The groups.
        labels: The emotions.
    """
    cells = np.nonzero(counts)
    group, truth, prediction = (
        np.asarray(of, object)[cell] for cell, of in zip(cells, (names, labels, labels), strict=True)
    )
    scores: dict[str, Callable[..., Any]] = {"images": _images, "accuracy": metrics.accuracy_score}
    scores["macro F1"] = _macro_f1
    for label in labels:
        scores[f"recall {label}"] = partial(_recall, label=label)
        scores[f"false positives {label}"] = partial(_false_positives, label=label)
    return MetricFrame(
        metrics=scores,
        y_true=truth,
        y_pred=prediction,
        sensitive_features=group,
        sample_params={name: {"sample_weight": counts[cells]} for name in scores},
    )


def _images(truth: np.ndarray, prediction: np.ndarray, sample_weight: np.ndarray) -> int:
    return int(np.sum(sample_weight))


def _macro_f1(truth: np.ndarray, prediction: np.ndarray, sample_weight: np.ndarray) -> float:
    score: Callable[..., Any] = metrics.f1_score
    shown = sorted(set(truth))
    return score(truth, prediction, labels=shown, average="macro", sample_weight=sample_weight, zero_division=0.0)


def _recall(truth: np.ndarray, prediction: np.ndarray, sample_weight: np.ndarray, label: str) -> float:
    return _named(prediction, sample_weight, np.asarray(truth) == label, label)


def _false_positives(truth: np.ndarray, prediction: np.ndarray, sample_weight: np.ndarray, label: str) -> float:
    return _named(prediction, sample_weight, np.asarray(truth) != label, label)


def _named(prediction: np.ndarray, sample_weight: np.ndarray, among: np.ndarray, label: str) -> float:
    """Return the share of some rows that are given a label; NaN where there are no such rows."""
    if not among.any():
        return np.nan
    return float(np.average(np.asarray(prediction)[among] == label, weights=np.asarray(sample_weight)[among]))


def audit(
    name: str,
    group: pd.Series,
    truth: Sequence[str] | np.ndarray,
    prediction: Sequence[str] | np.ndarray,
    labels: Sequence[str],
    clusters: np.ndarray | None,
    options: FairnessConfig = FAIRNESS,
) -> Audit | None:
    """Compare a model's scores between groups.

    Args:
        name: The grouping.
        group: Group of each row; empty where it is unknown.
        truth: Emotion of each row.
        prediction: The model's answer to each row.
        labels: What it tells apart.
        units: Subject of each row, drawn and shuffled as a whole; None: rows are.
        options: Least group, resamples, seed.

    Returns:
        None where fewer than two groups are large enough.
    """
    sizes = group.value_counts()
    unknown = int(sizes.get("", 0))
    sizes = sizes.drop("", errors="ignore")
    names = sorted(sizes.index[sizes >= options.smallest])
    if len(names) < 2:
        return None
    keep = group.isin(names).to_numpy()
    scored = [np.asarray(column)[keep] for column in (group, truth, prediction)]
    groups, shown, named = (_codes(column, of) for column, of in zip(scored, (names, labels, labels), strict=True))
    own_units = None if clusters is None else np.unique(clusters[keep], return_inverse=True)[1]
    mixed = own_units is not None and not _is_constant(groups, own_units)
    counts = tables_of(groups, shown, named, len(names), len(labels))
    per_emotion = counts.sum(axis=2)
    others = per_emotion.sum(axis=1, keepdims=True) - per_emotion
    compared = (per_emotion >= options.smallest_emotion) & (others >= options.smallest_emotion)
    random = np.random.default_rng(options.seed)
    cells = (groups * len(labels) + shown) * len(labels) + named
    resampled = resampled_counts(cells, counts.size, own_units, options.resamples, random).reshape(-1, *counts.shape)
    shuffles = shuffled_tables(groups, shown, named, counts.shape[:2], None if mixed else own_units, random)
    shuffled = _gaps_of(shuffles, compared, options.permutations)
    drawn = rates(resampled)
    ends = _intervals(drawn, groups, shown, named, counts, own_units, options.level)
    return Audit(
        name,
        len(groups),
        _score_rows(counts, ends, names, labels),
        _gap_rows(counts, compared, drawn, ends, shuffled, names, labels, options),
        {str(key): int(size) for key, size in sizes[sizes < options.smallest].items()},
        unknown,
        mixed,
        [label for label, enough in zip(labels, compared.sum(axis=0) >= 2, strict=True) if not enough],
    )


def _codes(values: np.ndarray, categories: Sequence[str]) -> np.ndarray:
    return pd.Categorical(values, categories=list(categories)).codes.astype(np.int64)


def _is_constant(group: np.ndarray, clusters: np.ndarray) -> bool:
    """Tell whether no subject is in two groups."""
    return len(np.unique(np.stack([clusters, group]), axis=1).T) == len(np.unique(clusters))


def _gaps_of(shuffles: Iterator[np.ndarray], compared: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """Return the gaps of that many shuffles."""
    parts: list[dict[str, np.ndarray]] = []
    done = 0
    with progress_bar() as bar:
        task = bar.add_task("shuffled groups", total=number)
        while done < number:
            tables = next(shuffles)[: number - done]
            parts.append(gaps(tables, compared))
            done += len(tables)
            bar.update(task, completed=done)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _intervals(
    drawn: dict[str, np.ndarray],
    groups: np.ndarray,
    shown: np.ndarray,
    named: np.ndarray,
    counts: np.ndarray,
    clusters: np.ndarray | None,
    level: float,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the intervals of `rates`, by bootstrap or, at 0 and 1, Wilson's: lower and upper ends like the rates.

    Args:
        drawn: `rates` of resampled tables.
        groups: Group of each row, int (n,).
        shown: True emotion of each row, int (n,).
        named: Predicted emotion of each row, int (n,).
        counts: Their tables, (groups, labels, labels).
        units: Subject of each row, or None.
        level: Level of the intervals, 0-1.
    """
    ends = {score: percentile_interval(values, level) for score, values in drawn.items()}
    observed = rates(counts)

    def settle(score: str, place: Any, part: np.ndarray, whole: np.ndarray) -> tuple[float, float] | None:
        if found := boundary_interval(part & whole, whole, clusters, level):
            for limits, limit in zip(ends[score], found, strict=True):
                limits[place] = limit
        return found

    for group in range(len(counts)):
        inside, f1 = groups == group, list[tuple[float, tuple[float, float]]]()
        if observed["accuracy"][group] in (0, 1):
            settle("accuracy", group, shown == named, inside)
        for label in range(counts.shape[1]):
            of_label, called = inside & (shown == label), named == label
            if observed["recall"][group, label] in (0, 1):
                settle("recall", (group, label), called, of_label)
            if observed["false positives"][group, label] in (0, 1):
                settle("false positives", (group, label), called, inside & (shown != label))
            either = of_label | (inside & called)
            if of_label.any() and (found := boundary_interval(of_label & called, either, clusters, level)):
                f1.append((float(found[1] == 1), (2 * found[0] / (1 + found[0]), 2 * found[1] / (1 + found[1]))))
        low, high = ends["macro F1"]
        pair, emotions = (float(low[group]), float(high[group])), int((counts[group].sum(axis=1) > 0).sum())
        low[group], high[group] = widened(pair, float(observed["macro F1"][group]), f1, emotions) if f1 else pair
    return ends


def _score_rows(
    counts: np.ndarray,
    intervals: dict[str, tuple[np.ndarray, np.ndarray]],
    names: list[str],
    labels: Sequence[str],
) -> pd.DataFrame:
    by_group, sizes = frame_of(counts, names, labels).by_group.loc[names], counts.sum(axis=(1, 2))
    rows = []
    for score, (low, high) in intervals.items():
        for emotion, column in _columns(score, labels):
            ends = (low, high) if column is None else (low[:, column], high[:, column])
            shown = counts[:, column].sum(axis=1) if column is not None else sizes
            number = sizes - shown if score == "false positives" else shown
            values = by_group[f"{score} {emotion}".strip()]
            rows += zip(names, [score] * len(names), [emotion] * len(names), number, values, *ends, strict=True)
    return pd.DataFrame(rows, columns=["group", "score", "emotion", "images", "value", "low", "high"])


def _columns(score: str, labels: Sequence[str]) -> list[tuple[str, int | None]]:
    if score in ("accuracy", "macro F1"):
        return [("", None)]
    return [(label, column) for column, label in enumerate(labels)]


def _pick(values: np.ndarray, column: int | None) -> np.ndarray:
    return values if column is None else values[..., column]


def _gap_rows(
    counts: np.ndarray,
    compared: np.ndarray,
    resampled: dict[str, np.ndarray],
    intervals: dict[str, tuple[np.ndarray, np.ndarray]],
    shuffled: dict[str, np.ndarray],
    names: list[str],
    labels: Sequence[str],
    options: FairnessConfig,
) -> pd.DataFrame:
    """Return the gaps, each with an interval that holds for the differences of all pairs of groups at once.

    The interval of one given pair would not do: the pair is chosen by its difference. Nor would resampled gaps, which
    are all above zero and mostly above the gap itself.
    """
    observed, own = gaps(counts, compared), rates(counts)
    rows = []
    for score, value in observed.items():
        for emotion, column in _columns(score, labels):
            gap = float(_pick(value, column))
            if np.isnan(gap):
                continue
            by_chance = _pick(shuffled[score], column)
            worst = best = ""
            low = high = np.nan  # of equalised odds, the greater of two gaps that have their own
            if score in own:
                scored = np.where(compared[:, column], _pick(own[score], column), np.nan) if emotion else own[score]
                lowest, highest = int(np.nanargmin(scored)), int(np.nanargmax(scored))
                ends = names[lowest], names[highest]
                worst, best = reversed(ends) if score == "false positives" else ends
                limits = tuple(_pick(side, column) for side in intervals[score])
                half = simultaneous_width(_pick(resampled[score], column), scored, limits, lowest, highest, options)
                low, high = max(gap - half, -1.0), min(gap + half, 1.0)
            p = (1 + (by_chance >= gap - 1e-9).sum()) / (1 + len(by_chance))
            chance, unnoticed = np.quantile(by_chance, [0.5, 1 - options.alarm])
            rows.append((score, emotion, worst, best, gap, low, high, chance, unnoticed, p))
    columns = ["score", "emotion", "worst group", "best group", "gap", "low", "high", "by chance", "unnoticed", "p"]
    return pd.DataFrame(rows, columns=columns)


def simultaneous_width(
    drawn: np.ndarray,
    values: np.ndarray,
    limits: tuple[np.ndarray, ...],
    first: int,
    second: int,
    options: FairnessConfig,
) -> float:
    """Return the half width of the interval of a difference that was chosen among those of all pairs of groups.

    The widths of all pairs are in proportion to their standard errors, and their factor is the quantile of the largest
    studentised deviation among all pairs in the resamples (Romano and Wolf 2005). The chosen pair has extreme rates,
    whose standard errors are small by the same chance, so no width is below the quantile of the largest deviation
    itself. So all intervals hold at once with the probability `level`, whichever pair is chosen. A rate of 0 or 1 adds
    the width of its own interval.

    Args:
        drawn: A rate in resamples, (resamples, groups).
        values: The rate, (groups,); NaN where a group is not compared.
        limits: Lower and upper limit of each group's own interval, (groups,) each.
        first: The group with the lowest rate.
        second: The group with the highest rate.
        options: Level.
    """
    normal = float(norm.ppf((1 + options.level) / 2))
    groups = np.flatnonzero(~np.isnan(values))
    deviations = drawn[:, groups] - values[groups]
    boundary = np.isin(values[groups], (0, 1))
    filters = np.where(boundary, (limits[1] - limits[0])[groups], 0.0)
    one, other = np.triu_indices(len(groups), 1)
    errors = np.nanstd(deviations[:, one] - deviations[:, other], axis=0)
    differences = np.abs(deviations[:, one] - deviations[:, other])
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = np.nanmax(differences / errors, axis=1, initial=0)
    factor = max(normal, float(np.quantile(largest, options.level)))
    least = float(np.quantile(np.nanmax(differences, axis=1, initial=0), options.level))
    place = {int(group): index for index, group in enumerate(groups)}
    pair = sorted((place[first], place[second]))
    if pair[0] == pair[1]:  # all rates are equal: any pair, here the one with the widest interval
        total = errors**2 + (filters[one] ** 2 + filters[other] ** 2) / normal**2
        return max(least, factor * float(np.sqrt(total.max())))
    error = errors[(one == pair[0]) & (other == pair[1])][0]
    return max(least, factor * float(np.sqrt(error**2 + (filters[pair] ** 2).sum() / normal**2)))


# ---------------------------------------------------------------- the report's part


def audit_groups(
    rows: pd.DataFrame,
    prediction: Sequence[str],
    labels: Sequence[str],
    columns: Sequence[str],
    report: Path,
    options: FairnessConfig = FAIRNESS,
    title: str = "",
) -> Section:
    """Compare a model's scores between the groups of each column, and of all columns crossed.

    Args:
        rows: The evaluated rows, with `emotion`, the columns, and `subject`.
        prediction: The model's answer to each of them.
        labels: What it tells apart.
        columns: Columns to group by.
        report: Folder for the figures.
        options: Least group, resamples, seed.
        title: What was measured on what: the line above each figure.

    Raises:
        InputError: a column that gives no groups; see `check_columns`.
    """
    check_columns(rows, columns, options)
    groupings = {column: crossed(rows, [column]) for column in columns}
    if len(columns) > 1:
        groupings[" x ".join(columns)] = crossed(rows, columns)
    truth, clusters = rows["emotion"].to_numpy(), subject_clusters(rows)
    audits: list[Audit] = []
    sentences, warnings, left_out = [_method(options)], list[str](), list[str]()
    for name, group in groupings.items():
        found = audit(name, group, truth, prediction, labels, clusters, options)
        if found is None:
            sizes = group[group != ""].value_counts()
            listed = ", ".join(f"{key} ({size})" for key, size in sizes.items())
            sentences.append(f"{name}: not compared, fewer than two groups have {options.smallest} images: {listed}.")
            left_out.append(f"{name}, fewer than two groups of {options.smallest} images: {listed}")
        else:
            audits.append(found)
            left_out += _left_out(found, options)
    if left_out:
        warnings.append(f"groups not compared: {'; '.join(left_out)}")
    tested = _adjusted(audits)
    tables: list[Table] = []
    figures: list[Figure] = []
    tests = sum(int(gap_rows["p adjusted"].notna().sum()) for gap_rows in tested)
    for found, gap_rows in zip(audits, tested, strict=True):
        if found.mixed_subjects:
            warnings.append(
                f"some subjects are in more than one group of {found.name}: images were shuffled, not subjects, which "
                "makes p too small where pictures of one person resemble each other"
            )
        sentences += _sentences(found, gap_rows, tests, options)
        tables += _tables(found, gap_rows)
        figures.append(
            _draw(found, title, report / f"groups_{_file_name(found.name)}.png", interval_text(options.level))
        )
    values = {
        found.name: {
            "images": found.images,
            "alarm": bool((gap_rows["p adjusted"] < options.alarm).any()),
            "scores": _records(found.scores),
            "gaps": _records(gap_rows),
            "not_scored": found.unscored,
            "unknown": found.unknown,
        }
        for found, gap_rows in zip(audits, tested, strict=True)
    }
    return Section("groups", "For whom", sentences, warnings, tables, figures, values)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows for JSON, which has no NaN."""
    return cast(list[dict[str, Any]], frame.astype(object).where(frame.notna(), None).to_dict("records"))


def _adjusted(audits: list[Audit]) -> list[pd.DataFrame]:
    """Return the gaps with p-values adjusted for all tests of the run.

    Tested are accuracy, macro F1 and each emotion's equalised odds; recall and false positives are its two halves.
    """
    joined = [found.gaps.assign(**{"p adjusted": np.nan}) for found in audits]
    tested = [~rows["score"].isin(["recall", "false positives"]) for rows in joined]
    p_values = [rows.loc[is_tested, "p"].to_numpy(float) for rows, is_tested in zip(joined, tested, strict=True)]
    if p_values:
        adjusted = np.split(holm(np.concatenate(p_values)), np.cumsum([len(part) for part in p_values])[:-1])
        for rows, is_tested, values in zip(joined, tested, adjusted, strict=True):
            rows.loc[is_tested, "p adjusted"] = values
    return joined


def _method(options: FairnessConfig) -> str:
    return (
        "Rates of an emotion are against all others; an equalised-odds difference is the greater of the gaps in recall "
        f"and in false positives. Each {interval_text(options.level)} is by bootstrap, or Wilson's for a rate of 0 or "
        "1, and holds for one group. A gap's holds for all pairs of groups at once, because the pair is chosen by its "
        "gap; it goes below zero where the order of the two groups is not shown. The largest of several gaps is "
        "never zero, so each stands beside the gap that chance alone gives: the group is shuffled among images of the "
        "same true emotion (the images of a subject, where subjects are known, stay together), and p is the share of "
        "shuffles with a gap as large, adjusted for the number of tests (Holm). Groups of fewer than "
        f"{options.smallest} images are not scored."
    )


def _sentences(found: Audit, gap_rows: pd.DataFrame, tests: int, options: FairnessConfig) -> list[str]:
    left_out = [f"{name} ({size} images)" for name, size in found.unscored.items()]
    notes = f" Not scored, too few images: {', '.join(left_out)}." if left_out else ""
    if found.unknown:
        notes += f" {found.unknown} images have no value and are left out."
    own = found.scores.loc[found.scores["score"] == "accuracy", ["group", "value"]]
    by_group = dict(own.itertuples(index=False))
    row = gap_rows.loc[gap_rows["score"] == "accuracy"].iloc[0]

    def accuracy(name: str) -> str:
        return f"{name} {100 * by_group[name]:.1f} %"  # no interval: the group was chosen by its accuracy

    first = (
        f"{found.name}: {len(by_group)} groups, {found.images} images. Worst accuracy: {accuracy(row['worst group'])}; "
        f"best: {accuracy(row['best group'])}. Largest gap {Estimate(row['gap'], row['low'], row['high'])} points, "
        f"{_by_chance(row)}.{notes}"
    )
    return [first, *_verdict(found, gap_rows, tests, options)]


def _left_out(found: Audit, options: FairnessConfig) -> list[str]:
    """Return what of one grouping is not compared, and why."""
    parts = []
    if found.unscored:
        listed = ", ".join(f"{name} ({size})" for name, size in found.unscored.items())
        parts.append(f"{found.name}, fewer than {options.smallest} images: {listed}")
    if found.unknown:
        parts.append(f"{found.name}, no value: {found.unknown} images")
    if found.uncompared:
        listed = ", ".join(found.uncompared)
        parts.append(f"{found.name}, fewer than two groups of {options.smallest_emotion} images of {listed}")
    return parts


def _by_chance(row: pd.Series) -> str:
    return f"by chance {100 * row['by chance']:.1f} (p = {row['p']:.2g}, adjusted {row['p adjusted']:.2g})"


def _verdict(found: Audit, gap_rows: pd.DataFrame, tests: int, options: FairnessConfig) -> list[str]:
    odds = gap_rows.loc[gap_rows["score"] == "equalised odds"].sort_values(["p", "gap"], ascending=[True, False])
    alarms = gap_rows.loc[gap_rows["p adjusted"] < options.alarm]
    lines = []
    for _, row in odds.loc[odds["p adjusted"] < options.alarm].iterrows():
        halves = gap_rows.loc[
            (gap_rows["emotion"] == row["emotion"]) & gap_rows["score"].isin(["recall", "false positives"])
        ]
        half = halves.sort_values("gap").iloc[-1]
        what = "is recognised least in" if half["score"] == "recall" else "is wrongly named most in"
        lines.append(
            f"{found.name}: {row['emotion']} {what} {half['worst group']}; equalised-odds difference "
            f"{100 * row['gap']:.1f} points, {_by_chance(row)}."
        )
    if alarms.empty:
        unnoticed = gap_rows.loc[gap_rows["score"] == "accuracy", "unnoticed"].iloc[0]
        return [
            f"{found.name}: no difference that chance does not explain ({tests} tests). That is no proof of fairness: "
            f"with so many images, a gap in accuracy below about {100 * unnoticed:.1f} points passes for chance."
        ]
    named = ", ".join(f"{row['score']} {row['emotion']}".strip() for _, row in alarms.iterrows())
    return [f"The model treats groups of {found.name} differently, beyond chance: {named}.", *lines]


def _tables(found: Audit, gap_rows: pd.DataFrame) -> list[Table]:
    wide = []
    for score in ("accuracy", "macro F1"):
        own = found.scores.loc[found.scores["score"] == score].set_index("group")
        wide.append(
            own[["images", "value", "low", "high"]]
            .rename(columns={"value": score})
            .rename(columns={"low": f"{score}: low", "high": f"{score}: high"})
        )
    summary = pd.concat([wide[0], wide[1].drop(columns="images")], axis=1).sort_values("accuracy")
    shares = tuple(str(column) for column in summary.columns if column != "images")
    tables = [
        Table(
            summary, f"By {found.name}: accuracy and macro F1, worst group first; each interval is of one group", shares
        )
    ]
    for score in ("recall", "false positives"):
        own = found.scores.loc[found.scores["score"] == score]
        table = own.pivot(index="group", columns="emotion", values="value")[list(dict.fromkeys(own["emotion"]))]
        caption = f"By {found.name}: {score} of each emotion (intervals: see the figure and its CSV)"
        tables.append(Table(table.rename_axis(columns=None), caption, tuple(map(str, table.columns))))
    printed = gap_rows.assign(what=(gap_rows["score"] + " " + gap_rows["emotion"]).str.strip()).set_index("what")
    printed = printed.drop(columns=["score", "emotion", "unnoticed"])
    caption = f"Largest gaps between groups of {found.name}, beside those that chance gives"
    return [*tables, Table(printed, caption, ("gap", "low", "high", "by chance"))]


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _draw(found: Audit, title: str, file: Path, interval: str) -> Figure:
    """Draw every score of every group with its interval."""
    scores = found.scores
    names = list(dict.fromkeys(scores["group"]))
    emotions = [emotion for emotion in dict.fromkeys(scores["emotion"]) if emotion]
    columns = min(4, len(emotions) + 1)
    lines = -(-(len(emotions) + 1) // columns)
    figure = matplotlib.figure.Figure(
        figsize=(2.9 * columns + 1, lines * (0.3 * len(names) + 1.0) + 0.5), layout="constrained"
    )
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    panels = cast(np.ndarray, figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)).ravel()
    looks = {
        "accuracy": {"fmt": "o", "color": "#0072B2"},
        "macro F1": {"fmt": "D", "color": "#009E73"},
        "recall": {"fmt": "o", "color": "#0072B2"},
        "false positives": {"fmt": "s", "color": "#D55E00", "markerfacecolor": "white"},
    }
    for axes, emotion in zip(panels, ["", *emotions], strict=False):
        own = scores.loc[scores["emotion"] == emotion]
        for number, score in enumerate(dict.fromkeys(own["score"])):
            _dots(axes, own.loc[own["score"] == score], names, 0.24 * number - 0.12, str(score), looks[str(score)])
        axes.set_title(emotion or "all emotions")
        axes.grid(alpha=0.3)
    for axes in panels[len(emotions) + 1 :]:
        axes.axis("off")
    for axes in panels[max(len(emotions) + 1 - columns, 0) : len(emotions) + 1]:
        axes.tick_params(labelbottom=True)  # the lowest of each column, where the last line is not full
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5))
    panels[0].xaxis.set_major_formatter("{x:.0%}")
    handles: dict[str, Any] = {}
    for axes in panels[:2]:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=120)
    write_table(scores, file.with_suffix(".csv"))
    return Figure(
        file,
        f"Scores by {found.name}, with {interval}s ({found.images} images).",
        f"For all emotions and for each, a dot with an interval for every one of {len(names)} groups.",
    )


def _dots(axes: Axes, own: pd.DataFrame, names: list[str], offset: float, label: str, look: dict[str, Any]) -> None:
    places = np.array([names.index(name) for name in own["group"]]) + offset
    errors = np.stack([own["value"] - own["low"], own["high"] - own["value"]]).clip(0)
    axes.errorbar(own["value"], places, xerr=errors, label=label, capsize=2, markersize=5, **look)
