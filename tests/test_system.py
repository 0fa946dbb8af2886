"""First minutes of a new user: a clone on a machine without any environment."""

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from inference.emotion_classifier import EmotionClassifier
from inference.model_card import read_card


@pytest.mark.system
def test_make_demo_runs_from_a_bare_clone_and_installs_once(tmp_path):
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)

    def demo() -> str:
        done = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first, folder = demo(), tmp_path / "reports" / "demo"
    for name in ("picture.png", "expressions.png", "video.mp4", "predictions.csv"):
        assert str(folder / name) in first and (folder / name).stat().st_size > 1000
    frames = cv2.VideoCapture(str(folder / "video.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)
    assert frames > 100 and len(pd.read_csv(folder / "predictions.csv")) > 0.9 * frames
    assert "installing" in first and "installing" not in demo()


@pytest.mark.system
def test_two_commands_train_teachers_and_the_released_kind_of_network(tmp_path, run_step):
    folders = ["--data", tmp_path / "data", "--models", tmp_path / "models"]
    teachers = tmp_path / "models" / "sample" / "teachers"
    for command in (
        ["preprocessing.step1_inventory", *folders[:2]],
        ["preprocessing.step2_face_crops", *folders[:2]],
        ["preprocessing.step3_split", *folders[:2]],
        ["training.teachers", *folders, "--epochs", 11],
        ["training.step3_best_model", *folders, "--teacher", teachers, "--epochs", 11],
    ):
        done = run_step(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    card = read_card(teachers.parent / "best.keras")
    assert [Path(teacher.file).name for teacher in card.teachers] == ["1.keras", "2.keras", "3.keras"]
    network = EmotionClassifier.load(teachers.parent / "best.keras")
    images = np.random.default_rng(3).integers(0, 256, (4, 48, 48, 1), dtype=np.uint8)
    np.testing.assert_allclose(network.predict(images).sum(axis=1), 1, atol=1e-5)
