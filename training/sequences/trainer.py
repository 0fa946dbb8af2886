"""The networks over the frames of a sequence, as functional Keras models, and how they are trained.

Each takes float32 windows, (n, 1 + window, size): the reference, then the frames (`sequence_classifier.window_of`), and
gives a softmax at each frame, (n, window, classes). All of it is causal, so the rows behind a sequence's last frame
change nothing before them, and sequences of any length need no mask. Built-in layers only.
"""

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
from inference.keras_networks import check_output
from inference.lineage import ImageHashes, lineage_hashes
from inference.model_card import SequenceCard, card_path
from inference.sequence_classifier import described, save_sequence_network
from preprocessing.tables import content_hash, split_hash
from training.sequences.data import VERSION as SEQUENCES_VERSION
from training.sequences.data import SequenceBatches, SequenceSet, frame_features, read_sequences
from training.trainer import NOT_FEELINGS, build_optimizer, check_settings, train_or_resume
from training.trainer import VERSION as FITTING_VERSION

# Raise this when the same settings are to make or to train another network: finished runs are then repeated.
VERSION = 1
_LEAST_SPREAD = 1e-3  # features that hardly ever change are not blown up


def build_sequence_network(
    config: TrainingConfig, window: int, spread: tuple[np.ndarray, np.ndarray, np.ndarray], classes: int
) -> keras.Model:
    """Return a new network.

    Each frame and its difference from the reference are standardised and projected. Causal dilated convolutions
    (Bai et al. 2018) run over time.

    Args:
        fitting: `widths[0]` is the number of filters, `convolutions` the number of blocks; `dropout`.
        window: Frames.
        spread: Constants of the training frames, (size,) each: mean, standard deviation, and root mean square of the
            differences from the reference.
        classes: Number of classes.
    """
    mean, deviation, change = spread
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
) -> bool:
    """Train a network on the sequences of a data set's table, and save its best epoch with its card.

    Args:
        table: The data set's `split.csv`.
        folder: The data set's folder.
        model_file: Where the network goes.
        options: Every setting of the run.
        features_file: The network of single faces whose features it reads.
        command: The command that makes this network again, for its card.
        force: Train from the first epoch, even where this run is finished.

    Returns:
        False where this very run had been finished before and nothing was done.

    Raises:
        InputError: a setting is not accepted, the table has no whole sequences, the train or dev split has none, or
            an emotion has no training sequence.
    """
    check_options(options)
    check_output(model_file)
    sequences = read_sequences(table, folder)
    print(sequences.note, flush=True)
    train, dev = _split(sequences, folder)
    if "neutral" not in sequences.classes:
        print("note: no sequence shows neutral, so a live face at rest will be named as an emotion; list the data set "
              "again with step1_inventory --frames all --neutral-first to learn it", flush=True)  # fmt: skip
    features = frame_features(EmotionClassifier.load(features_file, features=True), folder, sequences.frames)
    learning = SequenceBatches(train, features, sequences.classes, options, augment=True)
    choosing = SequenceBatches(dev, features, sequences.classes, options, augment=False)
    config, origin = options.config, described(features_file)
    temporal = asdict(options)
    settings = {
        "config": temporal.pop("config"),
        "temporal": temporal,
        "labels": list(sequences.classes),
        "split_hash": split_hash(table),
        "sequences": content_hash(sequences.frames[["path", "pixel_hash"]]),
        "features": origin["sha256"],
        "code_versions": {"sequence_model": VERSION, "sequences": SEQUENCES_VERSION, "config": FITTING_VERSION},
    }
    print(f"{folder.name}: {len(train)} train, {counted(len(dev), 'dev sequence')}, {len(sequences.classes)} emotions; "
          f"{config.network} over the features of {features_file}", flush=True)  # fmt: skip

    trained, selected = (sequences.frames["pixel_hash"].iloc[np.concatenate(part.steps)] for part in (train, dev))
    hashes = lineage_hashes(ImageHashes.of(trained, selected), [features_file])

    def build(_: str) -> tuple[keras.Model, keras.Model]:
        spread = _spread(features[0], train)
        network = build_sequence_network(config, options.window, spread, len(sequences.classes))
        return network, _compiled(network, config, len(learning))

    done = train_or_resume(
        learning, choosing, model_file, config, settings, build, choose=lambda: "float32", force=force
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
        "abstention_threshold": 0.0,
        "dataset": folder.name,
        "split_hash": settings["split_hash"],
        "command": command,
        "caveats": [
            NOT_FEELINGS,
            "It learnt from sequences that run from a neutral face to the peak: faces that return to neutral, speak or "
            "begin in the middle of an expression were not shown to it.",
        ],
        "training_sequences": len(train),
        "dev_sequences": len(dev),
        **run,
        "hyperparameters": asdict(options),
    }
    card = SequenceCard.from_json(entries, card_path(model_file))
    save_sequence_network(network, card, model_file, hashes)
    print(f"network: {model_file}")
    return True


def check_options(options: SequenceConfig) -> None:
    """Refuse settings that cannot be used, each by its name.

    Raises:
        InputError: with the value and what is accepted.
    """
    check_settings(options.config, ["convolution"])
    for name, least, most in (("window", 1, 1024), ("rate", 1, 1000), ("ramp", 0, 100), ("speed", 1, 4)):
        if not least <= getattr(options, name) <= most:
            raise InputError(f"{name} {getattr(options, name)} is not in {least} to {most}")
    if not 0 <= options.cut < 1:
        raise InputError(f"cut {options.cut} is not in 0 to 1")


def _split(sequences: SequenceSet, folder: Path) -> tuple[SequenceSet, SequenceSet]:
    train, dev = (sequences.of_split(name) for name in ("train", "dev"))
    for name, part in (("train", train), ("dev", dev)):
        if not len(part):
            raise InputError(f"{folder / 'split.csv'} has no usable {name} sequences; split again with step3_split")
    missing = [label for label in sequences.classes if label not in train.shown]
    if missing:
        raise InputError(f"no training sequence shows {', '.join(missing)}; split again with step3_split")
    return train, dev


def _spread(features: np.ndarray, train: SequenceSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the constants by which `build_sequence_network` standardises, from the training sequences alone."""
    frames = features[np.concatenate(train.steps)].astype(np.float64)
    change = np.concatenate([features[steps] - features[steps[0]] for steps in train.steps]).astype(np.float64)
    return (
        frames.mean(axis=0),
        np.maximum(frames.std(axis=0), _LEAST_SPREAD),
        np.maximum(np.sqrt((change**2).mean(axis=0)), _LEAST_SPREAD),
    )


def _compiled(network: keras.Model, config: TrainingConfig, steps_per_epoch: int) -> keras.Model:
    """Return the model that trains a network, which shares its weights."""
    trainer = keras.Model(network.inputs, network.outputs, name="trainer")
    # TensorFlow's XLA takes longer to compile a loop over steps than these networks take to train.
    jit_compile: Any = False if keras.backend.backend() == "tensorflow" else "auto"
    trainer.compile(
        optimizer=build_optimizer(config, steps_per_epoch),
        loss=keras.losses.CategoricalCrossentropy(
            label_smoothing=config.label_smoothing, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=jit_compile,
    )
    trainer.optimizer.build(trainer.trainable_variables)  # so that a saved state finds its place before step one
    return trainer
