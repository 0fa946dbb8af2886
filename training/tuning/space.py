"""The search space, and the settings that a trial's parameters give."""

from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from common.errors import InputError
from configuration import TrainingConfig

SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(3e-4, 1e-2, log=True),
    "schedule": CategoricalDistribution(("cosine", "constant")),
    "warmup_epochs": IntDistribution(0, 3),
    "weight_decay": FloatDistribution(1e-4, 1e-1, log=True),
    "batch_size": CategoricalDistribution((64, 128, 256)),
    "width": IntDistribution(16, 40, step=8),  # filters of the first stage; the others keep their ratio to it
    "convolutions": IntDistribution(1, 3),
    "dropout": FloatDistribution(0.0, 0.6),
    "augmentation": FloatDistribution(0.0, 1.5),  # factor on rotation, zoom, shift, contrast and brightness
    "small_erasing": IntDistribution(0, 4),  # factor on the size of the boxes; 0: off
    "label_smoothing": FloatDistribution(0.0, 0.2),  # labels only
}
SCALED = ("rotation", "zoom", "shift", "contrast", "brightness")  # multiplied by `augmentation`


def search_space(base: TrainingConfig) -> dict[str, BaseDistribution]:
    """Return the distribution of each searched parameter.

    Raises:
        InputError: The space does not contain the configured settings.
    """
    space = {**SPACE, "warmup_epochs": IntDistribution(0, min(3, base.epochs - 1))}
    if base.targets == "votes":  # they are soft already
        del space["label_smoothing"]
    for name, value in start_params(base).items():
        if name in space and not space[name]._contains(space[name].to_internal_repr(value)):
            raise InputError(
                f"{name} {value} is not in the search space; change BEST, or SPACE in training/tuning/space.py"
            )
    return space


def start_params(base: TrainingConfig) -> dict[str, Any]:
    """Return the parameters of trial 0, which give the configured settings."""
    values = {**vars(base), "width": base.filters[0], "augmentation": 1.0, "small_erasing": 1}
    return {name: values[name] for name in SPACE if name != "label_smoothing" or base.targets == "labels"}


def settings_of(params: dict[str, Any], base: TrainingConfig) -> TrainingConfig:
    """Return the settings of a trial."""
    values = dict(params)
    width, strength, erasing = (values.pop(name) for name in ("width", "augmentation", "small_erasing"))
    options = base.augmentation
    longer, shorter = options.small_erasing_size
    augmentation = replace(
        options,
        **{name: getattr(options, name) * strength for name in SCALED},
        small_erasing_count=options.small_erasing_count if erasing else 0,
        small_erasing_size=(longer * max(erasing, 1), shorter * max(erasing, 1)),
    )
    filters = tuple(round(count * width / base.filters[0]) for count in base.filters)
    return replace(base, **values, filters=filters, augmentation=augmentation)


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Draw one parameter of a trial."""
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)
