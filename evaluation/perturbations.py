"""Occlusions and corruptions of face crops, for the robustness section of the report.

A perturbation takes a crop, its landmarks and a random generator, and returns the changed crop. Parts of the face are
polygons in fractions of the template (`inference.crops.TEMPLATE`) that move with the landmarks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import pandas as pd

from configuration import FaceConfig
from inference.crops import TEMPLATE, landmarks_in_crop, similarity
from inference.faces import Face
from preprocessing.tables import BOX_COLUMNS, LANDMARK_COLUMNS

Apply = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

REFERENCE_SIZE = 48  # pixels: crop side to which lengths in pixels refer; they grow with larger crops
SUPERSAMPLING = 8  # polygons are drawn at this multiple of the crop and averaged down, for smooth edges
PLAUSIBLE = (0.5, 2.0)  # size of the face by its landmarks, relative to the template; outside, landmarks are wrong
PART = "part of the face"
BLACK = (0, 0, 0)
MASK_BLUE = (160, 200, 225)


@dataclass(frozen=True)
class Perturbation:
    """One occlusion or corruption.

    Attributes:
        name: Its name in tables.
        kind: `part of the face`, `small erasing`, `random box` or `picture quality`.
        apply: From image (size, size, channels), landmarks (5, 2) in pixels and random generator to the changed image.
        curve: Name in `CURVES` of the curve that it belongs to; empty for parts of the face.
        strength: Position on the curve.
    """

    name: str
    kind: str
    apply: Apply
    curve: str = ""
    strength: float = 0.0


@dataclass(frozen=True)
class Region:
    """A polygon on a face.

    Attributes:
        corners: (n, 2) x and y in fractions of the template's side.
        anchors: Indices of the landmarks that it moves with.
    """

    corners: np.ndarray
    anchors: tuple[int, ...]


def _rectangle(left: float, top: float, right: float, bottom: float, anchors: tuple[int, ...]) -> Region:
    return Region(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]), anchors)


# Order of the landmarks as in `preprocessing.tables.LANDMARKS`: left eye, right eye, nose, mouth left, mouth right.
EYES = _rectangle(0.16, 0.29, 0.84, 0.475, (0, 1))
LEFT_EYE = _rectangle(0.16, 0.29, 0.47, 0.475, (0,))
RIGHT_EYE = _rectangle(0.53, 0.29, 0.84, 0.475, (1,))
MOUTH = _rectangle(0.27, 0.67, 0.73, 0.90, (3, 4))
NOSE_AND_MOUTH = Region(
    np.array([
        [0.5, 0.50], [0.60, 0.545], [0.90, 0.62], [0.88, 0.82], [0.72, 1.0], [0.5, 1.06],
        [0.28, 1.0], [0.12, 0.82], [0.10, 0.62], [0.40, 0.545],
    ]),
    (2, 3, 4),
)  # fmt: skip
LEFT_HALF = _rectangle(-2, -2, 0.5, 3, (2, 0, 1))
RIGHT_HALF = _rectangle(0.5, -2, 3, 3, (2, 0, 1))


# ---------------------------------------------------------------- landmarks


def crop_landmarks(rows: pd.DataFrame, options: FaceConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the landmarks of faces in their crops; the template's where they are unknown or implausible.

    Args:
        rows: Rows of `faces.csv` or `split.csv`, with `face_status`, the box and the landmarks.
        options: Size and alignment of the crops.

    Returns:
        Landmarks, float32 (n, 5, 2), and whether they come from the table, bool (n,).
    """
    places = rows[[*BOX_COLUMNS, *LANDMARK_COLUMNS]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    known = (rows["face_status"] == "found").to_numpy() & ~np.isnan(places).any(axis=1)
    points = np.tile(np.asarray(TEMPLATE * options.size - 0.5, np.float32), (len(rows), 1, 1))
    for index in np.flatnonzero(known):
        left, top, width, height = map(float, places[index, :4])
        face = Face(left, top, width, height, 1.0, places[index, 4:].reshape(5, 2))
        found = landmarks_in_crop(face, options)
        a, b = similarity(TEMPLATE, found)[:, 0]
        known[index] = PLAUSIBLE[0] < np.hypot(a, b) / options.size < PLAUSIBLE[1]
        if known[index]:
            points[index] = found
    return points, known


def coverage(region: Region, points: np.ndarray, size: int) -> np.ndarray:
    """Return the share of each pixel that a region covers, float32 (size, size), 0-1.

    Args:
        region: The region.
        points: (5, 2) landmarks in the crop.
        size: Side of the crop in pixels.
    """
    frame, anchors = similarity(TEMPLATE, points), list(region.anchors)
    corners, expected = (xy @ frame[:, :2].T + frame[:, 2] for xy in (region.corners, TEMPLATE[anchors].mean(axis=0)))
    corners += points[anchors].mean(axis=0) - expected
    canvas = np.zeros((size * SUPERSAMPLING, size * SUPERSAMPLING), np.uint8)
    cv2.fillPoly(canvas, [np.round((corners + 0.5) * SUPERSAMPLING - 0.5).astype(np.int32)], 255)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


# ---------------------------------------------------------------- occlusions


def occlude(
    image: np.ndarray,
    points: np.ndarray,
    random: np.random.Generator,
    region: Region,
    colour: tuple[int, int, int] = BLACK,
) -> np.ndarray:
    """Fill a part of the face with an RGB colour, or its gray level in gray images."""
    share = coverage(region, points, image.shape[0])[:, :, None]
    fill = np.array(colour if image.shape[2] == 3 else [np.dot(colour, (0.299, 0.587, 0.114))], float)
    return np.clip(np.round(image * (1 - share) + fill * share), 0, 255).astype(np.uint8)


def one_eye(image: np.ndarray, points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Black out the left or the right eye at random."""
    return occlude(image, points, random, LEFT_EYE if random.random() < 0.5 else RIGHT_EYE)


def small_erasing(image: np.ndarray, points: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Draw `strength` black boxes of 6 x 2 pixels at random places, as the training augmentation does."""
    erased, size = image.copy(), image.shape[0]
    long, short = (max(round(length * size / REFERENCE_SIZE), 1) for length in (6, 2))
    for _ in range(int(strength)):
        lying, x, y = random.random(3)
        width, height = (long, short) if lying < 0.5 else (short, long)
        left, top = int(x * (size - width + 1)), int(y * (size - height + 1))
        erased[top : top + height, left : left + width] = 0
    return erased


def random_box(image: np.ndarray, points: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Draw one black box over a share `strength` of the area, 0-1, at a random place and with random proportions."""
    erased, size = image.copy(), image.shape[0]
    proportions, x, y = 2 ** random.uniform(-1, 1), *random.random(2)
    height = float(np.clip(np.sqrt(strength * proportions), strength, 1))
    rows, columns = round(height * size), round(strength / height * size)
    left, top = int(x * (size - columns + 1)), int(y * (size - rows + 1))
    erased[top : top + rows, left : left + columns] = 0
    return erased


# ---------------------------------------------------------------- corruptions


def blur(image: np.ndarray, points: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Apply a Gaussian blur whose standard deviation is `strength` pixels of a 48-pixel crop."""
    return cv2.GaussianBlur(image, (0, 0), strength * image.shape[0] / REFERENCE_SIZE).reshape(image.shape)


def noise(image: np.ndarray, points: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Add Gaussian noise whose standard deviation is `strength` gray levels."""
    noisy = image + strength * random.standard_normal(image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def darkness(image: np.ndarray, points: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Remove a share `strength` of the light, 0-1, and round to whole gray levels."""
    return np.round(image * (1 - strength)).astype(np.uint8)


def jpeg(image: np.ndarray, points: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Compress as JPEG with the quality `strength`, 1-100."""
    encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(strength)])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE if image.shape[2] == 1 else cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded.reshape(image.shape)[:, :, ::-1]


def low_resolution(image: np.ndarray, points: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Shrink the face to `strength` pixels a side and enlarge it again."""
    small = cv2.resize(image, (int(strength), int(strength)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC).reshape(image.shape)


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Curve:
    """A perturbation of growing strength.

    Attributes:
        apply: The perturbation; its last argument is the strength.
        kind: As for `Perturbation`.
        axis: Label of the axis.
        name: Name of each point, a format string for the strength.
        strengths: The measured strengths, from weak to strong.
        unperturbed: Strength that leaves the image unchanged.
    """

    apply: Callable[..., np.ndarray]
    kind: str
    axis: str
    name: str
    strengths: tuple[float, ...]
    unperturbed: float = 0.0


QUALITY = "picture quality"
CURVES = {
    "small_erasing": Curve(small_erasing, "small erasing", "black boxes of 6 x 2 px", "{} small boxes", (2, 4, 8, 16)),
    "boxes": Curve(
        random_box, "random box", "share of the area covered", "random box {:.0%}", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    ),
    "blur": Curve(blur, QUALITY, "blur (σ, px of 48)", "blur {:g} px", (0.5, 1.0, 1.5, 2.5)),
    "noise": Curve(noise, QUALITY, "noise (σ, gray levels)", "noise {:g}", (10, 20, 40)),
    "darkness": Curve(darkness, QUALITY, "share of the light lost", "{:.0%} darker", (0.5, 0.8, 0.9, 0.95)),
    "jpeg": Curve(jpeg, QUALITY, "JPEG quality", "JPEG quality {}", (50, 20, 10, 5), unperturbed=100),
    "resolution": Curve(
        low_resolution, QUALITY, "face width (px)", "{} px wide", (24, 16, 12), unperturbed=REFERENCE_SIZE
    ),
}
PERTURBATIONS = (
    Perturbation("eyes", PART, partial(occlude, region=EYES)),
    Perturbation("one eye", PART, one_eye),
    Perturbation("mouth", PART, partial(occlude, region=MOUTH)),
    Perturbation("nose and mouth (black)", PART, partial(occlude, region=NOSE_AND_MOUTH)),
    Perturbation("nose and mouth (mask)", PART, partial(occlude, region=NOSE_AND_MOUTH, colour=MASK_BLUE)),
    Perturbation("left half", PART, partial(occlude, region=LEFT_HALF)),
    Perturbation("right half", PART, partial(occlude, region=RIGHT_HALF)),
    *(
        Perturbation(curve.name.format(strength), curve.kind, partial(curve.apply, strength=strength), key, strength)
        for key, curve in CURVES.items()
        for strength in curve.strengths
    ),
)


def perturb(perturbation: Perturbation, images: np.ndarray, points: np.ndarray, seed: int) -> np.ndarray:
    """Return perturbed copies of the images, uint8 (n, size, size, channels).

    The random numbers of an image depend on the seed and its position only, so that all comparisons are paired.

    Args:
        perturbation: The perturbation.
        images: uint8 (n, size, size, channels).
        points: (n, 5, 2) landmarks in the crops.
        seed: Random seed.
    """
    return np.stack([
        perturbation.apply(image, landmarks, np.random.default_rng([seed, number]))
        for number, (image, landmarks) in enumerate(zip(images, points, strict=True))
    ])  # fmt: skip
