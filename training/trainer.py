"""Fit a network, written once for every step: compile, callbacks, resume after an interruption, curves, card.

A run has a folder of its own, `models/DATASET/runs/NAME-KEY/`, where KEY stands for the settings and the data. It holds
`run.json` (both, in full), `history.csv`, `curves.png`, and the weights of the best and the last epoch. An interrupted
run goes on after its last whole epoch; a finished one is not repeated.
"""

import csv
import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from common.command_line import counted
from common.errors import InputError
from common.files import write_file
from common.processes import exclusive_lock
from configuration import TrainingConfig
from inference.keras_networks import check_output, is_whole, save
from inference.lineage import ImageHashes, lineage_hashes
from inference.model_card import ModelCard, card_path, check_crops
from preprocessing.datasets.votes import majority, vote_shares, voted_emotions
from preprocessing.tables import check_unchanged, content_hash, crop_options, labels_of, split_hash, usable
from training import augmentation, data, distillation, models
from training.augmentation import WholeFacesLast, build_augmentation
from training.balancing import sample_weights
from training.data import FaceBatches, flow_from_dataframe
from training.distillation import TaughtModel, Teachers, read_teachers, teach
from training.fast_training import training_form
from training.fine_tuning import Start, build_from, shaping_settings

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "constant")
TARGETS = ("labels", "votes")
TEACHER_TARGETS = ("precomputed", "per_view")
PRECISIONS = ("auto", "float32", "mixed_bfloat16")
NOT_FEELINGS = "It names what a face looks like, not what a person feels; do not use it to decide about people."
# Raise this when the same settings are to train otherwise (targets, loss, optimizer, ...): finished runs are repeated.
VERSION = 1
FIGURES = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}  # of each epoch, in history.csv
MONITOR = "val_accuracy"  # the best epoch is chosen by this
AUGMENTATION_RANGES = (
    ("rotation", 0, 180),
    ("zoom", 0, 0.9),
    ("shift", 0, 48),
    ("contrast", 0, 1),
    ("brightness", 0, 255),
    ("small_erasing_count", 0, 64),
    ("small_erasing_length", 1, 48),
    ("small_erasing_width", 1, 48),
    ("cutout_max_size", 0, 24),  # pixels: half of the smallest face
    ("noise", 0, 60),
    ("crop", 0.5, 1),  # 1: the whole face
    ("full_image_epoch_fraction", 0, 1),
)


def train_network(
    table: pd.DataFrame,
    folder: Path,
    model_file: Path,
    config: TrainingConfig,
    command: str,
    settings_hashes: ImageHashes | None = None,
    force: bool = False,
    **facts: Any,
) -> bool:
    """Train a network on a data set's table, and save its best epoch with its card.

    Args:
        table: The data set's `split.csv`, as `image_tables.read_table` gives it.
        folder: The data set's folder.
        model_file: Where the network goes.
        fitting: Every setting of the run.
        command: The command that makes this network again, for its card.
        settings_hashes: The images by which the settings were selected, where that is another run's work.
        force: Train from the first epoch, even where this run is finished.
        **facts: Further entries of its card.

    Returns:
        False where this very run had been finished before and nothing was done.

    Raises:
        InputError: a setting or the file's name is not accepted, the train or dev split has no usable rows, there
            are fewer than two emotions, or one of them has no training image.
    """
    check_output(model_file)
    train, dev, about = read_batches(table, folder, config)
    counts = f"{len(train.images)} train, {counted(len(dev.images), 'dev image')}, {len(train.classes)} emotions"
    print(f"{folder.name}: {counts}; network {Path(config.pretrained).name or config.network}", flush=True)
    rows = _learning_rows(table, folder, config)
    images = {name: rows.loc[rows["split"] == name, "pixel_hash"] for name in ("train", "dev")}
    own = ImageHashes.of(images["train"], images["dev"])
    about |= {"command": command, **facts}
    return fit(train, dev, model_file, config, about, own, table, settings_hashes, force)


def read_batches(
    table: pd.DataFrame, folder: Path, config: TrainingConfig
) -> tuple[FaceBatches, FaceBatches, dict[str, Any]]:
    """Return the batches to learn from, those to choose by, and what a card says of them.

    Raises:
        InputError: see `fit_table`.
    """
    check_settings(config)
    by_votes = config.targets == "votes"
    rows = _learning_rows(table, folder, config)
    splits = {name: rows.loc[rows["split"] == name] for name in ("train", "dev")}
    classes = voted_emotions(rows) if by_votes else labels_of(rows)
    if len(classes) < 2:
        raise InputError(f"all of {folder / 'split.csv'} shows {classes[0]}; at least two emotions are needed")
    missing = [label for label in classes if not by_votes and label not in set(splits["train"]["emotion"])]
    if missing:
        raise InputError(f"no training image shows {', '.join(missing)}; split again with step3_split")
    weight_col = None
    if config.balance:
        weight_col = "weight"
        splits["train"] = splits["train"].assign(weight=sample_weights(splits["train"], config.balance))
    crops = crop_options(folder)
    flows = {
        name: flow_from_dataframe(
            part,
            folder,
            target_size=(crops["size"], crops["size"]),
            color_mode="grayscale" if crops["channels"] == 1 else "rgb",
            classes=classes,
            y_col=classes if by_votes else "emotion",
            class_mode="raw" if by_votes else "categorical",
            weight_col=weight_col if name == "train" else None,
            mixup=config.mixup if name == "train" else 0.0,
            batch_size=config.batch_size,
            shuffle=name == "train",
            seed=config.seed,
        )
        for name, part in splits.items()
    }
    if crop_options(folder) != crops:
        raise InputError(f"crops in {folder} changed while they were read; wait for step 2, then retry")
    check_unchanged(rows, folder)
    about = {
        "dataset": folder.name,
        "split_hash": split_hash(table),
        "targets": config.targets,
        "votes_hash": content_hash(rows[classes]) if by_votes else "",
        "align": crops["align"],
        "crops": crops,
        "caveats": caveats(rows, crops["channels"], by_votes),
    }
    return flows["train"], flows["dev"], about


def _learning_rows(table: pd.DataFrame, folder: Path, config: TrainingConfig) -> pd.DataFrame:
    """Return the rows that a network is trained and selected on, with annotator votes where those are its targets.

    Raises:
        InputError: The train or dev split has no usable rows.
    """
    rows = usable(table)
    rows = rows.loc[rows["split"].isin(["train", "dev"])]
    if config.targets == "votes":
        rows = _with_votes(rows)
    for name in ("train", "dev"):
        if not (rows["split"] == name).any():
            raise InputError(f"{folder / 'split.csv'} has no usable {name} images; split again with step3_split")
    return rows


def _with_votes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to learn from and to choose by, with each emotion's share of the votes in a column of its name.

    For training that is every image that people named an emotion in; for dev those where more than half agree, so that
    accuracy is agreement with that majority.
    """
    shares = vote_shares(rows)
    named = shares.sum(axis=1) > 0
    agreed = majority(rows) != ""
    return rows.join(shares).loc[named & ((rows["split"] == "train") | agreed)]


def caveats(rows: pd.DataFrame, channels: int, by_votes: bool = False) -> list[str]:
    """Return what whoever uses a network must know of the data it learnt from; the card says it."""
    lines = [NOT_FEELINGS]
    if set(rows["usage"]) <= {"Training", "PublicTest", "PrivateTest"}:
        lines.append("FER2013 holds small gray web images with noisy labels; it is for research use only.")
        if by_votes:
            lines.append("The crowd's votes are FER+ (Barsoum et al. 2016), published under the MIT licence.")
    if channels == 1:
        lines.append("It sees gray: colour, such as of the skin, was neither used nor examined.")
    unknown = [name for name in ("gender", "race", "age") if name not in rows.columns]
    if unknown:
        lines.append(f"The data has no column for {', '.join(unknown)}: bias by any of these is not measured.")
    return lines


def fit(
    train: FaceBatches,
    dev: FaceBatches,
    model_file: Path,
    config: TrainingConfig,
    about: Mapping[str, Any],
    own: ImageHashes,
    table: pd.DataFrame,
    settings_hashes: ImageHashes | None = None,
    force: bool = False,
) -> bool:
    """Train a network, or go on with an interrupted training, and save its best epoch with its card.

    Args:
        train: Batches to learn from.
        dev: Batches to choose the epoch by.
        model_file: Where the network goes, `X.keras`; the card goes beside it.
        fitting: Every setting of the run.
        about: Entries of the card that the caller knows: at least `dataset`, `split_hash`, `votes_hash`, `align`
            and `crops`.
        own: The images that the network is trained and selected on in this run.
        table: The data set's `split.csv`; teachers must not know the images of its dev and test splits.
        settings_hashes: The images by which the settings were selected, where that is another run's work.
        force: Train from the first epoch, even where this run is finished.

    Returns:
        False where this very run had been finished before and nothing was done.

    Raises:
        InputError: the training diverged, its files are damaged or in another process's use, or the network would
            replace one that it learns from.
    """
    start = Start.read(Path(config.pretrained)) if config.pretrained else None
    if start:
        check_crops(start.file, start.card, about["crops"], about["dataset"])
    teachers = read_teachers(config.teachers, train.classes, about, table)
    for source in (start, *teachers):
        if source and source.file.resolve() == model_file.resolve():
            raise InputError(f"the new network would replace {source.file}, which it learns from, so that it could not "
                             "be made again; give another --output")  # fmt: skip
    shaping = shaping_settings(config, start, teachers)
    settings = {
        "config": shaping,
        "labels": list(train.classes),
        "split_hash": about["split_hash"],
        "votes_hash": about["votes_hash"],
        "crops": about["crops"],
        "code_versions": {
            "models": models.VERSION,
            "augmentation": augmentation.VERSION,
            "data": data.VERSION,
            "distillation": distillation.VERSION,
            "trainer": VERSION,
        },
    }

    hashes = lineage_hashes(own, (source.file for source in (start, *teachers) if source))
    selected_on = {}
    if settings_hashes is not None:
        selection = np.union1d(hashes.selection, settings_hashes.selection)
        if len(selection) > len(hashes.selection) or not settings_hashes.complete:
            # The same settings, selected on further or on unknown images, are another run.
            known = "" if settings_hashes.complete else "unknown images and "
            selected_on["settings_selected_on"] = known + hashlib.sha256(selection.tobytes()).hexdigest()[:16]
        hashes = replace(hashes, selection=selection, complete=hashes.complete and settings_hashes.complete)
    settings |= selected_on

    def build(precision: str) -> tuple[keras.Model, keras.Model]:
        if start:
            print(start.in_words(train.classes), flush=True)
        names = ", ".join(teacher.file.name for teacher in teachers)
        if teachers and config.teacher_targets == "per_view":
            print(f"asking {names} in every step about what the network sees", flush=True)
        elif teachers:
            print(f"asking {names} about the training images", flush=True)
            teach(train, teachers, config.distillation_weight, _label_smoothing(config))
        return build_trainer(train, replace(config, precision=precision))

    done = train_or_resume(
        train,
        dev,
        model_file,
        config,
        settings,
        build,
        choose=lambda: choose_precision(train, config),
        force=force,
    )
    if done is None:
        return False
    network, run = done
    caveats = list(about.get("caveats", []))
    if start:
        caveats += start.caveats(caveats)
    entries = {
        "labels": list(train.classes),
        "input_size": train.images.shape[1],
        "channels": train.images.shape[3],
        "temperature": 1.0,
        "abstention_threshold": 0.0,
        **about,
        **selected_on,
        "caveats": caveats,
        "training_images": len(train.images),
        "dev_images": len(dev.images),
        **run,
    }
    card = replace(
        ModelCard.from_json(entries, card_path(model_file)),
        pretrained=start and start.source("its layers; those that the settings name were not used"),
        teachers=tuple(teacher.source() for teacher in teachers),
    )
    save(network, card, model_file, hashes)
    print(f"network: {model_file}")
    return True


def train_or_resume(
    train: keras.utils.PyDataset,
    dev: keras.utils.PyDataset,
    model_file: Path,
    config: TrainingConfig,
    settings: dict[str, Any],
    build: Callable[[str], tuple[keras.Model, keras.Model]],
    choose: Callable[[], str],
    force: bool = False,
) -> tuple[keras.Model, dict[str, Any]] | None:
    """Train any network in a run folder of its own, or go on where an interrupted run was.

    Args:
        train: Batches to learn from, whose attribute `epoch` says which epoch's order they come in.
        dev: Batches to choose the epoch by.
        model_file: Where the network will go; its card will name the run.
        fitting: Settings of the run.
        settings: All that the network depends on, as JSON takes it; the same settings are the same run. They include
            the versions of the code that shapes it.
        build: Returns the network and the compiled model that trains it, in a precision.
        choose: Returns the precision of a new run.
        force: Train from the first epoch, even where the run is finished.

    Returns:
        The network with the weights of its best epoch, and what its card says of the run; None where the network is
        there already, made by this very run.

    Raises:
        InputError: the training diverged, or its files are damaged or in another process's use.
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = model_file.parent / "runs" / f"{model_file.stem}-{key}"
    if not force and _is_made_by(model_file, key, folder):
        print(
            f"unchanged: {model_file} was made by this very run (same settings, data and versions of the code); "
            "nothing to do; the training step's --force trains it again"
        )
        return None
    with exclusive_lock(folder, "or give another --output"):
        if force:
            states = list(folder.glob("*.npz"))
            for old in (*states, folder / "run.json"):  # this last, so that a kill leaves no state without it
                old.unlink(missing_ok=True)
        run = _open_run(folder, settings, choose)
        start = time.monotonic()
        keras.utils.set_random_seed(config.seed)
        network, trainer = build(run["precision"])
        history = _train(trainer, network, train, dev, folder, config)
        best = max(history, key=_merit)
        if not np.isfinite(best["val_loss"]):
            raise InputError(f"the training diverged (see {folder / 'history.csv'}); give a smaller learning rate")
        with _reading(folder):
            read_weights(network.weights, _weights(folder, "best", best["epoch"]))
    print(
        f"{counted(len(history), 'epoch')} ({time.monotonic() - start:.0f} s in this go), best: epoch {best['epoch']} "
        f"with dev accuracy {best[MONITOR]:.4f}\ncurves:  {folder / 'curves.png'}"
    )
    return network, {
        "run": key,
        "started": run["started"],
        "created": datetime.now(UTC).date().isoformat(),
        "parameters": network.count_params(),
        "hyperparameters": settings["config"],
        "precision": run["precision"],
        "seed": config.seed,
        "epochs_run": len(history),
        "epoch_chosen": best["epoch"],
        "chosen_by": "highest accuracy on the dev split, of equal ones the lowest loss, one number per epoch",
        "dev_accuracy": round(best[MONITOR], 4),  # no score: the epoch was chosen by it
        "versions": {"python": platform.python_version(), "keras": keras.version(), "backend": _backend()},
        "scores": [],
    }


def check_settings(config: TrainingConfig, networks: Collection[str] = models.NETWORKS) -> None:
    """Refuse settings that cannot be used, each by its name.

    Args:
        fitting: The settings.
        networks: What may be trained.

    Raises:
        InputError: with the value and what is accepted.
    """
    for name, accepted in (
        ("network", networks),
        ("teacher_targets", TEACHER_TARGETS),
        ("targets", TARGETS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("precision", PRECISIONS),
    ):
        if getattr(config, name) not in accepted:
            raise InputError(f"{name} {getattr(config, name)!r} is not one of {', '.join(accepted)}")
    for name, least, most in (
        ("epochs", 1, 4095),  # see RunKeeper.on_epoch_begin
        ("batch_size", 1, 1 << 31),
        ("patience", 0, 1 << 31),
        ("seed", 0, (1 << 31) - 1),
        ("convolutions", 1, 16),
        ("se_reduction", 0, 64),
        ("warmup_epochs", 0, config.epochs - 1),
    ):
        if not least <= getattr(config, name) <= most:
            raise InputError(f"{name} {getattr(config, name)} is not in {least} to {most}")
    for name, most in (("weight_decay", 10), ("momentum", 1), ("distillation_weight", 1), ("mixup", 10)):
        if not 0 <= getattr(config, name) <= most:  # nor is "not a number"
            raise InputError(f"{name.replace('_', ' ')} {getattr(config, name)} is not in 0 to {most}")
    for name, least, most in AUGMENTATION_RANGES:
        if not least <= getattr(config.augmentation, name) <= most:
            value = getattr(config.augmentation, name)
            raise InputError(f"augmentation: {name.replace('_', ' ')} {value} is not in {least} to {most}")
    if not 1 <= len(config.filters) <= 5 or min(config.filters) < 1:
        raise InputError(f"widths {config.filters} are not one to five numbers of filters")
    for name in ("dropout", "label_smoothing", "beta_1", "beta_2"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"{name.replace('_', ' ')} {getattr(config, name)} is not in 0 to 1")
    if not 0 < config.learning_rate < 10:
        raise InputError(f"learning rate {config.learning_rate} is not between 0 and 10")
    if config.augmentation.crop < 1 and config.patience:
        raise InputError(f"patience {config.patience} may end a training on parts of faces before it has seen whole "
                         "ones; set patience 0, or crop 1")  # fmt: skip


def _backend() -> str:
    return f"{keras.backend.backend()} {__import__(keras.backend.backend()).__version__}"


def _is_made_by(model_file: Path, key: str, folder: Path) -> bool:
    """Return whether a saved network's card says that it was made by this run, and by its latest start."""
    try:
        card = json.loads(card_path(model_file).read_text(encoding="utf-8"))
        if card["run"] != key or not is_whole(model_file):
            return False
        run = folder / "run.json"  # a forced training that is not finished has started later than the network's
        return not run.is_file() or json.loads(run.read_text(encoding="utf-8"))["started"] == card["started"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _open_run(folder: Path, settings: dict[str, Any], choose_precision: Callable[[], str]) -> dict[str, Any]:
    """Return what `run.json` says, after writing it where the run is new."""
    file = folder / "run.json"
    if not file.is_file():
        run = {**settings, "precision": choose_precision(), "started": datetime.now(UTC).isoformat()}
        write_file(file, json.dumps(run, indent=2).encode())
    with _reading(folder):
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["precision"] not in PRECISIONS[1:]:
            raise ValueError(f"precision {run['precision']!r}")
        if not isinstance(run["started"], str):
            raise ValueError(f"started {run['started']!r}")
    return run


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Tell what to do where a run's own files cannot be read."""
    try:
        yield
    except Exception as error:  # a damaged file may raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"the run in {folder} is damaged ({reason}); remove that folder to train anew") from error


def build_trainer(train: FaceBatches, config: TrainingConfig) -> tuple[keras.Model, keras.Model]:
    """Return the network, and the compiled model that trains it: augmentation in front, gone when it is saved.

    Both share their weights. `fitting.precision` must be settled, not `auto`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        shape = train.images.shape[1:]
        network = build_network(shape, train.classes, config)
        augmentation = build_augmentation(config.augmentation, shape, config.seed)
        inputs = keras.Input(shape, dtype="uint8")
        any_size = config.augmentation.crop < 1
        views = augmentation(inputs)
        predictions = training_form(network, any_size)(views)
        if config.teachers and config.teacher_targets == "per_view":
            told = Teachers(config.teachers, train.classes, any_size, config.seed + 5)(views)
            taught = config.distillation_weight, _label_smoothing(config)
            trainer = TaughtModel(inputs, [*keras.tree.flatten(predictions), told], *taught, name="trainer")
        else:
            trainer = keras.Model(inputs, predictions, name="trainer")
        # TensorFlow's XLA knows no image warp; the other backends always compile.
        jit_compile: Any = False if keras.backend.backend() == "tensorflow" else "auto"
        trainer.compile(
            optimizer=build_optimizer(config, steps_per_epoch=len(train)),
            loss=keras.losses.CategoricalCrossentropy(
                label_smoothing=0.0 if config.teachers else _label_smoothing(config)
            ),
            metrics=["accuracy"],
            jit_compile=jit_compile,
        )
        trainer.optimizer.build(trainer.trainable_variables)  # so that a saved state finds its place before step one
    finally:
        keras.config.set_dtype_policy(before)
    return network, trainer


def _label_smoothing(config: TrainingConfig) -> float:
    """Return the smoothing of the data's own targets; votes are soft already."""
    return config.label_smoothing if config.targets == "labels" else 0.0


def full_images_last(config: TrainingConfig) -> list[keras.callbacks.Callback]:
    """Return the callbacks that a training on parts of faces needs, to end with whole ones; none for another one."""
    options = config.augmentation
    if options.crop == 1:
        return []
    first = round(config.epochs * (1 - options.full_image_epoch_fraction))
    return [WholeFacesLast(options.crop, min(first, config.epochs - 1) if options.full_image_epoch_fraction else first)]


def build_network(shape: tuple[int, int, int], classes: Sequence[str], config: TrainingConfig) -> keras.Model:
    """Return the network to be trained: a new one, or a copy of the one that the run starts from."""
    if config.pretrained:
        return build_from(Path(config.pretrained), classes)
    shaped = {name: getattr(config, name) for name in ("filters", "convolutions", "se_reduction", "dropout")}
    return models.build(config.network, shape, len(classes), **shaped)


def build_optimizer(config: TrainingConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Return the optimiser with its learning rate's schedule."""
    rate: Any = config.learning_rate
    cosine, warmup_epochs = config.schedule == "cosine", config.warmup_epochs * steps_per_epoch
    if cosine or warmup_epochs:
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup_epochs else rate,
            config.epochs * steps_per_epoch - warmup_epochs,
            alpha=0.0 if cosine else 1.0,  # the share that is left at the end: all of it is a constant rate
            warmup_target=rate if warmup_epochs else None,
            warmup_steps=warmup_epochs,
        )
    betas: Any = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    if config.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, **betas)
    if config.optimizer == "adam":
        return keras.optimizers.Adam(rate, **betas)
    return keras.optimizers.SGD(rate, momentum=config.momentum)


def choose_precision(train: FaceBatches, config: TrainingConfig, steps: int = 4) -> str:
    """Return the precision of the run; for `auto` the faster one here, by timing a few steps of each."""
    if config.precision != "auto":
        return config.precision
    batch = train[0]
    seconds = {}
    for precision in ("float32", "mixed_bfloat16"):
        _, trainer = build_trainer(train, replace(config, precision=precision))
        trainer.train_on_batch(*batch)
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            trainer.train_on_batch(*batch)
            times.append(time.perf_counter() - start)
        seconds[precision] = float(np.median(times))
    chosen = min(seconds, key=lambda name: seconds[name])
    times_text = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    print(f"precision: {chosen} (one step: {times_text})")
    return chosen


def _train(
    trainer: keras.Model, network: keras.Model, train: Any, dev: Any, folder: Path, config: TrainingConfig
) -> list[dict[str, float]]:
    """Fit from the last whole epoch on, and return one row of figures per epoch."""
    keeper = RunKeeper(folder, network, config.patience)
    done = keeper.restore(trainer)
    if done:
        print(f"going on after epoch {done} of {config.epochs} ({folder})")
    if done < config.epochs and not keeper.out_of_patience():
        train.epoch = done
        verbose: Any = 1 if os.isatty(1) else 2  # a bar, or a line per epoch in a log
        trainer.fit(
            train,
            validation_data=dev,
            epochs=config.epochs,
            initial_epoch=done,
            callbacks=[*full_images_last(config), keeper],
            shuffle=False,  # the batches come in their own seeded order
            verbose=verbose,
        )
    draw_curves(keeper.history, folder / "curves.png")
    return keeper.history


def _merit(row: dict[str, float]) -> tuple[float, float]:
    """Return what an epoch is chosen by; on a small dev split many are equally accurate, and the loss tells more."""
    return row[MONITOR], -row["val_loss"]


def _weights(folder: Path, what: str, epoch: float) -> Path:
    return folder / f"{what}-{int(epoch):04d}.npz"


def write_weights(variables: Sequence[Any], file: Path) -> None:
    """Write the values of Keras variables, in their order, as NumPy's `.npz`, which has a checksum of each.

    Raises:
        OSError: the disk is full, or the file does not read back as it was written.
    """
    content = io.BytesIO()
    values: list[Any] = [keras.ops.convert_to_numpy(variable) for variable in variables]
    np.savez(content, *values)
    write_file(file, content.getvalue())


def read_weights(variables: Sequence[Any], file: Path) -> None:
    """Give Keras variables the values that `write_weights` wrote; none of them where the file is damaged.

    Raises:
        ValueError: the file holds other variables. A damaged file raises this or almost any other exception.
    """
    with np.load(file) as arrays:
        values = [arrays[f"arr_{index}"] for index in range(len(arrays.files))]
    if [(value.shape, str(value.dtype)) for value in values] != [(v.shape, v.dtype) for v in variables]:
        raise ValueError(f"{file.name} holds other weights")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _state(trainer: Any) -> list[Any]:
    """Return the variables that a resumed training needs: all weights, and those of the optimizer."""
    return [*trainer.weights, *trainer.optimizer.variables]


class RunKeeper(keras.callbacks.Callback):
    """Keep a run's history, best weights and whole state on disk, so that a kill at any moment costs one epoch at most.

    The order of writing makes it safe: the epoch's best weights, then its line of history, then the state that names
    the epoch; only then are older files removed. Restoring starts from the newest state and forgets later lines.

    Args:
        folder: The run's folder.
        network: The network whose weights are kept as the best.
        patience: Epochs without a better dev accuracy before training stops; 0: never.
    """

    def __init__(self, folder: Path, network: keras.Model, patience: int):
        super().__init__()
        self.folder = folder
        self.network = network
        self.patience = patience
        self.history: list[dict[str, float]] = []

    def restore(self, trainer: keras.Model) -> int:
        """Load the newest state into the trainer; return the number of epochs it has done."""
        for state in sorted(self.folder.glob("state-*.npz"), reverse=True):
            with _reading(self.folder):
                epoch = int(state.name.split("-")[1].split(".")[0])
                history = self._read_history(epoch)
                if len(history) == epoch:
                    self.history = history
                    best = _weights(self.folder, "best", self._best())
                    read_weights(self.network.weights, best)  # fails now, not at the end
                    read_weights(_state(trainer), state)
                    return epoch
        return 0

    def out_of_patience(self) -> bool:
        """Tell whether the most accurate epoch lies `patience` epochs back."""
        if not (self.patience and self.history):
            return False
        most_accurate = int(max(self.history, key=lambda row: row[MONITOR])["epoch"])  # the first of equal ones
        return len(self.history) - most_accurate >= self.patience

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Set the random numbers of augmentation and dropout by the epoch: Keras saves no state of theirs."""
        trainer: Any = self.model
        for variable in trainer.non_trainable_variables:
            if variable.path.endswith("seed_generator_state"):
                variable.assign([variable.numpy()[0], epoch << 20])

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write the finished epoch; `epoch` counts from 0 here, from 1 in the files."""
        trainer: Any = self.model
        number = epoch + 1
        row = {"epoch": number, **{name: float(value) for name, value in (logs or {}).items()}}
        row["learning_rate"] = float(trainer.optimizer.learning_rate)
        self.history.append(row)
        if self._best() == number:
            write_weights(self.network.weights, _weights(self.folder, "best", number))
        self._write_history()
        write_weights(_state(trainer), _weights(self.folder, "state", number))
        keep = {_weights(self.folder, "best", self._best()), _weights(self.folder, "state", number)}
        for old in set(self.folder.glob("*.npz")) - keep:
            old.unlink()
        if self.out_of_patience():
            trainer.stop_training = True

    def _best(self) -> int:
        return int(max(self.history, key=_merit)["epoch"])

    def _write_history(self) -> None:
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, list(self.history[0]))
        writer.writeheader()
        writer.writerows(self.history)
        write_file(self.folder / "history.csv", lines.getvalue().encode())

    def _read_history(self, epochs: int) -> list[dict[str, float]]:
        file = self.folder / "history.csv"
        if not file.is_file():
            return []
        with file.open(newline="") as lines:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
        rows = [{**row, "epoch": int(row["epoch"])} for row in rows[:epochs]]
        if any(row["epoch"] != number or not row.keys() >= FIGURES for number, row in enumerate(rows, 1)):
            raise ValueError(f"{file.name} lacks an epoch or a figure")
        return rows


def draw_curves(history: list[dict[str, float]], file: Path) -> None:
    """Draw loss and accuracy over the epochs, for the training and the dev split."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[name] for row in history], label="train (augmented)")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], label="dev")
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.3)
        axes.legend()
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format=file.suffix[1:])
    write_file(file, content.getvalue())
