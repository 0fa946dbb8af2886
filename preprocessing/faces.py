"""The one face detector, and the one function that turns a face into a network's input.

Step 2 and the webcam both call `detector.detect`, `choose_face` and `network_input`, so a network sees the same pixels
when it is trained and when it serves. The detector is mtcnn: its three networks and their weights come from the
`mtcnn` package; the search around them (image pyramid, decoding, suppression) is written here in numpy and OpenCV.
Importing this module is cheap: what runs the networks is loaded with the first `FaceDetector`, and only `_Networks`
knows what that is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from configuration import FACES, Faces
from preprocessing.command_line import quiet_start
from preprocessing.errors import InputError

DETECTORS = ("mtcnn", "haar")
ALIGNMENTS = ("landmarks", "box")

# How FER2013 frames a face, as fractions of the side of its square: median of mtcnn's five points over 600 of its
# training images (enlarged four times; 84-87 % gave a face), made symmetric so that a mirrored picture gives the
# mirrored crop. Order of `image_tables.LANDMARKS`.
TEMPLATE = np.array([[0.3135, 0.3825], [0.6865, 0.3825], [0.5, 0.599], [0.344, 0.7755], [0.656, 0.7755]], np.float32)
# The same framing from the box alone, measured on the same images: FER2013's square has 0.95 of the height of
# mtcnn's box, and the same centre.
BOX_SIDE = 0.95

CELL = 12  # pixels: P-Net looks at squares of this side, the smallest face that it can see
STRIDE = 2  # pixels between neighbouring squares
PROPOSAL_OVERLAP = 0.5  # intersection over union above which one of two proposals of one pyramid level goes
OVERLAP = 0.7  # the same between levels and after R-Net; after O-Net the intersection over the smaller box
HAAR_VOTES = 5  # windows that must agree for a face
# mtcnn's box, as shares of the side of the cascade's square, which has the same centre: median of 150 faces that both
# found in photographs and videos. The cascade's square itself frames a face as FER2013 does (0.99 of its side).
HAAR_WIDTH, HAAR_HEIGHT = 0.80, 1.04
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


def check_options(options: Faces) -> None:
    """Refuse values that no detector or crop can work with.

    Raises:
        InputError: naming the value, what is accepted, and where it is set.
    """
    rules = {
        "size": (8 <= options.size <= 1024, "8 to 1024 pixels"),
        "channels": (options.channels in (1, 3), "1 (gray) or 3 (RGB)"),
        "align": (options.align in ALIGNMENTS, " or ".join(ALIGNMENTS)),
        "smallest_face": (options.smallest_face >= CELL, f"{CELL} pixels or more"),
        "largest_side": (options.largest_side >= 100, "100 pixels or more"),
        "thresholds": (_are_thresholds(options.thresholds), "three numbers from 0 to below 1"),
        "scale_factor": (0.3 <= options.scale_factor <= 0.95, "0.3 to 0.95"),
        "enlarge": (1 <= options.enlarge <= 16, "1 to 16 times"),
        "crop_side": (options.crop_side >= 0, "0 pixels or more"),
    }
    for name, (is_accepted, accepted) in rules.items():
        if not is_accepted:
            value = getattr(options, name)
            raise InputError(f"{name} {value!r} cannot be used; accepted: {accepted} (see --help and configuration.py)")


def _are_thresholds(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(0 <= value < 1 for value in values)


def build_detector(name: str, options: Faces = FACES) -> Detector:
    """Return the detector of that name, `mtcnn` or `haar`.

    Raises:
        InputError: another name, or options that cannot be used.
    """
    if name not in DETECTORS:
        raise InputError(f"unknown detector {name!r}; accepted: {' or '.join(DETECTORS)}")
    return FaceDetector(options) if name == "mtcnn" else HaarDetector(options)


def read_image_rgb(file: Path) -> np.ndarray:
    """Read a picture as uint8 (h, w, 3) RGB: upright (EXIF), transparency dropped, gray in three equal channels.

    Raises:
        InputError: no such file, or no picture that OpenCV can read.
    """
    try:  # decoded from memory, because OpenCV opens no file with a non-ASCII path on Windows
        data = np.frombuffer(file.read_bytes(), np.uint8)
        image_bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error) as error:
        raise InputError(f"{file} cannot be read as a picture ({error}); give a PNG or JPEG file") from error
    if image_bgr is None:
        raise InputError(f"{file} cannot be read as a picture; give a PNG or JPEG file")
    return cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)


class FaceDetector:
    """mtcnn: finds faces and their five landmarks.

    Args:
        options: Smallest face, thresholds, pyramid and size of the searched copy.

    Raises:
        InputError: options that cannot be used.
    """

    def __init__(self, options: Faces = FACES):
        check_options(options)
        self.options = options
        self._networks = _load_networks()

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Find the faces of a picture.

        Args:
            image_rgb: uint8 (h, w, 3) RGB, or (h, w) or (h, w, 1) gray.

        Returns:
            The faces, the most confident one first; empty where there is none or the picture is smaller than the
            smallest face. In a picture larger than `options.largest_side`, which is searched in a reduced copy,
            faces that would be smaller than 12 pixels there are not found.

        Raises:
            ValueError: the array is no such picture.
        """
        picture_rgb, scale = _reduce(_as_rgb(image_rgb), self.options.largest_side)
        smallest = max(self.options.smallest_face * scale, CELL)
        boxes = self._propose(picture_rgb, smallest)
        boxes = self._refine(picture_rgb, boxes)
        boxes, scores, points = self._finish(picture_rgb, boxes)
        return [
            _face(box / scale, score, (point / scale - 0.5).astype(np.float32))  # edge coordinates to pixel centres
            for box, score, point in zip(boxes, scores, points, strict=True)
        ]

    def _propose(self, picture_rgb: np.ndarray, smallest: float) -> np.ndarray:
        """Return P-Net's square candidates over the pyramid, (n, 4) left, top, right, bottom."""
        found = [(np.empty((0, 4)), np.empty(0))]
        for width, height in pyramid(picture_rgb.shape[1], picture_rgb.shape[0], smallest, self.options.scale_factor):
            level_rgb = cv2.resize(picture_rgb, (width, height), interpolation=cv2.INTER_AREA)
            offsets, scores = self._networks.propose(_normalise(level_rgb))
            rows, columns = np.nonzero(scores > self.options.thresholds[0])
            cells = STRIDE * np.stack([columns, rows, columns, rows], axis=-1) + [0, 0, CELL, CELL]
            boxes = cells + offsets[rows, columns] * CELL
            boxes = boxes * (np.array(picture_rgb.shape[1::-1] * 2) / (width, height, width, height))
            scores = scores[rows, columns]
            kept = suppress(boxes, scores, PROPOSAL_OVERLAP)
            found.append((boxes[kept], scores[kept]))
        boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return _squares(boxes[suppress(boxes, scores, OVERLAP)])

    def _refine(self, picture_rgb: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Return the squares that R-Net keeps, moved to where it sees the faces."""
        if not len(boxes):
            return boxes
        offsets, scores = self._networks.refine(_patches(picture_rgb, boxes, 24))
        good = scores > self.options.thresholds[1]
        boxes, scores = _moved(boxes, offsets)[good], scores[good]
        return _squares(boxes[suppress(boxes, scores, OVERLAP)])

    def _finish(self, picture_rgb: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return O-Net's boxes (n, 4), scores (n,) and landmarks (n, 5, 2), all in edge coordinates, best first."""
        if not len(boxes):
            return boxes, np.empty(0), np.empty((0, 5, 2))
        offsets, points, scores = self._networks.finish(_patches(picture_rgb, boxes, 48))
        points = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
        good = scores > self.options.thresholds[2]
        boxes, scores, points = _moved(boxes, offsets)[good], scores[good], points[good]
        kept = suppress(boxes, scores, OVERLAP, of_smaller=True)
        return boxes[kept], scores[kept], points[kept]


@lru_cache(maxsize=1)
def _load_networks() -> "_Networks":
    return _Networks()


class _Networks:
    """mtcnn's P-Net, R-Net and O-Net: float32 arrays in, float32 arrays out. Alone knows what runs them."""

    def __init__(self):
        with quiet_start():  # imported here and not above, for it takes seconds
            import keras
            import mtcnn
            import tensorflow as tf
            from mtcnn.stages import StageONet, StagePNet, StageRNet

            if keras.config.backend() != "tensorflow":
                raise InputError(f"KERAS_BACKEND={keras.config.backend()} runs no mtcnn; unset it to look for faces")
            # Absolute: given a bare name, mtcnn looks in the current directory first and unpickles what it finds there.
            weights = Path(mtcnn.__file__).resolve().parent / "assets" / "weights"
            models = [
                stage(weights=str(weights / name)).model
                for stage, name in ((StagePNet, "pnet.lz4"), (StageRNet, "rnet.lz4"), (StageONet, "onet.lz4"))
            ]

        def compiled(model) -> Callable[[np.ndarray], list[np.ndarray]]:
            @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])  # one graph for all sizes
            def run(batch):
                with tf.device("CPU:0"):  # the same numbers on every machine
                    return model(batch, training=False)

            return lambda batch: [output.numpy() for output in run(batch)]

        self._pnet, self._rnet, self._onet = map(compiled, models)

    def propose(self, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P-Net on a picture (h, w, 3): offsets (h', w', 4) in cells and face scores (h', w')."""
        offsets, classes = self._pnet(level[None])
        return offsets[0], classes[0, ..., 1]

    def refine(self, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R-Net on (n, 24, 24, 3): offsets (n, 4) in box sides and face scores (n,)."""
        offsets, classes = self._rnet(patches)
        return offsets, classes[:, 1]

    def finish(self, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """O-Net on (n, 48, 48, 3): offsets (n, 4), landmarks (n, 5, 2) in box sides, face scores (n,)."""
        offsets, points, classes = self._onet(patches)
        return offsets, np.stack([points[:, :5], points[:, 5:]], axis=-1), classes[:, 1]


def pyramid(width: int, height: int, smallest_face: float, scale_factor: float) -> list[tuple[int, int]]:
    """Return the sizes (width, height) at which P-Net searches a picture, the largest first.

    At the first one the smallest face fills P-Net's 12-pixel cell; at the last one the picture's shorter side does.
    Empty where the picture is smaller than the smallest face.
    """
    sizes = []
    scale = CELL / smallest_face
    while min(width, height) * scale >= CELL:
        sizes.append((round(width * scale), round(height * scale)))
        scale *= scale_factor
    return sizes


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float, of_smaller: bool = False) -> np.ndarray:
    """Greedy non-maximum suppression.

    Args:
        boxes: (n, 4) left, top, right, bottom.
        scores: (n,)
        overlap: A box goes where more than this share of it is covered by a better one.
        of_smaller: The share is intersection over the smaller box, instead of intersection over union.

    Returns:
        Indices of the boxes kept, the best one first.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-scores, kind="stable")
    kept = []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        smaller = np.minimum(areas[best], areas[order])
        whole = smaller if of_smaller else areas[best] + areas[order] - shared
        order = order[shared <= overlap * whole]
    return np.array(kept, dtype=int)


def _as_rgb(image_rgb: np.ndarray) -> np.ndarray:
    """Return the picture as contiguous uint8 (h, w, 3); the only check of what callers hand over."""
    shape = image_rgb.shape
    if (
        image_rgb.dtype != np.uint8
        or len(shape) not in (2, 3)
        or 0 in shape
        or (len(shape) == 3 and shape[2] not in (1, 3))
    ):
        raise ValueError(
            f"a picture must be uint8 (h, w, 3) RGB or (h, w) gray, 0-255, without transparency. "
            f"Received: {image_rgb.dtype} {shape}"
        )
    if len(shape) == 2 or shape[2] == 1:
        return cv2.cvtColor(image_rgb, cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(image_rgb)


def _reduce(image_rgb: np.ndarray, largest_side: int) -> tuple[np.ndarray, float]:
    """Return the picture, no side above `largest_side`, and the scale from the picture to this copy."""
    height, width = image_rgb.shape[:2]
    scale = largest_side / max(height, width)
    if scale >= 1:
        return image_rgb, 1.0
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA), scale


def _normalise(image: np.ndarray) -> np.ndarray:
    """Return uint8 pixels as the float32 that mtcnn's networks were trained on, about -1 to 1."""
    return (image.astype(np.float32) - 127.5) / 128


def _patches(picture_rgb: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """Return square boxes cut out and resized, normalised (n, side, side, 3); mid-gray outside the picture."""
    patches = np.empty((len(boxes), side, side, 3), np.uint8)
    for patch, (left, top, right, _) in zip(patches, boxes, strict=True):
        matrix = _square_to(left, top, right - left, side)
        patch[:] = _sample(picture_rgb, matrix, side, cv2.BORDER_CONSTANT)
    return _normalise(patches)


def _moved(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _squares(boxes: np.ndarray) -> np.ndarray:
    """Return the smallest squares around the boxes, at least one pixel large, with the same centres."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = np.max(boxes[:, 2:] - boxes[:, :2], axis=1, keepdims=True).clip(1) / 2
    return np.hstack([centres - half, centres + half])


def _face(box: np.ndarray, confidence: float, points: np.ndarray) -> Face:
    left, top, right, bottom = (float(edge) for edge in box)
    return Face(left, top, right - left, bottom - top, float(confidence), points)


class HaarDetector:
    """OpenCV's frontal cascade: fast, needs upright frontal faces, gives no landmarks.

    Its `confidence` is the share n / (n + 5) of n agreeing search windows: an order, not a probability.

    Args:
        options: Smallest face and size of the searched copy.

    Raises:
        InputError: options that cannot be used.
    """

    def __init__(self, options: Faces = FACES):
        check_options(options)
        self.options = options
        file = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"
        self._cascade = cv2.CascadeClassifier(str(file))
        if self._cascade.empty():
            raise RuntimeError(f"OpenCV's frontal cascade is not at {file}; reinstall opencv-python 4")

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Find the faces of a picture; see `FaceDetector.detect`."""
        picture_rgb, scale = _reduce(_as_rgb(image_rgb), self.options.largest_side)
        gray = cv2.cvtColor(picture_rgb, cv2.COLOR_RGB2GRAY)
        smallest = round(self.options.smallest_face * scale / HAAR_HEIGHT)
        boxes, votes = self._cascade.detectMultiScale2(
            gray, scaleFactor=1.1, minNeighbors=HAAR_VOTES, minSize=(smallest, smallest)
        )
        faces = [_haar_face(np.array(box) / scale, int(vote)) for box, vote in zip(boxes, votes, strict=True)]
        return sorted(faces, key=lambda face: (-face.confidence, face.left, face.top))


def _haar_face(box: np.ndarray, votes: int) -> Face:
    """Return the face of a cascade's square, its box framed as mtcnn would frame it."""
    left, top, side = box[:3]
    width, height = HAAR_WIDTH * side, HAAR_HEIGHT * side
    left, top = left + (side - width) / 2, top + (side - height) / 2
    return Face(float(left), float(top), float(width), float(height), votes / (votes + HAAR_VOTES))


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


def is_face_crop(image_rgb: np.ndarray, options: Faces = FACES) -> bool:
    """Tell whether a picture is so small that it is a face crop already, as FER2013's 48 x 48 pixels are."""
    return max(image_rgb.shape[:2]) <= options.crop_side


def detect_in_crop(image_rgb: np.ndarray, detector: Detector, options: Faces = FACES) -> list[Face]:
    """Find the faces of a small face crop in an enlarged copy: mtcnn finds more of them there.

    Returns:
        The faces in pixels of the picture given, the most confident one first.
    """
    times = options.enlarge
    enlarged_rgb = cv2.resize(_as_rgb(image_rgb), None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    return [scaled(face, 1 / times) for face in detector.detect(enlarged_rgb)]


def scaled(face: Face, factor: float) -> Face:
    """Return the face in a copy of the picture that is `factor` times as large."""
    points = None if face.landmarks is None else ((face.landmarks + 0.5) * factor - 0.5).astype(np.float32)
    return Face(
        face.left * factor, face.top * factor, face.width * factor, face.height * factor, face.confidence, points
    )


def network_input(image_rgb: np.ndarray, face: Face | None, options: Faces = FACES) -> np.ndarray:
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
        ValueError: the array is no such picture.
        InputError: options that cannot be used.
    """
    check_options(options)
    image_rgb = _as_rgb(image_rgb)
    if face is None:
        crop_rgb = _whole(image_rgb, options.size)
    else:
        crop_rgb = _sample(image_rgb, _alignment(face, options), options.size, cv2.BORDER_REPLICATE)
    if options.channels == 3:
        return crop_rgb
    return cv2.cvtColor(crop_rgb, cv2.COLOR_RGB2GRAY)[:, :, None]


def _whole(image_rgb: np.ndarray, size: int) -> np.ndarray:
    height, width = image_rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square_rgb = image_rgb[top : top + side, left : left + side]
    if side == size:
        return square_rgb.copy()
    return cv2.resize(square_rgb, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def _alignment(face: Face, options: Faces) -> np.ndarray:
    """Return the (2, 3) transform from the picture's pixels to the crop's."""
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
    times = max(1, int(np.ceil(1 / _scale(matrix))))
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
