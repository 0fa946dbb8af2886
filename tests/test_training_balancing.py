import numpy as np
import pandas as pd
import pytest
from training.balancing import sample_weights

from common.errors import InputError
from training.data import FaceBatches


def table() -> pd.DataFrame:
    groups = ["f"] * 60 + ["m"] * 40
    emotions = ["anger"] * 10 + ["happiness"] * 50 + ["anger"] * 30 + ["happiness"] * 10
    return pd.DataFrame({"gender": groups, "emotion": emotions})


def shares(rows: pd.DataFrame, weights: np.ndarray, by: list[str]) -> pd.Series:
    totals = rows.assign(weight=weights.astype(float)).groupby(by)["weight"].sum()
    return totals / totals.sum()


@pytest.mark.parametrize("column", ["emotion", "gender"])
def test_a_single_column_gives_every_value_the_same_share(column):
    weights = sample_weights(table(), column)
    assert weights.dtype == np.float32 and weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(shares(table(), weights, [column]), 0.5, rtol=1e-6)


@pytest.mark.parametrize("balance", ["gender+emotion", "emotion+gender"])
def test_reweighing_makes_group_and_emotion_independent_and_keeps_both_shares(balance):
    rows = table()
    weights = sample_weights(rows, balance)
    found = shares(rows, weights, ["gender", "emotion"]).unstack()
    np.testing.assert_allclose(found.sum(axis=1), [0.6, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0), [0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(found, np.outer([0.6, 0.4], [0.4, 0.6]), rtol=1e-6)
    assert weights[0] == pytest.approx(0.6 * 0.4 / 0.1)  # Kamiran and Calders' formula


def test_rows_of_an_unknown_group_count_as_they_are():
    rows = table()
    rows.loc[::4, "gender"] = ""
    weights = sample_weights(rows, "gender+emotion")
    assert (weights[::4] == 1).all() and weights.mean() == pytest.approx(1)
    known = rows["gender"] != ""
    np.testing.assert_array_equal(weights[known], sample_weights(rows[known], "gender+emotion"))


@pytest.mark.parametrize(
    ("balance", "words"),
    [
        ("", "not understood"),
        ("gender+", "not understood"),
        ("gender+race", "not understood"),
        ("emotion+emotion", "not understood"),
        ("age", "no column 'age'"),
        ("one", "only x in one"),
        ("none", "no value in none"),
    ],
)
def test_what_cannot_be_balanced_is_refused(balance, words):
    with pytest.raises(InputError, match=words):
        sample_weights(table().assign(one="x", none=""), balance)


@pytest.mark.parametrize("mixup", [0.2, 0.4, 1.0])
def test_mixup_leaves_the_balance_as_it_is(mixup):
    """Nine images of anger and one of fear that weighs nine times as much: both keep half of the loss."""
    labels = np.array([0] * 9 + [1])
    weights = sample_weights(pd.DataFrame({"emotion": np.array(["anger", "fear"])[labels]}), "emotion")
    images = np.zeros((10, 1, 1, 1), np.uint8)
    batches = FaceBatches(images, labels, ("anger", "fear"), 10, seed=1, weights=weights, mixup=mixup)
    totals = []
    for batches.epoch in range(3000):
        _, targets, mixed_weights = batches[0]
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
        totals.append(mixed_weights @ targets)
    # Targets mixed without the weights give fear 0.44, 0.41 and 0.37 of the loss.
    np.testing.assert_allclose(np.mean(totals, axis=0) / 10, [0.5, 0.5], atol=0.01)


def test_mixup_gives_each_part_of_an_image_its_own_weight_in_the_loss():
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)  # a mixed pixel tells the share of the second image
    labels, weights = np.array([0, 1]), np.array([0.5, 3.0], np.float32)
    batches = FaceBatches(images, labels, ("anger", "fear"), 2, seed=1, weights=weights, mixup=0.8)
    probabilities = np.array([0.3, 0.7])
    mixed = 0
    for batches.epoch in range(50):
        for image, target, weight in zip(*batches[0], strict=True):
            share = image.item() / 255
            expected = -(1 - share) * 0.5 * np.log(0.3) - share * 3.0 * np.log(0.7)
            assert -weight * (target @ np.log(probabilities)) == pytest.approx(expected, abs=0.01)
            mixed += 0.1 < share < 0.9
    assert mixed > 10


def test_batches_serve_the_weight_of_each_image():
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    labels, weights = np.arange(10) % 2, np.linspace(0.1, 1, 10, dtype=np.float32)
    batches = FaceBatches(images, labels, ("anger", "fear"), 4, seed=1, weights=weights)
    for number in range(len(batches)):
        shown, targets, own = batches[number]
        np.testing.assert_array_equal(own, weights[shown[:, 0, 0, 0]])
        np.testing.assert_array_equal(targets.argmax(axis=1), shown[:, 0, 0, 0] % 2)
    assert len(FaceBatches(images, labels, ("anger", "fear"), 4)[0]) == 2
