"""What is drawn on a frame: boxes, expressions, bars, each face's last seconds, a status line; readable on any picture.

Everything grows with the picture. Words keep out of each other's way: where there is no room for all of a face's
words they grow shorter, and bars are drawn only where they cover no other face.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from common.emotions import COLORS, UNSURE
from configuration import WEBCAM
from realtime.recognition import Recognition, Result

KEYS = {
    "q, Esc": "quit",
    "space": "pause",
    "left, right": "step through pictures",
    "s": "snapshot",
    "r": "record",
    "b": "bars",
    "1-9": "follow a face",
    "0": "all faces",
    "h": "this help",
}
_BLACK, _WHITE, _SILVER = (0, 0, 0), (255, 255, 255), (160, 160, 160)
_BOLD, _PLAIN = cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_SIMPLEX
_FONT_HEIGHT = 22  # pixels: a capital letter's height at scale 1
_SHADE = 0.2  # what is left of the picture's brightness behind white words
_EASE = 0.1  # weight of the newest frame in the status line's numbers

Rect = tuple[int, int, int, int]  # left, top, right, bottom; pixels of the picture


@dataclass
class View:
    """What the person who looks on has chosen to see.

    Attributes:
        bars: A bar for each emotion beside a face, and its last seconds below them.
        help: The list of keys.
        followed: Number of the face that stands out from the others; 0: none does.
        note: A line for the person, such as where a snapshot was written.
        recording: A recording is running.
        paused: The picture stands.
    """

    bars: bool = True
    help: bool = False
    followed: int = 0
    note: str = ""
    recording: bool = False
    paused: bool = False


def draw(result: Result) -> np.ndarray:
    """Return a copy of one picture with all that can be said without a past: boxes, expressions, bars.

    Returns:
        uint8 BGR, of the frame's size.
    """
    return Drawer(still=True).draw(result)


class Drawer:
    """Draws the results of a run, of which it remembers the last seconds of each numbered face.

    Args:
        still: The frames are single pictures: they have no past, and nobody asks for their frame rate.
    """

    def __init__(self, still: bool = False):
        self._still = still
        self._past = _Past()
        self._sides: dict[int, int] = {}  # by face number: the place of its bars, which they keep while there is room
        self._drawn = 0.0  # seconds: when the frame before was begun, or drawn again
        self._interval, self._detection, self._network, self._drawing = _Mean(), _Mean(), _Mean(), _Mean()
        self._status, self._status_written = "", -np.inf  # the line, and when it was written anew, in seconds

    def draw(self, result: Result, view: View | None = None) -> np.ndarray:
        """Take up a new frame's result and draw it.

        Returns:
            uint8 BGR, a copy of the frame, of its size.
        """
        start = time.perf_counter()
        if self._drawn:
            self._interval.add(start - self._drawn)
        self._detection.add(result.timing.detection)
        self._network.add(result.timing.network)
        self._past.add(result)
        drawn_bgr = self.redraw(result, view)
        self._drawn = start
        self._drawing.add(time.perf_counter() - start)
        return drawn_bgr

    def redraw(self, result: Result, view: View | None = None) -> np.ndarray:
        """Draw the newest result again, after the view has changed."""
        self._drawn = time.perf_counter()  # a pause is no slowness
        view = view or View()
        image_bgr = result.frame.image_bgr.copy()
        recognitions = sorted(result.recognitions, key=lambda each: each.face.height, reverse=True)
        boxes = [_corners(image_bgr, recognition) for recognition in recognitions]
        space = _Space(image_bgr, boxes)
        for recognition, box in reversed(list(zip(recognitions, boxes, strict=True))):
            _draw_box(image_bgr, recognition, box, _is_dimmed(recognition, view))
        if not self._still:
            _write_strip(image_bgr, self._status_text(), at_top=False, space=space)
        for index, (recognition, box) in enumerate(zip(recognitions, boxes, strict=True)):
            _draw_tag(image_bgr, recognition, box, _is_dimmed(recognition, view), space, index)
        if view.bars:
            self._draw_all_bars(image_bgr, recognitions, boxes, view, space, result.frame.time)
        return image_bgr

    def _status_text(self) -> str:
        if (
            not self._status or self._drawn - self._status_written >= WEBCAM.status_step
        ):  # not in every frame: it is to be read
            rate = f"{1 / self._interval.value:.1f} frames/s   " if self._interval.value > 0 else ""
            stages = {"detection": self._detection, "network": self._network, "drawing": self._drawing}
            measured = (f"{name} {1000 * mean.value:.1f} ms" for name, mean in stages.items() if mean.value > 0)
            self._status, self._status_written = rate + "   ".join(measured), self._drawn
        return self._status

    def _draw_all_bars(
        self,
        image_bgr: np.ndarray,
        recognitions: list[Recognition],
        boxes: list[Rect],
        view: View,
        space: "_Space",
        now: float,
    ) -> None:
        sides = {}
        smallest = WEBCAM.bars_face * max(1.0, len(boxes) / WEBCAM.bars_crowd) * min(image_bgr.shape[:2])
        for index, (recognition, box) in enumerate(zip(recognitions, boxes, strict=True)):
            is_large = recognition.face.height >= smallest
            if _is_dimmed(recognition, view) or not (is_large or recognition.track_id == view.followed > 0):
                continue
            names = tuple(recognition.probabilities)
            has_past = recognition.track_id > 0 and not self._still
            panels = [_panel(names, _unit(image_bgr), has_past, is_short) for is_short in (False, True)]
            if found := space.beside(index, box, panels, self._sides.get(recognition.track_id, 0)):
                place, panel, (left, top) = found
                sides[recognition.track_id] = place
                area_bgr = image_bgr[top : top + panel.height, left : left + panel.width]
                past = self._past.columns(recognition.track_id, now, panel.past_width) if has_past else None
                _draw_bars(area_bgr, panel, recognition, past)
        self._sides = sides


class _Mean:
    """A mean in which the newest values weigh most."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, value: float) -> None:
        self.value = self.value + _EASE * (value - self.value) if self.value else value


class _FacePast:
    """What one face showed, the newest values last."""

    _LENGTH = round(WEBCAM.past_seconds / WEBCAM.past_step) + 2  # values that can matter

    def __init__(self) -> None:
        self._count = 0
        self._times = np.zeros(2 * self._LENGTH)
        self._probabilities = np.zeros(2 * self._LENGTH)
        self._colors_bgr = np.zeros((2 * self._LENGTH, 3), np.uint8)

    @property
    def newest(self) -> float:
        return self._times[self._count - 1] if self._count else -np.inf

    def add(self, now: float, recognition: Recognition) -> None:
        arrays = self._times, self._probabilities, self._colors_bgr
        if self._count == len(self._times):  # full: keep the newer half
            self._count = self._LENGTH
            for array in arrays:
                array[: self._LENGTH] = array[self._LENGTH :]
        values = now, recognition.probability, _color_bgr(recognition)
        for array, value in zip(arrays, values, strict=True):
            array[self._count] = value
        self._count += 1

    def columns(self, now: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        times = self._times[: self._count]
        moments = now - WEBCAM.past_seconds * np.arange(count - 1, -1, -1) / count
        newest = np.searchsorted(times, moments, side="right") - 1
        is_seen = (newest >= 0) & (moments - times[newest] <= WEBCAM.past_gap)
        return np.where(is_seen, self._probabilities[newest], 0.0), self._colors_bgr[newest]


class _Past:
    """What each numbered face showed in the last seconds; faces that went are forgotten."""

    def __init__(self) -> None:
        self._by_number: dict[int, _FacePast] = {}
        self._now = 0.0

    def add(self, result: Result) -> None:
        now = result.frame.time
        if now < self._now:  # another recording, or a loop
            self._by_number.clear()
        self._now = now
        for recognition in result.recognitions:
            if recognition.track_id:
                past = self._by_number.setdefault(recognition.track_id, _FacePast())
                if now - past.newest >= WEBCAM.past_step:
                    past.add(now, recognition)
        for number, past in list(self._by_number.items()):
            if now - past.newest > WEBCAM.past_seconds:
                del self._by_number[number]

    def columns(self, number: int, now: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the last seconds in `count` steps: probabilities (count,), 0 where not seen; colours (count, 3)."""
        past = self._by_number.get(number)
        return past.columns(now, count) if past else (np.zeros(count), np.zeros((count, 3), np.uint8))


class _Space:
    """What is still free of a picture."""

    def __init__(self, image_bgr: np.ndarray, boxes: Sequence[Rect]):
        self._height, self._width = image_bgr.shape[:2]
        self._gap = 2 * _line_width(image_bgr) + 1
        self._boxes = np.array(boxes, np.int32).reshape(-1, 4)
        self._taken = np.empty((0, 4), np.int32)

    def take(self, rect: Rect) -> None:
        self._taken = np.vstack([self._taken, np.array(rect, np.int32)])

    def is_free(self, rect: Rect, own: int, over_faces: bool = False) -> bool:
        """Tell whether an area lies in the picture and covers no words and, unless allowed, no face but its own."""
        left, top, right, bottom = rect
        if left < 0 or top < 0 or right > self._width or bottom > self._height:
            return False
        covered = _overlaps(self._boxes, rect)
        covered[own] = False
        return not _overlaps(self._taken, rect).any() and (over_faces or not covered.any())

    def beside(
        self, own: int, box: Rect, panels: "Sequence[_Panel]", preferred: int
    ) -> "tuple[int, _Panel, tuple[int, int]] | None":
        """Take room for the largest panel that fits beside a face: the side, the panel, its left and top."""
        for panel in panels:
            for place in (preferred, 1 - preferred):
                left = box[2] + self._gap if place == 0 else box[0] - self._gap - panel.width
                lowest = self._height - 1 - panel.height
                for top in (box[1], box[3] - panel.height):
                    top = max(0, min(top, lowest))
                    rect = (left, top, left + panel.width, top + panel.height)
                    if self.is_free(rect, own):
                        self.take(rect)
                        return place, panel, (left, top)
        return None


def _overlaps(rects: np.ndarray, rect: Rect) -> np.ndarray:
    left, top, right, bottom = rect
    return (rects[:, 0] < right) & (rects[:, 2] > left) & (rects[:, 1] < bottom) & (rects[:, 3] > top)  # may touch


def _unit(image_bgr: np.ndarray) -> float:
    """Return how much larger the picture is than one of 480 lines."""
    return min(image_bgr.shape[:2]) / 480


def _line_width(image_bgr: np.ndarray) -> int:
    return max(1, round(1.6 * _unit(image_bgr)))


def _is_dimmed(recognition: Recognition, view: View) -> bool:
    """Return whether a face has a thin box and no words but its number: it is not the followed one, or tentative."""
    return recognition.tentative or (view.followed > 0 and recognition.track_id != view.followed)


def _draw_box(image_bgr: np.ndarray, recognition: Recognition, box: Rect, is_dimmed: bool) -> None:
    left, top, right, bottom = box
    width = _line_width(image_bgr)
    if is_dimmed:
        cv2.rectangle(image_bgr, (left, top), (right, bottom), _SILVER, 1)
        return
    color = _color_bgr(recognition)
    for ink, thickness in ((_BLACK, width + 2), (color, width)):  # outlined: seen on its own colour
        if not recognition.unsure:
            cv2.rectangle(image_bgr, (left, top), (right, bottom), ink, thickness)
            continue
        arm_x, arm_y = (right - left) // 4, (bottom - top) // 4  # corners only: seen as unsure without the colour
        for x, dx in ((left, arm_x), (right, -arm_x)):
            for y, dy in ((top, arm_y), (bottom, -arm_y)):
                corner = np.array([(x + dx, y), (x, y), (x, y + dy)], np.int32)
                cv2.polylines(image_bgr, [corner], False, _SILVER if ink == color else ink, thickness)


def _draw_tag(
    image_bgr: np.ndarray, recognition: Recognition, box: Rect, is_dimmed: bool, space: _Space, own: int
) -> None:
    """Write number and expression above the box, else below or inside it, in words that fit; at least its number."""
    height, width = image_bgr.shape[:2]
    side = min(height, width)
    scale = max(0.4, min(max((box[3] - box[1]) / 170, side / 1300), side / 800))
    scale = round(20 * scale) / 20  # a face that comes a little nearer keeps the letters it has
    texts = [str(recognition.track_id or "")] if is_dimmed else list(_texts(recognition))
    tag = _place_tag(texts, scale, box, (width, height), space, own)
    if tag is None:
        return
    text, scale, (left, top, right, bottom) = tag
    space.take((left, top, right, bottom))
    image_bgr[top:bottom, left:right] = _tag_bgr(text, scale, _BLACK if is_dimmed else _color_bgr(recognition))


@lru_cache(maxsize=128)  # letters cost most, and most tags stay for a while
def _tag_bgr(text: str, scale: float, color: tuple[int, int, int]) -> np.ndarray:
    """Return a filled tag, black or white on its colour, with a thin border."""
    ink = _BLACK if np.dot(color, (0.114, 0.587, 0.299)) > 100 else _WHITE  # the colour's brightness, 0-255
    width, height = _tag_size(text, scale)
    tag_bgr = np.full((height, width, 3), color, np.uint8)
    cv2.rectangle(tag_bgr, (0, 0), (width - 1, height - 1), _BLACK, 1)
    baseline = height - _margin(scale) - 1
    cv2.putText(tag_bgr, text, (_margin(scale), baseline), _BOLD, scale, ink, _stroke(scale), cv2.LINE_AA)
    return tag_bgr


def _tag_size(text: str, scale: float) -> tuple[int, int]:
    return _text_width(text, _BOLD, scale) + 2 * _margin(scale), round(_FONT_HEIGHT * scale) + 2 * _margin(scale)


def _texts(recognition: Recognition) -> Iterator[str]:
    """Yield what a tag says, from the fullest to the shortest."""
    number = f"{recognition.track_id} " if recognition.track_id else ""
    label = recognition.shown
    if not recognition.unsure:
        yield f"{number}{label} {recognition.probability:.0%}"
    yield f"{number}{label}"
    yield f"{number}{label[:3]}"
    if number:
        yield number.strip()


def _place_tag(
    texts: Iterable[str], scale: float, box: Rect, size: tuple[int, int], space: _Space, own: int
) -> tuple[str, float, Rect] | None:
    """Return a text, the size of its letters, and a free area for it."""
    smallest = ("", 0.0, (0, 0, 0, 0))
    for text in filter(None, texts):
        config = scale * min(1.0, 0.9 * size[0] / _text_width(text, _BOLD, scale))  # tiny pictures
        tag_width, tag_height = _tag_size(text, config)
        left = max(0, min(box[0], size[0] - tag_width))
        tops = [max(0, min(top, size[1] - tag_height)) for top in (box[1] - tag_height, box[3], box[1])]
        places = [(text, config, (left, top, left + tag_width, top + tag_height)) for top in tops]
        for place in places:
            if space.is_free(place[2], own):
                return place
        smallest = places[0]
        if space.is_free(places[2][2], own, over_faces=True):  # inside a box that another one overlaps
            return places[2]
    return smallest if smallest[0] and space.is_free(smallest[2], own, over_faces=True) else None


def _margin(scale: float) -> int:
    return round(0.4 * _FONT_HEIGHT * scale)


def _stroke(scale: float) -> int:
    return max(1, round(1.6 * scale))


@lru_cache(maxsize=4096)
def _text_width(text: str, font: int, scale: float) -> int:
    return cv2.getTextSize(text, font, scale, _stroke(scale))[0][0]


@dataclass(frozen=True)
class _Panel:
    """Where what lies in the area beside a face; pixels.

    Attributes:
        words_bgr: The area with the names of the emotions, white on black.
        rows: For each emotion the upper and the lower end of its bar.
        bar_left: Left end of the bars.
        bar_right: Right end of a bar of probability 1.
        past_top: Upper end of the last seconds' area.
        past_bottom: Its lower end.
        margin: Around everything.
    """

    words_bgr: np.ndarray
    rows: tuple[tuple[int, int], ...]
    bar_left: int
    bar_right: int
    past_top: int
    past_bottom: int
    margin: int

    @property
    def width(self) -> int:
        return self.words_bgr.shape[1]

    @property
    def height(self) -> int:
        return self.words_bgr.shape[0]

    @property
    def past_width(self) -> int:
        return self.bar_right - self.margin


@lru_cache(maxsize=64)
def _panel(names: tuple[str, ...], unit: float, has_past: bool, is_short: bool) -> _Panel:
    """Lay out the area beside a face; drawn once, as letters cost most."""
    scale = max(0.36, 0.46 * unit)
    words = [name[:3] if is_short else name for name in names]
    margin, letter = max(2, round(4 * unit)), round(_FONT_HEIGHT * scale)
    row = letter + max(4, round(5 * unit))
    bar_left = 2 * margin + max(_text_width(word, _PLAIN, scale) for word in words)
    bar_right = bar_left + round(max(24, (40 if is_short else 64) * unit))
    past_top = margin + row * len(words) + (margin if has_past else 0)
    past_bottom = past_top + (round(max(12, 26 * unit)) if has_past else 0)
    words_bgr = np.zeros((past_bottom + margin, bar_right + margin, 3), np.uint8)
    for index, word in enumerate(words):
        baseline = margin + row * index + (row + letter) // 2
        cv2.putText(words_bgr, word, (margin, baseline), _PLAIN, scale, _WHITE, _stroke(scale), cv2.LINE_AA)
    rows = tuple((margin + row * index + 2, margin + row * (index + 1) - 2) for index in range(len(words)))
    return _Panel(words_bgr, rows, bar_left, bar_right, past_top, past_bottom, margin)


def _draw_bars(
    area_bgr: np.ndarray, panel: _Panel, recognition: Recognition, past: tuple[np.ndarray, np.ndarray] | None
) -> None:
    _shade(area_bgr)
    cv2.max(area_bgr, panel.words_bgr, area_bgr)
    for (name, probability), (top, bottom) in zip(recognition.probabilities.items(), panel.rows, strict=True):
        is_shown = name == recognition.label and not recognition.unsure
        right = panel.bar_left + round(probability * (panel.bar_right - panel.bar_left))
        cv2.rectangle(area_bgr, (panel.bar_left, top), (right, bottom), _bgr(COLORS.get(name, _WHITE)), cv2.FILLED)
        if is_shown:
            cv2.rectangle(area_bgr, (panel.bar_left, top), (panel.bar_right, bottom), _WHITE, 1)
    if past is not None:
        _draw_past(area_bgr[panel.past_top : panel.past_bottom, panel.margin : panel.bar_right], *past)


def _draw_past(area_bgr: np.ndarray, probabilities: np.ndarray, colors: np.ndarray) -> None:
    """Draw the shown label's probability over time, filled with the label's colour; now is at the right."""
    height = len(area_bgr)
    levels = np.round(probabilities * (height - 1)).astype(int)
    is_filled = (height - 1 - np.arange(height))[:, None] <= levels
    is_filled &= probabilities > 0
    cv2.copyTo(np.repeat(colors[None], height, axis=0), is_filled.view(np.uint8), area_bgr)
    area_bgr[-1] = np.maximum(area_bgr[-1], 120)  # the base line


def _shade(area_bgr: np.ndarray, left_over: float = _SHADE) -> None:
    cv2.convertScaleAbs(area_bgr, area_bgr, alpha=left_over)


def _write_strip(image_bgr: np.ndarray, text: str, at_top: bool, space: _Space | None = None) -> None:
    """Write a line on a shaded strip in the lower left corner, or on a black one in the upper left corner."""
    if not text:
        return
    height, width = image_bgr.shape[:2]
    scale = max(0.36, 0.46 * _unit(image_bgr))
    words_bgr = _words_bgr(text, scale * min(1.0, 0.94 * width / max(1, _text_width(text, _PLAIN, scale))))
    words_bgr = words_bgr[:height, :width]
    strip_height, right = words_bgr.shape[:2]
    top = 0 if at_top else height - strip_height
    strip_bgr = image_bgr[top : top + strip_height, :right]
    _shade(strip_bgr, 0.0 if at_top else _SHADE)
    cv2.max(strip_bgr, words_bgr, strip_bgr)
    if space:
        space.take((0, top, right, top + strip_height))


@lru_cache(maxsize=8)
def _words_bgr(text: str, scale: float) -> np.ndarray:
    """Return a line, white on black."""
    margin, letter = _margin(scale), round(_FONT_HEIGHT * scale)
    words_bgr = np.zeros((max(1, letter + 2 * margin), _text_width(text, _PLAIN, scale) + 2 * margin, 3), np.uint8)
    place = (margin, margin + letter)
    cv2.putText(words_bgr, text, place, _PLAIN, scale, _WHITE, _stroke(scale), cv2.LINE_AA)
    return words_bgr


def draw_for_person(drawn_bgr: np.ndarray, view: View) -> np.ndarray:
    """Return a drawn frame with what concerns the person at the window alone and is not recorded: notes, help.

    Returns:
        uint8 BGR; the frame itself where there is nothing to add.
    """
    states = [word for word, is_on in (("REC", view.recording), ("paused", view.paused)) if is_on]
    note = "   ".join([*states, *filter(None, [view.note])])
    if not (note or view.help):
        return drawn_bgr
    drawn_bgr = drawn_bgr.copy()
    if note:
        _write_strip(drawn_bgr, note, at_top=True)
    if view.help:
        _draw_help(drawn_bgr)
    return drawn_bgr


def _draw_help(image_bgr: np.ndarray) -> None:
    height, width = image_bgr.shape[:2]
    scale = max(0.4, 0.6 * _unit(image_bgr))
    row, margin = round(1.9 * _FONT_HEIGHT * scale), round(_FONT_HEIGHT * scale)
    key_width = max(_text_width(key, _BOLD, scale) for key in KEYS) + margin
    help_width = key_width + max(_text_width(words, _BOLD, scale) for words in KEYS.values()) + 2 * margin
    help_height = row * len(KEYS) + margin
    left, top = max(0, (width - help_width) // 2), max(0, (height - help_height) // 2)
    _shade(image_bgr[top : top + help_height, left : left + help_width], _SHADE / 2)
    for index, (key, words) in enumerate(KEYS.items()):
        baseline = top + margin // 2 + row * index + round(1.4 * _FONT_HEIGHT * scale)
        for text, x, ink in (
            (key, left + margin, _bgr(COLORS["happiness"])),
            (words, left + margin + key_width, _WHITE),
        ):
            cv2.putText(image_bgr, text, (x, baseline), _BOLD, scale, ink, _stroke(scale), cv2.LINE_AA)


def _corners(image_bgr: np.ndarray, recognition: Recognition) -> Rect:
    """Return left, top, right and bottom of a face's box, kept within the picture."""
    height, width = image_bgr.shape[:2]
    face = recognition.face
    left, right = (min(max(x, 0), width - 1) for x in (face.left, face.left + face.width))
    top, bottom = (min(max(y, 0), height - 1) for y in (face.top, face.top + face.height))
    return round(left), round(top), round(right), round(bottom)


def _color_bgr(recognition: Recognition) -> tuple[int, int, int]:
    return _bgr(UNSURE if recognition.unsure else COLORS.get(recognition.label, _WHITE))


def _bgr(color_rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    return color_rgb[2], color_rgb[1], color_rgb[0]
