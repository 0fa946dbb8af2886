import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from cards import model_card
from training.fine_tuning import Start

from configuration import NO_AUGMENTATION, TrainingConfig
from evaluation.sections.provenance import protocol
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.model_card import ModelCard, read_card
from preprocessing.tables import read_table, split_hash, write_table
from training.distillation import TaughtModel, Teachers, read_teachers, teach
from training.models import build
from training.settings import read_settings
from training.trainer import build_trainer, read_batches

SILENT: Any = 0  # Keras types it as text


@pytest.fixture
def teacher(make_dataset, tiny_model):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    return folder, table, tiny_model(name="teacher.keras", trained_on=folder, split_hash=split_hash(table))


def protocol_of(card: dict[str, Any]) -> str:
    predictions: Any = SimpleNamespace(
        card=ModelCard.from_json(card, Path("card.json")), by_crowd=False, fold_column=""
    )
    return protocol(predictions)


def test_targets_are_labels_and_the_mean_of_the_teachers_answers_to_both_mirror_images(teacher, tiny_model):
    folder, table, first = teacher
    second = tiny_model(name="second.keras", dataset="elsewhere")
    card = json.loads(second.with_suffix(".json").read_text())
    settings = TrainingConfig(teachers=(str(first), str(second)), distillation_weight=0.25)
    train, dev, about = read_batches(table, folder, settings)
    teachers = read_teachers(settings.teachers, train.classes, about, table)
    teach(train, teachers, settings.distillation_weight, smoothing=0.1)
    plain, plain_dev, _ = read_batches(table, folder, TrainingConfig())
    np.testing.assert_array_equal(train.images, plain.images)
    second.with_suffix(".json").write_text(json.dumps({**card, "temperature": 2.0}))
    taught_later, _, _ = read_batches(table, folder, settings)
    teach(taught_later, [Start.read(file) for file in (first, second)], settings.distillation_weight, smoothing=0.1)
    np.testing.assert_array_equal(np.asarray(taught_later.labels), np.asarray(train.labels))
    second.with_suffix(".json").write_text(json.dumps(card))
    told = [
        EmotionClassifier.load(file).predict(images)
        for file in (first, second)
        for images in (plain.images, np.ascontiguousarray(plain.images[:, :, ::-1]))
    ]
    smooth = 0.9 * np.eye(3)[np.asarray(plain.labels)] + 0.1 / 3
    expected = 0.75 * smooth + 0.25 * np.mean(told, axis=0)
    targets, judged, expected_judged = map(np.asarray, (train.labels, dev.labels, plain_dev.labels))
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    np.testing.assert_array_equal(judged, expected_judged)  # judged by labels alone
    assert [teacher.source().file.rpartition("/")[2] for teacher in teachers] == [
        "teacher.keras",
        "second.keras",
    ]


def test_asked_about_views_each_teacher_answers_about_the_image_or_its_mirror_image(teacher, tiny_model):
    files = [str(teacher[2]), str(tiny_model(name="second.keras", labels=("anger", "happiness", "neutral")))]
    second: Any = keras.models.load_model(files[1])
    second.layers[-1].set_weights([-3 * weight for weight in second.layers[-1].get_weights()])
    save(second, read_card(Path(files[1])), Path(files[1]))
    images = np.random.default_rng(3).integers(0, 256, (6, 24, 24, 1)).astype(np.uint8)
    teachers = Teachers(files, ("anger", "happiness", "neutral"), any_size=False, seed=1)
    assert np.asarray(teachers(images)).tolist() == [[0.0] * 3] * 6  # nobody is asked when it is judged
    assert not teachers.trainable_variables
    sides = [np.ascontiguousarray(side) for side in (images, images[:, :, ::-1])]
    first, other = ([EmotionClassifier.load(Path(file)).predict(side) for side in sides] for file in files)
    possible = np.stack([(one + two) / 2 for one in first for two in other])
    told = np.stack([np.asarray(teachers(images, training=True)) for _ in range(60)])
    distance = np.abs(told[:, None] - possible).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-5
    chosen = distance.argmin(axis=1)
    assert {tuple(np.unique(chosen[:, image])) for image in range(6)} == {(0, 1, 2, 3)}
    assert len(np.unique(chosen[0])) > 1  # not the whole batch alike


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_what_a_network_learns_by_views_is_labels_and_answers_in_their_shares(share):
    random = np.random.default_rng(5)
    values, told = random.normal(size=(8, 4)).astype(np.float32), random.dirichlet([1] * 3, 8).astype(np.float32)
    labels = np.eye(3, dtype=np.float32)[random.integers(0, 3, 8)]
    inputs: Any = keras.Input((7,))
    predictions = keras.layers.Dense(3, activation="softmax")(inputs[:, :4])
    model = TaughtModel(inputs, [predictions, inputs[:, 4:]], share, 0.1, name="trainer")
    model.compile(keras.optimizers.SGD(0.0), keras.losses.CategoricalCrossentropy(), metrics=["accuracy"])
    given = np.concatenate([values, told], axis=1)
    said = model.predict(given, verbose=SILENT)[0]
    smooth = 0.9 * labels + 0.1 / 3
    targets = (1 - share) * smooth + share * told
    right = (said.argmax(1) == labels.argmax(1)).mean()
    learnt: Any = model.train_on_batch(given, labels, return_dict=True)
    assert learnt["loss"] == pytest.approx(-(targets * np.log(said)).sum(1).mean(), abs=1e-5)
    judged: Any = model.test_on_batch(given, labels, return_dict=True)
    assert judged["loss"] == pytest.approx(-(labels * np.log(said)).sum(1).mean(), abs=1e-5)
    assert learnt["accuracy"] == judged["accuracy"] == pytest.approx(right)


def test_a_network_learns_what_its_teacher_answers_about_the_views_it_sees(teacher, tmp_path):
    folder, table, _ = teacher
    keras.utils.set_random_seed(3)
    body = build("vgg", (24, 24, 1), 3, filters=(4,), convolutions=1)
    kernel, bias = body.layers[-2].get_weights()
    body.layers[-2].set_weights([30 * kernel, bias])  # so that its answers differ
    save(body, model_card(), tmp_path / "wise.keras")
    config = TrainingConfig(
        filters=(8,), schedule="constant", batch_size=16, precision="float32", distillation_weight=1.0,
        teacher_targets="per_view",
        teachers=(str(tmp_path / "wise.keras"),), augmentation=replace(NO_AUGMENTATION, flip=True, crop=2 / 3),
    )  # fmt: skip
    train, _, _ = read_batches(table, folder, config)
    network, trainer = build_trainer(train, config)
    assert {id(weight) for weight in trainer.trainable_variables} == {id(w) for w in network.trainable_variables}
    taught: Any = trainer.get_layer("teachers")
    assert not {id(weight) for weight in network.weights} & {id(weight) for weight in taught.weights}
    before = [np.array(weight) for weight in taught.get_weights()]
    asked: list[tuple[int, ...]] = []
    first = taught.networks[0].layers[1]
    call = first.call
    first.call = lambda images, **options: (asked.append(tuple(images.shape[1:3])), call(images, **options))[1]
    trainer.fit(train, epochs=40, verbose=SILENT)
    assert set(asked) == {(16, 16)}  # it is shown what the network is shown
    for old, new in list(zip(before, taught.get_weights(), strict=True))[:-1]:  # the last is the random numbers' state
        np.testing.assert_array_equal(old, new)
    told, learnt = (np.argmax(model.predict(train.images, verbose=SILENT), axis=1) for model in (body, network))
    assert len(np.unique(told)) > 1 and (learnt == told).mean() > 0.9
    trainer.save_weights(tmp_path / "state.weights.h5")
    resumed, trainer_again = build_trainer(train, config)
    trainer_again.load_weights(tmp_path / "state.weights.h5")
    np.testing.assert_array_equal(resumed.predict(train.images, verbose=SILENT).argmax(axis=1), learnt)


def test_a_distilled_network_says_so_and_its_card_makes_it_again(teacher, tmp_path, run_step):
    folder, _, first = teacher
    (tmp_path / "quick.json").write_text(json.dumps({"config": {"epochs": 1, "batch_size": 8, "filters": [4]}}))
    command = ["training.step3_best_model", "--dataset", folder.name, "--data", folder.parent, "--models", tmp_path]
    done = run_step(*command, "--settings", tmp_path / "quick.json", "--teacher", first, "--precision", "float32")
    assert done.returncode == 0 and "asking teacher.keras" in done.stdout, done.stderr
    file = tmp_path / folder.name / "best.json"
    card = json.loads(file.read_text())
    said = "no extra labels, distilled from teacher.keras (trained on stripes (labels))"
    assert protocol_of(card).endswith(said)
    assert read_settings(file).teachers == (str(first),)
    again = run_step(*command, "--settings", file)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    assert Start.read(file.with_suffix(".keras")).trained_on == ["stripes (labels)"]
    begun = {**card, "pretrained": {**card["teachers"][0], "file": "models/begun.keras"}}
    assert protocol_of(begun).endswith(
        "no extra labels, initialised from begun.keras (trained on stripes (labels)), distilled from teacher.keras "
        "(trained on stripes (labels))"
    )
    begun["pretrained"]["trained_on"] = ["elsewhere (labels)", "stripes (labels)"]
    assert "extra data: initialised from begun.keras (trained on elsewhere" in protocol_of(begun)
    assert "no extra" not in protocol_of(begun)
    votes = {**card, "teachers": [{**card["teachers"][0], "trained_on": ["stripes (crowd votes)"]}]}
    assert "extra labels, distilled from teacher.keras (trained on stripes (crowd votes))" in protocol_of(votes)


def test_teachers_that_cannot_be_learnt_from_are_refused_in_one_line(teacher, tiny_model, tmp_path, run_step):
    folder, table, first = teacher
    command = ["training.step3_best_model", "--dataset", folder.name, "--data", folder.parent, "--models", tmp_path]
    file = {"file": "older.keras", "sha256": "0"}
    older = file | {"dataset": folder.name, "split_hash": "0"}
    elsewhere = file | {"dataset": "elsewhere", "split_hash": "1", "splits": [["elsewhere", "1"], [folder.name, "0"]]}
    wrong = {
        tmp_path / "none.keras": "none.keras does not exist",
        tiny_model(labels=("anger", "happiness"), name="two.keras"): "knows anger, happiness; it must know",
        tiny_model(size=48, name="large.keras"): "takes 48x48 pixels gray",
        tiny_model(name="old.keras", dataset=folder.name, split_hash="0", listed=False): "trained on another split of",
        tiny_model(name="tuned.keras", pretrained=older, listed=False): "tuned.keras was trained on another split",
        tiny_model(name="taught.keras", teachers=[elsewhere], listed=False): "taught.keras was trained on another",
    }
    for file, words in wrong.items():
        done = run_step(*command, "--teacher", file)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    done = run_step(*command, "--teacher", first, "--output", first)
    assert done.returncode == 2 and "would replace" in done.stderr and "--output" in done.stderr and first.is_file()
    taught = {"file": "gone.keras", "sha256": "0", "command": "python -m some.step"}
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"hyperparameters": {"teachers": ["0"], "network": "project1", "epochs": 1},
                                "teachers": [taught]}))  # fmt: skip
    done = run_step(*command, "--settings", card)
    assert done.returncode == 2 and "gone.keras, which is gone" in done.stderr
    assert "it was made by: python -m some.step" in done.stderr
    done = run_step(*command, "--settings", card, "--teacher", first, "--output", tmp_path / "new.keras")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "new.json").read_text())
    assert [entry["file"] for entry in told["teachers"]] == [str(first)]
    assert told["hyperparameters"]["network"] == "project1"
    folds = pd.Series([str(row % 3) for row in range(len(table))], index=table.index)
    write_table(table.assign(fold=folds), folder / "split.csv")
    done = run_step(*command, "--teacher", first, "--folds", "3")
    assert done.returncode == 2 and "teachers do not go with --folds" in done.stderr
    done = run_step(*command, "--pretrained", first, "--folds", "3")
    assert done.returncode == 2 and f"{first}, or a network in its lineage, was trained" in done.stderr
    done = run_step(*command, "--teacher-targets", "per_view")
    assert done.returncode == 2 and "name them by --teacher A.keras" in done.stderr
    for teacher_targets, words in (
        ("per_view", f"teacher {first}: network"),
        ("twice", "not one of once, views"),
    ):
        card.write_text(json.dumps({"config": {"teacher_targets": teacher_targets, "augmentation": {"crop": 0.75}}}))
        done = run_step(*command, "--teacher", first, "--settings", card)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
