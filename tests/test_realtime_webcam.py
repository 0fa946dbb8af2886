import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from realtime_fakes import FACE, FakeClassifier, FakeDetector, read_video, write_video

from common.command_line import run
from realtime import program, webcam
from realtime.program import exit_on_signals, run_program
from realtime.recognition import watch
from realtime.sinks.options import OutputOptions
from realtime.sources import Live, open_source

TESTS = Path(__file__).parent


def rows_of(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run_on(source, options, *faces):
    return run_program(open_source(str(source)), FakeDetector(*faces), FakeClassifier(), options)


def test_video_is_recognized_to_its_end_and_all_outputs_are_written(tmp_path, capsys):
    clip = write_video(tmp_path / "clip.mp4", frames=12, fps=10)
    video, log = tmp_path / "out.mp4", tmp_path / "out.csv"
    counts = run_on(clip, OutputOptions(video, log), FACE, FACE)
    frames, fps = read_video(video)
    assert (len(frames), fps, frames[0].shape) == (12, 10, (64, 96, 3))
    rows = rows_of(log)
    seen = [(row["frame"], row["track_id"], row["tentative"]) for row in rows]
    assert seen[:2] == [("0", "0", "1")] * 2, "one detection has found these faces"
    assert seen[2:] == [(str(i), track_id, "0") for i in range(1, 12) for track_id in "12"]
    assert [float(row["time"]) for row in rows[::2]] == pytest.approx([i / 10 for i in range(12)])
    assert (counts.frames, counts.faces) == (12, 22)
    printed = capsys.readouterr().out
    assert printed.startswith("clip.mp4: frames: 12, faces: 22, ") and printed.endswith(f"; wrote {log}, {video}\n")


def test_log_of_a_folder_joins_the_logs_of_its_files(tmp_path):
    """Each video has its own times, frames and tracks; images are not tracked. The recording is one video."""
    folder, video = tmp_path / "folder", tmp_path / "out.mp4"
    (folder / "b").mkdir(parents=True)
    files = [write_video(folder / name, frames=frames) for name, frames in (("a.mp4", 3), ("b/1.mp4", 4), ("c.avi", 2))]
    cv2.imwrite(str(folder / "d.png"), np.zeros((64, 96, 3), np.uint8))
    (folder / "e.mp4").write_text("no video")

    def log_of(source, name):
        log = tmp_path / name
        run_on(source, OutputOptions(video, log, overwrite=True), FACE, FACE)
        return rows_of(log)

    alone = [row for file in files for row in log_of(file, f"{file.stem}.csv")]
    together = log_of(folder, "together.csv")
    names = [*["a.mp4"] * 6, *["b/1.mp4"] * 8, *["c.avi"] * 4, *["d.png"] * 2]
    assert [row.pop("name") for row in together] == names
    assert together[:-2] == [{k: v for k, v in row.items() if k != "name"} for row in alone]
    assert [(row["frame"], row["track_id"]) for row in together[-2:]] == [("3", ""), ("3", "")]
    assert len(read_video(video)[0]) == 10


@pytest.fixture
def command(monkeypatch):
    """Run the command line in this process, with a fast detector and classifier."""
    from inference.emotion_classifier import EmotionClassifier

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["webcam", *map(str, arguments)])
        try:
            run(webcam.main)
        except SystemExit as end:
            return end.code
        return 0

    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(webcam, "build_detector", lambda *_: FakeDetector(FACE))
    monkeypatch.setattr(EmotionClassifier, "load_litert", lambda _: FakeClassifier())
    yield start
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_program_continues_without_a_display(tmp_path, command, capsys):
    assert command("--source", write_video(tmp_path / "clip.mp4", frames=4), "--log", tmp_path / "out.csv") == 0
    printed = capsys.readouterr()
    assert printed.err == "no display: continuing without a window\n"
    assert printed.out.startswith("clip.mp4: frames: 4, faces: 3, ")
    assert len(rows_of(tmp_path / "out.csv")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "987"], "camera 987 gives no picture"),
        (["--source", "nothing"], "nothing holds no readable picture or video"),
        (["--source", "films", "--record", "films/b/2.mp4"], "is the source itself"),
        (["--source", "films", "--segments", "out.csv"], "--segments out.csv needs one video or a camera"),
        (["--source", "films", "--blur-unknown"], "--blur-unknown needs one video or a camera"),
        (["--source", "rtsp://me:s@cret@127.0.0.1:9/1?token=abc"], "rtsp://127.0.0.1:9/1?*** gives no picture"),
        (["--source", "me:secret@127.0.0.1/1?token=abc"], "--source ***@127.0.0.1/1?*** does not exist"),
        (["--source", "clip.mp4", "--min-face-size", "big"], "--min-face-size"),
        (["--source", "987", "--log", "kept.csv"], "--log kept.csv exists already; give another name, or --overwrite"),
        (["--source", "987", "--log", "a.csv", "--segments", "./a.csv"], "both name a.csv"),
        (["--source", "987", "--log", "kept.csv", "--overwrite"], "camera 987 gives no picture"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(tmp_path, command, capfd, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_video(Path("clip.mp4"), frames=3)
    Path("nothing").mkdir()
    Path("films/b").mkdir(parents=True)
    write_video(Path("films/1.mp4"), frames=3)
    write_video(Path("films/b/2.mp4"), frames=3)
    Path("kept.csv").write_text("of an earlier run")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    capfd.readouterr()
    assert command(*arguments, "--no-window") == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1 and message in printed.err
    assert not any(secret in printed.err for secret in ("s@cret", "cret@", "secret", "abc"))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(("source", "status"), [("camera", 1), ("video", 0)])
def test_source_that_ends_early_is_reported_and_its_frames_are_kept(
    tmp_path, command, capsys, monkeypatch, source, status
):
    whole, cut = write_video(tmp_path / "whole.avi", frames=60), tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    arguments = ["--source", "0" if source == "camera" else cut, "--record", tmp_path / "out.mp4", "--no-window"]
    with monkeypatch.context() as patches:
        if source == "camera":
            capture = cv2.VideoCapture(str(cut))
            patches.setattr(cv2, "VideoCapture", lambda *_: capture)
            patches.setattr(Live.__init__, "__defaults__", (False, 0.2, 3.0))
        assert command(*arguments) == status
    error = capsys.readouterr().err
    assert ("camera 0 gives no more frames" if source == "camera" else "the file seems damaged") in error
    assert read_video(tmp_path / "out.mp4")[0]


CHILD = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from common.command_line import run
from realtime import webcam
from realtime_fakes import FACE, FakeClassifier, FakeDetector
from inference.emotion_classifier import EmotionClassifier

class StuckDetector(FakeDetector):
    def detect(self, image_rgb):
        if len(self.seen) == 5:
            open({stuck!r}, "x").close()
            time.sleep(120)
        return super().detect(image_rgb)

webcam.build_detector = lambda *_: StuckDetector(FACE)
EmotionClassifier.load_litert = lambda _: FakeClassifier()
run(webcam.main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signal_leaves_complete_files(tmp_path, name, status):
    clip = write_video(tmp_path / "clip.mp4", frames=30)
    video, log, segments, page = (tmp_path / name for name in ("out.mp4", "out.csv", "segments.csv", "out.html"))
    stuck = tmp_path / "stuck"
    code = CHILD.format(root=str(TESTS.parent), tests=str(TESTS), stuck=str(stuck))
    arguments = ["--source", clip, "--record", video, "--log", log, "--segments", segments, "--summary", page]
    command = [sys.executable, "-c", code, *map(str, arguments), "--no-window", "--anonymous"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (stuck.exists() and len(rows_of(log)) == 5):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(child.pid, getattr(signal, name))
        printed, _ = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == status
    assert printed.decode().startswith("clip.mp4: frames: 5, faces: 4, ")
    assert len(read_video(video)[0]) == len(rows_of(log)) == 5
    assert segments.read_text().startswith("track_id,start,end,label") and "5 frames" in page.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_second_signal_does_not_interrupt_the_closing():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        exit_on_signals()
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGTERM)
        assert end.value.code == 143
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("options", "synchronous"), [({}, False), ({"anonymous": True}, True), ({"blur_unknown": True}, True)]
)
def test_detection_is_synchronous_where_faces_are_covered(tmp_path, monkeypatch, options, synchronous):
    """A late detection would leave a face visible."""
    used = []

    def watched(*given, **keywords):
        used.append(keywords["synchronous"])
        return watch(*given, **keywords)

    monkeypatch.setattr(program, "watch", watched)
    run_on(write_video(tmp_path / "clip.mp4", frames=3), OutputOptions(**options), FACE)
    assert used == [synchronous]
