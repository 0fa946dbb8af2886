"""What is a cut, and what is none; each on pictures with coarse structure, or on the data's videos where they are."""

import cv2
import numpy as np
import pytest
from conftest import ROOT
from realtime_fakes import scene

from benchmarks.realtime import read_frames
from benchmarks.scene_cuts import count_cuts, joined_pieces
from realtime.scenes import CutDetector

DATA = ROOT.parent / "shared" / "data"
PATTERN = np.random.default_rng(5).normal(0, 1, (240, 320, 3)).astype(np.float32)
WIDE = scene(7, (960, 720))  # a scene that is larger than the frame


def cuts(*frames: np.ndarray) -> list[int]:
    """Return the places of the frames that begin a scene."""
    detector = CutDetector()
    return [index for index, frame in enumerate(frames) if detector.is_cut(frame)]


def noisy(image: np.ndarray, seed: int, deviation: float = 4.0) -> np.ndarray:
    pattern = np.roll(PATTERN, (37 * seed, 11 * seed), axis=(0, 1))[: image.shape[0], : image.shape[1]]
    return (image + deviation * pattern).clip(0, 255).astype(np.uint8)


def window(left: float, top: float = 240.0, zoom: float = 1.0) -> np.ndarray:
    matrix = np.array([[zoom, 0, -left * zoom], [0, zoom, -top * zoom]])
    return cv2.warpAffine(WIDE, matrix, (320, 240))


@pytest.mark.parametrize("brightness", [0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_cut_is_detected_at_every_brightness(brightness):
    frames = [noisy(brightness * scene(index // 8), index, 2.0) for index in range(32)]
    assert cuts(*frames) == [8, 16, 24]


def test_frame_of_another_size_is_a_cut():
    assert cuts(scene(0), scene(0), scene(0, (160, 120)), scene(0, (160, 120)), scene(0)) == [2, 4]


@pytest.mark.parametrize("gains", [[1.6], [3.0] * 3, [8.0], *([light ** (0.9**step) for step in range(30)]
                                   for light in (0.15, 0.4, 2.5))])  # fmt: skip
def test_flash_and_switched_light_are_no_cut(gains):
    gains = [*[1.0] * 6, *gains, *[1.0] * 6]
    assert cuts(*[noisy(each * 0.75 * scene(0), index) for index, each in enumerate(gains)]) == []


def test_black_frames_and_fade_through_black_are_a_cut_only_to_another_scene():
    black = [noisy(np.zeros((240, 320, 3)), index) for index in range(4)]
    assert cuts(*[scene(0)] * 5, *black, *[scene(0)] * 5) == []
    assert cuts(*[scene(0)] * 5, *black, *[scene(1)] * 5) == [9]
    gains = [*np.linspace(1, 0, 20), *np.linspace(0, 1, 20)]
    (found,) = cuts(*[noisy(gain * scene(index // 20), index, 2.0) for index, gain in enumerate(gains)])
    assert 20 < found < 26
    assert cuts(*[noisy(gain * scene(0), index, 2.0) for index, gain in enumerate(gains)]) == []


@pytest.mark.parametrize("step", [4, 12, 30])  # pixels of 320 in each frame
def test_pan_is_no_cut(step):
    lefts = [100.0] * 6 + [100 + step * index for index in range(500 // step)]
    assert cuts(*[noisy(window(left), index) for index, left in enumerate(lefts)]) == []


@pytest.mark.parametrize("speed", [10, 25])  # pixels of 320 in each frame
def test_person_in_front_of_camera_is_no_cut(speed):
    frames = [noisy(scene(0), index) for index in range(6)]
    person = scene(1, (200, 240))
    for index, right in enumerate(range(0, 520, speed)):
        frame = scene(0)
        left = max(0, right - 200)
        frame[:, left : min(320, right)] = person[:, left - right + 200 : min(320, right) - right + 200]
        frames.append(noisy(frame, index))
    assert cuts(*frames, *[scene(0)] * 5) == []


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")
@pytest.mark.parametrize("brightness", [0.2, 1.0])
def test_cuts_in_one_room_are_detected(brightness):
    """The hard part of `benchmarks.scene_cuts`."""
    videos = {}
    for name in ("again.mkv", "milk.mkv", "walk.mkv"):
        frames, _ = read_frames(DATA / "videos" / name, 50)
        videos[name] = [cv2.resize(frame, (320, 180), interpolation=cv2.INTER_AREA) for frame in frames]
    missed, wrong, count = count_cuts(CutDetector(), joined_pieces(videos, 10, brightness, 23))
    assert (missed, wrong, count) == (0, 0, 10)
