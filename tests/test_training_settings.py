import json
from dataclasses import replace

import pytest

from common.errors import InputError
from common.files import file_hash
from configuration import BASELINES, BEST, AugmentationConfig, TrainingConfig
from training.settings import read_settings, settings_from_json, settings_to_json


@pytest.mark.parametrize(
    "config", [BEST, *BASELINES.values(), replace(BEST, filters=(8,), warmup_epochs=2, teachers=("a.keras",))]
)
def test_settings_survive_a_file(config, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"config": settings_to_json(config)}))
    assert read_settings(file) == config and isinstance(read_settings(file).filters, tuple)


def test_what_is_not_named_keeps_its_default():
    settings = settings_from_json({"dropout": 0, "augmentation": {"shift": 2.0}})
    assert settings == TrainingConfig(dropout=0.0, augmentation=AugmentationConfig(shift=2.0))
    assert isinstance(settings.dropout, float)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"depth": 3}, "'depth' is not one of network, widths"),
        ({"augmentation": {"blur": 1.0}}, "'blur' is not one of flip"),
        ({"epochs": "9"}, "epochs '9'"),
        ({"epochs": True}, "epochs True"),
        ({"learning_rate": "fast"}, "learning_rate 'fast'"),
        ({"filters": [32, "64"]}, "widths '64'"),
        ({"filters": 32}, "widths 32"),
        ({"dropout": 10**400}, "dropout has a value beyond all numbers"),
        ([], "not names with values"),
        (None, "not names with values"),
    ],
)
def test_other_settings_are_refused_by_name(entries, message, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"config": entries}))
    with pytest.raises(InputError, match=rf"tuned\.json: .*{message}"):
        read_settings(file)


def test_a_network_s_card_gives_the_settings_that_made_it(tmp_path):
    card = {"labels": ["anger"], "hyperparameters": settings_to_json(replace(BEST, seed=9))}
    file = tmp_path / "network.json"
    file.write_text(json.dumps(card))
    assert read_settings(file) == replace(BEST, seed=9)
    first = tmp_path / "first.keras"
    first.write_bytes(b"a network")
    card["hyperparameters"]["pretrained"] = file_hash(first)  # in a run's key networks are told by content
    file.write_text(json.dumps({**card, "pretrained": {"file": str(first), "sha256": file_hash(first)}}))
    assert read_settings(file) == replace(BEST, seed=9, pretrained=str(first))
    first.write_bytes(b"another one")
    with pytest.raises(InputError, match=r"learnt from .*first\.keras, which is gone or another one by now"):
        read_settings(file)
    assert read_settings(file, pretrained="made.keras").pretrained == "made.keras"


def test_a_network_or_a_sequence_network_s_card_in_place_of_a_card_is_told(tmp_path):
    with pytest.raises(InputError, match=r"x\.keras is a network; .*give .*x\.json"):
        read_settings(tmp_path / "x.keras")
    (tmp_path / "sequence.json").write_text(json.dumps({"window": 64, "hyperparameters": {"window": 64}}))
    with pytest.raises(InputError, match="sequence network's card"):
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
def test_a_damaged_card_is_told(hyperparameters, entries, tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"hyperparameters": hyperparameters, **entries}))
    with pytest.raises(InputError, match=r"card\.json is damaged"):
        read_settings(tmp_path / "card.json")


@pytest.mark.parametrize("text", [None, "{", "{}", "[]", "null", "7"])
def test_a_file_without_settings_is_refused(text, tmp_path):
    file = tmp_path / "tuned.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"tuned\.json .*tun"):
        read_settings(file)
