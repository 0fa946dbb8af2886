"""Finished networks that a training uses: initial weights for fine-tuning, and teachers for distillation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from common.errors import InputError
from common.files import file_hash
from configuration import ROOT, TrainingConfig
from inference.keras_networks import load_pixel_network
from inference.lineage import SourceNetwork
from inference.model_card import ModelCard, read_card

ARCHITECTURE = ("network", "filters", "convolutions", "dropout")  # settings that `pretrained` replaces
DISTILLATION = ("teachers", "distillation_weight")
# These compute in float32 under every dtype policy, as in `models`.
_IN_FLOAT32 = (keras.layers.Rescaling, keras.layers.Normalization, keras.layers.LayerNormalization)


@dataclass(frozen=True)
class PretrainedNetwork:
    """A finished network that another one is initialised or distilled from.

    Attributes:
        file: The `.keras` file.
        hash: Its content hash.
        card: Its card.
    """

    file: Path
    hash: str
    card: ModelCard

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return the file, hash and card of a network, which is not loaded.

        Raises:
            InputError: The network or its card is missing or damaged.
        """
        card = read_card(file)
        return cls(file, file_hash(file), card)

    @property
    def trained_on(self) -> list[str]:
        """Training data of its lineage, such as `fer2013 (annotator votes)`."""
        targets = "annotator votes" if self.card.targets == "votes" else "labels"
        earlier = [data for source in self.card.sources for data in source.trained_on]
        return list(dict.fromkeys([*earlier, f"{self.card.dataset or 'unknown data'} ({targets})"]))

    def source(self) -> SourceNetwork:
        """Return its entry in the card of the new network."""
        inside = self.file.resolve().is_relative_to(ROOT)
        return SourceNetwork(
            file=(self.file.resolve().relative_to(ROOT) if inside else self.file).as_posix(),
            sha256=self.hash,
            dataset=self.card.dataset,
            split_hash=self.card.split_hash,
            labels=self.card.labels,
            trained_on=tuple(self.trained_on),
            splits=self.card.training_splits,
            command=self.card.command,
        )

    def caveats(self, own: Sequence[str]) -> list[str]:
        """Return the caveats about its data that the new network's own caveats do not include."""
        new = [line for line in self.card.caveats if line not in own and not line.startswith("Of ")]
        return [f"Of {self.file.name}, the pretrained network: {line}" for line in new]

    def describe_use(self, classes: Sequence[str]) -> str:
        """Return what a training for these classes takes of it, for the log."""
        labels = self.card.labels
        parts = {
            "last layer kept for": [label for label in classes if label in labels],
            "new for": [label for label in classes if label not in labels],
            "dropped": [label for label in labels if label not in classes],
        }
        taken = "all layers are used"
        if list(classes) != list(labels):
            taken = "; ".join(f"{what} {', '.join(names)}" for what, names in parts.items() if names)
        return f"pretrained: {self.file.name} (trained on {', '.join(self.trained_on)}); {taken}"


def shaping_settings(
    config: TrainingConfig, pretrained: PretrainedNetwork | None, teachers: Sequence[PretrainedNetwork]
) -> dict[str, Any]:
    """Return the settings that determine the result of a run, for its key and its card.

    Other networks are identified by their content hash, so they may be moved. Architecture settings are left out with a
    pretrained network, and distillation settings without teachers.
    """
    unused = {"pretrained", *(ARCHITECTURE if pretrained else ()), *(() if teachers else DISTILLATION)}
    settings = {name: value for name, value in asdict(config).items() if name not in unused}
    if teachers:
        settings["teachers"] = [teacher.hash for teacher in teachers]
    if pretrained:
        settings["pretrained"] = pretrained.hash
    return settings


def build_from(file: Path, classes: Sequence[str]) -> keras.Model:
    """Return a trainable copy of a saved network for other classes, under the current dtype policy.

    All weights are copied. In the last dense layer, columns of classes that the network does not have are new.

    Args:
        file: The network, with its card.
        classes: Class names, in class order.

    Raises:
        InputError: The network cannot be loaded, does not match its card, or has other classes and no last dense
            layer with one unit per class.
    """
    card = read_card(file)
    labels = card.labels
    source: Any = load_pixel_network(file, card)
    dense = [layer for layer in source.layers if isinstance(layer, keras.layers.Dense)]
    head = dense[-1] if dense and dense[-1].units == len(labels) else None
    if head is None and list(classes) != list(labels):
        raise InputError(
            f"{file} does not end with a dense layer of {len(labels)} units, one per emotion, so it cannot be used for "
            f"{', '.join(classes)}; give another --pretrained"
        )
    policy = keras.config.dtype_policy().name

    def trainable(layer: keras.layers.Layer) -> keras.layers.Layer:
        in_float32 = isinstance(layer, _IN_FLOAT32) or layer is source.layers[-1]
        config = {**layer.get_config(), "dtype": "float32" if in_float32 else policy, "trainable": True}
        if layer is head:
            config["units"] = len(classes)
        return layer.__class__.from_config(config)

    copy: Any = keras.models.clone_model(source, clone_function=trainable)
    for old, new in zip(source.layers, copy.layers, strict=True):
        weights = old.get_weights()
        if old is head:
            pairs = zip(weights, new.get_weights(), strict=True)
            weights = [_mapped(before, after, labels, classes) for before, after in pairs]
        new.set_weights(weights)
    for layer in copy._flatten_layers():  # also those of models inside it, which keep their own setting
        layer.trainable = True
    return copy


def _mapped(old: np.ndarray, new: np.ndarray, labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return new weights, (..., classes), with the columns of shared classes taken from the old ones, (..., labels)."""
    mapped = new.copy()
    for column, name in enumerate(classes):
        if name in labels:
            mapped[..., column] = old[..., labels.index(name)]
    return mapped
