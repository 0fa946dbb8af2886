"""The model card: a typed, versioned JSON file beside each network, and its checks.

`X.json` describes the network `X.keras`: input, crops, training, lineage and scores. Reading a card imports neither
Keras nor pandas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from common.emotions import EMOTIONS, in_class_order
from common.errors import InputError
from common.files import file_hash, write_file
from inference.lineage import SourceNetwork, TrainingHistory, as_tuple

MAX_CARD = 10_000_000  # bytes; a card has about ten thousand
CARD_VERSION = 3  # raised when entries are renamed; cards of other versions are refused
TEMPERATURES = (0.01, 100.0)  # accepted values; beyond them, probabilities become 0 and 1, or equal
_ALWAYS_WRITTEN = ("card_version", "abstention_threshold", "scores")
_KINDS = {"str": str, "int": int, "float": (int, float), "tuple": list, "list": list, "dict": dict,
          "SourceNetwork": dict}  # fmt: skip
# Accepted numbers. The crop sizes are those of `inference.faces.check_options`.
_RANGES = {
    "input_size": (8, 1024),
    "channels": (1, 3),
    "temperature": TEMPERATURES,
    "abstention_threshold": (0, 1),
    "window": (1, 10_000),
    "rate": (0.1, 1000),
    "feature_size": (1, 1_000_000),
}


@dataclass(frozen=True, kw_only=True)
class Card(TrainingHistory):
    """The entries that the cards of all networks have.

    Attributes:
        labels: Class names, in class order.
        temperature: Divisor of the logits, fitted by calibration; 1 before.
        abstention_threshold: Smallest probability, 0-1, with which a label is shown.
        labels_hash, network_hash: Content hashes of the labels and of the `.keras` file; empty in a card made by hand.
        dataset, split_hash: Name of the training data and hash of its split; None if unknown.
        fold: Number, count and column of the fold that this network was trained without.
        settings_selected_on: Hash of further images by which the settings were selected.
        calibration: How temperature and threshold were fitted.
        scores: Measured scores, each with `dataset`, `split`, `protocol` and `accuracy`.
        caveats: Sentences about data and use.
        command: The command that trained the network.
        hyperparameters, precision: Settings of the training, by name, and its floating-point policy.
        epoch_chosen, chosen_by, dev_accuracy: The epoch, the rule that chose it, and its accuracy on dev.
        pretrained, teachers: The networks that this one was initialised from and distilled from.
        other: Entries that no code reads; they are kept.
    """

    step: ClassVar[str] = "training.step3_best_model"  # trains such a network
    required: ClassVar[tuple[str, ...]] = ("labels", "temperature")

    labels: tuple[str, ...]
    temperature: float
    abstention_threshold: float = 0.0
    card_version: int = CARD_VERSION
    labels_hash: str = ""
    network_hash: str = ""
    dataset: str | None = None
    split_hash: str | None = None
    fold: dict[str, Any] | None = None
    settings_selected_on: str = ""
    calibration: dict[str, Any] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    caveats: tuple[str, ...] = ()
    command: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    precision: str = ""
    epoch_chosen: int | None = None
    chosen_by: str = ""
    dev_accuracy: float | None = None
    pretrained: SourceNetwork | None = None
    teachers: tuple[SourceNetwork, ...] = ()
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[SourceNetwork, ...]:
        """The networks that this one was initialised from or distilled from."""
        return (*([self.pretrained] if self.pretrained else []), *self.teachers)

    @property
    def training_splits(self) -> tuple[tuple[str | None, str | None], ...]:
        """Data set name and split hash of each training in the lineage, the network's own training first.

        `(None, None)` is data that the card does not name: images that selected its settings, or a calibration on
        another data set.
        """
        own = (self.dataset, self.split_hash)
        unnamed = self.settings_selected_on or self.calibration.get("dataset", self.dataset) != self.dataset
        inherited = (split for source in self.sources for split in source.training_splits if split != own)
        return (own, *inherited, *([(None, None)] if unnamed else []))

    def calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        """Return probabilities with the temperature applied, float32 (n, classes); rows sum to one."""
        scaled = probabilities.astype(np.float64) ** (1 / self.temperature)
        return (scaled / scaled.sum(axis=1, keepdims=True)).astype(np.float32)

    @classmethod
    def from_json(cls, entries: Mapping[str, Any], file: Path) -> Self:
        """Return the card with the entries of a JSON file, checked.

        Args:
            entries: The content of the file.
            file: Its path, for messages.

        Raises:
            InputError: An entry is missing, of another type, or out of range, or the labels were changed.
        """
        kinds = {entry.name: str(entry.type) for entry in fields(cls) if entry.name != "other"}
        remedy = "train again, or restore the card"
        for name, kind in kinds.items():
            if name in entries and _is_kind(entries[name], kind):
                continue
            if name in cls.required:
                raise InputError(f"{file} lacks a valid {name!r}; {remedy}")
            if name in entries:
                raise InputError(f"{file}: {name} {entries[name]!r:.40} cannot be used; {remedy}")
        _check_values(entries, file)
        values = {
            name: as_tuple(entries[name]) if kind.startswith("tuple") else entries[name]
            for name, kind in kinds.items()
            if name in entries
        }
        try:
            if entries.get("pretrained"):
                values["pretrained"] = SourceNetwork.from_json(entries["pretrained"])
            values["teachers"] = tuple(map(SourceNetwork.from_json, entries.get("teachers", [])))
        except ValueError as error:
            raise InputError(f"{file}: {error}; restore the card") from error
        return cls(**values, other={name: value for name, value in entries.items() if name not in kinds})

    def to_json(self) -> dict[str, Any]:
        """Return the card as a JSON object. Entries with their default value are left out."""
        return {name: value for name, value in _json_entries(self).items() if name != "other"} | self.other


@dataclass(frozen=True, kw_only=True)
class ModelCard(Card):
    """The card of a network of single faces.

    Attributes:
        input_size: Side of the square input, pixels.
        channels: 1 (gray) or 3 (RGB).
        align: How faces are aligned: `landmarks` or `box`.
        input_range: The values that 0 and 255 become before the network takes them; None: it takes uint8 pixels.
        targets, training_images: `labels` or `votes`, and the number of training images.
        assumed_prior: Share of each emotion that the network assumes, by name; empty if unknown.
    """

    required: ClassVar[tuple[str, ...]] = ("labels", "input_size", "channels", "align", "temperature")

    input_size: int
    channels: int
    align: str
    input_range: list[float] | None = None
    targets: str = "labels"
    training_images: int | None = None
    assumed_prior: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SequenceCard(Card):
    """The card of a network over the frames of a face.

    Attributes:
        window: Length of the input in frames.
        rate: Frames per second of the training sequences.
        feature_size: Number of features of each frame.
        features: The network that computes the features: `file`, `sha256`.
    """

    step: ClassVar[str] = "training.step4_sequence_model"
    required: ClassVar[tuple[str, ...]] = ("labels", "window", "rate", "feature_size", "features", "temperature")

    window: int
    rate: float
    feature_size: int
    features: dict[str, Any]

    @property
    def training_splits(self) -> tuple[tuple[str | None, str | None], ...]:
        """As in `Card`; the data of the feature network is not named."""
        return (*super().training_splits, (None, None))


AnyCard = TypeVar("AnyCard", bound=Card)


def card_path(model_file: Path) -> Path:
    """Return the path of a network's card."""
    return model_file.with_suffix(".json")


def read_card(model_file: Path, train: str = "") -> ModelCard:
    """Return the card of a network of single faces.

    Args:
        model_file: The network.
        train: The command that trains such a network, for messages; empty: the training step.

    Raises:
        InputError: The network or its card is missing, the card is not JSON, or an entry is missing or out of range.
    """
    return _read(model_file, ModelCard, train)


def read_sequence_card(model_file: Path, train: str = "") -> SequenceCard:
    """Return the card of a sequence network.

    Args:
        model_file: The network.
        train: The command that trains such a network, for messages; empty: the training step.

    Raises:
        InputError: As `read_card`, or the card does not name the feature network.
    """
    card = _read(model_file, SequenceCard, train)
    if not isinstance(card.features.get("sha256"), str):
        raise InputError(f"{card_path(model_file)}: features lacks the sha256 of the feature network; train again")
    return card


def _read(model_file: Path, kind: type[AnyCard], train: str) -> AnyCard:
    train = train or f"python -m {kind.step}"
    if model_file.suffix != ".keras":
        raise InputError(f"{model_file} is not a .keras file; give the network, not its card")
    if model_file.is_dir():
        raise InputError(f"{model_file} is a folder, not a .keras file; save it again by network.save('NAME.keras')")
    if not model_file.is_file():
        raise InputError(f"{model_file} does not exist; train one with {train}")
    file = card_path(model_file)
    if not file.is_file():
        raise InputError(f"{model_file} has no card; {file} must lie beside it (training steps write both)")
    try:
        if file.stat().st_size > MAX_CARD:
            raise ValueError(f"larger than {MAX_CARD / 1e6:.0f} MB")
        entries = json.loads(file.read_bytes())  # Windows writes UTF-16, too
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not readable JSON ({error}); train again, or restore it") from error
    if not isinstance(entries, dict):
        raise InputError(f"{file} lacks a valid {kind.required[0]!r}; train again, or restore the card")
    if "window" in entries and kind is ModelCard:
        raise InputError(f"{model_file} is a sequence network: give it to evaluation.sequences, or as --temporal")
    if "input_size" in entries and kind is SequenceCard:
        raise InputError(f"{model_file} is not a sequence network; train one with {train}")
    check_version(entries, file, train)
    return kind.from_json(entries, file)


def check_version(entries: dict[str, Any], file: Path, train: str) -> None:
    """Refuse a card of another version; a card made by hand needs no version."""
    is_older = bool(entries.get("network_hash")) or "unsure_below" in entries  # the earlier abstention_threshold
    if entries.get("card_version", 1 if is_older else CARD_VERSION) != CARD_VERSION:
        command = entries.get("command") or train
        raise InputError(f"{file} was written by another version of this program; train again: {command}")


def write_card(card: Card, model_file: Path) -> None:
    """Write the card of a network atomically."""
    write_file(card_path(model_file), card_content(card))


def card_content(card: Card) -> bytes:
    """Return the content of the file of a card."""
    return (json.dumps(card.to_json(), indent=2, ensure_ascii=False) + "\n").encode()


def sealed(card: AnyCard, network_hash: str) -> AnyCard:
    """Return the card with the content hashes of its labels and of its network's file."""
    return replace(card, labels_hash=labels_hash(card.labels), network_hash=network_hash)


def labels_hash(labels: Sequence[str]) -> str:
    """Return the hash of class names in their order (SHA-256, 16 hex digits)."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()[:16]


def check_unchanged(card: Card, model_file: Path) -> None:
    """Refuse a network file that changed after its card was saved.

    Cards made by hand have no `network_hash` and are accepted.

    Raises:
        InputError: The content hash differs.
    """
    if card.network_hash and card.network_hash != file_hash(model_file):
        raise InputError(
            f"{card_path(model_file)} was saved with another network than {model_file.name} (network_hash differs); "
            "restore both files, or, where you changed the network, remove network_hash, scores and calibration"
        )


def check_crops(model_file: Path, card: ModelCard, crops: Mapping[str, Any], dataset: str) -> None:
    """Refuse crops that do not fit the input of a network.

    Args:
        model_file: The network.
        card: Its card.
        crops: Options of the crops: `size`, `channels`.
        dataset: Name of their data set.

    Raises:
        InputError: The size or the channels differ.
    """
    if (crops["size"], crops["channels"]) != (card.input_size, card.channels):
        raise InputError(
            f"the crops of {dataset} are {_pixels(crops['size'], crops['channels'])}, {model_file} takes "
            f"{_pixels(card.input_size, card.channels)}; make them again: preprocessing.step2_face_crops with --size "
            f"{card.input_size} --channels {card.channels}"
        )


def _pixels(size: int, channels: int) -> str:
    return f"{size}x{size} pixels {'gray' if channels == 1 else 'RGB'}"


def _check_values(entries: Mapping[str, Any], file: Path) -> None:
    labels = entries["labels"]
    if len(labels) < 2 or not all(label in EMOTIONS for label in labels) or len(in_class_order(labels)) < len(labels):
        raise InputError(f"{file}: labels {labels} are not two or more, each once, among {', '.join(EMOTIONS)}")
    for name, (least, most) in _RANGES.items():
        if name in entries and not _is_number(entries[name], least, most):
            raise InputError(
                f"{file}: {name} {entries[name]!r:.40} is not a number from {least} to {most}; correct the entry"
            )
    if entries.get("channels") == 2:
        raise InputError(f"{file}: channels 2 cannot be used; accepted: 1 (gray) or 3 (RGB)")
    if "input_range" in entries and not _is_range(entries["input_range"]):
        raise InputError(
            f"{file}: input_range {entries['input_range']!r:.80} cannot be used; accepted: the input values of "
            "black and white pixels, such as [0, 1], [-1, 1] or [0, 255]"
        )
    for score in entries.get("scores", []):
        if not (
            isinstance(score, dict)
            and all(isinstance(score.get(name), str) for name in ("dataset", "split", "protocol"))
            and _is_number(score.get("accuracy"), 0, 1)
        ):
            raise InputError(f"{file}: {score!r:.80} in scores is not a score; restore the card")
    if entries.get("labels_hash") and entries["labels_hash"] != labels_hash(labels):
        raise InputError(
            f"{file}: labels or their order differ from those of the saved network (labels_hash); restore the card"
        )


def _is_kind(value: Any, annotation: str) -> bool:
    """Return whether a JSON value fits the annotation of a field, such as `tuple[str, ...]` or `int | None`."""
    kind, _, optional = annotation.partition(" | ")
    if value is None:
        return bool(optional)
    return isinstance(value, _KINDS[kind.partition("[")[0]]) and not isinstance(value, bool)


def _json_entries(card: Card | SourceNetwork) -> dict[str, Any]:
    """Return, as JSON values, the fields that differ from their default and those that are always written."""
    entries = {}
    for entry in fields(card):
        value = getattr(card, entry.name)
        default = entry.default_factory() if callable(entry.default_factory) else entry.default
        if entry.name in _ALWAYS_WRITTEN or value != default:
            entries[entry.name] = _json_value(value)
    return entries


def _json_value(value: Any) -> Any:
    if isinstance(value, SourceNetwork):
        return _json_entries(value)
    return [_json_value(part) for part in value] if isinstance(value, tuple) else value


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_number(end, -1e6, 1e6) for end in value)
        and value[0] < value[1]
    )
