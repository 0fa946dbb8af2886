"""Draw results on frames: boxes, labels, probability bars with their history, a status line, notes and help.

Lines and letters scale with the frame. Where there is no room, labels become shorter and bars are left out.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from realtime.recognition import Recognition, Result
from realtime.sinks import canvas
from realtime.sinks.canvas import BLACK, BOLD, SILVER, WHITE, FreeSpace, Rect
from realtime.sinks.panels import History, label_color, make_panel

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
_STATUS_STEP = 0.25  # seconds between two updates of the status line
_NEWEST_WEIGHT = 0.1  # weight of the newest frame in the frame rate
_BARS_FACE = 0.075  # share of the frame's shorter side: smaller faces have no bars
_BARS_CROWD = 4  # faces: with more of them, only larger faces have bars


@dataclass
class View:
    """Choices of the user at the window.

    Attributes:
        bars: Show the probability bars.
        help: Show the list of keys.
        followed: Track ID of the highlighted face; 0: none.
        note: Note in the upper left corner.
        recording: A recording is running.
        paused: The video is paused.
    """

    bars: bool = True
    help: bool = False
    followed: int = 0
    note: str = ""
    recording: bool = False
    paused: bool = False


class Drawer:
    """Draw the results of a run. It remembers the last seconds of each track.

    Args:
        still: The frames are unrelated images, without a history and a frame rate.
    """

    def __init__(self, still: bool = False):
        self._still = still
        self._history = History()
        self._sides: dict[int, int] = {}  # by track ID: side of the bars, kept while there is room
        self._interval = 0.0  # seconds between two frames, averaged
        self._drawn = 0.0  # seconds: start of the last drawing
        self._status, self._status_drawn = "", -np.inf

    def draw(self, result: Result, view: View | None = None) -> np.ndarray:
        """Draw a new frame's result.

        Returns:
            uint8 BGR, a copy of the frame.
        """
        start = time.perf_counter()
        if self._drawn:
            interval = start - self._drawn
            self._interval += _NEWEST_WEIGHT * (interval - self._interval) if self._interval else interval
        self._history.add(result)
        drawn_bgr = self.redraw(result, view)
        self._drawn = start
        return drawn_bgr

    def redraw(self, result: Result, view: View | None = None) -> np.ndarray:
        """Draw the newest result again after the view has changed."""
        self._drawn = time.perf_counter()  # a pause does not count as a slow frame
        view = view or View()
        image_bgr = result.frame.image_bgr.copy()
        recognitions = sorted(result.recognitions, key=lambda each: each.face.height, reverse=True)
        boxes = [_corners(image_bgr, recognition) for recognition in recognitions]
        space = FreeSpace(image_bgr, boxes)
        for recognition, box in reversed(list(zip(recognitions, boxes, strict=True))):
            _draw_box(image_bgr, recognition, box, _is_dimmed(recognition, view))
        if self._interval and not self._still:
            if self._drawn - self._status_drawn >= _STATUS_STEP:
                self._status, self._status_drawn = f"{1 / self._interval:.1f} frames/s", self._drawn
            space.take(canvas.write_line(image_bgr, self._status, at_top=False))
        for index, (recognition, box) in enumerate(zip(recognitions, boxes, strict=True)):
            _draw_tag(image_bgr, recognition, box, _is_dimmed(recognition, view), space, index)
        if view.bars:
            self._draw_panels(image_bgr, recognitions, view, space, result.frame.time)
        return image_bgr

    def _draw_panels(
        self, image_bgr: np.ndarray, recognitions: list[Recognition], view: View, space: FreeSpace, now: float
    ) -> None:
        sides, before = {}, self._sides
        smallest = _BARS_FACE * max(1.0, len(recognitions) / _BARS_CROWD) * min(image_bgr.shape[:2])
        for index, recognition in enumerate(recognitions):
            track_id = recognition.track_id
            is_large = recognition.face.height >= smallest or track_id == view.followed > 0
            if _is_dimmed(recognition, view) or not is_large:
                continue
            names, has_history = tuple(recognition.probabilities), track_id > 0 and not self._still
            preferred = before.get(track_id, 0)
            for is_short, side in (
                (False, preferred),
                (False, 1 - preferred),
                (True, preferred),
                (True, 1 - preferred),
            ):
                panel = make_panel(names, canvas.relative_size(image_bgr), has_history, is_short)
                width, height = panel.size
                if corner := space.take_beside(index, side, width, height):
                    left, top = corner
                    area_bgr = image_bgr[top : top + height, left : left + width]
                    panel.draw(area_bgr, recognition, self._history, now)
                    sides[track_id] = side
                    break
        self._sides = sides


def _corners(image_bgr: np.ndarray, recognition: Recognition) -> Rect:
    """Return a face's box, clipped to the frame."""
    height, width = image_bgr.shape[:2]
    face = recognition.face
    left, right = (min(max(x, 0), width - 1) for x in (face.left, face.left + face.width))
    top, bottom = (min(max(y, 0), height - 1) for y in (face.top, face.top + face.height))
    return round(left), round(top), round(right), round(bottom)


def _is_dimmed(recognition: Recognition, view: View) -> bool:
    """Return whether a face has only a thin box and its track ID: it is tentative, or another face is followed."""
    return recognition.tentative or (view.followed > 0 and recognition.track_id != view.followed)


def _draw_box(image_bgr: np.ndarray, recognition: Recognition, box: Rect, is_dimmed: bool) -> None:
    left, top, right, bottom = box
    if is_dimmed:
        cv2.rectangle(image_bgr, (left, top), (right, bottom), SILVER, 1)
        return
    width, color = canvas.line_width(image_bgr), SILVER if recognition.unsure else label_color(recognition)
    for ink, thickness in ((BLACK, width + 2), (color, width)):  # the outline contrasts with any background
        if not recognition.unsure:
            cv2.rectangle(image_bgr, (left, top), (right, bottom), ink, thickness)
            continue
        arm_x, arm_y = (right - left) // 4, (bottom - top) // 4  # only corners: unsure without relying on colour
        for x, dx in ((left, arm_x), (right, -arm_x)):
            for y, dy in ((top, arm_y), (bottom, -arm_y)):
                corner = np.array([(x + dx, y), (x, y), (x, y + dy)], np.int32)
                cv2.polylines(image_bgr, [corner], False, ink, thickness)


def _draw_tag(
    image_bgr: np.ndarray, recognition: Recognition, box: Rect, is_dimmed: bool, space: FreeSpace, own: int
) -> None:
    """Write track ID and label above the box, else below or inside it, in the longest text that fits."""
    height, width = image_bgr.shape[:2]
    side = min(height, width)
    scale = max(0.4, min(max((box[3] - box[1]) / 170, side / 1300), side / 800))
    scale = round(20 * scale) / 20  # in steps, so that the letters do not change with every frame
    texts = [str(recognition.track_id or "")] if is_dimmed else _tag_texts(recognition)
    color = BLACK if is_dimmed else label_color(recognition)
    for text, fitted, rect in _tag_places(texts, scale, box, (width, height), space, own):
        left, top, right, bottom = rect
        space.take(rect)
        image_bgr[top:bottom, left:right] = canvas.text_image(text, BOLD, fitted, color)
        cv2.rectangle(image_bgr, (left, top), (right - 1, bottom - 1), BLACK, 1)
        return


def _tag_texts(recognition: Recognition) -> list[str]:
    """Return the texts of a tag, from the longest to the shortest."""
    track_id = f"{recognition.track_id} " if recognition.track_id else ""
    label = recognition.shown
    texts = [f"{track_id}{label}", f"{track_id}{label[:3]}", track_id.strip()]
    return texts if recognition.unsure else [f"{texts[0]} {recognition.probability:.0%}", *texts]


def _tag_places(
    texts: list[str], scale: float, box: Rect, size: tuple[int, int], space: FreeSpace, own: int
) -> Iterator[tuple[str, float, Rect]]:
    """Yield free places of a tag, the best one first: text, scale and area."""
    above: tuple[str, float, Rect] | None = None
    for text in filter(None, texts):
        fitted = scale * min(1.0, 0.9 * size[0] / canvas.text_width(text, BOLD, scale))
        width, height = canvas.text_size(text, BOLD, fitted)
        left = max(0, min(box[0], size[0] - width))
        tops = [max(0, min(top, size[1] - height)) for top in (box[1] - height, box[3], box[1])]
        places = [(text, fitted, (left, top, left + width, top + height)) for top in tops]
        yield from (place for place in places if space.is_free(place[2], own))
        if space.is_free(places[2][2], own, over_faces=True):  # inside the box, over an overlapping one
            yield places[2]
        above = places[0]
    if above and space.is_free(above[2], own, over_faces=True):
        yield above


def draw_notes(drawn_bgr: np.ndarray, view: View) -> np.ndarray:
    """Return a drawn frame with notes and help, which only the window shows and recordings leave out.

    Returns:
        uint8 BGR; the frame itself where there is nothing to add.
    """
    states = [word for word, is_on in (("REC", view.recording), ("paused", view.paused)) if is_on]
    note = "   ".join(filter(None, [*states, view.note]))
    if not (note or view.help):
        return drawn_bgr
    drawn_bgr = drawn_bgr.copy()
    if note:
        canvas.write_line(drawn_bgr, note, at_top=True)
    if view.help:
        _draw_help(drawn_bgr)
    return drawn_bgr


def _draw_help(image_bgr: np.ndarray) -> None:
    height, width = image_bgr.shape[:2]
    scale = max(0.4, 0.6 * canvas.relative_size(image_bgr))
    row, margin = round(1.9 * canvas.LETTER_HEIGHT * scale), round(canvas.LETTER_HEIGHT * scale)
    columns = [max(canvas.text_width(text, BOLD, scale) for text in texts) for texts in (KEYS, KEYS.values())]
    help_width, help_height = sum(columns) + 3 * margin, row * len(KEYS) + margin
    left, top = max(0, (width - help_width) // 2), max(0, (height - help_height) // 2)
    canvas.darken(image_bgr[top : top + help_height, left : left + help_width], 0.1)
    for index, (key, text) in enumerate(KEYS.items()):
        baseline = top + margin // 2 + row * index + round(1.4 * canvas.LETTER_HEIGHT * scale)
        canvas.put_text(image_bgr, key, (left + margin, baseline), BOLD, scale, SILVER)
        canvas.put_text(image_bgr, text, (left + 2 * margin + columns[0], baseline), BOLD, scale, WHITE)
