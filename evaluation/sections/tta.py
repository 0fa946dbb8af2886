"""Flip test-time augmentation (TTA): mean probabilities over each image and its horizontal flip.

TTA doubles the cost and is another protocol, so it has its own section and changes no other number of the report.
"""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from configuration import EvaluationConfig
from evaluation.metrics.intervals import Estimate
from evaluation.metrics.paired import is_significant, mcnemar
from evaluation.predictions import Predictions
from evaluation.report.section import Section, Table, interval_text
from evaluation.sections.comparison import format_change, format_change_estimate
from evaluation.sections.cross_validation import gap, protocol_row, score_and_interval, with_intervals
from evaluation.sections.performance import HEADLINE, format_score
from evaluation.sections.provenance import protocol

FLIP_MEAN = "mean over the image and its flip"
SCORES = {name: HEADLINE[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")}


@dataclass(frozen=True)
class TtaComparison:
    """Scores without and with TTA.

    Attributes:
        single: Scores of the image alone, as `protocol_row` returns them.
        averaged: Scores of the mean over the image and its flip.
        difference: Averaged minus single, paired.
        mcnemar: McNemar's test of the two.
    """

    single: dict[str, Any]
    averaged: dict[str, Any]
    difference: dict[str, Estimate]
    mcnemar: dict[str, float | int]


def compare_tta(predictions: Predictions, table: pd.DataFrame, options: EvaluationConfig) -> TtaComparison:
    """Predict the flipped images too, and compare the mean probabilities with those of the images alone."""
    flipped = predictions.predict_images(predictions.images[:, :, ::-1])
    both = replace(predictions, probabilities=(predictions.probabilities + flipped) / 2)
    return TtaComparison(
        protocol_row("image alone", predictions, table, options, SCORES),
        protocol_row(FLIP_MEAN, both, table, options, SCORES),
        gap(predictions, both, options, SCORES)[1],
        mcnemar(predictions.correct, both.correct),
    )


def tta_section(predictions: Predictions, table: pd.DataFrame, options: EvaluationConfig) -> Section:
    """Return the section on test-time augmentation, of one network or of the networks of all folds."""
    found = compare_tta(predictions, table, options)
    rows, change = (found.single, found.averaged), found.difference["accuracy"]
    printed = pd.DataFrame(
        {row["protocol"]: [score_and_interval(score, row) for score in SCORES] for row in rows}
        | {"difference": [format_change_estimate(score, found.difference[score]) for score in SCORES]},
        index=pd.Index(SCORES.values(), name="score"),
    )
    summary = (
        f"TTA ({FLIP_MEAN}): accuracy {format_score('accuracy', found.averaged['accuracy'])} instead of "
        f"{format_score('accuracy', found.single['accuracy'])}, {format_change('accuracy', change.value)} "
        f"({interval_text(options.level)} {100 * change.low:+.1f} to {100 * change.high:+.1f})"
    )
    calibrated = "at temperature 1" if predictions.fold_column else f"at temperature {predictions.card.temperature:.3g}"
    verdict = "The difference is not significant."
    if is_significant(change, found.mcnemar["p_value"], options.level):
        verdict = f"TTA {'improves' if change.low > 0 else 'reduces'} the accuracy."
    return Section(
        name="tta",
        title="Test-time augmentation",
        sentences=[
            f"{summary}. Correct only with TTA: {found.mcnemar['only_b']:,} images; only without: "
            f"{found.mcnemar['only_a']:,}. {verdict}",
            f"Probabilities are averaged {calibrated}. The calibration was not fitted for TTA. All other numbers of "
            "this report are without TTA.",
        ],
        tables=[Table(printed, f"TTA, {predictions.title}, {interval_text(options.level)}s in brackets")],
        values={
            "protocol": protocol(predictions, f"test-time augmentation: {FLIP_MEAN}"),
            "tta": FLIP_MEAN,
            "temperature": predictions.card.temperature,
            "summary": summary,
            "single": found.single,
            "averaged": found.averaged,
            "difference": {"n": len(predictions.rows), **with_intervals(found.difference)},
            "mcnemar": found.mcnemar,
        },
    )
