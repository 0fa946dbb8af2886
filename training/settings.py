"""Settings of a training run: reading, checking, and the images that selected them; does not import Keras."""

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from common.errors import InputError
from common.logging import quiet_start
from configuration import AugmentationConfig, TrainingConfig
from inference import keras_networks
from inference.lineage import ImageHashes, SourceNetwork, read_hashes
from inference.model_card import card_path, check_version
from preprocessing.tables import split_hash

Settings = TypeVar("Settings", TrainingConfig, AugmentationConfig)
CHOICES = {
    "targets": ("labels", "votes"),
    "optimizer": ("adamw", "adam", "sgd", "muon"),
    "schedule": ("cosine", "constant"),
    "precision": ("auto", "float32", "mixed_bfloat16"),
}
_BELOW_ONE = math.nextafter(1, 0)
RANGES = {  # smallest and largest accepted value
    "epochs": (1, 4095),  # the random state of an epoch has 12 bits for its number: see `runs.RunKeeper`
    "batch_size": (1, 1 << 31),
    "patience": (0, 1 << 31),
    "seed": (0, (1 << 31) - 1),
    "convolutions": (1, 16),
    "weight_decay": (0, 10),
    "distillation_weight": (0, 1),
    "mixup": (0, 10),
    "logit_adjustment": (0, 1),
    "dropout": (0, _BELOW_ONE),
    "label_smoothing": (0, _BELOW_ONE),
    "learning_rate": (1e-8, 10),
    "first_layer_rate": (1e-4, 1),
}
AUGMENTATION_RANGES = {
    "rotation": (0, 180),
    "zoom": (0, 0.9),
    "shift": (0, 48),
    "contrast": (0, 1),
    "brightness": (0, 255),
    "small_erasing_count": (0, 64),
    "cutout_max_size": (0, 24),
    "blur": (0, 5),
    "noise": (0, 60),
    "crop": (0.5, 1),
    "full_image_epoch_fraction": (0, 1),
}


def check_settings(config: TrainingConfig, networks: Collection[str]) -> None:
    """Refuse settings that are not accepted.

    Args:
        config: The settings.
        networks: Accepted values of `network`.

    Raises:
        InputError: A value is not accepted; the message names it and what is accepted.
    """
    for name, accepted in {"network": networks, **CHOICES}.items():
        if getattr(config, name) not in accepted:
            raise InputError(f"{name} {getattr(config, name)!r} is not one of {', '.join(accepted)}")
    check_ranges(config, RANGES | {"warmup_epochs": (0, config.epochs - 1)})
    check_ranges(config.augmentation, AUGMENTATION_RANGES, "augmentation: ")
    sizes = config.augmentation.small_erasing_size
    if len(sizes) != 2 or not all(1 <= size <= 48 for size in sizes):
        raise InputError(f"augmentation: small_erasing_size {sizes} is not two numbers of 1 to 48 pixels")
    if not 1 <= len(config.filters) <= 5 or min(config.filters) < 1:
        raise InputError(f"filters {config.filters} are not one to five positive numbers")
    if config.augmentation.crop < 1 and config.patience:
        raise InputError(
            f"patience {config.patience} may stop a training on crops before its epochs on full images; set patience "
            "0, or crop 1"
        )


def check_ranges(options: Any, ranges: Mapping[str, tuple[float, float]], prefix: str = "") -> None:
    """Refuse values out of range, and NaN.

    Args:
        options: An object with one attribute per name.
        ranges: Smallest and largest accepted value by name.
        prefix: Beginning of the message.

    Raises:
        InputError: A value is out of range.
    """
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if not least <= value <= most:
            raise InputError(f"{prefix}{name} {value} is not in {least:.4g} to {most:.4g}")


def check_output(model_file: Path) -> None:
    """Refuse a file name that a new network must not have; commands call this before they train.

    Raises:
        InputError: It is no `.keras` file, belongs to a released network, or the card would replace a settings file.
    """
    if model_file.suffix != ".keras" or model_file.is_dir():
        raise InputError(f"--output {model_file} is not the name of a .keras file; the card goes beside it as .json")
    target = Path(os.path.realpath(model_file))  # unlike `resolve`, it accepts a link to itself
    for released in keras_networks.RELEASED:
        # Some disks are not case-sensitive, and several paths may lead to a folder.
        same_name = target.name.casefold() == released.name.casefold()
        if target == released.resolve() or (same_name and _is_same_folder(target.parent, released.parent)):
            raise InputError(
                f"--output {model_file} would replace the released network {released.name}; give another name, such "
                "as models/mine.keras"
            )
    card = card_path(model_file)
    if card.stem in ("tuned", "tuned-votes") or _is_settings_file(card):
        raise InputError(f"--output {model_file}: its card would replace {card}, a file of settings; give another name")


def _is_same_folder(folder: Path, other: Path) -> bool:
    return folder.exists() and other.exists() and folder.samefile(other)


def _is_settings_file(file: Path) -> bool:
    try:
        return "config" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def tensorboard(folder: Path | None) -> list[Any]:
    """Return the Keras callbacks of `--tensorboard`; none without a folder, and then Keras is not imported.

    Raises:
        InputError: TensorBoard is not installed.
        OSError: The folder cannot be created.
    """
    if folder is None:
        return []
    if not find_spec("tensorboard"):
        raise InputError("--tensorboard needs TensorBoard; install it: pip install tensorboard")
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_start():
        from training.runs import TensorBoard
    return [TensorBoard(folder)]


def settings_to_json(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings as a JSON object, for `settings_from_json`."""
    return json.loads(json.dumps(asdict(config)))  # tuples become lists, as in a file


def settings_from_json(entries: dict[str, Any]) -> TrainingConfig:
    """Return the settings of a JSON object; missing entries have their default.

    Raises:
        InputError: An entry is unknown, or its type differs from that of the default.
    """
    return _filled(TrainingConfig(), entries)


def read_settings(file: Path, teachers: tuple[str, ...] = (), pretrained: str = "") -> TrainingConfig:
    """Return the settings in a JSON file of `step2_tuning` (entry `config`) or in a model card.

    Args:
        file: The JSON file.
        teachers: Teachers that replace those of the file, which then need not exist.
        pretrained: Pretrained network that replaces that of the file, in the same way.

    Raises:
        InputError: The file is missing or is no JSON, or its settings are not accepted.
    """
    if file.suffix == ".keras":
        raise InputError(f"{file} is a network; its settings are in its card: give {card_path(file)}")
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        is_card = "config" not in content
        entries = content["hyperparameters" if is_card else "config"]
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist; python -m training.step2_tuning writes one") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0][:80]
        raise InputError(
            f"{file} is neither JSON with settings under 'config' nor a model card ({reason}); tune again"
        ) from error
    if is_card:
        check_version(content, file, "python -m training.step3_best_model --dataset NAME")
        if "window" in content:
            raise InputError(
                f"{file} is the card of a sequence network; train those with training.step4_sequence_model"
            )
        entries = _of_card(content, file, {"teachers": teachers, "pretrained": pretrained})
    try:
        settings = settings_from_json(entries)
        return replace(settings, teachers=teachers or settings.teachers, pretrained=pretrained or settings.pretrained)
    except InputError as error:
        remedy = "train the network again" if is_card else "remove it, or tune again"
        raise InputError(f"{file}: {error}; {remedy}") from error


def settings_images(settings: Path, table: pd.DataFrame, dataset: str) -> ImageHashes | None:
    """Return the images that selected the settings in a file; None for settings written by hand.

    They are complete only if the list beside the file is the one that the file names, or that of a model card.

    Args:
        settings: A `tuned.json`, or a model card.
        table: `split.csv` of the data set that the settings are used on.
        dataset: Name of that data set.

    Raises:
        InputError: The list of images is damaged.
    """
    hashes = read_hashes(settings.with_suffix(".keras"))
    try:
        content = dict(json.loads(settings.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return replace(hashes, complete=False)  # `read_settings` reports the fault
    found = content.get("found", content)
    found = found if isinstance(found, Mapping) else {}
    if hashes.complete and ("config" not in content or found.get("images") == hashes.content_hash):
        return hashes
    hashes = replace(hashes, complete=False)  # there is no list, or it belongs to another search
    if "config" in content and "found" not in content and not len(hashes.all):
        return None
    if (found.get("dataset"), found.get("split_hash")) == (dataset, split_hash(table)):
        train, dev = (table.loc[table["split"] == name, "pixel_hash"] for name in ("train", "dev"))
        return hashes | ImageHashes.of(train, dev)
    return hashes


def teacher_files(given: Iterable[Path]) -> tuple[str, ...]:
    """Return the given networks, with a folder replaced by the networks in it, in the order of their names.

    Raises:
        InputError: A folder has no network.
    """
    files: list[str] = []
    for path in given:
        found = sorted(path.glob("*.keras")) if path.is_dir() else [path]
        if not found:
            raise InputError(f"--teacher {path} has no .keras file; python -m training.teachers writes some")
        files += map(str, found)
    return tuple(files)


def choose_settings(
    settings: Path | None,
    teachers: tuple[str, ...],
    pretrained: str,
    typed: Mapping[str, Any],
    models_folder: Path,
    configured: TrainingConfig,
) -> TrainingConfig:
    """Return the settings of a training: typed options, then a file of settings, then the configuration.

    Args:
        settings: File of settings, or None.
        teachers: Typed teachers.
        pretrained: Typed pretrained network, or empty.
        typed: Further typed options by name; None: not typed.
        models_folder: Folder of the data set's networks; a tuned file there that is not used is printed.
        configured: The settings without a file.

    Raises:
        InputError: As `read_settings`.
    """
    if settings:
        config = read_settings(settings, teachers, pretrained)
    else:
        config = replace(
            configured, teachers=teachers or configured.teachers, pretrained=pretrained or configured.pretrained
        )
    print(f"settings: {settings or 'configuration.py'}", flush=True)
    config = replace(config, **{name: value for name, value in typed.items() if value is not None})
    tuned = tuned_file(models_folder, config.targets)
    if settings is None and not pretrained and tuned.is_file():
        print(f"note: {tuned} is not used; to use it: --settings {tuned}", flush=True)
    return shortened(config)


def tuned_file(models_folder: Path, targets: str) -> Path:
    """Return the file of tuned settings for these targets, `labels` or `votes`."""
    return models_folder / ("tuned.json" if targets == "labels" else f"tuned-{targets}.json")


def shortened(config: TrainingConfig) -> TrainingConfig:
    """Return the settings with a warm-up that is shorter than the training."""
    return replace(config, warmup_epochs=max(0, min(config.warmup_epochs, config.epochs - 1)))


def _of_card(card: dict[str, Any], file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a model card, with the paths of its source networks unless these are `given`."""

    def path_of(entry: dict[str, Any]) -> str:
        source = SourceNetwork.from_json(entry)
        if place := source.find():
            return str(place)
        command = f"; train it again: {source.command}" if source.command else ""
        raise InputError(f"{file}: its network needs {source.file}, which is missing or has changed{command}")

    read: dict[str, Callable[[Any], Any]] = {
        "pretrained": path_of,
        "teachers": lambda entries: [path_of(entry) for entry in entries],
    }
    try:
        settings = dict(card["hyperparameters"])
        for name, convert in read.items():
            if settings.pop(name, None) and not given[name]:
                settings[name] = convert(card[name])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error!r}); restore it, or train again") from error
    return settings


def _filled(default: Settings, entries: dict[str, Any]) -> Settings:
    """Return the defaults with the entries in their place, each of the type of its default."""
    if not isinstance(entries, dict):
        raise InputError(f"settings {entries!r} are no JSON object")
    names = [field.name for field in fields(default)]
    if unknown := [name for name in entries if name not in names]:
        raise InputError(f"setting {unknown[0]!r} is not one of {', '.join(names)}")
    values = {name: _like(getattr(default, name), value, name) for name, value in entries.items()}
    return replace(default, **values)


def _like(default: Any, value: Any, name: str) -> Any:
    if isinstance(default, AugmentationConfig):
        return _filled(default, value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(_like(default[0] if default else "", part, name) for part in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise InputError(f"setting {name} is too large") from error
    if type(value) is not type(default):
        raise InputError(f"setting {name} {value!r} is not a value like {default!r}")
    return value
