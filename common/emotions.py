"""The taxonomy: the canonical emotions in class order, and the labels of each data set mapped to them."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from common.errors import InputError

EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt")

# The code of an emotion in a data set is its position in the tuple.
FER2013_CODES = EMOTIONS[:7]
CKPLUS_CODES = ("neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")

# RGB: the palette of Okabe and Ito, which colour-blind readers can distinguish.
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
UNSURE = (100, 100, 100)  # RGB

# Word forms and plain synonyms only. Words that some data sets use as a separate class are excluded, such as "calm"
# beside neutral (RAVDESS) and "smile" beside happiness (GENKI-4K).
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


def css_color(label: str) -> str:
    """Return the colour of an emotion in CSS, such as `#d55e00`; that of `unsure` for other labels."""
    return "#{:02x}{:02x}{:02x}".format(*COLORS.get(label, UNSURE))


def find(name: str) -> str | None:
    """Return the canonical emotion of a common spelling (`Angry`, `0_anger`, `happy`), or None for other words."""
    word = re.sub(r"^\d+[\s_.-]*|[\s_.-]*\d+$", "", name.strip().lower())
    return _CANONICAL.get(word)


def canonical(name: str) -> str:
    """Return the canonical emotion of a common spelling.

    Raises:
        InputError: The spelling is not known.
    """
    emotion = find(name)
    if emotion is None:
        raise InputError(f"unknown emotion {name!r}; accepted are {', '.join(EMOTIONS)} and their common spellings")
    return emotion


def in_class_order(names: Collection[str]) -> list[str]:
    """Return the emotions among the names, in class order."""
    return [emotion for emotion in EMOTIONS if emotion in names]


@dataclass(frozen=True)
class LabelRule:
    """How the classes of a model map to the labels of a data set.

    Attributes:
        labels: The scored classes, in class order.
        columns: Index of each scored class among the model's outputs. The probabilities of other classes are removed,
            and the rest is rescaled to sum to one.
        text: The rule in words; empty if both label sets are equal.
    """

    labels: tuple[str, ...]
    columns: tuple[int, ...]
    text: str


def relate(model_labels: Sequence[str], data_labels: Collection[str]) -> LabelRule:
    """Return the rule that maps the classes of a model to the labels of a data set.

    Classes that the data lacks are removed from the predictions. Images of a class that the model lacks are excluded;
    only `contempt` and `neutral` may be lacking, as not all data sets have them.

    Raises:
        InputError: The labels do not fit.
    """
    missing = [emotion for emotion in in_class_order(data_labels) if emotion not in model_labels]
    shared = [emotion for emotion in in_class_order(data_labels) if emotion in model_labels]
    unknown = sorted((set(model_labels) | set(data_labels)) - set(EMOTIONS))
    if unknown or len(shared) < 2 or set(missing) - {"contempt", "neutral"}:
        raise InputError(
            f"the model's labels ({', '.join(model_labels)}) do not fit the data's ({', '.join(data_labels)}): "
            "the model may lack only contempt and neutral; use a model trained on these labels"
        )
    rules = []
    extra = [label for label in model_labels if label not in shared]
    if extra:
        rules.append(
            f"the data has no {', '.join(extra)}: removed from the predictions, the rest rescaled to sum to one"
        )
    if missing:
        rules.append(f"the model has no {', '.join(missing)}: those images are excluded")
    return LabelRule(tuple(shared), tuple(list(model_labels).index(label) for label in shared), "; ".join(rules))
