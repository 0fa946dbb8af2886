import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import ROOT, files_of_at_most

from common.errors import InputError
from common.processes import exclusive_lock
from configuration import NO_AUGMENTATION, AugmentationConfig, TrainingConfig
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import RELEASED, check_output
from inference.lineage import hashes_file
from inference.model_card import card_path
from preprocessing.tables import read_table, usable, write_table
from training import models
from training.data import flow_from_dataframe, read_crops
from training.trainer import read_batches, train_network

TINY = TrainingConfig(network="tiny", epochs=6, batch_size=8, learning_rate=0.02, precision="float32")


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    def build_tiny(input_shape, classes):
        inputs = keras.Input(input_shape, dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.AveragePooling2D(3)(x)
        x = keras.layers.Flatten()(x)
        x = keras.layers.Dropout(0.2)(x)
        outputs = keras.layers.Dense(classes, activation="softmax", dtype="float32")(x)
        return keras.Model(inputs, outputs)

    monkeypatch.setitem(models.NETWORKS, "tiny", build_tiny)


def history_of(models_folder: Path) -> list[dict[str, str]]:
    (file,) = models_folder.glob("runs/*/history.csv")
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def accuracy_on(folder: Path, model_file: Path, split: str) -> float:
    rows = usable(read_table(folder, "split.csv")).query("split == @split")
    classifier = EmotionClassifier.load(model_file)
    flow = flow_from_dataframe(rows, folder, target_size=(24, 24), shuffle=False)
    prediction = np.array(classifier.labels)[classifier.predict(flow.images).argmax(axis=1)]
    return float(np.mean(prediction == rows["emotion"].to_numpy()))


def fit(folder: Path, model_file: Path, config: TrainingConfig = TINY) -> bool:
    return train_network(read_table(folder, "split.csv"), folder, model_file, config, "python -m some.step")


def test_learns_and_leaves_the_best_epoch_with_its_card_curves_and_history(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    # Little augmentation: the bar's place is the class, and flips alone keep it.
    assert fit(folder, model_file, TrainingConfig(**{**vars(TINY), "epochs": 12, "augmentation": NO_AUGMENTATION}))
    assert accuracy_on(folder, model_file, "test") == 1.0
    card = json.loads(model_file.with_suffix(".json").read_text())
    history = history_of(tmp_path / "models")
    best = max(history, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert card["epoch_chosen"] == int(best["epoch"]) and card["epochs_run"] == len(history) == 12
    assert accuracy_on(folder, model_file, "dev") == pytest.approx(float(best["val_accuracy"]))
    assert card["labels"] == ["anger", "happiness", "neutral"] and card["hyperparameters"]["learning_rate"] == 0.02
    assert card["command"] == "python -m some.step" and card["dataset"] == folder.name and card["scores"] == []
    assert any("bias by any of these is not measured" in line and "race" in line for line in card["caveats"])
    (curves,) = tmp_path.glob("models/runs/*/curves.png")
    assert curves.stat().st_size > 5000
    assert float(history[0]["learning_rate"]) > float(history[-1]["learning_rate"]) >= 0  # cosine


def test_the_saved_network_holds_no_augmentation(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    fit(folder, model_file)
    network: Any = keras.models.load_model(model_file, safe_mode=True)  # custom layers would be refused here
    assert not [layer.name for layer in network.layers if "random" in layer.name or "augmentation" in layer.name]
    assert network.count_params() == 8 * 8 * 3 + 3


def test_a_finished_run_is_not_repeated_and_other_settings_are_another_run(make_dataset, tmp_path, capsys):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    assert fit(folder, model_file)
    written = model_file.stat().st_mtime_ns
    assert not fit(folder, model_file)
    assert "nothing to do" in capsys.readouterr().out and model_file.stat().st_mtime_ns == written
    cut(model_file)
    assert fit(folder, model_file)  # a damaged network is written again
    EmotionClassifier.load(model_file)
    assert fit(folder, model_file, TrainingConfig(**{**vars(TINY), "seed": 8}))
    assert len(list(tmp_path.glob("models/runs/*"))) == 2


def test_an_interrupted_run_ends_as_an_uninterrupted_one(make_dataset, tmp_path, monkeypatch):
    folder = make_dataset()
    fit(folder, tmp_path / "straight" / "best.keras")

    class KilledError(Exception):
        pass

    replace_file = Path.replace

    def die_before_the_name(file, target):
        if target.name.startswith("state-0003"):
            raise KilledError  # between writing the state and giving it its name
        return replace_file(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die_before_the_name)
        with pytest.raises(KilledError):
            fit(folder, tmp_path / "resumed" / "best.keras")
    fit(folder, tmp_path / "resumed" / "best.keras")
    straight, resumed = history_of(tmp_path / "straight"), history_of(tmp_path / "resumed")
    assert [row["epoch"] for row in resumed] == [row["epoch"] for row in straight]
    for ours, theirs in zip(resumed, straight, strict=True):
        for name in theirs:
            assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-4), (name, ours["epoch"])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:30])


def flip_a_bit(file: Path) -> None:
    """Change a byte within the zip's longest member, as a bad disk does."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        longest = max(archive.infolist(), key=lambda member: member.file_size)
    content[longest.header_offset + longest.file_size // 2] ^= 1
    file.write_bytes(content)


DAMAGES = (
    lambda run: cut(run / "run.json"),
    lambda run: (run / "run.json").write_text("{}"),
    lambda run: (run / "history.csv").write_text("epoch,val_accuracy\n1\n2\n3\n4\n5\n6\n"),
    lambda run: (run / "history.csv").write_text("epoch,val_accuracy,val_loss\n" + "1,0.5,1\n" * 6),
    lambda run: (run / "history.csv").write_bytes(b"\xff\xfe"),
    lambda run: cut(*run.glob("state-*")),
    lambda run: cut(*run.glob("best-*")),
    lambda run: flip_a_bit(*run.glob("state-*")),
    lambda run: flip_a_bit(*run.glob("best-*")),
    lambda run: next(run.glob("best-*")).write_bytes(next(run.glob("state-*")).read_bytes()),
    lambda run: next(run.glob("best-*")).write_bytes(b"\x93NUMPY\x01\x00" + b"x" * 100),
    lambda run: next(run.glob("best-*")).unlink(),
)


def test_a_damaged_run_folder_is_named(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    fit(folder, model_file)
    model_file.unlink()
    (run,) = tmp_path.glob("models/runs/*")
    shutil.copytree(run, tmp_path / "whole")
    for spoil in DAMAGES:
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "whole", run)
        spoil(run)
        with pytest.raises(InputError, match=r"the run in .*best-.* is damaged .*; remove that folder"):
            fit(folder, model_file)


def test_two_processes_never_train_the_same_run(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    fit(folder, model_file)
    model_file.unlink()
    (run,) = tmp_path.glob("models/runs/*")
    with exclusive_lock(run), pytest.raises(InputError, match=r"in use by process .* another --output"):
        fit(folder, model_file)
    assert fit(folder, model_file)


@pytest.mark.parametrize("now", ["other images", "step 2 is at work"])
def test_images_that_were_replaced_after_the_table_was_read_are_refused(make_dataset, tmp_path, now, tiny_model):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    if now == "other images":  # under the old names
        write_table(table.assign(pixel_hash=table["pixel_hash"] + "-new"), folder / "split.csv")
    else:
        (folder / "split.csv").unlink()
    with pytest.raises(InputError, match=r"stripes changed while they were read; wait for steps 1 to 3, then run"):
        train_network(table, folder, tmp_path / "models" / "best.keras", TINY, "python -m some.step")
    assert not (tmp_path / "models").exists()
    with pytest.raises(InputError, match=r"stripes changed while they were read; wait for steps 1 to 3, then run"):
        read_crops(EmotionClassifier.load(tiny_model()), folder, usable(table))


def test_a_full_disk_names_the_file_and_the_run_goes_on_exactly(make_dataset, tmp_path, capsys):
    folder, model_file = make_dataset(), tmp_path / "full" / "best.keras"
    config = TrainingConfig(**{**vars(TINY), "epochs": 2})
    fit(folder, tmp_path / "straight" / "best.keras", config)
    for size, name in ((500, "run.json"), (2500, "state-0001.npz"), (30_000, "curves.png")):
        with files_of_at_most(size), pytest.raises(OSError, match="File too large") as caught:
            fit(folder, model_file, config)
        assert Path(caught.value.filename).name == name
        assert not list(tmp_path.glob("full/**/.*")) and not model_file.exists() and not card_path(model_file).exists()
    assert fit(folder, model_file, config)
    for row, expected in zip(history_of(tmp_path / "full"), history_of(tmp_path / "straight"), strict=True):
        assert {n: float(v) for n, v in row.items()} == pytest.approx({n: float(v) for n, v in expected.items()}), row


def test_a_full_disk_leaves_an_earlier_network_and_its_card_as_they_were(tiny_model):
    file = tiny_model()
    files = [file, card_path(file), hashes_file(file)]
    before = [path.read_bytes() for path in files]
    for size, failing in ((file.stat().st_size // 2, file), (100, card_path(file))):
        with files_of_at_most(size), pytest.raises(OSError, match="File too large") as caught:
            tiny_model(labels=("fear", "anger", "disgust"))
        assert caught.value.filename == str(failing)
    assert [path.read_bytes() for path in files] == before and len(list(file.parent.iterdir())) == 3


def test_a_forced_training_starts_anew_and_goes_on_when_it_was_interrupted(make_dataset, tmp_path, monkeypatch, capsys):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    table, config = read_table(folder, "split.csv"), TrainingConfig(**{**vars(TINY), "epochs": 1})

    def train(**more) -> bool:
        return train_network(table, folder, model_file, config, "python -m some.step", **more)

    train()
    assert not train()
    old = card_path(model_file).read_bytes()
    replace_file = Path.replace

    def die_at_the_end(file, target):
        if target == model_file:
            raise KeyboardInterrupt
        return replace_file(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die_at_the_end)
        capsys.readouterr()
        with pytest.raises(KeyboardInterrupt):
            train(force=True)
    assert "5/5 - " in (printed := capsys.readouterr().out) and "going on" not in printed
    assert train() and "going on after epoch 1 of 1" in (printed := capsys.readouterr().out)
    assert "\n1 epoch (" in printed
    new = json.loads(card_path(model_file).read_text())
    assert new["run"] == json.loads(old)["run"] and new["started"] > json.loads(old)["started"]
    assert not train()


def test_a_new_version_of_the_code_that_shapes_a_run_is_another_run(make_dataset, tmp_path, monkeypatch, capsys):
    folder, runs = make_dataset(), tmp_path / "models" / "runs"
    read_batches(read_table(folder, "split.csv"), folder, TINY)  # fills the cache of images

    def start() -> set[str]:
        with files_of_at_most(4000), pytest.raises(OSError, match="File too large"):
            fit(folder, tmp_path / "models" / "best.keras")
        return {run.name for run in runs.iterdir()}

    assert len(start()) == len(start()) == 1
    for number, module in enumerate(("models", "augmentation", "data", "distillation", "trainer"), 2):
        monkeypatch.setattr(f"training.{module}.VERSION", 1_000)
        assert len(start()) == number


@pytest.mark.parametrize("released", RELEASED, ids=lambda file: file.name)
def test_no_spelling_of_a_released_name_is_accepted_for_a_new_network(tmp_path, monkeypatch, released):
    (tmp_path / "link").symlink_to(released.parent)
    (tmp_path / "link.keras").symlink_to(released)
    monkeypatch.chdir(ROOT / "tests")
    for file in (
        released,
        Path(os.path.relpath(released)),
        released.parent / ".." / "models" / released.name,
        released.with_name(released.name.replace("e", "E", 1)),
        tmp_path / "link" / released.name,
        tmp_path / "link.keras",
    ):
        with pytest.raises(InputError, match=f"would replace the released network {released.name}; give another name"):
            check_output(file)
    check_output(tmp_path / released.name)
    check_output(released.with_name("mine.keras"))


@pytest.mark.parametrize("step", ["step1_baseline", "step3_best_model", "step3_best_model --folds 3",
                                  "step4_sequence_model", "step4_sequence_model --folds 3"])  # fmt: skip
def test_every_step_that_saves_a_network_refuses_a_released_name(make_dataset, tmp_path, monkeypatch, run_step, step):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    write_table(table.assign(fold=[str(n % 3) for n in range(len(table))]), folder / "split.csv")
    released = tmp_path / "models" / folder.name / "baseline_project1.keras"
    released.parent.mkdir(parents=True)
    released.write_bytes(b"kept")
    monkeypatch.setattr("inference.keras_networks.RELEASED", (released,))
    module, *options = f"training.{step}".split()
    output = [] if "step1" in step else ["--output", released]
    places = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "models"]
    done = run_step(module, *places, *options, *output)
    assert done.returncode == 2 and "would replace the released network" in done.stderr, done.stderr
    assert [file.name for file in released.parent.iterdir()] == [released.name] and released.read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 2.0}, "momentum 2.0 is not in 0 to 1"),
        ({"weight_decay": -1.0}, "weight decay -1.0"),
        ({"weight_decay": float("nan")}, "weight decay nan"),
        ({"augmentation": AugmentationConfig(small_erasing_count=-1)}, "scars -1"),
        ({"augmentation": AugmentationConfig(small_erasing_length=-5)}, "scar length -5"),
        ({"augmentation": AugmentationConfig(rotation=float("nan"))}, "rotation nan"),
        ({"augmentation": AugmentationConfig(zoom=float("inf"))}, "zoom inf"),
        ({"augmentation": AugmentationConfig(contrast=-3.0)}, "contrast -3.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make_dataset, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        fit(make_dataset(), tmp_path / "models" / "best.keras", TrainingConfig(**{**vars(TINY), **settings}))


def test_stops_when_dev_accuracy_no_longer_grows(make_dataset, tmp_path):
    folder = make_dataset()
    patient = TrainingConfig(**{**vars(TINY), "epochs": 60, "patience": 3, "augmentation": NO_AUGMENTATION})
    fit(folder, tmp_path / "models" / "best.keras", patient)
    accuracies = [float(row["val_accuracy"]) for row in history_of(tmp_path / "models")]
    assert len(accuracies) < 60 and len(accuracies) - 1 - int(np.argmax(accuracies)) == 3


def test_an_emotion_without_a_training_image_is_named(make_dataset, tmp_path):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    table.loc[(table["emotion"] == "happiness") & (table["split"] == "train"), "split"] = ""
    write_table(table, folder / "split.csv")
    with pytest.raises(InputError, match="no training image shows happiness"):
        fit(folder, tmp_path / "models" / "best.keras")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"network": "resnet"},
        {"optimizer": "lion"},
        {"schedule": "linear"},
        {"precision": "int8"},
        {"epochs": 0},
        {"batch_size": 0},
        {"epochs": 4096},
        {"seed": -1},
        {"seed": 1 << 32},
        {"learning_rate": 0.0},
        {"targets": "crowd"},
        {"label_smoothing": 1.0},
    ],
)
def test_settings_that_cannot_be_used_are_refused_with_their_value(make_dataset, tmp_path, wrong):
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fit(make_dataset(), tmp_path / "models" / "best.keras", TrainingConfig(**{**vars(TINY), **wrong}))


def test_a_training_killed_in_the_middle_goes_on_when_started_again(make_dataset, tmp_path):
    folder = make_dataset()
    module = ["-m", "training.step1_baseline", "--dataset", folder.name, "--data", folder.parent, "--epochs", "40"]
    command = [sys.executable, *map(str, module), "--models", str(tmp_path / "models")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    runs = tmp_path / "models" / folder.name / "runs"
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/state-000[2-9]*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list((tmp_path / "models" / folder.name).glob("*.keras"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "going on after epoch" in done.stdout
    history = history_of(tmp_path / "models" / folder.name)
    assert [int(row["epoch"]) for row in history] == list(range(1, len(history) + 1))
    EmotionClassifier.load(tmp_path / "models" / folder.name / "baseline_project1.keras")


@pytest.mark.parametrize("name", ["best.h5", "best", "folder.keras"])
def test_a_name_that_no_network_can_be_saved_under_is_refused_before_the_training(make_dataset, tmp_path, name):
    (tmp_path / "models" / "folder.keras").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{name} is not the name of a \.keras file"):
        fit(make_dataset(), tmp_path / "models" / name)
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["folder.keras"]


def test_one_emotion_alone_is_refused(make_dataset, tmp_path):
    with pytest.raises(InputError, match="shows anger; at least two"):
        fit(make_dataset(emotions=("anger",)), tmp_path / "models" / "best.keras")


def test_a_training_that_diverges_says_so_and_saves_nothing(make_dataset, tmp_path, monkeypatch):
    def build_diverging(input_shape, classes):
        inputs = keras.Input(input_shape, dtype="uint8")
        x = keras.layers.Flatten()(keras.layers.Rescaling(1e30)(inputs))
        return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax", dtype="float32")(x))

    monkeypatch.setitem(models.NETWORKS, "diverging", build_diverging)
    wild = TrainingConfig(network="diverging", epochs=2, optimizer="sgd", learning_rate=9.0, precision="float32")
    with pytest.raises(InputError, match=r"diverged.*smaller learning rate"):
        fit(make_dataset(), tmp_path / "models" / "best.keras", wild)
    assert not list((tmp_path / "models").glob("*.keras"))


@pytest.mark.parametrize("change", [{"align": "box"}, {"detect": True}])
def test_other_crops_of_the_same_split_are_trained_on_anew(make_dataset, tmp_path, capsys, change):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    fit(folder, model_file)
    crops = json.loads((folder / "faces.json").read_text())
    crops["options"] |= change
    (folder / "faces.json").write_text(json.dumps(crops))
    capsys.readouterr()
    assert fit(folder, model_file)
    assert "going on" not in (printed := capsys.readouterr().out) and "Epoch 1/6" in printed
    assert json.loads(model_file.with_suffix(".json").read_text())["crops"] == crops["options"]
    assert not fit(folder, model_file)


def test_crops_of_another_size_do_not_meet_the_weights_of_the_earlier_run(make_dataset, tmp_path):
    model_file = tmp_path / "models" / "best.keras"
    fit(make_dataset(), model_file)
    assert fit(make_dataset(size=48, name="larger"), model_file)
    assert EmotionClassifier.load(model_file).input_size == 48


@pytest.mark.parametrize("content", [None, "{", "[]", '{"options": {"size": 24}}'])
def test_crops_of_unknown_making_are_refused(make_dataset, tmp_path, content):
    folder = make_dataset()
    if content is None:
        (folder / "faces.json").unlink()
    else:
        (folder / "faces.json").write_text(content)
    with pytest.raises(InputError, match=r"faces\.json, which says how the crops were made.*step2_face_crops"):
        fit(folder, tmp_path / "models" / "best.keras")


def with_votes(folder: Path, by_emotion: dict[str, dict[str, int]]) -> None:
    """Give a data set crowd votes by each image's own label."""
    table = read_table(folder, "split.csv")
    for answer in ("anger", "happiness", "neutral", "contempt", "unknown", "nf"):
        table[f"votes_{answer}"] = [by_emotion[emotion].get(answer, 0) for emotion in table["emotion"]]
    write_table(table, folder / "split.csv")


def test_votes_are_learnt_as_a_distribution_and_judged_by_their_majority(make_dataset, tmp_path):
    folder, model_file = make_dataset(), tmp_path / "models" / "best.keras"
    # The crowd disagrees with the labels: what is labelled anger, most call contempt.
    with_votes(folder, {"anger": {"contempt": 8, "anger": 2}, "happiness": {"happiness": 9, "nf": 1},
                        "neutral": {"neutral": 6, "anger": 4}})  # fmt: skip
    settings = {"targets": "votes", "epochs": 80, "learning_rate": 0.05, "augmentation": NO_AUGMENTATION}
    assert fit(folder, model_file, TrainingConfig(**{**vars(TINY), **settings}))
    classifier = EmotionClassifier.load(model_file)
    assert classifier.labels == ("anger", "happiness", "neutral", "contempt") and classifier.card.targets == "votes"
    last = history_of(tmp_path / "models")[-1]
    assert float(last["val_accuracy"]) == 1.0  # of the majorities: contempt, happiness, neutral
    # No network can come below the votes' own entropy; one that learnt single labels would be far above it.
    entropy = np.mean([-np.sum(shares * np.log(shares)) for shares in ([0.8, 0.2], [1.0], [0.6, 0.4])])
    assert float(last["val_loss"]) == pytest.approx(entropy, abs=0.05)


def test_images_that_the_crowd_names_nothing_in_are_left_out(make_dataset, tmp_path, capsys):
    folder = make_dataset()
    with_votes(folder, {"anger": {"nf": 9}, "happiness": {"happiness": 9}, "neutral": {"neutral": 5, "anger": 5}})
    fit(folder, tmp_path / "models" / "best.keras", TrainingConfig(**{**vars(TINY), "targets": "votes", "epochs": 1}))
    assert "24 train, 4 dev images, 4 emotions" in capsys.readouterr().out  # for dev more than half must agree


def test_votes_asked_for_where_there_are_none(make_dataset, tmp_path):
    with pytest.raises(InputError, match="no crowd votes"):
        fit(make_dataset(), tmp_path / "models" / "best.keras", TrainingConfig(**{**vars(TINY), "targets": "votes"}))
