"""Steps 1 to 3 on a part of a tree of CK+'s shape: every number agrees with the plan of the tree."""

from collections import Counter

import pandas as pd
from ckplus_tree import write_ckplus_tree

from preprocessing.tables import read_table, split_by_fold, usable


def folds_of(rows: pd.DataFrame, column: str, fold: str) -> dict[str, int]:
    """Return, by a plain loop, in how many folds each value of a column is."""
    found = {}
    for row in rows.to_dict("records"):
        found.setdefault(row[column], set()).add(row[fold])
    return {value: len(folds) for value, folds in found.items()}


def test_folds_hold_every_label_once_and_every_subject_in_one_fold(tmp_path, run_step):
    takes = write_ckplus_tree(tmp_path / "CK+", subjects=30)
    for step, *options in (
        ("step1_inventory", "--source", tmp_path / "CK+", "--frames", "last:3", "--neutral-first"),
        ("step2_face_crops",),
        ("step3_split", "--strategy", "folds", "--folds", 5),
    ):
        done = run_step(f"preprocessing.{step}", "--dataset", "ck", "--data", tmp_path / "data", *options)
        assert done.returncode == 0, done.stderr
    table = read_table(tmp_path / "data" / "ck", "split.csv")
    labels = Counter(take.emotion for take in takes if take.emotion)
    neutral = sum(labels.values())
    assert len(table) == 3 * len(takes) + neutral
    rows = usable(table)
    expected = {label: 3 * count for label, count in labels.items()} | {"neutral": neutral}
    assert rows["emotion"].value_counts().to_dict() == expected
    for fold in ("fold", "subject_dependent_fold"):
        assert set(rows[fold]) == set("01234") and set(table.loc[table["emotion"] == "", fold]) == {""}
        assert set(folds_of(rows, "sequence", fold).values()) == {1}
    people = folds_of(rows, "subject", "fold")
    in_several = sum(count > 1 for count in folds_of(rows, "subject", "subject_dependent_fold").values())
    assert set(people.values()) == {1} and in_several > len(people) / 2
    assert f"{in_several} of {len(people)} subjects are in several" in done.stdout
    for number in range(5):
        split = split_by_fold(table, number)
        assert set(split.loc[split["fold"] == str(number), "split"]) == {"test"}
        assert set(split.loc[split["split"] == "train", "emotion"]) == set(expected)
