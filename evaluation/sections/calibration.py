"""How sure a model is, and whether it may be: its probabilities before and after a temperature, and abstaining."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from common.errors import InputError
from configuration import EvaluationConfig
from evaluation.metrics.calibration import (
    CrossFit,
    Threshold,
    brier,
    choose_threshold,
    coverage_curve,
    cross_fit,
    expected_calibration_error,
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
from evaluation.sections.performance import format_interval
from preprocessing.tables import write_table

_CURVE_POINTS = 100  # of the coverage curve that is drawn


def calibration_section(predictions: Predictions, report: Path, options: EvaluationConfig) -> Section:
    """Return calibration before and after temperature, and accuracy against coverage, with their figures."""
    crossed = _cross_fit(predictions, options)
    states = {"as the network gives them": predictions.uncalibrated}
    if predictions.card.temperature != 1:
        states[f"with the card's temperature {predictions.card.temperature:.2f}"] = predictions.probabilities
    if crossed:
        mean = np.mean(crossed.temperatures)
        states[f"temperature fitted to other folds of this split (mean {mean:.2f})"] = crossed.probabilities
    measured = {name: _calibration_of(predictions, probabilities, options) for name, probabilities in states.items()}
    after = list(states.values())[-1]
    diagrams = {"before": reliability(predictions.uncalibrated, predictions.truth, options.bins)}
    if len(states) > 1:
        diagrams["after"] = reliability(after, predictions.truth, options.bins)
    _write_diagrams(diagrams, report / "reliability.csv")

    chosen = choose_threshold(
        predictions.probabilities, predictions.truth, options.target_accuracy, options.least_coverage
    )
    curve = _curve(predictions, options)
    write_table(curve, report / "coverage.csv")
    error = measured["as the network gives them"]["ece"]
    last_error = list(measured.values())[-1]["ece"]
    confidence = float(predictions.uncalibrated.max(axis=1).mean())
    tendency = "too sure" if confidence > predictions.correct.mean() else "not sure enough"
    sentences = [
        f"On average the network gives its answer {percent(confidence)} and is right in "
        f"{percent(predictions.correct.mean())}: it is {tendency}. Its expected calibration error is {percent(error)}"
        + (f"; with a temperature, {percent(last_error)}." if len(states) > 1 else "."),
        f"The calibration error is the mean gap between probability and accuracy over {options.bins} bins of equal "
        "width, weighted by their images (resampling inflates it, so it has no bootstrap interval). The Brier score is "
        "the squared distance between probabilities and truth, summed over the emotions: 0 is perfect, 2 the worst.",
        _abstaining(chosen, options, crossed and _crossed_threshold(predictions, crossed)),
    ]
    fitted_here = predictions.card.calibration
    own = fitted_here.get("dataset") == predictions.dataset and fitted_here.get("split") == predictions.split
    return Section(
        name="confidence",
        title="How sure",
        sentences=sentences,
        warnings=["the card's temperature and threshold were fitted on this split: trust what is fitted to other folds"]
        if own
        else [],
        tables=[
            Table(
                pd.DataFrame(
                    {
                        "calibration error": [figures["ece"] for figures in measured.values()],
                        "Brier score": [
                            f"{figures['brier']:.3f} [{format_interval('brier', figures['brier_interval'])}]"
                            for figures in measured.values()
                        ],
                        "log loss": [figures["log_loss"] for figures in measured.values()],
                        "mean probability of the answer": [figures["confidence"] for figures in measured.values()],
                    },
                    index=pd.Index(measured, name="probabilities"),
                ),
                f"Calibration, {predictions.title}",
                percent=("calibration error", "mean probability of the answer"),
            ),
            Table(
                _wanted(predictions, options),
                "From which probability on the answers are right in a wanted share (on the card's probabilities)",
                percent=("share answered", "right among them"),
            ),
        ],
        figures=[
            Figure(
                draw_reliability(diagrams, predictions.title, report / "reliability.png"),
                f"Reliability, {predictions.title}: on the gray line, probabilities mean what they say. "
                "Bins of fewer than ten images have no point.",
                f"How often answers of a given probability are right. Calibration error {percent(error)} before, "
                f"{percent(last_error)} after a temperature.",
            ),
            Figure(
                draw_coverage(
                    curve,
                    options.target_accuracy,
                    (chosen.coverage, chosen.accuracy),
                    predictions.title,
                    report / "coverage.png",
                    interval_text(options.level),
                ),
                f"Accuracy of the answers when the least certain are withheld, {predictions.title}.",
                f"Answers of at least {percent(chosen.threshold)} are {percent(chosen.coverage)} of all and right in "
                f"{percent(chosen.accuracy)}.",
            ),
        ],
        values={
            "calibration": measured,
            "bins": options.bins,
            "card_temperature": predictions.card.temperature,
            "cross_fitted_temperatures": crossed.temperatures if crossed else [],
            "target_accuracy": options.target_accuracy,
            "threshold": chosen.__dict__,
            "cross_fitted_threshold": _crossed_threshold(predictions, crossed) if crossed else None,
        },
    )


def fit_calibration(predictions: Predictions, options: EvaluationConfig) -> dict:
    """Return what a card says of a calibration on these answers: `temperature`, `abstention_threshold`, `calibration`.

    The temperature minimises the log loss. `choose_threshold` gives `abstention_threshold` at that temperature. Both
    are fitted on all predictions and measured by cross-fitting.

    Raises:
        InputError: the answers cannot tell: fewer than two groups, or no temperature is best.
    """
    temperature = fit_temperature(predictions.uncalibrated, predictions.truth)
    crossed = _cross_fit(predictions, options)
    if crossed is None or not is_settled(temperature):
        raise InputError(
            f"--calibrate: {len(predictions.rows)} images of {predictions.dataset}'s {predictions.split} split "
            f"are too few to calibrate {predictions.model_file.name} (temperature {temperature:.2g}), or all "
            "are predicted alike"
        )
    scaled = with_temperature(predictions.uncalibrated, round(temperature, 4))
    chosen = choose_threshold(scaled, predictions.truth, options.target_accuracy, options.least_coverage)
    before, after = (
        _calibration_of(predictions, probabilities, options)
        for probabilities in (predictions.uncalibrated, crossed.probabilities)
    )
    return {
        "temperature": round(temperature, 4),
        "abstention_threshold": round(chosen.threshold, 4),
        "calibration": {
            "dataset": predictions.dataset,
            "split": predictions.split,
            "n": len(predictions.rows),
            "temperature_rule": "least log loss on the split",
            "abstention_threshold_rule": (
                f"smallest threshold whose answers are right in {percent(options.target_accuracy, 0)}, as long as "
                f"{percent(options.least_coverage, 0)} of the images get an answer"
            ),
            "target_accuracy_reached": chosen.reached,
            "folds": len(crossed.temperatures),
            "ece_before": round(before["ece"], 4),
            "ece_after": round(after["ece"], 4),
            "brier_before": round(before["brier"], 4),
            "brier_after": round(after["brier"], 4),
            **{name: round(value, 4) for name, value in _crossed_threshold(predictions, crossed).items()},
            "measured_by": "cross-fitting: temperature and threshold fitted to the other folds",
        },
    }


def _cross_fit(predictions: Predictions, options: EvaluationConfig) -> CrossFit | None:
    """Return the cross-fitted calibration; copies of an image, and a person's images, stay in one fold."""
    if predictions.has_subjects:
        groups = predictions.clusters
    else:
        hashes = predictions.rows["pixel_hash"].where(predictions.rows["pixel_hash"] != "", predictions.rows["path"])
        groups = pd.factorize(hashes)[0]
    if groups.max() < 1:
        return None
    return cross_fit(
        predictions.uncalibrated,
        predictions.truth,
        groups,
        options.folds,
        options.target_accuracy,
        options.least_coverage,
        options.seed,
    )


def _calibration_of(predictions: Predictions, probabilities: np.ndarray, options: EvaluationConfig) -> dict:
    errors = squared_errors(probabilities, predictions.truth)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"brier": weights @ errors / weights.sum(axis=1)}

    drawn = bootstrap(statistic, predictions.clusters, options.resamples, options.seed)
    return {
        "ece": expected_calibration_error(probabilities, predictions.truth, options.bins),
        "brier": brier(probabilities, predictions.truth),
        "brier_interval": percentile_intervals(drawn, options.level)["brier"],
        "log_loss": log_loss(probabilities, predictions.truth),
        "confidence": float(probabilities.max(axis=1).mean()),
    }


def _write_diagrams(diagrams: dict, file: Path) -> None:
    """Write the numbers behind the reliability diagram, one row per bin."""
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


def _curve(predictions: Predictions, options: EvaluationConfig) -> pd.DataFrame:
    """Return accuracy against coverage at about `_CURVE_POINTS` thresholds, with bootstrap intervals.

    An interval holds for its threshold, not for the curve as a whole.
    """
    thresholds, coverage, accuracy = coverage_curve(predictions.probabilities, predictions.truth)
    chosen = np.unique(np.searchsorted(coverage, np.linspace(0.02, 1, _CURVE_POINTS)).clip(max=len(coverage) - 1))
    n = len(predictions.correct)
    step = np.searchsorted(
        -thresholds[chosen], -predictions.probabilities.max(axis=1)
    )  # the first threshold that is met
    given = csr_array((np.ones(n), (np.arange(n), step)), shape=(n, len(chosen)))
    right = csr_array((predictions.correct.astype(np.float64), (np.arange(n), step)), shape=(n, len(chosen)))

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore"):
            shares = np.asarray(weights @ right).cumsum(axis=1) / np.asarray(weights @ given).cumsum(axis=1)
        return {str(index): shares[:, index] for index in range(len(chosen))}

    drawn = percentile_intervals(
        bootstrap(statistic, predictions.clusters, options.resamples, options.seed), options.level
    ).values()
    answered = [step <= index for index in range(len(chosen))]
    limits = [
        boundary_interval(predictions.correct & among, among, predictions.clusters, options.level) or own
        for among, own in zip(answered, drawn, strict=True)
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


def _wanted(predictions: Predictions, options: EvaluationConfig) -> pd.DataFrame:
    """Return the threshold, coverage and accuracy for several wanted accuracies, and at the card's threshold."""
    rows = {}
    for wanted in sorted({options.target_accuracy, 0.7, 0.8, 0.9, 0.95}):
        threshold = choose_threshold(predictions.probabilities, predictions.truth, wanted, least_coverage=0.0)
        known = threshold.reached
        rows[f"wanted: {percent(wanted, 0)}"] = {
            "answer from": threshold.threshold if known else "not reached",
            "share answered": threshold.coverage if known else np.nan,
            "right among them": threshold.accuracy if known else np.nan,
        }
    card = float(predictions.card.abstention_threshold)
    given = predictions.probabilities.max(axis=1) >= card
    rows["the card's threshold"] = {
        "answer from": card,
        "share answered": given.mean(),
        "right among them": predictions.correct[given].mean() if given.any() else np.nan,
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("answers right in")


def _crossed_threshold(predictions: Predictions, crossed: CrossFit) -> dict[str, float]:
    """Return what thresholds chosen on other folds give: the share of images answered, and of right answers."""
    answered = crossed.answered
    right = float(predictions.correct[answered].mean()) if answered.any() else float("nan")
    return {"coverage": float(answered.mean()), "selective_accuracy": right}


def _abstaining(chosen: Threshold, options: EvaluationConfig, held_out: dict[str, float] | None) -> str:
    wanted = percent(options.target_accuracy, 0)
    if chosen.coverage == 1:
        text = f"All answers together are right in {percent(chosen.accuracy)}" + (
            f", more than the wanted {wanted}: none needs to be withheld."
            if chosen.reached
            else f", fewer than the wanted {wanted}, and withholding the least certain ones does not reach it."
        )
    else:
        reach = (
            f"Where {wanted} of the answers should be right, the model may answer from"
            if chosen.reached
            else f"That {wanted} of the answers are right is not reached while at least "
            f"{percent(options.least_coverage, 0)} of the images get one; the model comes closest when it answers from"
        )
        text = (
            f"{reach} {percent(chosen.threshold)} on: it then answers {percent(chosen.coverage)} of the images and is "
            f"right in {percent(chosen.accuracy)} of them."
        )
    if held_out:
        text += (
            f" Thresholds chosen on other folds give {percent(held_out['selective_accuracy'])} right of "
            f"{percent(held_out['coverage'])} answered."
        )
    return text
