import csv
import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from realtime_fakes import FACE, LABELS, read_video, recognition, result, write_video

from preprocessing.errors import InputError
from realtime.recording import (
    AnimationRecording,
    Log,
    PictureRecording,
    VideoRecording,
    check_target,
    letterbox,
    log_columns,
    write_picture,
)


def flat(value, size=(96, 64)):
    return np.full((size[1], size[0], 3), value, np.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
def test_a_video_has_every_frame_at_the_given_rate(tmp_path, suffix):
    file = tmp_path / f"out{suffix}"
    recording = VideoRecording(file, (96, 64), 29.97)
    for index in range(20):
        recording.write(index / 29.97, flat(10 * index))
    recording.close()
    frames, fps = read_video(file)
    assert fps == pytest.approx(29.97, abs=0.01)
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 20
    assert [frame.mean() for frame in frames] == pytest.approx([10 * index for index in range(20)], abs=4)


def test_a_frame_is_shown_until_the_time_of_the_next(tmp_path):
    file = tmp_path / "out.mp4"
    recording = VideoRecording(file, (96, 64), 10.0)
    for time, value in ((0.0, 0), (0.1, 100), (0.5, 200), (0.52, 250)):
        recording.write(time, flat(value))
    recording.close()
    values = [frame.mean() for frame in read_video(file)[0]]
    assert values == pytest.approx([0, 100, 100, 100, 100, 200], abs=4)


def test_frames_of_another_size_are_fitted_into_the_first_ones(tmp_path):
    file = tmp_path / "out.mp4"
    recording = VideoRecording(file, (96, 64), 10.0)
    for index, size in enumerate([(96, 64), (64, 96), (960, 640), (31, 7), (96, 64)]):
        recording.write(index / 10, flat(200, size))
    recording.close()
    frames, _ = read_video(file)
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 5
    assert frames[1][:, :20].mean() < 5 and frames[1][:, 40:56].mean() == pytest.approx(200, abs=4)
    assert frames[2].mean() == pytest.approx(200, abs=4)


def test_a_recording_that_begins_in_mid_run_begins_with_its_first_frame(tmp_path):
    recording = VideoRecording(tmp_path / "out.mp4", (96, 64), 10.0)
    for index in range(5):
        recording.write(3600 + index / 10, flat(50 * index))
    recording.close()
    values = [frame.mean() for frame in read_video(tmp_path / "out.mp4")[0]]
    assert values == pytest.approx([0, 50, 100, 150, 200], abs=4)


def test_letterbox_keeps_the_proportions_and_centres_the_image():
    fitted = letterbox(flat(200, (40, 80)), (100, 60))
    assert fitted.shape == (60, 100, 3)
    columns = np.flatnonzero(fitted[30, :, 0])
    assert (columns[0], columns[-1]) == (35, 64)
    assert (fitted[:, 35:65] == 200).all()


def test_the_log_has_a_row_per_face_and_is_on_the_disk_at_once(tmp_path):
    file = tmp_path / "out.csv"
    log = Log(file, LABELS)
    second = replace(FACE, left=-3.25, top=7.0)
    log.write(result(flat(0), recognition(), recognition(second, "anger", 0.5), index=4, time=0.16))
    log.write(result(flat(0), index=5, time=0.2))
    with file.open(newline="", encoding="utf-8") as stream:  # while the log is still open
        rows = list(csv.DictReader(stream))
    log.close()
    assert [(row["time"], row["frame"], row["name"], row["face"]) for row in rows] == [
        ("0.16", "4", "clip.mp4", "1"),
        ("0.16", "4", "clip.mp4", "2"),
    ]
    assert [rows[1][f"box_{side}"] for side in ("left", "top", "width", "height")] == ["-3.2", "7.0", "24.0", "30.0"]
    assert [(row["label"], float(row["probability"])) for row in rows] == [("happiness", 0.7), ("anger", 0.5)]
    assert [float(rows[0][f"p_{label}"]) for label in LABELS] == pytest.approx([0.15, 0.7, 0.15])


def test_a_picture_is_written_as_it_is_drawn(tmp_path):
    file = tmp_path / "out.png"
    PictureRecording(file).write(0.0, flat(77))
    np.testing.assert_array_equal(cv2.imread(str(file)), flat(77))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.txt", r"must end in \.mp4"),
        ("out", r"must end in \.mp4"),
        ("nowhere/out.mp4", "nowhere does not exist"),
        ("folder.mp4", "cannot be written"),
        ("source.mp4", "is the source itself"),
        ("link.mp4", "is the source itself"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused(tmp_path, name, message):
    source = write_video(tmp_path / "source.mp4", frames=2)
    (tmp_path / "link.mp4").symlink_to(source)
    (tmp_path / "folder.mp4").mkdir()
    before = source.read_bytes()
    with pytest.raises(InputError, match=message):
        check_target("--record", tmp_path / name, (".mp4",), str(source))
    assert source.read_bytes() == before


def test_a_video_that_opencv_cannot_write_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="cannot be written as a video of 1x1 pixels"):
        VideoRecording(tmp_path / "out.mp4", (1, 1), 25.0)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_the_source_folder_is_not_written_over(tmp_path):
    (tmp_path / "me.png").write_bytes(b"a picture")
    with pytest.raises(InputError, match="is the source itself"):
        check_target("--record", tmp_path / "me.png", (".png",), str(tmp_path))
    check_target("--record", tmp_path / "you.png", (".png",), str(tmp_path))
    (tmp_path / "log.csv").touch()
    check_target("--log", tmp_path / "log.csv", (".csv",), str(tmp_path))


def test_a_video_ends_while_the_disk_has_room_for_its_index(tmp_path, monkeypatch):
    file = tmp_path / "out.mp4"
    recording = VideoRecording(file, (96, 64), 10.0)
    for index in range(5):
        recording.write(index / 10, flat(100))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"out\.mp4: less than 16 MB are free"):
        recording.write(0.5, flat(100))
    recording.close()
    assert len(read_video(file)[0]) == 5
    with pytest.raises(InputError, match="free"):
        VideoRecording(tmp_path / "other.mp4", (96, 64), 10.0)
    assert not (tmp_path / "other.mp4").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_a_log_on_a_full_disk_is_told_of_whenever_it_is_written(tmp_path):
    with pytest.raises(InputError, match=r"--log /dev/full cannot be written \(No space left"):
        Log(Path("/dev/full"), LABELS)
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    log = Log(tmp_path / "full.jsonl", LABELS)
    with pytest.raises(InputError, match=r"full\.jsonl cannot be written \(No space left"):
        log.write(result(flat(0), recognition()))
    with pytest.raises(InputError, match="No space left"):
        log.close()


def test_a_picture_that_cannot_be_finished_leaves_the_earlier_one(tmp_path, monkeypatch):
    file = tmp_path / "out.png"
    write_picture(file, flat(9))
    earlier = file.read_bytes()

    def fill_the_disk(self, data):
        with self.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(InputError, match=r"out\.png cannot be written \(No space left"):
        write_picture(file, flat(200))
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [earlier]


def test_a_log_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        Log(tmp_path / "nowhere" / "out.csv", LABELS)


KILLED = """
import sys, os
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import numpy as np
from realtime_fakes import LABELS, recognition, result
from realtime.recording import Log, VideoRecording
folder = Path(sys.argv[1])
logs = [Log(folder / "out.csv", LABELS), Log(folder / "out.jsonl", LABELS)]
video = VideoRecording(folder / "out.mkv", (320, 240), 30.0)
image_bgr = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)
for index in range(300):
    for log in logs:
        log.write(result(image_bgr, recognition(), index=index, time=index / 30))
    video.write(index / 30, np.roll(image_bgr, index, axis=1))
print("written", flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_killed_program_leaves_all_of_its_logs_and_a_playable_mkv(tmp_path):
    tests = Path(__file__).parent
    code = KILLED.format(root=str(tests.parent), tests=str(tests))
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-9, "written\n")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        assert [int(row["frame"]) for row in csv.DictReader(stream)] == list(range(300))
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(300))
    assert len(read_video(tmp_path / "out.mkv")[0]) > 270, "at most the last second is lost"


def test_a_picture_named_like_a_formula_is_no_formula_in_the_log(tmp_path):
    seen = result(flat(0), recognition(), index=2, time=0.2)
    name = "=cmd|' /C calc'!A0.jpg"
    for suffix in ("csv", "jsonl"):
        log = Log(tmp_path / f"out.{suffix}", LABELS)
        log.write(replace(seen, frame=replace(seen.frame, name=name)))
        log.close()
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == ["'" + name]
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["name"] == name


def test_a_log_can_be_read_by_pandas_in_both_forms(tmp_path):
    for suffix in ("csv", "jsonl"):
        log = Log(tmp_path / f"out.{suffix}", LABELS)
        log.write(result(flat(0), recognition(unsure=True, number=4), index=2, time=0.2))
        log.close()
    table = pd.read_csv(tmp_path / "out.csv")
    lines = pd.read_json(tmp_path / "out.jsonl", lines=True)
    assert list(table) == list(lines) == log_columns(LABELS)
    assert table.iloc[0]["unsure"] == 1 and bool(lines.iloc[0]["unsure"])
    assert table["face"][0] == lines["face"][0] == 4


def test_an_animation_that_cannot_be_written_is_told_of_and_leaves_the_earlier_one(tmp_path, monkeypatch):
    file = tmp_path / "out.webp"
    file.write_bytes(b"earlier")
    recording = AnimationRecording(file)
    recording.write(0.0, flat(9))
    monkeypatch.setattr(cv2, "imwriteanimation", lambda *_: False)
    with pytest.raises(InputError, match=r"--record .*out\.webp could not be written"):
        recording.close()
    assert [each.name for each in tmp_path.iterdir()] == ["out.webp"] and file.read_bytes() == b"earlier"


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_shows_each_picture_as_long_as_it_lasted(tmp_path, suffix):
    file = tmp_path / f"out{suffix}"
    recording = AnimationRecording(file)
    for time, value in ((5.0, 0), (5.05, 60), (5.5, 120), (6.0, 240), (6.25, 180)):
        recording.write(time, flat(value))
    recording.close()
    _, animation = cv2.imreadanimation(str(file))
    assert list(animation.durations) == pytest.approx([500, 500, 250, 120], abs=10)
    assert [each[..., :3].mean() for each in animation.frames] == pytest.approx([0, 120, 240, 180], abs=20)
