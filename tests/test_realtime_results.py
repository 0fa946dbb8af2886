import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from realtime_fakes import FACE, LABELS, FakeClassifier, FakeDetector, write_video

from realtime import analyze, analyze_many, recognition, to_frame, watch
from realtime.sinks.log import FaceLog, log_columns

OTHER = type(FACE)(50.0, 10.0, 20.0, 25.0, 0.9)


@pytest.fixture
def results(tmp_path) -> list[recognition.Result]:
    video = write_video(tmp_path / "clip.mp4", frames=6)
    return list(watch(video, FakeClassifier(), FakeDetector(FACE, OTHER)))


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        cv2.imwrite(str(file), np.full((64, 96, 3), 40 * number, np.uint8))
    return files


def test_dictionaries_are_the_lines_of_the_log(results, tmp_path):
    log = FaceLog(tmp_path / "log.jsonl", LABELS)
    for result in results:
        log.write(result)
    log.close()
    entries = [json.loads(json.dumps(result.to_dict())) for result in results]
    assert [entry["frame"] for entry in entries] == list(range(6)) and len(entries[5]["faces"]) == 2
    faces = [{**entry, **face} for entry in entries for face in entry.pop("faces")]
    assert faces == [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


def test_table_equals_the_log(results, tmp_path):
    log = FaceLog(tmp_path / "log.csv", LABELS)
    for result in results:
        log.write(result)
    log.close()
    table = to_frame(iter(results))
    assert list(table) == log_columns(LABELS) and len(table) == 12
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "log.csv"), check_dtype=False)


def test_table_of_one_picture_and_of_none(pictures):
    table = to_frame(analyze(pictures[0], FakeClassifier(), FakeDetector(FACE, OTHER)))
    assert list(table) == log_columns(LABELS) and list(table["label"]) == ["happiness", "anger"]
    assert table["track_id"].isna().all() and table["name"].isna().all() and list(table["box_left"]) == [20.0, 50.0]
    assert list(to_frame([])) == log_columns([]) and to_frame([]).empty


def test_pictures_are_detected_one_by_one_and_classified_in_batches(pictures, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    paths = [*pictures[:2], tmp_path / "text.png", str(pictures[2])]
    detector, classifier = FakeDetector(FACE, OTHER), FakeClassifier()
    with pytest.warns(UserWarning, match=r"text\.png cannot be read as an image.*skipped"):
        results = list(analyze_many(paths, classifier, detector))
    assert len(detector.seen) == 3 and [len(batch) for batch in classifier.batches] == [6]
    assert [result.frame.name for result in results] == [str(file) for file in pictures[:3]]
    assert [result.frame.index for result in results] == [0, 1, 3]
    for result, file in zip(results, pictures, strict=False):
        np.testing.assert_array_equal(result.frame.image_bgr, cv2.imread(str(file)))
        assert [each.face for each in result.recognitions] == [FACE, OTHER]
    assert [each.label for result in results for each in result.recognitions] == ["happiness", *["anger"] * 5]
    assert list(analyze_many([], classifier, detector)) == []
    assert [result.frame.name for result in analyze_many(str(pictures[0]), classifier, detector)] == [str(pictures[0])]


@pytest.mark.parametrize(("faces", "pixels", "most"), [(8, 10**9, 8), (10**9, 64 * 96 * 3, 3)])
def test_endless_pictures_need_bounded_memory(pictures, monkeypatch, faces, pixels, most):
    monkeypatch.setattr(recognition, "BATCH_FACES", faces)
    monkeypatch.setattr(recognition, "BATCH_PIXELS", pixels)
    read = []

    def endless() -> Iterator[Path]:
        for path in repeat(pictures[1]):
            read.append(path)
            yield path

    results = analyze_many(endless(), FakeClassifier(), FakeDetector(FACE))
    for number in range(1, 20):
        next(results)
        assert number <= len(read) <= number + most


def test_supervision_takes_the_results_as_documented(results):
    page = (ROOT / "docs" / "realtime.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "supervision" in block)
    code = code.replace("from realtime import watch\n", "")
    names: dict[str, Any] = {"watch": lambda _: [results[-1]]}
    exec(code, names)
    detections = names["detections"]
    np.testing.assert_allclose(detections.xyxy, [[20, 16, 44, 46], [50, 10, 70, 35]])
    assert list(detections.tracker_id) == [1, 2] and list(detections["class_name"]) == ["happiness", "anger"]
    np.testing.assert_allclose(detections.confidence, [0.7, 0.6], atol=1e-5)
    assert list(detections.class_id) == [1, 0]
    exec(code, names := {"watch": lambda _: [replace(results[-1], recognitions=[])]})
    assert len(names["detections"]) == 0
