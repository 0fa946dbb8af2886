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
from configuration import PATHS, AugmentationConfig, TrainingConfig
from inference.lineage import UNKNOWN, ImageHashes, hash_codes, hashes_file, lineage_hashes, read_hashes, write_hashes
from inference.model_card import read_card, write_card
from preprocessing.splitting import Strategy, split_table
from preprocessing.tables import read_table, write_table
from realtime.demo import describe_scores
from training.cross_validation import features_without, fit_folds
from training.distillation import read_teachers
from training.lineage import exposure_of, knows_images
from training.settings import settings_images
from training.trainer import train_network

TINY = TrainingConfig(
    network="vgg",
    filters=(4,),
    convolutions=1,
    epochs=1,
    batch_size=32,
    precision="float32",
    augmentation=AugmentationConfig(),
)


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


def test_fine_tuned_network_is_not_held_out_on_data_of_its_pretrained_network(
    make_dataset, other, train, run_step, tmp_path
):
    folder = make_dataset()
    start = train(folder, "start.keras")
    tuned = train(other, "finetuned.keras", pretrained=str(start))
    again = train(other, "again.keras", pretrained=str(tuned), seed=8)
    reports = ["--data", folder.parent, "--reports", tmp_path / "reports", "--quick", "--no-faces"]
    for split, key in (("train", "NOT A HELD-OUT SCORE"), ("dev", "was selected on")):
        done = run_step(
            "evaluation.model_evaluation", "--dataset", folder.name, "--model", again, "--split", split, *reports
        )
        assert done.returncode == 0 and key in done.stdout, done.stdout
        (written,) = (tmp_path / "reports").rglob("metrics.json")
        metrics = json.loads(written.read_text())
        assert metrics["held_out"] is (split != "train")
        assert metrics["provenance"]["selected_on"] is (split == "dev")
        shutil.rmtree(tmp_path / "reports")
    assert exposure(again, folder, "test").held_out is True and exposure(again, other, "train").held_out is False


def test_renamed_resplit_or_mixed_data_is_recognized_by_its_images(make_dataset, other, train):
    folder = make_dataset()
    model = train(folder, "model.keras")
    renamed = folder.with_name("renamed")
    shutil.copytree(folder, renamed)
    assert exposure(model, renamed, "train").held_out is False
    assert exposure(model, renamed, "dev").selected == 12 and exposure(model, renamed, "test").held_out is True
    table = read_table(renamed, "split.csv")
    swapped = table["split"].map({"train": "test", "test": "train", "dev": "dev"})
    write_table(table.assign(split=swapped), renamed / "split.csv")
    assert exposure(model, renamed, "test").trained == 36
    mixed = read_table(other, "split.csv")
    mixed.loc[mixed.index[-1], "pixel_hash"] = table["pixel_hash"][0]
    write_table(mixed, other / "split.csv")
    assert exposure(model, other, "test").trained == 1 and exposure(model, other, "test").held_out is False


def test_few_cross_split_duplicates_keep_a_score_held_out(make_dataset, train):
    folder = make_dataset()
    table = read_table(folder, "split.csv")
    hashes = table.loc[table["split"] == "train", "pixel_hash"].tolist()
    rows = table.index[table["split"] == "test"]
    for count, held_out in ((2, True), (3, False)):  # of 12
        table.loc[rows[:count], "pixel_hash"] = hashes[:count]
        write_table(table, folder / "split.csv")
        found = exposure(train(folder, f"{count}.keras"), folder, "test")
        assert found.training.sum() == count and found.held_out is held_out


def test_gray_image_has_one_hash_in_every_format(tmp_path):
    gray = np.random.default_rng(1).integers(0, 256, (9, 7), dtype=np.uint8)
    colour = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    changed = colour.copy()
    changed[0, 0, 0] ^= 1
    stored = {
        "gray.png": gray,
        "colour.png": colour,
        "alpha.png": cv2.cvtColor(gray, cv2.COLOR_GRAY2BGRA),
        "colour.bmp": colour,
        "gray.tiff": gray,
        "changed.png": changed,
        "turned.png": gray.T,
    }
    hashes = []
    for name, image in stored.items():
        cv2.imwrite(str(tmp_path / name), image)
        pixels = read_gray_or_bgr(tmp_path / name)
        assert pixels is not None
        hashes.append(pixel_hash(pixels))
    assert len(set(hashes[:5])) == 1 and len(set(hashes)) == 3


def test_without_a_list_of_images_the_card_decides(make_dataset, other, train):
    folder = make_dataset()
    model = train(folder, "model.keras")
    hashes_file(model).unlink()
    assert exposure(model, folder, "train").held_out is False and exposure(model, folder, "dev").selected == 12
    assert exposure(model, folder, "test").held_out is True  # the card names this very split
    assert exposure(model, other, "test").held_out is None
    tuned = train(other, "finetuned.keras", pretrained=str(model))
    assert not read_hashes(tuned).complete and exposure(tuned, other, "train").held_out is False
    assert exposure(tuned, folder, "train").held_out is False and exposure(tuned, folder, "test").held_out is None


def test_refuses_list_of_another_network_and_damaged_list(tiny_model):
    model = tiny_model()
    other = tiny_model(name="other.keras", labels=("anger", "fear"))
    file = hashes_file(model)
    shutil.copy(hashes_file(other), file)
    with pytest.raises(InputError, match=r"tiny\.hashes\.npz.*belongs to another file"):
        read_hashes(model)
    for content in (b"", b"junk", hashes_file(other).read_bytes()[:-40]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"tiny\.hashes\.npz.*damaged"):
            read_hashes(model)


def test_list_has_eight_bytes_per_image_of_the_lineage(tiny_model):
    first = ImageHashes.of(["0123456789abcdef", "b"], ["c"])
    assert first.training.dtype == np.uint64 and 0x0123456789ABCDEF in first.training
    teacher = tiny_model(name="teacher.keras")
    write_hashes(teacher, first)
    both = lineage_hashes(ImageHashes.of(["d"], ["e"]), [teacher])
    assert sorted(both.training) == sorted(hash_codes(["0123456789abcdef", "b", "d"]))
    assert sorted(both.selection) == sorted(hash_codes(["c", "e"])) and both.complete
    many = ImageHashes.of(map(str, range(5000)))
    write_hashes(teacher, many)
    assert hashes_file(teacher).stat().st_size < 8 * 5000 + 2000


def test_refuses_teacher_trained_on_dev_or_test_images_under_another_name(make_dataset, train):
    folder = make_dataset()
    renamed = folder.with_name("renamed")
    shutil.copytree(folder, renamed)
    table = read_table(renamed, "split.csv")
    write_table(
        table.assign(split=table["split"].map({"train": "test", "test": "train", "dev": "dev"})), renamed / "split.csv"
    )
    teacher = train(renamed, "teacher.keras")
    about = {"dataset": folder.name, "split_hash": "", "crops": {"size": 24, "channels": 1}}
    with pytest.raises(InputError, match="was trained on 12 images of the dev or test split of stripes"):
        read_teachers([str(teacher)], read_card(teacher).labels, about, read_table(folder, "split.csv"))


@pytest.fixture
def in_folds(make_dataset):
    folder = make_dataset()
    write_table(split_table(read_table(folder, "split.csv"), Strategy.FOLDS, folds=3), folder / "split.csv")
    return folder


def test_refuses_settings_selected_on_images_of_the_folds(in_folds, other, tmp_path):
    table, tuned = read_table(in_folds, "split.csv"), tmp_path / "models" / "best.keras"
    images = {name: table.loc[table["split"] == name, "pixel_hash"] for name in ("train", "dev")}
    for hashes, reason in (
        (ImageHashes.of(images["train"], images["dev"]), r"selected on \d+ images of the folds"),
        (ImageHashes.of(complete=False), "images that selected these settings are unknown"),
    ):
        with pytest.raises(InputError, match=reason):
            fit_folds(table, in_folds, tuned, TINY, "python", settings_hashes=hashes)
    assert not tuned.parent.exists()
    elsewhere = read_table(other, "split.csv")["pixel_hash"]
    assert len(fit_folds(table, in_folds, tuned, TINY, "python", settings_hashes=ImageHashes.of((), elsewhere))) == 3


def test_refuses_pretrained_network_and_features_that_know_images_of_the_folds(in_folds, train, tmp_path):
    table, renamed = read_table(in_folds, "split.csv"), in_folds.with_name("renamed")
    shutil.copytree(in_folds, renamed)
    start = train(renamed, "start.keras")
    with pytest.raises(InputError, match="trained or selected on images of the folds"):
        fit_folds(table, in_folds, tmp_path / "best.keras", replace(TINY, pretrained=str(start)), "python")
    with pytest.raises(InputError, match="was trained on images of the folds"):
        features_without(start, in_folds.name, table, 0)


def test_tuned_settings_are_used_only_with_option(make_dataset, run_step, tmp_path, monkeypatch):
    monkeypatch.setattr("training.step3_best_model.BEST", TINY)
    folder, models = make_dataset(), tmp_path / "models"
    tuned = models / folder.name / "tuned.json"
    tuned.parent.mkdir(parents=True)
    table = read_table(folder, "split.csv")
    settings = {"network": "vgg", "filters": [4], "convolutions": 1, "epochs": 1, "batch_size": 32, "seed": 11}
    found = {"dataset": folder.name, "split_hash": "another"}
    tuned.write_text(json.dumps({"config": settings, "found": found}))
    write_hashes(tuned.with_suffix(".keras"), ImageHashes.of((), table.loc[table["split"] == "test", "pixel_hash"]))
    where = ["--dataset", folder.name, "--data", folder.parent, "--models", models]
    step = "training.step3_best_model"
    done = run_step(step, *where, "--output", models / "plain.keras")
    assert done.returncode == 0 and f"{tuned} is not used" in done.stdout, done.stderr
    assert read_card(models / "plain.keras").other["seed"] != 11
    assert run_step(step, *where, "--settings", tuned, "--output", models / "finetuned.keras").returncode == 0
    assert read_card(models / "finetuned.keras").other["seed"] == 11
    assert exposure(models / "finetuned.keras", folder, "test").selected == 12  # the images that selected its settings


def test_settings_written_by_hand_have_no_selection_images(make_dataset, tmp_path):
    folder = make_dataset()
    table, file = read_table(folder, "split.csv"), tmp_path / "own.json"
    file.write_text(json.dumps({"config": {}}))
    assert settings_images(file, table, folder.name) is None
    file.write_text(json.dumps({"config": {}, "found": {"dataset": "elsewhere"}}))
    hashes = settings_images(file, table, folder.name)
    assert hashes is not None and not hashes.complete


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


def test_data_set_name_decides_only_without_a_list(tiny_model, make_dataset):
    folder = make_dataset()
    rows = read_table(folder, "split.csv")
    listed, unlisted = tiny_model(dataset=folder.name), tiny_model(name="old.keras", dataset=folder.name, listed=False)
    assert not knows_images(listed, read_card(listed), rows, folder.name)
    assert knows_images(unlisted, read_card(unlisted), rows, folder.name)


def test_held_out_is_unknown_after_tuning_or_calibration_without_a_list(make_dataset, other, train):
    folder = make_dataset()
    rows = read_table(folder, "split.csv")
    tests = ImageHashes.of((), rows.loc[rows["split"] == "test", "pixel_hash"])
    tuned = train(folder, "finetuned.keras", settings_hashes=tests)
    assert exposure(tuned, folder, "test").selected == 12
    again = train(other, "again.keras", pretrained=str(tuned))
    hashes_file(tuned).unlink()
    hashes_file(again).unlink()
    assert exposure(tuned, folder, "test").held_out is None and exposure(again, folder, "test").held_out is None
    calibrated = train(folder, "calibrated.keras")
    hashes_file(calibrated).unlink()
    assert exposure(calibrated, folder, "test").held_out is True
    how = {"dataset": "a copy of stripes", "split": "dev"}
    write_card(replace(read_card(calibrated), calibration=how), calibrated)
    assert exposure(calibrated, folder, "test").held_out is None


def test_settings_of_unknown_origin_are_another_run_with_unknown_exposure(make_dataset, train):
    folder = make_dataset()
    assert exposure(train(folder, "model.keras"), folder, "test").held_out is True
    assert exposure(train(folder, "model.keras", settings_hashes=UNKNOWN), folder, "test").held_out is None


def test_list_of_another_search_is_incomplete(make_dataset, other, tmp_path):
    tables = {name: read_table(folder, "split.csv") for name, folder in (("own", make_dataset()), ("other", other))}
    own, foreign = (ImageHashes.of((), table["pixel_hash"]) for table in tables.values())
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"config": {}, "found": {"dataset": "elsewhere", "images": own.content_hash}}))
    for listed, complete in ((own, True), (foreign, False)):
        write_hashes(file.with_suffix(".keras"), listed)
        hashes = settings_images(file, tables["own"], "stripes")
        assert hashes is not None and hashes.complete is complete
    file.write_text(json.dumps({"config": {}}))
    hashes = settings_images(file, tables["own"], "stripes")
    assert hashes is not None and not hashes.complete


def test_card_marks_score_that_is_not_held_out(make_dataset, train, run_step, tmp_path):
    folder = make_dataset()
    model, renamed = train(folder, "model.keras"), folder.with_name("renamed")
    shutil.copytree(folder, renamed)
    table = read_table(renamed, "split.csv")
    swapped = table["split"].map({"train": "test", "test": "train", "dev": "dev"})
    write_table(table.assign(split=swapped), renamed / "split.csv")
    reports = ["--data", folder.parent, "--reports", tmp_path / "reports", "--quick", "--no-faces", "--update-card"]
    for dataset in (renamed, folder):
        done = run_step("evaluation.model_evaluation", "--dataset", dataset.name, "--model", model, *reports)
        assert done.returncode == 0, done.stderr
    leaked, clean = read_card(model).scores
    assert leaked["held_out"] is False and leaked["banner"].startswith("NOT A HELD-OUT SCORE")
    assert "banner" not in clean
    assert describe_scores(read_card(model)).count("NOT A HELD-OUT SCORE") == 1
