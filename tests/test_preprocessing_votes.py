import numpy as np
import pandas as pd
import pytest

from common.emotions import EMOTIONS
from common.errors import InputError
from preprocessing.datasets.votes import majority, vote_choices, vote_counts, vote_shares

CHOICES = [f"votes_{name}" for name in (*EMOTIONS, "unknown", "nf")]


def votes(**by_choice: int) -> dict[str, int]:
    return dict.fromkeys(CHOICES, 0) | {f"votes_{name}": count for name, count in by_choice.items()}


@pytest.mark.parametrize(
    ("row", "clear", "shares"),
    [
        (votes(happiness=10), "happiness", {"happiness": 1.0}),
        (votes(anger=6, sadness=3, neutral=1), "anger", {"anger": 6 / 9, "sadness": 3 / 9}),  # a single vote is dropped
        (votes(anger=5, sadness=5), "", {"anger": 0.5, "sadness": 0.5}),  # half is not more than half
        (votes(anger=3, sadness=2, fear=2, unknown=3), "", {"anger": 3 / 7, "sadness": 2 / 7, "fear": 2 / 7}),
        (votes(nf=8, neutral=2), "", {}),  # no face
        (votes(unknown=5, anger=5), "", {"anger": 1.0}),
        (votes(**dict.fromkeys(EMOTIONS, 1), unknown=1, nf=1), "", {}),  # single votes only
    ],
)
def test_single_votes_are_dropped_and_a_majority_is_more_than_half(row, clear, shares):
    table = pd.DataFrame([row])
    assert majority(table).tolist() == [clear]
    expected = [shares.get(emotion, 0.0) for emotion in EMOTIONS]
    np.testing.assert_allclose(vote_shares(table).to_numpy(), [expected])


def test_vote_counts_are_in_class_order_and_blanks_are_zero():
    table = pd.DataFrame({"votes_nf": [1.0, np.nan], "votes_neutral": [2, 3], "votes_anger": [4, 5], "path": ["", ""]})
    assert vote_choices(table) == ["anger", "neutral", "nf"]
    assert vote_counts(table, vote_choices(table)).tolist() == [[4, 2, 1], [5, 3, 0]]
    with pytest.raises(InputError, match=r"no annotator votes.*--votes fer2013new\.csv"):
        vote_shares(table[["path"]])
