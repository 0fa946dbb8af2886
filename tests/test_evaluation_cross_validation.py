import json
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from ckplus_tree import write_ckplus_tree

from configuration import PATHS
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.model_card import read_card, write_card
from preprocessing.splitting import Strategy, split_table
from preprocessing.tables import read_table, split_by_fold, split_hash, write_table
from training.cross_validation import fold_file
from training.data import read_image

FOLDS = 3
TINY = {"network": "vgg", "filters": [4], "convolutions": 1, "epochs": 1, "batch_size": 32, "precision": "float32"}


@pytest.fixture
def folder(make_dataset):
    """A data set of 60 images of 6 people, divided into folds."""
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    table["subject"] = [f"S{row % 6}" for row in range(len(table))]
    write_table(split_table(table, Strategy.FOLDS, folds=FOLDS), folder / "split.csv")
    return folder


@pytest.fixture
def train(folder, tiny_model, tmp_path):
    """Save networks with other weights for every fold, with the cards that a training leaves."""

    def run(column="fold", fold_of_card=None):
        table = read_table(folder, "split.csv")
        for fold in range(FOLDS):
            split = split_by_fold(table, fold, column)
            number = fold if fold_of_card is None else fold_of_card
            plain = tiny_model(
                dataset=folder.name,
                split_hash=split_hash(split),
                fold={"number": number, "of": FOLDS, "column": column},
                training_images=int((split["split"] == "train").sum()),
                dev_accuracy=0.5,
                epoch_chosen=1,
            )
            network: Any = keras.models.load_model(plain)
            random = np.random.default_rng([fold, column == "fold"])
            network.set_weights([random.normal(0, 3, weights.shape) for weights in network.get_weights()])
            save(network, read_card(plain), fold_file(tmp_path / "models" / "best.keras", fold, column != "fold"))

    return run


@pytest.fixture
def evaluate(run_step, folder, tmp_path):
    def run(*options):
        roots = ["--data", folder.parent, "--reports", tmp_path / "reports", "--model", tmp_path / "models/best.keras"]
        command = ["evaluation.model_evaluation", "--dataset", folder.name, *roots, "--folds", "--quick", *options]
        return run_step(*command), tmp_path / "reports" / folder.name / "best" / "folds-labels-quick"

    return run


def predictions_by_hand(folder, models, column):
    """Return each image's probabilities by the network of its fold, in the table's order."""
    table = read_table(folder, "split.csv")
    rows = []
    for row in table.to_dict("records"):
        network = EmotionClassifier.load(fold_file(models / "best.keras", int(row[column]), column != "fold"))
        image = read_image(folder / row["face_path"], (24, 24), "grayscale")
        rows.append(network.predict(image[None])[0])
    return table, np.array(rows), np.array(network.labels)


def test_each_image_is_predicted_by_the_network_of_its_fold(evaluate, train, folder, tmp_path):
    train()
    train("subject_dependent_fold")
    done, report = evaluate()
    assert done.returncode == 0, done.stderr
    table, probabilities, labels = predictions_by_hand(folder, tmp_path / "models", "fold")
    predictions = pd.read_csv(report / "predictions.csv", dtype={"fold": str})
    assert predictions["path"].tolist() == table["path"].tolist()
    assert predictions["fold"].tolist() == table["fold"].tolist()
    np.testing.assert_allclose(predictions[[f"p_{label}" for label in labels]], probabilities, atol=2e-6)

    right = labels[probabilities.argmax(axis=1)] == table["emotion"].to_numpy()
    each = [float(right[(table["fold"] == str(fold)).to_numpy()].mean()) for fold in range(FOLDS)]
    assert len({*each}) > 1
    assert pd.read_csv(report / "folds.csv")["accuracy"].tolist() == pytest.approx(each)
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["folds"]["mean"]["accuracy"] == pytest.approx(np.mean(each))
    assert metrics["folds"]["standard_deviation"]["accuracy"] == pytest.approx(np.std(each, ddof=1))
    assert metrics["accuracy"] == metrics["folds"]["pooled"]["accuracy"] == pytest.approx(right.mean())
    assert metrics["n"] == 60 and metrics["held_out"] and np.sum(metrics["performance"]["confusion"]) == 60
    assert metrics["performance"]["resampled_by"] == "subject"
    assert metrics["provenance"]["facts"]["subjects shared with training"] == "0"

    _, loosely, _ = predictions_by_hand(folder, tmp_path / "models", "subject_dependent_fold")
    subject_dependent = (labels[loosely.argmax(axis=1)] == table["emotion"].to_numpy()).mean()
    (difference,) = metrics["folds"]["differences"].values()
    assert difference["accuracy"]["value"] == pytest.approx(subject_dependent - right.mean())
    low, high = difference["accuracy"]["interval"]
    assert low <= difference["accuracy"]["value"] <= high and low < high
    strict_row, loose_row = metrics["folds"]["protocols"]
    assert loose_row["accuracy"] == pytest.approx(subject_dependent)
    known = 0
    for row in table.to_dict("records"):
        apart = {row["subject_dependent_fold"], str((int(row["subject_dependent_fold"]) + 1) % FOLDS)}
        known += row["subject"] in set(table.loc[~table["subject_dependent_fold"].isin(apart), "subject"])
    assert loose_row["known_subject_images"] == known > 0 and strict_row["known_subject_images"] == 0

    page = (report / "report.html").read_text()
    assert "Subject-independent: all images" in page and "a single network" in page
    assert 'id="robustness"' not in page and not list(report.glob("mistakes_*"))
    again, _ = evaluate()
    assert "unchanged" in again.stdout and metrics["folds"]["summary"] in again.stdout


def test_missing_subject_dependent_networks_are_reported_with_the_command(evaluate, train, tmp_path):
    train()
    done, report = evaluate()
    assert done.returncode == 0, done.stderr
    assert "--folds 3 --subject-dependent --output" in (report / "report.html").read_text()
    assert json.loads((report / "metrics.json").read_text())["folds"]["differences"] == {}
    train("subject_dependent_fold")
    other = fold_file(tmp_path / "models" / "best.keras", 1, subject_dependent=True)
    write_card(replace(read_card(other), hyperparameters={"epochs": 9}), other)
    done = evaluate()[0]
    assert "unchanged" not in done.stdout and "different settings (epochs)" in done.stdout


def test_folds_without_subjects_carry_a_warning(evaluate, train, folder):
    table = read_table(folder, "split.csv").drop(columns="subject_dependent_fold").assign(subject="")
    table["fold"] = [str(row % FOLDS) for row in range(len(table))]
    write_table(table, folder / "split.csv")
    train()
    done, report = evaluate()
    assert done.returncode == 0, done.stderr
    page = (report / "report.html").read_text()
    assert "a subject may be in training and test" in page and "Subject-independent:" not in page


def refused(done, *words):
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert all(word in line for word in words), line
    return True


def test_networks_that_may_know_their_test_images_are_refused(evaluate, train, folder, tmp_path):
    assert refused(evaluate()[0], "0.keras", "fold 0, 1, 2", "step3_best_model --dataset stripes --data", "--folds 3")
    train()
    models = tmp_path / "models" / "best-folds"
    second = (models / "1.keras").rename(models / "away.keras")
    assert refused(evaluate()[0], "1.keras does not exist", "no network was trained for fold 1 ", "step3_best_model")
    second.rename(models / "1.keras")
    assert refused(evaluate("--split", "test", "--calibrate")[0], "leave out --split, --calibrate")

    train(fold_of_card=0)  # such as files that were renamed
    assert refused(evaluate()[0], "1.keras is not the network of fold 1 of 3", "'number': 0", "train again")
    train()
    write_card(replace(read_card(models / "2.keras"), fold=None), models / "2.keras")
    assert refused(evaluate()[0], "2.keras is not the network of fold 2")
    train()
    table = read_table(folder, "split.csv")
    write_table(split_table(table, Strategy.FOLDS, folds=FOLDS, seed=8), folder / "split.csv")
    assert refused(evaluate()[0], "0.keras was trained on another split", "train again")
    write_table(table.drop(columns=["fold", "subject_dependent_fold"]), folder / "split.csv")
    assert refused(evaluate()[0], "no folds", "--strategy folds")
    write_table(table.assign(fold="a"), folder / "split.csv")
    assert refused(evaluate()[0], "column fold does not contain all numbers")
    assert not (tmp_path / "reports").exists()


@pytest.fixture
def best_model(run_step, folder, tmp_path):
    def run(*options):
        roots = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "models"]
        return run_step("training.step3_best_model", *roots, *options)

    return run


def test_training_refuses_folds_that_the_split_does_not_have(best_model, folder):
    assert refused(best_model("--folds", 10), "--folds 10: the split has 3 folds; give --folds 3, or", "--folds 10")
    assert refused(best_model("--subject-dependent"), "--subject-dependent needs --folds")
    table = read_table(folder, "split.csv").drop(columns="subject_dependent_fold")
    write_table(table, folder / "split.csv")
    assert refused(best_model("--folds", 3, "--subject-dependent"), "no subject dependent folds", "--strategy folds")
    write_table(table.assign(subject=""), folder / "split.csv")
    assert refused(best_model("--folds", 3, "--subject-dependent"), "not every image has a subject")
    write_table(table.drop(columns="fold"), folder / "split.csv")
    assert refused(best_model("--folds", 3), "no folds", "--strategy folds")


def test_ckplus_in_an_afternoon(run_step, tmp_path):
    """Cut down to few people, folds, and one epoch of a tiny network; by the command lines of the README."""
    folds = 4
    write_ckplus_tree(tmp_path / "CK+", subjects=24)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"config": TINY}))
    data, models = ("--dataset", "ck", "--data", tmp_path / "data"), ("--models", tmp_path / "models")
    train = ("training.step3_best_model", *data, *models, "--settings", settings, "--folds", folds)

    def step(module, *arguments):
        done = run_step(module, *arguments)
        assert done.returncode == 0, (module, done.stderr)
        return done.stdout

    step("preprocessing.step1_inventory", *data, "--source", tmp_path / "CK+", "--frames", "last:3")
    step("preprocessing.step2_face_crops", *data)
    without = ("--without", "contempt", "--without", "fear")  # two people alone show fear here: too few for four folds
    step("preprocessing.step3_split", *data, "--strategy", "folds", "--folds", folds, *without)
    printed = step(*train)
    cards = [read_card(tmp_path / "models" / "ck" / "best-folds" / f"{fold}.keras") for fold in range(folds)]
    assert [card.fold for card in cards] == [{"number": k, "of": folds, "column": "fold"} for k in range(folds)]
    for fold, card in enumerate(cards):
        assert f"fold {fold}: dev accuracy {card.dev_accuracy:.4f}" in printed
    mean = np.array([card.dev_accuracy for card in cards], dtype=float).mean()
    assert f"dev accuracy {mean:.4f} ± " in printed
    assert len({card.split_hash for card in cards}) == folds
    (tmp_path / "models" / "ck" / "best-folds" / "1.keras").unlink()
    assert step(*train).count("unchanged: ") == folds - 1
    step(*train, "--subject-dependent")

    step("evaluation.model_evaluation", *data, *models, "--reports", tmp_path / "reports", "--folds", "--quick")
    report = tmp_path / "reports" / "ck" / "best" / "folds-labels-quick"
    metrics = json.loads((report / "metrics.json").read_text())
    table = read_table(tmp_path / "data" / "ck", "split.csv")
    assert metrics["n"] == (table["fold"] != "").sum() == len(pd.read_csv(report / "predictions.csv"))
    assert not {"contempt", "fear"} & set(metrics["labels"])
    names = [row["protocol"] for row in metrics["folds"]["protocols"]]
    assert names[1::2] == ["subject-dependent folds", "last frame of each sequence"]
    assert names[2].startswith("cross-dataset: pretrained.keras, trained on fer2013 (")
    _, _, cross_dataset, peaks = metrics["folds"]["protocols"]
    assert peaks["n"] == metrics["n"] / 3
    released, scored = EmotionClassifier.load(PATHS.pretrained), table[table["fold"] != ""]
    images = [read_image(tmp_path / "data" / "ck" / path, (48, 48), "grayscale") for path in scored["face_path"]]
    columns = [released.labels.index(label) for label in metrics["labels"]]
    likeliest = np.array(metrics["labels"])[released.predict(np.array(images))[:, columns].argmax(axis=1)]
    assert cross_dataset["accuracy"] == pytest.approx((likeliest == scored["emotion"]).mean())
    assert (cross_dataset["n"], cross_dataset["known_subject_images"]) == (metrics["n"], 0)
    change = metrics["folds"]["differences"][cross_dataset["protocol"]]["accuracy"]["value"]
    assert change == pytest.approx(cross_dataset["accuracy"] - metrics["accuracy"])
    fear, contempt = (int((table["emotion"] == emotion).sum()) for emotion in ("fear", "contempt"))
    assert fear and contempt
    text = f"Left out: fear ({fear} images), contempt ({contempt} images)."
    assert text in (report / "report.html").read_text()


@pytest.mark.system
def test_sequences_and_ablation_on_a_tree_of_the_shape_of_ckplus(run_step, tmp_path):
    """The commands that `test_ckplus_in_an_afternoon` leaves out; the sequence network is trained for one epoch."""
    takes = write_ckplus_tree(tmp_path / "CK+", subjects=16)
    data, models = ("--dataset", "ck", "--data", tmp_path / "data"), ("--models", tmp_path / "models")
    reports = ("--reports", tmp_path / "reports")
    (tmp_path / "models" / "ck").mkdir(parents=True)
    (tmp_path / "models" / "ck" / "tuned.json").write_text(json.dumps({"config": TINY}))

    def step(module, *arguments):
        done = run_step(module, *arguments)
        assert done.returncode == 0, (module, done.stderr)
        return done.stdout

    step("preprocessing.step1_inventory", *data, "--source", tmp_path / "CK+", "--frames", "all", "--neutral-first")
    step("preprocessing.step2_face_crops", *data)
    rare = [("--without", emotion) for emotion in ("contempt", "fear", "sadness")]
    step("preprocessing.step3_split", *data, "--strategy", "folds", "--folds", 3, *sum(rare, ()))
    kept = [take for take in takes if take.emotion not in ("", "contempt", "fear", "sadness")]

    step("training.step4_sequence_model", *data, *models, "--folds", 3, "--epochs", 1)
    step("evaluation.sequences", *data, *models, *reports, "--folds")
    found = json.loads((tmp_path / "reports" / "ck" / "sequence" / "folds" / "metrics.json").read_text())
    assert found["n"] == len(kept)

    printed = step("evaluation.ablation", *data, *models, *reports, "--epochs", 1)
    variants = pd.read_csv(tmp_path / "reports" / "ck" / "ablation" / "test" / "ablation.csv")
    assert set(variants["n"]) == {(read_table(tmp_path / "data" / "ck", "split.csv")["split"] == "test").sum()}
    assert len(variants) == variants["variant"].nunique() and "fine-tuned" in printed
