"""Count what a table of images contains."""

from typing import Any

import pandas as pd

from common.emotions import in_class_order
from preprocessing.tables import OFFICIAL_SPLITS

UNLABELLED = "(unlabelled)"


def count_images(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Count the images per emotion and per value of `usage` or `split`.

    Returns:
        One row per emotion, in class order, and one column per value, training first; `all` contains the sums.
    """
    values = table[column].replace("", "-")
    counts = pd.crosstab(table["emotion"].replace("", UNLABELLED), values)
    order = sorted(set(values) - ({"-"} if values.nunique() == 1 else set()), key=_position)
    sums = counts.sum(axis=1)
    counts = counts.reindex([*in_class_order(set(counts.index)), *({UNLABELLED} & set(counts.index))])[order]
    counts["all"] = sums
    counts.loc["all"] = counts.sum()
    return counts.rename_axis(index=None, columns=None)


def _position(usage: str) -> tuple[int, str]:
    names = list(OFFICIAL_SPLITS)
    return (names.index(usage.lower()) if usage.lower() in names else len(names), usage)


def format_counts(counts: pd.DataFrame) -> str:
    """Return a table of counts as aligned text."""
    return counts.map("{:,}".format).to_string()


def audit(table: pd.DataFrame) -> dict[str, Any]:
    """Count duplicates, missing labels and other properties of an inventory.

    Returns:
        rows: Images in the table.
        unlabelled, constant, unreadable: Images.
        distinct: Distinct readable images.
        duplicates: Readable images beyond the first of each group of duplicates.
        cross_split_groups: Groups of duplicates in more than one of the data set's own splits.
        cross_split_rows: Images in such groups, by split.
        conflicting_groups: Groups of duplicates with more than one label.
        subjects, sequences, labelled_sequences: Their numbers; 0 where the data set has none.
        unnamed: Images without a name in FER+ (no face); None without votes.
    """
    readable = table[table["pixel_hash"] != ""]
    groups = readable.groupby("pixel_hash")
    crosses = readable["pixel_hash"].map(groups["usage"].nunique() > 1)
    labels = readable[readable["emotion"] != ""].groupby("pixel_hash")["emotion"].nunique()
    return {
        "rows": len(table),
        "unlabelled": int((table["emotion"] == "").sum()),
        "constant": int((table["status"] == "constant").sum()),
        "unreadable": int((table["status"] == "unreadable").sum()),
        "distinct": groups.ngroups,
        "duplicates": len(readable) - groups.ngroups,
        "cross_split_groups": readable.loc[crosses, "pixel_hash"].nunique(),
        "cross_split_rows": readable.loc[crosses, "usage"].value_counts(sort=False).to_dict(),
        "conflicting_groups": int((labels > 1).sum()),
        "subjects": _distinct(table["subject"]),
        "sequences": _distinct(table["sequence"]),
        "labelled_sequences": _distinct(table.loc[table["emotion"] != "", "sequence"]),
        "unnamed": int((table["ferplus_name"] == "").sum()) if "ferplus_name" in table.columns else None,
    }


def _distinct(names: pd.Series) -> int:
    return len(set(names) - {""})


def format_audit(counts: dict[str, Any]) -> str:
    """Return an audit as aligned text, one line per count."""
    per_split = ", ".join(f"{count:,} of {usage or '-'}" for usage, count in counts["cross_split_rows"].items())
    lines = {
        "images": counts["rows"],
        "without a label": counts["unlabelled"],
        "duplicates": f"{counts['duplicates']:,} ({counts['distinct']:,} distinct images)",
        "groups of duplicates across the data set's own splits": f"{counts['cross_split_groups']:,}"
        + (f" (images: {per_split})" if per_split else ""),
        "groups of duplicates with conflicting labels": counts["conflicting_groups"],
        "constant images": counts["constant"],
        "unreadable files": counts["unreadable"],
    }
    if counts["sequences"]:
        labelled = f"{counts['labelled_sequences']:,} with a label"
        lines["sequences"] = f"{counts['sequences']:,} ({labelled}) of {counts['subjects']:,} subjects"
    if counts["unnamed"] is not None:
        lines["images without a name in FER+ (no face)"] = counts["unnamed"]
    width = max(map(len, lines))
    texts = {name: value if isinstance(value, str) else f"{value:,}" for name, value in lines.items()}
    return "\n".join(f"{name:<{width}}  {text}" for name, text in texts.items())
