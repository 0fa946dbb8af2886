"""Calibration metrics, temperature scaling, and abstention thresholds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.model_selection import GroupKFold

BINS = 15  # of the reliability diagram and the calibration error, of equal width
FOLDS = 5  # of the cross-fitted temperature and threshold
TEMPERATURES = (0.05, 20.0)  # searched in this range
_LEAST = 1e-12  # lower bound of probabilities, so that one certain mistake has no infinite loss


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities of a softmax at another temperature: p ** (1 / T), scaled to sum to one.

    Args:
        probabilities: (n, classes).
        temperature: Above 1: less certain; below 1: more certain. 1 / T reverts T.

    Returns:
        float64, (n, classes).
    """
    logarithms = np.log(np.clip(probabilities.astype(np.float64), _LEAST**2, None)) / temperature
    scaled = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def log_loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the true class, in nats."""
    return float(-np.log(np.clip(probabilities[np.arange(len(truth)), truth], _LEAST, None)).mean())


def squared_errors(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the Brier score (1950) of each image over all classes, 0 (perfect) to 2, (n,)."""
    own = probabilities[np.arange(len(truth)), truth]
    return (probabilities**2).sum(axis=1) - 2 * own + 1


@dataclass(frozen=True)
class Reliability:
    """Reliability diagram: predictions in bins of equal width by confidence.

    Attributes:
        edges: Limits of the bins, (bins + 1,); a bin includes its upper limit.
        count: Images in each bin, (bins,).
        confidence: Mean confidence of each bin; NaN where it is empty.
        accuracy: Accuracy of each bin; NaN where it is empty.
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


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> Reliability:
    """Return the reliability diagram with `BINS` bins of equal width over 0-1."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == truth
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(index, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            edges=np.linspace(0, 1, BINS + 1),
            count=count,
            confidence=np.bincount(index, weights=confidence, minlength=BINS) / count,
            accuracy=np.bincount(index, weights=correct, minlength=BINS) / count,
        )


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature with the minimum log loss (Guo et al. 2017).

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
    """Return whether a fitted temperature is inside the searched range, not at its end."""
    return 1.02 * TEMPERATURES[0] < temperature < TEMPERATURES[1] / 1.02


@dataclass(frozen=True)
class Threshold:
    """An abstention threshold.

    Attributes:
        threshold: Minimum confidence of a prediction, 0-1.
        coverage: Share of the images with a prediction.
        accuracy: Accuracy of these predictions.
        reached: Whether the target accuracy is reached.
    """

    threshold: float
    coverage: float
    accuracy: float
    reached: bool


def coverage_curve(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (thresholds, coverage, accuracy) for every distinct threshold, in descending order."""
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    correct = (probabilities.argmax(axis=1) == truth)[order]
    covered = np.arange(1, len(order) + 1)
    last = np.append(np.diff(confidence[order]) != 0, True)  # equal ones are covered together
    return confidence[order][last], covered[last] / len(order), (correct.cumsum() / covered)[last]


def choose_threshold(
    probabilities: np.ndarray, truth: np.ndarray, target_accuracy: float, min_coverage: float
) -> Threshold:
    """Return the smallest threshold with the target accuracy.

    Where its coverage is below `min_coverage`, return the largest threshold with that coverage.
    """
    thresholds, coverage, accuracy = coverage_curve(probabilities, truth)
    enough = accuracy >= target_accuracy
    chosen = int(np.flatnonzero(enough)[-1]) if enough.any() else -1
    reached = chosen >= 0 and coverage[chosen] >= min_coverage
    if not reached:
        chosen = int(np.argmax(coverage >= min_coverage))
    threshold = 0.0 if chosen == len(thresholds) - 1 else float(thresholds[chosen])
    return Threshold(threshold, float(coverage[chosen]), float(accuracy[chosen]), bool(reached))


@dataclass(frozen=True)
class CrossFit:
    """A cross-fitted calibration.

    Attributes:
        temperatures: Temperature of each fold, fitted to the other folds.
        probabilities: Probabilities at the temperature of the fold, (n, classes).
        covered: Whether each image is above the threshold that was chosen on the other folds, bool (n,).
    """

    temperatures: list[float]
    probabilities: np.ndarray
    covered: np.ndarray


def cross_fit(
    probabilities: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    target_accuracy: float,
    min_coverage: float,
    seed: int,
) -> CrossFit:
    """Fit temperature and threshold to all but one of `FOLDS` folds, and apply them to that one, for each fold.

    Args:
        probabilities: At temperature 1, (n, classes).
        truth: True classes, int (n,).
        groups: Group of each image, int (n,); a group stays in one fold.
        target_accuracy: For `choose_threshold`.
        min_coverage: For `choose_threshold`.
        seed: Random seed of the folds.

    Raises:
        ValueError: There are fewer than two groups.
    """
    temperatures, scaled, covered = [], np.empty(probabilities.shape), np.empty(len(truth), bool)
    splitter = GroupKFold(min(FOLDS, len(np.unique(groups))), shuffle=True, random_state=seed)
    for fitted, held_out in splitter.split(probabilities, truth, groups):
        temperature = fit_temperature(probabilities[fitted], truth[fitted])
        inside = with_temperature(probabilities[fitted], temperature)
        threshold = choose_threshold(inside, truth[fitted], target_accuracy, min_coverage).threshold
        scaled[held_out] = with_temperature(probabilities[held_out], temperature)
        covered[held_out] = scaled[held_out].max(axis=1) >= threshold
        temperatures.append(temperature)
    return CrossFit(temperatures, scaled, covered)
