import json

import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from preprocessing.tables import (
    FACE_COLUMNS,
    INVENTORY_COLUMNS,
    NUMERIC_COLUMNS,
    content_hash,
    crop_options,
    is_usable,
    labels_of,
    read_table,
    usable,
    write_table,
)  # fmt: skip


def crops(rows: int = 3) -> pd.DataFrame:
    """A valid faces.csv with text that CSV readers often change."""
    table = pd.DataFrame("", index=range(rows), columns=[*INVENTORY_COLUMNS, *FACE_COLUMNS])
    table["path"] = [f"images/{row}.png" for row in range(rows)]
    table["face_path"] = [f"faces/{row}.png" for row in range(rows)]
    table["emotion"], table["status"], table["face_status"] = "fear", "ok", "found"
    table["subject"], table["sequence"], table["pixel_hash"] = "007", "NA", "1e5"
    table["votes_fear"] = 4
    table["note"] = 'a "quoted", ünïcode\nnote'
    table["box_left"] = [1.5, -2.0, np.nan][:rows]
    return table


def test_table_is_read_as_it_was_written(tmp_path):
    write_table(crops(), tmp_path / "faces.csv")
    table = read_table(tmp_path, "faces.csv")
    text = [column for column in table.columns if column not in [*NUMERIC_COLUMNS, "votes_fear"]]
    assert table[text].to_numpy().tolist() == crops()[text].to_numpy().tolist()
    np.testing.assert_array_equal(table["box_left"], [1.5, -2.0, np.nan])
    assert table["votes_fear"].tolist() == [4, 4, 4] and table["face_confidence"].isna().all()
    write_table(table, tmp_path / "again.csv")
    content = (tmp_path / "again.csv").read_bytes()
    write_table(read_table(tmp_path, "faces.csv"), tmp_path / "faces.csv")
    assert content == (tmp_path / "faces.csv").read_bytes() and b"\r" not in content


@pytest.mark.parametrize(
    ("file_name", "step"),
    [("inventory.csv", "step1_inventory"), ("faces.csv", "step2_face_crops"), ("split.csv", "step3_split")],
)
def test_missing_table_names_the_step_that_writes_it(tmp_path, file_name, step):
    with pytest.raises(InputError, match=f"run first: python -m preprocessing.{step} --dataset mine"):
        read_table(tmp_path / "mine", file_name)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"emotion": "angry"}, "emotion 'angry' is not one of"),
        ({"status": "fine"}, "status 'fine' is not one of"),
        ({"face_status": ""}, "face_status '' is not one of"),
        ({"path": "/etc/passwd"}, "leaves the data folder"),
        ({"path": "images/../../other/1.png"}, "leaves the data folder"),
        ({"path": "C:/1.png"}, "leaves the data folder"),
        ({"path": "images\\1.png"}, "leaves the data folder"),
        ({"face_path": "../faces/1.png"}, "leaves the data folder"),
        ({"box_left": "wide"}, "column box_left contains a value that is not a number"),
        ({"votes_fear": "many"}, "column votes_fear contains a value that is not a number"),
    ],
)
def test_invalid_value_is_refused(tmp_path, change, expected):
    table = crops().astype(object)
    for column, value in change.items():
        table.loc[1, column] = value
    write_table(table, tmp_path / "faces.csv")
    with pytest.raises(InputError, match=expected):
        read_table(tmp_path, "faces.csv")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'path\n"never closed', b"path,emotion\na,b\n"])
def test_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "inventory.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"inventory\.csv.*write it again: python -m preprocessing\.step1_inventory"):
        read_table(tmp_path, "inventory.csv")


@pytest.mark.parametrize("column", ["loose_fold", "crossing_copy"])
def test_split_of_an_earlier_version_names_the_step_to_run_again(tmp_path, run_step, make_dataset, column):
    folder = make_dataset()
    write_table(read_table(folder, "split.csv").assign(**{column: "0"}), folder / "split.csv")
    arguments = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "models"]
    done = run_step("training.step1_baseline", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"column {column} of an earlier version; write it again: python -m preprocessing.step3_split" in done.stderr


def test_crops_of_an_earlier_version_name_the_step_to_run_again(tmp_path):
    options = {"size": 48, "channels": 1, "align": "landmarks", "smallest_face": 40}
    (tmp_path / "faces.json").write_text(json.dumps({"options": options}))
    with pytest.raises(InputError, match=r"from an earlier version; run first: .*step2_face_crops --dataset"):
        crop_options(tmp_path)
    options.pop("smallest_face")
    (tmp_path / "faces.json").write_text(json.dumps({"options": options}))
    assert crop_options(tmp_path) == options


def test_usable_rows_are_readable_labelled_and_have_a_face():
    table = pd.concat([crops(3), crops(3)], ignore_index=True)
    table.loc[0, "status"], table.loc[1, "status"] = "constant", "unreadable"
    table.loc[2, "emotion"], table.loc[3, "face_status"], table.loc[4, "face_status"] = "", "not_found", "whole_image"
    assert is_usable(table).tolist() == [False, False, False, False, True, True]
    assert usable(table)["path"].tolist() == ["images/1.png", "images/2.png"]
    assert usable(table).index.tolist() == [0, 1]
    assert len(usable(table.drop(columns="face_status"))) == 3
    assert labels_of(table.assign(emotion=["neutral", "", "anger"] * 2)) == ["anger", "neutral"]


def test_content_hash_depends_on_every_cell_and_on_the_order():
    table = crops()
    assert content_hash(table) == content_hash(crops()) and len(content_hash(table)) == 16
    assert content_hash(table.assign(emotion=["fear", "fear", "anger"])) != content_hash(table)
    assert content_hash(table.iloc[::-1]) != content_hash(table)
