"""The face type, the checks of images and options, and the choice of the face to classify."""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from common.errors import InputError
from common.images import LARGEST_SIDE
from configuration import FaceConfig

DETECTORS = ("mtcnn", "haar")
ALIGNMENTS = ("landmarks", "box")
CELL = 12  # pixels: side of P-Net's cell, the smallest face that it finds
SIMILAR_AREA = 0.8  # faces with at least this share of the largest area count as equally large


@dataclass(frozen=True)
class Face:
    """A face in an image. Coordinates are pixels of the image; a box may extend beyond its border.

    Attributes:
        left: Left edge of the box.
        top: Upper edge of the box.
        width: Width of the box.
        height: Height of the box.
        confidence: 0-1; comparable only between faces of one detector.
        landmarks: float32 (5, 2), x and y of pixel centres, in the order of `preprocessing.tables.LANDMARKS`, left and
            right as the viewer sees them; None if the detector gives none.
    """

    left: float
    top: float
    width: float
    height: float
    confidence: float
    landmarks: np.ndarray | None = None


class Detector(Protocol):
    """A face detector: `FaceDetector` or `HaarDetector`."""

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Return the faces in an image, by decreasing confidence."""
        ...


def check_options(options: FaceConfig) -> None:
    """Refuse options that are out of range.

    Raises:
        InputError: Names the option and the accepted values.
    """
    rules = {
        "size": (8 <= options.size <= 1024, "8 to 1024 pixels"),
        "channels": (options.channels in (1, 3), "1 (gray) or 3 (RGB)"),
        "align": (options.align in ALIGNMENTS, " or ".join(ALIGNMENTS)),
        "min_face_size": (options.min_face_size >= CELL, f"{CELL} pixels or more"),
        "largest_side": (options.largest_side >= 100, "100 pixels or more"),
        "thresholds": (
            len(options.thresholds) == 3 and all(0 <= value < 1 for value in options.thresholds),
            "three numbers from 0 to below 1",
        ),
    }
    for name, (is_accepted, accepted) in rules.items():
        if not is_accepted:
            value = getattr(options, name)
            raise InputError(f"{name} {value!r} cannot be used; accepted: {accepted} (see --help and configuration.py)")


def as_rgb(image_rgb: np.ndarray) -> np.ndarray:
    """Return an image as contiguous uint8 (h, w, 3). This is the only check of images that callers pass.

    Raises:
        ValueError: The array is not uint8 (h, w, 3), (h, w, 1) or (h, w), or a side is not 1 to 32,766 pixels.
    """
    shape, dtype = (getattr(image_rgb, name, None) for name in ("shape", "dtype"))
    if (
        not isinstance(image_rgb, np.ndarray)
        or dtype != np.uint8
        or len(shape := image_rgb.shape) not in (2, 3)
        or not 1 <= min(shape[:2]) <= max(shape[:2]) <= LARGEST_SIDE
        or (len(shape) == 3 and shape[2] not in (1, 3))
    ):
        raise ValueError(
            "an image must be uint8 (h, w, 3) RGB or (h, w) gray, 0-255, without transparency, its sides 1 to "
            f"{LARGEST_SIDE} pixels. Received: {type(image_rgb).__name__} {dtype} {shape}"
        )
    if len(shape) == 2 or shape[2] == 1:
        return cv2.cvtColor(image_rgb, cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(image_rgb)


def reduced_copy(image_rgb: np.ndarray, largest_side: int) -> tuple[np.ndarray, float]:
    """Return an image with no side above `largest_side`, and its scale relative to the original."""
    height, width = image_rgb.shape[:2]
    scale = largest_side / max(height, width)
    if scale >= 1:
        return image_rgb, 1.0
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA), scale


def box_edges(face: Face) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a face. This is the only check of boxes that callers pass.

    Raises:
        ValueError: An edge is not finite, or beyond a million pixels, where float32 does not distinguish pixels.
    """
    edges = face.left, face.top, face.left + face.width, face.top + face.height
    if not all(abs(edge) < 1e6 for edge in edges):
        raise ValueError(f"a face must lie within a million pixels. Received: {face}")
    return edges


def choose_face(faces: list[Face], image_shape: tuple[int, ...]) -> Face | None:
    """Return the largest face; among faces of similar area, the most central one; None if there is no face.

    Args:
        faces: The faces in an image.
        image_shape: Shape of the image, (h, w, ...).
    """
    if not faces:
        return None
    centre_x, centre_y = image_shape[1] / 2, image_shape[0] / 2
    largest = max(face.width * face.height for face in faces)
    candidates = [face for face in faces if face.width * face.height >= SIMILAR_AREA * largest]

    def distance(face: Face) -> float:
        return np.hypot(face.left + face.width / 2 - centre_x, face.top + face.height / 2 - centre_y)

    return min(candidates, key=distance)


def scaled(face: Face, factor: float) -> Face:
    """Return a face in the coordinates of a copy of the image that is `factor` times as large."""
    points = None if face.landmarks is None else ((face.landmarks + 0.5) * factor - 0.5).astype(np.float32)
    return Face(
        face.left * factor, face.top * factor, face.width * factor, face.height * factor, face.confidence, points
    )
