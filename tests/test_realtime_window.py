import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from realtime_fakes import read_times, read_video, write_video

from realtime.sinks.window import Window, has_display, key_name

TESTS = Path(__file__).parent

CHILD = """
import signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
from common.command_line import run
from realtime import webcam
from realtime_fakes import FACE, FakeClassifier, FakeDetector
from inference.emotion_classifier import EmotionClassifier

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
        ((8, 0xFF08, 0x7F), "\b"),
        ((0xE9, -0x17), "é"),
        ((-0x4E,), "²"),  # a French keyboard's; its low bytes are the keypad's 2
        ((0xFF52, 0xFF54, 0xFF50, 0xFF57, 0x260000, 0x280000, 0xF700, 0xF701), ""),  # up, down, home, end
        ((0xFFE1, 0xFFE3, 0xFFE5, 0xFFE9, 0xFFEB, 0xFF7F, 0xFE03, 0x100000, 0x140000), ""),  # modifiers
        ((0xFF61, 0xFF63, 0xFF68, 0xFFBE, 0xFFFF, 0x700000, 0xF704), ""),  # print, insert, find, F1, delete
        ((0xFE51, 0xFE52, 0x06EA, 0x0471, 0x1008FF13, 0x1008FF56, 0x1008FF51, 0x01000471, 0x0100FF51), ""),
    ],
)
def test_a_key_has_one_name_whatever_draws_the_window(codes, name):
    assert {code: key_name(code) for code in codes} == dict.fromkeys(codes, name)


@pytest.mark.parametrize("still", [False, True])
def test_no_key_without_a_character_means_one_whose_code_ends_alike(monkeypatch, still):
    """Among these, `cv2.waitKey` takes left, up and right for Q, R and S, and find for H."""
    for function in ("namedWindow", "resizeWindow"):
        monkeypatch.setattr(cv2, function, lambda *_: None)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    actions = {}
    for code in (*range(0xFE00, 0x10000), *range(0x1008FF00, 0x10090000), *(key << 16 for key in range(1, 256))):
        codes = iter([code])
        monkeypatch.setattr(cv2, "waitKeyEx", lambda _, codes=codes: next(codes, ord("b")))
        actions[code] = Window((64, 48)).wait(0.0, paused=True, still=still)
    assert set(actions.values()) <= {"bars", "next", "previous", "", *"0123456789", "quit", "pause"}
    assert sorted(code for code, action in actions.items() if action == "quit") == [0xFF1B]  # Esc
    assert len([code for code, action in actions.items() if action == "next"]) == 6


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

    def __init__(self, display, *arguments, prelude=""):
        self.environment = {**os.environ, "DISPLAY": display}
        code = prelude + CHILD.format(root=str(TESTS.parent), tests=str(TESTS))
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

    def press(self, *keys):
        for key in keys:
            self.xdotool("windowfocus", self.window, "key", key)
            time.sleep(0.15)  # the window remembers one key until the next look

    def has_ended(self):
        return self.child.poll() is not None

    def close(self):
        self.child.kill()
        self.child.wait()


@pytest.fixture
def show(virtual_display):
    started = []

    def start(*arguments, **options):
        started.append(Shown(virtual_display, *arguments, **options))
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
def test_arrows_step_through_pictures_and_keys_without_a_meaning_do_nothing(tmp_path, show):
    grays = {60: "1.png", 120: "2.png", 180: "10.png"}
    for gray, name in grays.items():
        cv2.imwrite(str(tmp_path / name), np.full((240, 320, 3), gray, np.uint8))
    captures, log = tmp_path / "captures", tmp_path / "out.csv"
    shown = show("--source", tmp_path, "--captures", captures, "--log", log)

    def snapshot():
        """Return which picture a snapshot shows."""
        before = set(captures.glob("*.png"))
        shown.press_until("s", lambda: set(captures.glob("*.png")) - before)
        image_bgr = cv2.imread(str(min(set(captures.glob("*.png")) - before)))
        return 0 if image_bgr is None else int(image_bgr[-1, -1, 0])

    def seen_after(*keys):
        shown.press(*keys)
        return snapshot()

    assert snapshot() == 60
    assert seen_after("Left") == 60, "the first picture stays"
    assert seen_after("Right") == 120
    meaningless = ["Shift_L", "Control_R", "Alt_L", "Super_L", "ISO_Level3_Shift", "F1", "Print", "Up", "Down", "Home"]
    assert seen_after(*meaningless, "dead_acute", "XF86AudioRaiseVolume", "XF86Close", "Caps_Lock") == 120
    assert seen_after("Next") == 180
    assert seen_after("Right", "Right") == 180, "the last picture stays"
    assert seen_after("KP_Left") == 120
    assert seen_after("P") == 60, "with Caps Lock"
    assert seen_after("space", "Return") == 180
    assert not list(captures.glob("*.mp4")), "up starts no recording"
    shown.press_until("q", shown.has_ended)
    assert shown.child.returncode == 0
    assert [row.split(",")[2] for row in log.read_text().splitlines()[1:]] == list(grays.values())


HANGING_CAMERA = """
import cv2, time
import numpy as np

class Camera:
    opened = 0
    def __init__(self, *_):
        Camera.opened += 1
        self.left = 3
    def grab(self):
        self.left -= 1
        if self.left < 0:
            time.sleep({seconds})
        return {stays} and Camera.opened == 1
    def retrieve(self):
        return True, np.full((240, 320, 3), 90, np.uint8)
    def get(self, _): return 0.0
    def set(self, *_): return False
    def release(self): pass

cv2.VideoCapture = Camera
"""


@pytest.mark.system
@pytest.mark.parametrize(
    ("seconds", "stays", "message"),
    [(60, "True", "camera 0 stalls"), (0, "self.left >= 0", "camera 0 is lost")],
    ids=["a camera that hangs", "a camera that is lost"],
)
def test_keys_and_the_windows_cross_work_while_a_camera_gives_no_frame(tmp_path, show, seconds, stays, message):
    captures = tmp_path / "captures"
    prelude = HANGING_CAMERA.format(seconds=seconds, stays=stays)
    shown = show("--source", "0", "--captures", captures, "--log", tmp_path / "out.csv", prelude=prelude)
    time.sleep(3.3 if seconds else 0.5)  # longer than the wait after which a stall is told
    shown.press_until("s", lambda: any(captures.glob("*.png")))
    if seconds:
        shown.press_until("q", shown.has_ended)
    else:
        subprocess.run([sys.executable, "-c", CLOSE, shown.window], env=shown.environment, check=True)
        shown.child.wait(timeout=10)
    assert shown.child.returncode == 0, "a user who quits while the camera is away has made no mistake"
    assert message in shown.child.communicate()[1]


@pytest.mark.system
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_ctrl_c_ends_the_wait_for_a_camera(show):
    shown = show("--source", "0", prelude=HANGING_CAMERA.format(seconds=60, stays="True"))
    time.sleep(0.5)
    shown.child.send_signal(signal.SIGINT)
    assert shown.child.wait(timeout=10) == 130


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
