import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from evaluation.selection import report_name
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.lineage import ImageHashes, read_hashes
from inference.model_card import read_card
from preprocessing.tables import read_table, split_hash, write_table
from training.data import read_image


@pytest.fixture
def evaluate(run_step, make_dataset, tiny_model, tmp_path):
    """Evaluate an untrained network on a small data set, by the command line."""

    def run(*options, folder=None, model=None):
        folder = folder or make_dataset()
        model = model or tiny_model()
        roots = ["--data", folder.parent, "--reports", tmp_path / "reports"]
        command = ["evaluation.model_evaluation", "--dataset", folder.name, "--model", model, *roots, *options]
        done, report = run_step(*command), tmp_path / "reports" / folder.name / model.stem
        text = re.search("^report: (.*)/report.html$", done.stdout, re.MULTILINE)
        return done, folder, model, Path(text[1]) if text else report

    return run


@pytest.mark.figures
def test_report_has_the_scores_of_the_split(evaluate):
    done, folder, model, report = evaluate("--update-card")
    assert done.returncode == 0, done.stderr
    assert str(report) in done.stdout
    rows = read_table(folder, "split.csv").query("split == 'test'")
    predictions = pd.read_csv(report / "predictions.csv")
    assert predictions["path"].tolist() == rows["path"].tolist()
    assert predictions["truth"].tolist() == rows["emotion"].tolist()

    classifier = EmotionClassifier.load(model)
    images = np.stack([read_image(folder / path, (24, 24), "grayscale") for path in rows["face_path"]])
    probabilities = classifier.predict(images)
    columns = [f"p_{label}" for label in classifier.labels]
    np.testing.assert_allclose(predictions[columns].to_numpy(), probabilities, atol=2e-6)
    assert predictions["prediction"].tolist() == [classifier.labels[i] for i in probabilities.argmax(axis=1)]

    metrics = json.loads((report / "metrics.json").read_text())
    accuracy = float((predictions["truth"] == predictions["prediction"]).mean())
    assert metrics["accuracy"] == pytest.approx(accuracy) and metrics["split"] == "test" and metrics["n"] == 12
    matrix = pd.read_csv(report / "confusion_matrix.csv", index_col="truth")
    assert np.trace(matrix) / matrix.to_numpy().sum() == pytest.approx(accuracy)
    assert matplotlib.image.imread(report / "confusion_matrix.png").shape[0] > 300
    assert "macro avg" in (report / "classification_report.txt").read_text()
    (score,) = json.loads(model.with_suffix(".json").read_text())["scores"]
    assert score["accuracy"] == pytest.approx(accuracy, abs=1e-4) and score["split"] == "test"


def test_second_run_keeps_the_report_until_an_input_changes(evaluate):
    _, folder, model, report = evaluate("--update-card")
    written = (report / "predictions.csv").stat().st_mtime_ns
    again = evaluate("--update-card", folder=folder, model=model)[0]
    assert "unchanged" in again.stdout and (report / "predictions.csv").stat().st_mtime_ns == written
    assert len(json.loads(model.with_suffix(".json").read_text())["scores"]) == 1
    dev = evaluate("--split", "dev", folder=folder, model=model)[0]
    assert "unchanged" not in dev.stdout and metrics_of(report.parent / "dev-labels")["split"] == "dev"
    assert report.name == "test-labels" and metrics_of(report)["split"] == "test"


def test_every_kind_of_report_has_a_folder_of_its_own(tmp_path):
    pictures = [None, tmp_path / "a" / "test", tmp_path / "b" / "test", Path("/pictures")]
    choices = [("test", "labels"), ("dev", "labels"), ("test", "majority"), ("folds", "labels")]
    names = {
        report_name(*choice, folder, quick) for choice in choices for folder in pictures for quick in (False, True)
    }
    assert len(names) == 32 and all(name == Path(name).name for name in names)
    assert report_name("test", "labels", None, quick=False) == "test-labels"


def test_interrupted_evaluation_leaves_the_earlier_report_intact(evaluate, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    _, folder, model, report = evaluate("--quick")
    before = {file.name: file.read_bytes() for file in report.iterdir()}
    monkeypatch.setattr("evaluation.evaluator._robustness", interrupt)  # the last part of the report
    stopped = evaluate("--quick", "--flip", folder=folder, model=model)[0]
    assert stopped.returncode == 130
    assert {file.name: file.read_bytes() for file in report.iterdir()} == before
    assert [file.name for file in report.parent.iterdir() if not file.name.startswith(".")] == [report.name]
    assert "unchanged" in evaluate("--quick", folder=folder, model=model)[0].stdout


def test_network_of_crowd_votes_is_scored_on_ones_own_labels_where_there_are_no_votes(
    evaluate, make_dataset, tiny_model
):
    folder, model = make_dataset(per_split=(("train", 3), ("dev", 3), ("test", 25))), tiny_model(targets="votes")
    table = read_table(folder, "split.csv")
    table["gender"] = np.where(np.arange(len(table)) % 2, "a", "b")
    table.loc[table.index[-5:], "gender"] = "c"
    write_table(table, folder / "split.csv")
    done, _, _, report = evaluate("--quick", "--groups", "gender", folder=folder, model=model)
    assert done.returncode == 0, done.stderr
    text = "the data set has no annotator votes, on which the model was trained: scored on its labels"
    assert f"! {text}" in done.stdout and text in (report / "report.html").read_text()
    assert report.name == "test-labels-quick" and metrics_of(report)["n"] == 75
    assert "groups not compared: gender, fewer than 30 images: c (5)" in done.stdout
    done = evaluate("--truth", "majority", folder=folder, model=model)[0]
    assert refused(done, "--truth majority", "leave out --truth")
    columns = {f"votes_{label}": np.nan for label in ("anger", "happiness", "neutral")}
    write_table(table.assign(**columns), folder / "split.csv")  # columns without a vote
    assert refused(evaluate("--truth", "majority", folder=folder, model=model)[0], "leave out --truth")


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
    assert (
        refused(done, "'none'")
        and f"the only network in {networks}: {networks / 'baseline_project1.keras'}" in done.stdout
    )
    tiny_model(name="stripes/baseline_cifar10.keras")
    assert refused(run(), "choose one", "baseline_cifar10.keras, ", "baseline_project1.keras")
    tiny_model(name="stripes/best.keras")
    done = run()
    assert refused(done, "'none'") and "the only network" not in done.stdout


def test_dev_is_the_default_without_a_test_split(evaluate, make_dataset):
    done, _, _, report = evaluate(folder=make_dataset(per_split=(("train", 3), ("dev", 2))))
    assert "no test split" in done.stdout
    assert json.loads((report / "metrics.json").read_text())["split"] == "dev"


def test_related_labels_are_mapped_and_the_rule_is_printed(evaluate, tiny_model, make_dataset):
    model = tiny_model(labels=("anger", "happiness", "neutral", "contempt"))
    done, _, _, report = evaluate(model=model)
    assert "the data has no contempt" in done.stdout
    assert "p_contempt" not in pd.read_csv(report / "predictions.csv").columns


def test_images_of_unknown_classes_are_left_out_and_counted(evaluate, make_dataset):
    folder = make_dataset(emotions=("anger", "happiness", "neutral", "contempt"), name="eight")
    done, _, _, report = evaluate(folder=folder)
    metrics = json.loads((report / "metrics.json").read_text())
    assert "the model has no contempt" in done.stdout and metrics["left_out"] == 4 and metrics["n"] == 12


def refused(done, *words):
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert all(word in line for word in words), line
    return True


def test_bad_input_is_one_line_with_status_2(evaluate, make_dataset, tiny_model, run_step, tmp_path):
    folder, model = make_dataset(), tiny_model()
    assert refused(evaluate("--split", "validation", folder=folder, model=model)[0], "'validation'", "train, dev, test")
    assert refused(evaluate(folder=folder, model=tmp_path / "none.keras")[0], "none.keras", "step3_best_model")
    other = tiny_model(labels=("fear", "surprise", "sadness"), name="other.keras")
    assert refused(evaluate(folder=folder, model=other)[0], "do not fit", "fear")
    missing = run_step("evaluation.model_evaluation", "--dataset", "nowhere", "--data", folder.parent)
    assert refused(missing, "split.csv", "step3_split")
    assert refused(run_step("evaluation.model_evaluation", "--spilt", "test"), "--spilt")
    table = read_table(folder, "split.csv")
    table.loc[0, "face_path"] = "../../secret.png"
    write_table(table, folder / "split.csv")
    assert refused(evaluate(folder=folder, model=model)[0], "leaves the data folder")
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("name", ["predictions.csv", "classification_report.txt", "metrics.json"])
def test_incomplete_report_is_written_again(evaluate, name):
    _, folder, model, report = evaluate()
    (report / name).unlink()
    again = evaluate(folder=folder, model=model)[0]
    assert again.returncode == 0 and "unchanged" not in again.stdout and (report / name).is_file()
    (report / "metrics.json").write_text("{")
    assert "unchanged" not in evaluate(folder=folder, model=model)[0].stdout


def test_other_crops_of_the_same_rows_are_evaluated_again(evaluate):
    _, folder, model, _ = evaluate()
    crops = json.loads((folder / "faces.json").read_text())
    crops["options"]["align"] = "box"
    (folder / "faces.json").write_text(json.dumps(crops))
    again = evaluate(folder=folder, model=model)[0]
    assert "unchanged" not in again.stdout and "crops are aligned by box" in again.stdout
    (folder / "faces.json").unlink()
    assert refused(evaluate(folder=folder, model=model)[0], "faces.json", "step2_face_crops")


def test_emotion_without_images_is_excluded_and_named(evaluate, make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    table.loc[(table["emotion"] == "neutral") & (table["split"] == "test"), "split"] = "train"
    write_table(table, folder / "split.csv")
    done, _, _, report = evaluate(folder=folder)
    assert "no images of neutral" in done.stdout
    metrics = json.loads((report / "metrics.json").read_text())
    recalls = [metrics["per_emotion"][label]["recall"] for label in ("anger", "happiness")]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def metrics_of(report):
    return json.loads((report / "metrics.json").read_text())


def sections_of(report):
    """Return each section's HTML by its name."""
    parts = (report / "report.html").read_text().split('<section id="')[1:]
    return {part.split('"')[0]: part for part in parts}


def test_report_shows_each_figure_and_keeps_its_numbers(evaluate):
    done, _, _, report = evaluate()
    assert done.returncode == 0, done.stderr
    names = ["performance", "provenance", "calibration", "error_analysis", "robustness"]
    assert list(sections_of(report)) == names
    images = (report / "report.html").read_text().count('<img src="data:image/png;base64,')
    pictures = sorted(file.stem for file in report.glob("*.png"))
    assert images == len(pictures) >= 6
    numbers = [name for name in pictures if name != "perturbations"]  # the sheet of covered faces shows no numbers
    assert all((report / f"{name}.csv").stat().st_size > 20 for name in numbers)
    assert not list(report.glob(".*"))
    metrics = metrics_of(report)
    assert set(metrics["files"]) | {"metrics.json"} == {file.name for file in report.iterdir()}
    low, high = metrics["accuracy_interval"]
    assert low <= metrics["accuracy"] <= high
    predictions = pd.read_csv(report / "predictions.csv")
    ranked = predictions[[f"p_{label}" for label in metrics["labels"]]].rank(axis=1, ascending=False)
    own = [ranked.loc[i, f"p_{truth}"] for i, truth in enumerate(predictions["truth"])]
    assert metrics["performance"]["scores"]["top2_accuracy"] == pytest.approx(np.mean(np.array(own) <= 2))


def test_score_on_training_images_is_marked_in_every_section_and_file(evaluate, make_dataset, tiny_model):
    folder = make_dataset()
    model = tiny_model(trained_on=folder)
    done, _, _, report = evaluate("--split", "train", folder=folder, model=model)
    assert "NOT A HELD-OUT SCORE" in done.stdout
    sections = sections_of(report)
    assert sections and all(
        "NOT A HELD-OUT SCORE: the model was trained on these images" in s for s in sections.values()
    )
    assert metrics_of(report)["held_out"] is False and "NOT A HELD-OUT" in metrics_of(report)["banner"]
    assert "not a held-out score" in (report / "classification_report.txt").read_text()
    held_out = evaluate("--split", "test", folder=folder, model=model)[3]
    assert metrics_of(held_out)["held_out"] is True and metrics_of(held_out)["banner"] == ""
    assert 'role="note">the model was' not in (held_out / "report.html").read_text()
    dev = evaluate("--split", "dev", folder=folder, model=model)[3]
    assert metrics_of(dev)["provenance"]["selected_on"] and "was selected on these" in metrics_of(dev)["banner"]


def test_duplicates_are_counted_and_scored_apart(evaluate, make_dataset, tiny_model):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    test, train = table.index[table["split"] == "test"], table.index[table["split"] == "train"]
    table.loc[test[:2], "pixel_hash"] = table.loc[train[:2], "pixel_hash"].tolist()
    write_table(table, folder / "split.csv")
    done, _, model, report = evaluate("--update-card", folder=folder, model=tiny_model(trained_on=folder))
    assert metrics_of(report)["held_out"] is True  # the data set publishes these duplicates
    assert "2 images are duplicates of training images" in done.stdout
    scores = metrics_of(report)["provenance"]["duplicate_scores"]
    predictions = pd.read_csv(report / "predictions.csv")
    right = (predictions["truth"] == predictions["prediction"]).to_numpy()
    assert scores["all"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert scores["without duplicates"]["accuracy"]["value"] == pytest.approx(right[2:].mean())
    (score,) = json.loads(model.with_suffix(".json").read_text())["scores"]
    assert score["without_duplicates"]["n"] == 10 and score["without_duplicates"]["accuracy"] == round(
        right[2:].mean(), 4
    )
    assert scores["duplicates only"]["accuracy"]["value"] == pytest.approx(right[:2].mean())
    assert (scores["all"]["n"], scores["without duplicates"]["n"], scores["duplicates only"]["n"]) == (12, 10, 2)


def test_lineage_trained_on_another_split_is_named(evaluate, make_dataset, tiny_model):
    folder = make_dataset()
    split = split_hash(read_table(folder, "split.csv"))
    entry = {"sha256": "0", "dataset": "elsewhere", "split_hash": "1", "trained_on": [f"{folder.name} (labels)"]}
    same = {**entry, "file": "same.keras", "splits": [["elsewhere", "1"], [folder.name, split]]}
    taught = {**entry, "file": "taught.keras", "splits": [["elsewhere", "1"], [folder.name, "0"]]}
    begun = {**entry, "file": "begun.keras", "dataset": folder.name, "split_hash": "0"}
    facts = {"dataset": folder.name, "split_hash": split, "listed": False}
    model = tiny_model(**facts, pretrained=begun, teachers=[same, taught])
    text = evaluate(folder=folder, model=model)[0].stdout
    assert f"begun.keras was trained on another split of {folder.name}" in text
    assert "taught.keras was trained on another split" in text and "same.keras was trained" not in text
    assert "extra data: initialised from begun.keras" in text and "Cross-dataset" not in text
    model = tiny_model(**facts, pretrained={**begun, "split_hash": split}, teachers=[])
    text = evaluate(folder=folder, model=model)[0].stdout
    assert f"no extra labels, initialised from begun.keras (trained on {folder.name} (labels))" in text
    assert "extra data" not in text and "Cross-dataset" not in text


def test_subjects_are_resampled_whole_and_shared_ones_reported(evaluate, make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    table["subject"] = [f"{split}{index % 3}" for index, split in enumerate(table["split"])]
    write_table(table, folder / "split.csv")
    report = evaluate(folder=folder)[3]
    metrics = metrics_of(report)
    assert metrics["performance"]["resampled_by"] == "subject"
    assert any("only 3 subjects" in note for note in metrics["notes"])
    assert not any("also in the training split" in note for note in metrics["notes"])
    table["subject"] = [f"{index % 3}" for index in range(len(table))]
    write_table(table, folder / "split.csv")
    assert "3 subjects of this split are also in the training split" in evaluate(folder=folder)[0].stdout


def test_agreement_with_annotator_votes(evaluate, make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    random = np.random.default_rng(0)
    for label in ("anger", "happiness", "neutral", "unknown"):
        table[f"votes_{label}"] = random.integers(0, 3, len(table)) + 6 * (table["emotion"] == label)
    write_table(table, folder / "split.csv")
    report = evaluate(folder=folder)[3]
    agreement = metrics_of(report)["annotators"]
    rows = read_table(folder, "split.csv").query("split == 'test'").reset_index(drop=True)
    predictions = pd.read_csv(report / "predictions.csv")
    shares = []
    for row, label in zip(rows.to_dict("records"), predictions["prediction"], strict=True):
        shares.append(row[f"votes_{label}"] / sum(row[f"votes_{x}"] for x in ("anger", "happiness", "neutral")))
    assert agreement["model_vote"] == pytest.approx(np.mean(shares))
    assert agreement["dataset_majority"] == 1.0 and agreement["images_with_majority"] == 12
    assert agreement["model_majority"] == pytest.approx(metrics_of(report)["accuracy"])
    assert agreement["person_vote"] < agreement["best_vote"] < 1


def test_labels_of_the_data_set_are_scored_against_the_majority(evaluate, make_dataset):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    swapped = {"anger": "happiness", "happiness": "anger", "neutral": "neutral"}
    for label in swapped:
        table[f"votes_{label}"] = 7 * (table["emotion"].map(swapped) == label) + 3 * (label == "neutral")
    first = table.index[table["split"] == "test"][0]
    table.loc[first, [f"votes_{label}" for label in swapped]] = [5, 5, 0]  # no majority
    write_table(table, folder / "split.csv")
    done, _, _, report = evaluate("--truth", "majority", "--quick", folder=folder)
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(report)
    rows = table.query("split == 'test'").drop(index=first)
    own = rows["emotion"]
    assert metrics["annotators"]["dataset_majority"] == pytest.approx((own == "neutral").mean())
    shares = [row[f"votes_{row['emotion']}"] / sum(row[f"votes_{x}"] for x in swapped) for _, row in rows.iterrows()]
    assert metrics["annotators"]["dataset_vote"] == pytest.approx(np.mean(shares))
    assert metrics["annotators"]["model_majority"] == pytest.approx(metrics["accuracy"])
    assert metrics["provenance"]["facts"]["left out"] == "1 without a majority of the annotators"
    assert "majority" not in metrics["provenance"]["facts"]["training data"]
    assert "Only images with a majority are scored" in sections_of(report)["annotators"]


def test_models_with_different_labels_are_compared_on_common_ones(make_dataset, tiny_model, run_step, tmp_path):
    folder = make_dataset()
    models = tiny_model(), tiny_model(labels=("anger", "happiness"), name="two.keras", targets="votes")
    options = ["--reports", tmp_path / "reports", "--data", folder.parent, "--dataset", folder.name, "--quick"]
    done = run_step("evaluation.model_evaluation", "--model", models[0], "--model", models[1], *options)
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(tmp_path / "reports" / folder.name / "comparison-tiny-two" / "test-labels-quick")
    plain = {row["model"]: row for row in metrics["robustness"]["perturbations"] if row["perturbation"] == "none"}
    measured = metrics["comparison"]["measured"]
    assert {name: row["accuracy"] for name, row in plain.items()} == pytest.approx(
        {name: measured[f"{name}|accuracy"] for name in ("tiny", "two")}
    )
    assert metrics["robustness"]["n"] == 8  # of the two emotions that both know
    assert any("two: trained on annotator votes" in note for note in metrics["notes"])


def test_paired_comparison_agrees_with_the_predictions(evaluate, make_dataset, tiny_model, run_step, tmp_path):
    import keras

    folder, first = make_dataset(per_split=(("train", 3), ("dev", 3), ("test", 30))), tiny_model()
    second = tiny_model(name="second.keras", listed=False)
    network: Any = keras.models.load_model(second)
    network.set_weights([-weight for weight in network.get_weights()])
    save(network, read_card(second), second)
    options = ["--reports", tmp_path / "reports", "--data", folder.parent, "--dataset", folder.name]
    command = ["evaluation.model_evaluation", "--model", first, "--model", second, "--quick", *options]
    done = run_step(*command)
    assert done.returncode == 0, done.stderr
    reports = tmp_path / "reports" / folder.name
    predictions = {
        name: pd.read_csv(reports / name / "test-labels-quick" / "predictions.csv") for name in ("tiny", "second")
    }
    right = {name: (table["truth"] == table["prediction"]) for name, table in predictions.items()}
    (pair,) = metrics_of(reports / "comparison-tiny-second" / "test-labels-quick")["comparison"]["pairs"]
    assert pair["mcnemar"]["only_a"] == (right["tiny"] & ~right["second"]).sum()
    assert pair["mcnemar"]["only_b"] == (right["second"] & ~right["tiny"]).sum()
    accuracy = pair["differences"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right["second"].mean() - right["tiny"].mean())
    # Of paired differences the textbook knows the spread: that of the mean of -1, 0 and 1.
    spread = (right["second"].astype(int) - right["tiny"].astype(int)).std() / np.sqrt(len(right["tiny"]))
    assert accuracy["high"] - accuracy["low"] == pytest.approx(2 * 1.96 * spread, rel=0.25)
    assert "second minus tiny: accuracy" in done.stdout and "McNemar" in done.stdout
    assert "unchanged" in run_step(*command).stdout
    for name in ("differences.csv", "differences.png", "report.html"):
        assert (reports / "comparison-tiny-second" / "test-labels-quick" / name).is_file()


def test_model_and_its_copy_do_not_differ(evaluate, make_dataset, tiny_model, run_step, tmp_path):
    folder = make_dataset()
    models = [tiny_model(name="a.keras"), tiny_model(name="b.keras")]
    options = ["--reports", tmp_path / "reports", "--data", folder.parent, "--dataset", folder.name, "--quick"]
    done = run_step("evaluation.model_evaluation", "--model", models[0], "--model", models[1], *options)
    (pair,) = metrics_of(tmp_path / "reports" / folder.name / "comparison-a-b" / "test-labels-quick")["comparison"][
        "pairs"
    ]
    assert pair["mcnemar"]["p_value"] == 1
    assert all(d["value"] == d["low"] == d["high"] == 0 for d in pair["differences"].values())
    assert "The difference is not significant." in done.stdout


def test_models_with_one_name_are_distinguished_by_folder(evaluate, make_dataset, tiny_model, run_step, tmp_path):
    folder = make_dataset()
    models = [tiny_model(name="one/best.keras"), tiny_model(name="two/best.keras")]
    options = ["--reports", tmp_path / "reports", "--data", folder.parent, "--dataset", folder.name, "--quick"]
    done = run_step("evaluation.model_evaluation", "--model", models[0], "--model", models[1], *options)
    assert done.returncode == 0, done.stderr
    names = {file.name for file in (tmp_path / "reports" / folder.name).iterdir()}
    assert names == {"one-best", "two-best", "comparison-one-best-two-best"}
    twice = run_step("evaluation.model_evaluation", "--model", models[0], "--model", models[0], *options)
    assert refused(twice, "share one report", "give each once")


def trained(folder, model):
    """Teach a tiny network the stripes, so that its predictions differ in confidence."""
    import keras

    from training.data import flow_from_dataframe

    network: Any = keras.models.load_model(model)
    rows = read_table(folder, "split.csv").query("split == 'train'")
    batches = flow_from_dataframe(rows, folder, target_size=(24, 24), seed=1)
    network.compile(optimizer=keras.optimizers.Adam(0.003), loss="categorical_crossentropy")
    network.fit(batches, epochs=6, verbose=0)
    save(network, read_card(model), model, ImageHashes.of())


def test_calibrate_writes_the_card_and_the_classifier_uses_it(evaluate, make_dataset, tiny_model):
    folder, model = make_dataset(per_split=(("train", 30), ("dev", 40), ("test", 10))), tiny_model(dataset="stripes")
    table = read_table(folder, "split.csv")
    wrong = table.index[table["split"] == "dev"][::6]  # some labels of dev are wrong: certainty cannot be right
    table.loc[wrong, "emotion"] = table.loc[wrong, "emotion"].map(
        {"anger": "happiness", "happiness": "neutral", "neutral": "anger"}
    )
    write_table(table, folder / "split.csv")
    trained(folder, model)
    plain = metrics_of(evaluate("--split", "dev", "--quick", folder=folder, model=model)[3])
    done, _, _, report = evaluate("--split", "dev", "--quick", "--calibrate", folder=folder, model=model)
    assert done.returncode == 0, done.stderr
    card = json.loads(model.with_suffix(".json").read_text())
    assert card["temperature"] != 1 and card["calibration"]["split"] == "dev" and card["calibration"]["n"] == 120
    assert len(read_hashes(model).selection) == 120  # calibration is a selection
    metrics = metrics_of(report)
    states = metrics["calibration"]["probabilities"]
    before, fitted = states["uncalibrated"], list(states.values())[1]
    assert fitted["log_loss"] < before["log_loss"] and metrics["accuracy"] == plain["accuracy"]
    assert before["log_loss"] == pytest.approx(
        plain["calibration"]["probabilities"]["uncalibrated"]["log_loss"], rel=1e-4
    )
    assert any("were fitted on this split" in note for note in metrics["notes"])
    predictions = pd.read_csv(report / "predictions.csv")
    confidence = predictions[[f"p_{label}" for label in card["labels"]]].max(axis=1)
    given = confidence >= card["abstention_threshold"] - 1e-4
    assert given.mean() >= 0.5
    assert (predictions["truth"] == predictions["prediction"])[given].mean() >= 0.8 or not card["calibration"][
        "target_accuracy_reached"
    ]
    again = evaluate("--split", "dev", "--quick", "--calibrate", folder=folder, model=model)[0]
    assert json.loads(model.with_suffix(".json").read_text()) == card and "unchanged" in again.stdout


def test_quick_and_no_faces_leave_out_the_gallery(evaluate):
    _, folder, model, report = evaluate()
    assert list(report.glob("uncertain_*.png"))
    quick = evaluate("--quick", folder=folder, model=model)[3]
    assert not list(quick.glob("uncertain_*")) and metrics_of(quick)["performance"]["resamples"] == 200
    evaluate("--no-faces", folder=folder, model=model)
    assert not list(report.glob("uncertain_*")) and metrics_of(report)["performance"]["resamples"] == 1000


def test_more_bad_input_is_one_line_with_status_2(evaluate, make_dataset, tiny_model, tmp_path):
    import keras

    folder, model = make_dataset(), tiny_model()
    logits = tiny_model(name="logits.keras")
    network: Any = keras.models.load_model(logits)
    x = keras.layers.Dense(3)(network.layers[-2].output)
    save(keras.Model(network.inputs, x), read_card(logits), logits)
    assert refused(evaluate(folder=folder, model=logits)[0], "not probabilities", "softmax")
    assert refused(evaluate("--pictures", tmp_path / "none", folder=folder, model=model)[0], "--pictures", "no folder")
    assert not list((tmp_path / "reports").rglob("report.html"))  # refused before anything took its time
    no_dev = make_dataset(name="no_dev", per_split=(("train", 3), ("test", 2)))
    assert refused(evaluate("--calibrate", folder=no_dev, model=model)[0], "'dev'", "train, test")
    assert refused(evaluate("--split", "dev", folder=no_dev, model=model)[0], "'dev'", "train, test")
    table = read_table(no_dev, "split.csv")
    write_table(table.assign(status="unreadable"), no_dev / "split.csv")
    assert refused(evaluate(folder=no_dev, model=model)[0], "no usable rows", "none")
    same = make_dataset(name="same", per_split=(("train", 1), ("dev", 1), ("test", 2)))
    table = read_table(same, "split.csv")
    write_table(table.assign(subject="one"), same / "split.csv")
    assert refused(evaluate("--calibrate", folder=same, model=model)[0], "--calibrate", "too few")
