from itertools import permutations

import numpy as np
import pytest

from evaluation.metrics.agreement import annotator_agreement, correct_annotators, label_shares

NAMES = ["anger", "happiness", "neutral", "unknown", "nf"]
RANDOM = np.random.default_rng(2)
VOTES = RANDOM.multinomial(10, [0.4, 0.2, 0.2, 0.1, 0.1], 60)


def test_annotator_agreement_counts_all_pairs():
    for votes, agreement in zip(VOTES, annotator_agreement(VOTES), strict=True):
        people = [name for name, count in enumerate(votes) for _ in range(count)]
        assert agreement == pytest.approx(np.mean([a == b for a, b in permutations(people, 2)]))
    assert np.isnan(annotator_agreement(np.array([[1, 0], [0, 0]]))).all()


def test_annotators_are_scored_against_the_others():
    for votes, right, judged in zip(VOTES, *correct_annotators(VOTES, NAMES), strict=True):
        people = [name for name, count in enumerate(votes) for _ in range(count)]
        expected_right = expected_judged = 0
        for number, choice in enumerate(people):
            others = people[:number] + people[number + 1 :]
            counts = {name: others.count(name) for name in set(others) if others.count(name) > 1}
            best = max(counts, key=counts.__getitem__, default=None)
            if best is not None and best < 3 and 2 * counts[best] > sum(counts.values()):
                expected_judged += 1
                expected_right += choice == best
        assert (right, judged) == (expected_right, expected_judged)


def test_label_shares_leave_out_other_choices():
    shares = label_shares(np.array([[3, 1, 0, 6, 0], [0, 0, 0, 4, 1]]), NAMES, ["anger", "happiness"])
    assert shares[0].tolist() == [0.75, 0.25] and np.isnan(shares[1]).all()
