"""The one face detector, and the one function that turns a face into a network's input.

Step 2 and the webcam both call `detector.detect`, `choose_face` and `network_input`, so a network sees the same pixels
when it is trained and when it serves. The detector is mtcnn: its three networks and their weights come from the
`mtcnn` package; the search around them (image pyramid, decoding, suppression) is written here in numpy and OpenCV.
Importing this module is cheap: what runs the networks is loaded with the first `FaceDetector`, and only `_Networks`
knows what that is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from configuration import FACES, Faces
from preprocessing.errors import InputError
from preprocessing.litert import REVISION, Network, converted
from preprocessing.processes import available_cores
from preprocessing.raw_images import read_image

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
STRIP_PIXELS = 24_000  # pixels that P-Net sees at once, about
GRID = 16  # pixels: the sides of what P-Net sees are multiples of this, as far as they vary
MOST_THREADS = 4  # cores: more than these gain nothing on one picture
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # patches that R-Net and O-Net take at once
ENOUGH = 0.9  # pixels of a pyramid level for each pixel of a patch, at least
LARGEST = 32766  # pixels: OpenCV's limit for the sides of a picture that is warped
FINEST = 4096  # pixels: side at most of what a crop is averaged down from
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
        InputError: no such file, or no picture that `raw_images.read_image` can read.
    """
    try:
        image_bgr = read_image(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read as a picture ({error}); give a PNG or JPEG file") from error
    if image_bgr is None:
        raise InputError(f"{file} cannot be read as a picture; give a PNG or JPEG file")
    return cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)


DETECTOR_VERSION = 1  # raise it when `FaceDetector` or `detect_in_crop` finds other faces in the same picture


class FaceDetector:
    """mtcnn: finds faces and their five landmarks, and follows known faces.

    Args:
        options: Smallest face, thresholds, pyramid and size of the searched copy.
        threads: Cores used at once for one picture; None: all, up to four. The faces found do not depend on it.
        networks: Where the converted networks are, as `network_files` told another process; None: look, or convert.

    Raises:
        InputError: options that cannot be used.
    """

    def __init__(
        self, options: Faces = FACES, threads: int | None = None, networks: tuple[Path, Path, Path] | None = None
    ):
        check_options(options)
        self.options = options
        files = networks or network_files()
        count = threads or min(available_cores(), MOST_THREADS)
        self._workers = [_Networks(*files) for _ in range(count)]  # an interpreter serves one thread
        self._pool = ThreadPoolExecutor(count - 1) if count > 1 else None

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
        height, width = picture_rgb.shape[:2]
        levels = _Pyramid(picture_rgb, pyramid(width, height, smallest, self.options.scale_factor))
        boxes = self._refine(levels, self._propose(levels))
        boxes, scores, points = self._finish(levels, boxes)
        return [
            _face(box / scale, score, (point / scale - 0.5).astype(np.float32))  # edge coordinates to pixel centres
            for box, score, point in zip(boxes, scores, points, strict=True)
        ]

    def detect_batch(self, images_rgb: Iterable[np.ndarray]) -> list[list[Face]]:
        """Find the faces of several pictures, of any sizes; each has its own list, as `detect` gives it."""
        return [self.detect(image_rgb) for image_rgb in images_rgb]

    def follow(self, image_rgb: np.ndarray, faces: Sequence[Face]) -> list[Face]:
        """Find known faces again in the next picture, by O-Net alone: hundreds of times faster than a search.

        Args:
            image_rgb: As for `detect`.
            faces: Where the faces were in the picture before.

        Returns:
            One face for each, in the same order. Where a face has gone, its confidence is low: take those below
            `options.thresholds[2]` as lost.

        Raises:
            ValueError: the array is no such picture, or a face no place in one.
        """
        if not faces:
            return []
        picture_rgb = _as_rgb(image_rgb)
        boxes = _squares(np.array([_edges(face) for face in faces], np.float32))
        patches_rgb = np.concatenate([_patch(picture_rgb, box, 48) for box in boxes])
        return [
            _face(box, score, (point - 0.5).astype(np.float32))
            for box, score, point in zip(*self._look(boxes, patches_rgb), strict=True)
        ]

    def _propose(self, levels: "_Pyramid") -> np.ndarray:
        """Return P-Net's square candidates over the pyramid, (n, 4) left, top, right, bottom."""
        strips = [(number, strip) for number, level_rgb in enumerate(levels.searched) for strip in _strips(level_rgb)]
        outputs = self._spread(_Networks.propose, [strip.pixels_rgb for _, strip in strips])
        candidates: list[list[np.ndarray]] = [[] for _ in levels.searched]
        for (number, strip), (offsets, scores) in zip(strips, outputs, strict=True):
            inside = np.s_[: strip.rows, : strip.columns]
            candidates[number].append(self._candidates(offsets[inside], scores[inside], strip.top))
        found = [np.empty((0, 5), np.float32)]
        for level_rgb, parts in zip(levels.searched, candidates, strict=True):
            boxes = np.concatenate(parts)
            boxes[:, :4] *= levels.to_picture(level_rgb)
            found.append(boxes[suppress(boxes[:, :4], boxes[:, 4], PROPOSAL_OVERLAP)])
        boxes = np.concatenate(found)
        return _squares(boxes[suppress(boxes[:, :4], boxes[:, 4], OVERLAP), :4])

    def _candidates(self, offsets: np.ndarray, scores: np.ndarray, top: int) -> np.ndarray:
        """Return what P-Net takes for faces in a strip that begins at a level's row `top`: (n, 5) box and score."""
        rows, columns = np.nonzero(scores > self.options.thresholds[0])
        boxes = np.empty((len(rows), 5), np.float32)
        boxes[:, 0] = boxes[:, 2] = STRIDE * columns
        boxes[:, 1] = boxes[:, 3] = STRIDE * rows + top
        boxes[:, 2:4] += CELL
        boxes[:, :4] += offsets[rows, columns] * CELL
        boxes[:, 4] = scores[rows, columns]
        return boxes

    def _refine(self, levels: "_Pyramid", boxes: np.ndarray) -> np.ndarray:
        """Return the squares that R-Net keeps, moved to where it sees the faces."""
        if not len(boxes):
            return boxes
        offsets, scores = self._in_batches(_Networks.refine, levels.patches(boxes, 24))
        good = scores > self.options.thresholds[1]
        boxes, scores = _moved(boxes, offsets)[good], scores[good]
        return _squares(boxes[suppress(boxes, scores, OVERLAP)])

    def _finish(self, levels: "_Pyramid", boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return O-Net's boxes (n, 4), scores (n,) and landmarks (n, 5, 2), all in edge coordinates, best first."""
        if not len(boxes):
            return boxes, np.empty(0), np.empty((0, 5, 2))
        boxes, scores, points = self._look(boxes, levels.patches(boxes, 48))
        good = scores > self.options.thresholds[2]
        boxes, scores, points = boxes[good], scores[good], points[good]
        kept = suppress_inner(boxes, scores, OVERLAP)
        return boxes[kept], scores[kept], points[kept]

    def _look(self, boxes: np.ndarray, patches_rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what O-Net sees in squares: boxes, scores and landmarks, for each of them."""
        offsets, points, scores = self._in_batches(_Networks.finish, patches_rgb)
        points = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
        return _moved(boxes, offsets), scores, points

    def _in_batches(self, run: Callable[..., tuple[np.ndarray, ...]], patches_rgb: np.ndarray) -> list[np.ndarray]:
        """Run a network on any number of patches, in batches of a few sizes for all threads."""
        share = -(-len(patches_rgb) // len(self._workers))
        batches, start = [], 0
        while start < len(patches_rgb):
            most = min(share, len(patches_rgb) - start)
            end = start + max(size for size in BATCH_SIZES if size <= most)
            batches.append(patches_rgb[start:end])
            start = end
        return [np.concatenate(part) for part in zip(*self._spread(run, batches), strict=True)]

    def _spread(self, run: Callable[..., Any], arrays: list[np.ndarray]) -> list[Any]:
        """Run a network on each array, the largest arrays first, each on the thread that has least to do."""
        shares: list[list[int]] = [[] for _ in self._workers]
        load = [0] * len(shares)
        for index in sorted(range(len(arrays)), key=lambda index: -arrays[index].size):
            worker = load.index(min(load))
            shares[worker].append(index)
            load[worker] += arrays[index].size
        results: dict[int, Any] = {}

        def work(worker: int) -> None:
            for index in shares[worker]:
                results[index] = run(self._workers[worker], arrays[index])

        waiting = [self._pool.submit(work, n) for n in range(1, len(shares)) if shares[n]] if self._pool else []
        work(0)
        for other in waiting:
            other.result()
        return [results[index] for index in range(len(arrays))]


def crop_versions(options: Faces) -> dict[str, int | str]:
    """Return the versions of the code and the libraries that shape a crop; where one changes, crops are made again.

    The detector is left out where no face is searched. numpy is left out: its arithmetic is the same in all versions.
    """
    versions: dict[str, int | str] = {"crop_version": CROP_VERSION, "opencv": cv2.__version__}
    if options.detect is False:
        return versions
    libraries = {name: _installed_version(name) for name in ("mtcnn", "ai-edge-litert")}
    return {**versions, "detector_version": DETECTOR_VERSION, "conversion_version": REVISION, **libraries}


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@lru_cache(maxsize=1)
def network_files() -> tuple[Path, Path, Path]:
    """Return the converted P-Net, R-Net and O-Net, converting them where that has not been done before.

    Raises:
        InputError: mtcnn is not installed, or they must be converted but Keras does not run on TensorFlow.
    """
    pnet, rnet, onet = (
        converted(name, [_weights(name)], partial(_build_network, name)) for name in ("pnet", "rnet", "onet")
    )
    return pnet, rnet, onet


class _Networks:
    """mtcnn's P-Net, R-Net and O-Net: uint8 RGB in, float32 arrays out. Alone knows what runs them."""

    def __init__(self, pnet: Path, rnet: Path, onet: Path):
        self._pnet, self._rnet, self._onet = Network(pnet), Network(rnet), Network(onet)

    def propose(self, level_rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P-Net on a picture (h, w, 3): offsets (h', w', 4) in cells and face scores (h', w')."""
        classes, offsets = self._pnet(level_rgb[None])
        return offsets[0], classes[0, ..., 1]

    def refine(self, patches_rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R-Net on (n, 24, 24, 3): offsets (n, 4) in box sides and face scores (n,)."""
        classes, offsets = self._rnet(patches_rgb)
        return offsets, classes[:, 1]

    def finish(self, patches_rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """O-Net on (n, 48, 48, 3): offsets (n, 4), landmarks (n, 5, 2) in box sides, face scores (n,)."""
        classes, offsets, points = self._onet(patches_rgb)
        return offsets, np.stack([points[:, :5], points[:, 5:]], axis=-1), classes[:, 1]


def _weights(name: str) -> Path:
    """Return the installed weights of one of mtcnn's networks, found without importing mtcnn and with it TensorFlow.

    The path is absolute: given a bare name, mtcnn looks in the current directory first and unpickles what it finds.
    """
    package = find_spec("mtcnn")
    if package is None or package.origin is None:
        raise InputError("the package mtcnn is not installed; install what requirements.txt lists")
    return Path(package.origin).resolve().parent / "assets" / "weights" / f"{name}.lz4"


def _build_network(name: str) -> Any:
    """Return one of mtcnn's networks as a Keras model that takes uint8 pixels."""
    import keras
    from mtcnn.stages import StageONet, StagePNet, StageRNet

    stage, side = {"pnet": (StagePNet, None), "rnet": (StageRNet, 24), "onet": (StageONet, 48)}[name]
    pixels = keras.Input((side, side, 3), dtype="uint8")
    scaled_pixels = keras.layers.Rescaling(1 / 128, offset=-127.5 / 128)(pixels)  # as mtcnn was trained
    return keras.Model(pixels, stage(weights=str(_weights(name))).model(scaled_pixels))


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


class _Strip(NamedTuple):
    """A part of a pyramid level, as P-Net sees it: its first row, and how many rows and columns of cells count."""

    top: int
    pixels_rgb: np.ndarray
    rows: int
    columns: int


def _strips(level_rgb: np.ndarray) -> Iterator[_Strip]:
    """Yield a level in strips: P-Net sees all of it, in little memory and on all threads.

    Strips are filled up to a grid, so that pictures of many sizes need few shapes; cells that reach into the filling
    do not count.
    """
    height, width = level_rgb.shape[:2]
    padded = -(-width // GRID) * GRID
    step = STRIDE * max(STRIP_PIXELS // (STRIDE * padded), 8)
    whole = step + CELL - STRIDE  # the next strip begins one stride after this one's last cell
    tops = range(0, height - CELL + 1, step)
    last = min(-(-(height - tops[-1]) // GRID) * GRID, whole)
    below = max(0, tops[-1] + last - height)
    level_rgb = cv2.copyMakeBorder(level_rgb, 0, below, 0, padded - width, cv2.BORDER_CONSTANT, value=(128,) * 3)
    for top in tops:
        pixels_rgb = level_rgb[top : top + (last if top == tops[-1] else whole)]
        rows = min((height - top - CELL) // STRIDE + 1, step // STRIDE)
        yield _Strip(top, pixels_rgb, rows, (width - CELL) // STRIDE + 1)


class _Pyramid:
    """A picture at ever smaller sizes, each made from the one before: some to be searched, some to take patches from.

    Args:
        picture_rgb: uint8 (h, w, 3).
        sizes: (width, height) of the sizes to be searched, the largest first.
        least: Scale that the last size may have at least, where none is searched.
    """

    def __init__(self, picture_rgb: np.ndarray, sizes: Sequence[tuple[int, int]] = (), least: float = 1.0):
        width = picture_rgb.shape[1]
        self._all = [picture_rgb]
        first = sizes[0][0] if sizes else least * width
        while min(self._all[-1].shape[:2]) >= 2 and self._all[-1].shape[1] >= 2 * first:
            half = (self._all[-1].shape[1] // 2, self._all[-1].shape[0] // 2)
            self._all.append(cv2.resize(self._all[-1], half, interpolation=cv2.INTER_AREA))
        for size in sizes:
            method = cv2.INTER_AREA if size[0] <= self._all[-1].shape[1] else cv2.INTER_LINEAR
            self._all.append(cv2.resize(self._all[-1], size, interpolation=method))
        self.searched = self._all[len(self._all) - len(sizes) :]
        self._scales = np.array([level.shape[1] / width for level in self._all])

    def to_picture(self, level_rgb: np.ndarray) -> np.ndarray:
        """Return the factors (x, y, x, y) from a level's pixels to the picture's, float32."""
        height, width = self._all[0].shape[:2]
        return np.array([width / level_rgb.shape[1], height / level_rgb.shape[0]] * 2, np.float32)

    def patches(self, boxes: np.ndarray, side: int) -> np.ndarray:
        """Return square boxes cut out and resized, uint8 (n, side, side, 3); mid-gray outside the picture.

        Each is taken from the smallest level that still has a pixel for each of the patch's, so nothing aliases.
        """
        patches_rgb = np.empty((len(boxes), side, side, 3), np.uint8)
        wanted = side / (boxes[:, 2] - boxes[:, 0])
        chosen = (self._scales[None] >= ENOUGH * wanted[:, None]).sum(axis=1).clip(1) - 1  # scales fall
        steps = (np.arange(side, dtype=np.float32) + 0.5) / side
        for number in np.unique(chosen):
            level_rgb = self._all[number]
            members = np.flatnonzero(chosen == number)
            squares = (boxes[members] / self.to_picture(level_rgb)).astype(np.float32)
            x, y = (squares[:, [axis]] + (squares[:, [axis + 2]] - squares[:, [axis]]) * steps - 0.5 for axis in (0, 1))
            shape = (len(members), side, side)
            map_x = np.broadcast_to(x[:, None, :], shape).reshape(-1, side)
            map_y = np.broadcast_to(y[:, :, None], shape).reshape(-1, side)
            patches_rgb[members] = cv2.remap(
                level_rgb, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(128,) * 3
            ).reshape(*shape, 3)
        return patches_rgb


def _patch(picture_rgb: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Return one square cut out of a picture as `_Pyramid.patches` does, at the cost of the square alone."""
    height, width = picture_rgb.shape[:2]
    left, top = np.floor(box[:2]).astype(int).clip(0, (width - 1, height - 1))
    right, bottom = np.ceil(box[2:]).astype(int).clip((left + 1, top + 1), (width, height))
    levels = _Pyramid(picture_rgb[top:bottom, left:right], least=ENOUGH * side / (box[2] - box[0]))
    return levels.patches((box - [left, top, left, top])[None], side)


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Greedy non-maximum suppression.

    Args:
        boxes: (n, 4) left, top, right, bottom.
        scores: (n,)
        overlap: A box goes where its intersection over union with a better one is larger.

    Returns:
        Indices of the boxes kept, the best one first.
    """
    corners_and_sizes: Any = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    confidences: Any = scores
    return np.array(cv2.dnn.NMSBoxes(corners_and_sizes, confidences, 0.0, overlap), dtype=int)


def suppress_inner(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Return what `suppress` does, by the intersection over the smaller box: of two in one another, the better."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for candidate in np.argsort(-scores, kind="stable"):
        sides = np.minimum(boxes[candidate, 2:], boxes[kept, 2:]) - np.maximum(boxes[candidate, :2], boxes[kept, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        if (shared <= overlap * np.minimum(areas[candidate], areas[kept])).all():
            kept.append(int(candidate))
    return np.array(kept, dtype=int)


def _as_rgb(image_rgb: np.ndarray) -> np.ndarray:
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


def _reduce(image_rgb: np.ndarray, largest_side: int) -> tuple[np.ndarray, float]:
    """Return the picture, no side above `largest_side`, and the scale from the picture to this copy."""
    height, width = image_rgb.shape[:2]
    scale = largest_side / max(height, width)
    if scale >= 1:
        return image_rgb, 1.0
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA), scale


def _moved(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _squares(boxes: np.ndarray) -> np.ndarray:
    """Return the smallest squares around the boxes, at least one pixel large, with the same centres."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = np.max(boxes[:, 2:] - boxes[:, :2], axis=1, keepdims=True).clip(1) / 2
    return np.hstack([centres - half, centres + half])


def _edges(face: Face) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a face that a caller hands over; the only check of its box."""
    edges = face.left, face.top, face.left + face.width, face.top + face.height
    if not all(abs(edge) < 1e6 for edge in edges):  # beyond it float32 no longer tells pixels apart; also refuses NaN
        raise ValueError(f"a face must lie within a million pixels. Received: {face}")
    return edges


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


CROP_VERSION = 1  # raise it when `choose_face` or `network_input` gives another crop of the same picture and faces


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
        ValueError: the array is no such picture, or the face no place in one.
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


def landmarks_in_crop(face: Face | None, options: Faces = FACES) -> np.ndarray:
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


def _alignment(face: Face, options: Faces) -> np.ndarray:
    """Return the (2, 3) transform from the picture's pixels to the crop's."""
    _, top, _, bottom = _edges(face)
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
