"""Steps 1 to 3 on a part of a tree of CK+'s shape: every number agrees with the plan of the tree."""

from collections import Counter

import pytest
from ckplus_tree import write_ckplus_tree

from preprocessing.tables import read_table, split_by_fold, usable


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("download") / "CK+"
    return root, write_ckplus_tree(root, subjects=30)


@pytest.fixture
def prepare(run_step, tree, tmp_path):
    """Run steps 1 to 3 and return the table and the output of step 3."""

    def run(*frames):
        roots = ["--dataset", "ck", "--data", tmp_path / "data"]
        for step, options in (
            ("step1_inventory", ["--source", tree[0], *frames]),
            ("step2_face_crops", []),
            ("step3_split", ["--strategy", "folds", "--folds", 5]),
        ):
            done = run_step(f"preprocessing.{step}", *roots, *options)
            assert done.returncode == 0, done.stderr
        return read_table(tmp_path / "data" / "ck", "split.csv"), done.stdout

    return run


def folds_of(rows, column, fold) -> dict[str, int]:
    """Return, by a plain loop, in how many folds each value of a column is."""
    found = {}
    for row in rows.to_dict("records"):
        found.setdefault(row[column], set()).add(row[fold])
    return {value: len(folds) for value, folds in found.items()}


def test_folds_hold_every_label_once_and_every_subject_in_one_fold(prepare, tree):
    table, printed = prepare("--frames", "last:3", "--neutral-first")
    labels = Counter(take.emotion for take in tree[1] if take.emotion)
    neutral = sum(labels.values())
    assert len(table) == 3 * len(tree[1]) + neutral
    rows = usable(table)
    expected = {label: 3 * count for label, count in labels.items()} | {"neutral": neutral}
    assert rows["emotion"].value_counts().to_dict() == expected
    for fold in ("fold", "subject_dependent_fold"):
        assert set(rows[fold]) == set("01234") and set(table.loc[table["emotion"] == "", fold]) == {""}
        assert set(folds_of(rows, "sequence", fold).values()) == {1}
    people = folds_of(rows, "subject", "fold")
    in_several = sum(count > 1 for count in folds_of(rows, "subject", "subject_dependent_fold").values())
    assert set(people.values()) == {1} and in_several > len(people) / 2
    assert f"{in_several} of {len(people)} subjects are in several" in printed
    for number in range(5):
        split = split_by_fold(table, number)
        assert set(split.loc[split["fold"] == str(number), "split"]) == {"test"}
        assert set(split.loc[split["split"] == "train", "emotion"]) == set(expected)


def test_only_peak_frames_are_labelled_and_split(prepare, tree):
    table, printed = prepare("--frames", "all")
    peaks = {(take.name, str(take.frames)): take.emotion for take in tree[1] if take.emotion}
    frames = sum(take.frames for take in tree[1])
    assert len(table) == frames
    rows = table[table["fold"] != ""]
    assert dict(zip(zip(rows["sequence"], rows["frame"], strict=True), rows["emotion"], strict=True)) == peaks
    assert f"left out: {frames - len(peaks):,} images" in printed
