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
    content = (tmp_path / "faces.csv").read_bytes()
    write_table(table, tmp_path / "faces.csv")
    again = read_table(tmp_path, "faces.csv")
    assert content_hash(again) == content_hash(table) != content_hash(table.iloc[::-1]) and b"\r" not in content


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"emotion": "angry"}, "emotion 'angry' is not one of"),
        ({"face_status": ""}, "face_status '' is not one of"),
        ({"path": "/etc/passwd"}, "leaves the data folder"),
        ({"path": "C:/1.png"}, "leaves the data folder"),
        ({"path": "images\\1.png"}, "leaves the data folder"),
        ({"path": crops()["path"][0]}, "is listed twice; keep one row"),
        ({"face_path": "../faces/1.png"}, "leaves the data folder"),
        ({"box_left": "wide"}, "column box_left contains a value that is not a number"),
    ],
)
def test_invalid_value_is_refused(tmp_path, change, expected):
    table = crops().astype(object)
    table.loc[1, [*change]] = [*change.values()]
    write_table(table, tmp_path / "faces.csv")
    with pytest.raises(InputError, match=expected):
        read_table(tmp_path, "faces.csv")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'path\n"never closed', b"path,emotion\na,b\n"])
def test_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "inventory.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"inventory\.csv.*write it again: python -m preprocessing\.step1_inventory"):
        read_table(tmp_path, "inventory.csv")


def test_missing_files_name_the_step_to_run(tmp_path):
    with pytest.raises(InputError, match=r"missing or damaged; run first: .*step2_face_crops --dataset"):
        crop_options(tmp_path)
    with pytest.raises(InputError, match=r"run first: python -m preprocessing.step1_inventory --dataset mine"):
        read_table(tmp_path / "mine", "inventory.csv")


def test_command_that_makes_crops_again_keeps_their_options(tmp_path, run_step):
    write_table(crops(), tmp_path / "x" / "faces.csv")
    write_table(crops().drop(columns=FACE_COLUMNS), tmp_path / "x" / "inventory.csv")
    options = {"size": 64, "channels": 3, "align": "box", "detect": False}
    (tmp_path / "x" / "faces.json").write_text(json.dumps({"inventory": "another", "options": options}))
    done = run_step("preprocessing.step3_split", "--dataset", "x", "--data", tmp_path)
    assert done.returncode == 2 and "another inventory.csv; run first: " in done.stderr
    assert done.stderr.strip().endswith("--size 64 --channels 3 --align box --no-detect")


def test_usable_rows_are_readable_labelled_and_have_a_face():
    table = pd.concat([crops(3), crops(3)], ignore_index=True)
    table.loc[0, "status"], table.loc[1, "status"] = "constant", "unreadable"
    table.loc[2, "emotion"], table.loc[3, "face_status"], table.loc[4, "face_status"] = "", "not_found", "whole_image"
    assert is_usable(table).tolist() == [False, False, False, False, True, True]
    assert usable(table)["path"].tolist() == ["images/1.png", "images/2.png"]
    assert usable(table).index.tolist() == [0, 1]
    assert len(usable(table.drop(columns="face_status"))) == 3
    assert labels_of(table.assign(emotion=["neutral", "", "anger"] * 2)) == ["anger", "neutral"]
