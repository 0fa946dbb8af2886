"""Face detection with mtcnn: image pyramid, P-Net, R-Net and O-Net on LiteRT.

The three networks and their weights come from the `mtcnn` package. The search around them (pyramid, decoding,
non-maximum suppression) is written here in numpy and OpenCV. The networks are loaded with the first `FaceDetector`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from common.errors import InputError
from common.processes import available_cores
from configuration import FACES, FaceConfig
from inference.crops import CROP_VERSION
from inference.faces import CELL, DETECTORS, Detector, Face, as_rgb, box_edges, check_options, reduced_copy
from inference.haar import HaarDetector
from inference.litert import REVISION, Network, converted

STRIDE = 2  # pixels between neighbouring squares
PROPOSAL_OVERLAP = 0.5  # intersection over union above which one of two proposals of one pyramid level goes
OVERLAP = 0.7  # the same between levels and after R-Net; after O-Net the intersection over the smaller box
STRIP_PIXELS = 24_000  # pixels that P-Net sees at once, about
SCALE_FACTOR = 0.709  # ratio between neighbouring sizes of the image pyramid
GRID = 16  # pixels: the sides of what P-Net sees are multiples of this, as far as they vary
MOST_THREADS = 4  # cores: more than these gain nothing on one picture
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # patches that R-Net and O-Net take at once
ENOUGH = 0.9  # pixels of a pyramid level for each pixel of a patch, at least


def build_detector(name: str, options: FaceConfig = FACES) -> Detector:
    """Return the detector of that name, `mtcnn` or `haar`.

    Raises:
        InputError: another name, or options that cannot be used.
    """
    if name not in DETECTORS:
        raise InputError(f"unknown detector {name!r}; accepted: {' or '.join(DETECTORS)}")
    return FaceDetector(options) if name == "mtcnn" else HaarDetector(options)


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
        self, options: FaceConfig = FACES, threads: int | None = None, networks: tuple[Path, Path, Path] | None = None
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
        picture_rgb, scale = reduced_copy(as_rgb(image_rgb), self.options.largest_side)
        smallest = max(self.options.min_face_size * scale, CELL)
        height, width = picture_rgb.shape[:2]
        levels = _Pyramid(picture_rgb, pyramid(width, height, smallest, SCALE_FACTOR))
        boxes = self._refine(levels, self._propose(levels))
        boxes, scores, points = self._finish(levels, boxes)
        return [
            _face(box / scale, score, (point / scale - 0.5).astype(np.float32))  # edge coordinates to pixel centres
            for box, score, point in zip(boxes, scores, points, strict=True)
        ]

    def detect_batch(self, images_rgb: Iterable[np.ndarray]) -> list[list[Face]]:
        """Find the faces of several pictures, of any sizes; each has its own list, as `detect` gives it."""
        return [self.detect(image_rgb) for image_rgb in images_rgb]

    def propagate(self, image_rgb: np.ndarray, faces: Sequence[Face]) -> list[Face]:
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
        picture_rgb = as_rgb(image_rgb)
        boxes = _squares(np.array([box_edges(face) for face in faces], np.float32))
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
            found.append(boxes[nms(boxes[:, :4], boxes[:, 4], PROPOSAL_OVERLAP)])
        boxes = np.concatenate(found)
        return _squares(boxes[nms(boxes[:, :4], boxes[:, 4], OVERLAP), :4])

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
        return _squares(boxes[nms(boxes, scores, OVERLAP)])

    def _finish(self, levels: "_Pyramid", boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return O-Net's boxes (n, 4), scores (n,) and landmarks (n, 5, 2), all in edge coordinates, best first."""
        if not len(boxes):
            return boxes, np.empty(0), np.empty((0, 5, 2))
        boxes, scores, points = self._look(boxes, levels.patches(boxes, 48))
        good = scores > self.options.thresholds[2]
        boxes, scores, points = boxes[good], scores[good], points[good]
        kept = nms_min(boxes, scores, OVERLAP)
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


def crop_versions(options: FaceConfig) -> dict[str, int | str]:
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


def pyramid(width: int, height: int, min_face_size: float, scale_factor: float) -> list[tuple[int, int]]:
    """Return the sizes (width, height) at which P-Net searches a picture, the largest first.

    At the first one the smallest face fills P-Net's 12-pixel cell; at the last one the picture's shorter side does.
    Empty where the picture is smaller than the smallest face.
    """
    sizes = []
    scale = CELL / min_face_size
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


def nms(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
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


def nms_min(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Return what `nms` does, by the intersection over the smaller box: of two in one another, the better."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for candidate in np.argsort(-scores, kind="stable"):
        sides = np.minimum(boxes[candidate, 2:], boxes[kept, 2:]) - np.maximum(boxes[candidate, :2], boxes[kept, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        if (shared <= overlap * np.minimum(areas[candidate], areas[kept])).all():
            kept.append(int(candidate))
    return np.array(kept, dtype=int)


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
