"""Fairness: scores by group, the gaps between groups, and permutation tests of the gaps."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from common.command_line import counted
from common.errors import InputError
from configuration import EVALUATION, FAIRNESS, EvaluationConfig, FairnessConfig
from evaluation.metrics.fairness import HALVES, ODDS, OVERALL, group_sizes
from evaluation.metrics.group_comparison import GroupComparison, compare_groups
from evaluation.metrics.intervals import Estimate, subject_clusters
from evaluation.metrics.paired import holm
from evaluation.report.plots import SERIES, save
from evaluation.report.section import Figure, Section, Table, interval_text
from preprocessing.tables import FACE_COLUMNS, INVENTORY_COLUMNS, unescaped, write_table

MAX_GROUPS = 40  # a column with more values is refused
_SPLIT_COLUMNS = ("split", "fold", "subject_dependent_fold", "cross_split_duplicate")
_METADATA = {*INVENTORY_COLUMNS, *FACE_COLUMNS, *_SPLIT_COLUMNS, "dataset_emotion"}
_NOT_GROUPS = _METADATA - {"usage", "label_source", "status", "face_status"}


# ---------------------------------------------------------------- group columns


def join_group_table(rows: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Return the rows with the columns of a second CSV, joined by `path`; empty for rows that it lacks.

    Raises:
        InputError: The table is missing or unreadable, has no column `path`, repeats a path or a column of the rows, or
            has none of the rows' paths.
    """
    if not file.is_file():
        raise InputError(f"--group-table {file} does not exist; give a CSV with the column path and one per grouping")
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except ValueError as error:  # also of the encoding
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


def check_columns(rows: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse columns that do not define groups.

    Raises:
        InputError: A column is repeated or unknown, describes the image or the emotion, or has one value or too many.
    """
    if len(set(columns)) < len(columns):
        raise InputError(f"--groups {', '.join(columns)}: a column is given twice; give each one once")
    usable = [column for column in rows.columns if column not in _NOT_GROUPS and not column.startswith("votes_")]
    for column in columns:
        if column not in usable:
            raise InputError(
                f"--groups {column!r} is not a column of groups; the table has {', '.join(usable) or 'none'}; "
                "join your own with --group-table FILE (columns path and, for example, gender)"
            )
        values = set(_values(rows, column)) - {""}
        if len(values) < 2:
            known = f"the one value {next(iter(values))!r}" if values else "no value"
            raise InputError(f"--groups {column!r} has {known} in this split; a comparison needs two groups")
        if len(values) > MAX_GROUPS:
            raise InputError(
                f"--groups {column!r} has {len(values)} values, more than {MAX_GROUPS}; merge them into fewer groups"
            )


def _values(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows[column].fillna("").astype(str).str.strip()


def intersection(rows: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """Return the intersectional group of each row, such as `female, Asian`; empty where a part is unknown."""
    parts = pd.concat([_values(rows, column) for column in columns], axis=1)
    return parts.agg(", ".join, axis=1).where((parts != "").all(axis=1), "")


# ---------------------------------------------------------------- section


def fairness_section(
    rows: pd.DataFrame,
    prediction: Sequence[str],
    labels: Sequence[str],
    columns: Sequence[str],
    report: Path,
    fairness: FairnessConfig = FAIRNESS,
    options: EvaluationConfig = EVALUATION,
    title: str = "",
) -> Section:
    """Compare a model's scores between the groups of each column, and of their intersection.

    Args:
        rows: Evaluated rows, with `emotion`, the columns, and `subject`.
        prediction: Predicted emotion of each row.
        labels: Emotions in class order.
        columns: Columns to group by.
        report: Folder for the figures.
        fairness: Smallest groups, permutations and significance level.
        options: Resamples, level and seed.
        title: Line above the figures.

    Raises:
        InputError: A column does not define groups; see `check_columns`.
    """
    check_columns(rows, columns)
    groupings = {column: intersection(rows, [column]) for column in columns}
    if len(columns) > 1:
        groupings[" x ".join(columns)] = intersection(rows, columns)
    truth, clusters = rows["emotion"].to_numpy(), subject_clusters(rows)
    found: dict[str, GroupComparison] = {}
    section = Section("groups", "Fairness by group", [_method(fairness, options)])
    not_compared: list[str] = []
    for name, group in groupings.items():
        comparison = compare_groups(group, truth, prediction, labels, clusters, fairness, options)
        if comparison:
            found[name] = comparison
            not_compared += _not_compared(name, comparison, fairness)
        else:
            listed = _listed(group_sizes(group, clusters))
            not_compared.append(f"{name}, fewer than two groups of {_least(fairness)}: {listed}")
            section.sentences.append(f"{name}: not compared, too small groups.")
    if not_compared:
        section.warnings.append(f"groups not compared: {'; '.join(not_compared)}")
    all_gaps = _adjusted(found)
    for name, comparison in found.items():
        gap_rows = all_gaps.loc[all_gaps["grouping"] == name].drop(columns="grouping")
        if comparison.mixed_subjects:
            section.warnings.append(
                f"some subjects are in more than one group of {name}: images were permuted instead of subjects, which "
                "makes p too small where images of a subject are similar"
            )
        if len(comparison.few_subjects):
            listed = _listed(comparison.few_subjects)
            section.warnings.append(f"intervals of {name} are too narrow for groups of few subjects: {listed}")
        section.sentences.extend(_sentences(name, comparison, gap_rows, fairness))
        section.tables.extend(_tables(name, comparison, gap_rows))
        section.figures.append(_draw(name, comparison, title, report, interval_text(options.level)))
        section.values[name] = {
            "images": comparison.images,
            "alarm": bool((gap_rows["p adjusted"] < fairness.significance).any()),
            "scores": comparison.scores.to_dict("records"),
            "gaps": gap_rows.to_dict("records"),
            "not_scored": comparison.too_small.to_dict("index"),
            "unknown": comparison.unknown,
        }
    return section


def _adjusted(found: dict[str, GroupComparison]) -> pd.DataFrame:
    """Return the gaps of all groupings, with p-values adjusted for all tests.

    Tested are accuracy, macro F1 and each emotion's equalised odds, but not its two halves.
    """
    joined = pd.concat([comparison.gaps.assign(grouping=name) for name, comparison in found.items()] or
                       [pd.DataFrame(columns=["grouping"])])  # fmt: skip
    if found:
        joined["p adjusted"] = holm(joined["p"].where(~joined["score"].isin(HALVES)).to_numpy())
    return joined


def _least(fairness: FairnessConfig) -> str:
    return f"{fairness.min_images} images, or {fairness.min_subjects} known subjects"


def _listed(sizes: pd.DataFrame) -> str:
    texts = [
        f"{group} ({counted(images, 'image')}{'' if subjects == images else ', ' + counted(subjects, 'subject')})"
        for group, images, subjects in zip(sizes.index, sizes["images"], sizes["subjects"], strict=True)
    ]
    return ", ".join(texts)


def _not_compared(name: str, found: GroupComparison, fairness: FairnessConfig) -> list[str]:
    parts = []
    if len(found.too_small):
        parts.append(f"{name}, fewer than {_least(fairness)}: {_listed(found.too_small)}")
    if found.unknown:
        parts.append(f"{name}, no value: {found.unknown} images")
    if found.not_compared:
        listed = ", ".join(found.not_compared)
        parts.append(f"{name}, fewer than two groups of {fairness.min_emotion_images} images of {listed}")
    return parts


# ---------------------------------------------------------------- display


def _method(fairness: FairnessConfig, options: EvaluationConfig) -> str:
    return (
        "Rates of an emotion are one-against-rest. An equalised-odds difference is the larger gap of recall and false "
        f"positive rate. Each {interval_text(options.level)} of a score is by bootstrap, or Wilson's for a rate of 0 "
        "or 1, or of one subject. The interval of a gap holds for all pairs of groups at once, because the pair is "
        "selected by its gap. The largest gap is positive even by chance, so its median under permutation stands "
        "beside it. The group is permuted within each true emotion, and the images of a subject stay together. p is "
        "the share of permutations with a gap as large, adjusted for the number of tests (Holm). Groups of fewer than "
        f"{_least(fairness)} are not scored."
    )


def _sentences(name: str, found: GroupComparison, gap_rows: pd.DataFrame, fairness: FairnessConfig) -> list[str]:
    own = found.scores.loc[found.scores["score"] == "accuracy"].set_index("group")["value"]
    row = gap_rows.loc[gap_rows["score"] == "accuracy"].iloc[0]
    worst, best = (f"{row[side]} {100 * own[row[side]]:.1f} %" for side in ("worst group", "best group"))
    sentences = [
        f"{name}: {len(own)} groups, {found.images} images. Worst accuracy: {worst}; best: {best}. Largest gap "
        f"{Estimate(row['gap'], row['low'], row['high'])} points, {_p_value(row)}."
    ]
    alarms = gap_rows.loc[gap_rows["p adjusted"] < fairness.significance]
    if alarms.empty:
        return [
            *sentences,
            f"{name}: no significant difference. That does not prove fairness: with so many images, a gap in accuracy "
            f"below about {100 * row['critical gap']:.1f} points is not significant.",
        ]
    named = ", ".join(f"{alarm['score']} {alarm['emotion']}".strip() for _, alarm in alarms.iterrows())
    sentences.append(f"Scores differ significantly between groups of {name}: {named}.")
    for _, alarm in alarms.loc[alarms["score"] == ODDS].sort_values("p", kind="stable").iterrows():
        halves = gap_rows.loc[(gap_rows["emotion"] == alarm["emotion"]) & gap_rows["score"].isin(HALVES)]
        half = halves.sort_values("gap").iloc[-1]
        extreme = "lowest" if half["score"] == "recall" else "highest"
        sentences.append(
            f"{name}: the {half['score']} of {alarm['emotion']} is {extreme} for {half['worst group']}; equalised-odds "
            f"difference {100 * alarm['gap']:.1f} points, {_p_value(alarm)}."
        )
    return sentences


def _p_value(row: pd.Series) -> str:
    return f"by chance {100 * row['by chance']:.1f} (p = {row['p']:.2g}, adjusted {row['p adjusted']:.2g})"


def _tables(name: str, found: GroupComparison, gap_rows: pd.DataFrame) -> list[Table]:
    scores = found.scores.set_index("group")
    parts = {score: scores.loc[scores["score"] == score] for score in OVERALL}
    summary = pd.concat([parts["accuracy"]["images"]] + [
        part[["value", "low", "high"]].set_axis([score, f"{score}: low", f"{score}: high"], axis=1)
        for score, part in parts.items()
    ], axis=1).sort_values("accuracy")  # fmt: skip
    tables = [
        Table(summary, f"By {name}: accuracy and macro F1, worst group first", tuple(map(str, summary.columns[1:])))
    ]
    for score in HALVES:
        own = scores.loc[scores["score"] == score]
        wide = own.pivot(columns="emotion", values="value")[list(dict.fromkeys(own["emotion"]))]
        caption = f"By {name}: {score} of each emotion (the figure and its CSV have intervals)"
        tables.append(Table(wide.rename_axis(columns=None), caption, tuple(map(str, wide.columns))))
    printed = gap_rows.set_index((gap_rows["score"] + " " + gap_rows["emotion"]).str.strip().rename("score"))
    printed = printed.drop(columns=["score", "emotion", "critical gap"])
    caption = f"Largest gaps between groups of {name}, beside their median under permutation"
    return [*tables, Table(printed, caption, ("gap", "low", "high", "by chance"))]


def _draw(name: str, found: GroupComparison, title: str, report: Path, interval: str) -> Figure:
    """Draw every score of every group with its interval: one panel for all emotions, and one for each."""
    scores, groups = found.scores, list(dict.fromkeys(found.scores["group"]))
    emotions = list(dict.fromkeys(scores["emotion"]))
    columns = min(4, len(emotions))
    lines = -(-len(emotions) // columns)
    size = 2.9 * columns + 1, lines * (0.3 * len(groups) + 1.0) + 0.5
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    panels = cast(np.ndarray, figure.subplots(lines, columns, sharey=True, squeeze=False)).ravel()
    for axes in panels[len(emotions) :]:
        axes.axis("off")
    for axes, emotion in zip(panels, emotions, strict=False):
        own = scores.loc[scores["emotion"] == emotion]
        for number, (score, part) in enumerate(own.groupby("score", sort=False)):
            _draw_dots(axes, part, groups, number, str(score))
        axes.set_title(emotion or "all emotions")
        axes.set(xlim=(-0.03, 1.03), ylim=(len(groups) - 0.5, -0.5))
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize="x-small", frameon=False)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(groups)), groups)
    stem = f"groups_{''.join(letter if letter.isalnum() else '_' for letter in name)}"
    while (file := report / f"{stem}.png").exists():  # `skin tone` and `skin_tone`
        stem += "_"
    write_table(scores, file.with_suffix(".csv"))
    return Figure(
        save(figure, file),
        f"Scores by {name}, with {interval}s ({found.images} images).",
        f"For all emotions and for each, a dot with an interval for every one of {len(groups)} groups.",
    )


def _draw_dots(axes: Axes, own: pd.DataFrame, groups: list[str], number: int, label: str) -> None:
    color, marker, _ = SERIES[number]
    places = np.array([groups.index(group) for group in own["group"]]) + 0.24 * number - 0.12
    errors = np.stack([own["value"] - own["low"], own["high"] - own["value"]]).clip(0)
    axes.errorbar(own["value"], places, xerr=errors, label=label, fmt=marker, color=color, capsize=2, markersize=5)
