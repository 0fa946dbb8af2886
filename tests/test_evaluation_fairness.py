from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import equalized_odds_difference
from scipy.stats import fisher_exact, studentized_range
from sklearn import metrics

from common.errors import InputError
from configuration import EVALUATION, FAIRNESS
from evaluation.metrics import fairness
from evaluation.metrics.fairness import (
    HALVES,
    codes,
    contingency_tables,
    gaps,
    permuted_tables,
    rates,
    scores_by_group,
    simultaneous_width,
)
from evaluation.metrics.group_comparison import GroupComparison, compare_groups
from evaluation.metrics.paired import holm
from evaluation.sections.fairness import check_columns, fairness_section, join_group_table

LABELS = ("anger", "happiness", "neutral")
QUICK, FEW = replace(EVALUATION, resamples=200), replace(FAIRNESS, permutations=600)


@pytest.fixture(autouse=True)
def few_tables_at_once(monkeypatch):
    monkeypatch.setattr(fairness, "_CHUNK", 20_000)


def people(count: int, seed: int, accuracy: dict[str, float], mix: dict[str, list[float]] | None = None):
    """Return rows with a group, a true emotion (by group in the shares `mix`), and a prediction."""
    random = np.random.default_rng(seed)
    group = random.choice(list(accuracy), count)
    even = [1 / len(LABELS)] * len(LABELS)
    truth = np.array([random.choice(LABELS, p=(mix or {}).get(name, even)) for name in group])
    wrong = np.array([random.choice([label for label in LABELS if label != shown]) for shown in truth])
    correct = random.random(count) < np.array([accuracy[name] for name in group])
    rows = pd.DataFrame({"emotion": truth, "prediction": np.where(correct, truth, wrong), "gender": group})
    return rows.assign(path=[f"images/{number}.png" for number in range(count)], subject="")


def section_of(rows: pd.DataFrame, columns: list[str], report):
    return fairness_section(rows, rows["prediction"].tolist(), LABELS, columns, report, FEW, QUICK)


def coded(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    groups = codes(rows["gender"].to_numpy(), sorted(set(rows["gender"])))
    return groups, codes(rows["emotion"].to_numpy(), LABELS), codes(rows["prediction"].to_numpy(), LABELS)


def comparison_of(rows: pd.DataFrame, clusters: np.ndarray | None = None, few=FEW, options=QUICK) -> GroupComparison:
    truth, prediction = rows["emotion"].to_numpy(), rows["prediction"].to_numpy()
    found = compare_groups(rows["gender"], truth, prediction, LABELS, clusters, few, options)
    assert found is not None
    return found


def alarms(found: GroupComparison) -> bool:
    tested = found.gaps.loc[~found.gaps["score"].isin(HALVES), "p"]
    return bool((holm(tested.to_numpy()) < FAIRNESS.significance).any())


def test_scores_and_gaps_are_those_of_scikit_learn_and_fairlearn():
    rows = people(400, 1, {"a": 0.8, "b": 0.6, "c": 0.5})
    counts = contingency_tables(*coded(rows), 3, 3)
    frame, found = scores_by_group(counts, list("abc"), LABELS), rates(counts)
    spread = gaps(counts, np.ones((3, 3), bool))
    for number, name in enumerate("abc"):
        own = rows[rows["gender"] == name]
        report: Any = metrics.classification_report(own["emotion"], own["prediction"], output_dict=True)
        expected = {"accuracy": report["accuracy"], "macro F1": report["macro avg"]["f1-score"]}
        assert {score: found[score][number] for score in expected} == pytest.approx(expected)
        for column, label in enumerate(LABELS):
            shown, named = own["emotion"] == label, own["prediction"] == label
            own_rates = {"recall": report[label]["recall"], "false positive rate": named[~shown].mean()}
            assert {score: found[score][number, column] for score in own_rates} == pytest.approx(own_rates)
            expected |= {f"{score} {label}": value for score, value in own_rates.items()}
        assert frame.by_group.loc[name].to_dict() == pytest.approx(expected)
    difference = frame.difference(method="between_groups")
    for score in ("accuracy", "macro F1"):
        assert spread[score] == pytest.approx(difference[score])
    for column, label in enumerate(LABELS):
        shown, named = rows["emotion"] == label, rows["prediction"] == label
        expected = equalized_odds_difference(shown, named, sensitive_features=rows["gender"])
        assert spread["equalised odds"][column] == pytest.approx(expected)


def test_emotion_with_few_images_in_a_group_is_not_compared():
    counts = np.zeros((2, 3, 3), int)
    counts[:, 1, 1] = counts[:, 2, 2] = 50
    counts[0, 0, 0] = 40
    counts[1, 0, 1] = 1  # one missed image of anger in the second group
    found = gaps(counts, fairness.enough_images(counts, 10))
    assert np.isnan(found["recall"][0]) and np.isnan(found["equalised odds"][0]) and found["recall"][1] == 0


def test_permutation_test_agrees_with_fishers_exact_test():
    # With one emotion, permuting the groups is what Fisher's test of a 2 x 2 table does.
    hits = {"a": (70, 30), "b": (54, 40)}
    rows = pd.concat(
        pd.DataFrame({"gender": name, "prediction": ["anger"] * right + ["neutral"] * wrong})
        for name, (right, wrong) in hits.items()
    ).assign(emotion="anger")
    found = comparison_of(rows, few=replace(FAIRNESS, permutations=20_000), options=replace(QUICK, resamples=50))
    exact = fisher_exact([list(pair) for pair in hits.values()])[1]
    assert found.gaps.set_index("score")["p"]["accuracy"] == pytest.approx(exact, abs=0.02)


def by_subject(seed: int) -> pd.DataFrame:
    """Return 40 people of two groups with other mixes of emotions, with ten images each; accuracy varies by person."""
    random, rows = np.random.default_rng(seed), []
    mixes = {"a": [0.2, 0.6, 0.2], "b": [0.6, 0.2, 0.2]}
    accuracy = {"anger": 0.4, "happiness": 0.85, "neutral": 0.7}
    for person in range(40):
        name, skill = "ab"[person % 2], random.normal(0, 0.15)
        for shown in random.choice(LABELS, 10, p=mixes[name]):
            hit = random.random() < accuracy[shown] + skill
            rows.append((person, name, shown, shown if hit else LABELS[(LABELS.index(shown) + 1) % 3]))
    return pd.DataFrame(rows, columns=["person", "gender", "emotion", "prediction"])


@pytest.mark.parametrize("clustered", [False, True])
def test_permutations_keep_the_number_of_images_of_each_group_and_emotion(clustered):
    rows = by_subject(3)
    real = contingency_tables(*coded(rows), 2, 3)
    clusters = rows["person"].to_numpy() if clustered else None
    permuted = permuted_tables(*coded(rows), (2, 3), clusters, np.random.default_rng(0))
    tables = np.concatenate([next(permuted) for _ in range(200 if clustered else 1)])
    assert (tables.sum(axis=1) == real.sum(axis=0)).all() and (tables.sum(axis=3) == real.sum(axis=2)).all()
    expected = real.sum(axis=2)[:, :, None] * real.sum(axis=0) / real.sum(axis=(0, 2))[:, None]
    np.testing.assert_allclose(tables.mean(axis=0), expected, atol=3 if clustered else 0.5)


def test_other_mix_of_emotions_of_subjects_is_no_bias_but_a_real_bias_is_found():
    few, options = replace(FEW, permutations=300), replace(QUICK, resamples=20)
    found = [
        comparison_of(rows, rows["person"].to_numpy(), few, options) for rows in (by_subject(200 + n) for n in range(8))
    ]
    assert sum(map(alarms, found)) <= 2  # permuting whole subjects would alarm in half of them
    rows = by_subject(9)
    hurt = (rows["gender"] == "b") & (np.random.default_rng(1).random(len(rows)) < 0.5)
    rows.loc[hurt, "prediction"] = "neutral"
    assert comparison_of(rows, rows["person"].to_numpy()).gaps.set_index("score")["p"]["accuracy"] < 0.02


def test_intervals_have_the_width_of_theory():
    rows = people(900, 3, {"a": 0.8, "b": 0.79, "c": 0.8})
    found = comparison_of(rows, options=EVALUATION)
    own = found.scores.iloc[0]
    half = 1.96 * np.sqrt(own["value"] * (1 - own["value"]) / own["images"])
    assert [own["value"] - own["low"], own["high"] - own["value"]] == pytest.approx([half] * 2, rel=0.15)
    row = found.gaps.iloc[0]  # Tukey's test of all pairs
    parts = [rows.loc[rows["gender"] == row[f"{end} group"]] for end in ("worst", "best")]
    shares = [(part["emotion"] == part["prediction"]).mean() for part in parts]
    spread = np.sqrt(sum(p * (1 - p) / len(part) for p, part in zip(shares, parts, strict=True)))
    half = studentized_range.ppf(0.95, 3, np.inf) / np.sqrt(2) * spread
    gap = shares[1] - shares[0]
    assert [row["low"], row["high"]] == pytest.approx([gap - half, gap + half], abs=0.012) and row["low"] < 0


def test_interval_of_the_largest_gap_holds_that_gap():
    random, held, held_by_its_own = np.random.default_rng(1), 0, 0
    for _ in range(100):  # ten equal groups
        values = random.binomial(60, 0.7, 10) / 60
        drawn = random.binomial(60, values, (300, 10)) / 60
        lowest, highest = int(values.argmin()), int(values.argmax())
        width = simultaneous_width(drawn, values, (values, values), lowest, highest, 0.95)
        held += values[highest] - values[lowest] <= width
        held_by_its_own += np.quantile(drawn[:, highest] - drawn[:, lowest], 0.025) <= 0
    assert held >= 88 and held_by_its_own < 50


def test_rates_of_one_and_gaps_of_zero_have_intervals_of_some_width():
    found = comparison_of(people(120, 1, {"a": 1.0, "b": 1.0}))
    for _, row in pd.concat([found.scores, found.gaps]).iterrows():
        assert row["score"] == "equalised odds" or row["high"] - row["low"] > 0.02, row


def test_subjects_are_resampled_and_permuted_as_a_whole():
    # All images of a person are correct, or none is.
    random = np.random.default_rng(4)
    correct = np.repeat(random.random(40) < 0.6, 10)
    truth = random.choice(LABELS, 400)
    wrong = np.array([LABELS[(LABELS.index(shown) + 1) % 3] for shown in truth])
    group, clusters = np.repeat(np.where(np.arange(40) < 20, "a", "b"), 10), np.repeat(np.arange(40), 10)
    rows = pd.DataFrame({"emotion": truth, "prediction": np.where(correct, truth, wrong), "gender": group})
    subject, image = comparison_of(rows, clusters), comparison_of(rows)
    widths = [(found.scores["high"] - found.scores["low"])[0] for found in (subject, image)]
    assert widths[0] > 2.5 * widths[1] and subject.gaps["critical gap"][0] > 2 * image.gaps["critical gap"][0]
    assert not subject.mixed_subjects
    assert comparison_of(rows.assign(gender=random.permutation(group)), clusters).mixed_subjects


def test_biases_of_a_group_and_of_one_emotion_of_an_intersection_are_found_and_named(tmp_path):
    rows, random = people(2400, 7, {"female": 0.85, "male": 0.7}), np.random.default_rng(8)
    rows["race"] = random.choice(["x", "y"], len(rows))
    hurt = (rows["gender"] == "male") & (rows["race"] == "y") & (rows["emotion"] == "happiness")
    rows.loc[hurt, "prediction"] = random.choice(["anger", "happiness"], int(hurt.sum()), p=[0.7, 0.3])
    section = section_of(rows, ["gender", "race"], tmp_path)
    assert set(section.values) == {"gender", "race", "gender x race"} and section.values["gender"]["alarm"]
    text = " ".join(section.sentences)
    assert "Worst accuracy: male" in text and "best: female" in text and "differ significantly" in text
    assert "gender x race: the recall of happiness is lowest for male, y" in text
    gap = pd.DataFrame(section.values["gender"]["gaps"]).iloc[0]
    real = (rows["emotion"] == rows["prediction"]).groupby(rows["gender"]).mean()
    assert gap["gap"] == pytest.approx(real["female"] - real["male"]) and gap["low"] < gap["gap"] < gap["high"]
    assert len(section.figures) == 3
    assert set(pd.read_csv(section.figures[0].file.with_suffix(".csv"))["group"]) == {"female", "male"}


def test_columns_with_similar_names_have_figures_of_their_own(tmp_path):
    rows = people(300, 10, {"a": 0.7, "b": 0.7}).rename(columns={"gender": "skin tone"})
    rows["skin_tone"] = rows["skin tone"].map({"a": "c", "b": "d"})
    for figure, groups in zip(
        section_of(rows, ["skin tone", "skin_tone"], tmp_path).figures[:2], ("ab", "cd"), strict=True
    ):
        assert set(pd.read_csv(figure.file.with_suffix(".csv"))["group"]) == set(groups)


def test_group_of_few_subjects_is_not_scored(tmp_path):
    rows = people(300, 10, {"a": 0.7, "b": 0.7})
    rows["subject"] = [f"S{number // 10}" for number in range(300)]
    rows["gender"] = [name for name in "ab" * 15 for _ in range(10)]
    rows.loc[:39, "gender"] = "few"
    section = section_of(rows, ["gender"], tmp_path)
    assert "few (40 images, 4 subjects)" in section.warnings[0]
    assert section.values["gender"]["not_scored"] == {"few": {"images": 40, "subjects": 4}}
    assert "too narrow for groups of few subjects: a (" in section.warnings[1]


def test_small_groups_are_named_but_not_scored(tmp_path):
    rows = people(300, 10, {"a": 0.7, "b": 0.7})
    rows.loc[:11, "gender"] = "few"
    rows.loc[12:16, "gender"] = ""
    section = section_of(rows, ["gender"], tmp_path)
    (warning,) = section.warnings
    assert "gender, fewer than 30 images, or 5 known subjects: few (12 images); gender, no value: 5 images" in warning
    assert {row["group"] for row in section.values["gender"]["scores"]} == {"a", "b"}
    alone = section_of(rows.iloc[:60].assign(gender=["a"] * 50 + ["b"] * 10), ["gender"], tmp_path)
    assert "b (10 images)" in alone.warnings[0] and not alone.figures and not alone.values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "is not a column of groups; the table has race; join"),
        (["f", ""], "the one value 'f'"),
        (["", ""], "no value"),
        ([str(number) for number in range(60)], "60 values"),
    ],
)
def test_columns_that_do_not_define_groups_are_refused(values, words):
    rows = people(120, 0, {"a": 0.5, "b": 0.5}).drop(columns=["prediction"])
    rows = rows.assign(gender=np.resize(values, 120)) if values else rows.rename(columns={"gender": "race"})
    with pytest.raises(InputError, match=words):
        check_columns(rows, ["gender"])
    with pytest.raises(InputError, match="a column is given twice"):
        check_columns(rows, ["race", "race"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("picture,gender\n1,f\n", "it needs path"),
        ("path,gender\nimages/1.png,f\nimages/1.png,m\n", "'images/1.png' twice"),
        ("path,emotion\nimages/1.png,anger\n", "has a column 'emotion' already"),
        ("path,gender\nelse/1.png,f\n", "none of its paths"),
        ("path,gender\nimages/1.png,female\nimages/4.png,male\nimages/99.png,male\n", ""),
    ],
)
def test_group_table_is_joined_by_path_or_refused(tmp_path, content, words):
    rows, file = people(6, 0, {"a": 1}).drop(columns="gender").iloc[::-1], tmp_path / "groups.csv"
    with pytest.raises(InputError, match="does not exist"):
        join_group_table(rows, file)
    file.write_text(content, encoding="utf-8")
    if words:
        with pytest.raises(InputError, match=words):
            join_group_table(rows, file)
        return
    joined = join_group_table(rows, file)
    assert joined["gender"].tolist() == ["", "male", "", "", "female", ""]
    assert joined["path"].tolist() == rows["path"].tolist() and joined.index.equals(rows.index)
