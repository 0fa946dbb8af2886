import json
from typing import Any

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.lineage import read_hashes
from inference.model_card import read_card
from preprocessing.splitting import Strategy, split_table
from preprocessing.tables import read_table, split_by_fold, split_hash, write_table
from realtime.doctor import check_model
from training.cross_validation import fold_file
from training.data import read_image

SPLITS = (("train", 3), ("dev", 3), ("test", 30))
FLIP_MEAN = "mean over the image and its flip"


@pytest.fixture
def noisy_dataset(make_dataset):
    """Make a data set of noise, whose images are not symmetric; predictions are random."""

    def make(per_split=SPLITS):
        folder, random = make_dataset(per_split=per_split), np.random.default_rng(1)
        for path in read_table(folder, "split.csv")["face_path"]:
            cv2.imwrite(str(folder / path), random.integers(0, 256, (24, 24)).astype(np.uint8))
        return folder

    return make


@pytest.fixture
def evaluate(run_step, tmp_path):
    def run(folder, *options):
        roots = ["--data", folder.parent, "--reports", tmp_path / "reports"]
        done = run_step("evaluation.model_evaluation", "--dataset", folder.name, *roots, "--quick", *options)
        assert done.returncode == 0, done.stderr
        return done

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


def images_of(folder, rows):
    return np.stack([read_image(folder / path, (24, 24), "grayscale") for path in rows["face_path"]])


def metrics_of(tmp_path, folder, name, part="test-labels"):
    return json.loads(report_of(tmp_path, folder, name, part).joinpath("metrics.json").read_text())


def report_of(tmp_path, folder, name, part="test-labels"):
    return tmp_path / "reports" / folder.name / name / f"{part}-quick"


def test_tta_is_reported_apart_and_changes_no_other_number(evaluate, noisy_dataset, tiny_model, tmp_path):
    folder, model = noisy_dataset(), with_weights(tiny_model(temperature=2.5))
    evaluate(folder, "--model", model)
    without = metrics_of(tmp_path, folder, "tiny")
    table = (report_of(tmp_path, folder, "tiny") / "predictions.csv").read_bytes()
    done = evaluate(folder, "--model", model, "--flip")
    report = report_of(tmp_path, folder, "tiny")
    metrics = metrics_of(tmp_path, folder, "tiny")
    averaged = metrics.pop("tta")
    assert "tta" not in without and without.pop("inputs") != metrics.pop("inputs")
    assert metrics == without and (report / "predictions.csv").read_bytes() == table

    rows = read_table(folder, "split.csv").query("split == 'test'")
    classifier, images = EmotionClassifier.load(model), images_of(folder, rows)
    mean = (classifier.predict(images) + classifier.predict(np.flip(images, axis=2).copy())) / 2
    truth, predictions = rows["emotion"].to_numpy(), np.array(classifier.labels)[mean.argmax(axis=1)]
    expected = {
        "accuracy": (truth == predictions).mean(),
        "balanced_accuracy": balanced_accuracy_score(truth, predictions),
        "macro_f1": f1_score(truth, predictions, average="macro"),
    }
    assert expected["accuracy"] != metrics["accuracy"]
    for score, value in expected.items():
        assert averaged["averaged"][score] == pytest.approx(value)
        assert averaged["single"][score] == pytest.approx(metrics[score])
        assert averaged["averaged"][f"{score}_low"] < value < averaged["averaged"][f"{score}_high"]
        assert averaged["difference"][score]["value"] == pytest.approx(value - metrics[score])
    single = pd.read_csv(report / "predictions.csv")["prediction"].to_numpy()
    right, alone = truth == predictions, truth == single
    # Of paired differences the textbook knows the spread: that of the mean of -1, 0 and 1.
    spread = (right.astype(int) - alone.astype(int)).std() / np.sqrt(len(truth))
    low, high = averaged["difference"]["accuracy"]["interval"]
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.25)
    assert averaged["mcnemar"]["only_b"] == (right & ~alone).sum() > 0
    assert averaged["mcnemar"]["only_a"] == (alone & ~right).sum()

    assert f"test-time augmentation: {FLIP_MEAN}" in averaged["protocol"]
    assert "no test-time augmentation" in metrics["protocol"] and FLIP_MEAN not in json.dumps(metrics)
    page = (report / "report.html").read_text()
    _, section = page.split('<section id="tta">')
    assert "Test-time augmentation" in section and "temperature 2.5" in section and f"{FLIP_MEAN}</th>" in section
    assert f"TTA ({FLIP_MEAN})" in done.stdout and f"n = 90  accuracy {metrics['accuracy']:.4f}" in done.stdout
    again = evaluate(folder, "--model", model, "--flip")
    assert "unchanged" in again.stdout and "TTA (" in again.stdout


def test_tta_averages_calibrated_probabilities(evaluate, noisy_dataset, tiny_model, tmp_path):
    folder = noisy_dataset()
    accuracies = {}
    for temperature in (0.05, 20.0):
        model = with_weights(tiny_model(name=f"at{temperature:g}.keras", temperature=temperature))
        evaluate(folder, "--model", model, "--flip")
        metrics = metrics_of(tmp_path, folder, model.stem)
        accuracies[temperature] = metrics["accuracy"], metrics["tta"]["averaged"]["accuracy"]
    assert accuracies[0.05][0] == accuracies[20.0][0] and accuracies[0.05][1] != accuracies[20.0][1]


def test_tta_of_a_symmetric_network_changes_nothing(evaluate, noisy_dataset, tiny_model, tmp_path):
    folder = noisy_dataset()
    evaluate(folder, "--model", with_weights(tiny_model(), symmetric=True), "--flip")
    metrics = metrics_of(tmp_path, folder, "tiny")
    averaged = metrics["tta"]
    for score in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert averaged["difference"][score] == {"value": 0, "interval": [0, 0]}
        assert averaged["averaged"][score] == averaged["single"][score]
    assert 0 < metrics["accuracy"] < 1 and averaged["mcnemar"] == {"only_a": 0, "only_b": 0, "p_value": 1}


def test_tta_difference_is_resampled_by_subject(evaluate, noisy_dataset, tiny_model, tmp_path):
    folder, model = noisy_dataset(), with_weights(tiny_model())
    evaluate(folder, "--model", model, "--flip")
    by_image = metrics_of(tmp_path, folder, "tiny")["tta"]
    table = read_table(folder, "split.csv")
    write_table(table.assign(subject="one"), folder / "split.csv")  # each resample is then the whole
    evaluate(folder, "--model", model, "--flip")
    of_one = metrics_of(tmp_path, folder, "tiny")["tta"]
    assert by_image["difference"]["accuracy"]["value"] == of_one["difference"]["accuracy"]["value"]
    low, high = of_one["difference"]["accuracy"]["interval"]
    assert low == pytest.approx(high) and of_one["averaged"]["accuracy_low"] == of_one["averaged"]["accuracy_high"]
    low, high = by_image["difference"]["accuracy"]["interval"]
    assert low < high


def test_card_has_an_entry_for_tta(evaluate, noisy_dataset, tiny_model, tmp_path):
    folder, model = noisy_dataset(), with_weights(tiny_model(temperature=2.0))
    evaluate(folder, "--model", model, "--update-card")
    (before,) = read_card(model).scores
    for _ in range(2):  # a second time in place of the first
        evaluate(folder, "--model", model, "--update-card", "--flip")
        single, averaged = read_card(model).scores
        assert single == before
    found = metrics_of(tmp_path, folder, "tiny")["tta"]
    assert averaged["accuracy"] == round(found["averaged"]["accuracy"], 4) != single["accuracy"]
    assert averaged["protocol"] == found["protocol"] and averaged["tta"] == FLIP_MEAN
    assert averaged["temperature"] == 2.0 and averaged["n"] == 90
    assert averaged["accuracy_interval"] == [round(found["averaged"][f"accuracy_{end}"], 4) for end in ("low", "high")]
    evaluate(folder, "--model", model, "--update-card")
    assert read_card(model).scores == [averaged, single]
    finding, _ = check_model(model, EmotionClassifier.load)
    assert f"accuracy {single['accuracy']:.1%} on stripes test;" in finding.text  # the camera does not use TTA


def test_of_several_models_each_report_has_it_and_the_comparison_is_of_single_answers(
    evaluate, noisy_dataset, tiny_model, tmp_path
):
    folder = noisy_dataset()
    models = with_weights(tiny_model()), with_weights(tiny_model(name="second.keras"), seed=1)
    both = ["--model", models[0], "--model", models[1]]
    evaluate(folder, *both, "--flip")
    compared = metrics_of(tmp_path, folder, "comparison-tiny-second")
    for name in ("tiny", "second"):
        metrics = metrics_of(tmp_path, folder, name)
        assert metrics["tta"]["averaged"]["accuracy"] != metrics["accuracy"]
        assert compared["comparison"]["measured"][f"{name}|accuracy"] == pytest.approx(metrics["accuracy"])
    comparison = report_of(tmp_path, folder, "comparison-tiny-second") / "metrics.json"
    written = comparison.stat().st_mtime_ns
    evaluate(folder, *both)
    assert "tta" not in metrics_of(tmp_path, folder, "tiny")
    assert comparison.stat().st_mtime_ns == written  # it does not depend on the option


def test_tta_is_scored_against_the_majority(evaluate, noisy_dataset, tiny_model, tmp_path):
    folder = noisy_dataset()
    table = read_table(folder, "split.csv")
    swapped = {"anger": "happiness", "happiness": "anger", "neutral": "neutral"}
    for label in swapped:
        table[f"votes_{label}"] = 7 * (table["emotion"].map(swapped) == label) + 3 * (label == "neutral")
    write_table(table, folder / "split.csv")
    model = with_weights(tiny_model(labels=("anger", "happiness", "neutral", "contempt")))
    evaluate(folder, "--model", model, "--flip", "--truth", "majority")
    rows = table.query("split == 'test'")
    classifier, images = EmotionClassifier.load(model), images_of(folder, rows)
    alone, mirrored = (classifier.predict(images[:, :, ::step])[:, :3].astype(float) for step in (1, -1))
    mean = alone / alone.sum(axis=1, keepdims=True) + mirrored / mirrored.sum(axis=1, keepdims=True)
    predictions = np.array(classifier.labels)[mean.argmax(axis=1)]
    averaged = metrics_of(tmp_path, folder, "tiny", "test-majority")["tta"]
    accuracy = (predictions == rows["emotion"].map(swapped).to_numpy()).mean()
    assert averaged["averaged"]["accuracy"] == pytest.approx(accuracy)
    assert averaged["mcnemar"]["only_a"] > 0 and averaged["mcnemar"]["only_b"] > 0
    assert "scored against the majority" in averaged["protocol"]


def test_tta_of_folds_uses_the_network_of_each_fold(evaluate, noisy_dataset, tiny_model, tmp_path):
    folder, models = noisy_dataset((("train", 20),)), tmp_path / "models"
    table = read_table(folder, "split.csv")
    table["subject"] = [f"S{row % 6}" for row in range(len(table))]
    write_table(split_table(table, Strategy.FOLDS, folds=3), folder / "split.csv")
    table = read_table(folder, "split.csv")
    mean = np.zeros((len(table), 3))
    for fold in range(3):
        fits = {"dataset": folder.name, "split_hash": split_hash(split_by_fold(table, fold, "fold"))}
        number = {"number": fold, "of": 3, "column": "fold"}
        plain = with_weights(tiny_model(**fits, fold=number, temperature=1.0 + fold), seed=fold)
        file = fold_file(models / "best.keras", fold, False)
        network: Any = keras.models.load_model(plain)  # without its card, hence at temperature 1
        save(network, read_card(plain), file)
        in_fold = (table["fold"] == str(fold)).to_numpy()
        images = images_of(folder, table[in_fold])
        mean[in_fold] = (network.predict(images, verbose=0) + network.predict(images[:, :, ::-1], verbose=0)) / 2
    done = evaluate(folder, "--model", models / "best.keras", "--folds", "--flip")
    metrics = metrics_of(tmp_path, folder, "best", "folds-labels")
    averaged = metrics["tta"]
    right = np.array(["anger", "happiness", "neutral"])[mean.argmax(axis=1)] == table["emotion"].to_numpy()
    assert averaged["averaged"]["accuracy"] == pytest.approx(right.mean()) and averaged["temperature"] == 1
    assert averaged["single"]["accuracy"] == metrics["accuracy"] == metrics["folds"]["pooled"]["accuracy"]
    assert metrics["accuracy"] != averaged["averaged"]["accuracy"]
    assert averaged["protocol"].startswith("one network per fold") and "TTA (" in done.stdout
