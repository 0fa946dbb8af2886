"""A sequence network in place of temporal smoothing: its predictions take earlier frames into account."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from configuration import SMOOTHING, TRACKING
from inference.sequence_classifier import SequenceClassifier
from realtime.smoothing import SmoothedPrediction, choose_class

_JITTER = 0.4  # steps: a frame up to this late still counts for its step


@dataclass
class _Past:
    """The last frames of a track and its reference frame.

    Attributes:
        reference: float (size,): features of the most neutral frame so far.
        neutral: Probability of neutral in that frame, 0-1.
        index: The class shown; None before the first prediction.
        times: Seconds, of each frame kept.
        frames: float (size,) each.
    """

    reference: np.ndarray
    neutral: float
    index: int | None = None
    times: deque[float] = field(default_factory=deque)
    frames: deque[np.ndarray] = field(default_factory=deque)


class SequenceSmoother:
    """Predicts each track of one source with a causal sequence network.

    The past of each track, at most the network's window, is resampled to the frame rate of the training data. Each step
    takes the last frame before it, so that predictions do not depend on the camera's frame rate.

    Training sequences start neutral, and the network compares all frames with the first. Here the reference is the
    frame with the highest probability of neutral so far. Without a class neutral it is the first frame.

    Args:
        network: The sequence network.
        frame_labels: Classes of the network whose features it reads, in class order.
    """

    def __init__(self, network: SequenceClassifier, frame_labels: Sequence[str]):
        self._network = network
        # Features end with the class probabilities of the frame.
        self._neutral = frame_labels.index("neutral") - len(frame_labels) if "neutral" in frame_labels else None
        self._step = 1 / network.rate
        self._pasts: dict[int, _Past] = {}

    def update(self, keys: Sequence[int], features: np.ndarray, time: float) -> list[SmoothedPrediction]:
        """Return the predictions for a frame.

        Args:
            keys: Track of each face.
            features: float (n, size), from `EmotionClassifier.features`.
            time: Seconds, on the clock of the source.
        """
        for key, row in zip(keys, features, strict=True):
            self._add(key, row, time)
        longest = TRACKING.max_hidden_seconds  # a face hidden for longer gets a new track
        self._pasts = {key: past for key, past in self._pasts.items() if 0 <= time - past.times[-1] <= longest}
        pasts = [self._pasts[key] for key in keys]
        probabilities = self._network.predict([self._window(past, time) for past in pasts])
        return [self._prediction(past, row) for past, row in zip(pasts, probabilities, strict=True)]

    def _prediction(self, past: _Past, row: np.ndarray) -> SmoothedPrediction:
        past.index, unsure = choose_class(row, past.index, SMOOTHING.margin, self._network.abstention_threshold)
        return SmoothedPrediction(row, past.index, unsure)

    def _add(self, key: int, row: np.ndarray, time: float) -> None:
        neutral = 0.0 if self._neutral is None else float(row[self._neutral])
        past = self._pasts.get(key)
        if past is None or time <= past.times[-1]:  # a new track, or the source starts again
            past = self._pasts[key] = _Past(row, neutral)
        elif neutral > past.neutral:
            past.reference, past.neutral = row, neutral
        past.times.append(time)
        past.frames.append(row)
        # The first step of the window may take a frame from before it.
        while len(past.times) > 1 and past.times[1] <= time - self._network.window * self._step:
            past.times.popleft()
            past.frames.popleft()

    def _window(self, past: _Past, now: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the resampled frames, one per step of the network, and the reference."""
        times = np.array(past.times)
        count = min(self._network.window, 1 + round((now - times[0]) / self._step))
        steps = now - self._step * np.arange(count - 1, -1, -1)
        taken = np.searchsorted(times, steps + _JITTER * self._step, side="right") - 1
        return np.stack([past.frames[index] for index in taken.clip(min=0)]), past.reference
