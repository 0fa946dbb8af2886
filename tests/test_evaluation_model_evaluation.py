import json
import re
from pathlib import Path
from typing import Any

import keras
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from report_helpers import SWAPPED, change_split, images_of, metrics_of, refused, with_swapped_votes

from evaluation.selection import report_name
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.lineage import ImageHashes, read_hashes
from inference.model_card import read_card
from preprocessing.tables import read_table, split_hash
from training.data import flow_from_dataframe


@pytest.fixture
def evaluate(run_step, make_dataset, tiny_model, tmp_path):
    """Evaluate untrained networks on a small data set, by the command line."""

    def run(*options, folder=None, models=None):
        folder, models = folder or make_dataset(), models or [tiny_model()]
        roots = ["--data", folder.parent, "--reports", tmp_path / "reports", "--dataset", folder.name]
        given = [option for model in models for option in ("--model", model)]
        done = run_step("evaluation.model_evaluation", *roots, *given, *options)
        text = re.search("^report: (.*)/report.html$", done.stdout, re.MULTILINE)
        return done, Path(text[1]) if text else None

    return run


@pytest.mark.figures
def test_report_has_the_scores_of_the_split_and_all_figures(evaluate, make_dataset, tiny_model):
    folder, model = make_dataset(), tiny_model()
    done, report = evaluate("--update-card", folder=folder, models=[model])
    assert done.returncode == 0, done.stderr
    rows = read_table(folder, "split.csv").query("split == 'test'")
    predictions = pd.read_csv(report / "predictions.csv")
    assert predictions["path"].tolist() == rows["path"].tolist()
    assert predictions["truth"].tolist() == rows["emotion"].tolist()
    classifier = EmotionClassifier.load(model)
    probabilities = classifier.predict(images_of(folder, rows["face_path"]))
    columns = [f"p_{label}" for label in classifier.labels]
    np.testing.assert_allclose(predictions[columns].to_numpy(), probabilities, atol=2e-6)
    assert predictions["prediction"].tolist() == [classifier.labels[i] for i in probabilities.argmax(axis=1)]

    metrics = metrics_of(report)
    accuracy = float((predictions["truth"] == predictions["prediction"]).mean())
    low, high = metrics["accuracy_interval"]
    assert metrics["accuracy"] == pytest.approx(accuracy) and metrics["split"] == "test" and metrics["n"] == 12
    assert low <= accuracy <= high and metrics["performance"]["resamples"] == 1000
    ranks = predictions[columns].rank(axis=1, ascending=False)
    own = np.array([ranks.loc[i, f"p_{truth}"] for i, truth in enumerate(predictions["truth"])])
    assert metrics["performance"]["scores"]["top2_accuracy"] == pytest.approx((own <= 2).mean())
    matrix = pd.read_csv(report / "confusion_matrix.csv", index_col="truth")
    assert np.trace(matrix) / matrix.to_numpy().sum() == pytest.approx(accuracy)
    assert "macro avg" in (report / "classification_report.txt").read_text()
    (score,) = read_card(model).scores
    assert score["accuracy"] == pytest.approx(accuracy, abs=1e-4) and score["split"] == "test"

    assert [*sections_of(report)] == ["performance", "provenance", "calibration", "error_analysis", "robustness"]
    pictures = sorted(report.glob("*.png"))
    assert (report / "report.html").read_text().count('<img src="data:image/png;base64,') == len(pictures) >= 6
    assert matplotlib.image.imread(report / "confusion_matrix.png").shape[0] > 300
    numbers = [picture.with_suffix(".csv") for picture in pictures if picture.stem != "perturbations"]
    assert all(file.stat().st_size > 20 for file in numbers) and [*report.glob("uncertain_*.png")]
    assert set(metrics["files"]) | {"metrics.json"} == {file.name for file in report.iterdir()}


def sections_of(report):
    """Return each section's HTML by its name."""
    parts = (report / "report.html").read_text().split('<section id="')[1:]
    return {part.split('"')[0]: part for part in parts}


def test_report_is_written_again_only_where_an_input_changes(evaluate, make_dataset, tiny_model):
    folder, models = make_dataset(), [tiny_model()]

    def printed(*options):
        done, report = evaluate("--quick", "--update-card", *options, folder=folder, models=models)
        assert done.returncode == 0, done.stderr
        return done.stdout, report

    report = printed("--no-faces")[1]
    assert report.name == "test-labels-quick" and not (report / "perturbations.png").exists()
    assert "unchanged" not in printed()[0] and (report / "perturbations.png").is_file()
    assert metrics_of(report)["performance"]["resamples"] == 200
    written = (report / "predictions.csv").stat().st_mtime_ns
    assert "unchanged" in printed()[0] and (report / "predictions.csv").stat().st_mtime_ns == written
    assert len(read_card(models[0]).scores) == 1
    crops = json.loads((folder / "faces.json").read_text())
    crops["options"]["align"] = "box"
    (folder / "faces.json").write_text(json.dumps(crops))
    text = printed()[0]
    assert "unchanged" not in text and "crops are aligned by box" in text


def test_every_kind_of_report_has_a_folder_of_its_own(tmp_path):
    pictures = [None, tmp_path / "a" / "test", tmp_path / "b" / "test", Path("/pictures")]
    choices = [("test", "labels"), ("dev", "labels"), ("test", "majority"), ("folds", "labels")]
    names = {
        report_name(*choice, folder, quick) for choice in choices for folder in pictures for quick in (False, True)
    }
    assert len(names) == 32 and all(name == Path(name).name for name in names)


def test_interrupted_evaluation_leaves_the_earlier_report_intact(evaluate, make_dataset, tiny_model, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    given = {"folder": make_dataset(), "models": [tiny_model()]}
    report = evaluate("--quick", **given)[1]
    before = {file.name: file.read_bytes() for file in report.iterdir()}
    monkeypatch.setattr("evaluation.evaluator._robustness", interrupt)  # the last part of the report
    assert evaluate("--quick", "--flip", **given)[0].returncode == 130
    assert {file.name: file.read_bytes() for file in report.iterdir()} == before
    assert [file.name for file in report.parent.iterdir() if not file.name.startswith(".")] == [report.name]
    assert "unchanged" in evaluate("--quick", **given)[0].stdout


def test_network_trained_on_votes_is_scored_on_labels_where_there_are_no_votes(evaluate, make_dataset, tiny_model):
    folder, models = make_dataset(per_split=(("train", 3), ("dev", 3), ("test", 25))), [tiny_model(targets="votes")]
    groups = ["a", "b"] * 44 + ["c"] * 5
    change_split(folder, lambda table: table.assign(gender=groups))
    done, report = evaluate("--quick", "--groups", "gender", folder=folder, models=models)
    assert done.returncode == 0, done.stderr
    text = "the data set has no annotator votes, on which the model was trained: scored on its labels"
    assert f"! {text}" in done.stdout and text in (report / "report.html").read_text()
    assert report.name == "test-labels-quick" and metrics_of(report)["n"] == 75
    assert "groups not compared: gender, fewer than 30 images, or 5 known subjects: c (5 images)" in done.stdout
    empty = dict.fromkeys(["votes_anger", "votes_happiness", "votes_neutral"], np.nan)
    for columns in ({}, empty):
        change_split(folder, lambda table, columns=columns: table.assign(**columns))
        done, _ = evaluate("--truth", "majority", folder=folder, models=models)
        assert refused(done, "--truth majority", "leave out --truth")


def test_only_network_of_a_data_set_is_taken_and_several_are_listed(make_dataset, tiny_model, run_step, tmp_path):
    folder, networks = make_dataset(), tmp_path / "models" / "stripes"
    roots = ["--data", folder.parent, "--models", tmp_path / "models", "--dataset", folder.name]

    def run():  # a wrong option ends the program after the choice of the network
        return run_step("evaluation.model_evaluation", *roots, "--truth", "none")

    assert refused(run(), "best.keras does not exist; train one")
    tiny_model(name="stripes/baseline_project1.keras")
    sequence = tiny_model(name="stripes/sequence.keras").with_suffix(".json")
    sequence.write_text(json.dumps({**json.loads(sequence.read_text()), "window": 64}))
    (networks / ".best.part.keras").write_bytes(b"of a run that was killed")
    done = run()
    text = f"the only network in {networks}: {networks / 'baseline_project1.keras'}"
    assert refused(done, "'none'") and text in done.stdout
    tiny_model(name="stripes/baseline_cifar10.keras")
    assert refused(run(), "choose one", "baseline_cifar10.keras, ", "baseline_project1.keras")
    tiny_model(name="stripes/best.keras")
    done = run()
    assert refused(done, "'none'") and "the only network" not in done.stdout


def test_labels_that_only_the_data_or_only_the_model_has_are_left_out_and_named(evaluate, make_dataset, tiny_model):
    """Without a test split, dev is the default."""
    folder = make_dataset(("anger", "happiness", "neutral", "contempt"), per_split=(("train", 3), ("dev", 4)))
    change_split(folder, lambda table: table.assign(split=table["split"].mask(table["emotion"] == "neutral", "train")))
    model = tiny_model(labels=("anger", "happiness", "neutral", "fear"))
    done, report = evaluate("--quick", folder=folder, models=[model])
    for text in ("no test split", "the data has no fear", "the model has no contempt", "no images of neutral"):
        assert text in done.stdout
    metrics = metrics_of(report)
    assert (metrics["split"], metrics["n"], metrics["left_out"]) == ("dev", 8, 4)
    recalls = [metrics["per_emotion"][label]["recall"] for label in ("anger", "happiness")]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert "p_fear" not in pd.read_csv(report / "predictions.csv").columns


def test_bad_input_is_one_line_with_status_2(evaluate, make_dataset, tiny_model, run_step, tmp_path):
    folder, models = make_dataset(), [tiny_model()]

    def fails(*words, options=(), folder=folder, models=models):
        return refused(evaluate(*options, folder=folder, models=models)[0], *words)

    assert fails("'validation'", "train, dev, test", options=["--split", "validation"])
    assert fails("--pictures", "no folder", options=["--pictures", tmp_path / "none"])
    assert fails("none.keras", "step3_best_model", models=[tmp_path / "none.keras"])
    assert fails("share one report", "give each once", models=models * 2)
    other = tiny_model(labels=("fear", "surprise", "sadness"), name="other.keras")
    assert fails("do not fit", "fear", models=[other])
    logits = tiny_model(name="logits.keras")
    network: Any = keras.models.load_model(logits)
    save(keras.Model(network.inputs, keras.layers.Dense(3)(network.layers[-2].output)), read_card(logits), logits)
    assert fails("not probabilities", "softmax", models=[logits])
    missing = run_step("evaluation.model_evaluation", "--dataset", "nowhere", "--data", folder.parent)
    assert refused(missing, "split.csv", "step3_split")
    (folder / "faces.json").unlink()
    assert fails("faces.json", "step2_face_crops")

    few = make_dataset(name="few", per_split=(("train", 1), ("dev", 1), ("test", 2)))
    change_split(few, lambda table: table.assign(subject="one"))
    assert fails("--calibrate", "too few", options=["--calibrate"], folder=few)
    change_split(few, lambda table: table[table["split"] != "dev"])
    assert fails("'dev'", "train, test", options=["--calibrate"], folder=few)
    change_split(few, lambda table: table.assign(status="unreadable"))
    assert fails("no usable rows", "none", folder=few)
    change_split(few, lambda table: table.assign(face_path="../../secret.png"))
    assert fails("leaves the data folder", folder=few)
    assert not list((tmp_path / "reports").rglob("report.html"))


def test_score_on_training_images_is_marked_in_every_section_and_file(evaluate, make_dataset, tiny_model):
    folder = make_dataset()
    models = [tiny_model(trained_on=folder)]
    done, report = evaluate("--quick", "--split", "train", folder=folder, models=models)
    assert "NOT A HELD-OUT SCORE" in done.stdout
    sections, text = sections_of(report), "NOT A HELD-OUT SCORE: the model was trained on these images"
    assert sections and all(text in section for section in sections.values())
    assert metrics_of(report)["held_out"] is False and "NOT A HELD-OUT" in metrics_of(report)["banner"]
    assert "not a held-out score" in (report / "classification_report.txt").read_text()
    other = evaluate("--quick", "--split", "dev", folder=folder, models=models)[1]
    assert (report.name, other.name) == ("train-labels-quick", "dev-labels-quick")
    dev = metrics_of(other)
    assert dev["split"] == "dev" and dev["provenance"]["selected_on"] and "was selected on these" in dev["banner"]


def test_duplicates_are_counted_and_scored_apart(evaluate, make_dataset, tiny_model):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    test, train = table.index[table["split"] == "test"], table.index[table["split"] == "train"]
    table.loc[test[:2], "pixel_hash"] = table.loc[train[:2], "pixel_hash"].tolist()
    change_split(folder, lambda _: table)
    model = tiny_model(trained_on=folder)
    done, report = evaluate("--quick", "--update-card", folder=folder, models=[model])
    metrics = metrics_of(report)
    assert metrics["held_out"] is True and metrics["banner"] == ""  # the data set publishes these duplicates
    assert 'role="note">the model was' not in (report / "report.html").read_text()
    assert "2 images are duplicates of training images" in done.stdout
    predictions = pd.read_csv(report / "predictions.csv")
    right = (predictions["truth"] == predictions["prediction"]).to_numpy()
    parts = {"all": right, "without duplicates": right[2:], "duplicates only": right[:2]}
    for name, part in parts.items():
        score = metrics["provenance"]["duplicate_scores"][name]
        assert (score["n"], score["accuracy"]["value"]) == (len(part), pytest.approx(part.mean()))
    (score,) = read_card(model).scores
    assert score["without_duplicates"]["n"] == 10
    assert score["without_duplicates"]["accuracy"] == round(right[2:].mean(), 4)


def test_lineage_trained_on_another_split_is_named(evaluate, make_dataset, tiny_model):
    folder = make_dataset()
    split = split_hash(read_table(folder, "split.csv"))
    entry = {"sha256": "0", "dataset": "elsewhere", "split_hash": "1", "trained_on": [f"{folder.name} (labels)"]}
    same = {**entry, "file": "same.keras", "splits": [["elsewhere", "1"], [folder.name, split]]}
    taught = {**entry, "file": "taught.keras", "splits": [["elsewhere", "1"], [folder.name, "0"]]}
    begun = {**entry, "file": "begun.keras", "dataset": folder.name, "split_hash": "0"}
    facts = {"dataset": folder.name, "split_hash": split, "listed": False}
    model = tiny_model(**facts, pretrained=begun, teachers=[same, taught])
    text = evaluate("--quick", folder=folder, models=[model])[0].stdout
    assert f"begun.keras was trained on another split of {folder.name}" in text
    assert "taught.keras was trained on another split" in text and "same.keras was trained" not in text
    assert "extra data: initialised from begun.keras" in text and "Cross-dataset" not in text


def test_subjects_are_resampled_whole_and_shared_ones_reported(evaluate, make_dataset):
    folder = make_dataset()
    change_split(folder, lambda table: table.assign(subject=[str(row % 3) for row in range(len(table))]))
    done, report = evaluate("--quick", folder=folder)
    assert metrics_of(report)["performance"]["resampled_by"] == "subject"
    assert any("only 3 subjects" in note for note in metrics_of(report)["notes"])
    assert "3 subjects of this split are also in the training split" in done.stdout


def test_model_and_labels_of_the_data_set_are_scored_against_the_majority(evaluate, make_dataset):
    folder = make_dataset()
    columns = [f"votes_{label}" for label in SWAPPED]
    table = with_swapped_votes(read_table(folder, "split.csv"))
    first = table.index[table["split"] == "test"][0]
    table.loc[first, columns] = [5, 5, 0]  # no majority
    change_split(folder, lambda _: table.assign(votes_unknown=2))
    done, report = evaluate("--truth", "majority", "--quick", folder=folder)
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(report)
    agreement = metrics["annotators"]
    rows = table.query("split == 'test'").drop(index=first)
    assert agreement["dataset_majority"] == pytest.approx((rows["emotion"] == "neutral").mean())
    assert agreement["images_with_majority"] == metrics["n"] == 11
    predictions = pd.read_csv(report / "predictions.csv")["prediction"].tolist()
    for name, labels in (("dataset_vote", rows["emotion"]), ("model_vote", predictions)):
        shares = [row[f"votes_{label}"] / 10 for (_, row), label in zip(rows.iterrows(), labels, strict=True)]
        assert agreement[name] == pytest.approx(np.mean(shares))
    right = rows["emotion"].map(SWAPPED).to_numpy() == predictions
    assert [agreement["model_majority"], metrics["accuracy"]] == pytest.approx([right.mean()] * 2)
    assert agreement["person_vote"] < agreement["best_vote"] < 1
    assert metrics["provenance"]["facts"]["left out"] == "1 without a majority of the annotators"
    assert "majority" not in metrics["provenance"]["facts"]["training data"]
    assert "Only images with a majority are scored" in sections_of(report)["annotators"]


def test_models_with_different_labels_are_compared_on_common_ones(evaluate, tiny_model, tmp_path):
    models = tiny_model(), tiny_model(labels=("anger", "happiness"), name="two.keras", targets="votes")
    done, _ = evaluate("--quick", models=models)
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(tmp_path / "reports" / "stripes" / "comparison-tiny-two" / "test-labels-quick")
    robustness, measured = metrics["robustness"], metrics["comparison"]["measured"]
    plain = {row["model"]: row["accuracy"] for row in robustness["perturbations"] if row["perturbation"] == "none"}
    assert plain == pytest.approx({name: measured[f"{name}|accuracy"] for name in ("tiny", "two")})
    assert robustness["n"] == 8  # of the two emotions that both know
    assert any("two: trained on annotator votes" in note for note in metrics["notes"])


def test_paired_comparison_agrees_with_the_predictions(evaluate, make_dataset, tiny_model, tmp_path):
    folder = make_dataset(per_split=(("train", 3), ("dev", 3), ("test", 30)))
    models = tiny_model(name="one/best.keras"), tiny_model(name="two/best.keras", listed=False)
    network: Any = keras.models.load_model(models[1])
    network.set_weights([-weight for weight in network.get_weights()])
    save(network, read_card(models[1]), models[1])
    done, _ = evaluate("--quick", folder=folder, models=models)
    assert done.returncode == 0, done.stderr
    reports = tmp_path / "reports" / folder.name
    assert {file.name for file in reports.iterdir()} == {"one-best", "two-best", "comparison-one-best-two-best"}
    files = [reports / name / "test-labels-quick" / "predictions.csv" for name in ("one-best", "two-best")]
    first, second = (table["truth"] == table["prediction"] for table in map(pd.read_csv, files))
    comparison = reports / "comparison-one-best-two-best" / "test-labels-quick"
    (pair,) = metrics_of(comparison)["comparison"]["pairs"]
    assert pair["mcnemar"]["only_a"] == (first & ~second).sum()
    assert pair["mcnemar"]["only_b"] == (second & ~first).sum()
    change = second.astype(int) - first.astype(int)
    accuracy = pair["differences"]["accuracy"]
    assert accuracy["value"] == pytest.approx(change.mean())
    # Of paired differences the textbook knows the spread: that of the mean of -1, 0 and 1.
    assert accuracy["high"] - accuracy["low"] == pytest.approx(2 * 1.96 * change.std() / np.sqrt(90), rel=0.25)
    assert "two-best minus one-best: accuracy" in done.stdout and "McNemar" in done.stdout
    assert (comparison / "differences.csv").is_file()
    assert "unchanged" in evaluate("--quick", folder=folder, models=models)[0].stdout


def teach(folder, model):
    """Train a tiny network on the stripes, so that its predictions differ in confidence."""
    network: Any = keras.models.load_model(model)
    rows = read_table(folder, "split.csv").query("split == 'train'")
    network.compile(optimizer=keras.optimizers.Adam(0.003), loss="categorical_crossentropy")
    network.fit(flow_from_dataframe(rows, folder, target_size=(24, 24), seed=1), epochs=6, verbose=0)
    save(network, read_card(model), model, ImageHashes.of())


def test_calibration_on_training_images_is_refused(evaluate, make_dataset, tiny_model):
    folder = make_dataset(per_split=(("train", 40), ("dev", 30), ("test", 10)))
    model = tiny_model(trained_on=folder)
    before = model.with_suffix(".json").read_text()
    exchanged = {"train": "dev", "dev": "train"}
    change_split(folder, lambda table: table.assign(split=table["split"].replace(exchanged)))
    done, _ = evaluate("--split", "dev", "--quick", "--calibrate", folder=folder, models=[model])
    assert done.returncode == 2 and "was trained on 120 of the 120 images" in done.stderr, done.stderr
    assert model.with_suffix(".json").read_text() == before


def test_calibrate_writes_the_card_and_the_classifier_uses_it(evaluate, make_dataset, tiny_model):
    folder, model = make_dataset(per_split=(("train", 30), ("dev", 40), ("test", 10))), tiny_model(dataset="stripes")
    table = read_table(folder, "split.csv")
    wrong = table.index[table["split"] == "dev"][::6]  # some labels of dev are wrong: certainty cannot be right
    others = {"anger": "happiness", "happiness": "neutral", "neutral": "anger"}
    table.loc[wrong, "emotion"] = table.loc[wrong, "emotion"].map(others)
    change_split(folder, lambda _: table)
    teach(folder, model)
    given = {"folder": folder, "models": [model]}
    plain = metrics_of(evaluate("--split", "dev", "--quick", **given)[1])
    done, report = evaluate("--split", "dev", "--quick", "--calibrate", **given)
    assert done.returncode == 0, done.stderr
    card = json.loads(model.with_suffix(".json").read_text())
    assert card["temperature"] != 1 and card["calibration"]["split"] == "dev" and card["calibration"]["n"] == 120
    assert len(read_hashes(model).selection) == 120  # calibration is a selection
    metrics = metrics_of(report)
    before, fitted, *_ = metrics["calibration"]["probabilities"].values()
    assert fitted["log_loss"] < before["log_loss"] and metrics["accuracy"] == plain["accuracy"]
    uncalibrated = plain["calibration"]["probabilities"]["uncalibrated"]
    assert before["log_loss"] == pytest.approx(uncalibrated["log_loss"], rel=1e-4)
    assert any("were fitted on this split" in note for note in metrics["notes"])
    predictions = pd.read_csv(report / "predictions.csv")
    confidence = predictions[[f"p_{label}" for label in card["labels"]]].max(axis=1)
    given_labels = predictions[confidence >= card["abstention_threshold"] - 1e-4]
    accuracy = (given_labels["truth"] == given_labels["prediction"]).mean()
    assert len(given_labels) >= 60
    assert accuracy >= 0.8 or not card["calibration"]["target_accuracy_reached"]
    again = evaluate("--split", "dev", "--quick", "--calibrate", **given)[0]
    assert json.loads(model.with_suffix(".json").read_text()) == card and "unchanged" in again.stdout
