"""Start a training from a finished network: its body as it is, its last layer mapped to the data set's emotions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from common.errors import InputError
from common.files import file_hash
from configuration import ROOT, TrainingConfig
from inference.keras_networks import load_pixel_network
from inference.lineage import SourceNetwork
from inference.model_card import ModelCard, read_card

OF_THE_NETWORK = (
    "network",
    "filters",
    "convolutions",
    "se_reduction",
    "dropout",
)  # settings that the started-from file replaces
# Under a mixed precision, too, these compute in float32, as in `models`.
_IN_FLOAT32 = (keras.layers.Rescaling, keras.layers.Normalization, keras.layers.LayerNormalization)


@dataclass(frozen=True)
class Start:
    """The network that a training starts from.

    Attributes:
        file: The `.keras` file.
        hash: Of its content.
        card: What its card says.
    """

    file: Path
    hash: str
    card: ModelCard

    @classmethod
    def read(cls, file: Path) -> "Start":
        """Return a network's file, hash and card; the network itself is not loaded.

        Raises:
            InputError: the network or its card is missing or damaged.
        """
        card = read_card(file)
        return cls(file, file_hash(file), card)

    @property
    def trained_on(self) -> list[str]:
        """What it learnt from, and what the networks did that it learnt from itself: `fer2013 (crowd votes)`."""
        targets = "crowd votes" if self.card.targets == "votes" else "labels"
        earlier = [source for entry in self.card.sources for source in entry.trained_on]
        return list(dict.fromkeys([*earlier, f"{self.card.dataset or 'unknown data'} ({targets})"]))

    def source(self, network: str = "") -> SourceNetwork:
        """Return the entry for this network in the card of a network that is made from it.

        Args:
            network: What of its architecture is taken.
        """
        return SourceNetwork(
            file=_within_the_project(self.file),
            sha256=self.hash,
            dataset=self.card.dataset,
            split_hash=self.card.split_hash,
            labels=self.card.labels,
            trained_on=tuple(self.trained_on),
            splits=self.card.training_splits,
            command=self.card.command,
            network=network,
        )

    def caveats(self, own: Sequence[str]) -> list[str]:
        """Return what holds of its data, beyond what is said of the new data already."""
        return [f"Of {self.file.name}, which it started from: {line}" for line in self.card.caveats
                if line not in own and not line.startswith("Of ")]  # fmt: skip

    def in_words(self, classes: Sequence[str]) -> str:
        """Return what a training for these classes takes of it."""
        labels = self.card.labels
        if list(classes) == list(labels):
            taken = "all of it is taken"
        else:
            shared = [label for label in classes if label in labels]
            parts = {
                "its last layer's rows for": shared,
                "new rows for": [label for label in classes if label not in labels],
                "dropped": [label for label in labels if label not in classes],
            }
            taken = "; ".join(["its body is taken", *(f"{what} {', '.join(n)}" for what, n in parts.items() if n)])
        return f"starts from {self.file.name}, which learnt from {', '.join(self.trained_on)}: {taken}"


def _within_the_project(file: Path) -> str:
    """Return a file's path from the project's folder on where it lies there, else as it was given."""
    inside = file.resolve().is_relative_to(ROOT)
    return (file.resolve().relative_to(ROOT) if inside else file).as_posix()


def shaping_settings(config: TrainingConfig, start: Start | None, teachers: Sequence[Start]) -> dict[str, Any]:
    """Return the settings that shape a run, for its key and its card.

    A run that starts from a network is told by that file's content, wherever it lies, and has its layers. Teachers are
    told by their content as well.
    """
    settings = asdict(config)
    del settings["pretrained"]
    if teachers:
        settings["teachers"] = [teacher.hash for teacher in teachers]
        if config.teacher_targets == "precomputed":  # as every run was before there was another way: it keeps its key
            del settings["teacher_targets"]
    else:
        del settings["teachers"], settings["distillation_weight"], settings["teacher_targets"]
    if start is None:
        return settings
    return {name: value for name, value in settings.items() if name not in OF_THE_NETWORK} | {"pretrained": start.hash}


def build_from(file: Path, classes: Sequence[str]) -> keras.Model:
    """Return a trainable copy of a saved network that answers for other classes, under the current dtype policy.

    The last dense layer's column of a class that both know is kept; the columns of other classes are new, as of a new
    network. Everything else is taken as it is.

    Args:
        file: The network; its card lies beside it.
        classes: Names in class order.

    Raises:
        InputError: the network cannot be loaded, is not the one of its card, or has no dense layer that gives its
            classes.
    """
    card = read_card(file)
    labels = card.labels
    source: Any = load_pixel_network(file, card)
    same = list(classes) == list(labels)
    dense = [layer for layer in source.layers if isinstance(layer, keras.layers.Dense)]
    head = dense[-1] if dense and dense[-1].units == len(labels) else None
    if head is None and not same:
        raise InputError(f"{file} does not end with a dense layer of {len(labels)} units, one per emotion; its answers "
                         f"cannot be mapped to {', '.join(classes)}; start from another network")  # fmt: skip
    policy = keras.config.dtype_policy().name

    def trainable(layer: keras.layers.Layer) -> keras.layers.Layer:
        in_float32 = isinstance(layer, _IN_FLOAT32) or layer is source.layers[-1]
        config = {**layer.get_config(), "dtype": "float32" if in_float32 else policy, "trainable": True}
        if layer is head:
            config["units"] = len(classes)
        return layer.__class__.from_config(config)

    copy: Any = keras.models.clone_model(source, clone_function=trainable)
    for old, new in zip(source.layers, copy.layers, strict=True):
        if old is not head:
            new.set_weights(old.get_weights())
        else:
            new.set_weights([_mapped(old_weight, new_weight, labels, classes) for old_weight, new_weight
                             in zip(old.get_weights(), new.get_weights(), strict=True)])  # fmt: skip
    return copy


def _mapped(old: np.ndarray, new: np.ndarray, labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return new weights, (..., classes), with the old ones, (..., labels), where both know the emotion."""
    mapped = new.copy()
    for column, name in enumerate(classes):
        if name in labels:
            mapped[..., column] = old[..., labels.index(name)]
    return mapped
