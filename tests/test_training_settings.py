import json
from dataclasses import replace
from typing import Any

import pytest

from common.errors import InputError
from common.files import file_hash
from configuration import BASELINES, BEST, FINE_TUNING, PATHS, AugmentationConfig, TrainingConfig
from training.settings import check_settings, read_settings, settings_from_json, settings_to_json


@pytest.mark.parametrize(
    "config",
    [BEST, FINE_TUNING, *BASELINES.values(), replace(BEST, filters=(8,), warmup_epochs=2, teachers=("a.keras",))],
)
def test_settings_survive_a_file(config, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"config": settings_to_json(config)}))
    assert read_settings(file) == config and isinstance(read_settings(file).filters, tuple)
    check_settings(replace(config, teachers=()), ["vgg", "cifar10", "project1"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"depth": 3}, "'depth' is not one of network, filters"),
        ({"augmentation": {"fog": 1.0}}, "'fog' is not one of flip"),
        ({"epochs": "9"}, "epochs '9'"),
        ({"epochs": True}, "epochs True"),
        ({"filters": [32, "64"]}, "filters '64'"),
        ({"dropout": 10**400}, "dropout is too large"),
        ([], "no JSON object"),
    ],
)
def test_refuses_unknown_entries_and_types(entries, message, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"config": entries}))
    with pytest.raises(InputError, match=rf"tuned\.json: .*{message}"):
        read_settings(file)


@pytest.mark.parametrize("name", ["fer2013", "pretrained"])
def test_reads_settings_of_released_networks(name):
    settings = read_settings(PATHS.pretrained.with_name(f"{name}.json"), ("a.keras",), "b.keras")
    check_settings(settings, ["vgg"])


def test_reads_settings_of_a_model_card_and_missing_ones_have_their_default(tmp_path):
    settings = settings_from_json({"dropout": 0, "augmentation": {"shift": 2.0}})
    assert settings == TrainingConfig(dropout=0.0, augmentation=AugmentationConfig(shift=2.0))
    card = {"labels": ["anger"], "hyperparameters": settings_to_json(replace(BEST, seed=9))}
    file = tmp_path / "network.json"
    file.write_text(json.dumps(card))
    assert read_settings(file) == replace(BEST, seed=9)
    first = tmp_path / "first.keras"
    first.write_bytes(b"a network")
    card["hyperparameters"]["pretrained"] = file_hash(first)  # cards identify networks by content
    file.write_text(json.dumps({**card, "pretrained": {"file": str(first), "sha256": file_hash(first)}}))
    assert read_settings(file) == replace(BEST, seed=9, pretrained=str(first))
    first.write_bytes(b"another one")
    with pytest.raises(InputError, match=r"needs .*first\.keras, which is missing or has changed"):
        read_settings(file)
    assert read_settings(file, pretrained="made.keras").pretrained == "made.keras"


def test_refuses_files_without_settings(tmp_path):
    with pytest.raises(InputError, match=r"x\.keras is a network; .*give .*x\.json"):
        read_settings(tmp_path / "x.keras")
    (tmp_path / "sequence.json").write_text(json.dumps({"window": 64, "hyperparameters": {"window": 64}}))
    with pytest.raises(InputError, match="card of a sequence network"):
        read_settings(tmp_path / "sequence.json")
    with pytest.raises(InputError, match="neither JSON"):
        read_settings(tmp_path)
    for text in ("{", "{}", "null"):
        (tmp_path / "tuned.json").write_text(text)
        with pytest.raises(InputError, match=r"tuned\.json .*tun"):
            read_settings(tmp_path / "tuned.json")


def test_refuses_damaged_card(tmp_path):
    for hyperparameters, entries in (
        ("x", {}),
        (None, {}),
        ({"pretrained": "0"}, {"pretrained": {"file": "x.keras"}}),
        ({"teachers": ["0"]}, {"teachers": "x"}),
    ):
        (tmp_path / "card.json").write_text(json.dumps({"hyperparameters": hyperparameters, **entries}))
        with pytest.raises(InputError, match=r"card\.json is damaged"):
            read_settings(tmp_path / "card.json")


def test_settings_of_another_version_name_the_step_to_run_again(tmp_path):
    card = {"card_version": 2, "hyperparameters": {}, "command": "python -m x"}
    (tmp_path / "old.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=f"^{tmp_path}/old.json was written .*train again: python -m x"):
        read_settings(tmp_path / "old.json")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"network": "resnet"}, {"optimizer": "lion"}, {"schedule": "linear"}, {"precision": "int8"}),
        *(
            {"targets": "crowd"},
            {"logit_adjustment": 1.1},
            {"first_layer_rate": 0.0},
            {"first_layer_rate": 1.1},
            {"epochs": 0},
            {"epochs": 4096},
            {"batch_size": 0},
        ),
        *({"seed": -1}, {"seed": 1 << 32}, {"learning_rate": 0.0}, {"label_smoothing": 1.0}, {"warmup_epochs": 36}),
        *({"weight_decay": -1.0}, {"weight_decay": float("nan")}, {"filters": ()}, {"filters": (8, 0)}),
    ],
)
def test_refuses_settings_with_name_and_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError) as caught:
        check_settings(replace(TrainingConfig(), **wrong), ["vgg"])
    assert name in str(caught.value) and str(value) in str(caught.value)


def test_refuses_augmentation_with_name_and_value():
    cases: list[dict[str, Any]] = [{"small_erasing_size": (-5, 2)}, {"rotation": float("nan")}, {"crop": 0.4}]
    for wrong in cases:
        ((name, value),) = wrong.items()
        with pytest.raises(InputError) as caught:
            check_settings(replace(TrainingConfig(), augmentation=AugmentationConfig(**wrong)), ["vgg"])
        assert f"augmentation: {name} {value}" in str(caught.value)
    with pytest.raises(InputError, match="patience 3 may stop"):  # before the epochs of whole images
        check_settings(replace(BEST, patience=3), ["vgg"])
