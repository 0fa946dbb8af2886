import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from realtime.window import has_display

TESTS = Path(__file__).parent

CHILD = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from preprocessing.command_line import run
from realtime import webcam
from realtime_fakes import FACE, FakeClassifier, FakeDetector
from training.emotion_classifier import EmotionClassifier

webcam.build_detector = lambda *_: FakeDetector(FACE)
EmotionClassifier.load = lambda _: FakeClassifier()
run(webcam.main)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
@pytest.mark.parametrize(("display", "shown"), [(":0", True), ("", False), (None, False)])
def test_on_linux_a_display_is_what_the_environment_names(monkeypatch, display, shown):
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    assert has_display() is shown


@pytest.fixture
def virtual_display():
    """The name of a display that nobody sees."""
    if not (shutil.which("Xvfb") and shutil.which("xdotool")):
        pytest.skip("needs Xvfb and xdotool: make test-system")
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", "800x600x24"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert server.stdout is not None
    yield f":{server.stdout.readline().decode().strip()}"
    server.terminate()
    server.wait()


@pytest.mark.system
def test_a_window_opens_and_q_closes_it(tmp_path, virtual_display):
    cv2.imwrite(str(tmp_path / "me.png"), np.full((240, 320, 3), 90, np.uint8))
    environment = {**os.environ, "DISPLAY": virtual_display}
    code = CHILD.format(root=str(TESTS.parent), tests=str(TESTS))
    arguments = ["--source", str(tmp_path / "me.png"), "--record", str(tmp_path / "out.png")]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60

    def xdotool(*words):
        return subprocess.run(["xdotool", *words], env=environment, capture_output=True, text=True).stdout.split()

    try:
        while not (windows := xdotool("search", "--name", "Expressions")):
            assert child.poll() is None and time.monotonic() < deadline
        assert child.poll() is None, "a still picture waits for a key"
        while child.poll() is None:  # a key that comes before the window has the focus is lost
            assert time.monotonic() < deadline
            xdotool("windowfocus", windows[-1], "key", "q")
            time.sleep(0.1)
        printed, _ = child.communicate()
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0
    assert printed.decode().endswith(f"wrote {tmp_path / 'out.png'}\n")
    assert (tmp_path / "out.png").is_file()
