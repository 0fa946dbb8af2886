import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from realtime_fakes import read_times, read_video, write_video

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
EmotionClassifier.load_litert = lambda _: FakeClassifier()
run(webcam.main)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
@pytest.mark.parametrize(
    ("display", "shown"),
    [(":4242", True), (":4242.0", True), (":4243", False), ("localhost:4243.0", False), ("", False), (None, False)],
)
def test_on_linux_a_display_is_one_that_answers(monkeypatch, display, shown):
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0/tmp/.X11-unix/X4242")
        server.listen()
        assert has_display() is shown


def test_opencv_without_windows_has_no_display(monkeypatch):
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "")
    assert not has_display()


@pytest.fixture
def virtual_display():
    """The name of a display that nobody sees."""
    if not (shutil.which("Xvfb") and shutil.which("xdotool")):
        pytest.skip("needs Xvfb and xdotool: make test-system")
    server = subprocess.Popen(
        ["Xvfb", "-noreset", "-displayfd", "1", "-screen", "0", "800x600x24"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdout is not None
    yield f":{server.stdout.readline().decode().strip()}"
    server.terminate()
    server.wait()


class Shown:
    """The program with its window on a virtual display, and hands to use it."""

    def __init__(self, display, *arguments):
        self.environment = {**os.environ, "DISPLAY": display}
        code = CHILD.format(root=str(TESTS.parent), tests=str(TESTS))
        self.child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.deadline = time.monotonic() + 60
        self.window = ""
        while not self.window:
            assert self.child.poll() is None and time.monotonic() < self.deadline
            self.window = "".join(self.xdotool("search", "--name", "Expressions")[-1:])
        self.xdotool("windowfocus", "--sync", self.window)

    def xdotool(self, *words):
        ended = subprocess.run(["xdotool", *words], env=self.environment, capture_output=True, text=True, check=False)
        return ended.stdout.split()

    def press_until(self, key, is_done):
        """Press a key until it has shown: one that comes before the window has the focus is lost."""
        while not is_done():
            assert time.monotonic() < self.deadline
            self.xdotool("windowfocus", self.window, "key", key)
            for _ in range(20):
                if is_done():
                    return
                time.sleep(0.05)

    def has_ended(self):
        return self.child.poll() is not None

    def close(self):
        self.child.kill()
        self.child.wait()


@pytest.fixture
def show(virtual_display):
    started = []

    def start(*arguments):
        started.append(Shown(virtual_display, *arguments))
        return started[-1]

    yield start
    for shown in started:
        shown.close()


# What a window manager does when one clicks on a window's cross: it asks the window to close.
CLOSE = """
import ctypes, ctypes.util, sys
class Message(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("serial", ctypes.c_ulong), ("send_event", ctypes.c_int),
                ("display", ctypes.c_void_p), ("window", ctypes.c_ulong), ("message_type", ctypes.c_ulong),
                ("format", ctypes.c_int), ("data", ctypes.c_long * 5), ("rest", ctypes.c_long * 24)]
x = ctypes.CDLL(ctypes.util.find_library("X11"))
x.XOpenDisplay.restype, x.XInternAtom.restype = ctypes.c_void_p, ctypes.c_ulong
x.XInternAtom.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
x.XSendEvent.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]
x.XSync.argtypes = [ctypes.c_void_p, ctypes.c_int]
display, window = x.XOpenDisplay(None), int(sys.argv[1])
data = (ctypes.c_long * 5)(x.XInternAtom(display, b"WM_DELETE_WINDOW", 0), 0)
message = Message(33, 0, 1, display, window, x.XInternAtom(display, b"WM_PROTOCOLS", 0), 32, data)
x.XSendEvent(display, window, 0, 0, ctypes.byref(message))
x.XSync(display, 0)
"""


@pytest.mark.system
def test_a_window_opens_and_q_closes_it(tmp_path, show):
    cv2.imwrite(str(tmp_path / "me.png"), np.full((240, 320, 3), 90, np.uint8))
    shown = show("--source", tmp_path / "me.png", "--record", tmp_path / "out.png")
    assert not shown.has_ended(), "a still picture waits for a key"
    shown.press_until("q", shown.has_ended)
    assert shown.child.returncode == 0
    assert shown.child.communicate()[0].endswith(f"wrote {tmp_path / 'out.png'}\n")
    assert (tmp_path / "out.png").is_file()


@pytest.mark.system
def test_closing_the_window_ends_the_program(tmp_path, show):
    cv2.imwrite(str(tmp_path / "me.png"), np.full((240, 320, 3), 90, np.uint8))
    shown = show("--source", tmp_path / "me.png", "--log", tmp_path / "out.csv")
    subprocess.run([sys.executable, "-c", CLOSE, shown.window], env=shown.environment, check=True)
    printed, _ = shown.child.communicate(timeout=20)
    assert shown.child.returncode == 0
    assert printed.endswith(f"wrote {tmp_path / 'out.csv'}\n")


@pytest.mark.system
def test_keys_pause_record_and_take_snapshots(tmp_path, show):
    clip = write_video(tmp_path / "clip.mp4", frames=600, fps=20, size=(320, 240))
    captures = tmp_path / "captures"
    shown = show("--source", clip, "--log", tmp_path / "out.csv", "--captures", captures)

    def has(suffix):
        return lambda: any(captures.glob(f"*{suffix}"))

    def lines():
        return len((tmp_path / "out.csv").read_text().splitlines())

    shown.press_until("s", has(".png"))
    shown.press_until("r", has(".mp4"))
    time.sleep(0.5)
    shown.xdotool("key", "space")
    time.sleep(0.3)
    before = lines()
    time.sleep(0.5)
    assert lines() == before < 600, "while it stands, no frame is taken"
    shown.xdotool("key", "h", "key", "b", "key", "1", "key", "space")
    time.sleep(0.5)
    assert lines() > before
    shown.press_until("Escape", shown.has_ended)
    printed, told = shown.child.communicate()
    assert shown.child.returncode == 0
    (video,) = captures.glob("*.mp4")
    assert str(video) in printed and str(video) in told
    assert len(read_video(video)[0]) > 5


@pytest.mark.system
def test_a_recording_with_an_open_window_takes_keys_and_survives_a_kill(tmp_path, show):
    """PyAV freezes OpenCV's windows where it is imported first."""
    clip = write_video(tmp_path / "clip.mp4", frames=1200, fps=20, size=(320, 240))
    log, video = tmp_path / "out.csv", tmp_path / "out.mp4"
    shown = show("--source", clip, "--log", log, "--record", video, "--captures", tmp_path / "captures")

    def seconds():
        return float(log.read_text().splitlines()[-1].split(",")[0])

    shown.press_until("s", lambda: any((tmp_path / "captures").glob("*.png")))
    started = seconds()
    while seconds() < started + 3:
        assert not shown.has_ended() and time.monotonic() < shown.deadline
        time.sleep(0.05)
    shown.close()  # SIGKILL
    assert shown.child.returncode == -9
    times = read_times(video)
    assert len(times) > 40 and times[-1] >= seconds() - 1


@pytest.mark.system
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_a_display_that_does_not_answer_does_not_end_the_program(tmp_path):
    cv2.imwrite(str(tmp_path / "me.png"), np.full((240, 320, 3), 90, np.uint8))
    code = CHILD.format(root=str(TESTS.parent), tests=str(TESTS))
    ended = subprocess.run(
        [sys.executable, "-c", code, "--source", str(tmp_path / "me.png")],
        env={**os.environ, "DISPLAY": ":4243"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "no display here: going on without a window\n")
