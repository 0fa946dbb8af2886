"""Annotator votes: several people's labels of the same image, their shares and their majority.

Such a table has one count per image and choice: of each emotion (`votes_<emotion>`), of "cannot tell" (`votes_unknown`)
and of "no face" (`votes_nf`). The rule is that of FER+ (Barsoum et al. 2016, "Training deep networks for facial
expression recognition with crowd-sourced label distribution"): a single vote counts as a mistake and is dropped.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from common.emotions import EMOTIONS
from common.errors import InputError

MAJORITY = "majority of the annotators"  # `label_source` of labels that come from the votes
NO_EMOTION = ("unknown", "nf")  # the other choices of FER+


def vote_choices(table: pd.DataFrame) -> list[str]:
    """Return the choices that a table has votes for: emotions in class order, then `unknown` and `nf`."""
    return [choice for choice in (*EMOTIONS, *NO_EMOTION) if f"votes_{choice}" in table.columns]


def vote_counts(table: pd.DataFrame, choices: Sequence[str]) -> np.ndarray:
    """Return the numbers of votes, int64 (images, choices); 0 where unknown."""
    return table[[f"votes_{choice}" for choice in choices]].fillna(0).to_numpy().astype(np.int64)


def voted_emotions(table: pd.DataFrame) -> list[str]:
    """Return the emotions that a table has votes for, in class order.

    Raises:
        InputError: The table has no votes.
    """
    emotions = [choice for choice in vote_choices(table) if choice not in NO_EMOTION]
    if len(emotions) < 2:
        raise InputError(
            "the table has no annotator votes (columns votes_<emotion>); give FER+'s votes to step 1: "
            "preprocessing.step1_inventory with --votes fer2013new.csv"
        )
    return emotions


def has_votes(table: pd.DataFrame) -> bool:
    """Return whether any image of a table has votes for an emotion."""
    emotions = [choice for choice in vote_choices(table) if choice not in NO_EMOTION]
    return len(emotions) > 1 and bool(vote_counts(table, emotions).any())


def vote_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return each emotion's share of an image's votes, 0-1: one column per emotion, the table's index.

    A row sums to one. It sums to zero where no emotion has two votes, or where `unknown` and `nf` have more than half.
    """
    emotions, choices = voted_emotions(table), vote_choices(table)
    counts = pd.DataFrame(_counted(vote_counts(table, choices)), index=table.index, columns=pd.Index(choices))
    total = counts[emotions].sum(axis=1)
    is_face = total >= counts.drop(columns=emotions).sum(axis=1)
    return counts[emotions].div(total.where(is_face & (total > 0)), axis=0).fillna(0.0)


def majority(table: pd.DataFrame) -> pd.Series:
    """Return the emotion with more than half of an image's votes, or an empty string."""
    voted_emotions(table)  # refuses a table without votes
    choices = vote_choices(table)
    names = np.array([*choices, ""], dtype=object)
    return pd.Series(names[majority_index(vote_counts(table, choices), choices)], table.index, name="majority")


def with_majority_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the majority as each image's label; the original label moves to `dataset_emotion`."""
    chosen = majority(table)
    source = chosen.where(chosen == "", MAJORITY)
    return table.assign(dataset_emotion=table["emotion"], emotion=chosen, label_source=source)


def majority_index(votes: np.ndarray, choices: Sequence[str]) -> np.ndarray:
    """Return the index of the emotion with more than half of the votes, int (images,); -1 where there is none.

    Args:
        votes: Numbers of votes, int (images, choices).
        choices: Names of the choices.
    """
    counts = _counted(votes)
    most = counts.argmax(axis=1)
    clear = 2 * counts.max(axis=1) > counts.sum(axis=1)
    return np.where(clear & ~np.isin(choices, NO_EMOTION)[most], most, -1)


def _counted(votes: np.ndarray) -> np.ndarray:
    """Return the votes without single ones."""
    return np.where(votes > 1, votes, 0)
