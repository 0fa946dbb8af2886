import csv
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from cards import model_card
from realtime_fakes import FakeClassifier, FakeDetector, read_video

from inference.faces import Face
from preprocessing.datasets.sample import SAMPLE
from realtime import demo
from realtime.demo import demonstrate, describe_scores


def test_the_demonstration_writes_pictures_a_video_and_a_table(tmp_path):
    folder = tmp_path / "reports" / "demo"
    written = demonstrate(folder, FakeDetector(Face(180.0, 110.0, 180.0, 230.0, 0.9)), FakeClassifier())
    assert sorted(written) == sorted(folder.iterdir())
    portrait = cv2.imread(str(folder / "picture.png"))
    assert portrait is not None and portrait.shape == (600, 512, 3)
    grid = cv2.imread(str(folder / "expressions.png"))
    assert grid is not None and grid.shape == (960, 1920, 3)
    cells = [grid[y : y + 480, x : x + 640] for y in (0, 480) for x in (0, 640, 1280)]
    assert all(cv2.absdiff(cells[0], cell).any() for cell in cells[1:])
    frames, fps = read_video(folder / "video.mp4")
    assert len(frames) / fps > 5
    plain, _ = read_video(folder / "sample.mp4")
    assert len(plain) == len(frames)
    assert not (frames[-1] != plain[-1]).any(axis=2).all(), "annotated in places"
    assert cv2.absdiff(frames[-1][100:340, 170:185], plain[-1][100:340, 170:185]).max() > 60, "a box, and none"
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 1 + 7 * SAMPLE.frames
    assert rows[0]["name"] == "grace_hopper.jpg"
    assert {row["label"] for row in rows} == {"happiness"}


def test_without_a_face_in_the_portrait_it_fails_and_writes_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="no face was found"):
        demonstrate(tmp_path / "demo", FakeDetector(), FakeClassifier())
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({}, "its card has no score yet"),
        ({"scores": []}, "its card has no score yet"),
        (
            {"scores": [{"dataset": "fer2013", "split": "dev", "accuracy": 0.6512, "protocol": "one network"}]},
            "accuracy 65.1% on FER2013's PublicTest (one network)",
        ),
    ],
)
def test_the_cards_scores_are_told_in_words(card, words):
    assert describe_scores(model_card(**card)) == words


def test_runs_as_a_plain_file_from_anywhere(tmp_path):
    program = Path(demo.__file__)
    command = [sys.executable, str(program), "--model", "none.keras"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "") and "none.keras does not exist" in ended.stderr
