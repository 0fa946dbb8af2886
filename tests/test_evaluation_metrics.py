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


def random_answers(n: int = 200) -> tuple[list[str], list[str]]:
    truth = RANDOM.choice(LABELS, n, p=[0.2, 0.5, 0.3])
    prediction = np.where(RANDOM.random(n) < 0.6, truth, RANDOM.choice(LABELS, n))
    return truth.tolist(), prediction.tolist()


def test_scores_by_hand():
    truth, prediction = random_answers()
    result = scores(truth, prediction, LABELS)
    pairs = list(zip(truth, prediction, strict=True))
    recalls, f1s = [], []
    for label in LABELS:
        hits = sum(t == p == label for t, p in pairs)
        support, predicted = truth.count(label), prediction.count(label)
        recalls.append(hits / support)
        f1s.append(2 * hits / (support + predicted))
        assert result["per_emotion"][label]["precision"] == pytest.approx(hits / predicted)
        assert result["per_emotion"][label]["support"] == support
    assert result["n"] == 200
    assert result["accuracy"] == pytest.approx(sum(t == p for t, p in pairs) / 200)
    assert result["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert result["macro_f1"] == pytest.approx(np.mean(f1s))


def test_absent_emotion_does_not_lower_means():
    result = scores(["anger", "neutral"], ["anger", "neutral"], LABELS)
    assert result["balanced_accuracy"] == result["macro_f1"] == 1.0


def test_apply_rule_drops_classes_and_rescales():
    probabilities = RANDOM.dirichlet(np.ones(8), 20)
    rule = relate(EMOTIONS, EMOTIONS[:7])
    result = apply_rule(probabilities, rule)
    np.testing.assert_allclose(result, probabilities[:, :7] / (1 - probabilities[:, 7:]))
    shuffled = relate(EMOTIONS[::-1], EMOTIONS[:7])
    np.testing.assert_allclose(apply_rule(probabilities[:, ::-1], shuffled), result)
    assert predicted_labels(result, rule.labels).tolist() == [EMOTIONS[i] for i in probabilities[:, :7].argmax(axis=1)]


def test_apply_rule_makes_zero_rows_uniform():
    certain_contempt = np.eye(8)[[7]]
    np.testing.assert_allclose(apply_rule(certain_contempt, relate(EMOTIONS, EMOTIONS[:7])), 1 / 7)


def random_probabilities(n: int = 80, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    probabilities = RANDOM.dirichlet(np.ones(classes), n).round(2)  # with equal values among them
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, RANDOM.integers(classes, size=n)


def test_top_2_by_hand():
    probabilities, truth = random_probabilities()
    by_hand = [t in sorted(range(3), key=lambda k: -row[k])[:2] for row, t in zip(probabilities, truth, strict=True)]
    distinct = np.array([len(set(row)) == 3 for row in probabilities])
    assert distinct.sum() > 50
    np.testing.assert_array_equal(in_top(probabilities, truth, 2)[distinct], np.array(by_hand)[distinct])
    assert not in_top(np.full((1, 3), 1 / 3), np.array([0]), 2).any()  # a model that cannot decide is not rewarded


def test_roc_auc_by_hand():
    probabilities, truth = random_probabilities()
    for index, label in enumerate(LABELS):
        positives, negatives = probabilities[truth == index, index], probabilities[truth != index, index]
        pairs = [(p > q) + (p == q) / 2 for p in positives for q in negatives]
        assert roc_auc(probabilities, truth, LABELS)[label] == pytest.approx(np.mean(pairs))
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
