"""A training run's settings as JSON, both ways; Keras is not needed for it."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from common.errors import InputError
from configuration import AugmentationConfig, TrainingConfig
from inference.lineage import SourceNetwork
from inference.model_card import card_path

Settings = TypeVar("Settings", TrainingConfig, AugmentationConfig)


def settings_to_json(config: TrainingConfig) -> dict[str, Any]:
    """Return what `json.dumps` writes and `settings_from_json` takes."""
    return json.loads(json.dumps(asdict(config)))  # tuples become lists, as they do in a file


def settings_from_json(entries: dict[str, Any]) -> TrainingConfig:
    """Return the settings; what is not named keeps its default.

    Raises:
        InputError: an entry is unknown or of another kind than the default.
    """
    return _filled(TrainingConfig(), entries)


def read_settings(file: Path, teachers: tuple[str, ...] = (), pretrained: str = "") -> TrainingConfig:
    """Return the settings in the entry `fitting` of a JSON file that `step2_tuning` wrote, or of a network's card.

    Args:
        file: The JSON file.
        teachers: Networks to learn from instead of those that the file names, which are then not looked for.
        pretrained: Network to start from instead of the one that the file names, in the same way.

    Raises:
        InputError: the file is missing or no JSON, or its settings cannot be used.
    """
    if file.suffix == ".keras":
        raise InputError(f"{file} is a network; its settings are in its card: give {card_path(file)}")
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        is_card = "config" not in content
        entries = content["hyperparameters"] if is_card else content["config"]
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist; python -m training.step2_tuning writes one") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0][:80]
        raise InputError(
            f"{file} is neither JSON with settings under 'fitting' nor a network's card ({reason}); tune again"
        ) from error
    if is_card:
        if "window" in content:
            raise InputError(f"{file} is a sequence network's card; training.step4_sequence_model trains those")
        entries = _of_card(content, file, {"teachers": teachers, "pretrained": pretrained})
    try:
        settings = settings_from_json(entries)
        return replace(settings, teachers=teachers or settings.teachers, pretrained=pretrained or settings.pretrained)
    except InputError as error:
        remedy = "its network was trained by another version" if is_card else "remove it, or tune again"
        raise InputError(f"{file}: {error}; {remedy}") from error


def tuned_file(models_folder: Path, targets: str) -> Path:
    """Return where a search by these targets, `labels` or `votes`, leaves the settings that it found."""
    return models_folder / ("tuned.json" if targets == "labels" else f"tuned-{targets}.json")


def shortened(config: TrainingConfig) -> TrainingConfig:
    """Return the settings with a warm-up that leaves an epoch."""
    return replace(config, warmup_epochs=max(0, min(config.warmup_epochs, config.epochs - 1)))


def _of_card(card: dict[str, Any], file: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a network's card names; there networks that it learnt from are told by content.

    Of those, only what is not `given` is looked for.
    """

    def found(entry: dict[str, Any]) -> str:
        source = SourceNetwork.from_json(entry)
        if place := source.find():
            return str(place)
        made_by = f"; it was made by: {source.command}" if source.command else ""
        raise InputError(f"{file}: its network learnt from {source.file}, which is gone or another one by now{made_by}")

    try:
        entries = dict(card["hyperparameters"])
        if entries.pop("pretrained", "") and not given["pretrained"]:
            entries["pretrained"] = found(card["pretrained"])
        if entries.pop("teachers", ()) and not given["teachers"]:
            entries["teachers"] = [found(entry) for entry in card["teachers"]]
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error!r}); restore it, or train again") from error
    return entries


def _filled(default: Settings, entries: dict[str, Any]) -> Settings:
    """Return the defaults with the entries in their place, each checked against the kind of its default."""
    if not isinstance(entries, dict):
        raise InputError(f"settings {entries!r} are not names with values")
    names = [field.name for field in fields(default)]
    unknown = [name for name in entries if name not in names]
    if unknown:
        raise InputError(f"setting {unknown[0]!r} is not one of {', '.join(names)}")
    values = {name: _like(getattr(default, name), value, name) for name, value in entries.items()}
    return type(default)(**{**vars(default), **values})


def _like(default: Any, value: Any, name: str) -> Any:
    if isinstance(default, AugmentationConfig):
        return _filled(default, value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(_like(default[0] if default else "", part, name) for part in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise InputError(f"setting {name} has a value beyond all numbers") from error
    if type(value) is not type(default):
        raise InputError(f"setting {name} {value!r} is not a value like {default!r}")
    return value
