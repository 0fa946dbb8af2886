"""Where the parts of a face lie in its crop: by its landmarks where a table has them, by the template where not.

A region is drawn once, in fractions of the template's side (`inference.crops.TEMPLATE`: the eyes at 0.38 of the
height), and follows the landmarks that it is anchored to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from configuration import FaceConfig
from inference.crops import TEMPLATE, landmarks_in_crop, similarity
from inference.faces import Face
from preprocessing.tables import BOX_COLUMNS, LANDMARK_COLUMNS

FINER = 8  # times: regions are drawn at this multiple of the crop and averaged down, so that their edges are smooth
PLAUSIBLE = (0.5, 2.0)  # times the template's size: landmarks that ask for a face outside of this are wrong
LEFT_EYE, RIGHT_EYE, NOSE, MOUTH_LEFT, MOUTH_RIGHT = range(5)  # order of `image_tables.LANDMARKS`; as the viewer sees
EYES, MOUTH = (LEFT_EYE, RIGHT_EYE), (MOUTH_LEFT, MOUTH_RIGHT)


@dataclass(frozen=True)
class Region:
    """A polygon on a face.

    Attributes:
        corners: (n, 2) x and y in fractions of the template's side.
        anchors: The landmarks with which it moves.
    """

    corners: np.ndarray
    anchors: tuple[int, ...]


def rectangle(left: float, top: float, right: float, bottom: float, anchors: tuple[int, ...]) -> Region:
    """Return a rectangular region, in fractions of the template's side."""
    return Region(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]), anchors)


def ellipse(x: float, y: float, half_width: float, half_height: float, anchors: tuple[int, ...]) -> Region:
    """Return an elliptic region, in fractions of the template's side."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return Region(np.stack([x + half_width * np.cos(angles), y + half_height * np.sin(angles)], axis=1), anchors)


def faces_of(rows: pd.DataFrame) -> list[Face | None]:
    """Return the faces that a table's rows name, in pixels of the original pictures; None where it was taken whole."""
    found = (rows["face_status"] == "found").to_numpy()
    places = rows[[*BOX_COLUMNS, *LANDMARK_COLUMNS]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    return [_face(place) if is_found else None for place, is_found in zip(places, found, strict=True)]


def _face(place: np.ndarray) -> Face | None:
    if np.isnan(place[:4]).any():
        return None
    points = None if np.isnan(place[4:]).any() else place[4:].reshape(5, 2)
    left, top, width, height = map(float, place[:4])
    return Face(left, top, width, height, 1.0, points)


def points_in_crops(faces: Sequence[Face | None], options: FaceConfig) -> np.ndarray:
    """Return the landmarks of faces in their crops, (n, 5, 2) float32; the template's where they are not known.

    Args:
        faces: In pixels of the original pictures, as `faces_of` gives them.
        options: How the crops were made.
    """
    points = np.stack([landmarks_in_crop(face, options) for face in faces])
    template = TEMPLATE * options.size - 0.5
    for index, found in enumerate(points):
        if not PLAUSIBLE[0] < _scale(found) / options.size < PLAUSIBLE[1]:
            points[index] = template
    return points


def _frame(points: np.ndarray) -> np.ndarray:
    """Return the (2, 3) similarity transform from the template's fractions to a crop's pixels."""
    return similarity(TEMPLATE, points)


def _scale(points: np.ndarray) -> float:
    a, b = _frame(points)[:, 0]
    return float(np.hypot(a, b))


def place(region: Region, points: np.ndarray) -> np.ndarray:
    """Return a region's corners on a face, (n, 2) pixels of its crop.

    Args:
        region: What to place.
        points: (5, 2) landmarks in the crop.
    """
    frame, anchors = _frame(points), list(region.anchors)
    corners = region.corners @ frame[:, :2].T + frame[:, 2]
    expected = TEMPLATE[anchors].mean(axis=0) @ frame[:, :2].T + frame[:, 2]
    return corners + points[anchors].mean(axis=0) - expected


def coverage(
    regions: Sequence[Region], points: np.ndarray, size: int, holes: Sequence[Region] = (), line: float = 0.0
) -> np.ndarray:
    """Return how much of each pixel regions cover.

    Args:
        regions: What covers.
        points: (5, 2) landmarks in the crop.
        size: Pixels of the crop's side.
        holes: What is left free.
        line: Width, as a fraction of the template's side, of the regions' outlines, which alone cover; 0: all of them.

    Returns:
        (size, size) float32, 0-1.
    """
    canvas = np.zeros((size * FINER, size * FINER), np.uint8)
    width = max(round(line * _scale(points) * FINER), 1) if line else cv2.FILLED
    for number, group in enumerate((regions, holes)):
        value = 255 if number == 0 else 0
        for region in group:
            corners = np.round((place(region, points) + 0.5) * FINER - 0.5).astype(np.int32)
            if width == cv2.FILLED:
                cv2.fillPoly(canvas, [corners], value)
            else:
                cv2.polylines(canvas, [corners], True, value, width)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
