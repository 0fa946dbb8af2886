import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
from cards import model_card
from realtime_fakes import FACE, FakeClassifier, FakeDetector

from common.errors import InputError
from realtime import doctor
from realtime.doctor import check_model, check_opencv, examine, probe


class CardClassifier(FakeClassifier):
    card = model_card(
        temperature=1.3,
        abstention_threshold=0.4,
        dataset="fer2013",
        scores=[{"dataset": "fer2013", "split": "dev", "protocol": "one crop", "accuracy": 0.674}],
    )


@pytest.fixture
def healthy(monkeypatch):
    """A machine on which everything works, without networks."""
    monkeypatch.setattr(doctor, "build_detector", lambda _: FakeDetector(FACE))
    monkeypatch.setattr(doctor, "camera_numbers", lambda: [0])
    monkeypatch.setattr(doctor, "probe", lambda _: ([(1280, 720), (640, 480)], ""))


def examined(load=lambda _: CardClassifier()):
    said = []
    return examine(Path("net.keras"), load, said.append), "\n".join(map(str, said))


def test_healthy_machine_has_no_fault(healthy):
    is_well, said = examined()
    assert is_well and "FAULT" not in said
    for words in ("camera 0    1280x720, 640x480", "anger, happiness, neutral", "67.4% on fer2013 dev",
                  "temperature 1.30", "unsure below a smoothed probability of 40.00%",
                  "finds the face of a portrait", "everything needed works"):  # fmt: skip
        assert words in said


def test_missing_camera_and_display_are_no_fault(healthy, monkeypatch):
    monkeypatch.setattr(doctor, "camera_numbers", lambda: [])
    monkeypatch.setattr(doctor, "has_display", lambda: False)
    is_well, said = examined()
    assert is_well
    assert "cameras     none" in said and "-> plug one in" in said
    assert "display     none" in said and "--record, --log, --summary" in said


def refuse(_):
    raise InputError("net.keras does not exist; train one")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda patch: patch.setattr(doctor, "build_detector", refuse), "mtcnn cannot be used"),
        (lambda patch: patch.setattr(doctor, "build_detector", lambda _: FakeDetector()), "finds no face"),
        (lambda patch: patch.setattr(cv2, "getBuildInformation", lambda: "FFMPEG:  NO"), "without FFmpeg"),
        (lambda patch: patch.setitem(sys.modules, "av", None), "a trial video could not be written: --record needs"),
    ],
)
def test_broken_requirement_is_a_fault(healthy, monkeypatch, break_it, words):
    break_it(monkeypatch)
    is_well, said = examined()
    assert not is_well
    (line,) = [line for line in said.splitlines() if line.startswith("FAULT")]
    assert words in line
    assert "there is a fault" in said


@pytest.mark.parametrize(
    ("card", "options"),
    [
        ({"temperature": 1.0, "scores": []}, ["--calibrate", "--update-card"]),
        ({"temperature": 1.0, "scores": CardClassifier.card.scores}, ["--calibrate"]),
        ({"temperature": 1.3, "scores": []}, ["--update-card"]),
        ({"temperature": 1.0, "calibration": {"n": 9}, "scores": CardClassifier.card.scores}, None),
    ],
)
def test_remedy_names_missing_card_entries(monkeypatch, card, options):
    classifier = CardClassifier()
    monkeypatch.setattr(classifier, "card", model_card(**card))
    finding, _ = check_model(Path("my nets/net.keras"), lambda _: classifier)
    assert not finding.is_fault
    if options is None:
        assert not finding.remedy and "; calibrated" in finding.text
        return
    words = shlex.split(finding.remedy)
    assert words[:3] == ["python", "-m", "evaluation.model_evaluation"]
    assert words[3:] == ["--dataset", "NAME", "--model", "my nets/net.keras", *options]


def test_model_remedies(monkeypatch):
    monkeypatch.setattr(doctor, "PATHS", SimpleNamespace(pretrained=Path("released.keras"), shipped=Path("litert")))
    assert check_model(Path("other.keras"), refuse)[0].remedy == "give --model a trained network"
    remedy = check_model(Path("released.keras"), refuse)[0].remedy
    assert remedy == "git checkout -- released.keras released.json litert"


def test_opencv_remedy_removes_both_builds(monkeypatch):
    """Both builds of OpenCV share files: removing one of them breaks the other."""
    monkeypatch.setattr(doctor, "has_windows", lambda: False)
    assert check_opencv().remedy == (
        "python -m pip uninstall -y opencv-python opencv-python-headless; "
        "python -m pip install -r requirements-realtime.txt"
    )


def test_driver_crash_ends_only_the_probe(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.5)
    assert probe(0) == ([], "does not respond within 0 seconds")
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 10.0)
    monkeypatch.setattr(doctor, "_PROBE", "import os; os.abort()")
    assert probe(0) == ([], "its driver crashes OpenCV")
