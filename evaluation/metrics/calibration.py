"""Whether a model's probabilities mean what they say, and from which probability on its answers are good enough.

    python -m evaluation.model_evaluation --dataset NAME --model X.keras --calibrate

fits the temperature and the threshold on the dev split and writes both into the model's card.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.model_selection import GroupKFold

TEMPERATURES = (0.05, 20.0)  # searched in this range
_LEAST = 1e-12  # probabilities below count as this, so that one certain mistake does not outweigh everything


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities as a softmax at another temperature would give them: p ** (1 / T), scaled to sum to one.

    Args:
        probabilities: (n, classes).
        temperature: Above 1 makes the answers less certain, below 1 more; 1 / T undoes T.

    Returns:
        float64, (n, classes).
    """
    logarithms = np.log(np.clip(probabilities.astype(np.float64), _LEAST**2, None)) / temperature
    scaled = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def log_loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean negative logarithm of the true class's probability, in nats."""
    return float(-np.log(np.clip(probabilities[np.arange(len(truth)), truth], _LEAST, None)).mean())


def squared_errors(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each image's Brier score over all classes, 0 (right and certain) to 2 (wrong and certain), (n,).

    The squared distance between the probabilities and the truth, as Brier (1950) defined it.
    """
    own = probabilities[np.arange(len(truth)), truth]
    return (probabilities**2).sum(axis=1) - 2 * own + 1


def brier(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean Brier score over all classes, 0-2."""
    return float(squared_errors(probabilities, truth).mean())


@dataclass(frozen=True)
class Reliability:
    """Answers gathered in bins of equal width by their probability.

    Attributes:
        edges: Limits of the bins, (bins + 1,); a bin holds its upper limit.
        count: Images in each bin, (bins,).
        confidence: Mean probability of the answers in each bin; NaN where it is empty.
        accuracy: Share of right answers in each bin; NaN where it is empty.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def expected_error(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence|, bins weighted by their count."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.count[filled]).sum() / self.count.sum())


def reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int) -> Reliability:
    """Gather the answers in `bins` bins of equal width over 0-1 by the probability of the likeliest class."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            edges=np.linspace(0, 1, bins + 1),
            count=count,
            confidence=np.bincount(index, weights=confidence, minlength=bins) / count,
            accuracy=np.bincount(index, weights=right, minlength=bins) / count,
        )


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int) -> float:
    """Return the expected calibration error, 0-1; see `Reliability.expected_error`."""
    return reliability(probabilities, truth, bins).expected_error


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature with the least log loss (Guo et al. 2017).

    Args:
        probabilities: At temperature 1, (n, classes).
        truth: True classes, int (n,).

    Returns:
        Within 0.05 to 20.
    """

    def loss(logarithm: float) -> float:
        return log_loss(with_temperature(probabilities, np.exp(logarithm)), truth)

    bounds = tuple(np.log(TEMPERATURES))
    fitted: Any = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(fitted.x))


def is_settled(temperature: float) -> bool:
    """Return whether a fitted temperature is the best one, not merely the end of the range that was searched."""
    return 1.02 * TEMPERATURES[0] < temperature < TEMPERATURES[1] / 1.02


@dataclass(frozen=True)
class Threshold:
    """From which probability on an answer is given.

    Attributes:
        threshold: Least probability, 0-1.
        coverage: Share of the images that get an answer.
        accuracy: Share of these answers that are right.
        reached: Whether that is the accuracy that was wanted.
    """

    threshold: float
    coverage: float
    accuracy: float
    reached: bool


def coverage_curve(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (thresholds, coverage, accuracy) for every threshold that makes a difference, thresholds falling."""
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = (probabilities.argmax(axis=1) == truth)[order]
    answered = np.arange(1, len(order) + 1)
    last = np.append(np.diff(confidence[order]) != 0, True)  # equal probabilities are answered together or not at all
    return confidence[order][last], answered[last] / len(order), (right.cumsum() / answered)[last]


def choose_threshold(
    probabilities: np.ndarray, truth: np.ndarray, target_accuracy: float, least_coverage: float
) -> Threshold:
    """Choose from which probability on answers are given.

    The smallest threshold whose answers are right in the wanted share; where that would leave fewer than
    `least_coverage` of the images with an answer, the largest threshold that does not.
    """
    thresholds, coverage, accuracy = coverage_curve(probabilities, truth)
    enough = accuracy >= target_accuracy
    chosen = int(np.flatnonzero(enough)[-1]) if enough.any() else -1
    reached = chosen >= 0 and coverage[chosen] >= least_coverage
    if not reached:
        chosen = int(np.argmax(coverage >= least_coverage))
    threshold = 0.0 if chosen == len(thresholds) - 1 else float(thresholds[chosen])
    return Threshold(threshold, float(coverage[chosen]), float(accuracy[chosen]), bool(reached))


@dataclass(frozen=True)
class CrossFit:
    """What a calibration is worth on images that it was not fitted to.

    Attributes:
        temperatures: The temperature of each fold, fitted to the other folds.
        probabilities: Each image's probabilities at its fold's temperature, (n, classes).
        answered: Whether each image gets an answer by the threshold chosen on the other folds, bool (n,).
    """

    temperatures: list[float]
    probabilities: np.ndarray
    answered: np.ndarray


def cross_fit(
    probabilities: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    folds: int,
    target_accuracy: float,
    least_coverage: float,
    seed: int,
) -> CrossFit:
    """Fit temperature and threshold on all folds but one, apply them to that one, and so on for each.

    Args:
        probabilities: At temperature 1, (n, classes).
        truth: True classes, int (n,).
        groups: Each image's group, int (n,); a group lies in one fold.
        folds: Number of folds; fewer where there are fewer groups.
        target_accuracy: For `choose_threshold`.
        least_coverage: For `choose_threshold`.
        seed: Of the folds.

    Raises:
        ValueError: fewer than two groups.
    """
    temperatures, scaled, answered = [], np.empty(probabilities.shape), np.empty(len(truth), bool)
    splitter = GroupKFold(min(folds, len(np.unique(groups))), shuffle=True, random_state=seed)
    for fitted, held_out in splitter.split(probabilities, truth, groups):
        temperature = fit_temperature(probabilities[fitted], truth[fitted])
        inside = with_temperature(probabilities[fitted], temperature)
        threshold = choose_threshold(inside, truth[fitted], target_accuracy, least_coverage).threshold
        scaled[held_out] = with_temperature(probabilities[held_out], temperature)
        answered[held_out] = scaled[held_out].max(axis=1) >= threshold
        temperatures.append(temperature)
    return CrossFit(temperatures, scaled, answered)
