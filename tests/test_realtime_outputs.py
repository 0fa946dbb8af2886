import csv
import json
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
from realtime_fakes import LABELS, read_times, read_video, recognition, result

from common.errors import InputError
from configuration import WEBCAM
from inference.faces import Face
from realtime.recognition import Result
from realtime.sinks.outputs import OutputOptions, Outputs
from realtime.sinks.window import ACTIONS, key_name
from realtime.sources import Frame, Live, Pictures

SIZE = (160, 120)
PLACE = Face(60.0, 40.0, 30.0, 40.0, 0.9)


def a_source(still=False, count=None) -> Any:
    """What outputs ask of a source."""
    return SimpleNamespace(name="clip.mp4", fps=10.0, size=SIZE, still=still, live=False, count=count, warning="")


class FakeScreen:
    """Stands for OpenCV's window functions: `keys` maps the number of a shown picture to the key that is pressed then.

    Attributes:
        shown: The pictures shown.
    """

    def __init__(self, monkeypatch, keys):
        self.shown, self.keys = [], dict(keys)
        for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
            monkeypatch.setattr(cv2, name, lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", lambda _, image_bgr: self.shown.append(image_bgr.copy()))
        monkeypatch.setattr(cv2, "waitKeyEx", lambda _: ord(self.keys.pop(len(self.shown), "\xff")))
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
        monkeypatch.setattr("realtime.sinks.window.time.monotonic", self.clock)
        self.now = 0.0

    def clock(self):
        self.now += 0.01  # nobody waits
        return self.now


def frames(count: int = 20, value: int | None = 200, size=SIZE, *recognitions):
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8) if value is None else None
    for index in range(count):
        image_bgr = np.full((size[1], size[0], 3), value, np.uint8) if noise is None else noise
        seen = recognitions or (recognition(PLACE, track_id=1),)
        yield result(image_bgr, *seen, index=index, time=index / 10)


def run(wanted, results=None, source=None):
    outputs = Outputs(wanted, source or a_source(), LABELS)
    for each in results if results is not None else frames():
        outputs.write(each)
        if outputs.closed:
            break
    outputs.close()
    return outputs


@pytest.fixture
def wanted(tmp_path):
    return lambda **options: OutputOptions(window=True, captures=tmp_path / "captures", **options)


def test_s_writes_the_drawn_frame_and_says_where(tmp_path, monkeypatch, wanted, capsys):
    screen = FakeScreen(monkeypatch, {4: "s"})
    outputs = run(wanted())
    (file,) = (tmp_path / "captures").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.png", file.name)
    assert str(file) in capsys.readouterr().err and outputs.written == [file]
    picture_bgr = cv2.imread(str(file))
    assert picture_bgr is not None and picture_bgr.shape == (120, 160, 3) and (picture_bgr != 200).any()
    assert cv2.absdiff(screen.shown[4], screen.shown[3])[:20].any(), "the window says it too"


def test_two_snapshots_of_one_second_are_two_files(tmp_path, monkeypatch, wanted):
    FakeScreen(monkeypatch, {2: "s", 3: "s", 4: "S"})
    run(wanted(), frames(3))
    assert len(list((tmp_path / "captures").iterdir())) == 3


def test_a_snapshot_that_cannot_be_written_is_told_of_and_the_run_goes_on(tmp_path, monkeypatch, wanted, capsys):
    (tmp_path / "captures").write_text("a file where a folder is needed")
    screen = FakeScreen(monkeypatch, {2: "s", 4: "r"})
    run(wanted(log=tmp_path / "out.csv"))
    printed = capsys.readouterr().err
    assert "no snapshot" in printed and "no recording" in printed
    assert len(screen.shown) == 22


def test_r_records_from_one_press_to_the_next_at_the_sources_own_times(tmp_path, monkeypatch, wanted):
    FakeScreen(monkeypatch, {6: "r", 13: "r"})
    outputs = run(wanted())
    (file,) = (tmp_path / "captures").iterdir()
    recorded, fps = read_video(file)
    assert (file.suffix, fps) == (".mp4", 10)
    # The key comes at frame 5; each key shows its frame once more, so the other one comes at frame 11.
    assert len(recorded) == 7
    assert outputs.written == [file]


def test_r_stops_a_recording_that_was_asked_for_and_the_next_press_starts_another(tmp_path, monkeypatch, wanted):
    FakeScreen(monkeypatch, {3: "r", 10: "r"})
    outputs = run(wanted(record=tmp_path / "out.mp4"))
    assert len(read_video(tmp_path / "out.mp4")[0]) == 3
    (other,) = (tmp_path / "captures").iterdir()
    assert len(read_video(other)[0]) == 12
    assert outputs.written == [tmp_path / "out.mp4", other]


def test_space_stops_the_picture_until_the_next_space(monkeypatch, wanted):
    screen = FakeScreen(monkeypatch, {3: " ", 4: "h", 5: "h", 6: " ", 8: "q"})
    taken = []
    outputs = run(wanted(), (taken.append(each) or each for each in frames()))
    assert outputs.closed
    assert len(taken) == 4, "while it stands, no frame is taken"
    assert screen.shown[4][:60].std() != screen.shown[5][:60].std(), "help comes and goes meanwhile"


def test_b_takes_the_bars_away_and_back(tmp_path, monkeypatch, wanted):
    face = Face(60.0, 150.0, 100.0, 120.0, 0.9)
    screen = FakeScreen(monkeypatch, {2: "b", 5: "b"})
    run(wanted(), frames(6, 255, (640, 480), recognition(face, track_id=1)))
    dark = [(each[150:280, 170:320].max(axis=2) < 80).mean() > 0.1 for each in screen.shown]
    assert dark == [True, True, False, False, False, True, True, True]


def test_a_number_follows_that_face_and_the_same_again_all(monkeypatch, wanted):
    first, second = Face(60.0, 150.0, 100.0, 120.0, 0.9), Face(400.0, 150.0, 100.0, 120.0, 0.9)
    screen = FakeScreen(monkeypatch, {2: "2", 4: "2"})
    seen = recognition(first, track_id=7), recognition(second, "anger", track_id=9)
    run(wanted(), frames(4, 255, (640, 480), *seen))
    grays = [bool((each[160:260, 60] == 160).all()) for each in screen.shown]
    assert grays == [False, False, True, True, False, False], "the second of those in sight, whose number no key has"


def test_a_followed_face_that_is_gone_is_told_of(monkeypatch, wanted):
    screen = FakeScreen(monkeypatch, {})
    run(wanted(follow=5), frames(2))
    other = FakeScreen(monkeypatch, {})
    run(wanted(follow=1), frames(2))
    assert (screen.shown[1][:16].max(axis=2) < 60).sum() > (other.shown[1][:16].max(axis=2) < 60).sum()


def is_covered(image_bgr):
    return bool((image_bgr[45:75, 64:86] == image_bgr[45, 64]).all())


@pytest.mark.parametrize(
    ("options", "is_hidden"),
    [
        ({}, False),
        ({"anonymous": True}, True),
        ({"blur_unknown": True}, True),
        ({"blur_unknown": True, "follow": 1}, False),
        ({"blur_unknown": True, "follow": 2}, True),
        ({"anonymous": True, "follow": 1}, True),
    ],
)
def test_hidden_faces_are_hidden_in_window_snapshot_and_recording(tmp_path, monkeypatch, wanted, options, is_hidden):
    screen = FakeScreen(monkeypatch, {5: "b", 7: "s"})
    seen = recognition(PLACE, track_id=1)
    run(wanted(record=tmp_path / "out.avi", log=tmp_path / "out.csv", **options), frames(20, None, SIZE, seen))
    (snapshot,) = (tmp_path / "captures").iterdir()
    assert is_covered(screen.shown[6]) is is_hidden
    assert is_covered(cv2.imread(str(snapshot))) is is_hidden
    recorded = read_video(tmp_path / "out.avi")[0]
    assert len(recorded) == 20, "what was held back is recorded at the end"
    shades = [np.abs(np.diff(each[45:75, 64:86].mean(axis=2), axis=0)).mean() for each in recorded]
    assert all(bool(shade < 15) is is_hidden for shade in shades[:1] + shades[-1:])
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 21


class FullDisk:
    """A disk that is full from its n-th question on."""

    def __init__(self, monkeypatch, after):
        self.asked, self.after, self.usage = 0, after, shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", self.ask)

    def ask(self, _):
        self.asked += 1
        return self.usage._replace(free=1000 if self.asked > self.after else 1 << 40)


def test_a_disk_that_gets_full_ends_the_recording_and_everything_else_goes_on(tmp_path, monkeypatch, capsys):
    FullDisk(monkeypatch, after=8)
    files = [tmp_path / name for name in ("out.mp4", "out.csv", "spans.csv", "out.html")]
    outputs = run(OutputOptions(*files))
    assert len(read_video(files[0])[0]) == 7
    assert len(files[1].read_text().splitlines()) == 21
    assert "20 frames" in files[3].read_text()
    assert "the recording ended early" in outputs.warning and "less than 16 MB are free" in outputs.warning
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert set(outputs.written) == set(files)


def test_a_disk_that_gets_full_ends_a_run_of_which_nothing_else_is_kept(tmp_path, monkeypatch):
    FullDisk(monkeypatch, after=8)
    outputs = Outputs(OutputOptions(tmp_path / "out.mp4"), a_source(), LABELS)
    with pytest.raises(InputError, match="less than 16 MB are free"):
        for each in frames():
            outputs.write(each)
    outputs.close()
    assert len(read_video(tmp_path / "out.mp4")[0]) == 7


def test_frames_of_another_size_in_mid_stream_are_shown_and_recorded(tmp_path, monkeypatch, wanted):
    screen = FakeScreen(monkeypatch, {})
    mixed = [*frames(3), *frames(3, 100, (64, 200)), *frames(3, 150, (1, 1)), *frames(3)]
    mixed = [result(each.frame.image_bgr, *each.recognitions, time=i / 10) for i, each in enumerate(mixed)]
    run(wanted(record=tmp_path / "out.mp4", anonymous=True), mixed)
    assert {each.shape[:2] for each in screen.shown} == {(120, 160), (200, 64), (1, 1)}
    assert [each.shape for each in read_video(tmp_path / "out.mp4")[0]] == [(120, 160, 3)] * 12


def test_a_camera_slower_than_it_says_and_a_pause_keep_the_recordings_time(tmp_path):
    times = [0.0, 0.3, 0.6, 3.0, 3.1]
    images = [np.full((120, 160, 3), 50 * i, np.uint8) for i in range(5)]
    run(
        OutputOptions(tmp_path / "out.mp4"),
        [result(image, time=time) for image, time in zip(images, times, strict=True)],
    )
    assert [round(each[:60].mean() / 50) for each in read_video(tmp_path / "out.mp4")[0]] == [0, 1, 2, 3, 4]
    assert read_times(tmp_path / "out.mp4") == pytest.approx(times)


def test_all_outputs_say_the_same(tmp_path):
    log, lines, segments = tmp_path / "out.csv", tmp_path / "out.jsonl", tmp_path / "spans.csv"
    seen = [recognition(PLACE, "anger", 0.8, 3), recognition(PLACE, "happiness", 0.4, 5, unsure=True)]
    run(OutputOptions(log=log, segments=segments), frames(5, 200, SIZE, *seen))
    run(OutputOptions(log=lines), frames(5, 200, SIZE, *seen))
    with log.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    objects = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(rows) == len(objects) == 10
    for row, each in zip(rows, objects, strict=True):
        assert list(row) == list(each)
        for name, value in each.items():
            assert row[name] == value if isinstance(value, str) else float(row[name]) == float(value)
    assert [each["unsure"] for each in objects[:2]] == [False, True]
    assert [each["track_id"] for each in objects[:2]] == [3, 5]
    with segments.open(newline="") as stream:
        assert [(row["track_id"], row["label"]) for row in csv.DictReader(stream)] == [("3", "anger"), ("5", "unsure")]
    assert [(row["track_id"], row["label"], row["unsure"]) for row in rows[:2]] == [
        ("3", "anger", "0"),
        ("5", "unsure", "1"),
    ]


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"summary": Path("out.html")}, {"still": True, "count": 3}, "--summary out.html needs a video or a camera"),
        ({"segments": Path("out.csv")}, {"still": True, "count": 1}, "--segments out.csv needs a video or a camera"),
        ({"summary": Path("out.pdf")}, {}, "--summary out.pdf must end in .html"),
        ({"log": Path("out.txt")}, {}, "--log out.txt must end in .csv or .jsonl"),
        ({"record": Path("out.png")}, {}, "--record out.png must end in .mp4"),
        ({"record": Path("out.webp")}, {"still": True, "count": 1}, "--record out.webp must end in"),
        ({"log": Path("a.csv"), "segments": Path("a.csv")}, {}, "are both to write a.csv"),
        ({"log": Path("a.csv"), "segments": Path("x/../a.csv")}, {}, "are both to write x/../a.csv"),
        ({"blur_unknown": True}, {"still": True, "count": 3}, "--blur-unknown needs a video"),
        ({"follow": 2}, {"still": True, "count": 1}, "--follow 2 needs a video"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, monkeypatch, options, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        OutputOptions(**options).check_files("clip.mp4")
        OutputOptions(**options).check(a_source(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_made_leaves_no_half_open_run(tmp_path):
    wanted = OutputOptions(tmp_path / "out.mp4", tmp_path / "nowhere" / "out.csv")
    with pytest.raises(InputError, match=r"--log .*out\.csv cannot be written"):
        Outputs(wanted, a_source(), LABELS)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_frame_leaves_no_files_that_the_next_run_would_refuse(tmp_path):
    wanted = OutputOptions(*(tmp_path / name for name in ("out.mp4", "out.csv", "spans.csv", "out.html")))
    run(wanted, [])
    assert list(tmp_path.iterdir()) == []
    run(wanted)
    assert len(list(tmp_path.iterdir())) == 4


NAMES = ("out.mp4", "out.csv", "spans.csv", "out.html")


@pytest.mark.parametrize("taken", NAMES)
def test_no_output_replaces_a_file_of_another_program_that_came_meanwhile(tmp_path, taken):
    """Two runs that start together pass the first check both."""
    (tmp_path / taken).write_text("another program's")
    with pytest.raises(InputError, match=f"{taken} exists already"):
        run(OutputOptions(*(tmp_path / name for name in NAMES)))
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(taken, "another program's")]


@pytest.mark.parametrize("name", ["out.webp", "out.png"])
def test_pictures_do_not_replace_existing_files_either(tmp_path, name):
    (tmp_path / name).write_text("earlier")
    source = a_source(still=name.endswith("png"), count=1)
    with pytest.raises(InputError, match=f"{name} exists already"):
        run(OutputOptions(tmp_path / name), frames(1), source)
    assert (tmp_path / name).read_text() == "earlier"
    run(OutputOptions(tmp_path / name, overwrite=True), frames(1), source)
    assert cv2.imread(str(tmp_path / name)) is not None


def test_with_overwrite_all_files_are_replaced(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text("earlier")
    run(OutputOptions(*(tmp_path / name for name in NAMES), overwrite=True))
    assert len(read_video(tmp_path / "out.mp4")[0]) == 20
    assert not any("earlier" in (tmp_path / name).read_text() for name in NAMES[1:])


def test_the_recording_key_never_replaces_a_file(tmp_path, monkeypatch, wanted):
    class OneMoment(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("realtime.sinks.outputs.datetime", OneMoment)
    (tmp_path / "captures").mkdir()
    first = tmp_path / "captures" / "2026-01-02_03-04-05.mp4"
    first.write_text("earlier")
    FakeScreen(monkeypatch, {2: "r", 5: "r", 8: "r", 11: "r"})
    outputs = run(wanted())
    assert first.read_text() == "earlier"
    assert [each.name for each in outputs.written] == ["2026-01-02_03-04-05_2.mp4", "2026-01-02_03-04-05_3.mp4"]
    assert all(read_video(each)[0] for each in outputs.written)


def test_a_recording_that_cannot_be_finished_does_not_end_the_run(tmp_path, monkeypatch, wanted, capsys):
    def fail(recording):
        raise InputError("no room")

    monkeypatch.setattr("realtime.sinks.recording.VideoRecording.close", fail)
    screen = FakeScreen(monkeypatch, {2: "r", 5: "r"})
    run(wanted(log=tmp_path / "out.csv"))
    assert "the recording could not be finished: no room" in capsys.readouterr().err
    assert len(screen.shown) == 22 and len((tmp_path / "out.csv").read_text().splitlines()) == 21


def test_without_window_or_recording_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("realtime.sinks.drawing.Drawer.draw", lambda *_: 1 / 0)
    run(OutputOptions(log=tmp_path / "out.csv", anonymous=True))
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 21


def test_an_animation_is_small_keeps_time_and_ends(tmp_path, capsys):
    for suffix in ("webp", "gif"):
        file = tmp_path / f"out.{suffix}"
        times = np.arange(0, 45, 0.04)
        image_bgr = np.full((600, 800, 3), 90, np.uint8)
        outputs = run(
            OutputOptions(file, tmp_path / f"{suffix}.csv"), [result(image_bgr, time=float(time)) for time in times]
        )
        is_read, animation = cv2.imreadanimation(str(file))
        assert is_read and animation.frames[0].shape[:2] == (300, 400)
        seconds = sum(animation.durations) / 1000
        assert seconds == pytest.approx(WEBCAM.animation_seconds, abs=1.5)
        assert len(animation.frames) <= WEBCAM.animation_seconds * WEBCAM.animation_fps + 1
        assert "an animation ends after 30 seconds" in outputs.warning
        assert len((tmp_path / f"{suffix}.csv").read_text().splitlines()) == 1


def test_a_digit_dims_no_face_of_a_picture(monkeypatch):
    screen = FakeScreen(monkeypatch, {1: "1", 2: "x"})
    picture = list(frames(1, 200, SIZE, recognition(PLACE)))
    run(OutputOptions(window=True), picture, a_source(still=True, count=1))
    plain, pressed = screen.shown
    place = np.s_[int(PLACE.top) - 5 : int(PLACE.top + PLACE.height) + 5, :]
    np.testing.assert_array_equal(pressed[place], plain[place])
    assert (pressed != plain).any()  # the note


class Screen:
    """Stands for OpenCV's window functions: a script of keys, one for each picture shown.

    Attributes:
        shown: The pictures shown.
        grays: The gray level in the lower right corner of each.
        tops: The shaded part of the upper left corner of each, where a note is written.
    """

    def __init__(self, monkeypatch, *codes):
        self.shown, self.grays, self.tops, self.codes = [], [], [], iter(codes)
        for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
            monkeypatch.setattr(cv2, name, lambda *_: None)
        monkeypatch.setattr(cv2, "imshow", self.show)
        monkeypatch.setattr(cv2, "waitKeyEx", lambda _: next(self.codes))
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)

    def show(self, _, image_bgr):
        self.shown.append(image_bgr.copy())
        self.grays.append(int(image_bgr[-1, -1, 0]))
        self.tops.append(image_bgr[:16].copy())


LEFT, RIGHT, SHIFT, PAGE_UP, Q = 0xFF51, 0xFF53, 0xFFE1, 0xFF55, ord("q")


def a_folder(folder, *grays):
    folder.mkdir(exist_ok=True)
    for number, gray in enumerate(grays):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((SIZE[1], SIZE[0], 3), gray, np.uint8))
    return Pictures(sorted(folder.iterdir()), str(folder))


def watch_pictures(wanted, source):
    outputs = Outputs(wanted, source, LABELS)
    for frame in source:
        outputs.write(result_of(frame))
        if outputs.closed:
            break
    else:
        outputs.finish()
    outputs.close()
    return outputs


def result_of(frame):
    return Result(frame, [recognition(PLACE)])


@pytest.mark.parametrize(
    ("grays", "keys", "seen"),
    [
        ((20, 120, 220), [RIGHT, RIGHT, RIGHT, LEFT, LEFT, Q], [20, 120, 220, 220, 120, 20]),
        ((20, 120, 220), [LEFT, RIGHT, PAGE_UP, RIGHT, RIGHT, Q], [20, 20, 120, 20, 120, 220]),
        ((20, 120), [SHIFT, ord("n"), ord("p"), ord(" "), ord(" ")], [20, 120, 20, 120]),
        ((20,), [LEFT, RIGHT, RIGHT, SHIFT, LEFT, Q], [20] * 5),
        ((20,), [ord("x")], [20]),
        ((20, 120), [RIGHT, RIGHT, ord("x")], [20, 120, 120]),
    ],
)
def test_arrows_step_between_the_first_and_the_last_picture_and_stay_there(tmp_path, monkeypatch, grays, keys, seen):
    screen = Screen(monkeypatch, *keys)
    log, video = tmp_path / "out.csv", tmp_path / "out.avi"
    watch_pictures(OutputOptions(video, log, window=True), a_folder(tmp_path / "folder", *grays))
    assert screen.grays == seen
    assert list(screen.codes) == []
    names = [f"{number}.png" for number in range(len(set(seen)))]
    assert [row.split(",")[2] for row in log.read_text().splitlines()[1:]] == names, "each picture is logged once"
    assert len(read_video(video)[0]) == len(names)


def test_the_last_picture_stays_where_files_after_it_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "9.png").write_text("no picture")
    screen = Screen(monkeypatch, RIGHT, RIGHT, LEFT, Q)
    watch_pictures(OutputOptions(window=True), a_folder(tmp_path / "folder", 20, 120))
    assert screen.grays == [20, 120, 120, 20]


def test_a_picture_that_is_gone_is_passed_over_with_a_note(tmp_path, monkeypatch):
    source = a_folder(tmp_path / "folder", 20, 120, 220)
    screen = Screen(monkeypatch, RIGHT, RIGHT, LEFT, LEFT, Q)
    results = iter(source)
    outputs = Outputs(OutputOptions(window=True), source, LABELS)
    outputs.write(result_of(next(results)))
    outputs.write(result_of(next(results)))
    (tmp_path / "folder" / "1.png").unlink()
    outputs.write(result_of(next(results)))
    outputs.close()
    assert screen.grays == [20, 120, 220, 0, 20]


def test_a_hidden_face_stays_hidden_when_its_picture_is_shown_again(tmp_path, monkeypatch):
    source = a_folder(tmp_path / "folder", 20, 120)
    noise = np.random.default_rng(1).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    cv2.imwrite(str(tmp_path / "folder" / "0.png"), noise)
    Screen(monkeypatch, RIGHT, LEFT, ord("s"), Q)
    watch_pictures(OutputOptions(window=True, anonymous=True, captures=tmp_path / "captures"), source)
    (snapshot,) = (tmp_path / "captures").iterdir()
    assert is_covered(cv2.imread(str(snapshot)))


def test_the_window_tells_which_file_of_how_many_it_shows(tmp_path, monkeypatch):
    several, one = Screen(monkeypatch, RIGHT, Q), None
    watch_pictures(OutputOptions(window=True), a_folder(tmp_path / "several", 200, 200))
    one = Screen(monkeypatch, Q)
    watch_pictures(OutputOptions(window=True), a_folder(tmp_path / "one", 200))
    assert (several.tops[0] != several.tops[1]).any() and (several.tops[0] != one.tops[0]).any()
    assert (one.tops[0] == 200).all()


class SilentCamera(Live):
    """A camera that gives no frame after its first ones."""

    def __init__(self):
        self.name, self.warning, self.fps, self.size = "camera 0", "", 10.0, SIZE


@pytest.mark.parametrize("anonymous", [False, True])
def test_the_window_shows_that_it_waits_for_the_camera_and_obeys_keys_meanwhile(tmp_path, monkeypatch, anonymous):
    camera = SilentCamera()
    screen = Screen(monkeypatch, *([] if anonymous else [-1]), -1, -1, SHIFT, Q)
    outputs = Outputs(OutputOptions(window=True, anonymous=anonymous), camera, LABELS)
    assert camera.on_wait
    for each in frames(1):
        outputs.write(each)
    assert [camera.on_wait(is_waiting) for is_waiting in (False, True, False, True)] == [True, True, True, False]
    outputs.close()
    quiet, waiting = screen.tops[-4:-2]
    assert (waiting != quiet).any(), "the note"
    assert (screen.tops[-2] == quiet).all(), "which goes with the wait"
    assert outputs.closed and len(set(screen.grays)) == 1, "the last frame stays"


def test_a_recording_and_the_list_of_keys_work_while_the_camera_is_away(tmp_path, monkeypatch):
    camera = SilentCamera()
    screen = Screen(monkeypatch, -1, ord("r"), -1, ord("r"), -1, ord("h"), -1, Q)
    outputs = Outputs(OutputOptions(window=True, captures=tmp_path), camera, LABELS)
    outputs.write(next(frames(1, 200, (640, 480))))
    while camera.on_wait and camera.on_wait(True):
        pass
    outputs.close()
    (file,) = tmp_path.glob("*.mp4")
    assert len(read_video(file)[0]) == 1
    assert list(screen.codes) == []


@pytest.mark.parametrize("anonymous", [False, True])
def test_files_of_a_folder_are_drawn_recorded_and_hidden_each_by_itself(tmp_path, monkeypatch, anonymous):
    """A video's frames must not be hidden, delayed or dimmed by what the file before showed."""
    screen = Screen(monkeypatch, *[-1] * 3, ord("1"), -1, *[-1] * 4, ord("x"))
    monkeypatch.setattr(
        "realtime.sinks.window.Window.wait", lambda *_, **__: ACTIONS.get(key_name(next(screen.codes)), "")
    )
    source = a_source()
    outputs = Outputs(OutputOptions(tmp_path / "out.mp4", window=True, anonymous=anonymous), source, LABELS)
    offset = 0.0
    for number, name, value in ((1, "a.mp4", 60), (2, "b.mp4", 160)):
        for each in frames(4, value, SIZE, recognition(PLACE, track_id=number)):
            frame = replace(each.frame, name=name, offset=offset)
            outputs.write(replace(each, frame=frame))
        offset += 0.4
    picture = np.full((SIZE[1], SIZE[0], 3), 240, np.uint8)
    outputs.write(Result(Frame(picture, 2, 0.2, "c.png", still=True, offset=0.6), [recognition(PLACE)]))
    outputs.close()
    assert screen.grays == [60] * 5 + [160] * 4 + [240]
    edges = [tuple(image_bgr[60, 60]) for image_bgr in screen.shown]
    assert len(set(edges)) == 1, "a followed face's number means another face in the next file"
    recorded = [round(each[-1, -1].mean() / 20) * 20 for each in read_video(tmp_path / "out.mp4")[0]]
    assert recorded == [60] * 4 + [160] * 4 + [240]
