"""Face crops: one function makes the network input, for training and for the camera."""

from pathlib import Path

import cv2
import numpy as np

from common.errors import InputError
from common.images import read_image
from configuration import FACES, FaceConfig
from inference.faces import Detector, Face, as_rgb, box_edges, check_options, scaled

# Landmarks in FER2013, as fractions of the side of its images: median of mtcnn's five points over 600 training images
# (enlarged four times; 84-87 % gave a face), made symmetric so that a mirrored image gives the mirrored crop. Order of
# `preprocessing.tables.LANDMARKS`.
TEMPLATE = np.array([[0.3135, 0.3825], [0.6865, 0.3825], [0.5, 0.599], [0.344, 0.7755], [0.656, 0.7755]], np.float32)
# The same framing from the box: the square of FER2013 has the centre and 0.95 of the height of mtcnn's box (measured on
# the same images).
BOX_SIDE = 0.95
MAX_SUPERSAMPLED_SIDE = 4096  # pixels: largest side of the image that a crop is averaged from


def read_image_rgb(file: Path) -> np.ndarray:
    """Read an image file as uint8 (h, w, 3) RGB: upright (EXIF), without transparency, gray in three equal channels.

    Raises:
        InputError: The file does not exist, or `common.images.read_image` cannot read it.
    """
    try:
        image_bgr = read_image(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read as an image ({error}); give a PNG or JPEG file") from error
    if image_bgr is None:
        raise InputError(f"{file} cannot be read as an image; give a PNG or JPEG file")
    return cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)


CROP_SIDE = 100  # pixels: images with no larger side are face crops
ENLARGEMENT = 4  # factor by which face crops are enlarged for detection


def is_face_crop(image_rgb: np.ndarray) -> bool:
    """Return whether an image is small enough to be a face crop, such as the 48x48 pixels of FER2013."""
    return max(image_rgb.shape[:2]) <= CROP_SIDE


def detect_in_crop(image_rgb: np.ndarray, detector: Detector) -> list[Face]:
    """Find the faces in a face crop, in an enlarged copy, where mtcnn finds more of them.

    Returns:
        The faces in pixels of the crop, by decreasing confidence.
    """
    enlarged_rgb = cv2.resize(as_rgb(image_rgb), None, fx=ENLARGEMENT, fy=ENLARGEMENT, interpolation=cv2.INTER_CUBIC)
    return [scaled(face, 1 / ENLARGEMENT) for face in detector.detect(enlarged_rgb)]


CROP_VERSION = 1  # raise it when `choose_face` or `network_input` gives another crop of the same image and faces


def network_input(image_rgb: np.ndarray, face: Face | None, options: FaceConfig = FACES) -> np.ndarray:
    """Return the crop of a face, framed as in FER2013, as input of a network.

    With landmarks and `options.align="landmarks"`, the similarity transform that fits the landmarks to `TEMPLATE`
    removes roll and scale. Otherwise the crop is an upright square around the box. Beyond the border of the image, its
    outermost pixels are repeated.

    Args:
        image_rgb: uint8 (h, w, 3) RGB, or (h, w) or (h, w, 1) gray: the full image, not a reduced copy.
        face: The face; None: the central square of the image.
        options: Size, channels and alignment.

    Returns:
        uint8 (size, size, channels), 0-255. A gray image of that size with `face=None` is returned unchanged.

    Raises:
        ValueError: The array is not an image, or the box of the face cannot be used.
        InputError: An option is out of range.
    """
    check_options(options)
    image_rgb = as_rgb(image_rgb)
    if face is None:
        crop_rgb = _central_square(image_rgb, options.size)
    else:
        crop_rgb = _warp(image_rgb, _alignment(face, options), options.size)
    if options.channels == 3:
        return crop_rgb
    return cv2.cvtColor(crop_rgb, cv2.COLOR_RGB2GRAY)[:, :, None]


def landmarks_in_crop(face: Face | None, options: FaceConfig = FACES) -> np.ndarray:
    """Return the landmarks of a face in the coordinates of its crop.

    Args:
        face: As for `network_input`. Without landmarks, `TEMPLATE` is returned.
        options: Size and alignment.

    Returns:
        float32 (5, 2), x and y of pixel centres, in the order of `preprocessing.tables.LANDMARKS`; some may lie
            outside.
    """
    if face is None or face.landmarks is None:
        return TEMPLATE * options.size - 0.5
    matrix = _alignment(face, options)
    return (face.landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def _central_square(image_rgb: np.ndarray, size: int) -> np.ndarray:
    height, width = image_rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square_rgb = image_rgb[top : top + side, left : left + side]
    if side == size:
        return square_rgb.copy()
    return cv2.resize(square_rgb, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def _alignment(face: Face, options: FaceConfig) -> np.ndarray:
    """Return the (2, 3) transform from pixels of the image to pixels of the crop."""
    _, top, _, bottom = box_edges(face)
    if bottom <= top:
        raise ValueError(f"a face must have a height. Received: {face}")
    side = BOX_SIDE * face.height
    upright = _square_to(face.left + (face.width - side) / 2, face.top + (face.height - side) / 2, side, options.size)
    if options.align == "box" or face.landmarks is None:
        return upright
    aligned = similarity(face.landmarks, TEMPLATE * options.size - 0.5)
    # Landmarks whose size differs from the box by more than a factor of two are wrong.
    return aligned if 0.5 < _scale(aligned) / _scale(upright) < 2 else upright


def _scale(matrix: np.ndarray) -> float:
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the similarity transform (rotation, scale, shift) that maps points to targets with least squared error.

    This is the method of Umeyama (1991) without reflection. In the plane it is the linear regression z -> a z + b of
    complex numbers: the angle of a is the rotation, its modulus the scale.

    Args:
        points: (n, 2) x and y, not all equal.
        targets: (n, 2)

    Returns:
        (2, 3) float64, for `cv2.warpAffine`.
    """
    source, target = (np.asarray(xy, np.float64) @ [1, 1j] for xy in (points, targets))
    centred = source - source.mean()
    a = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred)
    b = target.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def _square_to(left: float, top: float, side: float, size: int) -> np.ndarray:
    """Return the (2, 3) transform of pixel centres from an upright square to (0, 0, size, size)."""
    scale = size / side
    return np.array([[scale, 0, (0.5 - left) * scale - 0.5], [0, scale, (0.5 - top) * scale - 0.5]])


def _warp(image_rgb: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Return the crop (size, size, 3) of a similarity transform.

    A face larger than the crop is first sampled at a multiple of the size and then averaged, so that it does not alias.
    """
    times = max(1, min(int(np.ceil(1 / _scale(matrix))), MAX_SUPERSAMPLED_SIDE // size))
    finer = matrix * times
    finer[:, 2] += (times - 1) / 2  # pixel centres: a pixel of the crop spans `times` of the finer ones
    crop_rgb = cv2.warpAffine(
        image_rgb, finer, (size * times, size * times), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return crop_rgb if times == 1 else cv2.resize(crop_rgb, (size, size), interpolation=cv2.INTER_AREA)
