"""The image pyramid of mtcnn: its levels, the tiles that P-Net sees, and the patches for R-Net and O-Net."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from inference.faces import CELL

STRIDE = 2  # pixels between neighbouring cells of P-Net
TILE_PIXELS = 24_000  # approximate size of a tile
TILE_GRID = 16  # pixels: tile sides are multiples of this, so that few input shapes occur
MIN_PATCH_SCALE = 0.9  # a patch is taken from a level with at least this many pixels for each of its own
GRAY = (128, 128, 128)  # the value of pixels outside the image


def pyramid_sizes(width: int, height: int, min_face_size: float, scale_factor: float) -> list[tuple[int, int]]:
    """Return the sizes (width, height) at which P-Net searches an image, the largest first.

    At the first size the smallest face fills P-Net's 12-pixel cell; at the last one the shorter side of the image does.
    The list is empty if the image is smaller than the smallest face.
    """
    sizes = []
    scale = CELL / min_face_size
    while min(width, height) * scale >= CELL:
        sizes.append((round(width * scale), round(height * scale)))
        scale *= scale_factor
    return sizes


class Tile(NamedTuple):
    """Adjacent rows of a pyramid level.

    Attributes:
        top: First row of the tile in the level, pixels.
        pixels_rgb: uint8 (h, w, 3), padded with gray.
        rows, columns: Numbers of cells that do not reach into the padding.
    """

    top: int
    pixels_rgb: np.ndarray
    rows: int
    columns: int


def tiles(level_rgb: np.ndarray) -> Iterator[Tile]:
    """Yield a pyramid level in tiles, which bound the memory of P-Net and are spread over the threads.

    Neighbouring tiles overlap, so that each cell of the level lies in exactly one tile.
    """
    height, width = level_rgb.shape[:2]
    padded = -(-width // TILE_GRID) * TILE_GRID
    step = STRIDE * max(TILE_PIXELS // (STRIDE * padded), 8)
    full = step + CELL - STRIDE  # the next tile begins one stride after the last cell of this one
    tops = range(0, height - CELL + 1, step)
    last = min(-(-(height - tops[-1]) // TILE_GRID) * TILE_GRID, full)
    below = max(0, tops[-1] + last - height)
    level_rgb = cv2.copyMakeBorder(level_rgb, 0, below, 0, padded - width, cv2.BORDER_CONSTANT, value=GRAY)
    for top in tops:
        pixels_rgb = level_rgb[top : top + (last if top == tops[-1] else full)]
        rows = min((height - top - CELL) // STRIDE + 1, step // STRIDE)
        yield Tile(top, pixels_rgb, rows, (width - CELL) // STRIDE + 1)


class ImagePyramid:
    """An image at decreasing sizes, each made from the one before.

    Args:
        image_rgb: uint8 (h, w, 3).
        sizes: (width, height) of the levels that P-Net searches, the largest first.
        min_scale: Without `sizes`: smallest scale of the last level.

    Attributes:
        searched: The levels of `sizes`, uint8 (h, w, 3).
    """

    def __init__(self, image_rgb: np.ndarray, sizes: Sequence[tuple[int, int]] = (), min_scale: float = 1.0):
        width = image_rgb.shape[1]
        self._levels = [image_rgb]
        first = sizes[0][0] if sizes else min_scale * width
        while min(self._levels[-1].shape[:2]) >= 2 and self._levels[-1].shape[1] >= 2 * first:
            half = (self._levels[-1].shape[1] // 2, self._levels[-1].shape[0] // 2)
            self._levels.append(cv2.resize(self._levels[-1], half, interpolation=cv2.INTER_AREA))
        for size in sizes:
            method = cv2.INTER_AREA if size[0] <= self._levels[-1].shape[1] else cv2.INTER_LINEAR
            self._levels.append(cv2.resize(self._levels[-1], size, interpolation=method))
        self.searched = self._levels[len(self._levels) - len(sizes) :]
        self._scales = np.array([level.shape[1] / width for level in self._levels])

    def to_image(self, level_rgb: np.ndarray) -> np.ndarray:
        """Return the factors (x, y, x, y) from pixels of a level to pixels of the image, float32."""
        height, width = self._levels[0].shape[:2]
        return np.array([width / level_rgb.shape[1], height / level_rgb.shape[0]] * 2, np.float32)

    def patches(self, boxes: np.ndarray, side: int) -> np.ndarray:
        """Return square boxes, cropped and resized; pixels outside the image are gray.

        Each patch is taken from the smallest level that has a pixel for each of its own, so that nothing aliases.

        Args:
            boxes: float32 (n, 4) left, top, right, bottom, in pixels of the image.
            side: Side of the patches, pixels.

        Returns:
            uint8 (n, side, side, 3).
        """
        patches_rgb = np.empty((len(boxes), side, side, 3), np.uint8)
        scales = side / (boxes[:, 2] - boxes[:, 0])
        chosen = (self._scales[None] >= MIN_PATCH_SCALE * scales[:, None]).sum(axis=1).clip(1) - 1  # scales fall
        steps = (np.arange(side, dtype=np.float32) + 0.5) / side
        for index in np.unique(chosen):
            level_rgb = self._levels[index]
            members = np.flatnonzero(chosen == index)
            squares = (boxes[members] / self.to_image(level_rgb)).astype(np.float32)
            x, y = (squares[:, [axis]] + (squares[:, [axis + 2]] - squares[:, [axis]]) * steps - 0.5 for axis in (0, 1))
            shape = (len(members), side, side)
            map_x = np.broadcast_to(x[:, None, :], shape).reshape(-1, side)
            map_y = np.broadcast_to(y[:, :, None], shape).reshape(-1, side)
            patches_rgb[members] = cv2.remap(
                level_rgb, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=GRAY
            ).reshape(*shape, 3)
        return patches_rgb


def patch(image_rgb: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Return one square box as `ImagePyramid.patches` does, without resizing the rest of the image."""
    height, width = image_rgb.shape[:2]
    left, top = np.floor(box[:2]).astype(int).clip(0, (width - 1, height - 1))
    right, bottom = np.ceil(box[2:]).astype(int).clip((left + 1, top + 1), (width, height))
    levels = ImagePyramid(image_rgb[top:bottom, left:right], min_scale=MIN_PATCH_SCALE * side / (box[2] - box[0]))
    return levels.patches((box - [left, top, left, top])[None], side)
