"""How sure a model is, and whether it may be: its probabilities before and after a temperature, and abstaining."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from configuration import Evaluation
from evaluation.answers import Answers
from evaluation.calibration import (
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
from evaluation.intervals import bootstrap, boundary_interval, percentile_intervals
from evaluation.performance import format_interval
from evaluation.plots import draw_coverage, draw_reliability
from evaluation.sections import Figure, Section, Table, interval_text, percent
from preprocessing.errors import InputError
from preprocessing.image_tables import write_table

_CURVE_POINTS = 100  # of the coverage curve that is drawn


def how_sure(answers: Answers, report: Path, options: Evaluation) -> Section:
    """Return calibration before and after temperature, and accuracy against coverage, with their figures."""
    crossed = _cross_fit(answers, options)
    states = {"as the network gives them": answers.uncalibrated}
    if answers.card.temperature != 1:
        states[f"with the card's temperature {answers.card.temperature:.2f}"] = answers.probabilities
    if crossed:
        mean = np.mean(crossed.temperatures)
        states[f"temperature fitted to other folds of this split (mean {mean:.2f})"] = crossed.probabilities
    measured = {name: _calibration_of(answers, probabilities, options) for name, probabilities in states.items()}
    after = list(states.values())[-1]
    diagrams = {"before": reliability(answers.uncalibrated, answers.truth, options.bins)}
    if len(states) > 1:
        diagrams["after"] = reliability(after, answers.truth, options.bins)
    _write_diagrams(diagrams, report / "reliability.csv")

    chosen = choose_threshold(answers.probabilities, answers.truth, options.wanted_accuracy, options.least_coverage)
    curve = _curve(answers, options)
    write_table(curve, report / "coverage.csv")
    error = measured["as the network gives them"]["ece"]
    last_error = list(measured.values())[-1]["ece"]
    confidence = float(answers.uncalibrated.max(axis=1).mean())
    tendency = "too sure" if confidence > answers.right.mean() else "not sure enough"
    sentences = [
        f"On average the network gives its answer {percent(confidence)} and is right in "
        f"{percent(answers.right.mean())}: it is {tendency}. Its expected calibration error is {percent(error)}"
        + (f"; with a temperature, {percent(last_error)}." if len(states) > 1 else "."),
        f"The calibration error is the mean gap between probability and accuracy over {options.bins} bins of equal "
        "width, weighted by their images (resampling inflates it, so it has no bootstrap interval). The Brier score is "
        "the squared distance between probabilities and truth, summed over the emotions: 0 is perfect, 2 the worst.",
        _abstaining(chosen, options, crossed and _crossed_threshold(answers, crossed)),
    ]
    fitted_here = answers.card.calibration
    own = fitted_here.get("dataset") == answers.dataset and fitted_here.get("split") == answers.split
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
                f"Calibration, {answers.title}",
                percent=("calibration error", "mean probability of the answer"),
            ),
            Table(
                _wanted(answers, options),
                "From which probability on the answers are right in a wanted share (on the card's probabilities)",
                percent=("share answered", "right among them"),
            ),
        ],
        figures=[
            Figure(
                draw_reliability(diagrams, answers.title, report / "reliability.png"),
                f"Reliability, {answers.title}: on the gray line, probabilities mean what they say. "
                "Bins of fewer than ten images have no point.",
                f"How often answers of a given probability are right. Calibration error {percent(error)} before, "
                f"{percent(last_error)} after a temperature.",
            ),
            Figure(
                draw_coverage(
                    curve,
                    options.wanted_accuracy,
                    (chosen.coverage, chosen.accuracy),
                    answers.title,
                    report / "coverage.png",
                    interval_text(options.level),
                ),
                f"Accuracy of the answers when the least certain are withheld, {answers.title}.",
                f"Answers of at least {percent(chosen.threshold)} are {percent(chosen.coverage)} of all and right in "
                f"{percent(chosen.accuracy)}.",
            ),
        ],
        values={
            "calibration": measured,
            "bins": options.bins,
            "card_temperature": answers.card.temperature,
            "cross_fitted_temperatures": crossed.temperatures if crossed else [],
            "wanted_accuracy": options.wanted_accuracy,
            "threshold": chosen.__dict__,
            "cross_fitted_threshold": _crossed_threshold(answers, crossed) if crossed else None,
        },
    )


def fit_calibration(answers: Answers, options: Evaluation) -> dict:
    """Return what a card says of a calibration on these answers: `temperature`, `unsure_below`, `calibration`.

    The temperature is the one of least log loss, `unsure_below` what `choose_threshold` gives at that temperature; both
    are fitted to all of the answers, and measured by cross-fitting, on folds that they were not fitted to.

    Raises:
        InputError: the answers cannot tell: fewer than two groups, or no temperature is best.
    """
    temperature = fit_temperature(answers.uncalibrated, answers.truth)
    crossed = _cross_fit(answers, options)
    if crossed is None or not is_settled(temperature):
        raise InputError(
            f"--calibrate: {len(answers.rows)} images of {answers.dataset}'s {answers.split} split do not tell how "
            f"sure {answers.model_file.name} may be (temperature {temperature:.2g}): too few, or all answered alike"
        )
    scaled = with_temperature(answers.uncalibrated, round(temperature, 4))
    chosen = choose_threshold(scaled, answers.truth, options.wanted_accuracy, options.least_coverage)
    before, after = (
        _calibration_of(answers, probabilities, options)
        for probabilities in (answers.uncalibrated, crossed.probabilities)
    )
    return {
        "temperature": round(temperature, 4),
        "unsure_below": round(chosen.threshold, 4),
        "calibration": {
            "dataset": answers.dataset,
            "split": answers.split,
            "n": len(answers.rows),
            "temperature_rule": "least log loss on the split",
            "unsure_below_rule": (
                f"smallest threshold whose answers are right in {percent(options.wanted_accuracy, 0)}, as long as "
                f"{percent(options.least_coverage, 0)} of the images get an answer"
            ),
            "wanted_accuracy_reached": chosen.reached,
            "folds": len(crossed.temperatures),
            "ece_before": round(before["ece"], 4),
            "ece_after": round(after["ece"], 4),
            "brier_before": round(before["brier"], 4),
            "brier_after": round(after["brier"], 4),
            **{name: round(value, 4) for name, value in _crossed_threshold(answers, crossed).items()},
            "measured_by": "cross-fitting: temperature and threshold fitted to the other folds",
        },
    }


def _cross_fit(answers: Answers, options: Evaluation) -> CrossFit | None:
    """Return the cross-fitted calibration; copies of an image, and a person's images, stay in one fold."""
    if answers.has_subjects:
        groups = answers.groups
    else:
        hashes = answers.rows["pixel_hash"].where(answers.rows["pixel_hash"] != "", answers.rows["path"])
        groups = pd.factorize(hashes)[0]
    if groups.max() < 1:
        return None
    return cross_fit(
        answers.uncalibrated,
        answers.truth,
        groups,
        options.folds,
        options.wanted_accuracy,
        options.least_coverage,
        options.seed,
    )


def _calibration_of(answers: Answers, probabilities: np.ndarray, options: Evaluation) -> dict:
    errors = squared_errors(probabilities, answers.truth)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"brier": weights @ errors / weights.sum(axis=1)}

    drawn = bootstrap(statistic, answers.groups, options.resamples, options.seed)
    return {
        "ece": expected_calibration_error(probabilities, answers.truth, options.bins),
        "brier": brier(probabilities, answers.truth),
        "brier_interval": percentile_intervals(drawn, options.level)["brier"],
        "log_loss": log_loss(probabilities, answers.truth),
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


def _curve(answers: Answers, options: Evaluation) -> pd.DataFrame:
    """Return accuracy against coverage at about `_CURVE_POINTS` thresholds, with bootstrap intervals.

    An interval holds for its threshold, not for the curve as a whole.
    """
    thresholds, coverage, accuracy = coverage_curve(answers.probabilities, answers.truth)
    chosen = np.unique(np.searchsorted(coverage, np.linspace(0.02, 1, _CURVE_POINTS)).clip(max=len(coverage) - 1))
    n = len(answers.right)
    step = np.searchsorted(-thresholds[chosen], -answers.probabilities.max(axis=1))  # the first threshold that is met
    given = csr_array((np.ones(n), (np.arange(n), step)), shape=(n, len(chosen)))
    right = csr_array((answers.right.astype(np.float64), (np.arange(n), step)), shape=(n, len(chosen)))

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore"):
            shares = np.asarray(weights @ right).cumsum(axis=1) / np.asarray(weights @ given).cumsum(axis=1)
        return {str(index): shares[:, index] for index in range(len(chosen))}

    drawn = percentile_intervals(
        bootstrap(statistic, answers.groups, options.resamples, options.seed), options.level
    ).values()
    answered = [step <= index for index in range(len(chosen))]
    limits = [
        boundary_interval(answers.right & among, among, answers.groups, options.level) or own
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


def _wanted(answers: Answers, options: Evaluation) -> pd.DataFrame:
    """Return the threshold, coverage and accuracy for several wanted accuracies, and at the card's threshold."""
    rows = {}
    for wanted in sorted({options.wanted_accuracy, 0.7, 0.8, 0.9, 0.95}):
        threshold = choose_threshold(answers.probabilities, answers.truth, wanted, least_coverage=0.0)
        known = threshold.reached
        rows[f"wanted: {percent(wanted, 0)}"] = {
            "answer from": threshold.threshold if known else "not reached",
            "share answered": threshold.coverage if known else np.nan,
            "right among them": threshold.accuracy if known else np.nan,
        }
    card = float(answers.card.unsure_below)
    given = answers.probabilities.max(axis=1) >= card
    rows["the card's threshold"] = {
        "answer from": card,
        "share answered": given.mean(),
        "right among them": answers.right[given].mean() if given.any() else np.nan,
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("answers right in")


def _crossed_threshold(answers: Answers, crossed: CrossFit) -> dict[str, float]:
    """Return what thresholds chosen on other folds give: the share of images answered, and of right answers."""
    answered = crossed.answered
    right = float(answers.right[answered].mean()) if answered.any() else float("nan")
    return {"coverage": float(answered.mean()), "accuracy_of_answers": right}


def _abstaining(chosen: Threshold, options: Evaluation, held_out: dict[str, float] | None) -> str:
    wanted = percent(options.wanted_accuracy, 0)
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
            f" Thresholds chosen on other folds give {percent(held_out['accuracy_of_answers'])} right of "
            f"{percent(held_out['coverage'])} answered."
        )
    return text
