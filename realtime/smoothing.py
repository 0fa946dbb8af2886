"""Labels that do not flicker: probabilities averaged over time, and a label kept until another is clearly better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from configuration import SMOOTHING, SmoothingConfig


class SmoothedPrediction(NamedTuple):
    """What is shown of a face.

    Attributes:
        probabilities: float, (classes,), in class order, averaged over time; they sum to one.
        index: The class shown.
        unsure: No class is probable enough to be shown.
    """

    probabilities: np.ndarray
    index: int
    unsure: bool


def choose_class(mean: np.ndarray, current: int | None, margin: float, threshold: float) -> tuple[int, bool]:
    """Return the class to show and whether it is unsure.

    A face is unsure exactly where no class reaches the abstention threshold. The current class stays until it falls
    below the threshold or until another one exceeds it by the margin.

    Args:
        mean: float, (classes,), smoothed probabilities.
        current: The class shown before; None for a new face.
        margin: Probability, 0-1.
        threshold: The abstention threshold, 0-1; 0 never abstains.

    Returns:
        The index of the class, and True for `unsure`.
    """
    best = int(mean.argmax())
    if current is None or float(mean[current]) < threshold or mean[best] > mean[current] + margin:
        current = best
    return current, float(mean[current]) < threshold


@dataclass
class _State:
    """A face's averages so far, and what is shown of it."""

    mean: np.ndarray
    quick: np.ndarray
    index: int
    unsure: bool
    first: float  # seconds: when the face was seen first
    last: float  # seconds: when it was seen last
    steps: int = 1


class TemporalSmoother:
    """Steadies what a network says of each face of one source.

    Two exponential averages run in seconds, not in frames, so that the frame rate does not matter. The slow one is
    shown: it hardly follows noise. Where the quick one differs from it by more than `change`, the face has changed, and
    the slow one continues from the quick one. Both begin as a plain average: the very first frame does not weigh more
    than those after it. An average of few frames varies much: a new face needs a wider margin to change its label.

    Args:
        abstention_threshold: Abstention threshold, 0-1, of the smoothed probability; from the model's card.
        options: Time constants, change and margin.
    """

    def __init__(self, abstention_threshold: float = 0.0, options: SmoothingConfig = SMOOTHING):
        self._abstention_threshold, self._options = abstention_threshold, options
        self._states: dict[int, _State] = {}

    def update(self, numbers: Sequence[int], probabilities: np.ndarray, time: float) -> list[SmoothedPrediction]:
        """Return what to show of the faces of a frame.

        Args:
            numbers: Which face it is, for each.
            probabilities: (n, classes), what the network says of each in this frame.
            time: Seconds, on the source's own clock.
        """
        for number, row in zip(numbers, probabilities, strict=True):
            state = self._states.get(number)
            if state is None or time <= state.last:
                self._states[number] = self._begin(row, time)
            else:
                self._add(state, row, time)
        forgotten = 10 * self._options.smoothing  # seconds: by then nothing is left of the quick average
        self._states = {number: state for number, state in self._states.items() if abs(time - state.last) <= forgotten}
        return [
            SmoothedPrediction(state.mean, state.index, state.unsure)
            for state in (self._states[number] for number in numbers)
        ]

    def _begin(self, row: np.ndarray, time: float) -> _State:
        mean = row.astype(np.float64)
        return _State(mean, mean, *choose_class(mean, None, 0.0, self._abstention_threshold), time, time)

    def _widening(self, age: float) -> float:
        new_track_margin_factor, smoothing = self._options.new_track_margin_factor, self._options.smoothing
        return max(1.0, smoothing / age) if age * new_track_margin_factor > smoothing else new_track_margin_factor

    def _add(self, state: _State, row: np.ndarray, time: float) -> None:
        options = self._options
        state.steps += 1
        elapsed, state.last = time - state.last, time
        weight, quick = (max(-math.expm1(-elapsed / s), 1 / state.steps) for s in (options.slow, options.smoothing))
        state.mean, state.quick = state.mean + weight * (row - state.mean), state.quick + quick * (row - state.quick)
        if np.abs(state.quick - state.mean).max() > options.change:
            state.mean = state.quick
        margin = options.margin * self._widening(time - state.first)
        state.index, state.unsure = choose_class(state.mean, state.index, margin, self._abstention_threshold)
