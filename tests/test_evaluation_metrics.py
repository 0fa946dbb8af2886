import numpy as np
import pytest

from evaluation.metrics import apply_rule, classification_report, confusion, predicted_labels, scores
from preprocessing.emotions import EMOTIONS, relate

LABELS = ("anger", "happiness", "neutral")
RANDOM = np.random.default_rng(4)


def random_answers(n: int = 200) -> tuple[list[str], list[str]]:
    truth = RANDOM.choice(LABELS, n, p=[0.2, 0.5, 0.3])
    prediction = np.where(RANDOM.random(n) < 0.6, truth, RANDOM.choice(LABELS, n))
    return truth.tolist(), prediction.tolist()


def test_scores_agree_with_a_count_by_hand():
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


def test_an_emotion_that_never_occurs_lowers_no_mean():
    result = scores(["anger", "neutral"], ["anger", "neutral"], LABELS)
    assert result["balanced_accuracy"] == result["macro_f1"] == 1.0


def test_confusion_counts_truth_in_rows_and_prediction_in_columns():
    truth, prediction = random_answers()
    matrix = confusion(truth, prediction, LABELS)
    for row in LABELS:
        for column in LABELS:
            expected = sum(t == row and p == column for t, p in zip(truth, prediction, strict=True))
            assert matrix.loc[row, column] == expected


def test_the_report_names_every_emotion():
    text = classification_report(*random_answers(), LABELS)
    assert all(label in text for label in [*LABELS, "macro avg"])


def test_a_rule_takes_out_the_classes_that_the_data_lacks_and_scales_to_one():
    probabilities = RANDOM.dirichlet(np.ones(8), 20)
    rule = relate(EMOTIONS, EMOTIONS[:7])
    result = apply_rule(probabilities, rule)
    np.testing.assert_allclose(result, probabilities[:, :7] / (1 - probabilities[:, 7:]))
    shuffled = relate(EMOTIONS[::-1], EMOTIONS[:7])
    np.testing.assert_allclose(apply_rule(probabilities[:, ::-1], shuffled), result)
    assert predicted_labels(result, rule.labels).tolist() == [EMOTIONS[i] for i in probabilities[:, :7].argmax(axis=1)]


def test_a_row_that_gives_nothing_to_the_scored_classes_becomes_uniform():
    certain_contempt = np.eye(8)[[7]]
    np.testing.assert_allclose(apply_rule(certain_contempt, relate(EMOTIONS, EMOTIONS[:7])), 1 / 7)
