"""Train a network: read the data, build and compile the model, fit it in a run folder, save network and card."""

import hashlib
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from common.command_line import counted
from common.errors import INSTALL_DISTRIBUTED, InputError
from configuration import TrainingConfig
from inference.keras_networks import save
from inference.lineage import ImageHashes, lineage_hashes
from inference.model_card import ModelCard, card_path, check_crops
from training import augmentation, distillation, models
from training.augmentation import build_augmentation
from training.data import FaceBatches, batches
from training.data.splits import own_hashes, read_batches
from training.distillation import StudentModel, Teachers, assumed_prior, class_prior, read_teachers, teacher_priors
from training.lineage import check_held_out
from training.models import training_form
from training.pretrained import PretrainedNetwork, build_from, shaping_settings
from training.runs import saving, train_or_resume
from training.settings import check_output, check_settings

ops: Any = keras.ops  # Keras does not type the results of its operations
VERSION = 1  # raise this to retrain finished runs when targets, loss or optimizer change


def train_network(
    table: pd.DataFrame,
    folder: Path,
    model_file: Path,
    config: TrainingConfig,
    command: str,
    settings_hashes: ImageHashes | None = None,
    force: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    devices: int = 1,
    **facts: Any,
) -> bool:
    """Train a network on a data set, or resume an interrupted run; save the best epoch with its card.

    Args:
        table: The data set's `split.csv`.
        folder: The data set's folder.
        model_file: Where the network is saved, `X.keras`; the card is `X.json`.
        config: Settings of the run.
        command: The command that trains this network again, for its card.
        settings_hashes: The images that selected the settings, if another run did.
        force: Train from the first epoch, even if the run is finished.
        callbacks: Further Keras callbacks; see `train_or_resume`.
        devices: Number of devices that share each batch; see `data_parallel`. It is not part of the run's key: a run
            may be resumed on another number. The results differ only by rounding and by the batch norm statistics of
            each epoch's last batch.
        **facts: Further entries of the card.

    Returns:
        False if `model_file` is already the result of this run.

    Raises:
        InputError: A setting, the file name or a source network is not accepted, the data cannot be used, the training
            diverged, or the run folder is damaged or used by another process.
    """
    check_output(model_file)
    check_settings(config, models.NETWORKS)
    parallel = data_parallel(devices, config.batch_size)
    train, dev, about = read_batches(table, folder, config)
    train.devices = dev.devices = devices
    name = Path(config.pretrained).name or config.network
    counts = f"{len(train.rows)} train, {counted(len(dev.rows), 'dev image')}, {len(train.classes)} emotions"
    print(f"{folder.name}: {counts}; network {name}", flush=True)
    pretrained, teachers = read_sources(config, train.classes, about, table, model_file)
    own = own_hashes(table, folder, config.targets)
    files = [source.file for source in (pretrained, *teachers) if source]
    hashes, selected_on = _with_selection(lineage_hashes(own, files), settings_hashes)
    settings = {
        "config": shaping_settings(config, pretrained, teachers),
        "labels": list(train.classes),
        "split_hash": about["split_hash"],
        "votes_hash": about["votes_hash"],
        "crops": about["crops"],
        "code_versions": {
            "models": models.VERSION,
            "augmentation": augmentation.VERSION,
            "data": batches.VERSION,
            "distillation": distillation.VERSION,
            "trainer": VERSION,
        },
        **selected_on,
    }
    if about["weights_hash"]:
        settings["weights_hash"] = about["weights_hash"]

    def build(precision: str) -> tuple[keras.Model, keras.Model]:
        if pretrained:
            print(pretrained.describe_use(train.classes), flush=True)
        if teachers:
            names = ", ".join(teacher.file.name for teacher in teachers)
            print(f"distilled from {names}", flush=True)
        return build_trainer(train, replace(config, precision=precision))

    with parallel:
        done = train_or_resume(
            train, dev, model_file, config, settings, build, lambda: choose_precision(train, config), force, callbacks
        )
    if done is None:
        return False
    network, run = done
    entries = {
        "labels": list(train.classes),
        "input_size": train.images.shape[1],
        "channels": train.images.shape[3],
        "temperature": 1.0,
        **about,
        "command": command,
        **facts,
        **selected_on,
        "assumed_prior": _assumed_prior(train, config),
        "caveats": about["caveats"] + (pretrained.caveats(about["caveats"]) if pretrained else []),
        "training_images": len(train.rows),
        "dev_images": len(dev.rows),
        **run,
    }
    card = replace(
        ModelCard.from_json(entries, card_path(model_file)),
        pretrained=pretrained and pretrained.source(),
        teachers=tuple(teacher.source() for teacher in teachers),
    )
    with saving(model_file):
        save(network, card, model_file, hashes)
    print(f"network: {model_file}")
    return True


def data_parallel(devices: int, batch_size: int) -> AbstractContextManager[Any]:
    """Return a context in which networks are built and trained on several devices, each with its share of a batch.

    Args:
        devices: Number of devices; 1: the context does nothing.
        batch_size: Images per batch.

    Raises:
        InputError: Keras does not run on JAX, there are fewer devices, or they do not divide the batch.
    """
    if devices == 1:
        return nullcontext()
    if keras.backend.backend() != "jax":
        raise InputError(
            f"--devices {devices} needs Keras on JAX, not on {keras.backend.backend()}; set KERAS_BACKEND=jax; if JAX "
            f"is not installed, {INSTALL_DISTRIBUTED}"
        )
    found = keras.distribution.list_devices()
    if not 1 < devices <= len(found):
        raise InputError(f"--devices {devices}: JAX finds {', '.join(found)}; give at most --devices {len(found)}")
    if batch_size % devices:
        raise InputError(
            f"--devices {devices} does not divide the batch size, {batch_size} images; give --devices "
            f"{math.gcd(devices, batch_size)}, or another batch_size in --settings"
        )
    return keras.distribution.DataParallel(devices=found[:devices]).scope()


def read_sources(
    config: TrainingConfig, classes: Sequence[str], about: dict[str, Any], table: pd.DataFrame, model_file: Path
) -> tuple[PretrainedNetwork | None, list[PretrainedNetwork]]:
    """Return the pretrained network and the teachers of a run, checked.

    Raises:
        InputError: A network is missing, does not fit the data, knows its held-out images, or would be replaced by the
            new network.
    """
    pretrained = PretrainedNetwork.read(Path(config.pretrained)) if config.pretrained else None
    if pretrained:
        check_crops(pretrained.file, pretrained.card, about["crops"], about["dataset"])
        check_held_out("--pretrained", pretrained.file, pretrained.card, table, about["dataset"])
    teachers = read_teachers(config.teachers, classes, about, table)
    for source in (pretrained, *teachers):
        if source and source.file.resolve() == model_file.resolve():
            raise InputError(
                f"the new network would replace its source {source.file}, and could not be trained again; give another "
                "--output"
            )
    return pretrained, teachers


def _assumed_prior(train: FaceBatches, config: TrainingConfig) -> dict[str, float]:
    """Return the share of each emotion that the network assumes, for its card."""
    shares = assumed_prior(class_prior(train), config.logit_adjustment)
    return {label: round(float(share), 4) for label, share in zip(train.classes, shares, strict=True)}


def _with_selection(hashes: ImageHashes, settings_hashes: ImageHashes | None) -> tuple[ImageHashes, dict[str, str]]:
    """Add the images that selected the settings; return the hashes, and the card entry if these are further images.

    Equal settings that were selected on other or unknown images are another run.
    """
    if settings_hashes is None:
        return hashes, {}
    selection = np.union1d(hashes.selection, settings_hashes.selection)
    entry = {}
    if len(selection) > len(hashes.selection) or not settings_hashes.complete:
        unknown = "" if settings_hashes.complete else "unknown images and "
        entry["settings_selected_on"] = unknown + hashlib.sha256(selection.tobytes()).hexdigest()[:16]
    complete = hashes.complete and settings_hashes.complete
    return replace(hashes, selection=selection, complete=complete), entry


def build_trainer(train: FaceBatches, config: TrainingConfig) -> tuple[keras.Model, keras.Model]:
    """Return a network, and the compiled model that trains it, with augmentation in front; both share their weights.

    Args:
        train: The training batches.
        config: Settings of the run; `precision` must not be `auto`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        shape = train.images.shape[1:]
        network = build_network(shape, train.classes, config)
        inputs = keras.Input(shape, dtype="uint8")
        any_size = config.augmentation.crop < 1
        views, clean_views = build_augmentation(config.augmentation, shape, config.seed)(inputs)
        predictions = training_form(network, any_size)(views)
        outputs, prior, tau = keras.tree.flatten(predictions), class_prior(train), config.logit_adjustment
        # Dev images have no weights, so the dev loss is adjusted to the unweighted shares of the classes.
        dev_factors = class_prior(train, weighted=False) / prior ** (1 - tau) if tau else np.ones_like(prior)
        if config.teachers:
            priors, log_prior = teacher_priors(train, config.teachers), (1 - tau) * np.log(prior)
            teachers = Teachers(config.teachers, train.classes, any_size, config.seed + 5, priors, log_prior)
            outputs.append(teachers(clean_views))
        smoothing = config.label_smoothing if config.targets == "labels" else 0.0  # votes are soft already
        trainer = StudentModel(inputs, outputs, config.distillation_weight, smoothing, prior**tau, dev_factors)
        # TensorFlow's XLA has no image warp; the other backends always compile.
        jit_compile: Any = False if keras.backend.backend() == "tensorflow" else "auto"
        trainer.compile(
            optimizer=build_optimizer(config, steps_per_epoch=len(train)),
            loss=keras.losses.CategoricalCrossentropy(),
            weighted_metrics=["accuracy"],
            jit_compile=jit_compile,
        )
        trainer.optimizer.build(trainer.trainable_variables)  # a saved state is loaded before the first step
        if config.first_layer_rate < 1:
            set_layer_rates(trainer, network, config.first_layer_rate)
    finally:
        keras.config.set_dtype_policy(before)
    return network, trainer


def build_network(shape: tuple[int, int, int], classes: Sequence[str], config: TrainingConfig) -> keras.Model:
    """Return the network to train: a new one, or a copy of the pretrained one."""
    if config.pretrained:
        return build_from(Path(config.pretrained), classes)
    shaped = {name: getattr(config, name) for name in ("filters", "convolutions", "dropout")}
    return models.build(config.network, shape, len(classes), **shaped)


class Muon(keras.optimizers.AdamW):
    """Muon for convolutional networks (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    Each update is approximately the orthogonal matrix that is nearest to the momentum of the gradients. It is computed
    in the precision of training. A kernel of shape (height, width, inputs, filters) is a matrix of shape (height *
    width * inputs, filters). Updates have the root mean square of AdamW's, so both share a learning rate (Liu et al.
    2025, https://arxiv.org/abs/2502.16982). AdamW trains all other variables, and kernels with one input channel or
    with one filter per channel. Unlike `keras.optimizers.Muon`, it trains convolutions.

    Args:
        learning_rate: Learning rate or schedule.
        weight_decay: Weight decay of all variables.
    """

    def __init__(self, learning_rate: Any = 1e-3, weight_decay: float = 4e-3):
        super().__init__(learning_rate, weight_decay)
        self.precision = keras.config.dtype_policy().compute_dtype

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable with its gradient."""
        if len(variable.shape) != 4 or 1 in variable.shape[2:]:
            super().update_step(gradient, variable, learning_rate)
            return
        momentum: Any = self._momentums[self._get_variable_index(variable)]
        self.assign(momentum, 0.95 * momentum + gradient)
        rows, filters = math.prod(variable.shape[:3]), variable.shape[3]
        matrix = ops.reshape(gradient + 0.95 * momentum, (rows, filters))  # Nesterov momentum
        matrix = ops.cast(matrix / (ops.norm(matrix) + 1e-7), self.precision)
        if rows > filters:
            matrix = ops.transpose(matrix)
        for _ in range(5):  # each Newton-Schulz iteration moves all singular values towards 1
            squared = matrix @ ops.transpose(matrix)
            matrix = 3.4445 * matrix + (-4.775 * squared + 2.0315 * squared @ squared) @ matrix
        if rows > filters:
            matrix = ops.transpose(matrix)
        scale = 0.2 * max(rows, filters) ** 0.5 * learning_rate
        self.assign_sub(variable, scale * ops.reshape(ops.cast(matrix, variable.dtype), variable.shape))


def build_optimizer(config: TrainingConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Return the optimizer with its learning-rate schedule."""
    rate: Any = config.learning_rate
    cosine, warmup_steps = config.schedule == "cosine", config.warmup_epochs * steps_per_epoch
    if cosine or warmup_steps:
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup_steps else rate,
            config.epochs * steps_per_epoch - warmup_steps,
            alpha=0.0 if cosine else 1.0,  # share of the rate at the end; all of it is a constant rate
            warmup_target=rate if warmup_steps else None,
            warmup_steps=warmup_steps,
        )
    if config.optimizer == "muon":
        return Muon(rate, weight_decay=config.weight_decay)
    if config.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    return keras.optimizers.Adam(rate) if config.optimizer == "adam" else keras.optimizers.SGD(rate)


def set_layer_rates(trainer: Any, network: keras.Model, first: float) -> None:
    """Give each layer of a network its own learning rate (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146).

    The rate grows by equal ratios from the first to the last layer that has a kernel, such as a convolution. Other
    layers, such as batch normalisation, have the rate of the layer before them. Weight decay is the same for all.

    Args:
        trainer: The compiled model that trains the network. Its optimizer must be built, and is changed. The last layer
            keeps the optimizer's learning rate.
        network: The network, which has all trainable variables of the trainer.
        first: Learning rate of the first layer, as a share of that of the last, 0-1.
    """
    depths: dict[int, int] = {}
    depth, owner = -1, ""
    for variable in network.trainable_variables:
        layer, _, name = variable.path.rpartition("/")
        if "kernel" in name and layer != owner:  # a separable convolution has two kernels
            depth, owner = depth + 1, layer
        depths[id(variable)] = max(depth, 0)
    factors = [first ** ((depth - depths[id(variable)]) / max(depth, 1)) for variable in trainer.trainable_variables]
    optimizer, update = trainer.optimizer, trainer.optimizer.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        update(gradient, variable, learning_rate * factors[optimizer._get_variable_index(variable)])

    optimizer.update_step = update_step


def choose_precision(train: FaceBatches, config: TrainingConfig) -> str:
    """Return the precision of a run; for `auto` the faster one, by the median time of a few training steps.

    Args:
        train: The training batches.
        config: Settings of the run.
    """
    if config.precision != "auto":
        return config.precision
    batch = train[0]
    seconds = {}
    for precision in ("float32", "mixed_bfloat16"):
        _, trainer = build_trainer(train, replace(config, precision=precision))
        trainer.train_on_batch(*batch)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            trainer.train_on_batch(*batch)
            times.append(time.perf_counter() - start)
            if times[-1] > 2 * seconds.get("float32", np.inf):
                break  # a processor that lacks this precision takes seconds for each step
        seconds[precision] = float(np.median(times))
    chosen = min(seconds, key=lambda name: seconds[name])
    times_text = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    print(f"precision: {chosen} (one step: {times_text})")
    return chosen
