"""Face crops: the one function that turns a face into a network's input, for training and for the camera."""

from pathlib import Path

import cv2
import numpy as np

from common.errors import InputError
from common.images import read_image
from configuration import FACES, FaceConfig
from inference.faces import Detector, Face, as_rgb, box_edges, check_options, scaled

# How FER2013 frames a face, as fractions of the side of its square: median of mtcnn's five points over 600 of its
# training images (enlarged four times; 84-87 % gave a face), made symmetric so that a mirrored picture gives the
# mirrored crop. Order of `image_tables.LANDMARKS`.
TEMPLATE = np.array([[0.3135, 0.3825], [0.6865, 0.3825], [0.5, 0.599], [0.344, 0.7755], [0.656, 0.7755]], np.float32)
# The same framing from the box alone, measured on the same images: FER2013's square has 0.95 of the height of
# mtcnn's box, and the same centre.
BOX_SIDE = 0.95
FINEST = 4096  # pixels: side at most of what a crop is averaged down from


def read_image_rgb(file: Path) -> np.ndarray:
    """Read a picture as uint8 (h, w, 3) RGB: upright (EXIF), transparency dropped, gray in three equal channels.

    Raises:
        InputError: no such file, or no picture that `raw_images.read_image` can read.
    """
    try:
        image_bgr = read_image(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read as a picture ({error}); give a PNG or JPEG file") from error
    if image_bgr is None:
        raise InputError(f"{file} cannot be read as a picture; give a PNG or JPEG file")
    return cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)


CROP_SIDE = 100  # pixels: an image with no longer side is a face crop already, as in FER2013
ENLARGEMENT = 4  # mtcnn finds more faces in face crops that are enlarged this many times


def is_face_crop(image_rgb: np.ndarray) -> bool:
    """Tell whether a picture is so small that it is a face crop already, as FER2013's 48 x 48 pixels are."""
    return max(image_rgb.shape[:2]) <= CROP_SIDE


def detect_in_crop(image_rgb: np.ndarray, detector: Detector) -> list[Face]:
    """Find the faces of a small face crop in an enlarged copy: mtcnn finds more of them there.

    Returns:
        The faces in pixels of the picture given, the most confident one first.
    """
    times = ENLARGEMENT
    enlarged_rgb = cv2.resize(as_rgb(image_rgb), None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    return [scaled(face, 1 / times) for face in detector.detect(enlarged_rgb)]


CROP_VERSION = 1  # raise it when `choose_face` or `network_input` gives another crop of the same picture and faces


def network_input(image_rgb: np.ndarray, face: Face | None, options: FaceConfig = FACES) -> np.ndarray:
    """Return a face, framed as in FER2013, as the pixels that a network takes.

    With landmarks (and `options.align="landmarks"`) roll and scale are taken out by the similarity transform that
    brings them nearest to `TEMPLATE`; else the crop is an upright square around the box. Beyond the picture's border
    its outermost pixels go on, so that no artificial edge arises.

    Args:
        image_rgb: uint8 (h, w, 3) RGB, or (h, w) or (h, w, 1) gray: the full picture, not a reduced copy.
        face: Where the face is; None: the whole picture is a face. Of one that is not square the middle square is
            taken, which keeps the proportions of the face.
        options: Size, channels and alignment.

    Returns:
        uint8 (size, size, channels), 0-255. A gray picture of that size with `face=None` keeps its very pixels.

    Raises:
        ValueError: the array is no such picture, or the face no place in one.
        InputError: options that cannot be used.
    """
    check_options(options)
    image_rgb = as_rgb(image_rgb)
    if face is None:
        crop_rgb = _whole(image_rgb, options.size)
    else:
        crop_rgb = _sample(image_rgb, _alignment(face, options), options.size, cv2.BORDER_REPLICATE)
    if options.channels == 3:
        return crop_rgb
    return cv2.cvtColor(crop_rgb, cv2.COLOR_RGB2GRAY)[:, :, None]


def landmarks_in_crop(face: Face | None, options: FaceConfig = FACES) -> np.ndarray:
    """Return where a face's landmarks lie in the crop that `network_input` makes of it.

    Args:
        face: As for `network_input`; of None, or one without landmarks, nothing is known but `TEMPLATE`.
        options: Size and alignment.

    Returns:
        (5, 2) float32, x and y (of pixel centres), in the order of `image_tables.LANDMARKS`; they may lie outside.
    """
    if face is None or face.landmarks is None:
        return TEMPLATE * options.size - 0.5
    matrix = _alignment(face, options)
    return (face.landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def _whole(image_rgb: np.ndarray, size: int) -> np.ndarray:
    height, width = image_rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square_rgb = image_rgb[top : top + side, left : left + side]
    if side == size:
        return square_rgb.copy()
    return cv2.resize(square_rgb, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def _alignment(face: Face, options: FaceConfig) -> np.ndarray:
    """Return the (2, 3) transform from the picture's pixels to the crop's."""
    _, top, _, bottom = box_edges(face)
    if bottom <= top:
        raise ValueError(f"a face must have a height. Received: {face}")
    side = BOX_SIDE * face.height
    upright = _square_to(face.left + (face.width - side) / 2, face.top + (face.height - side) / 2, side, options.size)
    if options.align == "box" or face.landmarks is None:
        return upright
    turned = similarity(face.landmarks, TEMPLATE * options.size - 0.5)
    # Landmarks that ask for another size than the box, by more than a factor of two, are wrong.
    return turned if 0.5 < _scale(turned) / _scale(upright) < 2 else upright


def _scale(matrix: np.ndarray) -> float:
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the rotation, scale and shift that bring points nearest to targets, in the sense of least squares.

    Umeyama's (1991) similarity without reflection. In the plane it is the linear regression z -> a z + b of complex
    numbers: the angle of a is the rotation, its length the scale.

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
    """Return the (2, 3) transform of pixel centres that brings an upright square to (0, 0, size, size)."""
    scale = size / side
    return np.array([[scale, 0, (0.5 - left) * scale - 0.5], [0, scale, (0.5 - top) * scale - 0.5]])


def _sample(image_rgb: np.ndarray, matrix: np.ndarray, size: int, border: int) -> np.ndarray:
    """Return the (size, size, 3) crop that a similarity transform shows.

    A face larger than the crop is first drawn at a multiple of the size at which no pixel is skipped, then averaged
    down: drawn at once, it would alias.
    """
    times = max(1, min(int(np.ceil(1 / _scale(matrix))), FINEST // size))
    finer = matrix * times
    finer[:, 2] += (times - 1) / 2  # pixel centres: a pixel of the crop spans `times` of the finer ones
    crop_rgb = cv2.warpAffine(
        image_rgb,
        finer,
        (size * times, size * times),
        flags=cv2.INTER_LINEAR,
        borderMode=border,
        borderValue=(128,) * 3,
    )
    return crop_rgb if times == 1 else cv2.resize(crop_rgb, (size, size), interpolation=cv2.INTER_AREA)
