import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from realtime_fakes import FACE, LABELS, read_times, read_video, recognition, result, write_video

from common.errors import InputError
from realtime.sinks.recording import (
    AnimationRecording,
    Log,
    PictureRecording,
    VideoRecording,
    check_suffix,
    check_target,
    claim,
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


@pytest.mark.parametrize(("suffix", "tolerance"), [(".mp4", 0.001), (".mov", 0.001), (".mkv", 0.001), (".avi", 0.05)])
def test_frames_keep_their_own_times_so_that_a_video_plays_at_the_true_speed(tmp_path, suffix, tolerance):
    times = [0.0, 0.1, 0.23, 0.5, 0.6, 3.0, 3.1]
    recording = VideoRecording(tmp_path / f"out{suffix}", (96, 64), 10.0)
    for time in times:
        recording.write(500 + time, flat(50 + round(50 * time)))
    recording.close()
    assert read_times(tmp_path / f"out{suffix}") == pytest.approx(times, abs=tolerance)
    values = [frame.mean() for frame in read_video(tmp_path / f"out{suffix}")[0]]
    assert values == pytest.approx([50 + 50 * time for time in times], abs=4)


def test_a_frame_that_is_no_later_than_the_one_before_is_left_out(tmp_path):
    recording = VideoRecording(tmp_path / "out.mp4", (96, 64), 10.0)
    for time in (1.0, 1.1, 1.1, 0.4, 1.2):
        recording.write(time, flat(100))
    recording.close()
    assert read_times(tmp_path / "out.mp4") == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("size", [(97, 65), (1, 1), (15, 8)])
def test_an_odd_side_gets_one_more_row_or_column(tmp_path, size):
    recording = VideoRecording(tmp_path / "out.mp4", size, 10.0)
    for index in range(3):
        recording.write(index / 10, flat(150, size))
    recording.close()
    frames, _ = read_video(tmp_path / "out.mp4")
    assert [frame.shape for frame in frames] == [(size[1] + size[1] % 2, size[0] + size[0] % 2, 3)] * 3
    assert all(frame.min() > 145 and frame.max() < 155 for frame in frames), "no black border"


def test_a_video_has_a_keyframe_every_second_whatever_its_frame_rate(tmp_path):
    import av

    for rate in (3, 30):
        recording = VideoRecording(tmp_path / "out.mp4", (96, 64), rate)
        for index in range(4 * rate + 1):
            recording.write(index / rate, flat(index))
        recording.close()
        with av.open(str(tmp_path / "out.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert stream.time_base
            keys = [float(packet.pts * stream.time_base) for packet in container.demux(stream)
                    if packet.is_keyframe and packet.pts is not None]  # fmt: skip
        assert keys == pytest.approx([0, 1, 2, 3, 4])


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


def test_the_log_has_a_row_per_face_and_each_frame_is_written_at_once(tmp_path):
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
        check_target("--record", tmp_path / name, str(source), overwrite=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["out.txt", "out"])
def test_a_suffix_that_names_no_format_is_refused(name):
    with pytest.raises(InputError, match=r"must end in \.mp4"):
        check_suffix("--record", Path(name), (".mp4",))


def test_an_existing_file_is_refused_unless_it_may_be_replaced(tmp_path):
    file, gone = tmp_path / "out.csv", tmp_path / "link.csv"
    file.touch()
    gone.symlink_to(tmp_path / "away.csv")
    for each in (file, gone):
        for refuse in (lambda each: check_target("--log", each, "0"), lambda each: claim("--log", each)):
            with pytest.raises(InputError, match=r"--log .*\.csv exists already; give another name, or --overwrite"):
                refuse(each)
    check_target("--log", file, "0", overwrite=True)
    assert claim("--log", file, overwrite=True) is False
    assert claim("--log", tmp_path / "new.csv") is True and (tmp_path / "new.csv").read_bytes() == b""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_has_nothing_to_lose_and_is_accepted(tmp_path):
    os.mkfifo(tmp_path / "faces.jsonl")
    check_target("--log", tmp_path / "faces.jsonl", "0")
    assert claim("--log", tmp_path / "faces.jsonl") is False


def test_a_video_of_a_size_that_no_codec_takes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"out\.mp4 cannot be written as a video of 70000x2 pixels \("):
        VideoRecording(tmp_path / "out.mp4", (70_000, 2), 25.0)


@pytest.mark.parametrize(("name", "suffix"), [("me.png", ".png"), ("deep/clip.mp4", ".mp4")])
def test_a_picture_or_video_of_the_source_folder_is_not_written_over(tmp_path, name, suffix):
    (tmp_path / "deep").mkdir()
    (tmp_path / name).write_bytes(b"a picture")
    with pytest.raises(InputError, match="is the source itself"):
        check_target("--record", tmp_path / name, str(tmp_path), overwrite=True)
    check_target("--record", tmp_path / f"you{suffix}", str(tmp_path))
    (tmp_path / "log.csv").touch()
    check_target("--log", tmp_path / "log.csv", str(tmp_path), overwrite=True)


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


CHILD = """
import sys, os
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import numpy as np
from realtime_fakes import LABELS, recognition, result
from realtime.sinks.recording import Log, VideoRecording
from common.errors import InputError
folder = Path(sys.argv[1])
image_bgr = np.random.default_rng(1).integers(0, 60, (120, 160, 3), np.uint8)
logs = [Log(folder / "out.csv", LABELS), Log(folder / "out.jsonl", LABELS)]
videos = [VideoRecording(folder / f"out.{{suffix}}", (160, 120), 30.0) for suffix in ("mp4", "mov", "mkv", "avi")]
"""
KILLED = (
    CHILD
    + """
for index in range(100):
    for log in logs:
        log.write(result(image_bgr, recognition(), index=index, time=index / 30))
    for video in videos:
        video.write(index / 30, np.roll(image_bgr, index, axis=1))
print("written", flush=True)
os.kill(os.getpid(), 9)
"""
)
# A limit on the size of files stands for a full disk: the system refuses to write more.
FULL = (
    CHILD
    + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))
for output in logs + videos:
    try:
        for index in range(2000):
            if output in logs:
                output.write(result(image_bgr, recognition(), index=index, time=index / 30))
            else:
                output.write(index / 30, np.roll(image_bgr, index, axis=1))
    except InputError as error:
        print(index, error)
    try:
        output.close()
    except InputError as error:
        assert output in videos
"""
)


def run_child(code, folder):
    tests = Path(__file__).parent
    code = code.format(root=str(tests.parent), tests=str(tests))
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_killed_program_leaves_all_of_its_logs_and_videos_that_lack_at_most_a_second(tmp_path):
    ended = run_child(KILLED, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-9, "written\n", "")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        assert [int(row["frame"]) for row in csv.DictReader(stream)] == list(range(100))
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(100))
    for suffix in ("mp4", "mov", "mkv", "avi"):
        times = read_times(tmp_path / f"out.{suffix}")
        assert times == pytest.approx([index / 30 for index in range(len(times))], abs=0.001)
        assert times[-1] >= 99 / 30 - 1, suffix


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses Linux's limit on the size of files")
def test_what_was_written_before_the_system_refused_more_can_be_read(tmp_path):
    ended = run_child(FULL, tmp_path)
    told = ended.stdout.splitlines()
    assert (ended.returncode, ended.stderr, len(told)) == (0, "", 6)
    assert all("cannot be written (File too large)" in line for line in told)
    counts = [int(line.split()[0]) for line in told]
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["frame"]) for row in rows] == list(range(counts[0])) and rows[-1]["p_neutral"] == "0.15"
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(counts[1]))
    for suffix, count in zip(("mp4", "mov", "mkv", "avi"), counts[2:], strict=True):
        times = read_times(tmp_path / f"out.{suffix}")
        assert times == pytest.approx([index / 30 for index in range(len(times))], abs=0.001)
        assert len(times) >= count - 15 > 0, suffix


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
        log.write(result(flat(0), recognition(unsure=True, track_id=4), index=2, time=0.2))
        log.close()
    table = pd.read_csv(tmp_path / "out.csv")
    lines = pd.read_json(tmp_path / "out.jsonl", lines=True)
    assert list(table) == list(lines) == log_columns(LABELS)
    assert table.iloc[0]["unsure"] == 1 and bool(lines.iloc[0]["unsure"])
    assert table["face"][0] == lines["face"][0] == 4
    assert table["label"][0] == lines["label"][0] == "unsure", "the label that is shown"


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
