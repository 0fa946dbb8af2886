"""The one face detector, and the one function that turns a face into a network's input.

Step 2 and the webcam both call `detector.detect`, `choose_face` and `network_input`, so a network sees the same pixels
when it is trained and when it serves. The detector is mtcnn: its three networks and their weights come from the
`mtcnn` package; the search around them (image pyramid, decoding, suppression) is written here in numpy and OpenCV.
Importing this module is cheap: what runs the networks is loaded with the first `FaceDetector`, and only `_Networks`
knows what that is.
"""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from common.errors import InputError
from configuration import FaceConfig

DETECTORS = ("mtcnn", "haar")
ALIGNMENTS = ("landmarks", "box")
CELL = 12  # pixels: P-Net looks at squares of this side, the smallest face that it can see
LARGEST = 32766  # pixels: OpenCV's limit for the sides of a picture that is warped
ALIKE = 0.8  # faces of at least this share of the largest one's area count as equally large


@dataclass(frozen=True)
class Face:
    """A face in a picture. Coordinates are pixels of the picture given; a box may reach over the picture's border.

    Attributes:
        left: Left edge of the box.
        top: Upper edge of the box.
        width: Width of the box.
        height: Height of the box.
        confidence: 0-1; comparable between faces of one detector only.
        landmarks: (5, 2) float32, x and y (of pixel centres) in the order of `image_tables.LANDMARKS`, left and right
            as the viewer sees them; None where the detector gives none.
    """

    left: float
    top: float
    width: float
    height: float
    confidence: float
    landmarks: np.ndarray | None = None


class Detector(Protocol):
    """What finds faces: `FaceDetector` or `HaarDetector`."""

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Return the picture's faces, the most confident one first."""
        ...


def check_options(options: FaceConfig) -> None:
    """Refuse values that no detector or crop can work with.

    Raises:
        InputError: naming the value, what is accepted, and where it is set.
    """
    rules = {
        "size": (8 <= options.size <= 1024, "8 to 1024 pixels"),
        "channels": (options.channels in (1, 3), "1 (gray) or 3 (RGB)"),
        "align": (options.align in ALIGNMENTS, " or ".join(ALIGNMENTS)),
        "min_face_size": (options.min_face_size >= CELL, f"{CELL} pixels or more"),
        "largest_side": (options.largest_side >= 100, "100 pixels or more"),
        "thresholds": (_are_thresholds(options.thresholds), "three numbers from 0 to below 1"),
    }
    for name, (is_accepted, accepted) in rules.items():
        if not is_accepted:
            value = getattr(options, name)
            raise InputError(f"{name} {value!r} cannot be used; accepted: {accepted} (see --help and configuration.py)")


def _are_thresholds(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(0 <= value < 1 for value in values)


def as_rgb(image_rgb: np.ndarray) -> np.ndarray:
    """Return the picture as contiguous uint8 (h, w, 3); the only check of what callers hand over."""
    shape, dtype = (getattr(image_rgb, name, None) for name in ("shape", "dtype"))
    if (
        not isinstance(image_rgb, np.ndarray)
        or dtype != np.uint8
        or len(shape := image_rgb.shape) not in (2, 3)
        or not 1 <= min(shape[:2]) <= max(shape[:2]) <= LARGEST
        or (len(shape) == 3 and shape[2] not in (1, 3))
    ):
        raise ValueError(
            "a picture must be uint8 (h, w, 3) RGB or (h, w) gray, 0-255, without transparency, its sides 1 to "
            f"{LARGEST} pixels. Received: {type(image_rgb).__name__} {dtype} {shape}"
        )
    if len(shape) == 2 or shape[2] == 1:
        return cv2.cvtColor(image_rgb, cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(image_rgb)


def reduced_copy(image_rgb: np.ndarray, largest_side: int) -> tuple[np.ndarray, float]:
    """Return the picture, no side above `largest_side`, and the scale from the picture to this copy."""
    height, width = image_rgb.shape[:2]
    scale = largest_side / max(height, width)
    if scale >= 1:
        return image_rgb, 1.0
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA), scale


def box_edges(face: Face) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a face that a caller hands over; the only check of its box."""
    edges = face.left, face.top, face.left + face.width, face.top + face.height
    if not all(abs(edge) < 1e6 for edge in edges):  # beyond it float32 no longer tells pixels apart; also refuses NaN
        raise ValueError(f"a face must lie within a million pixels. Received: {face}")
    return edges


def choose_face(faces: list[Face], image_shape: tuple[int, ...]) -> Face | None:
    """Return the largest face, or the most central of those about as large; None where there is none.

    Args:
        faces: What `detect` found.
        image_shape: The picture's shape, (h, w, ...).
    """
    if not faces:
        return None
    centre_x, centre_y = image_shape[1] / 2, image_shape[0] / 2
    largest = max(face.width * face.height for face in faces)
    alike = [face for face in faces if face.width * face.height >= ALIKE * largest]

    def distance(face: Face) -> float:
        return np.hypot(face.left + face.width / 2 - centre_x, face.top + face.height / 2 - centre_y)

    return min(alike, key=distance)


def scaled(face: Face, factor: float) -> Face:
    """Return the face in a copy of the picture that is `factor` times as large."""
    points = None if face.landmarks is None else ((face.landmarks + 0.5) * factor - 0.5).astype(np.float32)
    return Face(
        face.left * factor, face.top * factor, face.width * factor, face.height * factor, face.confidence, points
    )
