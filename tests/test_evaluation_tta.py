from typing import Any

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from report_helpers import SWAPPED, change_split, images_of, metrics_of, with_swapped_votes
from sklearn.metrics import balanced_accuracy_score, f1_score

from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.lineage import read_hashes
from inference.model_card import read_card
from preprocessing.tables import read_table
from realtime.doctor import check_model

FLIP_MEAN = "mean over the image and its flip"


@pytest.fixture
def noisy_dataset(make_dataset):
    """A data set of noise, whose images are not symmetric; predictions are random."""

    folder = make_dataset(per_split=(("train", 3), ("dev", 3), ("test", 30)))
    random = np.random.default_rng(1)
    for path in read_table(folder, "split.csv")["face_path"]:
        cv2.imwrite(str(folder / path), random.integers(0, 256, (24, 24)).astype(np.uint8))
    return folder


@pytest.fixture
def evaluate(run_step, tmp_path):
    """Evaluate networks, and return what was printed and the folder of the reports."""

    def run(folder, *models, options=("--flip",)):
        roots = ["--data", folder.parent, "--reports", tmp_path / "reports", "--dataset", folder.name, "--quick"]
        given = [option for model in models for option in ("--model", model)]
        done = run_step("evaluation.model_evaluation", *roots, *given, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout, tmp_path / "reports" / folder.name

    return run


def with_weights(model, seed=0, symmetric=False):
    """Give a tiny network weights for the 8 x 8 places that it sees, equal ones for mirror images or not."""
    network: Any = keras.models.load_model(model)
    kernel, bias = network.get_weights()
    places = np.random.default_rng(seed).normal(0, 4, (8, 8, len(bias)))
    if symmetric:
        places = (places + places[:, ::-1]) / 2
    kernel = (places - places.mean(axis=(0, 1))).reshape(kernel.shape)  # brightness by itself says nothing
    network.set_weights([kernel, bias])
    save(network, read_card(model), model, read_hashes(model))
    return model


def test_tta_is_reported_and_entered_in_the_card_apart_and_changes_no_other_number(
    evaluate, noisy_dataset, tiny_model, tmp_path
):
    folder, model = noisy_dataset, with_weights(tiny_model(temperature=2.5))
    report = evaluate(folder, model, options=["--update-card"])[1] / "tiny" / "test-labels-quick"
    (score,), without, table = read_card(model).scores, metrics_of(report), (report / "predictions.csv").read_bytes()
    printed, _ = evaluate(folder, model, options=["--update-card", "--flip"])
    metrics = metrics_of(report)
    averaged = metrics.pop("tta")
    assert "tta" not in without and without.pop("inputs") != metrics.pop("inputs")
    assert metrics == without and (report / "predictions.csv").read_bytes() == table

    rows = read_table(folder, "split.csv").query("split == 'test'")
    classifier, images = EmotionClassifier.load(model), images_of(folder, rows["face_path"])
    mean = (classifier.predict(images) + classifier.predict(np.flip(images, axis=2).copy())) / 2
    truth, predictions = rows["emotion"].to_numpy(), np.array(classifier.labels)[mean.argmax(axis=1)]
    expected = {
        "accuracy": (truth == predictions).mean(),
        "balanced_accuracy": balanced_accuracy_score(truth, predictions),
        "macro_f1": f1_score(truth, predictions, average="macro"),
    }
    assert expected["accuracy"] != metrics["accuracy"]
    for name, value in expected.items():
        assert averaged["averaged"][name] == pytest.approx(value)
        assert averaged["single"][name] == pytest.approx(metrics[name])
        assert averaged["averaged"][f"{name}_low"] < value < averaged["averaged"][f"{name}_high"]
        assert averaged["difference"][name]["value"] == pytest.approx(value - metrics[name])
    right, alone = truth == predictions, truth == pd.read_csv(report / "predictions.csv")["prediction"].to_numpy()
    # Of paired differences the textbook knows the spread: that of the mean of -1, 0 and 1.
    spread = (right.astype(int) - alone.astype(int)).std() / np.sqrt(len(truth))
    low, high = averaged["difference"]["accuracy"]["interval"]
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.25)
    assert averaged["mcnemar"]["only_b"] == (right & ~alone).sum() > 0
    assert averaged["mcnemar"]["only_a"] == (alone & ~right).sum()
    assert f"test-time augmentation: {FLIP_MEAN}" in averaged["protocol"]
    assert "no test-time augmentation" in metrics["protocol"]
    _, section = (report / "report.html").read_text().split('<section id="tta">')
    assert "temperature 2.5" in section and f"{FLIP_MEAN}</th>" in section
    assert f"TTA ({FLIP_MEAN})" in printed and f"n = 90  accuracy {metrics['accuracy']:.4f}" in printed

    again, _ = evaluate(folder, model, options=["--update-card", "--flip"])
    assert "unchanged" in again and "TTA (" in again
    single, entry = read_card(model).scores
    assert single == score and entry["temperature"] == 2.5 and entry["n"] == 90
    assert entry["accuracy"] == round(averaged["averaged"]["accuracy"], 4) != single["accuracy"]
    assert entry["protocol"] == averaged["protocol"] and entry["tta"] == FLIP_MEAN
    assert entry["accuracy_interval"] == [round(averaged["averaged"][f"accuracy_{end}"], 4) for end in ("low", "high")]
    finding, _ = check_model(model, EmotionClassifier.load)
    assert f"accuracy {single['accuracy']:.1%} on stripes test;" in finding.text  # the camera does not use TTA


def test_tta_difference_of_a_symmetric_network_is_zero_and_images_of_one_subject_are_resampled(
    evaluate, noisy_dataset, tiny_model
):
    folder = noisy_dataset
    change_split(folder, lambda table: table.assign(subject="one"))
    models = with_weights(tiny_model(name="even.keras"), symmetric=True), with_weights(tiny_model())
    _, reports = evaluate(folder, *models)
    even, other = (metrics_of(reports / name / "test-labels-quick") for name in ("even", "tiny"))
    for score in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert even["tta"]["difference"][score] == {"value": 0, "interval": [0, 0]}
    assert 0 < even["accuracy"] < 1 and even["tta"]["mcnemar"] == {"only_a": 0, "only_b": 0, "p_value": 1}
    change = other["tta"]["difference"]["accuracy"]
    assert change["interval"][0] < change["value"] < change["interval"][1] and change["value"] != 0
    assert other["tta"]["averaged"]["accuracy_low"] < other["tta"]["averaged"]["accuracy_high"]


def test_each_model_has_calibrated_tta_and_the_comparison_is_of_single_predictions(evaluate, noisy_dataset, tiny_model):
    folder, models = noisy_dataset, {}
    for name, temperature in {"sharp": 0.05, "flat": 20.0}.items():
        models[name] = with_weights(tiny_model(name=f"{name}.keras", temperature=temperature))
    _, reports = evaluate(folder, *models.values())
    compared = reports / "comparison-sharp-flat" / "test-labels-quick" / "metrics.json"
    measured, written = metrics_of(compared.parent)["comparison"]["measured"], compared.stat().st_mtime_ns
    sharp, flat = (metrics_of(reports / name / "test-labels-quick") for name in models)
    assert sharp["accuracy"] == flat["accuracy"]
    assert sharp["tta"]["averaged"]["accuracy"] != flat["tta"]["averaged"]["accuracy"]
    assert [measured[f"{name}|accuracy"] for name in models] == pytest.approx([sharp["accuracy"]] * 2)
    evaluate(folder, *models.values(), options=[])
    assert "tta" not in metrics_of(reports / "flat" / "test-labels-quick")
    assert compared.stat().st_mtime_ns == written  # it does not depend on the option


def test_tta_is_scored_against_the_majority(evaluate, noisy_dataset, tiny_model):
    folder = noisy_dataset
    change_split(folder, with_swapped_votes)
    model = with_weights(tiny_model(labels=("anger", "happiness", "neutral", "contempt")))
    _, reports = evaluate(folder, model, options=["--flip", "--truth", "majority"])
    rows = read_table(folder, "split.csv").query("split == 'test'")
    classifier, images = EmotionClassifier.load(model), images_of(folder, rows["face_path"])
    alone, mirrored = (classifier.predict(images[:, :, ::step])[:, :3].astype(float) for step in (1, -1))
    mean = alone / alone.sum(axis=1, keepdims=True) + mirrored / mirrored.sum(axis=1, keepdims=True)
    predictions = np.array(classifier.labels)[mean.argmax(axis=1)]
    averaged = metrics_of(reports / "tiny" / "test-majority-quick")["tta"]
    accuracy = (predictions == rows["emotion"].map(SWAPPED).to_numpy()).mean()
    assert averaged["averaged"]["accuracy"] == pytest.approx(accuracy)
    assert averaged["mcnemar"]["only_a"] > 0 and averaged["mcnemar"]["only_b"] > 0
    assert "scored against the majority" in averaged["protocol"]
