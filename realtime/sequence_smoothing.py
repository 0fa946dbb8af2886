"""Labels from what a face did, not from a single frame: a sequence network on each followed face.

It stands in the place of `TemporalSmoother`: what it says of a frame already takes the frames before into account.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from configuration import SMOOTHING, TRACKING
from inference.sequence_classifier import SequenceClassifier
from realtime.smoothing import SmoothedPrediction, choose_class

_JITTER = 0.4  # steps: a frame that comes this much late still counts for its step


@dataclass
class _Past:
    """What is known of a face: its last frames, and the one that the others are compared with.

    Attributes:
        reference: float (size,): what the network of single faces saw in its most neutral frame so far.
        neutral: That frame's probability of neutral, 0-1.
        index: The class shown; none before the first answer.
        times: Seconds, of each frame kept.
        frames: float (size,) each.
    """

    reference: np.ndarray
    neutral: float
    index: int | None = None
    times: deque[float] = field(default_factory=deque)
    frames: deque[np.ndarray] = field(default_factory=deque)


class TemporalReader:
    """Asks a sequence network about each face of one source, frame by frame; it looks back, never ahead.

    Of each face a bounded past is kept: the network's window. It is resampled to the frame rate that the network was
    trained on, each step taking the last frame until then, so that a slow camera and a fast one show the same movement.

    The sequences of the training begin with a neutral face, and all frames are compared with it. A live face may begin
    anyhow: its first frame stands for its neutral face until a frame comes in which the network of single faces finds
    neutral more probable, which then takes its place. Where that network knows no neutral, the first frame stays.

    Args:
        network: The sequence network.
        single_labels: Classes of the network of single faces whose features it reads, in class order.
    """

    def __init__(self, network: SequenceClassifier, single_labels: Sequence[str]):
        self._network = network
        # A row of features ends with the probabilities of the single faces' classes.
        self._neutral = single_labels.index("neutral") - len(single_labels) if "neutral" in single_labels else None
        self._step = 1 / network.rate
        self._pasts: dict[int, _Past] = {}

    def update(self, numbers: Sequence[int], features: np.ndarray, time: float) -> list[SmoothedPrediction]:
        """Return what to show of the faces of a frame.

        Args:
            numbers: Which face it is, for each.
            features: float (n, size), as `EmotionClassifier.features` gives them.
            time: Seconds, on the source's own clock.
        """
        for number, row in zip(numbers, features, strict=True):
            self._add(number, row, time)
        # A face away for longer gets a new number from the tracker.
        self._pasts = {n: past for n, past in self._pasts.items() if 0 <= time - past.times[-1] <= TRACKING.remember}
        pasts = [self._pasts[number] for number in numbers]
        probabilities = self._network.predict([self._window(past, time) for past in pasts])
        return [self._verdict(past, row) for past, row in zip(pasts, probabilities, strict=True)]

    def _verdict(self, past: _Past, row: np.ndarray) -> SmoothedPrediction:
        """Keep the label until another one is clearly more probable, as `TemporalSmoother` does."""
        past.index, unsure = choose_class(row, past.index, SMOOTHING.margin, self._network.abstention_threshold)
        return SmoothedPrediction(row, past.index, unsure)

    def _add(self, number: int, row: np.ndarray, time: float) -> None:
        neutral = 0.0 if self._neutral is None else float(row[self._neutral])
        past = self._pasts.get(number)
        if past is None or time <= past.times[-1]:  # another source, or this one from its beginning
            past = self._pasts[number] = _Past(row, neutral)
        elif neutral > past.neutral:
            past.reference, past.neutral = row, neutral
        past.times.append(time)
        past.frames.append(row)
        # The first step of the window may take a frame from before it.
        while len(past.times) > 1 and past.times[1] <= time - self._network.window * self._step:
            past.times.popleft()
            past.frames.popleft()

    def _window(self, past: _Past, now: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the face's frames, one per step of the network until now, and its reference."""
        times = np.array(past.times)
        count = min(self._network.window, 1 + round((now - times[0]) / self._step))
        steps = now - self._step * np.arange(count - 1, -1, -1)
        taken = np.searchsorted(times, steps + _JITTER * self._step, side="right") - 1
        return np.stack([past.frames[index] for index in taken.clip(min=0)]), past.reference
