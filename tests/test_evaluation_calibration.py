import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss

from evaluation.metrics.calibration import (
    choose_threshold,
    cross_fit,
    fit_temperature,
    log_loss,
    reliability,
    squared_errors,
    with_temperature,
)


def predictions(n: int = 400, classes: int = 4, seed: int = 0, sharpness: float = 1.5):
    """Return probabilities and truth drawn from them: calibrated by construction."""
    random = np.random.default_rng(seed)
    logits = sharpness * random.standard_normal((n, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([random.choice(classes, p=row) for row in probabilities])
    return probabilities, truth


def test_calibration_error_by_hand():
    probabilities, truth = predictions()
    total = 0.0
    for bin_number in range(15):
        low, high = bin_number / 15, (bin_number + 1) / 15
        inside = [
            (p.max(), p.argmax() == t) for p, t in zip(probabilities, truth, strict=True) if low < p.max() <= high
        ]
        if inside:
            confidence, accuracy = np.mean([c for c, _ in inside]), np.mean([r for _, r in inside])
            total += len(inside) / len(truth) * abs(accuracy - confidence)
    assert reliability(probabilities, truth).expected_error == pytest.approx(total)
    certain = reliability(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert certain.count[-1] == certain.count.sum() == 2 and certain.expected_error == certain.accuracy[-1] == 0.5


def test_brier_and_log_loss_by_hand():
    probabilities, truth = predictions(50)
    by_hand = ((probabilities - np.eye(4)[truth]) ** 2).sum(axis=1)
    np.testing.assert_allclose(squared_errors(probabilities, truth), by_hand)
    assert log_loss(probabilities, truth) == pytest.approx(sklearn_log_loss(truth, probabilities, labels=range(4)))
    assert np.isfinite(log_loss(np.array([[1.0, 0.0]]), np.array([1])))  # a mistake that was certain


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_fit_temperature_recovers_the_temperature(temperature):
    calibrated, truth = predictions(4000, seed=3)
    distorted = with_temperature(calibrated, 1 / temperature)
    assert fit_temperature(distorted, truth) == pytest.approx(temperature, rel=0.06)
    undone = with_temperature(distorted, temperature)
    np.testing.assert_allclose(undone, calibrated, atol=1e-9)
    assert np.isfinite(with_temperature(np.array([[1.0, 0.0]]), temperature)).all()


def brute_force(probabilities, truth, target, least):
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    candidates = []
    for threshold in sorted({0.0, *confidence}):
        given = confidence >= threshold
        candidates.append((threshold, given.mean(), right[given].mean()))
    good = [c for c in candidates if c[2] >= target and c[1] >= least]
    if good:
        return max(good, key=lambda c: (c[1], -c[0]))
    return min((c for c in candidates if c[1] >= least), key=lambda c: c[1])


@pytest.mark.parametrize(("target", "least"), [(0.7, 0.3), (0.99, 0.5), (0.999, 0.0)])
def test_threshold_agrees_with_brute_force(target, least):
    probabilities, truth = predictions(120, seed=6)
    probabilities = probabilities.round(2)  # many equal ones
    found = choose_threshold(probabilities, truth, target, least)
    threshold, coverage, accuracy = brute_force(probabilities, truth, target, least)
    assert (found.threshold, found.coverage, found.accuracy) == pytest.approx((threshold, coverage, accuracy))
    assert found.reached == (accuracy >= target)


def test_cross_fitting_does_not_use_the_own_label():
    calibrated, truth = predictions(3000, seed=8)
    distorted = with_temperature(calibrated, 1 / 2.5)
    groups = np.repeat(np.arange(1000), 3)
    crossed = cross_fit(distorted, truth, groups, target_accuracy=0.8, min_coverage=0.1, seed=0)
    assert len(crossed.temperatures) == 5 and crossed.temperatures == pytest.approx([2.5] * 5, rel=0.12)
    before, after = (reliability(p, truth).expected_error for p in (distorted, crossed.probabilities))
    assert after < before / 3
    right = crossed.probabilities.argmax(axis=1) == truth
    assert right[crossed.covered].mean() == pytest.approx(0.8, abs=0.03)
    # The temperature of an image's fold does not depend on that image's own label.
    changed = truth.copy()
    changed[:3] = (changed[:3] + 1) % 4
    again = cross_fit(distorted, changed, groups, target_accuracy=0.8, min_coverage=0.1, seed=0)
    np.testing.assert_allclose(again.probabilities[:3], crossed.probabilities[:3], atol=1e-12)
    assert not np.allclose(again.temperatures, crossed.temperatures)
