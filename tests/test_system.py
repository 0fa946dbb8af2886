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

NOT_FOR_THE_CAMERA = ("tensorflow", "keras", "pandas", "scipy", "sklearn", "matplotlib")
MAX_INSTALLED = 550  # MB


@pytest.mark.system
def test_make_demo_installs_the_camera_from_a_bare_clone(tmp_path, tiny_model):
    clone = tmp_path / "clone"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, command)], cwd=clone, capture_output=True, text=True, timeout=1500)

    def demo() -> str:
        done = run("make", "demo")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first, folder = demo(), clone / "reports" / "demo"
    for name in ("picture.png", "expressions.png", "video.mp4", "predictions.csv"):
        assert str(folder / name) in first and (folder / name).stat().st_size > 1000
    frames = cv2.VideoCapture(str(folder / "video.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)
    assert frames > 100 and len(pd.read_csv(folder / "predictions.csv")) > 0.9 * frames
    assert "installing" in first and "installing" not in demo()

    python = clone / ".venv" / "bin" / "python"
    absent = f"import importlib.util as u; print(*filter(u.find_spec, {NOT_FOR_THE_CAMERA}))"
    assert run(python, "-c", absent).stdout == "\n"
    installed = int(run("du", "-sm", ".venv").stdout.split()[0])
    assert installed < MAX_INSTALLED
    outputs = [tmp_path / name for name in ("annotated.mp4", "faces.csv", "segments.csv", "page.html")]
    options = zip(("--record", "--log", "--segments", "--summary"), outputs, strict=True)
    camera = [python, "-m", "realtime.webcam", "--no-window", "--source"]
    done = run(*camera, folder / "sample.mp4", *(word for option in options for word in option))
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(pd.read_csv(outputs[1])) > 0.9 * frames and all(file.stat().st_size > 100 for file in outputs)
    done = run(*camera, folder / "sample.mp4", "--model", tiny_model())
    assert done.returncode == 2 and 'install -e ".[all]"' in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.system
def test_two_commands_train_teachers_and_the_released_kind_of_network(tmp_path, run_step, monkeypatch):
    # Some processors take minutes to time a precision that they lack.
    monkeypatch.setattr("training.trainer.choose_precision", lambda *_: "float32")
    folders = ["--data", tmp_path / "data", "--models", tmp_path / "models"]
    teachers = tmp_path / "models" / "sample" / "teachers"
    first = teachers / "1.keras"
    for command in (
        ["preprocessing.step1_inventory", *folders[:2]],
        ["preprocessing.step2_face_crops", *folders[:2]],
        ["preprocessing.step3_split", *folders[:2]],
        ["training.teachers", *folders, "--epochs", 6],
        ["training.step3_best_model", *folders, "--teacher", teachers, "--pretrained", first, "--epochs", 6],
    ):
        done = run_step(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    card = read_card(teachers.parent / "best.keras")
    assert [Path(teacher.file).name for teacher in card.teachers] == ["1.keras", "2.keras"]
    assert card.pretrained and Path(card.pretrained.file).name == "1.keras"
    network = EmotionClassifier.load(teachers.parent / "best.keras")
    images = np.random.default_rng(3).integers(0, 256, (4, 48, 48, 1), dtype=np.uint8)
    np.testing.assert_allclose(network.predict(images).sum(axis=1), 1, atol=1e-5)
