"""Model cards for tests: valid ones, in which a test names only the entries that matter to it."""

from pathlib import Path
from typing import Any

from inference.model_card import ModelCard, SequenceCard

ENTRIES = {
    "labels": ["anger", "happiness", "neutral"],
    "input_size": 24,
    "channels": 1,
    "align": "landmarks",
    "temperature": 1.0,
}


def model_card(**entries: Any) -> ModelCard:
    return ModelCard.from_json(ENTRIES | entries, Path("test.json"))


def sequence_card(**entries: Any) -> SequenceCard:
    given = {
        "labels": ["anger", "happiness"],
        "window": 6,
        "rate": 30.0,
        "feature_size": 10,
        "features": {"file": "x.keras", "sha256": "ab"},
        "temperature": 1.0,
    }
    return SequenceCard.from_json(given | entries, Path("test.json"))
