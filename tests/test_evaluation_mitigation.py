from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

from common.errors import InputError
from configuration import EVALUATION, FAIRNESS
from evaluation.sections.fairness import fairness_section
from evaluation.sections.mitigation import compare_fairness, mitigation_section
from training.data import FaceBatches
from training.data.balancing import sample_weights

LABELS = ("anger", "happiness")
QUICK = replace(FAIRNESS, permutations=600), replace(EVALUATION, resamples=300)
SIDE = 8


def faces(seed: int, counts: dict[tuple[str, str], int]) -> tuple[pd.DataFrame, np.ndarray]:
    """Return rows and noisy images: the upper half is brighter for happiness, the last row shows the group."""
    random = np.random.default_rng(seed)
    rows = pd.DataFrame([key for key, number in counts.items() for _ in range(number)], columns=["gender", "emotion"])
    images = random.normal(110, 40, (len(rows), SIDE, SIDE, 1))
    images[(rows["emotion"] == "happiness").to_numpy(), : SIDE // 2] += 12
    images[(rows["gender"] == "m").to_numpy(), -1] += 90
    return rows.assign(subject=""), images.clip(0, 255).astype(np.uint8)


def train(rows: pd.DataFrame, images: np.ndarray, weights: np.ndarray | None) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input(images.shape[1:], dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 64, offset=-1.7)(inputs))
    network: Any = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    network.compile(keras.optimizers.Adam(0.02), "categorical_crossentropy")
    labels = (rows["emotion"] == "happiness").to_numpy().astype(np.int64)
    network.fit(FaceBatches(images, labels, LABELS, 128, seed=1, weights=weights), epochs=12, verbose=0)
    return network


@pytest.fixture(scope="module")
def biased_and_balanced():
    """Train on angry men and happy women, with and without balancing; predict a balanced mix of others."""
    skewed = {("f", "anger"): 150, ("f", "happiness"): 1350, ("m", "anger"): 1350, ("m", "happiness"): 150}
    rows, images = faces(0, skewed)
    test_rows, test_images = faces(1, {(group, emotion): 400 for group in "fm" for emotion in LABELS})

    def predict(weights: np.ndarray | None) -> list[str]:
        predictions = np.asarray(train(rows, images, weights).predict_on_batch(test_images))
        return [LABELS[index] for index in predictions.argmax(axis=1)]

    return test_rows, predict(None), predict(sample_weights(rows, "gender+emotion"))


def test_bias_is_found_and_balancing_reduces_it(biased_and_balanced, tmp_path):
    rows, plain, balanced = biased_and_balanced
    biased = fairness_section(rows, plain, LABELS, ["gender"], tmp_path, *QUICK)
    assert biased.values["gender"]["alarm"]
    assert "the recall of happiness is lowest for m" in " ".join(biased.sentences)

    section = mitigation_section(rows, plain, balanced, ("plain", "balanced"), LABELS, ["gender"], *QUICK)
    odds = {row["score"]: row for row in section.values["gender"]}["equalised odds, worst emotion"]
    assert odds["before"] > 0.3 and odds["after"] < odds["before"] / 2 and odds["p"] < 0.01
    assert "balanced has smaller gaps between the groups" in section.sentences[0]
    # Of many columns, only a smaller p-value counts.
    columns = [f"gender_{number}" for number in range(1 + int(0.05 / odds["p"]))]
    many = rows.assign(**dict.fromkeys(columns, rows["gender"]))
    section = mitigation_section(many, plain, balanced, ("plain", "balanced"), LABELS, columns, *QUICK)
    *sentences, note = section.sentences
    assert all("no significant change of the gaps" in sentence for sentence in sentences) and "(Holm)" in note
    assert f"(p = {odds['p']:.2g}, adjusted {len(columns) * odds['p']:.2g})" in sentences[0]


def test_changes_are_recomputed_and_paired(biased_and_balanced):
    rows, plain, balanced = biased_and_balanced
    found = compare_fairness(rows["gender"], rows["emotion"], plain, balanced, LABELS, None, *QUICK)
    assert found is not None
    for column, predicted in (("before", plain), ("after", balanced)):
        assert found.loc["accuracy", column] == pytest.approx(accuracy_score(rows["emotion"], predicted))
        right = (rows["emotion"] == predicted).groupby(rows["gender"]).mean()
        assert found.loc["accuracy of the worst group", column] == pytest.approx(right.min())
        recall = (rows["emotion"] == predicted).groupby([rows["emotion"], rows["gender"]]).mean().unstack()
        # With two emotions, one's false positives are what the other misses.
        widest = (recall.max(axis=1) - recall.min(axis=1)).max()
        assert found.loc["equalised odds, worst emotion", column] == pytest.approx(widest)
    difference = (rows["emotion"] == balanced).astype(int) - (rows["emotion"] == plain)
    half = 1.96 * difference.std() / np.sqrt(len(rows))
    low, high = found["low"]["accuracy"], found["high"]["accuracy"]
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)

    same = compare_fairness(rows["gender"], rows["emotion"], plain, plain, LABELS, None, *QUICK)
    assert same is not None and not same[["change", "low", "high"]].fillna(0).to_numpy().any()
    assert (same["p"].dropna() == 1).all()


def test_false_positive_rates_of_few_images_are_not_compared():
    rows, _ = faces(2, {("f", "happiness"): 32, ("f", "anger"): 2, ("m", "happiness"): 40, ("m", "anger"): 40})
    truth = rows["emotion"].to_numpy(str)
    before = np.where((rows["gender"] == "f") & (truth == "anger"), "happiness", truth)
    found = compare_fairness(rows["gender"], truth, list(before), list(truth), LABELS, None, *QUICK)
    assert found is not None and "equalised odds, worst emotion" not in found.index  # it would rest on two images
    section = mitigation_section(rows, list(before), list(truth), ("a", "b"), LABELS, ["gender"], *QUICK)
    assert "too few images of each emotion" in section.sentences[0]


def test_small_groups_are_not_compared_and_other_columns_refused(biased_and_balanced):
    rows, plain, _ = biased_and_balanced
    few = mitigation_section(rows.iloc[::40], plain[::40], plain[::40], ("a", "b"), LABELS, ["gender"], *QUICK)
    assert "not compared" in few.warnings[0] and not few.tables
    with pytest.raises(InputError, match="is not a column of groups"):
        mitigation_section(rows, plain, plain, ("a", "b"), LABELS, ["race"], *QUICK)
