import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from realtime_fakes import read_times, write_video

from realtime.sinks.window import Window, has_display, key_name

TESTS = Path(__file__).parent

CHILD = """
import functools, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
from common.command_line import run
from realtime import webcam
from realtime_fakes import FACE, FakeClassifier, FakeDetector
from inference.emotion_classifier import EmotionClassifier

webcam.OutputOptions = functools.partial(webcam.OutputOptions, captures=Path({captures!r}))
webcam.build_detector = lambda *_: FakeDetector(FACE)
EmotionClassifier.load_litert = lambda _: FakeClassifier()
run(webcam.main)
"""


@pytest.mark.parametrize(
    ("codes", "name"),
    [
        ((-1, 0), ""),
        ((0xFF51, 0x100000 | 0xFF51, 0x250000, 0xF702), "left"),  # X, GTK with Num Lock, Windows, macOS
        ((0xFF53, 0x20000 | 0xFF53, 0x270000, 0xF703), "right"),
        ((0xFF55, 0xFF96, 0xFF9A, 0x210000, 0xF72C), "left"),  # page up, the keypad without Num Lock
        ((0xFF56, 0xFF98, 0xFF9B, 0x220000, 0xF72D), "right"),
        ((ord("q"), ord("Q"), 0x10000 | ord("Q"), 0x20000 | ord("Q"), 0x100000 | ord("q")), "q"),
        ((0xFFB3, ord("3"), 0x100000 | 0xFFB3), "3"),
        ((27, 0xFF1B), "\x1b"),
        ((13, 0xFF0D, 0xFF8D), "\r"),
        ((0xE9, -0x17), "é"),
        ((-0x4E,), "²"),  # of a French keyboard; its low bytes are the keypad's 2
        ((0xFF52, 0xFF54, 0xFF50, 0xFF57, 0x260000, 0x280000, 0xF700, 0xF701), ""),  # up, down, home, end
        ((0xFFE1, 0xFFE3, 0xFFE5, 0xFFE9, 0xFFEB, 0xFF7F, 0xFE03, 0x100000, 0x140000), ""),  # modifiers
        ((0xFF61, 0xFF63, 0xFF68, 0xFFBE, 0xFFFF, 0x700000, 0xF704), ""),  # print, insert, find, F1, delete
        ((0xFE51, 0xFE52, 0x06EA, 0x0471, 0x1008FF13, 0x1008FF56, 0x1008FF51, 0x01000471, 0x0100FF51), ""),
    ],
)
def test_key_has_the_same_name_on_every_platform(codes, name):
    assert {code: key_name(code) for code in codes} == dict.fromkeys(codes, name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
@pytest.mark.parametrize(
    ("display", "shown"),
    [(":4242", True), (":4242.0", True), (":4243", False), ("localhost:4243.0", False), (None, False)],
)
def test_display_on_linux_must_accept_connections(monkeypatch, display, shown):
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0/tmp/.X11-unix/X4242")
        server.listen()
        assert has_display() is shown


def test_closed_window_quits(monkeypatch):
    for name in ("namedWindow", "resizeWindow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "waitKeyEx", lambda _: -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 0.0)
    assert Window((64, 48)).wait(0.0, still=True) == "quit"


class Program:
    """The program with its window on a virtual display, and xdotool to use it."""

    def __init__(self, display, captures, *arguments, prelude=""):
        self.environment, self.captures = {**os.environ, "DISPLAY": display}, captures
        code = prelude + CHILD.format(root=str(TESTS.parent), tests=str(TESTS), captures=str(captures))
        self.child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.deadline, self.window = time.monotonic() + 60, ""
        while not self.window:
            assert self.child.poll() is None and time.monotonic() < self.deadline
            self.window = "".join(self.xdotool("search", "--name", "Expressions")[-1:])
        self.xdotool("windowfocus", "--sync", self.window)

    def xdotool(self, *words):
        ended = subprocess.run(["xdotool", *words], env=self.environment, capture_output=True, text=True, check=False)
        return ended.stdout.split()

    def press_until(self, key, is_done):
        """Press a key until it has an effect: a key before the window has the focus is lost."""
        while not is_done():
            assert time.monotonic() < self.deadline
            self.xdotool("windowfocus", self.window, "key", key)
            for _ in range(20):
                if is_done():
                    return
                time.sleep(0.05)

    def has_capture(self, suffix):
        return any(self.captures.glob(f"*{suffix}"))

    def has_ended(self):
        return self.child.poll() is not None


@pytest.fixture
def show(tmp_path):
    """Start the program on a virtual display."""
    if not (shutil.which("Xvfb") and shutil.which("xdotool")):
        pytest.skip("needs Xvfb and xdotool: make test-system")
    server = subprocess.Popen(
        ["Xvfb", "-noreset", "-displayfd", "1", "-screen", "0", "800x600x24"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdout is not None
    display, started = f":{server.stdout.readline().decode().strip()}", []

    def start(*arguments, **options):
        started.append(Program(display, tmp_path / "captures", *arguments, **options))
        return started[-1]

    yield start
    for process in (*(program.child for program in started), server):
        process.kill()
        process.wait()


STALLED_CAMERA = """
import cv2, time
import numpy as np

class Camera:
    left = 3
    def __init__(self, *_): pass
    def grab(self):
        self.left -= 1
        if self.left < 0:
            time.sleep(60)
        return True
    def retrieve(self): return True, np.full((240, 320, 3), 90, np.uint8)
    def get(self, _): return 0.0
    def set(self, *_): return False
    def release(self): pass

cv2.VideoCapture = Camera
"""


@pytest.mark.system
@pytest.mark.parametrize(("end", "status"), [("q", 0), ("Ctrl-C", 130)])
def test_keys_and_ctrl_c_work_while_a_camera_gives_no_frame(tmp_path, show, end, status):
    program = show("--source", "0", "--log", tmp_path / "out.csv", prelude=STALLED_CAMERA)
    time.sleep(3.3)  # longer than the wait after which a stall is reported
    program.press_until("s", lambda: program.has_capture(".png"))
    if end == "q":
        program.press_until("q", program.has_ended)
    else:
        program.child.send_signal(signal.SIGINT)
    assert program.child.wait(timeout=10) == status
    assert "camera 0 stalls" in program.child.communicate()[1]


@pytest.mark.system
def test_recording_with_an_open_window_takes_keys_and_survives_a_kill(tmp_path, show):
    """OpenCV's windows freeze when PyAV is imported before them."""
    clip = write_video(tmp_path / "clip.mp4", frames=1200, fps=20, size=(320, 240))
    log, video = tmp_path / "out.csv", tmp_path / "out.mp4"
    program = show("--source", clip, "--log", log, "--record", video)

    def seconds():
        return float(log.read_text().splitlines()[-1].split(",")[0])

    program.press_until("s", lambda: program.has_capture(".png"))
    started = seconds()
    while seconds() < started + 3:
        assert not program.has_ended() and time.monotonic() < program.deadline
        time.sleep(0.05)
    program.child.kill()
    assert program.child.wait() == -9
    times = read_times(video)
    assert len(times) > 40 and times[-1] >= seconds() - 1
