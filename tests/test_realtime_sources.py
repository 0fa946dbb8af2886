import _thread
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from realtime_fakes import write_video

from common.errors import InputError
from realtime.sinks.recording import VideoRecording
from realtime.sources import Live, Video, open_source
from realtime.sources.frames import FALLBACK_FPS


def test_video_gives_every_frame_with_its_time(tmp_path):
    source = open_source(str(write_video(tmp_path / "clip.mp4", frames=12, fps=10)))
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx([index / 10 for index in range(12)])
    assert {(frame.name, frame.image_bgr.shape) for frame in frames} == {("clip.mp4", (64, 96, 3))}
    brightness = [frame.image_bgr.mean() for frame in frames]
    assert brightness == sorted(brightness)
    assert (source.fps, source.count, source.size, source.live, source.warning) == (10, 12, (96, 64), False, "")


class FakeFile:
    """A video file with these time stamps in milliseconds; None: a damaged frame."""

    def __init__(self, *stamps):
        self.stamps, self.index = stamps, 0  # the first frame was read by `open_video`

    def get(self, what):
        stamp = self.stamps[min(self.index, len(self.stamps) - 1)]
        return {cv2.CAP_PROP_FPS: 25.0, cv2.CAP_PROP_FRAME_COUNT: 5, cv2.CAP_PROP_POS_MSEC: stamp}[what] or 0.0

    def grab(self):
        self.index += 1
        return self.index < len(self.stamps)

    def retrieve(self):
        return self.stamps[self.index] is not None, np.full((4, 4, 3), self.index, np.uint8)


@pytest.mark.parametrize(
    ("stamps", "indices", "times"),
    [
        ([0, 100, 1000, 1040, 1080], range(5), [0, 0.1, 1, 1.04, 1.08]),  # a variable frame rate
        ([0.0] * 5, range(5), [0, 0.04, 0.08, 0.12, 0.16]),
        ([9000, 9040, 0, 40, 80], range(5), [0, 0.04, 0.08, 0.12, 0.16]),
        ([0, 40, 1e8, 1e8 + 40, 1e8 + 80], range(5), [0, 0.04, 0.08, 0.12, 0.16]),
        ([0, 40, None, None, 160], [0, 1, 4], [0, 0.04]),
    ],
)
def test_variable_or_broken_time_stamps_and_damaged_frames(stamps, indices, times):
    capture: Any = FakeFile(*stamps)
    video = Video(capture, "joined.ts", np.zeros((4, 4, 3), np.uint8))
    frames = list(video)
    assert [frame.index for frame in frames] == [int(frame.image_bgr.max()) for frame in frames] == list(indices)
    assert [frame.time for frame in frames[: len(times)]] == pytest.approx(times)
    damaged = "2 of 5 frames of joined.ts could not be decoded; the file seems damaged"
    assert video.warning == (damaged if None in stamps else "")


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mp4"])
def test_video_with_a_variable_frame_rate_is_not_called_damaged(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)  # FFmpeg reads the part before a colon as a protocol
    file = Path(f"at 12:30.{suffix}" if suffix == "mkv" else f"slow.{suffix}")
    recording = VideoRecording(file, (96, 64), 30.0)
    times = [*np.arange(20) / 10, *(5 + np.arange(20) / 10)]  # ten frames a second, and a pause
    for value, moment in enumerate(times):
        recording.write(moment, np.full((64, 96, 3), 6 * value, np.uint8))
    recording.close()
    source = open_source(str(file))
    assert [frame.time for frame in source] == pytest.approx(times, abs=0.02) and source.warning == ""
    whole = file.read_bytes()
    if suffix == "mkv":
        file.write_bytes(whole[: len(whole) // 2])
        source = open_source(str(file))
        assert 0 < len(list(source)) < 35 and "ended after" in source.warning


def make_tree(folder, *names):
    """Write small pictures and videos of these names; others get a text."""
    for value, name in enumerate(names, 1):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".png":
            cv2.imwrite(str(file), np.full((8, 12, 3), 10 * value, np.uint8))
        elif file.suffix in (".mp4", ".avi"):
            write_video(file, frames=3, fps=10)
        else:
            file.write_text("neither a picture nor a video")


def test_subfolders_in_natural_order_without_hidden_files(tmp_path):
    names = ["1.png", "2.png", "10.png", "b1/2.png", "b1/10.png", "B2/c/1.png", "b10/1.png"]
    hidden = [".a.png", ".cache/a.png", "b1/._2.png", "notes.txt"]
    make_tree(tmp_path, *reversed(names), *hidden)
    source = open_source(str(tmp_path))
    assert [frame.name for frame in source] == names
    assert (source.still, source.count, source.warning) == (True, len(names), "")


def test_folder_has_every_kind_of_picture_that_step_1_reads(tmp_path):
    image, suffixes = np.full((48, 48, 3), 90, np.uint8), [".jfif", ".avif", ".jp2", ".webp", ".ppm"]
    for suffix in suffixes:
        content = cv2.imencode(suffix.replace("jfif", "jpg"), image)[1].tobytes()
        (tmp_path / f"a{suffix}").write_bytes(content)
    frames = list(open_source(str(tmp_path)))
    assert {frame.name: abs(int(frame.image_bgr[24, 24, 0]) - 90) < 4 for frame in frames} == dict.fromkeys(
        ("a" + suffix for suffix in suffixes), True
    )


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_links_are_followed_once_and_not_to_parents(tmp_path, capsys):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    make_tree(folder, "a/1.png", "a/2.png")
    make_tree(elsewhere, "1.png", "back/2.png")
    for link, target in (
        ("a/loop", folder),
        ("a/self", folder / "a"),
        ("up", tmp_path),
        ("root", tmp_path.parents[-1]),
        ("linked", elsewhere),
        ("twice", elsewhere),
        ("a/3.png", elsewhere / "1.png"),
        ("a/gone.png", tmp_path / "none.png"),
        ("a/circle.png", folder / "a" / "circle.png"),
    ):
        (folder / link).symlink_to(target)
    (elsewhere / "back" / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.mp4")
    names = ["a/1.png", "a/2.png", "a/3.png", "linked/1.png", "linked/back/2.png"]
    assert [frame.name for frame in open_source(str(folder))] == names
    skipped = capsys.readouterr().err.splitlines()
    assert [f"{name}.png" in line for name, line in zip(("circle", "gone"), skipped, strict=True)] == [True, True]


def test_folder_of_images_and_videos(tmp_path, capsys):
    make_tree(tmp_path, "1.png", "2/talk.mp4", "3.avi", "4.png", "5.png")
    (tmp_path / "0.mp4").write_bytes(b"")
    (tmp_path / "6.jpg").write_text("no picture")
    (tmp_path / "7.mkv").write_text("Dear camera,\n" * 100)
    source = open_source(str(tmp_path))
    frames = list(source)
    assert [(frame.name, frame.index, frame.still) for frame in frames] == [
        ("1.png", 1, True),
        *(("2/talk.mp4", index, False) for index in range(3)),
        *(("3.avi", index, False) for index in range(3)),
        ("4.png", 4, True),
        ("5.png", 5, True),
    ]
    assert [frame.time for frame in frames[1:7]] == pytest.approx([0, 0.1, 0.2] * 2)
    assert [frame.position for frame in frames[::3]] == [(2, 8), (3, 8), (4, 8)]
    steps = np.diff([frame.elapsed for frame in frames])
    assert (steps > 0.09).all() and (steps < 0.2).all(), "the frames of all files follow each other"
    assert (source.fps, source.size, source.still, source.count) == (10, (12, 8), False, None)
    lines = capsys.readouterr().err.splitlines()
    assert ["skipped: " in line and name in line for name, line in zip(("0.mp4", "6.jpg", "7.mkv"), lines, strict=True)]
    assert source.warning == "3 of 8 files could not be read: 0.mp4, 6.jpg, 7.mkv"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the system refuses such names")
def test_name_that_is_not_utf8_is_escaped_or_refused(tmp_path):
    folder = os.fsencode(tmp_path)
    picture, video = (Path(os.fsdecode(folder + b"/caf\xe9" + suffix)) for suffix in (b".png", b".mp4"))
    picture.write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    write_video(tmp_path / "clip.mp4").rename(video)
    assert next(iter(open_source(str(picture)))).name == "caf\\udce9.png"
    with pytest.raises(InputError, match=r"caf\\udce9.mp4 is no UTF-8 name; rename it"):
        open_source(str(video))
    assert [frame.name for frame in open_source(str(tmp_path))] == ["caf\\udce9.png"]


def test_unreadable_file_is_refused(tmp_path):
    for name, content, message in (
        ("missing.mp4", None, "does not exist"),
        ("x" * 300, None, "cannot be read"),
        ("letter.mp4", b"Dear camera,\n" * 100, "is no video"),
        ("empty.jpg", b"", "no readable picture"),
        ("letter.png", b"Dear camera,\n" * 100, "no readable picture"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as refusal:
            open_source(str(tmp_path / name))
        assert name in str(refusal.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the system does not tell these apart")
@pytest.mark.parametrize(
    ("script", "node", "message"),
    [
        ([], None, r"there is no .*none; plug one in, or give --source"),
        ([], 0o666, r"another program may use it \(fuser -v .*video3 names it\)"),
        (["damaged"], 0o666, r"another program may use it \(fuser -v .*video3 names it\)"),
        ([], 0o000, r"this user may not read .*video3; sudo usermod -aG video"),
    ],
    ids=["not there", "cannot be opened", "gives no frame", "not allowed"],
)
def test_camera_error_names_reason(camera, tmp_path, monkeypatch, script, node, message):
    file = tmp_path / ("none" if node is None else "video3")
    if node is not None:
        file.touch(node)
        monkeypatch.setattr("os.access", lambda *_: node > 0)  # root may read everything
    monkeypatch.setattr("realtime.sources.cameras.camera_node", lambda _: file)
    camera(script)
    with pytest.raises(InputError, match=f"camera 3 gives no picture.*{message}"):
        open_source("3")


class FakeCapture:
    """A camera with a script: gray level of a frame, `damaged`, `gone`, an exception, or seconds of a stall."""

    opened = 0
    scripts: ClassVar[list[list]] = []

    def __init__(self, *_):
        self.script = self.scripts[FakeCapture.opened] if FakeCapture.opened < len(self.scripts) else []
        FakeCapture.opened += 1
        self.at, self.released = 0, False

    def grab(self):
        assert not self.released
        time.sleep(0.02)  # a camera waits for its next picture
        self.at += 1
        self.now = self.script[self.at - 1] if self.at <= len(self.script) else "gone"
        if isinstance(self.now, float):
            time.sleep(self.now)
            return self.grab()
        if isinstance(self.now, BaseException):
            raise self.now
        return self.now != "gone"

    def retrieve(self):
        if self.now == "damaged":
            return False, None
        image_bgr = np.full((48, 64, 3), self.now, np.uint8)
        image_bgr[:, :32] = 0  # the left half is black
        return True, image_bgr

    def get(self, _):
        return 0.0

    def set(self, *_):
        return False

    def release(self):
        self.released = True


@pytest.fixture
def camera(monkeypatch):
    """Give OpenCV's captures these scripts, one after the other."""

    def play(*scripts):
        monkeypatch.setattr(FakeCapture, "opened", 0)
        monkeypatch.setattr(FakeCapture, "scripts", list(scripts))
        monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)

    monkeypatch.setattr(Live.__init__, "__defaults__", (False, 0.3, 0.2))
    monkeypatch.setattr("realtime.sources.live._RETRY_SECONDS", 0.05)
    return play


@pytest.mark.parametrize(("source", "name"), [("/dev/video2", "camera 2"), ("rtsp://u:p@door/1", "rtsp://door/1")])
def test_lost_live_source_sets_warning(camera, capsys, source, name):
    camera([100, 101, 102])
    live = open_source(source)
    frames = list(live)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.time for frame in frames] == sorted(frame.time for frame in frames)
    assert all(frame.captured <= time.monotonic() for frame in frames)
    assert (live.name, live.live, live.count, live.fps) == (name, True, None, FALLBACK_FPS)
    assert live.warning.startswith(f"{name} gives no more frames")
    assert capsys.readouterr().err == f"{name} is lost; waiting 0.3 seconds for it to come back\n"


def test_slow_reader_gets_newest_frame(camera):
    camera(list(range(100, 130)))
    live = open_source("0")
    results = iter(live)
    assert next(results).index == 0
    time.sleep(0.3)
    later = next(results)
    assert later.index >= 8 and int(later.image_bgr.max()) == 100 + later.index
    live.close()


@pytest.mark.parametrize("error", [cv2.error("bad\nframe"), MemoryError()])
def test_camera_is_reopened_after_driver_exceptions_until_they_stay(camera, capsys, error):
    camera([100, error], [101, 102])
    live = open_source("0")
    frames = list(live)
    assert [int(frame.image_bgr.max()) for frame in frames] == [100, 101, 102]
    assert [frame.index for frame in frames] == [0, 1, 2] and frames[2].time > frames[1].time
    lost, back, *_ = capsys.readouterr().err.splitlines()
    assert lost.startswith(f"camera 0 is lost ({type(error).__name__}") and back == "camera 0 is back"
    camera([100, ValueError("no\nframe")], [ValueError("no frame")], *[[ValueError("still no\nframe")]] * 20)
    live = open_source("0")
    assert len(list(live)) == 1
    assert live.warning == "camera 0 gives no more frames (ValueError: still no frame)"


def test_stream_messages_hide_password(camera, capsys):
    address = "rtsp://user:p@ss@door/1?token=secret"
    camera([100, ValueError(f"cannot read {address}")])
    live = open_source(address)
    list(live)
    printed = capsys.readouterr().err + live.warning + live.name
    assert "rtsp://door/1?*** is lost (ValueError)" in printed
    assert not any(word in printed for word in ("user", "p@ss", "ss@", "secret"))


@pytest.mark.parametrize(
    ("script", "states"),
    [([100, 0.5, 101], [False, True]), ([100, "gone"], [True]), ([100, 0.12, 101], [False])],
    ids=["stalls", "is lost", "is slow"],
)
def test_on_wait_is_called_while_no_frame_comes(camera, capsys, script, states):
    camera(script)
    live, seen = open_source("rtsp://door/1"), []
    assert isinstance(live, Live)
    live.on_wait = lambda is_waiting: seen.append(is_waiting) or True
    assert len(list(live)) == len([each for each in script if isinstance(each, int)])
    assert set(states) <= set(seen)
    stalls = [line for line in capsys.readouterr().err.splitlines() if "stalls: no frame for 0.2 seconds" in line]
    assert len(stalls) == (script[1] == 0.5)


@pytest.mark.parametrize("script", [[100, 2.5], [100, "gone"]], ids=["stalls", "is lost"])
def test_run_ended_during_stall_has_no_warning(camera, script):
    camera(script)
    live = open_source("7")
    assert isinstance(live, Live)
    live.on_wait = lambda is_waiting: not is_waiting
    assert len(list(live)) == 1
    live.close()
    assert live.warning == ""


def test_opening_a_silent_stream_can_be_interrupted():
    """Ctrl-C reaches the program at once, while the library waits for ten seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the connection and says nothing
        start = time.monotonic()
        threading.Timer(0.3, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            open_source(f"rtsp://127.0.0.1:{server.getsockname()[1]}/1")
        assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    ("source", "mirror", "mirrored"),
    [("0", None, True), ("0", False, False), ("rtsp://door/1", None, False), ("rtsp://door/1", True, True)],
)
def test_cameras_are_mirrored_by_default(camera, source, mirror, mirrored):
    camera([100, 101])
    frames = list(open_source(source, mirror))
    assert len(frames) == 2
    for frame in frames:
        assert (frame.image_bgr[0, 0, 0] > 0) == mirrored and (frame.image_bgr[0, -1, 0] > 0) != mirrored


def test_rotated_video_is_upright(tmp_path):
    file = write_video(tmp_path / "clip.mp4", frames=3)
    upright = next(iter(open_source(str(file)))).image_bgr
    unity, quarter = (
        [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000],
        [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000],
    )
    content = file.read_bytes()
    header = content.index(b"tkhd")
    place = content.index(struct.pack(">9i", *unity), header)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content[:place] + struct.pack(">9i", *quarter) + content[place + 36 :])
    source = open_source(str(turned))
    assert source.size == (64, 96)
    np.testing.assert_array_equal(next(iter(source)).image_bgr, cv2.rotate(upright, cv2.ROTATE_90_CLOCKWISE))
