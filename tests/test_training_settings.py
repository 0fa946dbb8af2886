import json
from dataclasses import replace

import pytest

from configuration import BASELINES, BEST, Augmentation, Fitting
from preprocessing.errors import InputError
from training.settings import read_settings, settings_from_json, settings_to_json


@pytest.mark.parametrize(
    "fitting", [BEST, *BASELINES.values(), replace(BEST, widths=(8,), warm_up=2, teachers=("a.keras",))]
)
def test_settings_survive_a_file(fitting, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"fitting": settings_to_json(fitting)}))
    assert read_settings(file) == fitting and isinstance(read_settings(file).widths, tuple)


def test_what_is_not_named_keeps_its_default():
    settings = settings_from_json({"dropout": 0, "augmentation": {"shift": 2.0}})
    assert settings == Fitting(dropout=0.0, augmentation=Augmentation(shift=2.0))
    assert isinstance(settings.dropout, float)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"depth": 3}, "'depth' is not one of network, widths"),
        ({"augmentation": {"blur": 1.0}}, "'blur' is not one of flip"),
        ({"epochs": "9"}, "epochs '9'"),
        ({"epochs": True}, "epochs True"),
        ({"learning_rate": "fast"}, "learning_rate 'fast'"),
        ({"widths": [32, "64"]}, "widths '64'"),
        ({"widths": 32}, "widths 32"),
        ([], "not names with values"),
    ],
)
def test_other_settings_are_refused_by_name(entries, message, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"fitting": entries}))
    with pytest.raises(InputError, match=rf"tuned\.json: .*{message}"):
        read_settings(file)


def test_a_network_s_card_gives_the_settings_that_made_it(tmp_path):
    card = {"labels": ["anger"], "hyperparameters": settings_to_json(replace(BEST, seed=9))}
    file = tmp_path / "network.json"
    file.write_text(json.dumps(card))
    assert read_settings(file) == replace(BEST, seed=9)
    card["hyperparameters"]["start_from"] = "1f0c"  # the content's hash
    file.write_text(json.dumps({**card, "start_from": {"file": "models/first.keras"}}))
    assert read_settings(file) == replace(BEST, seed=9, start_from="models/first.keras")


@pytest.mark.parametrize("text", [None, "{", "{}", "[]"])
def test_a_file_without_settings_is_refused(text, tmp_path):
    file = tmp_path / "tuned.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"tuned\.json .*tun"):
        read_settings(file)
