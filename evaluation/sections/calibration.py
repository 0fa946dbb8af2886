"""Calibration of the probabilities before and after temperature scaling, and abstention."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from common.errors import InputError
from configuration import EvaluationConfig
from evaluation.metrics.calibration import (
    BINS,
    CrossFit,
    Reliability,
    Threshold,
    choose_threshold,
    coverage_curve,
    cross_fit,
    fit_temperature,
    is_settled,
    log_loss,
    reliability,
    squared_errors,
    with_temperature,
)
from evaluation.metrics.intervals import bootstrap, boundary_interval, percentile_intervals
from evaluation.predictions import Predictions
from evaluation.report.plots import draw_coverage, draw_reliability
from evaluation.report.section import Figure, Section, Table, interval_text, percent
from evaluation.sections.performance import format_estimate
from preprocessing.tables import write_table

_CURVE_POINTS = 100
_TARGETS = (0.7, 0.8, 0.9, 0.95)
_UNCALIBRATED = "uncalibrated"


@dataclass(frozen=True)
class Calibration:
    """Calibration of probabilities.

    Attributes:
        states: Name of the probabilities -> `ece`, `brier`, `brier_interval`, `log_loss`, `confidence`; the last is the
            best calibrated.
        diagrams: Reliability diagrams `before` and, where there is a temperature, `after`.
        temperatures: Cross-fitted temperatures.
        threshold: Abstention threshold for the target accuracy.
        cross_fitted: `coverage` and `selective_accuracy` of thresholds that were chosen on other folds; None without.
        curve: Columns `threshold`, `coverage`, `accuracy`, `low`, `high`.
        targets: Threshold, coverage and accuracy for several target accuracies and the threshold of the card.
    """

    states: dict[str, dict[str, Any]]
    diagrams: dict[str, Reliability]
    temperatures: list[float]
    threshold: Threshold
    cross_fitted: dict[str, float] | None
    curve: pd.DataFrame
    targets: pd.DataFrame


def measure_calibration(predictions: Predictions, options: EvaluationConfig) -> Calibration:
    """Return the calibration without a temperature, with that of the card, and with a cross-fitted one."""
    crossed = _cross_fit(predictions, options)
    states = {_UNCALIBRATED: predictions.uncalibrated}
    if predictions.card.temperature != 1:
        states[f"temperature of the card ({predictions.card.temperature:.2f})"] = predictions.probabilities
    if crossed:
        states[f"cross-fitted temperature (mean {np.mean(crossed.temperatures):.2f})"] = crossed.probabilities
    diagrams = {"before": reliability(predictions.uncalibrated, predictions.truth)}
    if len(states) > 1:
        diagrams["after"] = reliability(list(states.values())[-1], predictions.truth)
    return Calibration(
        {name: _scores(predictions, probabilities, options) for name, probabilities in states.items()},
        diagrams,
        crossed.temperatures if crossed else [],
        choose_threshold(predictions.probabilities, predictions.truth, options.target_accuracy, options.min_coverage),
        _selective_scores(predictions, crossed) if crossed else None,
        _coverage_curve(predictions, options),
        _target_table(predictions, options),
    )


def calibration_section(predictions: Predictions, report: Path, options: EvaluationConfig) -> Section:
    """Measure the calibration, write its figures and tables, and return the section."""
    found = measure_calibration(predictions, options)
    _write_diagrams(found.diagrams, report / "reliability.csv")
    write_table(found.curve, report / "coverage.csv")
    before, after, chosen = found.states[_UNCALIBRATED], list(found.states.values())[-1], found.threshold
    accuracy = predictions.correct.mean()
    fitted = predictions.card.calibration
    fitted_here = fitted.get("dataset") == predictions.dataset and fitted.get("split") == predictions.split
    shares = ("calibration error", "mean confidence")
    states = pd.DataFrame(
        {
            "calibration error": [each["ece"] for each in found.states.values()],
            "Brier score": [
                format_estimate("brier", each["brier"], each["brier_interval"]) for each in found.states.values()
            ],
            "log loss": [each["log_loss"] for each in found.states.values()],
            "mean confidence": [each["confidence"] for each in found.states.values()],
        },
        index=pd.Index(found.states, name="probabilities"),
    )
    return Section(
        name="calibration",
        title="Calibration",
        sentences=[
            f"Mean confidence {percent(before['confidence'])}, accuracy {percent(accuracy)}: "
            f"{'overconfident' if before['confidence'] > accuracy else 'underconfident'}. Expected calibration error: "
            f"{percent(before['ece'])}"
            + (f"; with a temperature {percent(after['ece'])}." if len(found.states) > 1 else "."),
            f"The calibration error is the mean gap between confidence and accuracy over {BINS} bins. It has no "
            "interval, as resampling is biased. The Brier score is summed over the emotions: 0 (perfect) to 2.",
            _abstention_text(found, options),
        ],
        warnings=["the card's temperature and threshold were fitted on this split: use the cross-fitted values"]
        if fitted_here
        else [],
        tables=[
            Table(states, f"Calibration, {predictions.title}", percent=shares),
            Table(
                found.targets,
                "Abstention thresholds for a target accuracy, calibrated by the card",
                percent=("coverage", "accuracy"),
            ),
        ],
        figures=[
            Figure(
                draw_reliability(found.diagrams, predictions.title, report / "reliability.png"),
                f"Reliability diagram, {predictions.title}. Gray line: perfect calibration. Bins with fewer than ten "
                "images are not shown.",
                f"Accuracy by confidence. Calibration error {percent(before['ece'])} before and "
                f"{percent(after['ece'])} after temperature scaling.",
            ),
            Figure(
                draw_coverage(
                    found.curve,
                    options.target_accuracy,
                    (chosen.coverage, chosen.accuracy),
                    predictions.title,
                    report / "coverage.png",
                    interval_text(options.level),
                ),
                f"Selective accuracy by coverage, {predictions.title}.",
                f"Threshold {percent(chosen.threshold)}: coverage {percent(chosen.coverage)}, accuracy "
                f"{percent(chosen.accuracy)}.",
            ),
        ],
        values={
            "probabilities": found.states,
            "bins": BINS,
            "card_temperature": predictions.card.temperature,
            "cross_fitted_temperatures": found.temperatures,
            "target_accuracy": options.target_accuracy,
            "threshold": asdict(chosen),
            "cross_fitted_threshold": found.cross_fitted,
        },
    )


def fit_calibration(predictions: Predictions, options: EvaluationConfig) -> dict[str, Any]:
    """Return the entries of a card: `temperature`, `abstention_threshold`, `calibration`.

    Temperature and threshold are fitted to all predictions, and measured by cross-fitting.

    Raises:
        InputError: There are fewer than two groups of images, or no temperature is best.
    """
    temperature = fit_temperature(predictions.uncalibrated, predictions.truth)
    crossed = _cross_fit(predictions, options)
    if crossed is None or not is_settled(temperature):
        raise InputError(
            f"--calibrate: {len(predictions.rows)} images of {predictions.dataset}'s {predictions.split} split are too "
            f"few to calibrate {predictions.model_file.name} (temperature {temperature:.2g}), or all have one "
            "prediction"
        )
    scaled = with_temperature(predictions.uncalibrated, round(temperature, 4))
    chosen = choose_threshold(scaled, predictions.truth, options.target_accuracy, options.min_coverage)
    before, after = (_scores(predictions, each, options) for each in (predictions.uncalibrated, crossed.probabilities))
    return {
        "temperature": round(temperature, 4),
        "abstention_threshold": round(chosen.threshold, 4),
        "calibration": {
            "dataset": predictions.dataset,
            "split": predictions.split,
            "n": len(predictions.rows),
            "temperature_rule": "minimum log loss on the split",
            "abstention_threshold_rule": (
                f"smallest threshold with a selective accuracy of {percent(options.target_accuracy, 0)} and a coverage "
                f"of at least {percent(options.min_coverage, 0)}"
            ),
            "target_accuracy_reached": chosen.reached,
            "folds": len(crossed.temperatures),
            **{f"{name}_before": round(before[name], 4) for name in ("ece", "brier")},
            **{f"{name}_after": round(after[name], 4) for name in ("ece", "brier")},
            **{name: round(value, 4) for name, value in _selective_scores(predictions, crossed).items()},
            "measured_by": "cross-fitting: temperature and threshold fitted to the other folds",
        },
    }


def _cross_fit(predictions: Predictions, options: EvaluationConfig) -> CrossFit | None:
    """Return the cross-fitted calibration; duplicates, and the images of a subject, stay in one fold."""
    groups = predictions.clusters
    if not predictions.has_subjects:
        hashes = predictions.rows["pixel_hash"]
        groups = pd.factorize(hashes.where(hashes != "", predictions.rows["path"]))[0]
    subjects = predictions.rows["subject"]
    if groups.max() < 1 or ((subjects != "").all() and subjects.nunique() == 1):  # nothing is known about new people
        return None
    return cross_fit(
        predictions.uncalibrated,
        predictions.truth,
        groups,
        options.target_accuracy,
        options.min_coverage,
        options.seed,
    )


def _scores(predictions: Predictions, probabilities: np.ndarray, options: EvaluationConfig) -> dict[str, Any]:
    errors = squared_errors(probabilities, predictions.truth)
    resampled = bootstrap(
        lambda weights: {"brier": weights @ errors / weights.sum(axis=1)},
        predictions.clusters,
        options.resamples,
        options.seed,
    )
    return {
        "ece": reliability(probabilities, predictions.truth).expected_error,
        "brier": float(errors.mean()),
        "brier_interval": percentile_intervals(resampled, options.level)["brier"],
        "log_loss": log_loss(probabilities, predictions.truth),
        "confidence": float(probabilities.max(axis=1).mean()),
    }


def _write_diagrams(diagrams: dict[str, Reliability], file: Path) -> None:
    parts = [
        pd.DataFrame(
            {
                "probabilities": name,
                "from": diagram.edges[:-1],
                "to": diagram.edges[1:],
                "images": diagram.count,
                "confidence": diagram.confidence,
                "accuracy": diagram.accuracy,
            }
        )
        for name, diagram in diagrams.items()
    ]
    write_table(pd.concat(parts), file)


def _coverage_curve(predictions: Predictions, options: EvaluationConfig) -> pd.DataFrame:
    """Return accuracy by coverage at about `_CURVE_POINTS` thresholds, with pointwise bootstrap intervals."""
    thresholds, coverage, accuracy = coverage_curve(predictions.probabilities, predictions.truth)
    chosen = np.unique(np.searchsorted(coverage, np.linspace(0.02, 1, _CURVE_POINTS)).clip(max=len(coverage) - 1))
    n = len(predictions.correct)
    step = np.searchsorted(-thresholds[chosen], -predictions.probabilities.max(axis=1))  # first threshold that is met
    cells = np.arange(n), step
    covered = csr_array((np.ones(n), cells), shape=(n, len(chosen)))
    correct = csr_array((predictions.correct.astype(np.float64), cells), shape=(n, len(chosen)))

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore"):
            shares = np.asarray(weights @ correct).cumsum(axis=1) / np.asarray(weights @ covered).cumsum(axis=1)
        return {str(index): shares[:, index] for index in range(len(chosen))}

    resampled = bootstrap(statistic, predictions.clusters, options.resamples, options.seed)
    own = percentile_intervals(resampled, options.level).values()
    among = [step <= index for index in range(len(chosen))]
    limits = [
        boundary_interval(predictions.correct & part, part, predictions.clusters, options.level) or interval
        for part, interval in zip(among, own, strict=True)
    ]
    return pd.DataFrame(
        {
            "threshold": thresholds[chosen],
            "coverage": coverage[chosen],
            "accuracy": accuracy[chosen],
            "low": [low for low, _ in limits],
            "high": [high for _, high in limits],
        }
    )


def _target_table(predictions: Predictions, options: EvaluationConfig) -> pd.DataFrame:
    rows = {}
    for target in sorted({options.target_accuracy, *_TARGETS}):
        found = choose_threshold(predictions.probabilities, predictions.truth, target, min_coverage=0.0)
        rows[percent(target, 0)] = (
            (found.threshold, found.coverage, found.accuracy) if found.reached else ("not reached", np.nan, np.nan)
        )
    threshold = float(predictions.card.abstention_threshold)
    covered = predictions.probabilities.max(axis=1) >= threshold
    accuracy = predictions.correct[covered].mean() if covered.any() else np.nan
    rows["threshold of the card"] = (threshold, covered.mean(), accuracy)
    columns = ["threshold", "coverage", "accuracy"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("target accuracy")


def _selective_scores(predictions: Predictions, crossed: CrossFit) -> dict[str, float]:
    """Return coverage and selective accuracy of thresholds that were chosen on other folds."""
    covered = crossed.covered
    accuracy = float(predictions.correct[covered].mean()) if covered.any() else float("nan")
    return {"coverage": float(covered.mean()), "selective_accuracy": accuracy}


def _abstention_text(found: Calibration, options: EvaluationConfig) -> str:
    chosen, target = found.threshold, percent(options.target_accuracy, 0)
    if chosen.reached:
        text = f"Target accuracy {target}: reached"
    else:
        least = percent(options.min_coverage, 0)
        text = f"Target accuracy {target}: not reached with a coverage of at least {least}; closest"
    text += (
        f" with threshold {percent(chosen.threshold)}, coverage {percent(chosen.coverage)} and selective accuracy "
        f"{percent(chosen.accuracy)}."
    )
    if found.cross_fitted:
        text += (
            f" Cross-fitted: coverage {percent(found.cross_fitted['coverage'])}, selective accuracy "
            f"{percent(found.cross_fitted['selective_accuracy'])}."
        )
    return text
