"""Step 3: strategies, folds, leakage between splits, and what the command prints."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from preprocessing.splitting import Duplicates, Strategy, choose_strategy, group_rows, split_table
from preprocessing.tables import FACE_COLUMNS, INVENTORY_COLUMNS, content_hash, read_table, write_table

STEP3 = "preprocessing.step3_split"
EMOTIONS = ["anger", "happiness", "neutral"]
FER2013 = ("Training", "PublicTest", "PrivateTest")


def faces(rows: int = 120, *, subjects: int = 0, usages: tuple[str, ...] = (), duplicates: int = 0) -> pd.DataFrame:
    """A table of crops: emotions in turn, random subjects and usages, the last images duplicates of the first."""
    random = np.random.default_rng(0)
    table = pd.DataFrame("", index=range(rows), columns=[*INVENTORY_COLUMNS, *FACE_COLUMNS])
    table["path"] = table["face_path"] = [f"images/{row:03d}.png" for row in range(rows)]
    table["emotion"] = [EMOTIONS[row % 3] for row in range(rows)]
    table["status"], table["face_status"] = "ok", "found"
    table["pixel_hash"] = [f"{row % (rows - duplicates):04x}" for row in range(rows)]
    table["subject"] = [f"S{n:03d}" for n in random.integers(0, subjects, rows)] if subjects else ""
    table["usage"] = random.choice(usages, rows, p=[0.8, 0.1, 0.1]) if usages else ""
    return table


def each_subject_in_one_split() -> pd.DataFrame:
    """A table whose own splits divide the subjects, except for an unusable image."""
    table = faces(usages=FER2013, subjects=9)
    table["usage"] = [FER2013[int(name[1:]) % 3] for name in table["subject"]]
    table.loc[0, ["usage", "status"]] = "PrivateTest" if table["usage"][0] != "PrivateTest" else "Training", "constant"
    return table


def shares(table: pd.DataFrame) -> dict[str, float]:
    return {str(split): share for split, share in table["split"].value_counts(normalize=True).items()}


def crossing(table: pd.DataFrame, column: str, part: str = "split") -> list[str]:
    """Return, by plain loops, the values of a column that are in more than one split."""
    places: dict[str, set[str]] = {}
    for row in table.to_dict("records"):
        if row[part]:
            places.setdefault(row[column], set()).add(row[part])
    return [value for value, parts in places.items() if len(parts) > 1]


@pytest.fixture
def split(tmp_path, run_step):
    """Run step 3 on a table of crops (the previous one where it is left out)."""

    def run(table: pd.DataFrame | None, *options: object):
        if table is not None:
            write_table(table, tmp_path / "x" / "faces.csv")
        return run_step(STEP3, "--dataset", "x", "--data", tmp_path, *options)

    return run


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (faces(usages=FER2013, subjects=5), Strategy.SUBJECT),
        (each_subject_in_one_split(), Strategy.OFFICIAL),
        (faces(usages=FER2013).assign(sequence=[f"S1/{row // 3}" for row in range(120)]), Strategy.RANDOM),
        (faces(usages=("training", "Validation", "testing")), Strategy.OFFICIAL),
        (faces(subjects=5), Strategy.SUBJECT),
        (faces(), Strategy.RANDOM),
        (faces(usages=("Training", "PublicTest", "")), Strategy.RANDOM),
    ],
)
def test_auto_selects_the_best_strategy_that_the_data_allows(table, expected):
    assert choose_strategy(table) is expected
    split = split_table(table, expected)
    if expected is Strategy.OFFICIAL:
        names = {"Training": "train", "PublicTest": "dev", "PrivateTest": "test"}
        names |= {"training": "train", "Validation": "dev", "testing": "test"}
        rows = split[table["status"] == "ok"]
        assert rows["split"].tolist() == [names[usage] for usage in rows["usage"]]


def test_auto_does_not_use_official_splits_that_subjects_cross(tmp_path, split):
    table = faces(300, usages=("train", "val", "test"), subjects=20)
    subjects = len(crossing(table, "subject", "usage"))
    done = split(table)
    assert done.returncode == 0 and subjects > 10
    assert f"strategy: subject, because {subjects} of 20 subjects are in several" in done.stdout
    assert crossing(read_table(tmp_path / "x", "split.csv"), "subject") == []
    assert json.loads((tmp_path / "x" / "split.json").read_text())["strategy"] == "subject"

    done = split(None, "--strategy", "official")
    assert done.returncode == 0 and f"warning: {subjects} of 20 subjects are in several of the" in done.stdout
    official = {"train": "train", "val": "dev", "test": "test"}
    assert read_table(tmp_path / "x", "split.csv")["split"].tolist() == [official[usage] for usage in table["usage"]]

    table.loc[:9, "subject"] = ""
    done = split(table)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    nameless = f"10 of {len(table)} usable images have no subject"
    assert nameless in done.stderr and "--strategy official or random" in done.stderr
    done = split(table.assign(usage=""))
    assert done.returncode == 2 and nameless in done.stderr and "--strategy random," in done.stderr


def test_official_without_dev_takes_it_from_training_and_keeps_groups_together():
    table = faces(300, usages=("train", "test", "test"), duplicates=60)
    split = split_table(table, Strategy.OFFICIAL, dev=0.1)
    assert (split.loc[table["usage"] == "test", "split"] == "test").all()
    training = split[table["usage"] == "train"]
    assert shares(training)["dev"] == pytest.approx(0.1, abs=0.03) and set(training["split"]) == {"train", "dev"}
    assert not crossing(training, "pixel_hash")
    assert set(training.loc[training["split"] == "dev", "emotion"]) == set(EMOTIONS)

    table = faces(300, usages=("train", "test", "test"), subjects=30)
    table["usage"] = ["test" if int(name[1:]) < 6 else "train" for name in table["subject"]]
    table.loc[:9, "subject"] = ""
    split = split_table(table, choose_strategy(table))
    assert crossing(split[split["subject"] != ""], "subject") == [] and "dev" in set(split["split"])


def test_cross_split_duplicates_are_flagged_and_can_be_dropped_from_training():
    kept = split_table(faces(usages=FER2013, duplicates=40), Strategy.OFFICIAL)
    flagged = set(kept.loc[kept["cross_split_duplicate"] == "true", "pixel_hash"])
    assert flagged == set(crossing(kept, "pixel_hash")) and 0 < len(flagged) < 40
    assert set(kept.loc[kept["pixel_hash"].isin(flagged), "cross_split_duplicate"]) == {"true"}
    dropped = split_table(faces(usages=FER2013, duplicates=40), Strategy.OFFICIAL, duplicates=Duplicates.DROP)
    gone = kept["split"] != dropped["split"]
    assert gone.equals((kept["split"] == "train") & (kept["cross_split_duplicate"] == "true"))
    assert set(dropped.loc[gone, "split"]) == {""}
    trained = set(dropped.loc[dropped["split"] == "train", "pixel_hash"])
    assert not trained & set(dropped.loc[dropped["split"].isin(["dev", "test"]), "pixel_hash"])


def test_random_keeps_shares_emotions_and_duplicates():
    table = split_table(faces(600, duplicates=100), Strategy.RANDOM)
    assert crossing(table, "pixel_hash") == []
    for rows in (table, *(table[table["emotion"] == emotion] for emotion in EMOTIONS)):
        assert shares(rows) == pytest.approx({"train": 0.8, "dev": 0.1, "test": 0.1}, abs=0.01)
    table = split_table(faces(600), Strategy.RANDOM, train=0.5, dev=0.5)
    assert shares(table) == pytest.approx({"train": 0.5, "dev": 0.5}, abs=0.01)


@pytest.mark.parametrize(("subjects", "duplicates"), [(3, 0), (40, 10)])
def test_subject_keeps_subjects_and_duplicates_in_one_split(subjects, duplicates):
    table = faces(300, subjects=subjects, duplicates=duplicates)
    split = split_table(table, Strategy.SUBJECT)
    assert crossing(split, "subject") == crossing(split, "pixel_hash") == []
    assert set(split["split"]) == {"train", "dev", "test"}
    if duplicates:  # subjects who share one are in one group
        first, duplicate = table.index[table["pixel_hash"] == "0000"]
        groups = group_rows(table, by_subject=True)
        assert table["subject"][first] != table["subject"][duplicate] and groups[first] == groups[duplicate]


@pytest.mark.parametrize("subjects", [0, 30])
def test_folds_hold_each_image_once_and_keep_groups_together(subjects):
    table = faces(300, subjects=subjects, duplicates=3)
    table["sequence"] = [f"{subject}/{row // 3}" for row, subject in enumerate(table["subject"])]
    table.loc[3:11, "sequence"] = ""  # each is a group of its own
    assert len(set(group_rows(table, by_subject=False)[3:12])) == 9
    split = split_table(table, Strategy.FOLDS, folds=5)
    columns = ["fold", "subject_dependent_fold"] if subjects else ["fold"]
    assert set(columns) == {"fold", "subject_dependent_fold"} & set(split.columns)
    for column in columns:
        assert set(split[column]) == set("01234") and crossing(split, "pixel_hash", column) == []
        assert crossing(split[split["sequence"] != ""], "sequence", column) == []
    assert max(Counter(split["fold"]).values()) <= 1.35 * min(Counter(split["fold"]).values())
    assert not subjects or crossing(split, "subject", "fold") == []
    assert not subjects or len(crossing(split, "subject", "subject_dependent_fold")) > 20
    splits = split.groupby("fold")["split"].unique().map(list).to_dict()
    assert splits == {"0": ["test"], "1": ["dev"], "2": ["train"], "3": ["train"], "4": ["train"]}


@pytest.mark.parametrize("strategy", [Strategy.RANDOM, Strategy.SUBJECT, Strategy.FOLDS])
def test_split_depends_on_the_seed_and_not_on_the_hashes(strategy):
    table = faces(300, subjects=40, duplicates=10)
    first = split_table(table, strategy, seed=1)
    assert not first["split"].equals(split_table(table, strategy, seed=2)["split"])
    renamed = table.assign(pixel_hash=[name[::-1] + "x" for name in table["pixel_hash"]])
    assert first["split"].equals(split_table(renamed, strategy, seed=1)["split"])
    if strategy is Strategy.SUBJECT:  # the same on every machine
        table = faces(20).assign(subject=[f"S{row % 7}" for row in range(20)])
        splits = split_table(table, strategy, seed=7).groupby("subject")["split"].first()
        assert splits.tolist() == ["train", "train", "train", "train", "dev", "train", "test"]


def with_contempt_of_one_subject() -> pd.DataFrame:
    table = faces(300, subjects=30)
    table.loc[table["subject"] == "S003", "emotion"] = "contempt"
    return table


@pytest.mark.parametrize(
    ("table", "options", "expected"),
    [
        (faces(subjects=2), {"strategy": Strategy.SUBJECT}, "2 groups"),
        (faces(subjects=8), {"strategy": Strategy.FOLDS, "folds": 9}, "8 groups"),
        (faces(), {"strategy": Strategy.SUBJECT}, "120 usable images have no subject"),
        (faces(), {"strategy": Strategy.OFFICIAL}, "usage ''"),
        (faces(), {"strategy": Strategy.RANDOM, "train": 0.9, "dev": 0.2}, "their sum at most 1"),
        (faces().assign(status="unreadable"), {"strategy": Strategy.RANDOM}, "nothing to split"),
        (faces(), {"strategy": Strategy.RANDOM, "without": EMOTIONS}, "nothing to split.*other than anger, happiness"),
        (with_contempt_of_one_subject(), {"strategy": Strategy.FOLDS, "folds": 5}, "no training image of contempt"),
    ],
)
def test_strategy_that_the_data_does_not_allow_is_refused(table, options, expected):
    with pytest.raises(InputError, match=expected):
        split_table(table, **options)


def test_refusals_are_one_line_and_write_nothing(tmp_path, split):
    done = split(None)
    assert done.returncode == 2 and "python -m preprocessing.step2_face_crops --dataset x" in done.stderr
    table = faces(usages=FER2013)
    table.loc[table["emotion"] == "happiness", "usage"] = "PublicTest"
    done = split(table)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "leaves no training image of happiness" in done.stderr
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["faces.csv"]
    for options, expected in (
        (["--seed", -1], "--seed"),
        (["--folds", 5], "--folds 5 needs --strategy folds"),
        (["--strategy", "folds", "--folds", 0], "--folds 0: at least 3"),
        (["--without", "boredom"], "unknown emotion 'boredom'"),
    ):
        done = split(faces(), *options)
        assert done.returncode == 2 and expected in done.stderr


def test_unchanged_crops_are_not_split_again(tmp_path, split):
    assert "strategy: subject" in split(faces(subjects=20)).stdout
    folder, table = tmp_path / "x", read_table(tmp_path / "x", "split.csv")
    written = (folder / "split.csv").stat().st_mtime_ns
    assert split(None).stdout.startswith("unchanged: ")
    assert (folder / "split.csv").stat().st_mtime_ns == written
    for name, content in (("split.csv", "path,emotion\n1.png,grumpy\n"), ("split.json", "{")):
        (folder / name).write_text(content)
        assert "wrote" in split(None).stdout
        pd.testing.assert_frame_equal(read_table(folder, "split.csv"), table)
    assert "wrote" in split(None, "--seed", 8).stdout
    assert "wrote" in split(faces(subjects=21), "--seed", 8).stdout

    write_table(faces(60)[INVENTORY_COLUMNS], folder / "inventory.csv")
    (folder / "faces.json").write_text(json.dumps({"inventory": content_hash(read_table(folder, "inventory.csv"))}))
    assert split(faces(60)).returncode == 0
    write_table(faces(80)[INVENTORY_COLUMNS], folder / "inventory.csv")  # the crops are of another one
    assert "run first: python -m preprocessing.step2_face_crops --dataset x" in split(None).stderr


@pytest.mark.parametrize("strategy", [Strategy.OFFICIAL, Strategy.FOLDS])
def test_left_out_images_are_counted_by_their_first_reason(tmp_path, split, strategy):
    table = faces(300, usages=FER2013, subjects=30)
    table.loc[:1, ["status", "face_status"]] = ["unreadable", "not_found"]
    table.loc[2, "face_status"] = "not_found"
    table.loc[3:5, "status"] = "constant"
    done = split(table, "--strategy", strategy, "--without", "Happy")
    happy = int((table["emotion"][6:] == "happiness").sum())
    reasons = f"2 unreadable, 3 constant, 1 without a face, {happy} of happiness (--without)"
    assert f"left out: {happy + 6} images ({reasons})" in done.stdout
    rows = read_table(tmp_path / "x", "split.csv")
    assert set(rows.loc[:5, "split"]) == {""} and rows["path"].tolist() == table["path"].tolist()
    if strategy is Strategy.OFFICIAL:
        assert pd.read_csv(tmp_path / "x" / "split.csv")["cross_split_duplicate"].dtype == bool
    assert set(rows.loc[rows["emotion"] == "happiness", "split"]) == {""}
    assert set(rows.loc[rows["split"] != "", "emotion"]) == set(table["emotion"]) - {"happiness"}
    counts = [sum((rows["emotion"] == "anger") & (rows["split"] == name)) for name in ("train", "dev", "test")]
    assert ["anger", *map(str, counts), str(sum(counts))] in [line.split() for line in done.stdout.splitlines()]
