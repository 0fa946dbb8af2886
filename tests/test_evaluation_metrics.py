from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from common.emotions import EMOTIONS, relate
from evaluation.metrics.calibration import squared_errors
from evaluation.metrics.scores import (
    NOTHING_FOUND,
    apply_rule,
    in_top_two,
    predicted_labels,
    score_statistic,
    score_values,
)

LABELS = ("anger", "happiness", "neutral")
RANDOM = np.random.default_rng(4)


def figures_of(truth: np.ndarray, predicted: np.ndarray) -> Any:
    """Return scikit-learn's precision, recall, F1 and support of each label."""
    labels = list(range(len(LABELS)))
    return sklearn_metrics.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=NOTHING_FOUND)


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
    np.testing.assert_array_equal(in_top_two(probabilities, truth)[distinct], by_hand[distinct])
    assert distinct.sum() > 50 and not in_top_two(np.full((1, 3), 1 / 3), np.array([0])).any()


def test_weighted_scores_equal_scores_of_repeated_rows():
    probabilities, truth = random_probabilities()
    statistic = score_statistic(probabilities, truth, LABELS)
    weights = RANDOM.multinomial(80, np.full(80, 1 / 80), 5).astype(float)
    weights[4, truth == 2] = 0  # a resample in which an emotion does not occur
    values = statistic(weights)
    for number, weight in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(80), weight)
        p, t = probabilities[rows], truth[rows]
        precision, recall, f1, support = figures_of(t, p.argmax(axis=1))
        assert values["accuracy"][number] == pytest.approx((t == p.argmax(axis=1)).mean())
        assert values["balanced_accuracy"][number] == pytest.approx(recall[support > 0].mean())
        assert values["macro_f1"][number] == pytest.approx(f1[support > 0].mean())
        assert values["top2_accuracy"][number] == pytest.approx(in_top_two(p, t).mean())
        assert values["brier"][number] == pytest.approx(squared_errors(p, t).mean())
        areas = []
        for index, label in enumerate(LABELS):
            assert values[f"precision/{label}"][number] == pytest.approx(precision[index])
            if support[index]:
                assert values[f"recall/{label}"][number] == pytest.approx(recall[index])
                assert values[f"f1/{label}"][number] == pytest.approx(f1[index])
                areas.append(sklearn_metrics.roc_auc_score(t == index, p[:, index]))
                assert values[f"roc_auc/{label}"][number] == pytest.approx(areas[-1])
            else:
                assert np.isnan(values[f"recall/{label}"][number]) and np.isnan(values[f"f1/{label}"][number])
        assert values["roc_auc"][number] == pytest.approx(np.mean(areas))
        alone = score_values(p, t, LABELS)
        assert alone == pytest.approx({name: value[number] for name, value in values.items()}, nan_ok=True)
