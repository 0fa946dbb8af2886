"""Temporal smoothing: probabilities averaged over time, and labels with hysteresis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from configuration import SMOOTHING, SmoothingConfig


class SmoothedPrediction(NamedTuple):
    """A prediction for one face in one frame.

    Attributes:
        probabilities: float, (classes,), in class order, averaged over time; they sum to one.
        index: The class shown.
        unsure: No class reaches the abstention threshold.
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
    """The averages of a track, and the class shown."""

    slow: np.ndarray
    fast: np.ndarray
    index: int
    unsure: bool
    first: float  # seconds: first frame of the track
    last: float  # seconds: last frame of the track
    steps: int = 1


class TemporalSmoother:
    """Smooths the predictions for each track of one source.

    Each track has two exponential averages with time constants in seconds, so that the frame rate does not matter.
    The slow one is shown. Where the fast one differs from it by more than `change_threshold`, the expression has
    changed, and the slow average continues from the fast one. Both start as plain averages, so that the first frame
    has no extra weight. New tracks need a wider margin to change their label, as an average of few frames varies.

    Args:
        abstention_threshold: Minimum smoothed probability, 0-1, of a label; from the model's card.
        options: Time constants, change threshold and margin.
    """

    def __init__(self, abstention_threshold: float = 0.0, options: SmoothingConfig = SMOOTHING):
        self._abstention_threshold, self._options = abstention_threshold, options
        self._states: dict[int, _State] = {}

    def update(self, keys: Sequence[int], probabilities: np.ndarray, time: float) -> list[SmoothedPrediction]:
        """Return the smoothed predictions for a frame.

        Args:
            keys: Track of each face.
            probabilities: (n, classes), predictions for this frame.
            time: Seconds, on the clock of the source.
        """
        for key, row in zip(keys, probabilities, strict=True):
            state = self._states.get(key)
            if state is None or time <= state.last:
                mean = row.astype(np.float64)
                shown = choose_class(mean, None, 0.0, self._abstention_threshold)
                self._states[key] = _State(mean, mean, *shown, time, time)
            else:
                self._add(state, row, time)
        expiry = 10 * self._options.fast_seconds  # by then the fast average holds nothing of the track
        self._states = {key: state for key, state in self._states.items() if abs(time - state.last) <= expiry}
        shown = [self._states[key] for key in keys]
        return [SmoothedPrediction(state.slow, state.index, state.unsure) for state in shown]

    def _add(self, state: _State, row: np.ndarray, time: float) -> None:
        options = self._options
        state.steps += 1
        elapsed, state.last = time - state.last, time
        slow, fast = (
            max(-math.expm1(-elapsed / seconds), 1 / state.steps)
            for seconds in (options.slow_seconds, options.fast_seconds)
        )
        state.slow = state.slow + slow * (row - state.slow)
        state.fast = state.fast + fast * (row - state.fast)
        if np.abs(state.fast - state.slow).max() > options.change_threshold:
            state.slow = state.fast
        margin = options.margin * self._margin_factor(time - state.first)
        state.index, state.unsure = choose_class(state.slow, state.index, margin, self._abstention_threshold)

    def _margin_factor(self, age: float) -> float:
        factor, seconds = self._options.new_track_margin_factor, self._options.fast_seconds
        return max(1.0, seconds / age) if age * factor > seconds else factor
