"""Selection of networks, rows and true labels for an evaluation."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd

from common.errors import InputError
from inference.model_card import ModelCard, card_path
from preprocessing.datasets.votes import has_votes
from preprocessing.tables import SPLITS, usable

TRUTHS = ("labels", "majority")


def default_model(folder: Path) -> Path:
    """Return the default network of a folder: `best.keras`, or the only network of single faces.

    Raises:
        InputError: `best.keras` is missing and there are several others.
    """
    best = folder / "best.keras"
    if best.is_file():
        return best
    found = [file for file in sorted(folder.glob("[!.]*.keras")) if file.is_file() and not _reads_sequences(file)]
    if len(found) > 1:
        listed = ", ".join(str(file) for file in found)
        raise InputError(f"{best} does not exist; choose one of these networks with --model: {listed}")
    if found:
        print(f"{best} does not exist; using the only network in {folder}: {found[0]}")
        return found[0]
    return best


def _reads_sequences(model_file: Path) -> bool:
    try:
        return "window" in json.loads(card_path(model_file).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def model_names(files: list[Path]) -> dict[str, Path]:
    """Return the networks by their names in reports: the file name, with the folder if two have the same name.

    Raises:
        InputError: Two networks have the same name.
    """
    counts = Counter(file.stem for file in files)
    named: dict[str, Path] = {}
    for file in files:
        name = f"{file.resolve().parent.name}-{file.stem}" if counts[file.stem] > 1 else file.stem
        if name in named:
            raise InputError(
                f"--model {file} and {named[name]} would share one report ({name}); give each once, or rename"
            )
        named[name] = file
    return named


def report_name(split: str, truth: str, pictures: Path | None, quick: bool) -> str:
    """Return the name of the folder of a report. Reports that do not replace each other have different names."""
    suffix = f"-pictures-{'-'.join(pictures.resolve().parts[1:][-2:])}" if pictures else ""
    return f"{split}-{truth}{suffix}{'-quick' if quick else ''}"


def choose_truth(truth: str | None, cards: list[ModelCard], table: pd.DataFrame) -> tuple[str, list[str]]:
    """Return the kind of true labels, and notes for the report.

    Args:
        truth: The requested kind; None: that of the training of all models, or labels in a table without votes.
        cards: Cards of the models.
        table: The table, with or without votes.

    Raises:
        InputError: The kind is unknown, or the table lacks the votes.
    """
    if truth not in (None, *TRUTHS):
        raise InputError(f"--truth {truth!r} is not one of {', '.join(TRUTHS)}")
    if truth == "majority" and not has_votes(table):
        raise InputError(
            "--truth majority needs annotator votes (columns votes_<emotion>), which the table does not have; leave "
            "out --truth to use the labels of the data set, or give votes to step 1 (--votes)"
        )
    if truth or not all(card.targets == "votes" for card in cards):
        return truth or "labels", []
    if has_votes(table):
        return "majority", []
    return "labels", ["the data set has no annotator votes, on which the model was trained: scored on its labels"]


def rows_of_split(table: pd.DataFrame, split: str | None, folder: Path) -> tuple[pd.DataFrame, str, list[str]]:
    """Return the usable rows of a split, its name, and notes for the report.

    Args:
        table: The whole `split.csv`.
        split: Name of the split; None: test, or dev without a test split.
        folder: Folder of the data set, for messages.

    Raises:
        InputError: The name is unknown, or the split has no usable rows.
    """
    rows, notes = usable(table), []
    if split is None:
        split = "test" if (rows["split"] == "test").any() else "dev"
        if split == "dev":
            notes.append("the table has no test split: these are scores on dev, which chose the epoch")
    if split not in SPLITS:
        raise InputError(f"--split {split!r} is not one of {', '.join(SPLITS)}")
    chosen = rows.loc[rows["split"] == split]
    if chosen.empty:
        present = ", ".join(name for name in SPLITS if (rows["split"] == name).any()) or "none"
        raise InputError(f"{folder / 'split.csv'} has no usable rows in split {split!r}; it has: {present}")
    return chosen, split, notes
