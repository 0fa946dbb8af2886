"""Which images a network and its lineage were trained and selected on."""

import json
import shutil
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from common.errors import InputError
from common.images import pixel_hash, read_gray_or_bgr
from configuration import PATHS, TrainingConfig
from inference.lineage import UNKNOWN, ImageHashes, hash_codes, hashes_file, lineage_hashes, read_hashes, write_hashes
from inference.model_card import read_card, write_card
from preprocessing.splitting import Strategy, split_table
from preprocessing.tables import read_table, split_hash, write_table
from realtime.demo import describe_scores
from training.cross_validation import features_without, fit_folds
from training.distillation import read_teachers
from training.lineage import exposure_of, knows_images
from training.settings import settings_images
from training.trainer import train_network

TINY = TrainingConfig(filters=(4,), convolutions=1, epochs=1, batch_size=32, precision="float32")


def exposure(model_file, folder, split, dataset=None):
    """Return the exposure of a network to a split."""
    table = read_table(folder, "split.csv")
    rows = table.loc[table["split"] == split]
    return exposure_of(model_file, read_card(model_file), rows, table, dataset or folder.name)


@pytest.fixture
def train(tmp_path):
    def run(folder, name, settings_hashes=None, **settings):
        file = tmp_path / "models" / name
        table = read_table(folder, "split.csv")
        train_network(table, folder, file, replace(TINY, **settings), "python -m some.step", settings_hashes)
        return file

    return run


@pytest.fixture
def other(make_dataset):
    """Return a second data set, none of whose images are in the first one."""
    folder = make_dataset(name="other")
    table = read_table(folder, "split.csv")
    write_table(table.assign(pixel_hash="other " + table["pixel_hash"]), folder / "split.csv")
    return folder


@pytest.fixture
def copied(make_dataset):
    """Return a data set, a copy whose training images are test images, and the table of the copy."""
    folder = make_dataset()
    renamed = folder.with_name("renamed")
    shutil.copytree(folder, renamed)
    table = read_table(renamed, "split.csv")
    table["split"] = table["split"].map({"train": "test", "test": "train", "dev": "dev"})
    write_table(table, renamed / "split.csv")
    return folder, renamed, table


def test_fine_tuned_network_is_not_held_out_on_data_of_its_pretrained_network(
    make_dataset, tiny_model, other, train, run_step, tmp_path
):
    folder = make_dataset()
    tuned = train(other, "finetuned.keras", pretrained=str(tiny_model(trained_on=folder)))
    reports = ["--data", folder.parent, "--reports", tmp_path / "reports", "--quick", "--no-faces"]
    for split, key in (("train", "NOT A HELD-OUT SCORE"), ("dev", "was selected on")):
        done = run_step(
            "evaluation.model_evaluation", "--dataset", folder.name, "--model", tuned, "--split", split, *reports
        )
        assert done.returncode == 0 and key in done.stdout, done.stdout
        (written,) = (tmp_path / "reports").rglob("metrics.json")
        metrics = json.loads(written.read_text())
        assert metrics["held_out"] is (split != "train")
        assert metrics["provenance"]["selected_on"] is (split == "dev")
        shutil.rmtree(tmp_path / "reports")
    assert exposure(tuned, folder, "test").held_out is True and exposure(tuned, other, "train").held_out is False


def test_renamed_resplit_or_mixed_data_is_recognized_by_its_images(copied, other, tiny_model):
    folder, renamed, table = copied
    model = tiny_model(trained_on=folder)
    assert exposure(model, renamed, "train").held_out is True and exposure(model, renamed, "dev").selected == 12
    assert exposure(model, renamed, "test").trained == 36
    mixed = read_table(other, "split.csv")
    mixed.loc[mixed.index[-1], "pixel_hash"] = table["pixel_hash"][0]
    write_table(mixed, other / "split.csv")
    assert exposure(model, other, "test").trained == 1 and exposure(model, other, "test").held_out is False


def test_few_cross_split_duplicates_keep_a_score_held_out(make_dataset, tiny_model):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    hashes = table.loc[table["split"] == "train", "pixel_hash"].tolist()
    rows = table.index[table["split"] == "test"]
    for count, held_out in ((2, True), (3, False)):  # of 12
        table.loc[rows[:count], "pixel_hash"] = hashes[:count]
        write_table(table, folder / "split.csv")
        found = exposure(tiny_model(trained_on=folder), folder, "test")
        assert found.training.sum() == count and found.held_out is held_out


def test_gray_image_has_one_hash_in_every_format(tmp_path):
    gray = np.random.default_rng(1).integers(0, 256, (9, 7), dtype=np.uint8)
    colour = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    changed = colour.copy()
    changed[0, 0, 0] ^= 1
    alpha, deep = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGRA), gray.astype(np.uint16) * 256
    stored = {
        "deep.png": deep,
        "gray.png": gray,
        "colour.png": colour,
        "alpha.png": alpha,
        "colour.bmp": colour,
        "gray.tiff": gray,
    }
    hashes = []
    for name, image in (stored | {"changed.png": changed, "turned.png": gray.T}).items():
        cv2.imwrite(str(tmp_path / name), image)
        pixels = read_gray_or_bgr(tmp_path / name)
        assert pixels is not None
        hashes.append(pixel_hash(pixels))
    assert len(set(hashes[:6])) == 1 and len(set(hashes)) == 3


def test_list_has_the_images_of_the_lineage(tiny_model):
    first = ImageHashes.of(["0123456789abcdef", "b"], ["c"])
    assert first.training.dtype == np.uint64 and 0x0123456789ABCDEF in first.training
    teacher = tiny_model(name="teacher.keras")
    write_hashes(teacher, first)
    both = lineage_hashes(ImageHashes.of(["d"], ["e"]), [teacher])
    assert sorted(both.training) == sorted(hash_codes(["0123456789abcdef", "b", "d"]))
    assert sorted(both.selection) == sorted(hash_codes(["c", "e"])) and both.complete


def test_released_networks_list_the_images_of_fer2013(shared_data):
    def images(usage):
        labels = np.load(shared_data / "fer2013" / f"{usage}_labels.npz")
        atlas: Any = cv2.imread(str(shared_data / "fer2013" / f"{usage}.webp"), cv2.IMREAD_GRAYSCALE)
        tiles = atlas.reshape(-1, 48, int(labels["columns"]), 48).swapaxes(1, 2).reshape(-1, 48, 48)
        usable = tiles[: len(labels["row"])]
        return hash_codes({pixel_hash(tile) for tile in usable if tile.std() > 0})

    training, dev = images("Training"), images("PublicTest")
    hashes = read_hashes(PATHS.pretrained.with_name("fer2013.keras"))
    assert hashes.complete and sorted(hashes.training) == sorted(training) and sorted(hashes.selection) == sorted(dev)
    by_votes = read_hashes(PATHS.pretrained)  # images without annotator votes or without a majority are left out
    assert by_votes.complete and np.isin(by_votes.training, training).all() and np.isin(by_votes.selection, dev).all()
    assert len(by_votes.training) > 27_000 and len(by_votes.selection) > 3_000


def test_without_a_list_of_images_the_card_decides(make_dataset, other, tiny_model, train):
    folder = make_dataset()
    rows = read_table(folder, "split.csv")
    listed, model = (
        tiny_model(name=name, dataset=folder.name, split_hash=split_hash(rows), listed=name == "listed.keras")
        for name in ("listed.keras", "model.keras")
    )
    assert knows_images(model, read_card(model), rows, folder.name)
    assert not knows_images(listed, read_card(listed), rows, folder.name)
    assert exposure(model, folder, "train").held_out is False and exposure(model, folder, "dev").selected == 12
    assert exposure(model, folder, "test").held_out is True  # the card names this very split
    assert exposure(model, other, "test").held_out is None
    tuned = train(other, "finetuned.keras", pretrained=str(model))
    assert not read_hashes(tuned).complete and exposure(tuned, other, "train").held_out is False
    assert exposure(tuned, folder, "train").held_out is False and exposure(tuned, folder, "test").held_out is None
    how = {"dataset": "a copy of stripes", "split": "dev"}
    write_card(replace(read_card(model), calibration=how), model)
    assert exposure(model, folder, "test").held_out is None


def test_settings_that_were_selected_on_other_images_are_another_run(make_dataset, other, train):
    folder = make_dataset()
    rows = read_table(folder, "split.csv")
    tests = ImageHashes.of((), rows.loc[rows["split"] == "test", "pixel_hash"])
    tuned = train(folder, "finetuned.keras", settings_hashes=tests)
    assert exposure(tuned, folder, "test").selected == 12
    again = train(other, "again.keras", pretrained=str(tuned))
    hashes_file(tuned).unlink()
    hashes_file(again).unlink()
    assert exposure(tuned, folder, "test").held_out is None and exposure(again, folder, "test").held_out is None
    assert exposure(train(folder, "finetuned.keras"), folder, "test").held_out is True
    assert exposure(train(folder, "finetuned.keras", settings_hashes=UNKNOWN), folder, "test").held_out is None


def test_refuses_list_of_another_network_and_damaged_list(tiny_model):
    model = tiny_model()
    other = tiny_model(name="other.keras", labels=("anger", "fear"))
    file = hashes_file(model)
    whole = hashes_file(other).read_bytes()
    for content, reason in ((whole, "belongs to another file"), (b"junk", "damaged"), (whole[:-40], "damaged")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"tiny\.hashes\.npz.*{reason}"):
            read_hashes(model)


def test_refuses_teacher_trained_on_dev_or_test_images_under_another_name(copied, tiny_model):
    folder, renamed, _ = copied
    teacher = tiny_model(trained_on=renamed)
    about = {"dataset": folder.name, "split_hash": "", "crops": {"size": 24, "channels": 1}}
    with pytest.raises(InputError, match="was trained on 12 images of the dev or test split of stripes"):
        read_teachers([str(teacher)], read_card(teacher).labels, about, read_table(folder, "split.csv"))


def test_refuses_pretrained_network_trained_on_dev_or_test_images(copied, tiny_model, tmp_path):
    folder, renamed, _ = copied
    start = tiny_model(trained_on=renamed)
    with pytest.raises(
        InputError, match=r"--pretrained .* was trained on 12 images of the dev or test split of stripes"
    ):
        train_network(
            read_table(folder, "split.csv"), folder, tmp_path / "a.keras", replace(TINY, pretrained=str(start)), "step"
        )
    assert not list(tmp_path.glob("runs/*"))


def test_refuses_settings_pretrained_network_and_features_that_know_images_of_the_folds(copied, tiny_model, tmp_path):
    folder, renamed, _ = copied
    table = split_table(read_table(folder, "split.csv"), Strategy.FOLDS, folds=3)
    write_table(table, folder / "split.csv")
    start, output = tiny_model(trained_on=renamed), tmp_path / "output" / "best.keras"
    for config, hashes, reason in (
        (TINY, ImageHashes.of((), table["pixel_hash"][:9]), r"selected on \d+ images of the folds"),
        (TINY, UNKNOWN, "images that selected these settings are unknown"),
        (replace(TINY, pretrained=str(start)), None, "trained or selected on images of the folds"),
    ):
        with pytest.raises(InputError, match=reason):
            fit_folds(table, folder, output, config, "python", settings_hashes=hashes)
    assert not output.parent.exists()
    with pytest.raises(InputError, match="was trained on images of the folds"):
        features_without(start, folder.name, table, 0)


def test_tuned_settings_are_used_only_with_option(make_dataset, run_step, tmp_path, monkeypatch):
    monkeypatch.setattr("training.step3_best_model.BEST", TINY)
    folder, models = make_dataset(), tmp_path / "models"
    tuned = models / folder.name / "tuned.json"
    tuned.parent.mkdir(parents=True)
    table = read_table(folder, "split.csv")
    settings = {"network": "vgg", "filters": [4], "convolutions": 1, "epochs": 9, "batch_size": 32, "seed": 11}
    settings["precision"] = "float32"
    tuned.write_text(json.dumps({"config": settings, "found": {"dataset": folder.name, "split_hash": "another"}}))
    write_hashes(tuned.with_suffix(".keras"), ImageHashes.of((), table.loc[table["split"] == "test", "pixel_hash"]))
    given = ["--settings", tuned, "--epochs", 1, "--learning-rate", 0.001]
    step = ["training.step3_best_model", "--dataset", folder.name, "--data", folder.parent, "--models", models]
    done = run_step(*step, "--output", models / "plain.keras")
    assert done.returncode == 0 and f"{tuned} is not used" in done.stdout, done.stderr
    assert read_card(models / "plain.keras").other["seed"] != 11
    done = run_step(*step, *given, "--output", models / "finetuned.keras")
    assert done.returncode == 0 and f"settings: {tuned}" in done.stdout, done.stderr
    used = json.loads((models / "finetuned.json").read_text())["hyperparameters"]
    assert (used["seed"], used["epochs"], used["learning_rate"]) == (11, 1, 0.001)  # options take precedence
    assert exposure(models / "finetuned.keras", folder, "test").selected == 12  # the images that selected its settings
    for arguments, words in (
        (["--settings", tmp_path / "none.json"], "none.json does not exist"),
        (["--output", tuned.with_suffix(".keras")], "a file of settings"),
    ):
        done = run_step(*step, *arguments)
        assert done.returncode == 2 and words in done.stderr
    assert "config" in json.loads(tuned.read_text())


def test_list_of_another_search_or_of_settings_by_hand_is_incomplete(make_dataset, other, tmp_path):
    table, foreign = read_table(make_dataset(), "split.csv"), read_table(other, "split.csv")
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"config": {}}))
    assert settings_images(file, table, "stripes") is None
    images = ImageHashes.of((), table["pixel_hash"])
    for listed, found, complete in (
        (None, {"dataset": "elsewhere"}, False),
        (images, {"dataset": "elsewhere", "images": images.content_hash}, True),
        (ImageHashes.of((), foreign["pixel_hash"]), {"dataset": "elsewhere", "images": images.content_hash}, False),
        (None, None, False),
    ):
        file.write_text(json.dumps({"config": {}, **({"found": found} if found else {})}))
        if listed:
            write_hashes(file.with_suffix(".keras"), listed)
        hashes = settings_images(file, table, "stripes")
        assert hashes is not None and hashes.complete is complete


def test_card_marks_score_that_is_not_held_out(copied, tiny_model, run_step, tmp_path):
    folder, renamed, _ = copied
    model = tiny_model(trained_on=folder)
    reports = ["--data", folder.parent, "--reports", tmp_path / "reports", "--quick", "--no-faces", "--update-card"]
    for dataset in (renamed, folder):
        done = run_step("evaluation.model_evaluation", "--dataset", dataset.name, "--model", model, *reports)
        assert done.returncode == 0, done.stderr
    leaked, clean = read_card(model).scores
    assert leaked["held_out"] is False and leaked["banner"].startswith("NOT A HELD-OUT SCORE")
    assert "banner" not in clean
    assert describe_scores(read_card(model)).count("NOT A HELD-OUT SCORE") == 1
