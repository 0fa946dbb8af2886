"""Add labels from annotators' files to an inventory."""

from typing import Literal

import pandas as pd

from common.errors import InputError
from preprocessing.labelling.store import UNSURE


def add_labels(table: pd.DataFrame, labels: pd.DataFrame, key: Literal["sequence", "path"]) -> pd.DataFrame:
    """Give people's labels to images that have none, and print how many.

    What several people labelled gets a label where all who are sure say the same.

    Args:
        table: A raw table.
        labels: As `label_store.read_labels` returns them.
        key: Which of the labels are wanted. A sequence's label is given before its frames are chosen (they say which of
            them show it), an image's afterwards.

    Returns:
        The table; labels that are new have the `label_source` `manual`, or `manual:ANNOTATOR`, or `manual:ANN+BOB`.

    Raises:
        InputError: a label names what is not there, or contradicts the data set.
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
    sure = sure.assign(already=sure["name"].map(labelled["emotion"]).fillna(""))
    conflict = sure[(sure["already"] != "") & (sure["already"] != sure["emotion"])]
    if len(conflict):
        row = conflict.iloc[0]
        raise InputError(
            f"{row['file']}: {key} {row['name']} is {row['already']} in the data set already, not {row['emotion']}; "
            "remove that line"
        )
    new = (
        sure[sure["already"] == ""]
        .groupby("name")
        .agg(emotion=("emotion", "first"), opinions=("emotion", "nunique"), source=("annotator", _label_source))
    )
    disputed = new.index[new["opinions"] > 1]
    new = new.drop(index=disputed)
    unsure = set(labels["name"]) - set(sure["name"])
    print(f"labelled by hand: {len(new):,} ({key}); left without a label: nobody is sure of {len(unsure):,}")
    if len(disputed):
        named = ", ".join(disputed[:5]) + ", ..." * (len(disputed) > 5)
        print(f"left without a label: annotators disagree about {len(disputed):,} ({named}); settle them on the page")
    added = table[key].isin(new.index)
    table = table.copy()
    table.loc[added, "emotion"] = table.loc[added, key].map(new["emotion"])
    table.loc[added, "label_source"] = table.loc[added, key].map(new["source"])
    return table


def _label_source(annotators: pd.Series) -> str:
    names = "+".join(sorted(set(annotators) - {""}))
    return f"manual:{names}" if names else "manual"
