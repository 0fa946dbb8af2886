import csv

import cv2
import pytest
from cards import model_card
from realtime_fakes import FakeClassifier, FakeDetector, read_video

from inference.faces import Face
from realtime.demo import demonstrate, describe_scores


def test_demo_writes_pictures_videos_and_a_table(tmp_path):
    folder = tmp_path / "reports" / "demo"
    written = demonstrate(folder, FakeDetector(Face(180.0, 110.0, 180.0, 230.0, 0.9)), FakeClassifier())
    assert sorted(written) == sorted(folder.iterdir())
    portrait, grid = (cv2.imread(str(folder / name)) for name in ("picture.png", "expressions.png"))
    assert portrait is not None and portrait.shape == (600, 512, 3)
    assert grid is not None and grid.shape == (960, 1920, 3)
    cells = [grid[y : y + 480, x : x + 640] for y in (0, 480) for x in (0, 640, 1280)]
    assert all(cv2.absdiff(cells[0], cell).any() for cell in cells[1:])
    frames, fps = read_video(folder / "video.mp4")
    plain, _ = read_video(folder / "sample.mp4")
    assert len(frames) / fps > 5 and len(plain) == len(frames)
    assert cv2.absdiff(frames[-1][100:340, 170:185], plain[-1][100:340, 170:185]).max() > 60, "the box"
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(frames) and {row["label"] for row in rows} == {"happiness"}


def test_portrait_without_a_detected_face_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no face was detected"):
        demonstrate(tmp_path / "demo", FakeDetector(), FakeClassifier())
    assert not (tmp_path / "demo").exists()


def test_scores_of_a_card_are_described():
    score = {"dataset": "fer2013", "split": "dev", "accuracy": 0.6512, "protocol": "one network"}
    assert describe_scores(model_card()) == "its card has no score yet"
    assert describe_scores(model_card(scores=[score])) == "accuracy 65.1% on FER2013's PublicTest (one network)"
