"""Helpers of tests that evaluate networks by the command line and read the reports."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from preprocessing.tables import read_table, write_table
from training.data import read_image

SWAPPED = {"anger": "happiness", "happiness": "anger", "neutral": "neutral"}


def metrics_of(report: Path) -> dict[str, Any]:
    return json.loads((report / "metrics.json").read_text())


def refused(done: Any, *words: str) -> bool:
    """Check that a step ended with status 2 and one line, which holds these words."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert all(word in line for word in words), line
    return True


def change_split(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Replace a data set's split.csv by what `change` makes of it."""
    write_table(change(read_table(folder, "split.csv")), folder / "split.csv")


def images_of(folder: Path, paths: Iterable[str]) -> np.ndarray:
    return np.stack([read_image(folder / path, (24, 24), "grayscale") for path in paths])


def with_swapped_votes(table: pd.DataFrame) -> pd.DataFrame:
    """Add votes of ten annotators, most of whom take anger for happiness and happiness for anger."""
    majority = table["emotion"].map(SWAPPED)
    return table.assign(**{f"votes_{label}": 7 * (majority == label) + 3 * (label == "neutral") for label in SWAPPED})
