import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from preprocessing.tables import (
    FACE_COLUMNS,
    INVENTORY_COLUMNS,
    NUMERIC_COLUMNS,
    atomic_file,
    check_relative,
    content_hash,
    is_usable,
    labels_of,
    read_table,
    usable,
    write_table,
)


def crops(rows: int = 3) -> pd.DataFrame:
    """A valid faces.csv with text that CSV readers like to spoil."""
    table = pd.DataFrame("", index=range(rows), columns=[*INVENTORY_COLUMNS, *FACE_COLUMNS])
    table["path"] = [f"images/{row}.png" for row in range(rows)]
    table["face_path"] = [f"faces/{row}.png" for row in range(rows)]
    table["emotion"], table["status"], table["face_status"] = "fear", "ok", "found"
    table["subject"], table["sequence"], table["pixel_hash"] = "007", "NA", "1e5"
    table["votes_fear"] = 4
    table["note"] = 'a "quoted", ünïcode\nnote'
    table["box_left"] = [1.5, -2.0, np.nan][:rows]
    return table


def test_a_table_comes_back_as_it_was_written(tmp_path):
    write_table(crops(), tmp_path / "faces.csv")
    table = read_table(tmp_path, "faces.csv")
    text = [column for column in table.columns if column not in [*NUMERIC_COLUMNS, "votes_fear"]]
    assert table[text].to_numpy().tolist() == crops()[text].to_numpy().tolist()
    np.testing.assert_array_equal(table["box_left"], [1.5, -2.0, np.nan])
    assert table["votes_fear"].tolist() == [4, 4, 4]
    assert table["face_confidence"].isna().all()


def test_writing_twice_gives_the_same_bytes_with_plain_line_ends(tmp_path):
    write_table(crops().drop(columns="note"), tmp_path / "a" / "faces.csv")
    write_table(read_table(tmp_path / "a", "faces.csv"), tmp_path / "faces.csv")
    write_table(read_table(tmp_path, "faces.csv"), tmp_path / "b.csv")
    content = (tmp_path / "faces.csv").read_bytes()
    assert content == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in content


@pytest.mark.parametrize(
    ("file_name", "step"),
    [
        ("inventory.csv", "preprocessing.step1_inventory"),
        ("faces.csv", "preprocessing.step2_face_crops"),
        ("split.csv", "preprocessing.step3_split"),
    ],
)
def test_a_missing_table_names_the_step_that_writes_it(tmp_path, file_name, step):
    with pytest.raises(InputError, match=f"run first: python -m {step} --dataset mine"):
        read_table(tmp_path / "mine", file_name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"emotion": "angry"}, "emotion 'angry' is not one of"),
        ({"status": "fine"}, "status 'fine' is not one of"),
        ({"face_status": ""}, "face_status '' is not one of"),
        ({"path": "/etc/passwd"}, "leaves the data folder"),
        ({"path": "images/../../other/1.png"}, "leaves the data folder"),
        ({"path": "C:/1.png"}, "leaves the data folder"),
        ({"path": "images\\1.png"}, "leaves the data folder"),
        ({"face_path": "../faces/1.png"}, "leaves the data folder"),
        ({"box_left": "wide"}, "column box_left holds a value that is no number"),
        ({"votes_fear": "many"}, "column votes_fear holds a value that is no number"),
    ],
)
def test_a_value_against_the_contract_is_refused(tmp_path, change, said):
    table = crops().astype(object)
    for column, value in change.items():
        table.loc[1, column] = value
    write_table(table, tmp_path / "faces.csv")
    with pytest.raises(InputError, match=said):
        read_table(tmp_path, "faces.csv")


def test_missing_columns_are_named(tmp_path):
    write_table(crops().drop(columns=["subject", "box_top"]), tmp_path / "faces.csv")
    with pytest.raises(InputError, match="lacks the columns subject, box_top"):
        read_table(tmp_path, "faces.csv")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'path\n"never closed'])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "inventory.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"inventory\.csv"):
        read_table(tmp_path, "inventory.csv")


@pytest.mark.parametrize("path", ["images/a.png", "images/a..b/c d.png", "images/é.png"])
def test_paths_inside_the_folder_are_accepted(tmp_path, path):
    assert check_relative(path, tmp_path / "inventory.csv") is None


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    file = tmp_path / "inventory.csv"
    file.write_text("before")
    with pytest.raises(ZeroDivisionError):
        with atomic_file(file) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["inventory.csv"]


def test_a_write_makes_its_folder_and_replaces_what_a_killed_run_left(tmp_path):
    file = tmp_path / "new" / "inventory.csv"
    with atomic_file(file) as temporary:
        temporary.write_text("first")
        left_over = temporary
    left_over.write_text("half of an earlier run, which is longer than what comes now")
    with atomic_file(file) as temporary:
        assert temporary == left_over
        temporary.write_text("whole")
    assert file.read_text() == "whole"
    assert not left_over.exists()


def test_usable_rows_are_readable_labelled_and_have_a_face():
    table = crops(3)
    table = pd.concat([table, table], ignore_index=True)
    table.loc[0, "status"], table.loc[1, "status"] = "constant", "unreadable"
    table.loc[2, "emotion"], table.loc[3, "face_status"], table.loc[4, "face_status"] = "", "not_found", "whole_image"
    assert is_usable(table).tolist() == [False, False, False, False, True, True]
    assert usable(table)["path"].tolist() == ["images/1.png", "images/2.png"]
    assert usable(table).index.tolist() == [0, 1]
    assert usable(table.drop(columns="face_status"))["path"].tolist() == [
        "images/0.png",
        "images/1.png",
        "images/2.png",
    ]


def test_labels_come_in_class_order():
    table = crops().assign(emotion=["neutral", "", "anger"])
    assert labels_of(table) == ["anger", "neutral"]


def test_the_digest_follows_the_content(tmp_path):
    table = crops()
    assert content_hash(table) == content_hash(crops())
    assert content_hash(table.assign(emotion=["fear", "fear", "anger"])) != content_hash(table)
    assert content_hash(table.iloc[::-1]) != content_hash(table)
    assert len(content_hash(table)) == 16
