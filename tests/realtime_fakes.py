"""Detector and classifier without networks, and test videos."""

import os
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg reads it once, with the first video

import cv2
import numpy as np

from configuration import FACES, FaceConfig
from inference.faces import Face
from realtime.recognition import Recognition, Result
from realtime.sources import Frame

LABELS = ("anger", "happiness", "neutral")
FACE = Face(20.0, 16.0, 24.0, 30.0, 0.99)


class FakeDetector:
    """Finds the same faces in every picture and remembers the pictures."""

    def __init__(self, *faces: Face):
        self.faces = list(faces)
        self.seen: list[np.ndarray] = []

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        self.seen.append(image_rgb)
        return self.faces


class FakeClassifier:
    """Finds the first face of a batch happy with 0.7, the others angry with 0.6, and remembers the batches."""

    labels = LABELS
    abstention_threshold = 0.0

    def __init__(self, faces: FaceConfig = FACES):
        self.faces = faces
        self.batches: list[np.ndarray] = []

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(images)
        rows = [[0.1, 0.7, 0.2], *[[0.6, 0.3, 0.1]] * (len(images) - 1)]
        return np.array(rows[: len(images)], np.float32).reshape(-1, 3)


def recognition(
    face: Face = FACE, label: str = "happiness", probability: float = 0.7, track_id: int = 0, unsure: bool = False
) -> Recognition:
    rest = (1 - probability) / (len(LABELS) - 1)
    probabilities = {name: probability if name == label else rest for name in dict.fromkeys([*LABELS, label])}
    return Recognition(face, probabilities, track_id, label, unsure)


def result(image_bgr: np.ndarray, *recognitions: Recognition, index: int = 0, time: float = 0.0) -> Result:
    return Result(Frame(image_bgr, index, time, "clip.mp4"), list(recognitions))


def write_video(file: Path, frames: int = 12, fps: float = 10.0, size: tuple[int, int] = (96, 64)) -> Path:
    """Write a video of one scene whose frames grow brighter. Its fine structure keeps the file from being tiny."""
    pattern = 0.6 * scene(7, size) + np.random.default_rng(7).integers(0, 100, (size[1], size[0], 3))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    for index in range(frames):
        writer.write((pattern * (0.2 + 0.8 * index / frames)).astype(np.uint8))
    writer.release()
    return file


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    """Return a picture with coarse structure, another one for each seed, and the same one at each size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def read_video(file: Path) -> tuple[list[np.ndarray], float]:
    """Return a video's frames and its frames per second."""
    capture, frames = cv2.VideoCapture(str(file)), []
    fps = capture.get(cv2.CAP_PROP_FPS)
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames, fps


def read_times(file: Path) -> list[float]:
    """Return the times of a video's frames, in seconds."""
    capture, times = cv2.VideoCapture(str(file)), []
    while capture.read()[0]:
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    return times
