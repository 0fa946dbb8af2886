"""Cut detection: find the frames that begin a new scene.

Each frame is compared with earlier frames block by block. A block found near its old place, at any exposure, is
explained by motion. After a cut most blocks are new. As in PySceneDetect's adaptive detector, the share of new blocks
is also compared with its rolling average, so that fast motion is no cut.
"""

from collections import deque

import cv2
import numpy as np

_SAMPLED = (192, 144)  # pixels: width and height of the subsampled frame, before averaging to a thumbnail
_SIZE = (64, 48)  # pixels: the thumbnail
_BLUR = 0.7  # pixels: standard deviation of the blur that suppresses noise and aliasing
_BLOCK = 8  # pixels: side of a block
_GRID = (6, 5)  # blocks: across and down
_LEFT, _TOP = 8, 4  # pixels: border without blocks, where content enters
_REACH = 8  # pixels: maximum motion of a block between two frames
_NEW = 0.1  # minimum mean squared difference of a new block, at contrast (standard deviation) 1
_NEW_TONED = 0.11  # the same after histogram matching, for flashes and switched lights
_FLAT = 4.0  # gray levels: a thumbnail of less contrast is black or overexposed
_CLIPPED = 250  # gray levels: an overexposed pixel
_BLACK = 12  # gray levels: a black pixel
_LEAST_EXPOSED = 8  # blocks: a frame with fewer well-exposed blocks shows no scene
_LEAST_BLOCKS = 6  # minimum denominator of the share of new blocks
_SHARE = 0.28  # minimum share of new blocks after a cut
_RATIO = 3.3  # the same relative to the rolling average
_WEIGHT = 0.3  # of the newest frame in the rolling average
_WEIGHT_REPEATED = 0.1  # the same of a frame that repeats the one before
_MOST_OF_CUT = 0.5  # a cut's maximum share in the average, so that the next cut is detected
_FIRST = 0.1  # rolling average before the first frame
_BACK = (1, 4, 16)  # frames: age of the frames compared with; longer than flashes


class CutDetector:
    """Detects cuts in the frames of one source, in their order."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        # Thumbnails of this scene, uint8, and normalized, float32; the newest last.
        self._past: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=max(_BACK))
        self._average = _FIRST

    def is_cut(self, image: np.ndarray) -> bool:
        """Return whether a frame begins a new scene. A frame of another size does.

        A black or overexposed frame is no cut. The next frame is compared with the last one before it.

        Args:
            image: uint8 (h, w, 3), RGB or BGR, the same for all frames.
        """
        is_resized, self._shape = self._shape not in ((), image.shape), image.shape
        sampled = cv2.resize(image, _SAMPLED, interpolation=cv2.INTER_NEAREST)
        thumbnail = cv2.resize(sampled, _SIZE, interpolation=cv2.INTER_AREA)
        if is_resized:
            self._past.clear()
        return self._begins_scene(thumbnail) or is_resized

    def _begins_scene(self, thumbnail: np.ndarray) -> bool:
        """Compare a thumbnail with those of the scene so far, and add it to them."""
        normalized, contrast = _normalized(thumbnail)
        if contrast < _FLAT:
            return False
        is_cut = False
        if self._past:
            before, before_normalized = self._past[-1]
            new = _block_means((before_normalized - normalized) ** 2) > _NEW
            if not new.any() and np.array_equal(thumbnail, before):  # a repeated frame tells little about motion
                self._average *= 1 - _WEIGHT_REPEATED
                return False
            share = 0.0
            if new.sum() > _SHARE * _LEAST_BLOCKS:
                exposed = _block_means(thumbnail >= _CLIPPED) < 0.5
                if exposed.sum() < _LEAST_EXPOSED:
                    return False
                # Blocks that stay black, such as bars beside a narrow video, are ignored.
                blocks = exposed & (_block_means(np.maximum(thumbnail, before) <= _BLACK) < 0.5)
                needed = max(_SHARE, _RATIO * self._average)
                share = self._new_share(thumbnail, normalized, blocks, needed)
                is_cut = share > needed
            # After a false cut in very fast motion, the average prevents more of them.
            self._average += _WEIGHT * (min(share, _MOST_OF_CUT if is_cut else 1.0) - self._average)
        if is_cut:
            self._past.clear()
        self._past.append((thumbnail, normalized))
        return is_cut

    def _new_share(self, thumbnail: np.ndarray, normalized: np.ndarray, blocks: np.ndarray, enough: float) -> float:
        """Return the share of new blocks, 0-1; only an upper bound where it is at most `enough`.

        Args:
            thumbnail: uint8, the new one.
            normalized: The same, normalized.
            blocks: bool, down and across: the blocks that count.
            enough: Share at which the comparisons stop.
        """
        count = max(blocks.sum(), _LEAST_BLOCKS)
        new, limit = blocks, enough * count
        past = [self._past[-back] for back in _BACK if back <= len(self._past)]
        for _, before in past:
            new = new & (_block_means((before - normalized) ** 2) > _NEW)
            if new.sum() > limit:
                new = _unexplained(before, normalized, new, limit, _NEW)
            if new.sum() <= limit:
                return new.sum() / count
        for earlier, before in past:  # a flash or a switched light overexposes one of them
            new = _unexplained(_normalized(_with_tones_of(thumbnail, earlier))[0], normalized, new, limit, _NEW_TONED)
            if new.sum() > limit:
                new = _unexplained(before, _normalized(_with_tones_of(earlier, thumbnail))[0], new, limit, _NEW_TONED)
            if new.sum() <= limit:
                break
        return new.sum() / count


def _normalized(thumbnail: np.ndarray) -> tuple[np.ndarray, float]:
    """Return float32 with mean 0 in each channel and contrast 1 at any exposure, and the contrast in gray levels."""
    values = cv2.GaussianBlur(thumbnail.astype(np.float32), (0, 0), _BLUR)
    means, deviations = cv2.meanStdDev(values)
    contrast = float(np.sqrt((deviations**2).mean() + means.var()))
    return (values - means.ravel().astype(np.float32)) * np.float32(1 / (contrast + 1)), contrast


def _block_means(values: np.ndarray) -> np.ndarray:
    """Return the mean of each block over its pixels and channels, down and across."""
    across, down = _GRID
    inner = values[_TOP : _TOP + down * _BLOCK, _LEFT : _LEFT + across * _BLOCK].astype(np.float32)
    means = cv2.resize(inner, _GRID, interpolation=cv2.INTER_AREA)
    return means.mean(axis=2)


def _unexplained(before: np.ndarray, now: np.ndarray, blocks: np.ndarray, limit: float, least: float) -> np.ndarray:
    """Return the blocks of `now` without a match near them in `before`; stop once at most `limit` are left."""
    new = blocks.copy()
    count = blocks.sum()
    for row, column in np.argwhere(blocks):
        top, left = _TOP + row * _BLOCK, _LEFT + column * _BLOCK
        around = before[max(0, top - _REACH) : top + _BLOCK + _REACH, left - _REACH : left + _BLOCK + _REACH]
        block = now[top : top + _BLOCK, left : left + _BLOCK]
        if cv2.matchTemplate(around, block, cv2.TM_SQDIFF).min() <= least * block.size:
            new[row, column] = False
            count -= 1
            if count <= limit:
                break
    return new


def _with_tones_of(reference: np.ndarray, thumbnail: np.ndarray) -> np.ndarray:
    """Return a thumbnail whose channels are mapped to the histograms of the reference."""
    mapped = np.empty_like(thumbnail)
    for channel in range(3):
        counts, target_counts = (
            np.bincount(each[..., channel].ravel(), minlength=256) for each in (thumbnail, reference)
        )
        middle = counts.cumsum() - (counts + 1) // 2  # rank of the middle pixel of each tone
        tones = np.searchsorted(target_counts.cumsum(), middle, side="right").astype(np.uint8)
        mapped[..., channel] = cv2.LUT(thumbnail[..., channel], tones)
    return mapped
