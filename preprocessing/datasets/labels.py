"""Add annotators' labels to the images of a data set that have none."""

from typing import Literal

import pandas as pd

from common.command_line import shortened
from common.errors import InputError
from preprocessing.labelling.store import UNSURE


def add_labels(table: pd.DataFrame, labels: pd.DataFrame, key: Literal["sequence", "path"]) -> pd.DataFrame:
    """Return a table with annotators' labels for its unlabelled images, and print how many were added.

    An image gets a label where all annotators who are sure agree.

    Args:
        table: A raw table.
        labels: As `labelling.store.read_labels` returns them.
        key: Which labels to add: of sequences (before frames are selected) or of images (afterwards).

    Returns:
        The table; new labels have the `label_source` `manual`, `manual:ANNOTATOR` or `manual:ANN+BOB`.

    Raises:
        InputError: A label's image or sequence is not in the data set, or has another label there.
    """
    labels = labels[labels["key"] == key]
    if labels.empty:
        return table
    absent = labels[~labels["name"].isin(set(table[key]) - {""})]
    if len(absent):
        row, hint = absent.iloc[0], ", or --frames leaves it out" if key == "path" else ""
        raise InputError(f"{row['file']}: {key} {row['name']!r} is not in the data set{hint}; remove its lines")
    sure = labels[labels["emotion"] != UNSURE]
    labelled = table[table["emotion"] != ""].drop_duplicates(key).set_index(key)
    sure = sure.assign(present=sure["name"].map(labelled["emotion"]).fillna(""))
    conflict = sure[(sure["present"] != "") & (sure["present"] != sure["emotion"])]
    if len(conflict):
        row = conflict.iloc[0]
        raise InputError(
            f"{row['file']}: {key} {row['name']} has the label {row['present']} in the data set, not {row['emotion']}; "
            "remove that line"
        )
    new = (
        sure[sure["present"] == ""]
        .groupby("name")
        .agg(emotion=("emotion", "first"), labels=("emotion", "nunique"), source=("annotator", _label_source))
    )
    disputed = [str(name) for name in new.index[new["labels"] > 1]]
    new = new.drop(index=disputed)
    unsure = set(labels["name"]) - set(sure["name"])
    names = f" ({shortened(disputed)})" if disputed else ""
    print(f"annotators' labels ({key}): {len(new):,} added, {len(disputed):,} disputed{names}, {len(unsure):,} unsure")
    added = table[key].isin(new.index)
    table = table.copy()
    table.loc[added, "emotion"] = table.loc[added, key].map(new["emotion"])
    table.loc[added, "label_source"] = table.loc[added, key].map(new["source"])
    return table


def _label_source(annotators: pd.Series) -> str:
    names = "+".join(sorted(set(annotators) - {""}))
    return f"manual:{names}" if names else "manual"
