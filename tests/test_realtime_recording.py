import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from realtime_fakes import read_times, read_video, write_video

from common.errors import InputError
from realtime.sinks.files import check_target, claim, write_picture
from realtime.sinks.recording import AnimationRecording, VideoRecording, letterbox


def flat(value, size=(96, 64)):
    return np.full((size[1], size[0], 3), value, np.uint8)


def record(file, frames, size=(96, 64), fps=10.0):
    """Write frames, given as (time, image), and return the video's frames."""
    recording = VideoRecording(file, size, fps)
    for time, image_bgr in frames:
        recording.write(time, image_bgr)
    recording.close()
    return read_video(file)[0]


@pytest.mark.parametrize(("suffix", "tolerance"), [(".mp4", 0.001), (".mov", 0.001), (".mkv", 0.001), (".avi", 0.05)])
def test_frames_keep_their_own_times(tmp_path, suffix, tolerance):
    """Time starts with the first frame; a frame that is not later than the last one is skipped."""
    times = [0.0, 0.1, 0.23, 0.5, 0.6, 3.0, 3.1]
    written = [*times[:2], 0.1, 0.05, *times[2:]]
    file = tmp_path / f"out{suffix}"
    images = record(file, [(500 + time, flat(50 + round(50 * time))) for time in written])
    assert read_times(file) == pytest.approx(times, abs=tolerance)
    assert [image.mean() for image in images] == pytest.approx([50 + 50 * time for time in times], abs=4)


@pytest.mark.parametrize("size", [(97, 65), (1, 1)])
def test_odd_side_is_padded_without_a_border(tmp_path, size):
    images = record(tmp_path / "out.mp4", [(index / 10, flat(150, size)) for index in range(3)], size)
    assert [image.shape for image in images] == [(size[1] + size[1] % 2, size[0] + size[0] % 2, 3)] * 3
    assert all(image.min() > 145 and image.max() < 155 for image in images)


@pytest.mark.parametrize("rate", [3, 30])
def test_video_is_h264_with_a_keyframe_every_second(tmp_path, rate):
    import av

    record(tmp_path / "out.mp4", [(index / rate, flat(index)) for index in range(4 * rate + 1)], fps=rate)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.time_base
        packets = [packet for packet in container.demux(stream) if packet.is_keyframe and packet.pts is not None]
        assert [float((packet.pts or 0) * stream.time_base) for packet in packets] == pytest.approx([0, 1, 2, 3, 4])


def test_frames_of_another_size_are_fitted_into_the_first_size(tmp_path):
    sizes = [(96, 64), (64, 96), (960, 640), (31, 7)]
    images = record(tmp_path / "out.mp4", [(index / 10, flat(200, size)) for index, size in enumerate(sizes)])
    assert [image.shape for image in images] == [(64, 96, 3)] * 4
    assert images[1][:, :20].mean() < 5 and images[1][:, 40:56].mean() == pytest.approx(200, abs=4)
    fitted = letterbox(flat(200, (40, 80)), (100, 60))
    assert fitted.shape == (60, 100, 3) and (fitted[:, 35:65] == 200).all() and not fitted[:, :35].any()


def test_target_that_cannot_be_written_or_is_in_the_source_is_refused(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    source = write_video(tmp_path / "deep" / "source.mp4", frames=2)
    (tmp_path / "link.mp4").symlink_to(source)
    before = source.read_bytes()
    for name, place, message in (
        ("nowhere/out.mp4", source, "nowhere does not exist"),
        ("folder.mp4", source, "cannot be written"),
        ("deep/source.mp4", source, "is the source itself"),
        ("link.mp4", source, "is the source itself"),
        ("deep/source.mp4", tmp_path, "is the source itself"),
    ):
        with pytest.raises(InputError, match=message):
            check_target("--record", tmp_path / name, str(place), overwrite=True)
    assert source.read_bytes() == before
    (tmp_path / "log.csv").write_bytes(b"content")
    check_target("--log", tmp_path / "log.csv", str(tmp_path), overwrite=True)


def test_existing_file_is_refused_without_overwrite(tmp_path):
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


def test_video_ends_while_the_disk_has_room_for_its_index(tmp_path, monkeypatch):
    recording = VideoRecording(tmp_path / "out.mp4", (96, 64), 10.0)
    for index in range(5):
        recording.write(index / 10, flat(100))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"out\.mp4 has less than 16 MB free"):
        recording.write(0.5, flat(100))
    recording.close()
    assert len(read_video(tmp_path / "out.mp4")[0]) == 5
    with pytest.raises(InputError, match="free"):
        VideoRecording(tmp_path / "other.mp4", (96, 64), 10.0)
    assert not (tmp_path / "other.mp4").exists()
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"out\.mp4 cannot be written as a video of 70000x2 pixels \("):
        VideoRecording(tmp_path / "out.mp4", (70_000, 2), 25.0)


def test_failed_picture_or_animation_leaves_the_earlier_one(tmp_path, monkeypatch):
    picture, animation = tmp_path / "out.png", tmp_path / "out.webp"
    write_picture(picture, flat(9))
    np.testing.assert_array_equal(cv2.imread(str(picture)), flat(9))
    animation.write_bytes(b"earlier")
    before = {file: file.read_bytes() for file in (picture, animation)}

    def fill_the_disk(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(InputError, match=r"out\.png cannot be written \(No space left"):
        write_picture(picture, flat(200))
    recording = AnimationRecording(animation)
    recording.write(0.0, flat(9))
    monkeypatch.setattr(cv2, "imwriteanimation", lambda *_: False)
    with pytest.raises(InputError, match=r"--record .*out\.webp cannot be written"):
        recording.close()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animation_keeps_times_is_small_and_ends(tmp_path, suffix):
    file = tmp_path / f"out{suffix}"
    recording = AnimationRecording(file)
    for time, value in ((5.0, 0), (5.05, 60), (5.5, 120), (6.0, 240), (6.25, 180)):
        recording.write(time, flat(value, (800, 600)))
    with pytest.raises(InputError, match="ends after 30 seconds"):
        recording.write(36.0, flat(0))
    recording.close()
    _, animation = cv2.imreadanimation(str(file))
    assert animation.frames[0].shape[:2] == (300, 400)
    assert list(animation.durations) == pytest.approx([500, 500, 250, 120], abs=10)
    assert [each[..., :3].mean() for each in animation.frames] == pytest.approx([0, 120, 240, 180], abs=20)


CHILD = """
import sys, os
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import numpy as np
from realtime_fakes import LABELS, recognition, result
from realtime.sinks.log import FaceLog
from realtime.sinks.recording import VideoRecording
from common.errors import InputError
folder = Path(sys.argv[1])
image_bgr = np.random.default_rng(1).integers(0, 60, (120, 160, 3), np.uint8)
logs = [FaceLog(folder / "out.csv", LABELS), FaceLog(folder / "out.jsonl", LABELS)]
videos = [VideoRecording(folder / f"out.{{suffix}}", (160, 120), 30.0) for suffix in ("mp4", "mov", "mkv", "avi")]
def write(output, index):
    if output in logs:
        output.write(result(image_bgr, recognition(), index=index, time=index / 30))
    else:
        output.write(index / 30, np.roll(image_bgr, index, axis=1))
"""
KILLED = """
for index in range(100):
    for output in logs + videos:
        write(output, index)
print("written", flush=True)
os.kill(os.getpid(), 9)
"""
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))  # writes fail as on a full disk
for output in logs + videos:
    try:
        for index in range(2000):
            write(output, index)
    except InputError as error:
        print(index, error)
    try:
        output.close()
    except InputError as error:
        assert output in videos
"""


def run_child(code, folder):
    """Run a program that writes all kinds of files; return its result, and the frames in each file."""
    tests = Path(__file__).parent
    code = CHILD.format(root=str(tests.parent), tests=str(tests)) + code
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    with (folder / "out.csv").open(newline="", encoding="utf-8") as stream:
        rows = [int(row["frame"]) for row in csv.DictReader(stream) if row["p_neutral"] == "0.15"]
    lines = [json.loads(line)["frame"] for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = []
    for suffix in ("mp4", "mov", "mkv", "avi"):
        times = read_times(folder / f"out.{suffix}")
        assert times == pytest.approx([index / 30 for index in range(len(times))], abs=0.001)
        counts.append(len(times))
    assert rows == list(range(len(rows))) and lines == list(range(len(lines)))
    return ended, [len(rows), len(lines), *counts]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_killed_program_keeps_its_logs_and_loses_at_most_a_second_of_video(tmp_path):
    ended, counts = run_child(KILLED, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-9, "written\n", "")
    assert counts[:2] == [100, 100] and min(counts[2:]) >= 70


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses Linux's limit on the size of files")
def test_full_disk_keeps_all_that_was_written(tmp_path):
    ended, counts = run_child(FULL, tmp_path)
    lines = ended.stdout.splitlines()
    assert (ended.returncode, ended.stderr, len(lines)) == (0, "", 6)
    assert all("cannot be written (File too large)" in line for line in lines)
    written = [int(line.split()[0]) for line in lines]
    assert counts[:2] == written[:2] and all(
        count >= index - 15 > 0 for count, index in zip(counts, written, strict=True)
    )
