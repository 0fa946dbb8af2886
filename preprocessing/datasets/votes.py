"""Crowd votes: what ten people called the same face, and what is made of it.

A table that has them holds, for each image, how many people chose each emotion (`votes_<emotion>`), could not tell
(`votes_unknown`), or saw no face (`votes_nf`). The rule is that of FER+ (Barsoum et al. 2016, "Training deep networks
for facial expression recognition with crowd-sourced label distribution"): an answer that a single person gave counts
as a slip and is left out.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from common.emotions import EMOTIONS
from common.errors import InputError

MAJORITY = "majority of the annotators"  # label_source of a label that the votes gave
NO_EMOTION = ("unknown", "nf")  # the other answers that FER+'s people could give


def vote_choices(table: pd.DataFrame) -> list[str]:
    """Return what a table has votes for: emotions in class order, then `unknown` and `nf`; empty where none."""
    return [answer for answer in (*EMOTIONS, *NO_EMOTION) if f"votes_{answer}" in table.columns]


def vote_counts(table: pd.DataFrame, predictions: Sequence[str]) -> np.ndarray:
    """Return the numbers of people, int (images, answers); 0 where nothing is known."""
    return table[[f"votes_{answer}" for answer in predictions]].fillna(0).to_numpy().astype(np.int64)


def voted_emotions(table: pd.DataFrame) -> list[str]:
    """Return the emotions that people could choose, in class order.

    Raises:
        InputError: the table has no votes.
    """
    emotions = [answer for answer in vote_choices(table) if answer not in NO_EMOTION]
    if len(emotions) < 2:
        raise InputError(
            "the table has no crowd votes (columns votes_<emotion>); give FER+'s to step 1: "
            "python -m preprocessing.step1_inventory ... --votes fer2013new.csv"
        )
    return emotions


def has_votes(table: pd.DataFrame) -> bool:
    """Return whether any image of a table has votes for an emotion."""
    emotions = [answer for answer in vote_choices(table) if answer not in NO_EMOTION]
    return len(emotions) > 1 and bool(vote_counts(table, emotions).any())


def vote_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return each emotion's share of an image's votes, 0-1, one column per emotion, with the table's index.

    A row sums to one, or to zero where no emotion was named by two people, or where more than half of the votes that
    count say `unknown` or `nf`.
    """
    emotions = voted_emotions(table)
    predictions = vote_choices(table)
    counts = pd.DataFrame(_counted(vote_counts(table, predictions)), index=table.index, columns=pd.Index(predictions))
    named = counts[emotions]
    total = named.sum(axis=1)
    is_face = total >= counts.drop(columns=emotions).sum(axis=1)
    return named.div(total.where(is_face & (total > 0)), axis=0).fillna(0.0)


def majority(table: pd.DataFrame) -> pd.Series:
    """Return the emotion that more than half of an image's votes name, or an empty string where there is none."""
    voted_emotions(table)  # refuses a table without votes
    predictions = vote_choices(table)
    names = np.array([*predictions, ""], dtype=object)
    return pd.Series(names[majority_index(vote_counts(table, predictions), predictions)], table.index, name="majority")


def with_majority_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the majority's emotion as each image's label; those without one become unlabelled.

    The data set's own label goes to the column `dataset_emotion`.
    """
    chosen = majority(table)
    return table.assign(dataset_emotion=table["emotion"], emotion=chosen, label_source=chosen.map(_source))


def _source(emotion: str) -> str:
    return MAJORITY if emotion else ""


def majority_index(votes: np.ndarray, predictions: Sequence[str]) -> np.ndarray:
    """Return which answer has the majority, as `majority` does, int (images,); -1 where there is none.

    Args:
        votes: Numbers of people, int (images, answers).
        answers: What they chose.
    """
    counts = _counted(votes)
    most = counts.argmax(axis=1)
    clear = 2 * counts.max(axis=1) > counts.sum(axis=1)
    return np.where(clear & ~np.isin(predictions, NO_EMOTION)[most], most, -1)


def _counted(votes: np.ndarray) -> np.ndarray:
    """Return the votes that count: an answer of a single person does not."""
    return np.where(votes > 1, votes, 0)
