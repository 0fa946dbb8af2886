import re
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from realtime_fakes import LABELS, read_video, recognition, result

from common.errors import InputError
from inference.faces import Face
from realtime.recognition import Result
from realtime.sinks.controller import OutputController
from realtime.sinks.options import OutputOptions
from realtime.sources import Frame, Live, Pictures

SIZE = (160, 120)
PLACE = Face(60.0, 40.0, 30.0, 40.0, 0.9)
NAMES = ("out.mp4", "out.csv", "segments.csv", "out.html")
LEFT, RIGHT, SHIFT, PAGE_UP, Q = 0xFF51, 0xFF53, 0xFFE1, 0xFF55, ord("q")


def a_source(still=False, count=None) -> Any:
    return SimpleNamespace(name="clip.mp4", fps=10.0, size=SIZE, still=still, live=False, count=count, warning="")


class FakeScreen:
    """Replaces OpenCV's window: a script of key codes, one per image shown; without a script, codes by image number.

    Attributes:
        shown: The images shown.
    """

    def __init__(self, monkeypatch, *script, at=None):
        self.shown, self.now, self.script, self.at = [], 0.0, list(script), at or {}
        for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
            monkeypatch.setattr(cv2, name, lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", lambda _, image_bgr: self.shown.append(image_bgr.copy()))
        monkeypatch.setattr(cv2, "waitKeyEx", self.key)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
        if not script:
            monkeypatch.setattr("realtime.sinks.window.time.monotonic", self.clock)

    def key(self, _):
        return self.script.pop(0) if self.script else ord(self.at.pop(len(self.shown), "\xff"))

    def clock(self):
        self.now += 0.01  # no real waiting
        return self.now

    @property
    def grays(self):
        return [int(image_bgr[-1, -1, 0]) for image_bgr in self.shown]


def frames(count: int = 20, value: int | None = 200, size=SIZE, *recognitions):
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8) if value is None else None
    for index in range(count):
        image_bgr = np.full((size[1], size[0], 3), value, np.uint8) if noise is None else noise
        seen = recognitions or (recognition(PLACE, track_id=1),)
        yield result(image_bgr, *seen, index=index, time=index / 10)


def run(options, results=None, source=None):
    controller = OutputController(options, source or a_source(), LABELS)
    for each in results if results is not None else frames():
        controller.write(each)
        if controller.closed:
            break
    else:
        controller.finish()
    controller.close()
    return controller


@pytest.fixture
def shown(tmp_path):
    return lambda **options: OutputOptions(window=True, captures=tmp_path / "captures", **options)


def is_covered(image_bgr):
    return bool((image_bgr[45:75, 64:86] == image_bgr[45, 64]).all())


def test_snapshot_key_writes_the_drawn_frame(tmp_path, monkeypatch, shown, capsys):
    screen = FakeScreen(monkeypatch, at={4: "s"})
    controller = run(shown())
    (file,) = (tmp_path / "captures").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.png", file.name)
    assert str(file) in capsys.readouterr().err and controller.written == [file]
    image_bgr = cv2.imread(str(file))
    assert image_bgr is not None and image_bgr.shape == (120, 160, 3) and (image_bgr != 200).any()
    assert cv2.absdiff(screen.shown[4], screen.shown[3])[:20].any(), "the note"


def test_record_key_stops_the_recording_and_starts_another(tmp_path, monkeypatch, shown):
    FakeScreen(monkeypatch, at={3: "r", 10: "r", 15: "r"})
    controller = run(shown(record=tmp_path / "out.mp4"))
    (other,) = (tmp_path / "captures").iterdir()
    assert controller.written == [tmp_path / "out.mp4", other]
    # Each key shows its frame once more: the second key comes at frame 9, the third one at frame 13.
    recordings = [read_video(file) for file in controller.written]
    assert [(len(images), fps) for images, fps in recordings] == [(3, 10), (5, 10)]


def test_captures_that_fail_do_not_end_the_run(tmp_path, monkeypatch, shown, capsys):
    def fail(recording):
        raise InputError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("realtime.sinks.recording.VideoRecording.close", fail)
        screen = FakeScreen(patch, at={2: "r", 5: "r"})
        run(shown(log=tmp_path / "out.csv"))
        assert "the recording could not be finished: no room" in capsys.readouterr().err
        assert len(screen.shown) == 22 and len((tmp_path / "out.csv").read_text().splitlines()) == 21
    shutil.rmtree(tmp_path / "captures")
    (tmp_path / "captures").write_text("a file where a folder is needed")
    screen = FakeScreen(monkeypatch, at={2: "s", 4: "r"})
    run(shown())
    printed = capsys.readouterr().err
    assert "no snapshot" in printed and "no recording" in printed and len(screen.shown) == 22


def test_captures_never_replace_a_file(tmp_path, monkeypatch, shown):
    class OneMoment(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("realtime.sinks.recorder.datetime", OneMoment)
    (tmp_path / "captures").mkdir()
    first = tmp_path / "captures" / "2026-01-02_03-04-05.mp4"
    first.write_text("earlier")
    FakeScreen(monkeypatch, at={2: "r", 5: "r", 8: "s", 11: "S"})
    controller = run(shown())
    assert first.read_text() == "earlier"
    assert [each.name[19:] for each in controller.written] == ["_2.mp4", ".png", "_2.png"]


def test_space_pauses_and_other_keys_work_meanwhile(monkeypatch, shown):
    screen = FakeScreen(monkeypatch, at={3: " ", 4: "h", 5: "h", 6: " ", 8: "q"})
    taken = []
    controller = run(shown(), (taken.append(each) or each for each in frames()))
    assert controller.closed
    assert len(taken) == 4, "no frame is taken during the pause"
    assert screen.shown[4][:60].std() != screen.shown[5][:60].std(), "help opens and closes"


def test_digit_follows_a_face_and_again_all_faces(monkeypatch, shown):
    first, second = Face(60.0, 150.0, 100.0, 120.0, 0.9), Face(400.0, 150.0, 100.0, 120.0, 0.9)
    screen = FakeScreen(monkeypatch, at={2: "2", 4: "2"})
    seen = recognition(first, track_id=7), recognition(second, "anger", track_id=9)
    run(shown(), frames(4, 255, (640, 480), *seen))
    dimmed = [bool((each[160:260, 60] == 160).all()) for each in screen.shown]
    assert dimmed == [False, False, True, True, False, False], "2 selects the second face, whose ID has no key"


@pytest.mark.parametrize(
    ("options", "is_hidden"),
    [
        ({}, False),
        ({"anonymous": True, "follow": 1}, True),
        ({"blur_unknown": True}, True),
        ({"blur_unknown": True, "follow": 1}, False),
        ({"blur_unknown": True, "follow": 2}, True),
    ],
)
def test_faces_are_covered_in_window_snapshot_and_recording(tmp_path, monkeypatch, shown, options, is_hidden):
    screen = FakeScreen(monkeypatch, at={5: "b", 7: "s"})
    seen = recognition(PLACE, track_id=1)
    run(shown(record=tmp_path / "out.avi", log=tmp_path / "out.csv", **options), frames(20, None, SIZE, seen))
    (snapshot,) = (tmp_path / "captures").iterdir()
    assert is_covered(screen.shown[6]) is is_hidden
    assert is_covered(cv2.imread(str(snapshot))) is is_hidden
    recorded = read_video(tmp_path / "out.avi")[0]
    assert len(recorded) == 20, "delayed frames are recorded at the end"
    shades = [np.abs(np.diff(each[45:75, 64:86].mean(axis=2), axis=0)).mean() for each in recorded]
    assert all(bool(shade < 15) is is_hidden for shade in shades[:1] + shades[-1:])
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 21


def test_full_disk_ends_the_recording_and_only_it(tmp_path, monkeypatch, capsys):
    usage, checks = shutil.disk_usage("/"), []

    def disk_usage(_):
        checks.append(1)
        return usage._replace(free=1000 if len(checks) > 8 else 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    files = [tmp_path / name for name in NAMES]
    controller = run(OutputOptions(*files))
    assert len(files[1].read_text().splitlines()) == 21 and "20 frames" in files[3].read_text()
    assert "the recording ended early" in controller.warning and "less than 16 MB free" in controller.warning
    assert len(capsys.readouterr().err.splitlines()) == 1 and set(controller.written) == set(files)
    assert len(read_video(files[0])[0]) == 7


def test_impossible_options_are_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = {"still": True, "count": 3}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"summary": Path("out.html")}, images, "--summary out.html needs one video or a camera"),
        ({"follow": 2}, images, "--follow 2 needs one video or a camera: images are not tracked"),
        ({"summary": Path("out.pdf")}, {}, "--summary out.pdf must end in .html"),
        ({"log": Path("out.txt")}, {}, "--log out.txt must end in .csv or .jsonl"),
        ({"record": Path("out.webp")}, {"still": True, "count": 1}, "--record out.webp must end in"),
        ({"log": Path("a.csv"), "segments": Path("x/../a.csv")}, {}, "both name x/../a.csv"),
    ]
    for options, changes, message in cases:
        with pytest.raises(InputError, match=re.escape(message)):
            OutputOptions(**options).check_files("clip.mp4")
            OutputOptions(**options).check_source(a_source(**changes))
    assert list(tmp_path.iterdir()) == []


def test_runs_without_a_result_leave_no_files(tmp_path):
    with pytest.raises(InputError, match=r"--log .*out\.csv cannot be written"):
        run(OutputOptions(tmp_path / "out.mp4", tmp_path / "nowhere" / "out.csv"))
    assert list(tmp_path.iterdir()) == []
    options = OutputOptions(*(tmp_path / name for name in NAMES))
    run(options, [])
    assert list(tmp_path.iterdir()) == []
    run(options)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("taken", [*NAMES, "out.webp", "out.png"])
def test_existing_files_are_replaced_only_with_overwrite(tmp_path, taken):
    """Also a file of another program that appeared after the first check."""
    (tmp_path / taken).write_text("earlier")
    is_picture = taken.endswith("png")
    files = [tmp_path / name for name in (taken if taken not in NAMES else NAMES[0], *NAMES[1:])]
    options = OutputOptions(files[0]) if is_picture else OutputOptions(*files)
    with pytest.raises(InputError, match=f"{taken} exists already"):
        run(options, frames(1), a_source(is_picture, 1))
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(taken, "earlier")]
    run(replace(options, overwrite=True), frames(3), a_source(is_picture, 1))
    assert not any(b"earlier" in each.read_bytes() for each in tmp_path.iterdir())


def picture_folder(folder, *grays):
    folder.mkdir(exist_ok=True)
    for number, gray in enumerate(grays):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((SIZE[1], SIZE[0], 3), gray, np.uint8))
    return Pictures(sorted(folder.iterdir()), str(folder))


def results_of(source):
    return (Result(frame, [recognition(PLACE)]) for frame in source)


@pytest.mark.parametrize(
    ("grays", "keys", "seen"),
    [
        ((20, 120, 220), [LEFT, RIGHT, PAGE_UP, RIGHT, RIGHT, Q], [20, 20, 120, 20, 120, 220]),
        ((20, 120), [SHIFT, ord("n"), ord("p"), ord(" "), ord(" ")], [20, 120, 20, 120]),
        ((20,), [LEFT, RIGHT, ord("1"), SHIFT, LEFT, Q], [20] * 5),
        ((20, 120), [RIGHT, RIGHT, ord("x")], [20, 120, 120]),
    ],
)
def test_arrow_keys_step_through_pictures(tmp_path, monkeypatch, grays, keys, seen):
    screen = FakeScreen(monkeypatch, *keys)
    log, video = tmp_path / "out.csv", tmp_path / "out.avi"
    source = picture_folder(tmp_path / "folder", *grays)
    run(OutputOptions(video, log, window=True), results_of(source), source)
    assert screen.grays == seen
    assert screen.script == []
    names = [f"{number}.png" for number in range(len(set(seen)))]
    assert [row.split(",")[2] for row in log.read_text().splitlines()[1:]] == names, "each picture is logged once"
    assert len(read_video(video)[0]) == len(names)


def test_deleted_picture_is_skipped_with_a_note(tmp_path, monkeypatch):
    source = picture_folder(tmp_path / "folder", 20, 120, 220)
    screen = FakeScreen(monkeypatch, RIGHT, RIGHT, LEFT, LEFT, Q)

    def results():
        for index, each in enumerate(results_of(source)):
            if index == 2:
                (tmp_path / "folder" / "1.png").unlink()
            yield each

    run(OutputOptions(window=True), results(), source)
    assert screen.grays == [20, 120, 220, 220, 20]


def test_covered_face_stays_covered_when_its_picture_is_shown_again(tmp_path, monkeypatch, shown):
    source = picture_folder(tmp_path / "folder", 20, 120)
    cv2.imwrite(str(tmp_path / "folder" / "0.png"), next(frames(1, None)).frame.image_bgr)
    FakeScreen(monkeypatch, RIGHT, LEFT, ord("s"), Q)
    run(shown(anonymous=True), results_of(source), source)
    (snapshot,) = (tmp_path / "captures").iterdir()
    assert is_covered(cv2.imread(str(snapshot)))


@pytest.mark.parametrize("anonymous", [False, True])
def test_keys_work_while_the_camera_gives_no_frame(tmp_path, monkeypatch, shown, anonymous):
    class SilentCamera(Live):
        def __init__(self):
            self.name, self.warning, self.fps, self.size = "camera 0", "", 10.0, SIZE

    camera = SilentCamera()
    screen = FakeScreen(monkeypatch, *([] if anonymous else [-1]), -1, -1, SHIFT, Q)
    controller = OutputController(shown(anonymous=anonymous), camera, LABELS)
    assert camera.on_wait
    for each in frames(1):
        controller.write(each)
    assert [camera.on_wait(is_waiting) for is_waiting in (False, True, False, True)] == [True, True, True, False]
    controller.close()
    quiet, waiting = (each[:16] for each in screen.shown[-4:-2])
    assert (waiting != quiet).any(), "the note"
    assert (screen.shown[-2][:16] == quiet).all(), "without the note"
    assert controller.closed and len(set(screen.grays)) == 1, "the last frame stays"


@pytest.mark.parametrize("anonymous", [False, True])
def test_files_of_a_folder_are_drawn_and_covered_independently(tmp_path, monkeypatch, anonymous):
    screen = FakeScreen(monkeypatch, at={4: "1", 10: "x"})
    source = a_source()
    results, offset = [], 0.0
    for track_id, name, value in ((1, "a.mp4", 60), (2, "b.mp4", 160)):
        for each in frames(4, value, SIZE, recognition(PLACE, track_id=track_id)):
            results.append(replace(each, frame=replace(each.frame, name=name, offset=offset)))
        offset += 0.4
    picture = np.full((SIZE[1], SIZE[0], 3), 240, np.uint8)
    results.append(Result(Frame(picture, 2, 0.2, "c.png", still=True, offset=0.6), [recognition(PLACE)]))
    run(OutputOptions(tmp_path / "out.mp4", window=True, anonymous=anonymous), results, source)
    assert screen.grays == [60] * 5 + [160] * 4 + [240]
    edges = [tuple(image_bgr[60, 60]) for image_bgr in screen.shown]
    assert len(set(edges)) == 1, "a track ID means another face in the next file"
    recorded = [round(each[-1, -1].mean() / 20) * 20 for each in read_video(tmp_path / "out.mp4")[0]]
    assert recorded == [60] * 4 + [160] * 4 + [240]
