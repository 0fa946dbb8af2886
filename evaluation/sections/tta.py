"""Test-time averaging: what a network gives when it is asked about each image and its mirror image.

Two answers per face are another protocol than one, for twice the work. So what comes of it stands by itself, and no
other number of a report knows of it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from configuration import EvaluationConfig
from evaluation.metrics.paired import mcnemar
from evaluation.predictions import Predictions
from evaluation.report.section import Section, Table, interval_text
from evaluation.sections.comparison import check_aligned, format_change, format_change_interval
from evaluation.sections.cross_dataset import predict_with
from evaluation.sections.cross_validation import gap, protocol_row, score_and_interval
from evaluation.sections.performance import HEADLINE, format_score
from evaluation.sections.provenance import protocol

MIRROR_MEAN = "mean of the image and its mirror image"
SCORES = {name: HEADLINE[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")}


def predict_flipped(predictions: Predictions, networks: Mapping[int, Path], table: pd.DataFrame) -> np.ndarray:
    """Ask whoever answered the images about their mirror images.

    Args:
        answers: The answers to the images as they are.
        networks: Fold number -> network, for answers pooled over folds; else empty.
        table: All of the data set's `split.csv`.

    Returns:
        Probabilities as those of the answers, float64 (n, labels): calibrated by the card, or of folds as the networks
        give them.
    """
    if not networks:
        return predict_with(_mirrored(predictions), predictions.model_file, table).probabilities
    probabilities = np.empty_like(predictions.probabilities)
    for fold, file in networks.items():
        asked = (predictions.rows[predictions.fold_column] == str(fold)).to_numpy()
        probabilities[asked] = predict_with(_mirrored(predictions.select(asked)), file, table).uncalibrated
    return probabilities


def tta_section(
    predictions: Predictions, networks: Mapping[int, Path], table: pd.DataFrame, options: EvaluationConfig
) -> Section:
    """Set the mean of each image's and its mirror image's probabilities beside the answers to the images alone.

    Args:
        answers: The answers to the images as they are, one network's or pooled over folds.
        networks: As for `predict_flipped`.
        table: All of the data set's `split.csv`.
        options: For the intervals.
    """
    both = replace(
        predictions, probabilities=(predictions.probabilities + predict_flipped(predictions, networks, table)) / 2
    )
    check_aligned([predictions, both])
    parts = {"single": ("the image alone", predictions), "averaged": (MIRROR_MEAN, both)}
    rows = {key: protocol_row(name, part, table, options, SCORES) for key, (name, part) in parts.items()}
    difference, test = gap(predictions, both, options, SCORES), mcnemar(predictions.correct, both.correct)
    changes = {score: format_change(score, difference[score]["value"]) for score in SCORES}
    intervals = {score: format_change_interval(score, *difference[score]["interval"]) for score in SCORES}
    printed = pd.DataFrame(
        {row["protocol"]: [score_and_interval(score, row) for score in SCORES] for row in rows.values()}
        | {"difference": [f"{changes[score]} [{intervals[score]}]" for score in SCORES]},
        index=pd.Index(SCORES.values(), name="score"),
    )
    low, high = difference["accuracy"]["interval"]
    verdict = "These images do not show that averaging changes the accuracy." if low <= 0 <= high else (
        f"Averaging {'helps' if low > 0 else 'does harm'} on images of this kind.")  # fmt: skip
    temperature = predictions.card.temperature
    given = (
        "as the networks of the folds give them, at temperature 1"
        if networks
        else f"as the classifier gives them, after the card's temperature ({temperature:.3g})"
    )
    summary = (
        f"Test-time averaging ({MIRROR_MEAN}): accuracy {format_score('accuracy', rows['averaged']['accuracy'])} "
        f"instead of {format_score('accuracy', rows['single']['accuracy'])}, {changes['accuracy']} "
        f"({interval_text(options.level)} {intervals['accuracy']})"
    )
    return Section(
        name="test_time_averaging",
        title="Test-time averaging",
        sentences=[
            f"{summary}; {test['only_b']:,} images are right only when averaged, {test['only_a']:,} only without. "
            f"{verdict}",
            "This is another protocol, told apart from the rest: every other number of this report is one answer to "
            "one crop. Here each crop is also asked mirrored, left and right exchanged, and the two probability "
            f"vectors are averaged: over the {len(predictions.labels)} emotions that are scored, {given}. How sure the "
            "averaged answers are was not calibrated.",
            "The differences are averaged minus alone, on the same images; each resample weighs the same "
            f"{'people' if predictions.has_subjects else 'images'} for both.",
        ],
        tables=[
            Table(printed, f"Test-time averaging, {predictions.title}, {interval_text(options.level)}s in brackets")
        ],
        values={
            "protocol": protocol(predictions, f"test-time averaging: {MIRROR_MEAN}"),
            "tta": MIRROR_MEAN,
            "temperature": temperature,
            "summary": summary,
            **rows,
            "difference": difference,
            "mcnemar": test,
        },
    )


def _mirrored(predictions: Predictions) -> Predictions:
    """Return answers that hold their images mirrored, left and right exchanged."""
    return replace(predictions, images=predictions.images[:, :, ::-1])
