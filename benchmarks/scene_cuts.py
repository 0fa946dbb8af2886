"""Count missed and false scene cuts of the realtime program.

    python -m benchmarks.scene_cuts --data ../shared/data

Cuts: pieces of 10 to 40 frames of the videos in `DATA/videos` follow each other. Neighbours come from different videos,
because a jump within a video shows the same people. The pieces are shown at 20, 40, 60, 80 and 100 % of their
brightness, with camera noise, in one size.

No cuts: generated clips of what a webcam sees. A virtual camera pans, zooms and shakes over frames, photos and videos
of the data, while the exposure drifts, lights are switched and flashes occur. A third of the clips has 10 or 15 frames
per second.

The thresholds of `realtime.scenes` were chosen with seeds 1 to 5; this benchmark uses another one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from benchmarks.common import JsonFile, Row, finish, read_frames
from common.command_line import run
from common.errors import InputError
from realtime.scenes import CutDetector

SEED = 11
CUTS, MINUTES = 200, 10  # cuts in all, and length of the generated clips
BRIGHTNESSES = (0.2, 0.4, 0.6, 0.8, 1.0)
SIZE = (640, 360)  # pixels: width and height of the joined frames
CLIP_SIZE = (320, 180)  # the same of the generated frames
CLIP_SECONDS = 20.0
RATES = (30.0, 30.0, 30.0, 30.0, 15.0, 10.0)  # frames per second of the generated clips, in turn
PIECE = (10, 40)  # frames: shortest and longest piece between two cuts
NOISE = (1.0, 6.0)  # gray levels of 255: standard deviation of the camera noise


@dataclass(frozen=True)
class Footage:
    """Material for the clips; all uint8 BGR, (h, w, 3).

    Attributes:
        videos: Frames of each video, by name, all in one size.
        photos: Photos of any size.
    """

    videos: dict[str, list[np.ndarray]]
    photos: list[np.ndarray]


def read_footage(data: Path) -> Footage:
    """Read the videos, in one size, and the photos.

    Raises:
        InputError: there are fewer than two videos to cut between.
    """
    videos = {}
    for file in sorted(file for file in (data / "videos").glob("*") if file.is_file()):
        videos[file.name] = [cv2.resize(each, SIZE, interpolation=cv2.INTER_AREA) for each in read_frames(file)[0]]
    if len(videos) < 2:
        raise InputError(f"--data {data} holds fewer than two videos; give a folder with videos/ and photos/ in it")
    photos = [cv2.imread(str(file)) for file in sorted((data / "photos").glob("*"))]
    return Footage(videos, [photo for photo in photos if photo is not None])


class Noise:
    """Camera noise from a few patterns that are shifted at random.

    Args:
        random: Random generator.
        size: Width and height, pixels.
        deviation: Standard deviation, gray levels of 255.
    """

    def __init__(self, random: np.random.Generator, size: tuple[int, int], deviation: float):
        self._random = random
        self._patterns = random.normal(0, deviation, (4, size[1], size[0], 3)).round().astype(np.int16)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return an image in gray levels with noise, as uint8."""
        pattern = self._patterns[self._random.integers(4)]
        pattern = np.roll(pattern, self._random.integers(pattern.shape[1]), axis=1)
        return (image + pattern).clip(0, 255).astype(np.uint8)


def joined_pieces(
    videos: dict[str, list[np.ndarray]], cuts: int, brightness: float, seed: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield frames, uint8 BGR, and whether a cut precedes each."""
    random = np.random.default_rng([seed, round(100 * brightness)])
    height, width = next(iter(videos.values()))[0].shape[:2]
    noise = Noise(random, (width, height), NOISE[0])
    name = ""
    for piece in range(cuts + 1):
        name = str(random.choice([other for other in videos if other != name]))
        frames = videos[name]
        length = min(int(random.integers(PIECE[0], PIECE[1] + 1)), len(frames))
        start = int(random.integers(len(frames) - length + 1))
        for index, image_bgr in enumerate(frames[start : start + length]):
            yield noise(brightness * image_bgr), piece > 0 and index == 0


def count_cuts(detector: CutDetector, frames: Iterator[tuple[np.ndarray, bool]]) -> tuple[int, int, int]:
    """Return the number of missed cuts, of false cuts, and of cuts."""
    missed = false = cuts = 0
    for image_bgr, is_cut in frames:
        is_detected = detector.is_cut(image_bgr)
        missed, false, cuts = missed + (is_cut and not is_detected), false + (is_detected and not is_cut), cuts + is_cut
    return missed, false, cuts


def webcam_clip(footage: Footage, rate: float, seed: int) -> Iterator[np.ndarray]:
    """Yield the frames, uint8 BGR, of `CLIP_SECONDS` of one scene: a photo, or a video forwards and backwards."""
    random = np.random.default_rng([seed, 1])
    scenes = [*footage.videos.values(), *([photo] for photo in footage.photos)]
    frames = scenes[random.integers(len(scenes))]
    noise, times = Noise(random, CLIP_SIZE, float(random.uniform(*NOISE))), np.arange(0, CLIP_SECONDS, 1 / rate)
    left, top, zoom, gain = (_path(random, times, *limits) for limits in ((0, 1), (0, 1), (0, 1.2), (0.3, 1.3)))
    for event in random.uniform(0, CLIP_SECONDS, 4):  # flashes, and lights that are switched
        gain[(times >= event) & (times < event + random.uniform(0.03, 0.1))] *= random.uniform(1.5, 4.0)
        gain[(times >= event) & (times < event + random.uniform(1, 4))] *= random.uniform(0.3, 1.0)
    for index in range(len(times)):
        place = int(index * 30 / rate) % max(1, 2 * len(frames) - 2)
        world_bgr = frames[min(place, 2 * len(frames) - 2 - place)] if len(frames) > 1 else frames[0]
        size = np.array([world_bgr.shape[1], world_bgr.shape[0]])
        scale = (CLIP_SIZE / size).max() * 1.25 * 2 ** zoom[index]
        corner = (scale * size - CLIP_SIZE) * (left[index], top[index]) + random.normal(0, 1, 2)  # shakes
        matrix = np.array([[scale, 0, -corner[0]], [0, scale, -corner[1]]])
        image_bgr = cv2.warpAffine(world_bgr, matrix, CLIP_SIZE, borderMode=cv2.BORDER_REFLECT)
        yield noise(image_bgr * gain[index])


def _path(random: np.random.Generator, times: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a value between two bounds at each time; it moves to another one every second."""
    knots = np.arange(CLIP_SECONDS + 1)
    return np.interp(times, knots, random.uniform(low, high, len(knots)))


def count_false(footage: Footage) -> tuple[int, int]:
    """Return the number of cuts detected in generated clips, all of them false, and the number of frames."""
    false = frames = 0
    for clip in range(round(60 * MINUTES / CLIP_SECONDS)):
        detector = CutDetector()
        for image_bgr in webcam_clip(footage, RATES[clip % len(RATES)], 1000 * SEED + clip):
            false, frames = false + detector.is_cut(image_bgr), frames + 1
    return false, frames


def main(data: Annotated[Path, typer.Option(help="Folder with videos/ and photos/.")], output: JsonFile = None) -> None:
    """Count missed and false scene cuts."""
    footage = read_footage(data)
    rows: list[Row] = []
    for brightness in BRIGHTNESSES:
        frames = joined_pieces(footage.videos, CUTS // len(BRIGHTNESSES), brightness, SEED)
        missed, false, cuts = count_cuts(CutDetector(), frames)
        rows.append({"work": f"cuts, brightness {brightness:.0%}", "cuts": cuts, "missed": missed, "false": false})
    rows.append({"work": "all cuts", **{key: sum(row[key] for row in rows) for key in ("cuts", "missed", "false")}})
    false, frames = count_false(footage)
    rows.append({"work": f"{MINUTES} generated minutes without a cut", "false": false, "frames": frames})
    finish(rows, output)


if __name__ == "__main__":
    run(main)
