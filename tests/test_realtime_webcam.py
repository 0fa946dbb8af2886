import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from realtime_fakes import FACE, FakeClassifier, FakeDetector, read_video, write_video

from common.command_line import run
from realtime import webcam
from realtime.recognition import watch
from realtime.sinks.outputs import OutputOptions
from realtime.sinks.recording import Log
from realtime.sources import Live, open_source
from realtime.webcam import show

TESTS = Path(__file__).parent


def rows_of(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_video_is_watched_to_its_end_and_all_of_it_is_kept(tmp_path, capsys):
    source = open_source(str(write_video(tmp_path / "clip.mp4", frames=12, fps=10)))
    video, log = tmp_path / "out.mp4", tmp_path / "out.csv"
    tally, _ = show(source, FakeDetector(FACE, FACE), FakeClassifier(), OutputOptions(video, log))
    frames, fps = read_video(video)
    assert (len(frames), fps, frames[0].shape) == (12, 10, (64, 96, 3))
    rows = rows_of(log)
    seen = [(row["frame"], row["track_id"], row["tentative"]) for row in rows]
    assert seen[:2] == [("0", "0", "1")] * 2, "one search has found these faces"
    assert seen[2:] == [(str(i), face, "0") for i in range(1, 12) for face in "12"]
    assert [float(row["time"]) for row in rows[::2]] == pytest.approx([i / 10 for i in range(12)])
    assert (tally.frames, tally.faces) == (12, 22)
    summary = capsys.readouterr().out
    assert summary.startswith("clip.mp4: frames: 12, faces: 22, ")
    assert summary.endswith(f"; wrote {log}, {video}\n")


def test_false_detection_of_a_single_frame_is_flagged_in_the_log_and_in_no_count_span_or_summary(tmp_path, capsys):
    class Flickering(FakeDetector):
        def detect(self, image_rgb):
            faces = super().detect(image_rgb)
            return [*faces, replace(FACE, left=60.0, width=20.0)] if len(self.seen) % 4 == 3 else faces

    detector = Flickering(FACE)
    source = open_source(str(write_video(tmp_path / "clip.mp4", frames=12, fps=10)))
    wanted = OutputOptions(log=tmp_path / "out.csv", segments=tmp_path / "spans.csv", summary=tmp_path / "out.html")
    tally, _ = show(source, detector, FakeClassifier(), wanted)
    rows = rows_of(tmp_path / "out.csv")
    ghosts = [row for row in rows if float(row["box_left"]) == 60]
    assert len(ghosts) == 3 and all((row["track_id"], row["tentative"]) == ("0", "1") for row in ghosts)
    assert {row["track_id"] for row in rows if row["tentative"] == "0"} == {"1"}
    assert tally.faces == 11 and "faces: 11," in capsys.readouterr().out
    assert {row["track_id"] for row in rows_of(tmp_path / "spans.csv")} == {"1"}
    assert "12 frames, 1 face" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_without_a_face_the_video_is_kept_and_the_log_has_its_header(tmp_path):
    source = open_source(str(write_video(tmp_path / "clip.mp4", frames=5)))
    wanted = OutputOptions(tmp_path / "out.mp4", tmp_path / "out.csv")
    tally, _ = show(source, FakeDetector(), FakeClassifier(), wanted)
    assert (tally.frames, tally.faces) == (5, 0)
    assert len(read_video(tmp_path / "out.mp4")[0]) == 5
    header = "time,frame,name,face,box_left,box_top,box_width,box_height,label,probability,unsure,tentative,"
    header += "p_anger,p_happiness,p_neutral"
    assert (tmp_path / "out.csv").read_text() == header + "\n"


def test_a_picture_can_be_recorded_as_a_picture(tmp_path):
    cv2.imwrite(str(tmp_path / "me.png"), np.zeros((64, 96, 3), np.uint8))
    show(
        open_source(str(tmp_path / "me.png")), FakeDetector(FACE), FakeClassifier(), OutputOptions(tmp_path / "out.png")
    )
    annotated = cv2.imread(str(tmp_path / "out.png"))
    assert annotated is not None and annotated.shape == (64, 96, 3) and annotated.any()


def test_the_log_of_a_folder_is_that_of_its_files_one_after_the_other(tmp_path):
    """Each video has its own times, frame numbers and tracks; a picture has none."""
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    files = [write_video(folder / name, frames=frames) for name, frames in (("a.mp4", 3), ("b/1.mp4", 4), ("c.avi", 2))]
    cv2.imwrite(str(folder / "d.png"), np.zeros((64, 96, 3), np.uint8))

    def log_of(source, name):
        show(open_source(str(source)), FakeDetector(FACE, FACE), FakeClassifier(), OutputOptions(log=tmp_path / name))
        return rows_of(tmp_path / name)

    alone = [row for file in files for row in log_of(file, f"{file.stem}.csv")]
    together = log_of(folder, "together.csv")
    names = [*["a.mp4"] * 6, *["b/1.mp4"] * 8, *["c.avi"] * 4, *["d.png"] * 2]
    assert [row.pop("name") for row in together] == names
    assert together[:-2] == [{k: v for k, v in row.items() if k != "name"} for row in alone]
    assert [(row["frame"], row["track_id"]) for row in together[-2:]] == [("3", "1"), ("3", "2")]


def test_a_folder_is_recorded_as_one_video_in_the_order_of_its_files(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, frames in (("1.mp4", 5), ("10.mp4", 4), ("2.mp4", 3)):
        write_video(folder / name, frames=frames, fps=10)
    (folder / "3.mp4").write_text("no video")
    tally, _ = show(open_source(str(folder)), FakeDetector(FACE), FakeClassifier(), OutputOptions(tmp_path / "out.mp4"))
    frames, fps = read_video(tmp_path / "out.mp4")
    assert (tally.frames, len(frames), fps) == (12, 12, 10)


class FakeWindow:
    """Stands for OpenCV's window functions: a key is pressed, or the window closed, at the n-th frame."""

    def __init__(self, monkeypatch, key=-1, closed_by_button=False, at=3):
        self.shown, self.key, self.closed_by_button, self.at = 0, key, closed_by_button, at
        for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
            monkeypatch.setattr(cv2, name, lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", self.show)
        monkeypatch.setattr(cv2, "waitKeyEx", lambda _: self.key if self.shown >= self.at else -1)
        monkeypatch.setattr(
            cv2, "getWindowProperty", lambda *_: 0.0 if self.closed_by_button and self.shown >= self.at else 1.0
        )

    def show(self, _, image_bgr):
        self.shown += 1


@pytest.mark.parametrize(
    "end", [{"key": ord("q")}, {"key": ord("Q")}, {"key": 27}, {"key": 0x100000 + ord("q")}, {"closed_by_button": True}]
)
def test_the_window_ends_the_program_and_what_was_seen_is_kept(tmp_path, monkeypatch, end):
    FakeWindow(monkeypatch, **end)
    source = open_source(str(write_video(tmp_path / "clip.mp4", frames=12, fps=240)))
    wanted = OutputOptions(tmp_path / "out.mp4", tmp_path / "out.csv", window=True)
    tally, _ = show(source, FakeDetector(FACE), FakeClassifier(), wanted)
    assert tally.frames == 3
    assert len(read_video(tmp_path / "out.mp4")[0]) == len(rows_of(tmp_path / "out.csv")) == 3


def test_a_still_picture_waits_for_a_key(tmp_path, monkeypatch):
    window = FakeWindow(monkeypatch)
    keys = iter([-1, -1, -1, ord("x"), -1, ord("x")])
    monkeypatch.setattr(cv2, "waitKeyEx", lambda _: next(keys))
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((64, 96, 3), np.uint8))
    show(open_source(str(tmp_path)), FakeDetector(FACE), FakeClassifier(), OutputOptions(window=True))
    assert window.shown == 2
    assert list(keys) == []


@pytest.fixture
def command(monkeypatch):
    """Run the command line within this process, with a detector and a classifier that answer at once."""
    from inference.emotion_classifier import EmotionClassifier

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["webcam", *map(str, arguments)])
        run(webcam.main)

    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(webcam, "build_detector", lambda *_: FakeDetector(FACE))
    monkeypatch.setattr(EmotionClassifier, "load_litert", lambda _: FakeClassifier())
    yield start
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_without_a_display_it_says_so_and_goes_on(tmp_path, command, capsys):
    command("--source", write_video(tmp_path / "clip.mp4", frames=4), "--log", tmp_path / "out.csv")
    printed = capsys.readouterr()
    assert printed.err == "no display here: going on without a window\n"
    assert printed.out.startswith("clip.mp4: frames: 4, faces: 3, ")
    assert len(rows_of(tmp_path / "out.csv")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "987"], "camera 987 gives no picture"),
        (["--source", "missing.mp4"], "missing.mp4 does not exist"),
        (["--source", "letter.mp4"], "letter.mp4 is no video"),
        (["--source", "nothing"], "nothing holds no readable picture or video"),
        (["--source", "unreadable"], "unreadable holds no readable picture or video (2 files were tried)"),
        (["--source", "films", "--record", "films/b/2.mp4"], "is the source itself"),
        (["--source", "films", "--segments", "out.csv"], "--segments out.csv needs one video or a camera"),
        (["--source", "films", "--summary", "out.html"], "--summary out.html needs one video or a camera"),
        (["--source", "films", "--follow", "1"], "--follow 1 needs one video or a camera"),
        (["--source", "films", "--blur-unknown"], "--blur-unknown needs one video or a camera"),
        (["--source", "rtsp://me:s@cret@127.0.0.1:9/1?token=abc"], "rtsp://127.0.0.1:9/1?*** gives no picture"),
        (["--source", "me:secret@127.0.0.1/1?token=abc"], "--source ***@127.0.0.1/1?*** does not exist"),
        (["--source", "clip.mp4", "--record", "clip.mp4"], "is the source itself"),
        (["--source", "clip.mp4", "--record", "out.png"], "must end in .mp4"),
        (["--source", "clip.mp4", "--record", "nowhere/out.mp4"], "nowhere does not exist"),
        (["--source", "clip.mp4", "--log", "out.jpg"], "must end in .csv"),
        (["--source", "clip.mp4", "--min-face-size", "big"], "--min-face-size"),
        (["--source", "987", "--log", "kept.csv"], "--log kept.csv exists already; give another name, or --overwrite"),
        (["--source", "987", "--record", "kept.mp4"], "--record kept.mp4 exists already"),
        (["--source", "987", "--segments", "kept.csv"], "--segments kept.csv exists already"),
        (["--source", "987", "--summary", "kept.html"], "--summary kept.html exists already"),
        (["--source", "987", "--log", "a.csv", "--segments", "./a.csv"], "are both to write a.csv"),
        (["--source", "987", "--log", "kept.csv", "--overwrite"], "camera 987 gives no picture"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(
    tmp_path, command, capfd, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    write_video(Path("clip.mp4"), frames=3)
    Path("letter.mp4").write_text("Dear camera,\n" * 100)
    Path("nothing").mkdir()
    Path("unreadable").mkdir()
    Path("unreadable/a.png").write_text("no picture")
    Path("unreadable/b.mp4").write_text("no video")
    Path("films/b").mkdir(parents=True)
    write_video(Path("films/1.mp4"), frames=3)
    write_video(Path("films/b/2.mp4"), frames=3)
    for name in ("kept.csv", "kept.mp4", "kept.html"):
        Path(name).write_text("of an earlier run")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        command(*arguments, "--no-window")
    printed = capfd.readouterr()
    assert end.value.code == 2
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1 and message in printed.err
    assert not any(secret in printed.err for secret in ("s@cret", "cret@", "secret", "abc"))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("clip.mp4", "none.keras does not exist"),
        ("letter.mp4", "letter.mp4 is no video"),
        ("987", "camera 987 gives no picture"),
    ],
)
def test_opencv_and_ffmpeg_add_no_lines_to_ours(tmp_path, run_step, source, message):
    write_video(tmp_path / "clip.mp4", frames=3)
    (tmp_path / "letter.mp4").write_text("Dear camera,\n" * 100)
    path = source if source.isdigit() else tmp_path / source
    arguments = ["--source", path, "--no-window", "--model", tmp_path / "none.keras", "--log", tmp_path / "out.csv"]
    ended = run_step("realtime.webcam", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1 and message in ended.stderr
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("source", "status"), [("camera", 1), ("video", 0)], ids=["a lost camera ends with 1", "a broken video with 0"]
)
def test_what_ends_too_early_is_told_and_kept(tmp_path, command, capsys, monkeypatch, source, status):
    whole = write_video(tmp_path / "whole.avi", frames=60)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    arguments = ["--source", "0" if source == "camera" else cut, "--record", tmp_path / "out.mp4", "--no-window"]
    code = 0
    with monkeypatch.context() as patches:
        if source == "camera":
            capture = cv2.VideoCapture(str(cut))
            patches.setattr(cv2, "VideoCapture", lambda *_: capture)
            patches.setattr(Live.__init__, "__defaults__", (False, 0.2, 3.0))
        try:
            command(*arguments)
        except SystemExit as end:
            code = end.code
    assert code == status
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
            time.sleep(120)
        return super().detect(image_rgb)

webcam.build_detector = lambda *_: StuckDetector(FACE)
EmotionClassifier.load_litert = lambda _: FakeClassifier()
run(webcam.main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_second_signal_does_not_break_off_the_closing():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        webcam.end_on_signals()
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGTERM)
        assert end.value.code == 143
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_in_mid_run_leaves_a_playable_video_and_a_whole_log(tmp_path, name, status):
    clip = write_video(tmp_path / "clip.mp4", frames=30)
    video, log = tmp_path / "out.mp4", tmp_path / "out.csv"
    code = CHILD.format(root=str(TESTS.parent), tests=str(TESTS))
    segments, page = tmp_path / "spans.csv", tmp_path / "out.html"
    arguments = ["--source", str(clip), "--record", str(video), "--log", str(log), "--no-window"]
    arguments += ["--segments", str(segments), "--summary", str(page), "--anonymous"]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and len(rows_of(log)) == 5):  # then the child is stuck in its sixth frame
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(child.pid, getattr(signal, name))
        printed, _ = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == status
    assert printed.decode().startswith("clip.mp4: frames: 5, faces: 4, ")
    assert len(read_video(video)[0]) == 5
    assert len(rows_of(log)) == 5
    assert segments.read_text().startswith("face,start,end,label") and "5 frames" in page.read_text()


@pytest.mark.parametrize("module", ["realtime.webcam", "realtime.demo"])
def test_importing_costs_little(module):
    code = (
        f"import {module}, sys; "
        "print(*{'tensorflow', 'keras', 'pandas', 'matplotlib', 'mtcnn', 'av'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


def test_what_was_done_is_told_also_where_a_file_cannot_be_finished(tmp_path, capsys, monkeypatch):
    source = open_source(str(write_video(tmp_path / "clip.mp4", frames=3)))
    monkeypatch.setattr(Log, "close", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        show(source, FakeDetector(FACE), FakeClassifier(), OutputOptions(log=tmp_path / "out.csv"))
    assert capsys.readouterr().out.startswith("clip.mp4: frames: 3, faces: 2, ")


@pytest.mark.parametrize(
    ("wanted", "synchronous"), [({}, False), ({"anonymous": True}, True), ({"blur_unknown": True}, True)]
)
def test_no_search_may_be_late_where_faces_are_hidden(tmp_path, monkeypatch, wanted, synchronous):
    """What a late search finds may be gone by then, and would have stayed to be seen."""
    told = []

    def watched(*given, **options):
        told.append(options["synchronous"])
        return watch(*given, **options)

    monkeypatch.setattr(webcam, "watch", watched)
    source = open_source(str(write_video(tmp_path / "clip.mp4", frames=3)))
    show(source, FakeDetector(FACE), FakeClassifier(), OutputOptions(**wanted))
    assert told == [synchronous]
