"""Text and free space on a frame."""

from collections.abc import Iterable
from functools import lru_cache

import cv2
import numpy as np

BLACK, WHITE, SILVER = (0, 0, 0), (255, 255, 255), (160, 160, 160)
BOLD, PLAIN = cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_SIMPLEX
LETTER_HEIGHT = 22  # pixels: height of a capital letter at scale 1
_DARKENED = 0.2  # share of the brightness that is left behind white text

Color = tuple[int, int, int]  # BGR, 0-255
Rect = tuple[int, int, int, int]  # left, top, right, bottom; pixels


def relative_size(image_bgr: np.ndarray) -> float:
    """Return the size of a frame relative to one of 480 rows. Lines and letters scale with it."""
    return min(image_bgr.shape[:2]) / 480


def line_width(image_bgr: np.ndarray) -> int:
    """Return the width of a box's lines, in pixels."""
    return max(1, round(1.6 * relative_size(image_bgr)))


def margin(scale: float) -> int:
    """Return the space around text, in pixels."""
    return round(0.4 * LETTER_HEIGHT * scale)


@lru_cache(maxsize=4096)
def text_width(text: str, font: int, scale: float) -> int:
    """Return the width of a text, in pixels."""
    return cv2.getTextSize(text, font, scale, _stroke(scale))[0][0]


def text_size(text: str, font: int, scale: float) -> tuple[int, int]:
    """Return the width and height of a text with its margins, in pixels."""
    return text_width(text, font, scale) + 2 * margin(scale), max(1, round(LETTER_HEIGHT * scale) + 2 * margin(scale))


def put_text(image_bgr: np.ndarray, text: str, origin: tuple[int, int], font: int, scale: float, color: Color) -> None:
    """Draw a text whose lower left corner is `origin`."""
    cv2.putText(image_bgr, text, origin, font, scale, color, _stroke(scale), cv2.LINE_AA)


def _stroke(scale: float) -> int:
    return max(1, round(1.6 * scale))


@lru_cache(maxsize=128)  # most texts stay for many frames, and letters are slow to draw
def text_image(text: str, font: int, scale: float, background: Color) -> np.ndarray:
    """Return a text with its margins, uint8 BGR, in black or white, whichever contrasts with the background."""
    brightness = np.dot(background, (0.114, 0.587, 0.299))  # 0-255
    width, height = text_size(text, font, scale)
    image_bgr = np.full((height, width, 3), background, np.uint8)
    origin = (margin(scale), height - margin(scale) - 1)
    put_text(image_bgr, text, origin, font, scale, BLACK if brightness > 100 else WHITE)
    return image_bgr


def darken(area_bgr: np.ndarray, remaining: float = _DARKENED) -> None:
    """Darken an area in place to a share of its brightness, 0-1."""
    cv2.convertScaleAbs(area_bgr, area_bgr, alpha=remaining)


def write_line(image_bgr: np.ndarray, text: str, at_top: bool) -> Rect:
    """Write a line on a black strip in the upper left corner, or a dark one in the lower left, and return its area."""
    height, width = image_bgr.shape[:2]
    scale = max(0.36, 0.46 * relative_size(image_bgr))
    scale *= min(1.0, 0.94 * width / max(1, text_width(text, PLAIN, scale)))
    line_bgr = text_image(text, PLAIN, scale, BLACK)[:height, :width]
    line_height, right = line_bgr.shape[:2]
    top = 0 if at_top else height - line_height
    area_bgr = image_bgr[top : top + line_height, :right]
    darken(area_bgr, 0.0 if at_top else _DARKENED)
    cv2.max(area_bgr, line_bgr, area_bgr)
    return 0, top, right, top + line_height


class FreeSpace:
    """Areas of a frame that are still free of text.

    Args:
        image_bgr: The frame.
        boxes: Boxes of its faces, which text must not cover.
    """

    def __init__(self, image_bgr: np.ndarray, boxes: Iterable[Rect]):
        self._height, self._width = image_bgr.shape[:2]
        self._gap = 2 * line_width(image_bgr) + 1
        self._faces = [*boxes]
        self._boxes = np.array(self._faces, np.int32).reshape(-1, 4)
        self._taken = np.empty((0, 4), np.int32)

    def take(self, rect: Rect) -> None:
        """Mark an area as used."""
        self._taken = np.vstack([self._taken, np.array(rect, np.int32)])

    def is_free(self, rect: Rect, own: int, over_faces: bool = False) -> bool:
        """Return whether an area lies inside the frame and covers neither text nor other faces.

        Args:
            rect: The area.
            own: Index of the face that the area belongs to.
            over_faces: The area may cover other faces.
        """
        left, top, right, bottom = rect
        if left < 0 or top < 0 or right > self._width or bottom > self._height:
            return False
        covered = _overlaps(self._boxes, rect)
        covered[own] = False
        return not _overlaps(self._taken, rect).any() and (over_faces or not covered.any())

    def take_beside(self, own: int, side: int, width: int, height: int) -> tuple[int, int] | None:
        """Take an area on one side of a face and return its left and top; None where there is no room.

        Args:
            own: Index of the face.
            side: 0: right of the face, 1: left.
            width: Width of the area, pixels.
            height: Height of the area, pixels.
        """
        box_left, box_top, box_right, box_bottom = self._faces[own]
        left = box_left - self._gap - width if side else box_right + self._gap
        for top in (box_top, box_bottom - height):
            top = max(0, min(top, self._height - 1 - height))
            rect = (left, top, left + width, top + height)
            if self.is_free(rect, own):
                self.take(rect)
                return left, top
        return None


def _overlaps(rects: np.ndarray, rect: Rect) -> np.ndarray:
    left, top, right, bottom = rect
    return (rects[:, 0] < right) & (rects[:, 2] > left) & (rects[:, 1] < bottom) & (rects[:, 3] > top)
