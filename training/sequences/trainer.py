"""The network over the frames of a sequence, as a functional Keras model, and its training.

It takes float32 windows, (n, 1 + window, size): the reference, then the frames (`sequence_classifier.window_of`), and
returns a softmax for each frame, (n, window, classes). All layers are causal, so padding after the last frame has no
effect on earlier outputs and no mask is needed. Built-in layers only.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from common.command_line import counted
from common.errors import InputError
from configuration import SequenceConfig, TrainingConfig
from inference.emotion_classifier import EmotionClassifier
from inference.keras_networks import save
from inference.lineage import ImageHashes, lineage_hashes
from inference.model_card import SequenceCard, card_path, check_crops
from inference.sequence_classifier import described
from preprocessing.tables import content_hash, crop_options, fold_numbers, split_by_fold, split_hash
from training import trainer
from training.cross_validation import features_without, fold_file
from training.data.splits import USE_CAVEAT
from training.lineage import check_held_out
from training.runs import saving, train_or_resume
from training.sequences import data
from training.sequences.data import SequenceBatches, SequenceSet, frame_features, read_sequences
from training.settings import check_output, check_ranges, check_settings

VERSION = 1  # raise this to retrain finished runs when the network or its training changes
UNSUPPORTED = (  # settings that only networks of single faces have
    "pretrained", "teachers", "distillation_weight", "targets", "balance", "first_layer_rate", "logit_adjustment",
    "mixup", "precision", "augmentation",
)  # fmt: skip
_MIN_DEVIATION = 1e-3  # keeps the scale of almost constant features


def build_sequence_network(
    config: TrainingConfig, window: int, scales: tuple[np.ndarray, np.ndarray, np.ndarray], classes: int
) -> keras.Model:
    """Return a new network.

    Each frame and its difference from the reference are standardised and projected. Causal dilated convolutions
    (Bai et al. 2018) run over time.

    Args:
        config: `filters[0]` of each convolution, the number of blocks `convolutions`, and `dropout`.
        window: Frames.
        scales: Statistics of the training frames, (size,) each: mean, standard deviation, and root mean square of the
            differences from the reference.
        classes: Number of classes.
    """
    mean, deviation, change = scales
    size, width = len(mean), config.filters[0]
    inputs = keras.Input((1 + window, size))
    reference = keras.layers.Cropping1D((0, window))(inputs)
    frames = keras.layers.Cropping1D((1, 0))(inputs)
    difference = keras.layers.Subtract()([frames, reference])
    frames = keras.layers.Rescaling((1 / deviation).tolist(), (-mean / deviation).tolist(), name="standardized")(frames)
    difference = keras.layers.Rescaling((1 / change).tolist(), name="change")(difference)
    x = keras.layers.Concatenate()([frames, difference])
    x = keras.layers.Dropout(config.dropout)(x)
    x = keras.layers.Dense(width, activation="relu")(x)
    for block in range(config.convolutions):
        y = keras.layers.Conv1D(width, 3, padding="causal", dilation_rate=2**block, activation="relu")(x)
        x = keras.layers.Add()([x, y])
    x = keras.layers.Dropout(config.dropout)(x)
    x = keras.layers.Dense(classes)(x)
    outputs = keras.layers.Activation("softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(inputs, outputs, name=config.network)


def fit_sequences(
    table: pd.DataFrame,
    folder: Path,
    model_file: Path,
    options: SequenceConfig,
    features_file: Path,
    command: str,
    force: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> bool:
    """Train a network on the sequences of a data set; save the best epoch with its card.

    Args:
        table: The data set's `split.csv`.
        folder: The data set's folder.
        model_file: Where the network is saved.
        options: Settings of the run.
        features_file: The network of single faces that computes the features.
        command: The command that trains this network again, for its card.
        force: Train from the first epoch, even if the run is finished.
        callbacks: Further Keras callbacks; see `train_or_resume`.

    Returns:
        False if `model_file` is already the result of this run.

    Raises:
        InputError: A setting or the name of the file is not accepted, a split has no sequences, an emotion has no
            training sequence, or the features' network takes other crops or was trained on dev or test images.
    """
    check_options(options)
    check_output(model_file)
    crops = crop_options(folder)
    classifier = _read_features_network(features_file, model_file, crops, folder.name)
    check_held_out("--features", features_file, classifier.card, table, folder.name)
    sequences = read_sequences(table, folder)
    print(sequences.note, flush=True)
    train, dev = _split(sequences, folder)
    if "neutral" not in sequences.classes:
        print(
            "note: no sequence shows neutral, so a live face at rest gets an emotion; to learn neutral, list the data "
            "set again with step1_inventory --frames all --neutral-first",
            flush=True,
        )
    features = frame_features(classifier, folder, sequences.frames)
    train_batches = SequenceBatches(train, features, sequences.classes, options, augment=True)
    dev_batches = SequenceBatches(dev, features, sequences.classes, options, augment=False)
    config, origin = options.config, described(features_file)
    settings_of_run = asdict(options)
    settings = {
        "config": settings_of_run.pop("config"),
        "temporal": settings_of_run,
        "labels": list(sequences.classes),
        "split_hash": split_hash(table),
        "sequences": content_hash(sequences.frames[["path", "pixel_hash"]]),
        "features": origin["sha256"],
        "crops": crops,
        "code_versions": {"sequence_model": VERSION, "sequences": data.VERSION, "trainer": trainer.VERSION},
    }
    print(f"{folder.name}: {len(train)} train, {counted(len(dev), 'dev sequence')}, {len(sequences.classes)} emotions; "
          f"{config.network} over the features of {features_file}", flush=True)  # fmt: skip

    trained, selected = (sequences.frames["pixel_hash"].iloc[np.concatenate(part.steps)] for part in (train, dev))
    hashes = lineage_hashes(ImageHashes.of(trained, selected), [features_file])

    def build(_: str) -> tuple[keras.Model, keras.Model]:
        network = build_sequence_network(config, options.window, _scales(features[0], train), len(sequences.classes))
        return network, _compiled(network, config, len(train_batches))

    done = train_or_resume(
        train_batches, dev_batches, model_file, config, settings, build, lambda: "float32", force, callbacks
    )
    if done is None:
        return False
    network, run = done
    entries = {
        "labels": list(sequences.classes),
        "window": options.window,
        "rate": options.rate,
        "window_seconds": round(options.window / options.rate, 3),
        "feature_size": features.shape[-1],
        "features": origin,
        "temperature": 1.0,
        "dataset": folder.name,
        "split_hash": settings["split_hash"],
        "command": command,
        "caveats": [
            USE_CAVEAT,
            "The training sequences run from a neutral face to the peak: it was not trained on faces that return to "
            "neutral, speak, or begin in the middle of an expression.",
        ],
        "training_sequences": len(train),
        "dev_sequences": len(dev),
        **run,
        "hyperparameters": asdict(options),
    }
    card = SequenceCard.from_json(entries, card_path(model_file))
    with saving(model_file):
        save(network, card, model_file, hashes)
    print(f"network: {model_file}")
    return True


def fit_sequence_folds(
    table: pd.DataFrame,
    folder: Path,
    model_file: Path,
    options: SequenceConfig,
    features_file: Path,
    command: str,
    force: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Train one network per fold of the split; the arguments are those of `fit_sequences`."""
    folds = fold_numbers(table)
    for fold in folds:
        print(f"fold {fold} of 0-{folds[-1]}", flush=True)
        source, split = features_without(features_file, folder.name, table, fold), split_by_fold(table, fold)
        fit_sequences(split, folder, fold_file(model_file, fold), options, source, command, force, callbacks)


def _read_features_network(
    features_file: Path, model_file: Path, crops: dict[str, Any], dataset: str
) -> EmotionClassifier:
    """Return the network that computes the features.

    Raises:
        InputError: It takes other crops than those of the data, or would be replaced.
    """
    if features_file.resolve() == model_file.resolve():
        raise InputError(
            f"the new network would replace {features_file}, which gives it features; give another --output"
        )
    classifier = EmotionClassifier.load(features_file, features=True)
    check_crops(features_file, classifier.card, crops, dataset)
    if crops["align"] != (align := classifier.card.align):
        raise InputError(
            f"the crops of {dataset} have --align {crops['align']}, {features_file} takes {align}; make them "
            f"again: preprocessing.step2_face_crops with --align {align}"
        )
    return classifier


def check_options(options: SequenceConfig) -> None:
    """Refuse settings that are not accepted.

    Raises:
        InputError: A value is not accepted; the message names it and what is accepted.
    """
    check_settings(options.config, ["convolution"])
    default = SequenceConfig().config
    for name in UNSUPPORTED:
        if getattr(options.config, name) != getattr(default, name):
            raise InputError(f"{name} is not supported for sequences; remove it from SEQUENCES in configuration.py")
    if options.config.optimizer == "muon":  # it trains image convolutions only
        raise InputError("optimizer muon is not supported for sequences; give adamw in SEQUENCES in configuration.py")
    if len(options.config.filters) != 1:
        raise InputError(f"filters {options.config.filters} of a sequence network are not one number; give one")
    check_ranges(options, {"window": (1, 1024), "rate": (1, 1000)})


def _split(sequences: SequenceSet, folder: Path) -> tuple[SequenceSet, SequenceSet]:
    train, dev = (sequences.of_split(name) for name in ("train", "dev"))
    for name, part in (("train", train), ("dev", dev)):
        if not len(part):
            raise InputError(f"{folder / 'split.csv'} has no usable {name} sequences; split again with step3_split")
    missing = [label for label in sequences.classes if label not in train.shown]
    if missing:
        raise InputError(f"no training sequence shows {', '.join(missing)}; split again with step3_split")
    return train, dev


def _scales(features: np.ndarray, train: SequenceSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scales of `build_sequence_network`, from the training sequences only."""
    frames = features[np.concatenate(train.steps)].astype(np.float64)
    change = np.concatenate([features[steps] - features[steps[0]] for steps in train.steps]).astype(np.float64)
    return (
        frames.mean(axis=0),
        np.maximum(frames.std(axis=0), _MIN_DEVIATION),
        np.maximum(np.sqrt((change**2).mean(axis=0)), _MIN_DEVIATION),
    )


def _compiled(network: keras.Model, config: TrainingConfig, steps_per_epoch: int) -> keras.Model:
    """Return the compiled model that trains a network and shares its weights."""
    model = keras.Model(network.inputs, network.outputs, name="trainer")
    # TensorFlow's XLA takes longer to compile than this network takes to train.
    jit_compile: Any = False if keras.backend.backend() == "tensorflow" else "auto"
    model.compile(
        optimizer=trainer.build_optimizer(config, steps_per_epoch),
        loss=keras.losses.CategoricalCrossentropy(
            label_smoothing=config.label_smoothing, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=jit_compile,
    )
    model.optimizer.build(model.trainable_variables)  # a saved state is loaded before the first step
    return model
