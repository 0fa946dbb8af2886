"""The parts of the benchmark that count: what it counts is checked on inputs whose answer is known."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from conftest import ROOT
from realtime_fakes import write_video

from benchmarks import realtime
from common.errors import InputError
from inference.faces import Face
from realtime.tracking import TrackedFace


def test_tracking_is_counted_against_full_detection(tmp_path, monkeypatch):
    """Full detection has two faces, tracking one of them and a box where there is none."""
    first, second, ghost = Face(0, 0, 10, 10, 0.9), Face(50, 0, 10, 10, 0.9), Face(50, 40, 10, 10, 0.9)

    class Detector:
        def __init__(self, *_):
            pass

        def detect(self, image_rgb):
            return [first, second]

    class TrackingConfig:
        def __init__(self, *_):
            pass

        def update(self, image_rgb, time):
            return [TrackedFace(1, first, 1), TrackedFace(2, ghost, 2)]

    monkeypatch.setattr(realtime, "FaceDetector", Detector)
    monkeypatch.setattr(realtime, "Tracker", TrackingConfig)
    rows = realtime.measure_tracking([write_video(tmp_path / f"{name}.mp4", frames=6) for name in "ab"])
    assert [(row["faces"], row["kept"], row["boxes"], row["unsupported"]) for row in rows] == [
        (12, 6, 12, 6),
        (12, 6, 12, 6),
        (24, 12, 24, 12),
    ]


def test_the_paced_source_gives_frames_at_their_time_and_skips_those_that_a_slow_reader_missed():
    images_bgr = [np.full((4, 4, 3), index, np.uint8) for index in range(12)]
    taken = []
    for frame in realtime.paced(images_bgr):
        assert frame.image_bgr[0, 0, 0] == frame.index
        assert realtime.time.monotonic() >= frame.captured
        taken.append(frame.index)
        realtime.time.sleep(0.1)  # three frames' time
    assert taken[0] == 0 and len(taken) <= 5 and all(b - a >= 2 for a, b in pairwise(taken))


def test_fer_that_does_not_run_is_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"--with-fer .* does not run fer"):
        realtime.compare_fer(tmp_path / "x.mp4", 10, 2, 1, None, tmp_path / "python")  # pyright: ignore[reportArgumentType]


def test_the_program_whose_first_frame_is_timed_draws_it(tmp_path):
    video = write_video(tmp_path / "clip.mp4", frames=3)
    command = [sys.executable, "-c", realtime.FIRST_FRAME, str(video)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
