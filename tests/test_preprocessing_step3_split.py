import json
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from common.command_line import run
from common.errors import InputError
from preprocessing import step3_split
from preprocessing.splitting import Duplicates, Strategy, allocate, choose_strategy, group_rows, split_table
from preprocessing.tables import FACE_COLUMNS, INVENTORY_COLUMNS, content_hash, read_table, usable, write_table

EMOTIONS = ["anger", "happiness", "neutral"]


def faces(rows: int = 120, *, subjects: int = 0, usages: tuple[str, ...] = (), duplicates: int = 0) -> pd.DataFrame:
    """A table of crops: emotions in turn, subjects and usages at random, the last images copies of the first."""
    random = np.random.default_rng(0)
    table = pd.DataFrame("", index=range(rows), columns=[*INVENTORY_COLUMNS, *FACE_COLUMNS])
    table["path"] = table["face_path"] = [f"images/{row:03d}.png" for row in range(rows)]
    table["emotion"] = [EMOTIONS[row % 3] for row in range(rows)]
    table["status"], table["face_status"] = "ok", "found"
    table["pixel_hash"] = [f"{row % (rows - duplicates):04x}" for row in range(rows)]
    table["subject"] = [f"S{n:03d}" for n in random.integers(0, subjects, rows)] if subjects else ""
    table["usage"] = random.choice(usages, rows, p=[0.8, 0.1, 0.1]) if usages else ""
    return table


FER2013 = ("Training", "PublicTest", "PrivateTest")


def each_subject_in_one_split() -> pd.DataFrame:
    """A table whose published splits divide the subjects, but for an image that cannot be used."""
    table = faces(usages=FER2013, subjects=9)
    table["usage"] = [FER2013[int(name[1:]) % 3] for name in table["subject"]]
    table.loc[0, ["usage", "status"]] = "PrivateTest" if table["usage"][0] != "PrivateTest" else "Training", "constant"
    return table


def shares(table: pd.DataFrame) -> dict[str, float]:
    return {str(split): share for split, share in table["split"].value_counts(normalize=True).items()}


def crossing(table: pd.DataFrame, column: str, part: str = "split") -> list[str]:
    """Return, by plain loops, the values of a column that lie in more than one split."""
    places: dict[str, set[str]] = {}
    for row in table.to_dict("records"):
        if row[part]:
            places.setdefault(row[column], set()).add(row[part])
    return [value for value, parts in places.items() if len(parts) > 1]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (faces(usages=FER2013, subjects=5), Strategy.SUBJECT),
        (each_subject_in_one_split(), Strategy.OFFICIAL),
        (faces(usages=FER2013).assign(sequence=[f"S1/{row // 3}" for row in range(120)]), Strategy.RANDOM),
        (faces(usages=("train", "validation", "test")), Strategy.OFFICIAL),
        (faces(subjects=5), Strategy.SUBJECT),
        (faces(), Strategy.RANDOM),
        (faces(usages=("Training", "PublicTest", "")), Strategy.RANDOM),
    ],
)
def test_auto_is_the_first_strategy_that_the_data_allows(table, expected):
    assert choose_strategy(table) is expected
    pd.testing.assert_frame_equal(split_table(table, Strategy.AUTO), split_table(table, expected))


def run_split(run_step, folder, *options):
    done = run_step("preprocessing.step3_split", "--dataset", folder.name, "--data", folder.parent, *options)
    return done, done.stdout.splitlines()


def test_auto_does_not_keep_published_splits_that_subjects_cross(tmp_path, run_step):
    folder = tmp_path / "x"
    table = faces(300, usages=("train", "val", "test"), subjects=20)
    write_table(table, folder / "faces.csv")
    done, lines = run_split(run_step, folder)
    crossing_subjects = len(crossing(table, "subject", "usage"))
    assert done.returncode == 0 and crossing_subjects > 10
    assert (
        "strategy: subject: the data set's own splits are not kept, since "
        f"{crossing_subjects} of 20 subjects are in several of them (--strategy official keeps them)"
    ) in lines
    assert crossing(read_table(folder, "split.csv"), "subject") == []
    assert json.loads((folder / "split.json").read_text())["strategy"] == "subject"

    done, lines = run_split(run_step, folder, "--strategy", "official")
    assert done.returncode == 0 and "strategy: official" in lines
    assert [line for line in lines if line.startswith(f"warning: {crossing_subjects} of 20 subjects are in several")]
    official = {"train": "train", "val": "dev", "test": "test"}
    assert read_table(folder, "split.csv")["split"].tolist() == [official[usage] for usage in table["usage"]]


def test_auto_refuses_crossed_splits_where_some_images_have_no_subject(tmp_path, run_step):
    folder = tmp_path / "x"
    table = faces(300, usages=("train", "val", "test"), subjects=20)
    table.loc[:9, "subject"] = ""
    write_table(table, folder / "faces.csv")
    done, _ = run_split(run_step, folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "10 usable images have no subject" in done.stderr and "--strategy official or random" in done.stderr
    assert run_split(run_step, folder, "--strategy", "official")[0].returncode == 0


def test_a_dev_part_taken_from_training_divides_no_known_subject():
    table = faces(300, usages=("train", "test", "test"), subjects=30)
    table["usage"] = ["test" if int(name[1:]) < 6 else "train" for name in table["subject"]]
    table.loc[:9, "subject"] = ""
    split = split_table(table, Strategy.AUTO)
    assert crossing(split[split["subject"] != ""], "subject") == [] and "dev" in set(split["split"])


def test_the_column_cross_split_duplicate_has_one_type_in_every_part_of_the_file(tmp_path, run_step, recwarn):
    folder = tmp_path / "x"
    table = pd.concat([faces(4000, usages=FER2013, duplicates=400)] * 2, ignore_index=True)
    table["path"] = table["face_path"] = [f"images/{row:05d}.png" for row in range(len(table))]
    table.loc[len(table) // 2 :, "status"] = "constant"  # belong to no split
    write_table(table, folder / "faces.csv")
    assert run_split(run_step, folder, "--duplicates", "drop")[0].returncode == 0
    read = pd.read_csv(folder / "split.csv", usecols=["path", "cross_split_duplicate", "split"], low_memory=True)
    assert read["cross_split_duplicate"].dtype == bool and read["cross_split_duplicate"].any()
    assert not read.loc[
        read["path"].isin(table.loc[table["status"] == "constant", "path"]), "cross_split_duplicate"
    ].any()
    assert not [warning for warning in recwarn if issubclass(warning.category, pd.errors.DtypeWarning)]


@pytest.mark.parametrize("usages", [FER2013, ("train", "val", "test"), ("training", "Validation", "testing")])
def test_official_keeps_the_published_split(usages):
    table = split_table(faces(usages=usages), Strategy.OFFICIAL)
    expected = dict(zip(usages, ("train", "dev", "test"), strict=True))
    assert table["split"].tolist() == [expected[usage] for usage in table["usage"]]


def test_official_flags_the_copies_that_cross():
    table = split_table(faces(usages=FER2013, duplicates=40), Strategy.OFFICIAL)
    flagged = set(table.loc[table["cross_split_duplicate"] == "true", "pixel_hash"])
    assert flagged == set(crossing(table, "pixel_hash"))
    assert set(table.loc[table["pixel_hash"].isin(flagged), "cross_split_duplicate"]) == {"true"}
    assert 0 < len(flagged) < 40


def test_dropping_copies_takes_the_training_side_out_and_nothing_else():
    kept = split_table(faces(usages=FER2013, duplicates=40), Strategy.OFFICIAL)
    dropped = split_table(faces(usages=FER2013, duplicates=40), Strategy.OFFICIAL, duplicates=Duplicates.DROP)
    gone = kept["split"] != dropped["split"]
    assert gone.equals((kept["split"] == "train") & (kept["cross_split_duplicate"] == "true"))
    assert set(dropped.loc[gone, "split"]) == {""}
    trained = set(dropped.loc[dropped["split"] == "train", "pixel_hash"])
    assert not trained & set(dropped.loc[dropped["split"].isin(["dev", "test"]), "pixel_hash"])


def test_random_keeps_shares_and_emotions_alike_and_copies_together():
    table = split_table(faces(600, duplicates=100), Strategy.RANDOM)
    assert crossing(table, "pixel_hash") == []
    assert shares(table) == pytest.approx({"train": 0.8, "dev": 0.1, "test": 0.1}, abs=0.01)
    for emotion in EMOTIONS:
        of_emotion = table[table["emotion"] == emotion]
        assert shares(of_emotion) == pytest.approx({"train": 0.8, "dev": 0.1, "test": 0.1}, abs=0.01)


def test_shares_can_be_chosen():
    table = split_table(faces(600), Strategy.RANDOM, train=0.5, dev=0.5)
    assert shares(table) == pytest.approx({"train": 0.5, "dev": 0.5}, abs=0.01)


@pytest.mark.parametrize("subjects", [3, 8, 40])
def test_subject_puts_nobody_into_two_splits(subjects):
    table = split_table(faces(300, subjects=subjects, duplicates=0), Strategy.SUBJECT)
    assert crossing(table, "subject") == []
    assert set(table["split"]) == {"train", "dev", "test"}
    if subjects == 40:
        for emotion in EMOTIONS:
            of_emotion = table[table["emotion"] == emotion]
            assert shares(of_emotion) == pytest.approx({"train": 0.8, "dev": 0.1, "test": 0.1}, abs=0.04)


def test_subjects_who_share_a_copy_stay_together():
    table = faces(300, subjects=40, duplicates=10)
    split = split_table(table, Strategy.SUBJECT)
    assert crossing(split, "subject") == []
    assert crossing(split, "pixel_hash") == []
    groups = group_rows(table, by_subject=True)
    assert len(set(groups)) < 40
    first, copy = table.index[table["pixel_hash"] == "0000"]
    assert table["subject"][first] != table["subject"][copy]
    assert groups[first] == groups[copy]


@pytest.mark.parametrize("subjects", [0, 30])
def test_folds_hold_each_image_once_and_no_subject_or_copy_twice(subjects):
    table = split_table(faces(300, subjects=subjects, duplicates=3), Strategy.FOLDS, folds=5)
    assert set(table["fold"]) == set("01234")
    assert crossing(table, "pixel_hash", "fold") == []
    assert not subjects or crossing(table, "subject", "fold") == []
    assert max(Counter(table["fold"]).values()) <= 1.35 * min(Counter(table["fold"]).values())
    splits = table.groupby("fold")["split"].unique().map(list).to_dict()
    assert splits == {"0": ["test"], "1": ["dev"], "2": ["train"], "3": ["train"], "4": ["train"]}


def test_unusable_rows_are_carried_without_a_split():
    table = faces(usages=FER2013)
    table["gender"] = "f"
    table.loc[0, "status"], table.loc[1, "emotion"], table.loc[2, "face_status"] = "constant", "", "not_found"
    for strategy in (Strategy.OFFICIAL, Strategy.RANDOM, Strategy.FOLDS):
        split = split_table(table, strategy)
        pd.testing.assert_frame_equal(split[table.columns], table)
        assert split["split"].eq("").tolist() == [True] * 3 + [False] * 117


@pytest.mark.parametrize("strategy", [Strategy.RANDOM, Strategy.SUBJECT, Strategy.FOLDS])
def test_the_same_seed_gives_the_same_split_and_another_seed_another(strategy):
    table = faces(300, subjects=40)
    first = split_table(table, strategy, seed=1)
    pd.testing.assert_frame_equal(first, split_table(table, strategy, seed=1))
    assert not first["split"].equals(split_table(table, strategy, seed=2)["split"])


def test_the_split_does_not_depend_on_what_the_hashes_are():
    table = faces(300, subjects=40, duplicates=10)
    renamed = table.assign(pixel_hash=[name[::-1] + "x" for name in table["pixel_hash"]])
    assert split_table(table, Strategy.SUBJECT)["split"].equals(split_table(renamed, Strategy.SUBJECT)["split"])


def test_the_split_of_a_known_table_is_the_same_on_every_machine():
    table = faces(20)
    table["subject"] = [f"S{row % 7}" for row in range(20)]
    by_subject = split_table(table, Strategy.SUBJECT, seed=7).groupby("subject")["split"].first()
    assert by_subject.to_dict() == {
        "S0": "train", "S1": "train", "S2": "train", "S3": "train", "S4": "dev", "S5": "train", "S6": "test",
    }  # fmt: skip


def test_a_rare_emotion_is_spread_like_the_others():
    emotions = pd.Series(["anger"] * 1000 + ["disgust"] * 10)
    parts = allocate(emotions, np.arange(1010), [8, 1, 1], seed=3)
    assert np.bincount(parts[1000:], minlength=3).tolist() == [8, 1, 1]
    assert np.bincount(parts, minlength=3).tolist() == [808, 101, 101]


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        (faces(subjects=2), {"strategy": Strategy.SUBJECT}, "2 groups"),
        (faces(subjects=8), {"strategy": Strategy.FOLDS, "folds": 9}, "8 groups"),
        (faces(subjects=8), {"strategy": Strategy.FOLDS, "folds": 2}, "at least 3"),
        (faces(), {"strategy": Strategy.SUBJECT}, "120 usable images have no subject"),
        (faces(), {"strategy": Strategy.OFFICIAL}, "usage ''"),
        (faces().assign(usage="holdout"), {"strategy": Strategy.OFFICIAL}, "'holdout'"),
        (faces(), {"strategy": Strategy.RANDOM, "train": 0.9, "dev": 0.2}, "sum to at most 1"),
        (faces().assign(status="unreadable"), {"strategy": Strategy.AUTO}, "nothing to split"),
    ],
)
def test_what_the_data_does_not_allow_is_refused(table, options, said):
    with pytest.raises(InputError, match=said):
        split_table(table, **options)


def run_here(monkeypatch, *arguments: object) -> int | str | None:
    """Run the step's command line in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["step3_split", *map(str, arguments)])
    try:
        run(step3_split.main)
    except SystemExit as end:
        return end.code
    return 0


def test_an_emotion_without_a_training_image_is_named_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    table = faces(usages=FER2013)
    table.loc[table["emotion"] == "happiness", "usage"] = "PublicTest"
    write_table(table, tmp_path / "x" / "faces.csv")
    assert run_here(monkeypatch, "--dataset", "x", "--data", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no training image would be left for happiness ")
    assert error.count("\n") == 1
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["faces.csv"]


@pytest.mark.parametrize("existing", [True, False])
def test_without_crops_the_step_to_run_first_is_named(tmp_path, monkeypatch, capsys, existing):
    if existing:
        (tmp_path / "x").mkdir()
    assert run_here(monkeypatch, "--dataset", "x", "--data", tmp_path) == 2
    assert "python -m preprocessing.step2_face_crops --dataset x" in capsys.readouterr().err


def test_the_second_run_on_unchanged_crops_does_nothing_and_says_so(tmp_path, monkeypatch, capsys):
    file = tmp_path / "x" / "faces.csv"
    write_table(faces(subjects=20), file)
    arguments = ["--dataset", "x", "--data", tmp_path]
    assert run_here(monkeypatch, *arguments) == 0
    first, written = capsys.readouterr().out, (tmp_path / "x" / "split.csv").stat().st_mtime_ns
    assert "strategy: subject" in first
    assert run_here(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out.startswith("unchanged: ")
    assert (tmp_path / "x" / "split.csv").stat().st_mtime_ns == written
    assert run_here(monkeypatch, *arguments, "--seed", 8) == 0
    assert "wrote" in capsys.readouterr().out
    write_table(faces(subjects=21), file)
    assert run_here(monkeypatch, *arguments, "--seed", 8) == 0
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content"), [("split.csv", "path,emotion\n1.png,grumpy\n"), ("split.json", "{")])
def test_a_damaged_table_or_record_is_written_again(tmp_path, monkeypatch, name, content):
    write_table(faces(), tmp_path / "x" / "faces.csv")
    assert run_here(monkeypatch, "--dataset", "x", "--data", tmp_path) == 0
    split = read_table(tmp_path / "x", "split.csv")
    (tmp_path / "x" / name).write_text(content)
    assert run_here(monkeypatch, "--dataset", "x", "--data", tmp_path) == 0
    pd.testing.assert_frame_equal(read_table(tmp_path / "x", "split.csv"), split)


def test_crops_of_an_earlier_inventory_are_refused(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "x"
    write_table(faces(60), folder / "faces.csv")
    write_table(faces(60)[INVENTORY_COLUMNS], folder / "inventory.csv")
    (folder / "faces.json").write_text(json.dumps({"inventory": content_hash(read_table(folder, "inventory.csv"))}))
    assert run_here(monkeypatch, "--dataset", "x", "--data", tmp_path) == 0
    write_table(faces(80)[INVENTORY_COLUMNS], folder / "inventory.csv")
    assert run_here(monkeypatch, "--dataset", "x", "--data", tmp_path) == 2
    assert "run first: python -m preprocessing.step2_face_crops --dataset x" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_refused(tmp_path, monkeypatch, capsys, seed):
    write_table(faces(), tmp_path / "x" / "faces.csv")
    assert run_here(monkeypatch, "--dataset", "x", "--data", tmp_path, "--seed", seed) == 2
    assert "--seed" in capsys.readouterr().err


def test_an_image_that_is_left_out_counts_once(tmp_path, monkeypatch, capsys):
    table = faces()
    table.loc[:1, ["status", "face_status"]] = ["unreadable", "not_found"]
    table.loc[2, "face_status"] = "not_found"
    write_table(table, tmp_path / "x" / "faces.csv")
    run_here(monkeypatch, "--dataset", "x", "--data", tmp_path)
    assert "left out: 3 images (2 unreadable, 1 without a face)" in capsys.readouterr().out


def test_the_command_prints_images_per_emotion_and_split(tmp_path, monkeypatch, capsys):
    table = faces(usages=FER2013, duplicates=40)
    table.loc[:4, "status"] = "constant"
    write_table(table, tmp_path / "x" / "faces.csv")
    run_here(monkeypatch, "--dataset", "x", "--data", tmp_path, "--duplicates", "drop")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    split = read_table(tmp_path / "x", "split.csv")
    happy = [sum((split["emotion"] == "happiness") & (split["split"] == name)) for name in ("train", "dev", "test")]
    assert "train dev test all" in lines
    assert f"happiness {' '.join(map(str, happy))} {sum(happy)}" in lines
    dropped = int((split["split"] == "").sum()) - 5
    assert f"left out: {dropped + 5} images (5 constant, {dropped} copies of dev or test images)" in lines


def test_usable_rows_of_a_split_feed_keras_own_generator(tmp_path):
    import cv2
    import tensorflow as tf

    folder = tmp_path / "x"
    (folder / "images").mkdir(parents=True)
    table = faces(30)
    for row, path in enumerate(table["face_path"]):
        cv2.imwrite(str(folder / path), np.full((48, 48), row, np.uint8))
    write_table(table, folder / "faces.csv")
    step3_split.write_split(folder, Strategy.RANDOM)
    rows = usable(read_table(folder, "split.csv"))
    train = rows[rows["split"] == "train"]
    batches = tf.keras.preprocessing.image.ImageDataGenerator().flow_from_dataframe(
        train, directory=folder, x_col="face_path", y_col="emotion", target_size=(48, 48), color_mode="grayscale",
        shuffle=False, batch_size=64,
    )  # fmt: skip
    images, _ = next(batches)
    assert images[:, 0, 0, 0].tolist() == [int(path[-7:-4]) for path in train["path"]]
    assert list(batches.class_indices) == EMOTIONS


def test_official_without_a_dev_part_takes_one_from_the_training_images_and_leaves_test_alone():
    table = faces(300, usages=("train", "test", "test"), duplicates=60)
    split = split_table(table, Strategy.OFFICIAL, dev=0.1)
    published_test = table["usage"] == "test"
    assert (split.loc[published_test, "split"] == "test").all()
    training = split[~published_test]
    assert shares(training)["dev"] == pytest.approx(0.1, abs=0.03) and set(training["split"]) == {"train", "dev"}
    assert not crossing(training, "pixel_hash")
    assert set(training.loc[training["split"] == "dev", "emotion"]) == set(EMOTIONS)


@pytest.mark.parametrize("subjects", [0, 30])
@pytest.mark.parametrize("strategy", [Strategy.RANDOM, Strategy.FOLDS])
def test_the_frames_of_a_sequence_are_never_divided(strategy, subjects):
    table = faces(300, subjects=subjects)
    table["sequence"] = [f"{subject}/{row // 3}" for row, subject in enumerate(table["subject"])]
    table.loc[:8, "sequence"] = ""  # of no sequence: each by itself
    assert len(set(group_rows(table, by_subject=False)[:9])) == 9
    split = split_table(table, strategy, folds=5)
    for column in {"split", "fold", "subject_dependent_fold"} & set(split.columns):
        assert crossing(split[split["sequence"] != ""], "sequence", column) == []


def test_subject_dependent_folds_put_people_on_both_sides_and_copies_on_one():
    split = split_table(faces(300, subjects=30, duplicates=9), Strategy.FOLDS, folds=5)
    assert crossing(split, "subject", "fold") == [] and len(crossing(split, "subject", "subject_dependent_fold")) > 20
    assert crossing(split, "pixel_hash", "subject_dependent_fold") == []
    assert set(split["subject_dependent_fold"]) == set("01234")
    assert "subject_dependent_fold" not in split_table(faces(300), Strategy.FOLDS, folds=5).columns


@pytest.mark.parametrize("strategy", [Strategy.OFFICIAL, Strategy.RANDOM, Strategy.SUBJECT, Strategy.FOLDS])
def test_an_emotion_can_be_left_out_of_every_strategy(tmp_path, monkeypatch, capsys, strategy):
    table = faces(300, usages=FER2013, subjects=30)
    table.loc[0, "face_status"] = "not_found"  # counts by this reason
    write_table(table, tmp_path / "x" / "faces.csv")
    arguments = ["--dataset", "x", "--data", tmp_path, "--strategy", strategy, "--folds", 5]
    assert run_here(monkeypatch, *arguments, "--without", "Happy") == 0
    happy = int((table["emotion"][1:] == "happiness").sum())
    assert (
        f"left out: {happy + 1} images (1 without a face, {happy} of happiness (--without))" in capsys.readouterr().out
    )
    split = read_table(tmp_path / "x", "split.csv")
    assert len(split) == 300 and set(split.loc[split["emotion"] == "happiness", "split"]) == {""}
    assert set(split.loc[split["split"] != "", "emotion"]) == set(table["emotion"]) - {"happiness"}
    assert run_here(monkeypatch, *arguments) == 0
    assert "wrote" in capsys.readouterr().out


def test_an_emotion_that_is_none_is_refused(tmp_path, monkeypatch, capsys):
    write_table(faces(), tmp_path / "x" / "faces.csv")
    assert run_here(monkeypatch, "--dataset", "x", "--data", tmp_path, "--without", "boredom") == 2
    assert capsys.readouterr().err.startswith("error: unknown emotion 'boredom'; accepted are anger, ")
    with pytest.raises(InputError, match=r"a label but anger, happiness, neutral.*nothing to split"):
        split_table(faces(), Strategy.RANDOM, without=EMOTIONS)


def test_folds_that_leave_a_network_without_an_emotion_are_refused():
    table = faces(300, subjects=30)
    table.loc[table["subject"] == "S003", "emotion"] = "contempt"
    with pytest.raises(InputError, match=r"no training image would be left for contempt .*--without"):
        split_table(table, Strategy.FOLDS, folds=5)
