import json
from dataclasses import replace

import pytest

from common.errors import InputError
from common.files import file_hash
from configuration import BASELINES, BEST, FINE_TUNING, PATHS, AugmentationConfig, TrainingConfig
from training.settings import check_settings, read_settings, settings_from_json, settings_to_json


@pytest.mark.parametrize(
    "config", [BEST, *BASELINES.values(), replace(BEST, filters=(8,), warmup_epochs=2, teachers=("a.keras",))]
)
def test_settings_survive_a_file(config, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"config": settings_to_json(config)}))
    assert read_settings(file) == config and isinstance(read_settings(file).filters, tuple)


def test_missing_entries_have_their_default():
    settings = settings_from_json({"dropout": 0, "augmentation": {"shift": 2.0}})
    assert settings == TrainingConfig(dropout=0.0, augmentation=AugmentationConfig(shift=2.0))
    assert isinstance(settings.dropout, float)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"depth": 3}, "'depth' is not one of network, filters"),
        ({"augmentation": {"blur": 1.0}}, "'blur' is not one of flip"),
        ({"epochs": "9"}, "epochs '9'"),
        ({"epochs": True}, "epochs True"),
        ({"learning_rate": "fast"}, "learning_rate 'fast'"),
        ({"filters": [32, "64"]}, "filters '64'"),
        ({"filters": 32}, "filters 32"),
        ({"dropout": 10**400}, "dropout is too large"),
        ([], "no JSON object"),
        (None, "no JSON object"),
    ],
)
def test_refuses_unknown_entries_and_types(entries, message, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"config": entries}))
    with pytest.raises(InputError, match=rf"tuned\.json: .*{message}"):
        read_settings(file)


def test_reads_settings_of_a_model_card(tmp_path):
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


def test_refuses_network_and_sequence_card(tmp_path):
    with pytest.raises(InputError, match=r"x\.keras is a network; .*give .*x\.json"):
        read_settings(tmp_path / "x.keras")
    (tmp_path / "sequence.json").write_text(json.dumps({"window": 64, "hyperparameters": {"window": 64}}))
    with pytest.raises(InputError, match="card of a sequence network"):
        read_settings(tmp_path / "sequence.json")
    with pytest.raises(InputError, match="neither JSON"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("hyperparameters", "entries"),
    [
        ("x", {}),
        ([1, 2], {}),
        (None, {}),
        ({"pretrained": "0"}, {}),
        ({"pretrained": "0"}, {"pretrained": {"file": "x.keras"}}),
        ({"teachers": ["0"]}, {"teachers": "x"}),
    ],
)
def test_refuses_damaged_card(hyperparameters, entries, tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"hyperparameters": hyperparameters, **entries}))
    with pytest.raises(InputError, match=r"card\.json is damaged"):
        read_settings(tmp_path / "card.json")


@pytest.mark.parametrize("text", [None, "{", "{}", "[]", "null", "7"])
def test_refuses_file_without_settings(text, tmp_path):
    file = tmp_path / "tuned.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"tuned\.json .*tun"):
        read_settings(file)


@pytest.mark.parametrize("config", [BEST, FINE_TUNING, *BASELINES.values()])
def test_configured_settings_are_accepted(config):
    check_settings(config, ["vgg", "cifar10", "project1"])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"network": "resnet"}, {"optimizer": "lion"}, {"schedule": "linear"}, {"precision": "int8"}),
        *({"targets": "crowd"}, {"teacher_targets": "twice"}, {"epochs": 0}, {"epochs": 4096}, {"batch_size": 0}),
        *({"seed": -1}, {"seed": 1 << 32}, {"learning_rate": 0.0}, {"label_smoothing": 1.0}, {"warmup_epochs": 36}),
        *({"weight_decay": -1.0}, {"weight_decay": float("nan")}, {"filters": ()}, {"filters": (8, 0)}),
    ],
)
def test_refuses_settings_with_name_and_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError) as caught:
        check_settings(replace(TrainingConfig(), **wrong), ["vgg"])
    assert name in str(caught.value) and str(value) in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"small_erasing_count": -1}, {"small_erasing_size": (-5, 2)}, {"rotation": float("nan")}),
        *({"zoom": float("inf")}, {"contrast": -3.0}, {"crop": 0.4}),
    ],
)
def test_refuses_augmentation_with_name_and_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError) as caught:
        check_settings(replace(TrainingConfig(), augmentation=AugmentationConfig(**wrong)), ["vgg"])
    assert f"augmentation: {name} {value}" in str(caught.value)


def test_refuses_early_stopping_with_crops():
    with pytest.raises(InputError, match="patience 3 may stop"):
        check_settings(replace(BEST, patience=3), ["vgg"])


@pytest.mark.parametrize("name", ["fer2013", "pretrained"])
def test_reads_settings_of_released_networks(name):
    settings = read_settings(PATHS.pretrained.with_name(f"{name}.json"), ("a.keras",), "b.keras")
    check_settings(settings, ["vgg"])
