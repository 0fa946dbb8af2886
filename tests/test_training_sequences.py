import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from cards import sequence_card
from conftest import files_of_at_most
from tiny_training import history_of

from common.errors import InputError
from configuration import SEQUENCES, SequenceConfig, TrainingConfig
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.lineage import ImageHashes, hashes_file, write_hashes
from inference.model_card import read_card, read_sequence_card
from inference.sequence_classifier import SequenceClassifier, described, window_of
from preprocessing.tables import FACE_COLUMNS, INVENTORY_COLUMNS, read_table, write_table
from training.lineage import exposure_of
from training.sequences import data as sequences_data
from training.sequences.data import SequenceBatches, frame_features, read_sequences
from training.sequences.trainer import build_sequence_network, fit_sequences

SIZE, FRAMES = 24, 8
LABELS = ("anger", "happiness", "neutral")


def options(window: int = FRAMES, epochs: int = 2) -> SequenceConfig:
    config = replace(SEQUENCES.config, filters=(12,), convolutions=2, dropout=0.0, batch_size=8)
    return replace(SEQUENCES, window=window, config=replace(config, learning_rate=0.02, epochs=epochs))


def crop(level: float, random: np.random.Generator) -> np.ndarray:
    image = random.integers(0, 60, (SIZE, SIZE)).astype(np.uint8)
    image[8:14] += round(150 * level)
    return image


@pytest.fixture
def make_sequences(tmp_path) -> Callable[..., Path]:
    """Make a data set of sequences: each subject's first one rises and then falls below where it began, the second one
    holds the very same pictures in opposite order. Both begin and end with the same picture."""

    def make(splits: tuple[tuple[str, int], ...] = (("train", 3), ("dev", 2), ("test", 2)), folds: int = 0) -> Path:
        folder = tmp_path / "data" / "waves"
        (folder / "faces").mkdir(parents=True)
        random, rows = np.random.default_rng(5), []
        subjects = [split for split, count in splits for _ in range(count)]
        for subject, split in enumerate(subjects):
            levels = 0.5 + 0.5 * np.sin(np.linspace(0, 2 * np.pi, FRAMES))
            images = [crop(level, random) for level in levels[:-1]]
            images.append(images[0])
            for number, (emotion, ordered) in enumerate([("happiness", images), ("anger", images[::-1])]):
                for frame, image in enumerate(ordered, start=1):
                    path = f"faces/{subject}_{number}_{frame}.png"
                    cv2.imwrite(str(folder / path), image)
                    row = dict.fromkeys([*INVENTORY_COLUMNS, *FACE_COLUMNS], "")
                    row |= {"path": path, "face_path": path, "status": "ok", "face_status": "found", "split": ""}
                    row |= {"subject": f"S{subject}", "sequence": f"S{subject}/{number}", "frame": str(frame)}
                    row |= {"pixel_hash": path, "fold": ""}
                    if frame == FRAMES:
                        row |= {"emotion": emotion, "split": split, "fold": str(subject % folds) if folds else ""}
                    rows.append(row)
        write_table(pd.DataFrame(rows), folder / "split.csv")
        (folder / "faces.json").write_text(json.dumps({"options": {"size": SIZE, "channels": 1, "align": "landmarks"}}))
        return folder

    return make


@pytest.fixture
def frames_network(tiny_model) -> Path:
    return tiny_model(LABELS, SIZE, name="frames.keras")


def fit(folder: Path, model_file: Path, features_file: Path, settings: SequenceConfig) -> bool:
    return fit_sequences(read_table(folder, "split.csv"), folder, model_file, settings, features_file, "the command")


def test_learns_the_order_of_frames_on_features_whose_images_are_unknown(
    make_sequences, frames_network, tmp_path, monkeypatch
):
    folder, model = make_sequences((("train", 12), ("dev", 4), ("test", 8))), tmp_path / "sequence.keras"
    monkeypatch.setattr(sequences_data, "CUT", 0.0)
    monkeypatch.setattr(sequences_data, "SPEED", 1.0)
    hashes_file(frames_network).unlink()
    fit(folder, model, frames_network, options(epochs=8))
    network, table = SequenceClassifier.load(model), read_table(folder, "split.csv")
    chosen = read_sequences(table, folder).of_split("test")
    features = frame_features(EmotionClassifier.load(frames_network, features=True), folder, chosen.frames)[0]
    predictions = network.predict([(features[steps], features[steps[0]]) for steps in chosen.steps])
    labels = np.array(network.labels)[predictions.argmax(axis=1)]
    assert np.mean(labels == chosen.table["emotion"]) >= 0.9  # without the order 0.5: the pictures are the same
    rows = table.loc[table["split"] == "test"]
    for _ in ("incomplete list", "no list"):
        assert exposure_of(model, read_sequence_card(model), rows, table, folder.name).held_out is None
        hashes_file(model).unlink(missing_ok=True)


@pytest.fixture
def untrained(tmp_path) -> Path:
    keras.utils.set_random_seed(3)
    random = np.random.default_rng(3)
    spread = random.normal(0, 1, 10), random.uniform(0.5, 2, 10), random.uniform(0.5, 2, 10)
    network = build_sequence_network(options().config, 12, spread, len(LABELS))
    card = sequence_card(labels=list(LABELS), window=12, temperature=2.0)
    save(network, card, tmp_path / "n.keras")
    return tmp_path / "n.keras"


def test_network_is_causal_and_litert_agrees(untrained, tmp_path):
    file, random = untrained, np.random.default_rng(4)
    frames, reference = random.normal(0, 1, (12, 10)).astype(np.float32), random.normal(0, 1, 10).astype(np.float32)
    network: Any = keras.models.load_model(file, compile=False, safe_mode=True)
    rows, count = window_of(frames, reference, 12)
    each_step = network.predict_on_batch(rows[None])[0]
    assert count == 12 and np.ptp(each_step, axis=0).max() > 0.01
    short, count = window_of(frames[:5], reference, 12)
    short[6:] = 99  # whatever stands behind the last frame
    np.testing.assert_allclose(network.predict_on_batch(short[None])[0, :count], each_step[:5], atol=1e-6)

    def calibrated(steps: np.ndarray) -> np.ndarray:
        return np.sqrt(steps) / np.sqrt(steps).sum()  # temperature 2

    for loaded in (SequenceClassifier.load(file), SequenceClassifier.load_litert(file, tmp_path)):
        found = loaded.predict([(frames, reference), (frames[:5], reference), (frames[:1], reference)])
        np.testing.assert_allclose(found, [calibrated(each_step[n]) for n in (11, 4, 0)], atol=1e-4)
        beyond = np.concatenate([random.normal(0, 1, (30, 10)), frames])  # more than the window
        np.testing.assert_allclose(loaded.predict([(beyond, reference)])[0], calibrated(each_step[11]), atol=1e-4)


def test_a_classifier_gives_what_its_last_layer_reads_and_its_probabilities(frames_network, tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (5, SIZE, SIZE, 1), np.uint8)
    kept: Any = keras.models.load_model(frames_network)
    weights, bias = kept.layers[-1].get_weights()
    plain = EmotionClassifier.load(frames_network)
    for loaded in (
        EmotionClassifier.load(frames_network, features=True),
        EmotionClassifier.load_litert(frames_network, folder=tmp_path, features=True),
    ):
        features, probabilities = np.split(loaded.features(images), [64], axis=1)
        logits = features @ weights + bias
        np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), atol=1e-4)
        np.testing.assert_allclose(loaded.predict(images), plain.predict(images), atol=1e-4)
        assert loaded.features_of == described(frames_network)["sha256"]
    with pytest.raises(ValueError, match="features=True"):
        plain.features(images)


# ---------------------------------------------------------------- rows to sequences


def test_missing_frames_are_stood_in_for_and_counted(make_sequences):
    folder = make_sequences()
    table = read_table(folder, "split.csv")
    of_first = table["sequence"] == "S0/0"
    table.loc[of_first & (table["frame"] == "4"), "face_status"] = "not_found"
    table = table.loc[~(of_first & (table["frame"] == "5"))]  # no row at all
    table.loc[(table["sequence"] == "S1/0") & (table["frame"] == str(FRAMES)), "face_status"] = "not_found"
    few = (table["sequence"] == "S2/0") & ~table["frame"].isin(["1", str(FRAMES)])
    found = read_sequences(table.loc[~few].sample(frac=1, random_state=1), folder)  # in any order
    assert "2 frames of 1 of them are missing" in found.note and "left out: 2" in found.note
    paths = found.frames["path"].iloc[found.steps[list(found.table["sequence"]).index("S0/0")]]
    numbers = [1, 2, 3, 3, 3, 6, 7, 8]
    assert [int(path.split("_")[-1].split(".")[0]) for path in paths] == numbers
    assert not {"S1/0", "S2/0"} & set(found.table["sequence"]) and len(found) == 12


def test_emotions_left_out_by_step_3_are_not_classes(make_sequences):
    folder = make_sequences()
    table = read_table(folder, "split.csv")
    table.loc[table["frame"] == "1", "emotion"] = "neutral"  # --neutral-first, then --without neutral
    peak = (table["sequence"] == "S0/0") & (table["emotion"] == "happiness")
    table.loc[peak, ["emotion", "split"]] = ["contempt", ""]
    found = read_sequences(table, folder)
    assert found.classes == ("anger", "happiness") and not found.table["starts_neutral"].any()
    assert len(found) == 13 and "1 have no split" in found.note and "left out" not in found.note


def test_refuses_tables_without_complete_sequences(make_sequences):
    folder = make_sequences()
    table = read_table(folder, "split.csv")
    peaks = table.loc[table["emotion"] != ""]
    first = table.loc[table["frame"] == "1"].assign(emotion="neutral", split="train")
    for listed in (peaks, pd.concat([peaks, first])):  # --frames peak, without and with --neutral-first
        with pytest.raises(InputError, match="--frames all"):
            read_sequences(listed, folder)
    with pytest.raises(InputError, match="no sequences"):
        read_sequences(table.assign(sequence="", frame=""), folder)
    with pytest.raises(InputError, match="frame 'x' of sequence S0/0 is no number"):
        read_sequences(table.assign(frame=["x", *table["frame"][1:]]), folder)


@pytest.mark.parametrize(
    "change",
    [{"logit_adjustment": 0.5}, {"first_layer_rate": 0.9}, {"mixup": 0.2}, {"balance": "gender"}, {"targets": "votes"},
     {"teachers": ("a.keras",)}, {"pretrained": "a.keras"}, {"precision": "auto"}, {"optimizer": "muon"},
     {"filters": (12, 24)}, {"augmentation": TrainingConfig().augmentation}],
    ids=str,
)  # fmt: skip
def test_refuses_settings_that_sequences_do_not_have(make_sequences, frames_network, tmp_path, change):
    settings = options()
    settings = replace(settings, config=replace(settings.config, **change))
    with pytest.raises(InputError, match=f"^{next(iter(change))} .*(remove it from SEQUENCES|give one|give adamw)"):
        fit(make_sequences(), tmp_path / "sequence.keras", frames_network, settings)


def test_loss_weights_rise_to_the_labelled_last_frame(make_sequences, frames_network, monkeypatch):
    folder = make_sequences()
    table = read_table(folder, "split.csv")
    starts = (table["frame"] == "1") & (table["sequence"].str.endswith("/0"))
    table.loc[starts, ["emotion", "split"]] = ["neutral", "train"]  # as with --neutral-first
    found = read_sequences(table, folder)
    assert found.classes == ("anger", "happiness", "neutral")
    assert list(found.table["starts_neutral"]) == [True, False] * 7
    features = frame_features(EmotionClassifier.load(frames_network, features=True), folder, found.frames)
    monkeypatch.setattr(sequences_data, "CUT", 0.0)
    monkeypatch.setattr(sequences_data, "SPEED", 1.0)
    features[1] = features[0]  # so that flips change nothing
    settings = options(window=FRAMES + 4)
    settings = replace(settings, config=replace(settings.config, batch_size=16))
    windows, targets, weights = SequenceBatches(found, features, found.classes, settings, augment=False)[0]
    assert windows.shape == (14, 1 + FRAMES + 4, features.shape[2])
    np.testing.assert_array_equal(weights, np.tile(np.eye(FRAMES + 4)[FRAMES - 1], (14, 1)))
    assert [found.classes[k] for k in targets[:, FRAMES - 1].argmax(axis=1)] == ["happiness", "anger"] * 7
    learning = SequenceBatches(found, features, found.classes, settings, augment=True)
    windows, targets, weights = learning[0]
    for window, target, weight in zip(windows, targets, weights, strict=True):
        ramp = (np.arange(1, FRAMES + 1) / FRAMES) ** 2
        is_neutral = target[0].argmax() == 2
        np.testing.assert_allclose(weight, [1.0 if is_neutral else ramp[0], *ramp[1:], 0, 0, 0, 0], atol=1e-6)
        np.testing.assert_array_equal(window[0], window[1])  # the reference is the first frame
    assert sum(target[0].argmax() == 2 for target in targets) == 7
    again = SequenceBatches(found, features, found.classes, settings, augment=True)
    again.epoch = 1
    assert not np.array_equal(again[0][0], windows)  # another order
    learning.on_epoch_end()
    np.testing.assert_array_equal(again[0][0], learning[0][0])  # and the same after a restart


def test_features_are_computed_once_and_a_damaged_cache_is_made_again(
    make_sequences, frames_network, capsys, monkeypatch
):
    folder = make_sequences()
    frames = read_sequences(read_table(folder, "split.csv"), folder).frames
    classifier = EmotionClassifier.load(frames_network, features=True)
    features = frame_features(classifier, folder, frames)
    image: Any = cv2.imread(str(folder / frames["face_path"].iloc[3]), cv2.IMREAD_GRAYSCALE)
    seen = np.stack([image, cv2.flip(image, 1)])[..., None]
    np.testing.assert_allclose(features[:, 3], classifier.features(seen), atol=1e-5)
    cache = max(folder.glob("cache/features-*.npy"), key=lambda file: file.stat().st_mtime_ns)
    content = cache.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no numbers", content.replace(b"(2, ", b"(9, ", 1)):
        cache.write_bytes(damaged)
        capsys.readouterr()
        np.testing.assert_array_equal(frame_features(classifier, folder, frames), features)
        assert capsys.readouterr().out == f"{cache} is damaged; it is made again\n" and cache.read_bytes() == content
    cache.unlink()
    with files_of_at_most(len(content) - 1), pytest.raises(OSError, match="File too large") as caught:
        frame_features(classifier, folder, frames)
    assert caught.value.filename == str(cache) and not cache.exists()
    frame_features(classifier, folder, frames)
    monkeypatch.setattr(EmotionClassifier, "features", None)
    np.testing.assert_array_equal(frame_features(classifier, folder, frames), features)


def test_resumed_run_ends_like_an_uninterrupted_one(make_sequences, frames_network, tmp_path, monkeypatch, capsys):
    folder, settings = make_sequences(), options(epochs=2)

    def run(name: str) -> bool:
        return fit(folder, tmp_path / name / "sequence.keras", frames_network, settings)

    replace_file = Path.replace

    def replace_then_die(file, target):
        replace_file(file, target)
        if target.name.startswith("state-0001"):
            raise KeyboardInterrupt

    run("straight")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_then_die)
        with pytest.raises(KeyboardInterrupt):
            run("resumed")
    assert run("resumed")
    straight, resumed = (pd.DataFrame(history_of(tmp_path / name)).astype(float) for name in ("straight", "resumed"))
    assert len(straight) == 2
    pd.testing.assert_frame_equal(straight, resumed, rtol=0, atol=1e-4)
    capsys.readouterr()
    assert not run("resumed")
    assert "nothing to do" in capsys.readouterr().out


def test_each_fold_is_scored_by_the_network_trained_without_it(make_sequences, frames_network, tmp_path, run_step):
    folder = make_sequences((("train", 6),), folds=3)
    places = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "m"]
    places += ["--features", frames_network]
    done = run_step("training.step4_sequence_model", *places, "--folds", 3, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    cards = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("m/waves/sequence-folds/*.json"))]
    assert len(cards) == 3 and len({card["split_hash"] for card in cards}) == 3
    assert cards[0]["training_sequences"] == 4 and cards[0]["window_seconds"] == round(64 / 30, 3)
    assert cards[0]["features"] == described(frames_network)
    done = run_step("evaluation.sequences", *places, "--folds", "--reports", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    report = tmp_path / "r" / "waves" / "sequence" / "folds"
    predictions = pd.read_csv(report / "predictions.csv")
    assert sorted(predictions["sequence"]) == [f"S{s}/{n}" for s in range(6) for n in (0, 1)]
    scores = pd.read_csv(report / "scores.csv").set_index(["model", "score"])["value"]
    right = predictions["prediction: sequence"] == predictions["emotion"]
    assert scores["sequence", "accuracy"] == pytest.approx(right.mean())
    curve = pd.read_csv(report / "seen.csv")
    assert list(curve.loc[curve["model"] == "sequence", "seen"].round(1)) == [k / 10 for k in range(1, 11)]
    assert "no peak-only network" in done.stdout


def test_calibration_minimises_log_loss_and_sets_the_threshold(make_sequences, frames_network, tmp_path, run_step):
    folder, model_file = make_sequences((("train", 6), ("dev", 8), ("test", 2))), tmp_path / "sequence.keras"
    table = read_table(folder, "split.csv")
    table.loc[table["sequence"].isin(["S6/0", "S7/0", "S8/0"]) & (table["emotion"] != ""), "emotion"] = "anger"
    write_table(table, folder / "split.csv")  # three that nobody can get right, for who is sure of all has no limit
    fit(folder, model_file, frames_network, options(epochs=4))
    dev = read_sequences(read_table(folder, "split.csv"), folder).of_split("dev")
    features = frame_features(EmotionClassifier.load(frames_network, features=True), folder, dev.frames)[0]
    faces = [(features[steps], features[steps[0]]) for steps in dev.steps]
    raw = SequenceClassifier.load(model_file).predict(faces).astype(float)
    places = ["--dataset", folder.name, "--data", folder.parent, "--features", frames_network]
    command = ("evaluation.sequences", *places, "--model", model_file, "--reports", tmp_path / "r", "--calibrate")
    done = run_step(*command)
    assert done.returncode == 0, done.stderr
    card = read_sequence_card(model_file)
    truth = [card.labels.index(emotion) for emotion in dev.table["emotion"]]

    def loss(temperature: float) -> float:
        scaled = raw ** (1 / temperature)
        return -np.log((scaled / scaled.sum(axis=1, keepdims=True))[np.arange(len(truth)), truth]).mean()

    best = loss(card.temperature)
    assert card.temperature != 1 and all(best <= loss(card.temperature * by) for by in (0.7, 0.9, 1.1, 1.4))
    network = SequenceClassifier.load(model_file)
    chances = network.predict(faces)
    answered = chances.max(axis=1) >= network.abstention_threshold - 1e-4
    assert f"coverage {answered.mean():.1%}" in done.stdout
    assert run_step(*command).returncode == 0  # it is fitted to what the network says, not to the calibrated answers
    assert read_sequence_card(model_file).temperature == pytest.approx(card.temperature, rel=1e-3)
    done = run_step(*command, "--folds")
    assert done.returncode == 2 and "--calibrate" in done.stderr
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    table.loc[table["sequence"].isin(["S6/0"]) & (table["emotion"] != ""), "emotion"] = "contempt"
    write_table(table, other / "split.csv")  # the network does not know contempt
    done = run_step(*command, "--dataset", "other")
    assert done.returncode == 0 and f"on the last frames of {len(truth) - 1} dev sequences" in done.stdout, done.stderr
    known = (dev.table["sequence"] != "S6/0").to_numpy()
    raw, truth = raw[known], np.array(truth)[known].tolist()
    fitted = read_sequence_card(model_file).temperature
    assert all(loss(fitted) <= loss(fitted * by) for by in (0.7, 0.9, 1.1, 1.4))


def test_refuses_unusable_options_in_one_line(make_sequences, frames_network, tiny_model, tmp_path, run_step):
    folder = make_sequences((("train", 6),), folds=3)
    places = ["--dataset", folder.name, "--data", folder.parent, "--models", tmp_path / "m"]
    own = tiny_model(LABELS, SIZE, name="own.keras", trained_on=folder)
    for arguments, said in [
        (["--features", frames_network, "--folds", 10], "the split has 3 folds"),
        (["--features", own, "--folds", 3], "own-folds/0.keras, trained without fold 0, is missing"),
        (["--features", tmp_path / "no.keras"], "does not exist"),
        (["--features", own, "--output", own], "would replace"),
        (["--features", tiny_model(LABELS, SIZE, name="other.keras", align="box")], "with --align box"),
    ]:
        done = run_step("training.step4_sequence_model", *places, *arguments)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = run_step("evaluation.sequences", *places, "--folds")
    again = f"training.step4_sequence_model --dataset {folder.name} --data {folder.parent} --folds 3"
    assert done.returncode == 2 and again in done.stderr


def test_sequence_network_is_not_a_network_of_single_faces(untrained):
    with pytest.raises(InputError, match="--temporal"):
        read_card(untrained)


def test_leakage_of_sequence_and_peak_networks_is_reported(
    make_sequences, frames_network, tiny_model, tmp_path, run_step
):
    folder, model = make_sequences(), tmp_path / "sequence.keras"
    fit(folder, model, frames_network, options(epochs=1))
    renamed = folder.with_name("renamed")
    shutil.copytree(folder, renamed)
    table = read_table(renamed, "split.csv")
    swapped = table["split"].replace({"dev": "test", "test": "dev"})
    write_table(table.assign(split=swapped), renamed / "split.csv")

    def evaluate(split: str, *more: object) -> tuple[bool | None, str]:
        places = ["--data", folder.parent, "--models", tmp_path / "m", "--reports", tmp_path / "r", "--model", model]
        places += ["--dataset", "renamed", "--split", split, "--features", frames_network]
        done = run_step("evaluation.sequences", *places, *more)
        assert done.returncode == 0, done.stderr
        (file,) = tmp_path.glob(f"r/renamed/sequence/{split}/metrics.json")
        found = json.loads(file.read_text())
        return found["held_out"], "\n".join(found["notes"])

    peak = tiny_model(LABELS, SIZE, name="peak.keras", dataset="elsewhere", listed=False)
    notes = evaluate("test", "--peak-model", peak)[1]
    assert "sequence.keras was selected on" in notes
    assert "NOT KNOWN WHETHER HELD OUT: there is no complete list of the training images of" in notes
    write_hashes(peak, ImageHashes.of((), table["pixel_hash"]))
    held_out, notes = evaluate("train", "--peak-model", peak)
    assert held_out is False and "NOT A HELD-OUT SCORE" in notes and "peak.keras was selected on" in notes
    held_out, notes = evaluate("dev")  # which the network has not seen
    assert held_out is True and "selected on" not in notes and "HELD OUT" not in notes and "HELD-OUT" not in notes
