import json
from dataclasses import replace
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import equalized_odds_difference
from scipy.stats import fisher_exact, studentized_range
from sklearn import metrics

from common.errors import InputError
from configuration import FAIRNESS, FairnessConfig
from evaluation.metrics.paired import holm
from evaluation.sections.fairness import (
    Audit,
    audit,
    audit_groups,
    check_columns,
    frame_of,
    gaps,
    join_group_table,
    rates,
    shuffled_tables,
    simultaneous_width,
    tables_of,
)

LABELS = ("anger", "happiness", "neutral")
QUICK = replace(FAIRNESS, resamples=200, permutations=600)


def people(count: int, seed: int, right: dict[str, float], mix: dict[str, list[float]] | None = None) -> pd.DataFrame:
    """Return rows with a group, a true emotion (mixed differently by group, if asked) and an answer of a model that is
    right as often as `right` says of the group."""
    random = np.random.default_rng(seed)
    group = random.choice(list(right), count)
    even = [1 / len(LABELS)] * len(LABELS)
    truth = np.array([random.choice(LABELS, p=(mix or {}).get(name, even)) for name in group])
    wrong = np.array([random.choice([label for label in LABELS if label != shown]) for shown in truth])
    is_right = random.random(count) < np.array([right[name] for name in group])
    rows = pd.DataFrame({"emotion": truth, "prediction": np.where(is_right, truth, wrong), "gender": group})
    return rows.assign(path=[f"images/{number}.png" for number in range(count)], subject="")


def run(rows: pd.DataFrame, columns: list[str], report, options=QUICK):
    return audit_groups(rows, rows["prediction"].tolist(), LABELS, columns, report, options)


def codes(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = [("gender", sorted(set(rows["gender"]))), ("emotion", LABELS), ("prediction", LABELS)]
    group, truth, prediction = (
        pd.Categorical(rows[name], categories=list(of)).codes.astype(int) for name, of in columns
    )
    return group, truth, prediction


def audit_of(rows: pd.DataFrame, clusters: np.ndarray | None = None, options: FairnessConfig = QUICK) -> Audit:
    columns = rows["emotion"].to_numpy(), rows["prediction"].to_numpy()
    found = audit("gender", rows["gender"], *columns, LABELS, clusters, options)
    assert found is not None
    return found


# ---------------------------------------------------------------- numbers, another way


def test_scores_by_group_are_those_of_scikit_learn():
    rows = people(400, 1, {"a": 0.8, "b": 0.6, "c": 0.5})
    counts = tables_of(*codes(rows), 3, 3)
    frame, found = frame_of(counts, ["a", "b", "c"], LABELS), rates(counts)
    for number, name in enumerate("abc"):
        own = rows[rows["gender"] == name]
        report: Any = metrics.classification_report(own["emotion"], own["prediction"], output_dict=True)
        expected = {"accuracy": report["accuracy"], "macro F1": report["macro avg"]["f1-score"]}
        for column, label in enumerate(LABELS):
            expected[f"recall {label}"] = report[label]["recall"]
            assert found["recall"][number, column] == pytest.approx(report[label]["recall"])
            shown, named = own["emotion"] == label, own["prediction"] == label
            expected[f"false positives {label}"] = (named & ~shown).sum() / (~shown).sum()
            assert found["false positives"][number, column] == pytest.approx(expected[f"false positives {label}"])
        assert frame.by_group.loc[name, list(expected)].to_dict() == pytest.approx(expected)
        assert found["accuracy"][number] == pytest.approx(report["accuracy"])
        assert found["macro F1"][number] == pytest.approx(report["macro avg"]["f1-score"])


def test_gaps_are_those_of_fairlearn():
    rows = people(500, 2, {"a": 0.9, "b": 0.6, "c": 0.5})
    counts = tables_of(*codes(rows), 3, 3)
    found = gaps(counts, np.ones((3, 3), bool))
    difference = frame_of(counts, ["a", "b", "c"], LABELS).difference(method="between_groups")
    assert found["accuracy"] == pytest.approx(difference["accuracy"])
    assert found["macro F1"] == pytest.approx(difference["macro F1"])
    for column, label in enumerate(LABELS):
        shown, named = rows["emotion"] == label, rows["prediction"] == label
        expected = equalized_odds_difference(shown, named, sensitive_features=rows["gender"])
        assert found["equalised odds"][column] == pytest.approx(expected)


def test_an_emotion_that_a_group_hardly_shows_is_not_compared_there():
    counts = np.zeros((2, 3, 3), int)
    counts[:, 1, 1] = counts[:, 2, 2] = 50
    counts[0, 0, 0] = 40
    counts[1, 0, 1] = 1  # one angry face of group b, missed: no evidence
    found = gaps(counts, counts.sum(axis=2) >= 10)
    assert np.isnan(found["recall"][0]) and np.isnan(found["equalised odds"][0]) and found["recall"][1] == 0


def test_the_permutation_test_agrees_with_fishers_exact_test(tmp_path):
    # One emotion only: shuffling groups within it is then what Fisher's test of a 2 x 2 table does.
    hits = {"a": (70, 30), "b": (54, 40)}
    rows = pd.concat(
        pd.DataFrame({"gender": name, "prediction": ["anger"] * right + ["neutral"] * wrong})
        for name, (right, wrong) in hits.items()
    ).assign(emotion="anger")
    options = replace(FAIRNESS, permutations=20_000, resamples=50)
    found = audit_of(rows, options=options)
    p = found.gaps.set_index("score")["p"]["accuracy"]
    exact = fisher_exact([list(pair) for pair in hits.values()])[1]
    assert p == pytest.approx(exact, abs=0.02)


def test_intervals_of_a_groups_accuracy_are_as_wide_as_theory_says():
    rows = people(900, 3, {"a": 0.8, "b": 0.8})
    found = audit_of(rows, options=FAIRNESS)
    own = found.scores[(found.scores["score"] == "accuracy")].iloc[0]
    expected = 1.96 * np.sqrt(own["value"] * (1 - own["value"]) / own["images"])
    assert [own["value"] - own["low"], own["high"] - own["value"]] == pytest.approx([expected] * 2, rel=0.15)


def test_interval_of_a_gap_is_that_of_tukeys_test_of_all_pairs():
    rows = people(900, 3, {"a": 0.8, "b": 0.79, "c": 0.8})
    found = audit_of(rows, options=FAIRNESS)
    for _, row in found.gaps.iterrows():
        assert row["score"] == "equalised odds" or row["low"] < row["gap"] < row["high"], row
    row = found.gaps.iloc[0]
    own = [rows.loc[rows["gender"] == row[f"{end} group"]] for end in ("worst", "best")]
    shares = [(part["emotion"] == part["prediction"]).mean() for part in own]
    spread = np.sqrt(sum(p * (1 - p) / len(part) for p, part in zip(shares, own, strict=True)))
    factor = studentized_range.ppf(0.95, 3, np.inf) / np.sqrt(2)
    expected = [shares[1] - shares[0] - factor * spread, shares[1] - shares[0] + factor * spread]
    assert [row["low"], row["high"]] == pytest.approx(expected, abs=0.012)
    assert row["low"] < 0  # nobody is worse off


def test_subjects_are_drawn_and_shuffled_as_a_whole():
    # Every person's pictures are either all right or all wrong: the pictures of a person tell nothing new.
    random = np.random.default_rng(4)
    lucky = np.repeat(random.random(40) < 0.6, 10)
    truth = random.choice(LABELS, 400)
    wrong = np.array([LABELS[(LABELS.index(shown) + 1) % 3] for shown in truth])
    group = np.repeat(np.where(np.arange(40) < 20, "a", "b"), 10)
    clusters = np.repeat(np.arange(40), 10)
    rows = pd.DataFrame({"emotion": truth, "prediction": np.where(lucky, truth, wrong), "gender": group})
    by_subject, by_image = audit_of(rows, clusters), audit_of(rows)
    filters = [(found.scores["high"] - found.scores["low"])[0] for found in (by_subject, by_image)]
    assert filters[0] > 2.5 * filters[1]
    unnoticed = [found.gaps["unnoticed"][0] for found in (by_subject, by_image)]
    assert unnoticed[0] > 2 * unnoticed[1]
    assert not by_subject.mixed_subjects
    assert audit_of(rows.assign(gender=random.permutation(group)), clusters).mixed_subjects


def test_shuffled_tables_keep_the_margins_of_every_emotion():
    rows = people(300, 5, {"a": 0.9, "b": 0.3})
    real = tables_of(*codes(rows), 2, 3)
    shuffles = shuffled_tables(*codes(rows), (2, 3), None, np.random.default_rng(0))
    tables = next(shuffles)
    assert (tables.sum(axis=1) == real.sum(axis=0)).all() and (tables.sum(axis=3) == real.sum(axis=2)).all()
    assert tables.mean(axis=0)[0, 0, 0] == pytest.approx(
        real[:, 0, 0].sum() * real[0, 0].sum() / real[:, 0].sum(), rel=0.02
    )


def by_person(seed: int, mix: dict[str, list[float]], right: dict[str, float], spread: float = 0.15) -> pd.DataFrame:
    """Return 40 people of two groups, with ten pictures each, by a model that knows some people better than others."""
    random = np.random.default_rng(seed)
    rows = []
    for person in range(40):
        name = "ab"[person % 2]
        skill = random.normal(0, spread)
        for shown in random.choice(LABELS, 10, p=mix[name]):
            hit = random.random() < right[shown] + skill
            wrong = LABELS[(LABELS.index(shown) + 1) % 3]
            rows.append((person, name, shown, shown if hit else wrong))
    return pd.DataFrame(rows, columns=["person", "gender", "emotion", "prediction"])


OTHER_MIX = {"a": [0.2, 0.6, 0.2], "b": [0.6, 0.2, 0.2]}
HARD_ANGER = {"anger": 0.4, "happiness": 0.85, "neutral": 0.7}


def test_another_mix_of_emotions_of_people_is_no_bias():
    options, alarms = replace(QUICK, resamples=20, permutations=300), 0
    for seed in range(15):
        rows = by_person(200 + seed, OTHER_MIX, HARD_ANGER)
        found = audit_of(rows, rows["person"].to_numpy(), options)
        assert not found.mixed_subjects
        tested = found.gaps[~found.gaps["score"].isin(["recall", "false positives"])]
        alarms += bool((holm(tested["p"].to_numpy()) < FAIRNESS.alarm).any())
    assert alarms <= 3  # shuffling people whatever they show alarms in half of them


def test_bias_beside_another_mix_of_emotions_of_people_is_found():
    rows = by_person(9, OTHER_MIX, HARD_ANGER)
    hurt = (rows["gender"] == "b") & (np.random.default_rng(1).random(len(rows)) < 0.5)
    rows.loc[hurt, "prediction"] = "neutral"
    found = audit_of(rows, rows["person"].to_numpy())
    assert found.gaps.set_index("score")["p"]["accuracy"] < 0.02


def test_shuffles_of_people_keep_the_number_of_images_of_each_group_and_emotion():
    rows = by_person(3, OTHER_MIX, HARD_ANGER)
    real = tables_of(*codes(rows), 2, 3)
    shuffles = shuffled_tables(*codes(rows), (2, 3), rows["person"].to_numpy(), np.random.default_rng(0))
    tables = np.concatenate([next(shuffles) for _ in range(200)])
    assert (tables.sum(axis=1) == real.sum(axis=0)).all() and (tables.sum(axis=3) == real.sum(axis=2)).all()
    expected = real.sum(axis=2)[:, :, None] * real.sum(axis=0) / real.sum(axis=(0, 2))[:, None]
    np.testing.assert_allclose(tables.mean(axis=0), expected, atol=3)


def test_interval_of_the_largest_gap_holds_that_gap():
    random, held, held_by_its_own = np.random.default_rng(1), 0, 0
    for _ in range(100):  # ten groups that are alike
        values = random.binomial(60, 0.7, 10) / 60
        drawn = random.binomial(60, values, (300, 10)) / 60
        lowest, highest = int(values.argmin()), int(values.argmax())
        width = simultaneous_width(drawn, values, (values, values), lowest, highest, FAIRNESS)
        held += values[highest] - values[lowest] <= width
        held_by_its_own += np.quantile(drawn[:, highest] - drawn[:, lowest], 0.025) <= 0
    assert held >= 88 and held_by_its_own < 50


def test_rates_of_one_and_gaps_of_zero_have_intervals_of_some_width():
    rows = people(120, 1, {"a": 1.0, "b": 1.0})
    found = audit_of(rows)
    for _, row in pd.concat([found.scores, found.gaps]).iterrows():
        assert row["score"] == "equalised odds" or row["high"] - row["low"] > 0.02, row


# ---------------------------------------------------------------- the audit


def test_a_known_bias_is_found_and_named(tmp_path):
    rows = people(900, 6, {"female": 0.85, "male": 0.6})
    section = run(rows, ["gender"], tmp_path)
    assert section.values["gender"]["alarm"]
    assert json.loads(json.dumps(section.values, allow_nan=False)) == section.values
    text = " ".join(section.sentences)
    assert "Worst accuracy: male" in text and "best: female" in text and "differently, beyond chance: accuracy" in text
    gap = pd.DataFrame(section.values["gender"]["gaps"]).iloc[0]
    real = rows.groupby("gender").apply(lambda own: (own["emotion"] == own["prediction"]).mean())
    assert gap["gap"] == pytest.approx(real["female"] - real["male"]) and gap["low"] < 0.25 < gap["high"]
    (figure,) = section.figures
    assert matplotlib.image.imread(figure.file).shape[1] > 500
    assert set(pd.read_csv(figure.file.with_suffix(".csv"))["group"]) == {"female", "male"}


def test_a_bias_against_one_emotion_of_one_intersection_is_found(tmp_path):
    rows = people(2400, 7, {"female": 0.8, "male": 0.8})
    random = np.random.default_rng(8)
    rows["race"] = random.choice(["x", "y"], len(rows))
    hurt = (rows["gender"] == "male") & (rows["race"] == "y") & (rows["emotion"] == "happiness")
    rows.loc[hurt, "prediction"] = random.choice(["anger", "happiness"], int(hurt.sum()), p=[0.7, 0.3])
    section = run(rows, ["gender", "race"], tmp_path)
    assert set(section.values) == {"gender", "race", "gender x race"}
    assert "gender x race: happiness is recognised least in male, y" in " ".join(section.sentences)
    assert len(section.figures) == 3


def test_an_unbiased_control_does_not_alarm():
    alarms = 0
    for seed in range(20):
        found = audit_of(people(500, 100 + seed, {"a": 0.7, "b": 0.7, "c": 0.7}), options=replace(QUICK, resamples=20))
        tested = found.gaps[~found.gaps["score"].isin(["recall", "false positives"])]
        alarms += bool((holm(tested["p"].to_numpy()) < FAIRNESS.alarm).any())
    assert alarms <= 1


def test_another_mix_of_emotions_alone_is_no_bias(tmp_path):
    # The model is good at happiness and bad at anger, for everybody; one group smiles more.
    random = np.random.default_rng(9)
    rows = people(1500, 9, {"a": 1, "b": 1}, {"a": [0.2, 0.7, 0.1], "b": [0.7, 0.2, 0.1]})
    missed = (rows["emotion"] == "anger") & (random.random(len(rows)) < 0.6)
    rows.loc[missed, "prediction"] = "neutral"
    section = run(rows, ["gender"], tmp_path)
    gap = pd.DataFrame(section.values["gender"]["gaps"]).iloc[0]
    assert gap["gap"] > 0.2 and gap["by chance"] == pytest.approx(gap["gap"], abs=0.08)
    assert not section.values["gender"]["alarm"]
    assert "no proof of fairness" in " ".join(section.sentences)


def test_small_groups_are_named_but_not_scored(tmp_path):
    rows = people(300, 10, {"a": 0.7, "b": 0.7})
    rows.loc[:11, "gender"] = "few"
    rows.loc[12:16, "gender"] = ""
    section = run(rows, ["gender"], tmp_path)
    text = " ".join(section.sentences)
    assert "few (12 images)" in text and "5 images have no value" in text
    (warning,) = section.warnings
    assert "groups not compared: gender, fewer than 30 images: few (12); gender, no value: 5 images" in warning
    assert {row["group"] for row in section.values["gender"]["scores"]} == {"a", "b"}
    alone = run(rows.iloc[:60].assign(gender=["a"] * 50 + ["b"] * 10), ["gender"], tmp_path)
    assert "not compared" in alone.sentences[1] and "b (10)" in alone.sentences[1] and not alone.figures


def test_a_million_rows_take_seconds_and_little_memory(tmp_path):
    import tracemalloc

    rows = people(20_000, 11, {"a": 0.7, "b": 0.72})
    rows = pd.concat([rows] * 50, ignore_index=True)
    tracemalloc.start()
    found = audit_of(rows, options=FAIRNESS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.images == 1_000_000 and peak < 400e6


# ---------------------------------------------------------------- the columns


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("sex", ["f", "m"], "no column to group people by; the table has gender; join"),
        ("emotion", None, "no column to group people by"),
        ("path", None, "no column to group people by"),
        ("gender", ["f", ""], "the one value 'f'"),
        ("gender", ["", ""], "no value"),
        ("gender", [str(number) for number in range(60)], "60 values"),
    ],
)
def test_columns_that_give_no_groups_are_refused(column, values, words):
    rows = people(120, 0, {"a": 0.5, "b": 0.5}).drop(columns=["prediction"])
    if values:
        rows["gender"] = np.resize(values, len(rows))
    with pytest.raises(InputError, match=words):
        check_columns(rows, [column])


def test_a_second_table_is_joined_by_path(tmp_path):
    rows = people(6, 0, {"a": 1}).drop(columns="gender").iloc[::-1]
    file = tmp_path / "groups.csv"
    file.write_text("path,gender\nimages/1.png,female\nimages/4.png,male\nimages/99.png,male\n", encoding="utf-8")
    joined = join_group_table(rows, file)
    assert joined["gender"].tolist() == ["", "male", "", "", "female", ""]
    assert joined["path"].tolist() == rows["path"].tolist() and joined.index.equals(rows.index)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("picture,gender\n1,f\n", "it needs path"),
        ("path,gender\nimages/1.png,f\nimages/1.png,m\n", "'images/1.png' twice"),
        ("path,emotion\nimages/1.png,anger\n", "has a column 'emotion' already"),
        ("path,gender\nelse/1.png,f\n", "none of its paths"),
        ("path,gender\n", "none of its paths"),
        ("", "not a readable CSV"),
    ],
)
def test_a_second_table_that_does_not_fit_is_refused(tmp_path, content, words):
    rows = people(6, 0, {"a": 1}).drop(columns="gender")
    if content is not None:
        (tmp_path / "groups.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        join_group_table(rows, tmp_path / "groups.csv")
