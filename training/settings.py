"""A training run's settings as JSON, both ways; Keras is not needed for it."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from configuration import Augmentation, Fitting
from preprocessing.errors import InputError

Settings = TypeVar("Settings", Fitting, Augmentation)


def settings_to_json(fitting: Fitting) -> dict[str, Any]:
    """Return what `json.dumps` writes and `settings_from_json` takes."""
    return json.loads(json.dumps(asdict(fitting)))  # tuples become lists, as they do in a file


def settings_from_json(entries: dict[str, Any]) -> Fitting:
    """Return the settings; what is not named keeps its default.

    Raises:
        InputError: an entry is unknown or of another kind than the default.
    """
    return _filled(Fitting(), entries)


def read_settings(file: Path) -> Fitting:
    """Return the settings in the entry `fitting` of a JSON file that `step2_tuning` wrote, or of a network's card.

    Raises:
        InputError: the file is missing or no JSON, or its settings cannot be used.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content["fitting"] if "fitting" in content else _of_card(content)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist; python -m training.step2_tuning writes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not JSON with settings under 'fitting' ({error!r}); tune again") from error
    try:
        return settings_from_json(entries)
    except InputError as error:
        raise InputError(f"{file}: {error}; remove it, or tune again") from error


def _of_card(card: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a network's card names; there networks that it learnt from are told by content."""
    entries = dict(card["hyperparameters"])
    if entries.get("start_from"):
        entries["start_from"] = card["start_from"]["file"]
    if entries.get("teachers"):
        entries["teachers"] = [teacher["file"] for teacher in card["teachers"]]
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
    if isinstance(default, Augmentation):
        return _filled(default, value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(_like(default[0] if default else "", part, name) for part in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise InputError(f"setting {name} {value!r} is not a value like {default!r}")
    return value
