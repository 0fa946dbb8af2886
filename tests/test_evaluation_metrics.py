from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from common.emotions import EMOTIONS, relate
from evaluation.metrics.calibration import squared_errors
from evaluation.metrics.scores import (
    apply_rule,
    in_top,
    predicted_labels,
    roc_auc,
    score_statistic,
    scores,
)

LABELS = ("anger", "happiness", "neutral")
RANDOM = np.random.default_rng(4)


def test_scores_are_those_of_scikit_learn_and_leave_out_an_absent_emotion():
    truth = RANDOM.choice(LABELS, 200, p=[0.2, 0.5, 0.3])
    prediction = np.where(RANDOM.random(200) < 0.6, truth, RANDOM.choice(LABELS, 200))
    result = scores(truth.tolist(), prediction.tolist(), LABELS)
    expected: Any = sklearn_metrics.precision_recall_fscore_support(truth, prediction, labels=LABELS)
    for values in zip(LABELS, *expected, strict=True):
        own = result["per_emotion"][values[0]]
        assert [own[name] for name in ("precision", "recall", "f1-score", "support")] == pytest.approx(values[1:])
    assert result["n"] == 200 and result["accuracy"] == pytest.approx((truth == prediction).mean())
    assert result["balanced_accuracy"] == pytest.approx(expected[1].mean())
    assert result["macro_f1"] == pytest.approx(expected[2].mean())
    absent = scores(["anger", "neutral"], ["anger", "neutral"], LABELS)  # no image of happiness
    assert absent["balanced_accuracy"] == absent["macro_f1"] == 1.0


def test_apply_rule_drops_classes_and_rescales():
    probabilities = RANDOM.dirichlet(np.ones(8), 20)
    rule = relate(EMOTIONS, EMOTIONS[:7])
    result = apply_rule(probabilities, rule)
    np.testing.assert_allclose(result, probabilities[:, :7] / (1 - probabilities[:, 7:]))
    shuffled = relate(EMOTIONS[::-1], EMOTIONS[:7])
    np.testing.assert_allclose(apply_rule(probabilities[:, ::-1], shuffled), result)
    assert predicted_labels(result, rule.labels).tolist() == [EMOTIONS[i] for i in probabilities[:, :7].argmax(axis=1)]
    np.testing.assert_allclose(apply_rule(np.eye(8)[[7]], rule), 1 / 7)  # certain of a class that is removed


def random_probabilities(n: int = 80, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    probabilities = RANDOM.dirichlet(np.ones(classes), n).round(2)  # with equal values among them
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, RANDOM.integers(classes, size=n)


def test_top_2_does_not_reward_a_model_that_cannot_decide():
    probabilities, truth = random_probabilities()
    distinct = np.array([len(set(row)) == 3 for row in probabilities])
    by_hand = (probabilities.argsort(axis=1)[:, 1:] == truth[:, None]).any(axis=1)
    np.testing.assert_array_equal(in_top(probabilities, truth, 2)[distinct], by_hand[distinct])
    assert distinct.sum() > 50 and not in_top(np.full((1, 3), 1 / 3), np.array([0]), 2).any()


def test_roc_auc_is_that_of_scikit_learn():
    probabilities, truth = random_probabilities()
    expected = [sklearn_metrics.roc_auc_score(truth == index, probabilities[:, index]) for index in range(3)]
    assert [roc_auc(probabilities, truth, LABELS)[label] for label in LABELS] == pytest.approx(expected)
    assert np.isnan(roc_auc(probabilities, np.zeros(80, int), LABELS)["anger"])


def test_weighted_scores_equal_scores_of_repeated_rows():
    probabilities, truth = random_probabilities()
    statistic = score_statistic(probabilities, truth, LABELS)
    weights = RANDOM.multinomial(80, np.full(80, 1 / 80), 5).astype(float)
    weights[4, truth == 2] = 0  # a resample in which an emotion does not occur
    values = statistic(weights)
    for number, weight in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(80), weight)
        p, t = probabilities[rows], truth[rows]
        names = np.array(LABELS)
        expected = scores(names[t].tolist(), names[p.argmax(axis=1)].tolist(), LABELS)
        for name in ("accuracy", "balanced_accuracy", "macro_f1"):
            assert values[name][number] == pytest.approx(expected[name]), name
        assert values["top2_accuracy"][number] == pytest.approx(in_top(p, t, 2).mean())
        assert values["brier"][number] == pytest.approx(squared_errors(p, t).mean())
        areas = []
        for index, label in enumerate(LABELS):
            figures = expected["per_emotion"][label]
            assert values[f"precision/{label}"][number] == pytest.approx(figures["precision"])
            if figures["support"]:
                assert values[f"recall/{label}"][number] == pytest.approx(figures["recall"])
                assert values[f"f1/{label}"][number] == pytest.approx(figures["f1-score"])
                areas.append(sklearn_metrics.roc_auc_score(t == index, p[:, index]))
                assert values[f"roc_auc/{label}"][number] == pytest.approx(areas[-1])
            else:
                assert np.isnan(values[f"recall/{label}"][number]) and np.isnan(values[f"f1/{label}"][number])
        assert values["roc_auc"][number] == pytest.approx(np.mean(areas))
