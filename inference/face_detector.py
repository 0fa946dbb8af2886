"""Face detection with mtcnn: image pyramid, P-Net, R-Net and O-Net on LiteRT.

The networks and their weights come from the `mtcnn` package. Pyramid, decoding and non-maximum suppression (NMS) are
implemented here and in `image_pyramid` with numpy and OpenCV.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.errors import InputError
from common.processes import available_cores
from configuration import FACES, FaceConfig
from inference.crops import CROP_VERSION
from inference.faces import CELL, DETECTORS, Detector, Face, as_rgb, box_edges, check_options, reduced_copy
from inference.haar import HaarDetector
from inference.image_pyramid import STRIDE, ImagePyramid, patch, pyramid_sizes, tiles
from inference.litert import REVISION
from inference.mtcnn_networks import MtcnnNetworks, network_files

DETECTOR_VERSION = 1  # raise it when `FaceDetector` or `detect_in_crop` finds other faces in the same image
SCALE_FACTOR = 0.709  # ratio between neighbouring sizes of the image pyramid
PROPOSAL_OVERLAP = 0.5  # NMS threshold for the proposals of one pyramid level (intersection over union)
OVERLAP = 0.7  # NMS threshold between levels, after R-Net, and after O-Net (there: over the smaller box)
MAX_THREADS = 4  # more cores do not speed up one image
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # numbers of patches that R-Net and O-Net take at once


def build_detector(name: str, options: FaceConfig = FACES) -> Detector:
    """Return the detector with a name, `mtcnn` or `haar`.

    Raises:
        InputError: The name is not known, or an option is out of range.
    """
    if name not in DETECTORS:
        raise InputError(f"unknown detector {name!r}; accepted: {' or '.join(DETECTORS)}")
    return FaceDetector(options) if name == "mtcnn" else HaarDetector(options)


class FaceDetector:
    """Detect faces and their five landmarks with mtcnn, and propagate known faces to the next frame.

    Args:
        options: Smallest face, thresholds and size of the searched copy.
        threads: Cores for one image; None: all, up to four. The result does not depend on it.
        networks: The converted networks, as `network_files` returns them; None: call it.

    Raises:
        InputError: An option is out of range.
    """

    def __init__(
        self, options: FaceConfig = FACES, threads: int | None = None, networks: tuple[Path, Path, Path] | None = None
    ):
        check_options(options)
        self.options = options
        files = networks or network_files()
        count = threads or min(available_cores(), MAX_THREADS)
        self._workers = [MtcnnNetworks(*files) for _ in range(count)]  # an interpreter serves one thread
        self._pool = ThreadPoolExecutor(count - 1) if count > 1 else None

    def detect(self, image_rgb: np.ndarray) -> list[Face]:
        """Find the faces in an image.

        Images larger than `options.largest_side` are searched in a reduced copy; faces that are smaller than 12 pixels
        there are not found.

        Args:
            image_rgb: uint8 (h, w, 3) RGB, or (h, w) or (h, w, 1) gray.

        Returns:
            The faces, by decreasing confidence.

        Raises:
            ValueError: The array is not such an image.
        """
        searched_rgb, scale = reduced_copy(as_rgb(image_rgb), self.options.largest_side)
        smallest = max(self.options.min_face_size * scale, CELL)
        height, width = searched_rgb.shape[:2]
        levels = ImagePyramid(searched_rgb, pyramid_sizes(width, height, smallest, SCALE_FACTOR))
        boxes = self._refine(levels, self._propose(levels))
        return [
            _face(box / scale, score, (points / scale - 0.5).astype(np.float32))  # edge coordinates to pixel centres
            for box, score, points in zip(*self._finish(levels, boxes), strict=True)
        ]

    def propagate(self, image_rgb: np.ndarray, faces: Sequence[Face]) -> list[Face]:
        """Find known faces in the next frame with O-Net alone, many times faster than `detect`.

        Args:
            image_rgb: As for `detect`.
            faces: The faces in the frame before.

        Returns:
            One face for each, in the same order. A face below `options.thresholds[2]` is lost.

        Raises:
            ValueError: The array is not an image, or a box is not finite.
        """
        if not faces:
            return []
        image_rgb = as_rgb(image_rgb)
        boxes = _squares(np.array([box_edges(face) for face in faces], np.float32))
        patches_rgb = np.concatenate([patch(image_rgb, box, 48) for box in boxes])
        return [
            _face(box, score, (points - 0.5).astype(np.float32))
            for box, score, points in zip(*self._run_onet(boxes, patches_rgb), strict=True)
        ]

    def _propose(self, levels: ImagePyramid) -> np.ndarray:
        """Return P-Net's square proposals over the pyramid, (n, 4) left, top, right, bottom."""
        parts = [(number, tile) for number, level_rgb in enumerate(levels.searched) for tile in tiles(level_rgb)]
        outputs = self._spread(MtcnnNetworks.propose, [tile.pixels_rgb for _, tile in parts])
        proposals: list[list[np.ndarray]] = [[] for _ in levels.searched]
        for (number, tile), (offsets, scores) in zip(parts, outputs, strict=True):
            inside = np.s_[: tile.rows, : tile.columns]
            proposals[number].append(self._decode(offsets[inside], scores[inside], tile.top))
        found = [np.empty((0, 5), np.float32)]
        for level_rgb, of_tiles in zip(levels.searched, proposals, strict=True):
            boxes = np.concatenate(of_tiles)
            boxes[:, :4] *= levels.to_image(level_rgb)
            found.append(boxes[nms(boxes[:, :4], boxes[:, 4], PROPOSAL_OVERLAP)])
        boxes = np.concatenate(found)
        return _squares(boxes[nms(boxes[:, :4], boxes[:, 4], OVERLAP), :4])

    def _decode(self, offsets: np.ndarray, scores: np.ndarray, top: int) -> np.ndarray:
        """Return the boxes and scores (n, 5) of P-Net's output for a tile that begins at row `top` of its level."""
        rows, columns = np.nonzero(scores > self.options.thresholds[0])
        boxes = np.empty((len(rows), 5), np.float32)
        boxes[:, 0] = boxes[:, 2] = STRIDE * columns
        boxes[:, 1] = boxes[:, 3] = STRIDE * rows + top
        boxes[:, 2:4] += CELL
        boxes[:, :4] += offsets[rows, columns] * CELL
        boxes[:, 4] = scores[rows, columns]
        return boxes

    def _refine(self, levels: ImagePyramid, boxes: np.ndarray) -> np.ndarray:
        """Return the squares (n, 4) that R-Net accepts, corrected by its offsets."""
        if not len(boxes):
            return boxes
        offsets, scores = self._in_batches(MtcnnNetworks.refine, levels.patches(boxes, 24))
        accepted = scores > self.options.thresholds[1]
        boxes, scores = _corrected(boxes, offsets)[accepted], scores[accepted]
        return _squares(boxes[nms(boxes, scores, OVERLAP)])

    def _finish(self, levels: ImagePyramid, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return O-Net's boxes (n, 4), scores (n,) and landmarks (n, 5, 2), in edge coordinates, the best first."""
        if not len(boxes):
            return boxes, np.empty(0), np.empty((0, 5, 2))
        boxes, scores, points = self._run_onet(boxes, levels.patches(boxes, 48))
        accepted = scores > self.options.thresholds[2]
        boxes, scores, points = boxes[accepted], scores[accepted], points[accepted]
        kept = nms_min(boxes, scores, OVERLAP)
        return boxes[kept], scores[kept], points[kept]

    def _run_onet(self, boxes: np.ndarray, patches_rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return O-Net's box, score and landmarks for each square."""
        offsets, points, scores = self._in_batches(MtcnnNetworks.finish, patches_rgb)
        points = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
        return _corrected(boxes, offsets), scores, points

    def _in_batches(self, run: Callable[..., tuple[np.ndarray, ...]], patches_rgb: np.ndarray) -> list[np.ndarray]:
        """Run a network on patches, in batches of a few sizes that are spread over the threads."""
        share = -(-len(patches_rgb) // len(self._workers))
        batches, start = [], 0
        while start < len(patches_rgb):
            most = min(share, len(patches_rgb) - start)
            end = start + max(size for size in BATCH_SIZES if size <= most)
            batches.append(patches_rgb[start:end])
            start = end
        return [np.concatenate(part) for part in zip(*self._spread(run, batches), strict=True)]

    def _spread(self, run: Callable[..., Any], arrays: list[np.ndarray]) -> list[Any]:
        """Run a network on each array: the largest array first, each on the thread with the least load."""
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

        others = [self._pool.submit(work, n) for n in range(1, len(shares)) if shares[n]] if self._pool else []
        work(0)
        for other in others:
            other.result()
        return [results[index] for index in range(len(arrays))]


def crop_versions(options: FaceConfig) -> dict[str, int | str]:
    """Return the versions of code and libraries that a crop depends on; if one changes, crops are made again.

    Versions of the detector are left out if no detector is used. numpy is left out: its arithmetic does not change.
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


def nms(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Apply greedy non-maximum suppression.

    Args:
        boxes: (n, 4) left, top, right, bottom.
        scores: (n,)
        overlap: Largest accepted intersection over union with a better box.

    Returns:
        Indices of the boxes kept, the best first.
    """
    corners_and_sizes: Any = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    confidences: Any = scores
    return np.array(cv2.dnn.NMSBoxes(corners_and_sizes, confidences, 0.0, overlap), dtype=int)


def nms_min(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Apply non-maximum suppression by the intersection over the smaller box, which also removes nested boxes."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for candidate in np.argsort(-scores, kind="stable"):
        sides = np.minimum(boxes[candidate, 2:], boxes[kept, 2:]) - np.maximum(boxes[candidate, :2], boxes[kept, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        if (shared <= overlap * np.minimum(areas[candidate], areas[kept])).all():
            kept.append(int(candidate))
    return np.array(kept, dtype=int)


def _corrected(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _squares(boxes: np.ndarray) -> np.ndarray:
    """Return the smallest squares around boxes, at least one pixel large, with the same centres."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = np.max(boxes[:, 2:] - boxes[:, :2], axis=1, keepdims=True).clip(1) / 2
    return np.hstack([centres - half, centres + half])


def _face(box: np.ndarray, confidence: float, points: np.ndarray) -> Face:
    left, top, right, bottom = (float(edge) for edge in box)
    return Face(left, top, right - left, bottom - top, float(confidence), points)
