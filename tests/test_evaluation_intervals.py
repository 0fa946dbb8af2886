from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from configuration import EvaluationConfig
from evaluation.metrics.intervals import (
    Estimate,
    bootstrap,
    boundary_interval,
    effective_size,
    estimate_share,
    percentile_intervals,
    wilson_interval,
)
from evaluation.metrics.paired import holm, is_significant, mcnemar
from evaluation.metrics.scores import estimate_scores


def test_weights_are_draws_of_whole_subjects_and_reproducible(monkeypatch):
    seen = []

    def statistic(weights):
        seen.append(weights.copy())
        return {"sum": weights.sum(axis=1)}

    groups = np.array([0, 0, 1, 2, 2, 2])
    bootstrap(statistic, groups, 50, 7)
    monkeypatch.setattr("evaluation.metrics.intervals._CHUNK", 12)  # two resamples at a time
    bootstrap(statistic, groups, 50, 7)
    first, *parts = seen
    np.testing.assert_array_equal(first, np.concatenate(parts))
    assert len(parts) == 25
    assert (first[:, 0] == first[:, 1]).all() and (first[:, 3] == first[:, 5]).all()
    assert (first[:, 0] + first[:, 2] + first[:, 3] == 3).all()


def test_undefined_value_has_no_interval():
    intervals = percentile_intervals({"none": np.full(9, np.nan), "some": np.array([1.0, np.nan, 3.0])}, 0.5)
    assert np.isnan(intervals["none"]).all() and intervals["some"] == (1.5, 2.5)


@pytest.mark.parametrize(("only_a", "only_b"), [(12, 3), (7, 7), (0, 5)])
def test_mcnemar_is_the_two_sided_binomial_test_of_the_discordant_pairs(only_a, only_b):
    right_a = np.array([True] * only_a + [False] * only_b + [True] * 20 + [False] * 10)
    right_b = np.array([False] * only_a + [True] * only_b + [True] * 20 + [False] * 10)
    n, fewer = only_a + only_b, min(only_a, only_b)
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)
    result = mcnemar(right_a, right_b)
    assert (result["only_a"], result["only_b"]) == (only_a, only_b)
    assert result["p_value"] == pytest.approx(expected)


def test_holm_by_hand_leaves_out_nan():
    adjusted = holm(np.array([0.01, np.nan, 0.04, 0.03, 0.5]))
    np.testing.assert_allclose(adjusted, [0.04, np.nan, 0.09, 0.09, 0.5])


@pytest.mark.parametrize(("hits", "size"), [(0, 4), (4, 4), (7, 9), (1, 1)])
def test_wilson_interval_is_scipys(hits, size):
    expected = binomtest(hits, size).proportion_ci(0.9, method="wilson")
    assert wilson_interval(hits / size, size, 0.9) == pytest.approx((expected.low, expected.high))
    assert np.isnan(wilson_interval(0, 0, 0.9)).all()


def test_share_of_one_has_an_interval_of_some_width():
    every = np.ones(4, bool)
    expected = binomtest(4, 4).proportion_ci(0.95, method="wilson")
    assert boundary_interval(every, np.ones(4), None, 0.95) == pytest.approx((expected.low, 1))
    assert boundary_interval(np.array([1, 1, 0]), np.ones(3), None, 0.95) is None
    of_one_person = estimate_share(every, np.zeros(4, int), 100, 0)
    assert of_one_person.low == pytest.approx(wilson_interval(1, 1, 0.95)[0])
    assert effective_size(np.ones(6), np.array([0, 0, 0, 0, 1, 2])) == 36 / 18


def test_recall_of_one_person_has_the_width_of_one_observation():
    truth, people = np.repeat([0, 1], [6, 40]), np.r_[[0] * 6, np.arange(1, 41)]
    right = np.r_[[True] * 4, [False] * 2, [True] * 30, [False] * 10]
    values, intervals = estimate_scores(
        predictions_of(truth, right, 2), truth, ("a", "b"), people, EvaluationConfig(resamples=200)
    )
    assert intervals["recall/a"] == pytest.approx(wilson_interval(4 / 6, 1, 0.95))
    low, high = intervals["balanced_accuracy"]
    assert high - values["balanced_accuracy"] > 0.1 and values["balanced_accuracy"] - low > 0.2


def test_few_images_that_all_favour_one_model_are_not_significant():
    first = np.repeat([True, False], [76, 4])
    test = mcnemar(first, np.ones(80, bool))
    assert test["p_value"] == 0.125 and not is_significant(Estimate(0.05, 0.01, 0.1), float(test["p_value"]), 0.95)
    assert is_significant(Estimate(0.05, 0.01, 0.1), 0.03, 0.95)


def predictions_of(truth, right, classes):
    """Return probabilities of a model that calls what it gets wrong by the next label."""
    probabilities = np.full((len(truth), classes), 0.1)
    probabilities[np.arange(len(truth)), np.where(right, truth, (truth + 1) % classes)] = 0.8
    return probabilities


def test_intervals_of_a_rare_label_hold_the_true_scores():
    labels, sizes, recalls = ("fear", "anger", "neutral"), np.array([4, 25, 60]), np.array([0.85, 0.9, 0.95])
    truth = np.repeat(np.arange(3), sizes)
    counts = np.diag(sizes * recalls) + np.roll(np.diag(sizes * (1 - recalls)), 1, axis=1)
    f1 = 2 * counts.diagonal() / (counts.sum(axis=0) + sizes)
    true = {"recall/fear": 0.85, "f1/fear": f1[0], "balanced_accuracy": recalls.mean(), "macro_f1": f1.mean()}
    random, held = np.random.default_rng(6), dict.fromkeys(true, 0)
    for seed in range(100):
        probabilities = predictions_of(truth, random.random(len(truth)) < recalls[truth], 3)
        options = EvaluationConfig(resamples=100, seed=seed)
        _, intervals = estimate_scores(probabilities, truth, labels, np.arange(len(truth)), options)
        for name, value in true.items():
            held[name] += intervals[name][0] <= value <= intervals[name][1]
    assert min(held.values()) >= 90, held  # the bootstrap alone holds the recall in half of the repetitions


def test_intervals_hold_where_each_person_is_always_right_or_always_wrong():
    random, held = np.random.default_rng(7), 0
    people, truth = np.repeat(np.arange(20), 6), np.tile([0, 1], 60)
    for seed in range(100):
        right = (random.random(20) < 0.93)[people]
        _, intervals = estimate_scores(
            predictions_of(truth, right, 2), truth, ("a", "b"), people, EvaluationConfig(resamples=100, seed=seed)
        )
        held += intervals["accuracy"][0] <= 0.93 <= intervals["accuracy"][1]
    assert held >= 88


def test_perfect_scores_have_no_interval_without_width():
    truth = np.repeat([0, 1], [4, 20])
    values, intervals = estimate_scores(
        predictions_of(truth, np.ones(24, bool), 2), truth, ("a", "b"), np.arange(24), EvaluationConfig(resamples=50)
    )
    shown = {name: ends for name, ends in intervals.items() if name != "brier"}
    assert all(values[name] == ends[1] == 1 and ends[0] < 0.95 for name, ends in shown.items()), shown
    assert intervals["recall/a"][0] == pytest.approx(wilson_interval(1, 4, 0.95)[0])
    assert intervals["balanced_accuracy"][0] > intervals["recall/a"][0]


def test_label_that_is_never_predicted_has_no_interval_of_its_precision():
    truth = np.repeat([0, 1], [4, 20])
    probabilities = np.tile([0.2, 0.8], (24, 1))
    _, intervals = estimate_scores(probabilities, truth, ("a", "b"), np.arange(24), EvaluationConfig(resamples=50))
    assert np.isnan(intervals["precision/a"]).all()
    assert intervals["recall/a"] == pytest.approx(wilson_interval(0, 4, 0.95))
