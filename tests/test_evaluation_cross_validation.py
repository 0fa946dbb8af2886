import json
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from ckplus_tree import write_ckplus_tree
from report_helpers import change_split, images_of, metrics_of, refused

from configuration import PATHS
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.model_card import read_card, write_card
from preprocessing.splitting import Strategy, split_table
from preprocessing.tables import read_table, split_by_fold, split_hash
from training.cross_validation import fold_file
from training.data import read_image

FOLDS = 3
TINY = {"network": "vgg", "filters": [4], "convolutions": 1, "epochs": 1, "batch_size": 32, "precision": "float32"}


@pytest.fixture
def folder(make_dataset):
    """A data set of 60 images of 6 people, divided into folds."""
    folder = make_dataset()
    subjects = [f"S{row % 6}" for row in range(60)]
    change_split(folder, lambda table: split_table(table.assign(subject=subjects), Strategy.FOLDS, folds=FOLDS))
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
                temperature=1.0 + fold,
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


def predictions_by_hand(folder, models, column, flipped=False):
    """Return each image's probabilities by the network of its fold at temperature 1, and where they are correct."""
    table = read_table(folder, "split.csv")
    images, by_fold = images_of(folder, table["face_path"]), []
    for fold in range(FOLDS):
        network: Any = keras.models.load_model(fold_file(models / "best.keras", fold, column != "fold"))
        mirrored = network.predict(images[:, :, ::-1], verbose=0) if flipped else 0
        by_fold.append(network.predict(images, verbose=0) + mirrored)
    probabilities = np.array(by_fold)[table[column].astype(int), np.arange(len(table))]
    labels = np.array(["anger", "happiness", "neutral"])
    return probabilities, labels[probabilities.argmax(axis=1)] == table["emotion"].to_numpy()


def test_each_image_is_predicted_by_the_network_of_its_fold(evaluate, train, folder, tmp_path):
    train()
    done, report = evaluate()
    assert done.returncode == 0, done.stderr
    assert "--folds 3 --subject-dependent --output" in (report / "report.html").read_text()
    assert metrics_of(report)["folds"]["differences"] == {}

    train("subject_dependent_fold")
    done, report = evaluate("--flip")
    assert done.returncode == 0 and "unchanged" not in done.stdout, done.stderr
    probabilities, right = predictions_by_hand(folder, tmp_path / "models", "fold")
    table = read_table(folder, "split.csv")
    predictions = pd.read_csv(report / "predictions.csv", dtype={"fold": str})
    assert predictions[["path", "fold"]].to_numpy().tolist() == table[["path", "fold"]].to_numpy().tolist()
    columns = [column for column in predictions.columns if column.startswith("p_")]
    np.testing.assert_allclose(predictions[columns], probabilities, atol=2e-6)

    each = [float(right[(table["fold"] == str(fold)).to_numpy()].mean()) for fold in range(FOLDS)]
    assert len({*each}) > 1
    assert pd.read_csv(report / "folds.csv")["accuracy"].tolist() == pytest.approx(each)
    metrics = metrics_of(report)
    folds = metrics["folds"]
    assert folds["mean"]["accuracy"] == pytest.approx(np.mean(each))
    assert folds["standard_deviation"]["accuracy"] == pytest.approx(np.std(each, ddof=1))
    assert metrics["accuracy"] == folds["pooled"]["accuracy"] == pytest.approx(right.mean())
    assert metrics["n"] == 60 and metrics["held_out"] and np.sum(metrics["performance"]["confusion"]) == 60
    assert metrics["performance"]["resampled_by"] == "subject"
    assert metrics["provenance"]["facts"]["subjects shared with training"] == "0"

    subject_dependent = predictions_by_hand(folder, tmp_path / "models", "subject_dependent_fold")[1].mean()
    (difference,) = folds["differences"].values()
    assert difference["accuracy"]["value"] == pytest.approx(subject_dependent - right.mean())
    low, high = difference["accuracy"]["interval"]
    assert low <= difference["accuracy"]["value"] <= high and low < high
    strict_row, loose_row = folds["protocols"]
    assert loose_row["accuracy"] == pytest.approx(subject_dependent)
    known = 0
    for row in table.to_dict("records"):
        apart = {row["subject_dependent_fold"], str((int(row["subject_dependent_fold"]) + 1) % FOLDS)}
        known += row["subject"] in set(table.loc[~table["subject_dependent_fold"].isin(apart), "subject"])
    assert loose_row["known_subject_images"] == known > 0 and strict_row["known_subject_images"] == 0

    _, averaged = predictions_by_hand(folder, tmp_path / "models", "fold", flipped=True)
    assert metrics["tta"]["averaged"]["accuracy"] == pytest.approx(averaged.mean())
    assert metrics["tta"]["mcnemar"]["only_b"] == (averaged & ~right).sum()
    assert metrics["tta"]["temperature"] == 1
    page = (report / "report.html").read_text()
    assert "Subject-independent: all images" in page and "a single network" in page
    again, _ = evaluate("--flip")
    assert "unchanged" in again.stdout and folds["summary"] in again.stdout
    other = fold_file(tmp_path / "models" / "best.keras", 1, subject_dependent=True)
    write_card(replace(read_card(other), hyperparameters={"epochs": 9}), other)
    done = evaluate()[0]
    assert "unchanged" not in done.stdout and "different settings (epochs)" in done.stdout


def test_folds_without_subjects_carry_a_warning(evaluate, train, folder):
    folds = [str(row % FOLDS) for row in range(60)]
    change_split(folder, lambda table: table.drop(columns="subject_dependent_fold").assign(subject="", fold=folds))
    train()
    done, report = evaluate()
    assert done.returncode == 0, done.stderr
    page = (report / "report.html").read_text()
    assert "a subject may be in training and test" in page and "Subject-independent:" not in page


def test_networks_that_may_know_their_test_images_are_refused(evaluate, train, folder, tmp_path):
    assert refused(evaluate()[0], "0.keras", "fold 0, 1, 2", "step3_best_model --dataset stripes --data", "--folds 3")
    assert refused(evaluate("--split", "test", "--calibrate")[0], "leave out --split, --calibrate")
    train(fold_of_card=0)  # such as files that were renamed
    assert refused(evaluate()[0], "1.keras is not the network of fold 1 of 3", "'number': 0", "train again")
    train()
    last = fold_file(tmp_path / "models" / "best.keras", 2)
    write_card(replace(read_card(last), fold=None), last)
    assert refused(evaluate()[0], "2.keras is not the network of fold 2")
    last.unlink()
    assert refused(evaluate()[0], "2.keras does not exist", "no network was trained for fold 2 ", "step3_best_model")
    train()
    change_split(folder, lambda table: split_table(table, Strategy.FOLDS, folds=FOLDS, seed=8))
    assert refused(evaluate()[0], "0.keras was trained on another split", "train again")
    change_split(folder, lambda table: table.assign(fold="a"))
    assert refused(evaluate()[0], "column fold does not contain all numbers")
    change_split(folder, lambda table: table.drop(columns=["fold", "subject_dependent_fold"]))
    assert refused(evaluate()[0], "no folds", "--strategy folds")
    assert not (tmp_path / "reports").exists()


def test_training_refuses_folds_that_the_split_does_not_have(run_step, folder, tmp_path):
    def train(*options):
        roots = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "models"]
        return run_step("training.step3_best_model", *roots, *options)

    assert refused(train("--folds", 10), "--folds 10: the split has 3 folds; give --folds 3, or", "--folds 10")
    assert refused(train("--subject-dependent"), "--subject-dependent needs --folds")
    change_split(folder, lambda table: table.drop(columns="subject_dependent_fold"))
    assert refused(train("--folds", 3, "--subject-dependent"), "no subject dependent folds", "--strategy folds")
    change_split(folder, lambda table: table.assign(subject=""))
    assert refused(train("--folds", 3, "--subject-dependent"), "not every image has a subject")
    change_split(folder, lambda table: table.drop(columns="fold"))
    assert refused(train("--folds", 3), "no folds", "--strategy folds")


@pytest.mark.system
def test_readme_commands_for_ckplus(run_step, tmp_path):
    """Few people and folds, and one epoch of a tiny network."""
    write_ckplus_tree(tmp_path / "CK+", subjects=16)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"config": TINY}))
    data, models = ("--dataset", "ck", "--data", tmp_path / "data"), ("--models", tmp_path / "models")
    train = ("training.step3_best_model", *data, *models, "--settings", settings, "--folds", FOLDS)

    def step(module, *arguments):
        done = run_step(module, *arguments)
        assert done.returncode == 0, (module, done.stderr)
        return done.stdout

    step("preprocessing.step1_inventory", *data, "--source", tmp_path / "CK+", "--frames", "last:3")
    step("preprocessing.step2_face_crops", *data)
    rare = ["contempt", "fear", "sadness"]  # shown by too few people for three folds
    without = [option for emotion in rare for option in ("--without", emotion)]
    step("preprocessing.step3_split", *data, "--strategy", "folds", "--folds", FOLDS, *without)
    printed = step(*train)
    cards = [read_card(tmp_path / "models" / "ck" / "best-folds" / f"{fold}.keras") for fold in range(FOLDS)]
    assert [card.fold for card in cards] == [{"number": k, "of": FOLDS, "column": "fold"} for k in range(FOLDS)]
    assert all(f"fold {fold}: dev accuracy {card.dev_accuracy:.4f}" in printed for fold, card in enumerate(cards))
    mean = np.mean([float(card.dev_accuracy or 0) for card in cards])
    assert f"dev accuracy {mean:.4f} ± " in printed and len({card.split_hash for card in cards}) == FOLDS
    (tmp_path / "models" / "ck" / "best-folds" / "1.keras").unlink()
    assert step(*train).count("unchanged: ") == FOLDS - 1
    step(*train, "--subject-dependent")

    step("evaluation.model_evaluation", *data, *models, "--reports", tmp_path / "reports", "--folds", "--quick")
    report = tmp_path / "reports" / "ck" / "best" / "folds-labels-quick"
    metrics, table = metrics_of(report), read_table(tmp_path / "data" / "ck", "split.csv")
    scored = table[table["fold"] != ""]
    assert metrics["n"] == len(scored) == len(pd.read_csv(report / "predictions.csv"))
    assert not set(rare) & set(metrics["labels"])
    _, subject_dependent, cross_dataset, peaks = metrics["folds"]["protocols"]
    assert subject_dependent["protocol"] == "subject-dependent folds"
    assert (peaks["protocol"], peaks["n"]) == ("last frame of each sequence", metrics["n"] / 3)
    assert cross_dataset["protocol"].startswith("cross-dataset: pretrained.keras, trained on fer2013 (")
    released = EmotionClassifier.load(PATHS.pretrained)
    images = [read_image(tmp_path / "data" / "ck" / path, (48, 48), "grayscale") for path in scored["face_path"]]
    columns = [released.labels.index(label) for label in metrics["labels"]]
    likeliest = np.array(metrics["labels"])[released.predict(np.array(images))[:, columns].argmax(axis=1)]
    assert cross_dataset["accuracy"] == pytest.approx((likeliest == scored["emotion"]).mean())
    assert (cross_dataset["n"], cross_dataset["known_subject_images"]) == (metrics["n"], 0)
    change = metrics["folds"]["differences"][cross_dataset["protocol"]]["accuracy"]["value"]
    assert change == pytest.approx(cross_dataset["accuracy"] - metrics["accuracy"])
    page = (report / "report.html").read_text()
    assert f"fear ({(table['emotion'] == 'fear').sum()} images)" in page.split("Left out: ")[1]
