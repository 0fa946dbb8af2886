"""Panel beside a face: a bar for the probability of each emotion, and the history of the label below them."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from common.emotions import COLORS, UNSURE
from realtime.recognition import Recognition, Result
from realtime.sinks.canvas import LETTER_HEIGHT, PLAIN, WHITE, Color, darken, put_text, text_width

_SECONDS = 10.0  # length of the history
_STEP = 0.05  # seconds between two values of the history
_MAX_GAP = 1.0  # seconds: in a longer gap the face was not detected


def label_color(recognition: Recognition) -> Color:
    """Return the colour of the label shown."""
    return _bgr(UNSURE if recognition.unsure else COLORS.get(recognition.label, WHITE))


def _bgr(color_rgb: tuple[int, int, int]) -> Color:
    return color_rgb[2], color_rgb[1], color_rgb[0]


class History:
    """Probabilities and colours of the labels shown in the last seconds, by track ID."""

    def __init__(self) -> None:
        self._tracks: dict[int, np.ndarray] = {}  # rows of time, probability and colour, the newest last

    def add(self, result: Result) -> None:
        """Add a frame. Tracks that ended are forgotten, and all of them where the time restarts."""
        now = result.frame.time
        self._tracks = {key: values for key, values in self._tracks.items() if 0 <= now - values[-1, 0] <= _SECONDS}
        for recognition in result.recognitions:
            if recognition.track_id:
                if recognition.track_id not in self._tracks:
                    self._tracks[recognition.track_id] = np.full((round(_SECONDS / _STEP) + 2, 5), -np.inf)
                values = self._tracks[recognition.track_id]
                if now - values[-1, 0] >= _STEP:
                    values[:-1] = values[1:]
                    values[-1] = now, recognition.probability, *label_color(recognition)

    def columns(self, track_id: int, now: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the last seconds in equal steps, the newest last.

        Returns:
            Probabilities, float (count,), 0 where the face was not detected; and colours, uint8 (count, 3).
        """
        values = self._tracks[track_id]
        moments = now - _SECONDS * np.arange(count - 1, -1, -1) / count
        newest = values[np.searchsorted(values[:, 0], moments, side="right") - 1]
        newest[moments - newest[:, 0] > _MAX_GAP] = 0
        return newest[:, 1], newest[:, 2:].astype(np.uint8)


@dataclass(frozen=True)
class Panel:
    """Layout of a panel, in pixels.

    Attributes:
        names_bgr: The panel with the names of the emotions, white on black.
        rows: Top and bottom of each emotion's bar.
        bar_left: Left end of the bars.
        bar_right: Right end of a bar of probability 1.
        history: Top and bottom of the history.
        margin: Space around the content.
    """

    names_bgr: np.ndarray
    rows: tuple[tuple[int, int], ...]
    bar_left: int
    bar_right: int
    history: tuple[int, int]
    margin: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.names_bgr.shape[1], self.names_bgr.shape[0]

    def draw(self, area_bgr: np.ndarray, recognition: Recognition, history: History, now: float) -> None:
        """Draw a face's panel into an area of its size, in place."""
        darken(area_bgr)
        cv2.max(area_bgr, self.names_bgr, area_bgr)
        for (name, probability), (top, bottom) in zip(recognition.probabilities.items(), self.rows, strict=True):
            right = self.bar_left + round(probability * (self.bar_right - self.bar_left))
            color = _bgr(COLORS.get(name, WHITE))
            cv2.rectangle(area_bgr, (self.bar_left, top), (right, bottom), color, cv2.FILLED)
            if name == recognition.shown:
                cv2.rectangle(area_bgr, (self.bar_left, top), (self.bar_right, bottom), WHITE, 1)
        top, bottom = self.history
        if bottom > top:
            columns = history.columns(recognition.track_id, now, self.bar_right - self.margin)
            _draw_history(area_bgr[top:bottom, self.margin : self.bar_right], *columns)


@lru_cache(maxsize=64)  # letters are slow to draw
def make_panel(names: tuple[str, ...], scale: float, has_history: bool, is_short: bool) -> Panel:
    """Return the layout of a panel.

    Args:
        names: The emotions, in class order.
        scale: Size of the frame relative to one of 480 rows.
        has_history: Leave room for the history.
        is_short: Shorten names and bars.
    """
    letters = max(0.36, 0.46 * scale)
    words = [name[:3] if is_short else name for name in names]
    margin, letter = max(2, round(4 * scale)), round(LETTER_HEIGHT * letters)
    row = letter + max(4, round(5 * scale))
    bar_left = 2 * margin + max(text_width(word, PLAIN, letters) for word in words)
    bar_right = bar_left + round(max(24, (40 if is_short else 64) * scale))
    top = margin + row * len(words) + margin * has_history
    bottom = top + round(max(12, 26 * scale)) * has_history
    names_bgr = np.zeros((bottom + margin, bar_right + margin, 3), np.uint8)
    for index, word in enumerate(words):
        put_text(names_bgr, word, (margin, margin + row * index + (row + letter) // 2), PLAIN, letters, WHITE)
    rows = tuple((margin + row * index + 2, margin + row * (index + 1) - 2) for index in range(len(words)))
    return Panel(names_bgr, rows, bar_left, bar_right, (top, bottom), margin)


def _draw_history(area_bgr: np.ndarray, probabilities: np.ndarray, colors: np.ndarray) -> None:
    """Draw the label's probability over time, filled with the label's colour, in place; now is at the right."""
    height = len(area_bgr)
    levels = np.round(probabilities * (height - 1)).astype(int)
    is_filled = ((height - 1 - np.arange(height))[:, None] <= levels) & (probabilities > 0)
    cv2.copyTo(np.repeat(colors[None], height, axis=0), is_filled.view(np.uint8), area_bgr)
    area_bgr[-1] = np.maximum(area_bgr[-1], 120)  # base line
