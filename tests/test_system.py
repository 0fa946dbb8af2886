"""A stranger's first minutes: a clone on a machine that has nothing installed."""

import shutil
import subprocess
from pathlib import Path

import cv2
import pandas as pd
import pytest
from conftest import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files that git tracks, without any environment."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.system
def test_make_demo_works_from_a_bare_clone_and_installs_only_once(clone):
    def demo() -> str:
        done = subprocess.run(["make", "demo"], cwd=clone, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = demo()
    folder = clone / "reports" / "demo"
    for name in ("picture.png", "expressions.png", "video.mp4", "predictions.csv"):
        assert str(folder / name) in first and (folder / name).stat().st_size > 1000
    faces = pd.read_csv(folder / "predictions.csv")
    portrait = faces[faces["name"] == "grace_hopper.jpg"].iloc[0]
    # The tip of the portrait's nose lies at (265, 237).
    assert portrait["box_left"] < 265 < portrait["box_left"] + portrait["box_width"]
    assert portrait["box_top"] < 237 < portrait["box_top"] + portrait["box_height"]
    video = cv2.VideoCapture(str(folder / "video.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) > 100
    assert "installing" in first and "installing" not in demo()
