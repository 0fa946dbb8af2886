"""Agreement of annotators, from the numbers of votes for each image."""

from collections.abc import Sequence

import numpy as np

from preprocessing.datasets.votes import majority_index


def label_shares(votes: np.ndarray, choices: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Return the share of each label among all votes for the labels.

    Args:
        votes: Numbers of votes, int (images, choices).
        choices: Names of the choices.
        labels: Some of the choices.

    Returns:
        float (images, labels); NaN without a vote for a label.
    """
    kept = votes[:, [list(choices).index(label) for label in labels]].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return kept / kept.sum(axis=1, keepdims=True)


def annotator_agreement(votes: np.ndarray) -> np.ndarray:
    """Return the probability that two annotators of an image agree, float (images,); NaN with fewer than two votes.

    It is the sum over choices of v (v - 1) / (N (N - 1)), for v of N votes: the observed agreement of Fleiss (1971).
    """
    total = votes.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (votes * (votes - 1)).sum(axis=1) / (total * (total - 1))


def correct_annotators(votes: np.ndarray, choices: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Score each annotator against the majority of the others. Votes for no emotion are incorrect.

    Args:
        votes: Numbers of votes, int (images, choices).
        choices: Names of the choices.

    Returns:
        Two arrays (images,): correct annotators, and annotators whose others have a majority.
    """
    correct, judged = np.zeros(len(votes)), np.zeros(len(votes))
    for index in range(votes.shape[1]):
        others = votes.copy()
        others[:, index] -= votes[:, index] > 0
        decided = majority_index(others, choices)
        correct += votes[:, index] * (decided == index)
        judged += votes[:, index] * (decided >= 0)
    return correct, judged
