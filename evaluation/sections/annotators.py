"""Annotator votes: agreement of a model, of the labels of the data set, and of single annotators with the votes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from configuration import EvaluationConfig
from evaluation.metrics.agreement import annotator_agreement, correct_annotators, label_shares
from evaluation.metrics.intervals import bootstrap, boundary_interval, percentile_intervals
from evaluation.predictions import Predictions
from evaluation.report.section import Section, Table, interval_text, percent
from evaluation.sections.performance import format_interval
from preprocessing.datasets.votes import majority, vote_choices, vote_counts

_SHARES = {
    "model_majority": "model = majority of the annotators",
    "dataset_majority": "label of the data set = majority",
    "person_majority": "single annotator = majority of the others",
    "model_vote": "random vote = model",
    "dataset_vote": "random vote = label of the data set",
    "person_vote": "two annotators agree",
    "best_vote": "upper bound: random vote = most frequent vote",
}


@dataclass(frozen=True)
class Agreement:
    """Agreement with annotator votes.

    Attributes:
        values: The shares of `_SHARES`, and the Kullback-Leibler `divergence`, nats.
        intervals: Interval of each value.
        images: Number of images of each value.
        with_majority: Images with a majority for an emotion that the model knows.
        other_majority: Images with a majority for another emotion.
        with_votes: Images with votes.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    images: dict[str, int]
    with_majority: int
    other_majority: int
    with_votes: int


def measure_agreement(predictions: Predictions, options: EvaluationConfig) -> Agreement | None:
    """Return the agreement with annotator votes; None if the table has no votes for the labels."""
    choices = vote_choices(predictions.rows)
    if not set(predictions.labels) <= set(choices):
        return None
    votes = vote_counts(predictions.rows, choices)
    if not votes.any():
        return None
    winner = majority(predictions.rows).to_numpy()
    fractions = _fractions(predictions, votes, choices, winner)
    tops, bottoms = (np.stack([parts[side] for parts in fractions.values()], axis=1) for side in (0, 1))

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = (weights @ tops) / (weights @ bottoms)
        return dict(zip(fractions, shares.T, strict=True))

    values = {name: float(value[0]) for name, value in statistic(np.ones((1, len(votes)))).items()}
    resampled = bootstrap(statistic, predictions.clusters, options.resamples, options.seed)
    intervals = percentile_intervals(resampled, options.level)
    for name in _SHARES:
        ends = boundary_interval(*fractions[name], predictions.clusters, options.level)
        intervals[name] = ends or intervals[name]
    decided = int(np.isin(winner, predictions.labels).sum())
    return Agreement(
        values,
        intervals,
        {name: int((bottom > 0).sum()) for name, (_, bottom) in fractions.items()},
        decided,
        int((winner != "").sum()) - decided,
        int((votes.sum(axis=1) > 0).sum()),
    )


def _fractions(
    predictions: Predictions, votes: np.ndarray, choices: list[str], winner: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return numerator and denominator of each value, float (images,) each."""
    labels, image = np.asarray(predictions.labels, dtype=object), np.arange(len(votes))
    decided = np.isin(winner, labels)
    shares = label_shares(votes, choices, predictions.labels)
    known = ~np.isnan(shares[:, 0])
    shares = np.nan_to_num(shares)
    total = votes.sum(axis=1).clip(min=1)
    own = predictions.rows.get("dataset_emotion", predictions.rows["emotion"]).to_numpy(object)
    correct, judged = correct_annotators(votes, choices)
    agreement = annotator_agreement(votes)
    ratio = np.where(shares > 0, shares, 1) / np.clip(predictions.probabilities, 1e-12, None)
    fractions = {
        "model_majority": (decided & (labels[predictions.predicted] == winner), decided),
        "dataset_majority": (decided & (own == winner), decided & (own != "")),
        "person_majority": (correct / total, judged / total),
        "model_vote": (shares[image, predictions.predicted], known),
        "dataset_vote": ((shares * (labels == own[:, None])).sum(axis=1), known & (own != "")),
        "person_vote": (np.nan_to_num(agreement), ~np.isnan(agreement)),
        "best_vote": (shares.max(axis=1), known),
        "divergence": ((shares * np.log(ratio)).sum(axis=1), known),
    }
    return {name: (top.astype(np.float64), bottom.astype(np.float64)) for name, (top, bottom) in fractions.items()}


def annotator_section(predictions: Predictions, options: EvaluationConfig) -> Section | None:
    """Return the section on annotator votes; None if the table has no votes."""
    found = measure_agreement(predictions, options)
    if found is None:
        return None
    values = found.values
    table = pd.DataFrame(
        {
            "share": [values[name] for name in _SHARES],
            interval_text(options.level): [format_interval("accuracy", found.intervals[name]) for name in _SHARES],
            "images": [found.images[name] for name in _SHARES],
        },
        index=pd.Index(_SHARES.values(), name="agreement"),
    )
    other = f"; {found.other_majority:,} have a majority for another emotion" if found.other_majority else ""
    selected = "Only images with a majority are scored. Use --truth labels to score all images."
    return Section(
        name="annotators",
        title="Annotator agreement",
        sentences=[
            f"Images with a majority: {found.with_majority:,} of {len(predictions.rows):,}{other}. "
            f"Accuracy against the majority: model {percent(values['model_majority'])}, labels of the data set "
            f"{percent(values['dataset_majority'])}, single annotator against the others "
            f"{percent(values['person_majority'])}. Errors of the labels limit the accuracy against the labels.",
            f"Agreement with single votes: model {percent(values['model_vote'])}, two annotators "
            f"{percent(values['person_vote'])}, upper bound {percent(values['best_vote'])}.",
            f"Kullback-Leibler divergence of the model from the votes: {values['divergence']:.3f} nats "
            f"({interval_text(options.level)} {format_interval('divergence', found.intervals['divergence'])}).",
            "Method: a majority is more than half of the votes; single votes for an emotion are dropped. "
            "Two annotators agree with probability Σ v(v−1) / (N(N−1)), for v of N votes.",
            *([selected] if predictions.scored_by_majority else []),
        ],
        tables=[Table(table, f"Agreement with the votes, {predictions.title}", percent=("share",))],
        values={
            **values,
            "intervals": {name: list(interval) for name, interval in found.intervals.items()},
            "images_with_majority": found.with_majority,
            "images_with_votes": found.with_votes,
        },
    )
