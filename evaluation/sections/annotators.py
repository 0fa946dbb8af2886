"""Crowd votes: what several people called each image, how well a model agrees with them, and they with each other."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from configuration import EvaluationConfig
from evaluation.metrics.intervals import bootstrap, boundary_interval, percentile_intervals
from evaluation.predictions import Predictions
from evaluation.report.section import Section, Table, interval_text, percent
from evaluation.sections.performance import format_interval
from preprocessing.datasets.votes import majority, majority_index, vote_choices, vote_counts


def label_shares(votes: np.ndarray, names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Return the share of each label among the votes for any of the labels, float (images, labels); NaN without any.

    Every vote counts, other than in the shares that networks learn: what answers are set against here is a person's.
    """
    kept = votes[:, [list(names).index(label) for label in labels]].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return kept / kept.sum(axis=1, keepdims=True)


def annotator_agreement(votes: np.ndarray) -> np.ndarray:
    """Return the probability that two people who looked at an image chose the same name, (images,).

    The sum over names of v (v - 1) / (N (N - 1)), for v of N votes: the observed agreement in Fleiss's kappa (1971).
    NaN with fewer than two votes.
    """
    total = votes.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (votes * (votes - 1)).sum(axis=1) / (total * (total - 1))


def correct_annotators(votes: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Score each person against the majority of the others, as the model is scored against the majority.

    For each image and each of its votes in turn: that vote is taken out, the others decide as in `majority`, and the
    person is right who chose the same. People who said `unknown` or `nf` are wrong.

    Returns:
        Two arrays (images,): the number of people who are right, and of those whose others have a majority.
    """
    right, judged = np.zeros(len(votes)), np.zeros(len(votes))
    for index in range(votes.shape[1]):
        others = votes.copy()
        others[:, index] -= votes[:, index] > 0
        decided = majority_index(others, names)
        right += votes[:, index] * (decided == index)
        judged += votes[:, index] * (decided >= 0)
    return right, judged


def annotator_section(predictions: Predictions, options: EvaluationConfig) -> Section | None:
    """Score a model, the data set's own labels and people against crowd votes; None where the table has no votes."""
    names = vote_choices(predictions.rows)
    if not set(predictions.labels) <= set(names):
        return None
    votes = vote_counts(predictions.rows, names)
    if not votes.any():
        return None
    winner = majority(predictions.rows).to_numpy()
    decided = np.isin(winner, predictions.labels)
    tops, bottoms = _fractions(predictions, votes, names, winner)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = (weights @ tops.to_numpy()) / (weights @ bottoms.to_numpy())
        return dict(zip(map(str, tops), shares.T, strict=True))

    values = {name: float(value[0]) for name, value in statistic(np.ones((1, len(votes)))).items()}
    drawn = bootstrap(statistic, predictions.clusters, options.resamples, options.seed)
    intervals = percentile_intervals(drawn, options.level)
    for name in _DESCRIBED:
        ends = boundary_interval(tops[name].to_numpy(), bottoms[name].to_numpy(), predictions.clusters, options.level)
        intervals[name] = ends or intervals[name]
    table = pd.DataFrame(
        {
            "share": [values[name] for name in _DESCRIBED],
            interval_text(options.level): [format_interval("accuracy", intervals[name]) for name in _DESCRIBED],
            "images": [int((bottoms[name] > 0).sum()) for name in _DESCRIBED],
        },
        index=pd.Index(_DESCRIBED.values(), name="how often"),
    )
    other = int((winner != "").sum() - decided.sum())
    beyond = f"; {other:,} more have one for an emotion that the model does not know" if other else ""
    return Section(
        name="crowd",
        title="Against the crowd",
        sentences=[
            f"Several people voted on each image. Of {len(votes):,} images {int(decided.sum()):,} have a majority for "
            "an emotion that the model knows (a name that one person alone chose is not counted; of the rest, more "
            f"than half agree){beyond}. On them the model is right in {percent(values['model_majority'])}, the data "
            f"set's own labels in {percent(values['dataset_majority'])}; a single person, set against the majority of "
            f"the others, in {percent(values['person_majority'])}. So a score against the data set's own labels is "
            "held down by these labels as well as by the model.",
            "Against single votes the people themselves set the ceiling: whoever gives one answer per image can agree "
            f"with {percent(values['best_vote'])} of the votes at best, and two people who looked at the same image "
            f"agree in {percent(values['person_vote'])}; the model agrees with {percent(values['model_vote'])}.",
            "How it is counted: a person is scored by taking each vote out in turn and asking whether it is the "
            "majority of the others. Two people's agreement is the mean over images of Σ v(v−1) / (N(N−1)), for v of "
            "N votes. A vote that says no emotion counts against the people; votes outside the model's emotions are "
            "left out where answers are set against single votes.",
            f"The model's probabilities differ from the shares of the votes by {values['divergence']:.3f} nats "
            f"({format_interval('divergence', intervals['divergence'])}; Kullback-Leibler divergence of the model from "
            "the votes; 0 would be the crowd itself).",
            *([_ON_AGREED] if predictions.scored_by_majority else []),
        ],
        tables=[Table(table, f"Agreement with the crowd, {predictions.title}", percent=("share",))],
        values={
            **values,
            "intervals": {name: list(interval) for name, interval in intervals.items()},
            "images_with_majority": int(decided.sum()),
            "images_with_votes": int((votes.sum(axis=1) > 0).sum()),
        },
    )


_ON_AGREED = (
    "Only images on which more than half of the people agree are scored here: on all images people agree less, and so "
    "would the model. Evaluate with --truth labels to set every image against its votes."
)

_DESCRIBED = {
    "model_majority": "the model gives the majority's emotion",
    "dataset_majority": "the data set's own label is the majority's",
    "person_majority": "a person gives the majority of the others",
    "model_vote": "a random vote is the model's answer",
    "dataset_vote": "a random vote is the data set's own label",
    "person_vote": "two people chose the same name",
    "best_vote": "ceiling: a random vote is the commonest",
}


def _fractions(
    predictions: Predictions, votes: np.ndarray, names: Sequence[str], winner: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the figures of `_DESCRIBED` and `divergence` as fractions: the sum of a column over the sum of the other.

    Args:
        answers: The model's answers.
        votes: Numbers of people, int (images, names).
        names: What they chose.
        winner: The emotion of the majority, str (images,); empty where there is none.

    Returns:
        Numerators and denominators of each image, both (images, figures).
    """
    labels = np.asarray(predictions.labels, dtype=object)
    decided = np.isin(winner, labels)
    shares = label_shares(votes, names, predictions.labels)
    known = ~np.isnan(shares[:, 0])
    shares = np.nan_to_num(shares)
    image = np.arange(len(votes))
    total = votes.sum(axis=1).clip(min=1)
    own = predictions.rows.get("dataset_emotion", predictions.rows["emotion"]).to_numpy(
        object
    )  # not what it is scored against
    own_shares = (shares * (labels == own[:, None])).sum(axis=1)
    right, judged = correct_annotators(votes, names)
    between = annotator_agreement(votes)
    ratio = np.where(shares > 0, shares, 1) / np.clip(predictions.probabilities, 1e-12, None)
    figures = {
        "model_majority": (decided & (labels[predictions.predicted] == winner), decided),
        "dataset_majority": (decided & (own == winner), decided & (own != "")),
        "person_majority": (right / total, judged / total),
        "model_vote": (shares[image, predictions.predicted], known),
        "dataset_vote": (own_shares, known & (own != "")),
        "person_vote": (np.nan_to_num(between), ~np.isnan(between)),
        "best_vote": (shares.max(axis=1), known),
        "divergence": ((shares * np.log(ratio)).sum(axis=1), known),
    }
    tops = pd.DataFrame({name: np.asarray(top, np.float64) for name, (top, _) in figures.items()})
    bottoms = pd.DataFrame({name: np.asarray(bottom, np.float64) for name, (_, bottom) in figures.items()})
    return tops, bottoms
