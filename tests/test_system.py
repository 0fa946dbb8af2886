"""First minutes of a new user: a clone on a machine without any environment."""

import shutil
import subprocess

import cv2
import pandas as pd
import pytest
from conftest import ROOT


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
