"""Cut detection: does a frame show another scene than the frames before it?

A frame is compared with earlier frames block by block. A block that reappears near its old place, at any exposure, is
explained by motion: pans, zooms and people who walk by. After a cut most blocks are new. As in PySceneDetect's adaptive
detector, the share of new blocks is also compared with its rolling average, so that fast motion is no cut.
"""

from collections import deque
from itertools import product

import cv2
import numpy as np

_SAMPLED = (192, 144)  # pixels: width and height of the sampled frame, which is averaged to a thumbnail
_SIZE = (64, 48)  # pixels: the thumbnail
_BLUR = 0.7  # pixels: standard deviation of the blur that hides noise and fine stripes which flicker as they move
_BLOCK = 8  # pixels: side of a block
_REACH = 8  # pixels: how far a block can move between two frames
_NEW = 0.1  # least mean squared difference of a new block, where the frame's contrast (standard deviation) is 1
_FLAT = 4.0  # gray levels: a thumbnail of less contrast is black or overexposed, and shows no scene
_CLIPPED = 250  # gray levels: an overexposed pixel
_BLACK = 12  # gray levels: a black pixel
_LEAST_EXPOSED = 8  # blocks: a frame with fewer that are not overexposed shows no scene
_LEAST_BLOCKS = 6  # fewer blocks count as this many
_SHARE = 0.28  # least share of new blocks after a cut
_RATIO = 3.3  # least share of new blocks after a cut, relative to the rolling average
_WEIGHT = 0.3  # of the newest frame in the rolling average
_WEIGHT_REPEATED = 0.1  # the same of a frame that repeats the one before
_MOST_OF_CUT = 0.5  # share that a cut counts with at most, so that the next one is seen soon after it
_BACK = (1, 4, 16)  # frames: how old the frames are that a new one is compared with; flashes and passers-by are shorter
# Top and left of each block; content can enter at the border, so that the outermost blocks are left out.
_BLOCKS = [(top, left) for top, left in product(range(4, 37, _BLOCK), range(8, 49, _BLOCK))]


class CutDetector:
    """Detects cuts in the frames of one source, in their order."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._past: deque[np.ndarray] = deque(maxlen=max(_BACK))  # thumbnails of this scene, the newest one last
        self._average = 0.0

    def is_cut(self, image: np.ndarray) -> bool:
        """Return whether a frame begins another scene than the one before. A frame of another size does.

        A frame that shows no scene, being black or overexposed, is no cut. The next frame that shows one is compared
        with the last one that did.

        Args:
            image: uint8 (h, w, 3), RGB or BGR, the same for all frames.
        """
        is_resized, self._shape = self._shape not in ((), image.shape), image.shape
        sampled = cv2.resize(image, _SAMPLED, interpolation=cv2.INTER_NEAREST)
        thumbnail = cv2.resize(sampled, _SIZE, interpolation=cv2.INTER_AREA)
        if is_resized:
            self._past.clear()
        is_cut = is_resized
        if thumbnail.std() >= _FLAT:
            is_cut = self._begins_scene(thumbnail) or is_resized
        return is_cut

    def _begins_scene(self, thumbnail: np.ndarray) -> bool:
        """Compare a thumbnail with those of the scene so far, and add it to them."""
        if not self._past:
            self._past.append(thumbnail)
            return False
        if np.array_equal(thumbnail, self._past[-1]):  # a repeated frame says little of how much the scene moves
            self._average *= 1 - _WEIGHT_REPEATED
            return False
        exposed = [block for block in _BLOCKS if _part(thumbnail >= _CLIPPED, *block).mean() < 0.5]
        if len(exposed) < _LEAST_EXPOSED:
            return False
        # Blocks that stay black are the bars beside a narrow video, or a dark stage, and say nothing.
        black = np.maximum(thumbnail, self._past[-1]) <= _BLACK
        blocks = [block for block in exposed if _part(black, *block).mean() < 0.5]
        needed = max(_SHARE, _RATIO * self._average)
        share = self._new_share(thumbnail, blocks, needed)
        is_cut = share > needed
        # In a picture that moves too fast for any comparison one false cut is not followed by others.
        self._average += _WEIGHT * (min(share, _MOST_OF_CUT if is_cut else 1.0) - self._average)
        if is_cut:
            self._past.clear()
        self._past.append(thumbnail)
        return is_cut

    def _new_share(self, thumbnail: np.ndarray, blocks: list[tuple[int, int]], enough: float) -> float:
        """Return the share, 0-1, of the blocks that no earlier thumbnail explains; not exact where at most `enough`."""
        count = max(len(blocks), _LEAST_BLOCKS)
        new, limit = blocks, enough * count
        past = [self._past[-back] for back in _BACK if back <= len(self._past)]
        for earlier in past:
            before, now = _normalized(earlier), _normalized(thumbnail)
            differences = ((before - now) ** 2).mean(axis=2)
            new = [block for block in new if _part(differences, *block).mean() > _NEW]
            if len(new) > limit:
                new = _unexplained(before, now, new)
            if len(new) <= limit:
                return len(new) / count
        for earlier in past:  # a flash or a light that was switched on overexposes one of the two
            darker = _with_tones_of(thumbnail, earlier), thumbnail
            brighter = earlier, _with_tones_of(earlier, thumbnail)
            for before, now in (darker, brighter):
                new = _unexplained(_normalized(before), _normalized(now), new)
                if len(new) <= limit:
                    return len(new) / count
        return len(new) / count


def _part(pixels: np.ndarray, top: int, left: int) -> np.ndarray:
    return pixels[top : top + _BLOCK, left : left + _BLOCK]


def _normalized(thumbnail: np.ndarray) -> np.ndarray:
    """Return float32 with mean 0 in each channel and contrast 1, whatever exposure and white balance are."""
    values = cv2.GaussianBlur(thumbnail.astype(np.float32), (0, 0), _BLUR)
    return (values - values.mean(axis=(0, 1))) / (values.std() + 1)


def _unexplained(before: np.ndarray, now: np.ndarray, blocks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the blocks of `now` that are not in `before` near their place, both normalized."""
    new = []
    for top, left in blocks:
        around = before[max(0, top - _REACH) : top + _BLOCK + _REACH, max(0, left - _REACH) : left + _BLOCK + _REACH]
        block = _part(now, top, left)
        if cv2.matchTemplate(around, block, cv2.TM_SQDIFF).min() > _NEW * block.size:
            new.append((top, left))
    return new


def _with_tones_of(reference: np.ndarray, thumbnail: np.ndarray) -> np.ndarray:
    """Return a thumbnail with its tones mapped so that each channel has the histogram of the reference."""
    mapped = np.empty(thumbnail.shape, np.float32)
    for channel in range(3):
        ranks, tones = [], np.arange(256)
        for each in (thumbnail, reference):
            counts = np.bincount(each[..., channel].ravel(), minlength=256)
            ranks.append(counts.cumsum() - counts / 2)
        mapped[..., channel] = np.interp(ranks[0], ranks[1], tones)[thumbnail[..., channel]]
    return mapped
