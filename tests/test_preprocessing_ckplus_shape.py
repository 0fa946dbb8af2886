"""Steps 1 to 3 on a tree of CK+'s shape: every number agrees with the plan of the tree."""

from collections import Counter

import pytest
from ckplus_tree import FRAMES, LABELS, SEQUENCES, SUBJECTS, plan, write_ckplus_tree

from preprocessing.tables import read_table, split_by_fold, usable

LABELLED = sum(LABELS.values())


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("download") / "CK+"
    return root, write_ckplus_tree(root)


@pytest.fixture
def prepare(run_step, tree, tmp_path):
    """Run steps 1 to 3 and return the table and what step 3 printed."""

    def run(*frames, split=()):
        roots = ["--dataset", "ck", "--data", tmp_path / "data"]
        for step, options in (
            ("step1_inventory", ["--source", tree[0], *frames]),
            ("step2_face_crops", []),
            ("step3_split", ["--strategy", "folds", *split]),
        ):
            done = run_step(f"preprocessing.{step}", *roots, *options)
            assert done.returncode == 0, done.stderr
        return read_table(tmp_path / "data" / "ck", "split.csv"), done.stdout

    return run


def places(rows, column, fold):
    """Return, by a plain loop, in how many folds each value of a column is."""
    found = {}
    for row in rows.to_dict("records"):
        found.setdefault(row[column], set()).add(row[fold])
    return {value: len(folds) for value, folds in found.items()}


def test_tree_has_the_shape_of_ckplus(tree):
    root, sequences = tree
    assert len(sequences) == SEQUENCES == 593 and len({s.subject for s in sequences}) == len(SUBJECTS) == 123
    assert len(list((root / "cohn-kanade-images").rglob("*.png"))) == FRAMES == 10_708
    assert len(list((root / "Emotion").rglob("*_emotion.txt"))) == LABELLED == 327
    assert min(Counter(s.subject for s in sequences).values()) == 1
    assert all(10 <= s.frames <= 60 for s in sequences)


@pytest.mark.parametrize(
    ("frames", "per_sequence", "neutral"),
    [
        ([], 1, 0),
        (["--frames", "last:3", "--neutral-first"], 3, LABELLED),
    ],
)
def test_folds_hold_every_label_once_and_every_subject_in_one_fold(prepare, frames, per_sequence, neutral):
    table, printed = prepare(*frames)
    assert len(table) == SEQUENCES * per_sequence + neutral
    rows = usable(table)
    expected = {label: count * per_sequence for label, count in LABELS.items()}
    expected |= {"neutral": neutral} if neutral else {}
    assert rows["emotion"].value_counts().to_dict() == expected
    for fold in ("fold", "subject_dependent_fold"):
        assert set(rows[fold]) == set("0123456789") and set(table.loc[table["emotion"] == "", fold]) == {""}
        assert max(places(rows, "sequence", fold).values()) == 1
        for label, count in expected.items():
            share = rows.loc[rows["emotion"] == label, fold].value_counts().reindex(list("0123456789"), fill_value=0)
            assert abs(share - count / 10).max() <= (4 if fold == "fold" else 1) * max(per_sequence, 1), label
    people = places(rows, "subject", "fold")
    assert set(people.values()) == {1} and len(people) == 118
    in_several = sum(count > 1 for count in places(rows, "subject", "subject_dependent_fold").values())
    assert in_several > 50 and f"{in_several} of 118 subjects are in several" in printed
    for number in range(10):
        split = split_by_fold(table, number)
        assert set(split.loc[split["fold"] == str(number), "split"]) == {"test"}
        assert set(split.loc[split["split"] == "train", "emotion"]) == set(expected)


def test_only_peak_frames_are_labelled_and_split(prepare):
    table, printed = prepare("--frames", "all")
    assert len(table) == FRAMES
    rows = table[table["fold"] != ""]
    peaks = {(s.name, str(s.frames)): s.emotion for s in plan() if s.emotion}
    assert dict(zip(zip(rows["sequence"], rows["frame"], strict=True), rows["emotion"], strict=True)) == peaks
    assert f"left out: {FRAMES - LABELLED:,} images" in printed


def test_contempt_or_neutral_can_be_left_out(prepare):
    for emotion, left_out in (("contempt", 18), ("neutral", LABELLED)):
        table, printed = prepare("--neutral-first", split=["--without", emotion])
        inside = table[table["split"] != ""]
        assert set(inside["emotion"]) == {*LABELS, "neutral"} - {emotion}
        assert len(inside) == 2 * LABELLED - left_out
        without = table[table["emotion"] == emotion]
        assert len(without) == left_out
        assert set(without["fold"]) | set(without["subject_dependent_fold"]) | set(without["split"]) == {""}
        assert f"{left_out} of {emotion} (--without)" in printed
