import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from realtime_fakes import FACE, LABELS, recognition, result

from common.errors import InputError
from realtime.sinks.log import FaceLog, log_columns

BLACK = np.zeros((64, 96, 3), np.uint8)


def test_log_has_a_row_per_face_and_writes_each_frame_at_once(tmp_path):
    log = FaceLog(tmp_path / "out.csv", LABELS)
    second = replace(FACE, left=-3.25, top=7.0)
    tentative = replace(recognition(second, "anger", 0.5), tentative=True)
    log.write(result(BLACK, recognition(track_id=4, unsure=True), tentative, recognition(), index=4, time=0.16))
    log.write(result(BLACK, index=5, time=0.2))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:  # before the log is closed
        rows = list(csv.DictReader(stream))
    log.close()
    assert [(row["time"], row["frame"], row["name"]) for row in rows] == [("0.16", "4", "clip.mp4")] * 3
    assert [row["track_id"] for row in rows] == ["4", "0", ""], "tracked, tentative, image"
    assert [(row["unsure"], row["tentative"]) for row in rows] == [("1", "0"), ("0", "1"), ("0", "0")]
    assert [rows[1][f"box_{side}"] for side in ("left", "top", "width", "height")] == ["-3.2", "7.0", "24.0", "30.0"]
    assert [row["label"] for row in rows] == ["unsure", "anger", "happiness"], "the label shown"
    assert [float(row["probability"]) for row in rows] == [0.7, 0.5, 0.7]
    assert [float(rows[0][f"p_{label}"]) for label in LABELS] == pytest.approx([0.15, 0.7, 0.15])


def test_both_forms_have_the_same_rows_and_the_csv_escapes_a_name_like_a_formula(tmp_path):
    name, seen = "=cmd|' /C calc'!A0.jpg", result(BLACK, recognition(unsure=True, track_id=4), recognition(), index=2)
    for suffix in ("csv", "jsonl"):
        log = FaceLog(tmp_path / f"out.{suffix}", LABELS)
        log.write(replace(seen, frame=replace(seen.frame, name=name)))
        log.close()
    table, lines = pd.read_csv(tmp_path / "out.csv"), pd.read_json(tmp_path / "out.jsonl", lines=True)
    assert list(table) == list(lines) == log_columns(LABELS)
    assert list(table["name"]) == ["'" + name] * 2 and list(lines["name"]) == [name] * 2
    pd.testing.assert_frame_equal(table.drop(columns="name"), lines.drop(columns="name"), check_dtype=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_log_that_cannot_be_written_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        FaceLog(tmp_path / "nowhere" / "out.csv", LABELS)
    with pytest.raises(InputError, match=r"--log /dev/full cannot be written \(No space left"):
        FaceLog(Path("/dev/full"), LABELS)
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    log = FaceLog(tmp_path / "full.jsonl", LABELS)
    with pytest.raises(InputError, match=r"full\.jsonl cannot be written \(No space left"):
        log.write(result(BLACK, recognition()))
    log.close()
