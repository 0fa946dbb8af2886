"""The taxonomy: canonical names, whose order is the class index, and how each data set's own labels map to it."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from common.errors import InputError

EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt")

# A data set's own code is the position in its tuple.
FER2013_CODES = EMOTIONS[:7]
CKPLUS_CODES = ("neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")

# RGB, wherever an emotion is drawn: Okabe and Ito's palette, which the colour-blind tell apart.
COLORS = {
    "anger": (213, 94, 0),
    "disgust": (0, 158, 115),
    "fear": (204, 121, 167),
    "happiness": (240, 228, 66),
    "sadness": (0, 114, 178),
    "surprise": (86, 180, 233),
    "neutral": (225, 225, 225),
    "contempt": (230, 159, 0),
}
UNSURE = (100, 100, 100)  # RGB: neither an emotion's colour nor one that draws the eye

# Forms of one word and plain synonyms alone. What a data set may mean as a class of its own is left out: "calm" beside
# neutral (RAVDESS), "smile" beside happiness (GENKI-4K), "unhappy" beside sadness.
_SPELLINGS = {
    "anger": "anger angry ang an",
    "disgust": "disgust disgusted disgusting dis di",
    "fear": "fear fearful afraid scared fea fe",
    "happiness": "happiness happy joy hap ha",
    "sadness": "sadness sad sa",
    "surprise": "surprise surprised suprise sur su",
    "neutral": "neutral neutrality neu ne",
    "contempt": "contempt contemptuous con",
}
_CANONICAL = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}


def find(name: str) -> str | None:
    """Return the canonical emotion of a common spelling (`Angry`, `0_anger`, `happy`), or None where it is none."""
    word = re.sub(r"^\d+[\s_.-]*|[\s_.-]*\d+$", "", name.strip().lower())
    return _CANONICAL.get(word)


def canonical(name: str) -> str:
    """Return the canonical emotion of a common spelling.

    Raises:
        InputError: no known spelling.
    """
    emotion = find(name)
    if emotion is None:
        raise InputError(f"unknown emotion {name!r}; accepted are {', '.join(EMOTIONS)} and their common spellings")
    return emotion


def in_class_order(names: Collection[str]) -> list[str]:
    """Return the distinct canonical names in class order."""
    return [emotion for emotion in EMOTIONS if emotion in names]


@dataclass(frozen=True)
class LabelRule:
    """How a model's classes answer for a data set's labels.

    Attributes:
        labels: The classes that are scored, in class order.
        columns: For each of them, its index among the model's outputs. Probabilities of the model's other classes
            are removed and the rest scaled to sum to one.
        text: The rule in words; empty where both label sets are equal.
    """

    labels: tuple[str, ...]
    columns: tuple[int, ...]
    text: str


def relate(model_labels: Sequence[str], data_labels: Collection[str]) -> LabelRule:
    """Relate a model's classes to a data set's labels.

    Classes that the data does not have are taken out of the model's answer. Images of a class that the model does
    not know can only be left out, and only for `contempt` and `neutral`, which data sets disagree about.

    Raises:
        InputError: no rule relates the two.
    """
    missing = [emotion for emotion in in_class_order(data_labels) if emotion not in model_labels]
    shared = [emotion for emotion in in_class_order(data_labels) if emotion in model_labels]
    unknown = sorted((set(model_labels) | set(data_labels)) - set(EMOTIONS))
    if unknown or len(shared) < 2 or set(missing) - {"contempt", "neutral"}:
        raise InputError(
            f"the model's labels ({', '.join(model_labels)}) do not fit the data's ({', '.join(data_labels)}): "
            "only contempt and neutral may be unknown to the model; use a model trained on these labels"
        )
    rules = []
    extra = [label for label in model_labels if label not in shared]
    if extra:
        rules.append(f"the data has no {', '.join(extra)}: taken out of the model's answer, the rest scaled to one")
    if missing:
        rules.append(f"the model does not know {', '.join(missing)}: those images are left out")
    return LabelRule(tuple(shared), tuple(list(model_labels).index(label) for label in shared), "; ".join(rules))
