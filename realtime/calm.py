"""Labels that do not flicker: probabilities averaged over time, and a label kept until another is clearly better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from configuration import CALM, Calm


class Verdict(NamedTuple):
    """What is shown of a face.

    Attributes:
        probabilities: float, (classes,), in class order, averaged over time; they sum to one.
        index: The class shown.
        unsure: No class is probable enough to be shown.
    """

    probabilities: np.ndarray
    index: int
    unsure: bool


@dataclass
class _Mood:
    """A face's average so far, and what is shown of it."""

    mean: np.ndarray
    index: int
    unsure: bool
    first: float  # seconds: when the face was seen first
    last: float  # seconds: when it was seen last
    steps: int = 1


class Steadier:
    """Steadies what a network says of each face of one source.

    The average is exponential in seconds, not in frames, so a slow camera is as calm, and as quick, as a fast one. It
    begins as a plain average: the very first frame does not weigh more than those after it. An average of few frames is
    shaky, so a face just seen has wider margins: it is named at once where the network is clear, else a moment later.

    Args:
        unsure_below: Least probability, 0-1, at which a class is worth showing; from the model's card.
        options: Time constant and margins.
    """

    def __init__(self, unsure_below: float = 0.0, options: Calm = CALM):
        self._unsure_below, self._options = unsure_below, options
        self._moods: dict[int, _Mood] = {}

    def update(self, numbers: Sequence[int], probabilities: np.ndarray, time: float) -> list[Verdict]:
        """Return what to show of the faces of a frame.

        Args:
            numbers: Which face it is, for each.
            probabilities: (n, classes), what the network says of each in this frame.
            time: Seconds, on the source's own clock.
        """
        for number, row in zip(numbers, probabilities, strict=True):
            mood = self._moods.get(number)
            if mood is None or time <= mood.last:
                self._moods[number] = self._begin(row, time)
            else:
                self._add(mood, row, time)
        forgotten = 10 * self._options.smoothing  # seconds: by then nothing is left of an average
        self._moods = {number: mood for number, mood in self._moods.items() if abs(time - mood.last) <= forgotten}
        return [Verdict(mood.mean, mood.index, mood.unsure) for mood in (self._moods[number] for number in numbers)]

    def _begin(self, row: np.ndarray, time: float) -> _Mood:
        mean = row.astype(np.float64)
        index = int(mean.argmax())
        return _Mood(mean, index, bool(mean[index] < self._enough(age=0.0)), time, time)

    def _enough(self, age: float) -> float:
        """Return the probability that names a face that is unsure, `age` seconds after it was seen first."""
        return self._unsure_below + self._options.unsure_margin * self._widening(age) if self._unsure_below else 0.0

    def _widening(self, age: float) -> float:
        newcomer, smoothing = self._options.newcomer, self._options.smoothing
        return max(1.0, smoothing / age) if age * newcomer > smoothing else newcomer

    def _add(self, mood: _Mood, row: np.ndarray, time: float) -> None:
        options = self._options
        mood.steps += 1
        weight = max(1 - math.exp(-(time - mood.last) / options.smoothing), 1 / mood.steps)
        mood.mean, mood.last = mood.mean + weight * (row - mood.mean), time
        best = int(mood.mean.argmax())
        age = time - mood.first
        if mood.unsure or mood.mean[best] > mood.mean[mood.index] + options.margin * self._widening(age):
            mood.index = best  # what nobody was shown needs no margin
        enough = self._enough(age) if mood.unsure else self._unsure_below
        mood.unsure = bool(mood.mean[mood.index] < enough)
