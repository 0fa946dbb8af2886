"""How honest a score is: where the split comes from, what the model saw of it, and what the score is without copies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError
from configuration import SAMPLE_NAME, EvaluationConfig
from evaluation.metrics.scores import estimate_scores
from evaluation.predictions import Predictions
from evaluation.report.section import Section, Table, percent
from evaluation.sections.performance import format_interval, format_score
from inference.lineage import SourceNetwork, hashes_file
from inference.model_card import ModelCard
from preprocessing.datasets.votes import MAJORITY
from preprocessing.splitting import choose_strategy
from preprocessing.tables import (
    OFFICIAL_SPLITS,
    crop_options,
    fold_numbers,
    is_usable,
    read_provenance,
    read_table,
    split_by_fold,
    split_hash,
    usable,
)

_SCORES = ("accuracy", "balanced_accuracy", "macro_f1")


def protocol(predictions: Predictions, averaging: str = "no test-time averaging") -> str:
    """Return how a score came about, in the words that stand beside it everywhere."""
    learnt = "trained on crowd votes" if predictions.card.targets == "votes" else "no extra labels"
    truth = f", scored against the {MAJORITY}" if predictions.scored_by_majority else ""
    networks = "one network per fold" if predictions.fold_column else "one network"
    if start := predictions.card.pretrained:
        extra = _learnt_more(start, predictions.card)
        own = "" if extra and learnt == "no extra labels" else f"{learnt}, "
        learnt = f"{own}{'extra data: ' if extra else ''}{_started_from(start)}"
    if teachers := predictions.card.teachers:
        extra = any(_learnt_more(teacher, predictions.card) for teacher in teachers)
        learnt = learnt.replace("no extra labels", "extra labels") if extra else learnt
        learnt = f"{learnt}, {_taught_by(teachers)}"
    return f"{networks}, one crop per face, {averaging}, {learnt}{truth}"


def _learnt_more(entry: SourceNetwork, card: ModelCard) -> bool:
    """Return whether a network that another one started or learnt from knows more than its data and targets."""
    own = f"{card.dataset} ({'crowd votes' if card.targets == 'votes' else 'labels'})"
    elsewhere = entry.was_trained_on_another_split(card.dataset or "", card.split_hash or "")
    return elsewhere or any(source != own for source in entry.trained_on)


def _started_from(start: SourceNetwork) -> str:
    return f"started from {_name(start)}, which learnt from {', '.join(start.trained_on)}"


def _taught_by(teachers: Sequence[SourceNetwork]) -> str:
    """Return which networks another one learnt from, and what they had learnt from."""
    sources = dict.fromkeys(source for teacher in teachers for source in teacher.trained_on)
    return f"distilled from {', '.join(map(_name, teachers))}, which learnt from {', '.join(sources)}"


def _name(start: SourceNetwork) -> str:
    """Return the file name of a network that another one started or learnt from, as its card has it."""
    return start.file.rpartition("/")[2]


def banner(predictions: Predictions) -> str:
    """Return the one line that must stand on every page of a report whose figures are not clean; empty where they are.

    The first reason that applies: the gravest.
    """
    if SAMPLE_NAME in (predictions.dataset, predictions.card.dataset):
        return "the sample is one portrait, warped: no score on it means anything"
    exposure, n = predictions.exposure, len(predictions.rows)
    if exposure.held_out is False:
        return f"NOT A HELD-OUT SCORE: the model was trained on {_part_of(exposure.trained, n)}"
    if exposure.held_out is None:
        return (
            "NOT KNOWN WHETHER HELD OUT: no complete list of the model's training images "
            f"({hashes_file(predictions.model_file).name}) lies beside its card"
        )
    if exposure.selected:
        return (
            f"the model was selected on {_part_of(exposure.selected, n)}: expect a lower score on images that played "
            "no part in its selection"
        )
    return ""


def _part_of(count: int, n: int) -> str:
    """Return how many of the scored images were seen."""
    return "these images" if count == n else f"{count:,} of these {n:,} images"


def provenance_section(
    predictions: Predictions, folder: Path, table: pd.DataFrame, notes: list[str], options: EvaluationConfig
) -> Section:
    """Return what a reader must know before believing the scores.

    Args:
        answers: The model's answers.
        folder: The data set's folder.
        table: All of its `split.csv`.
        notes: What is known already, such as that there is no test split.
        options: For the intervals.
    """
    same_data = predictions.card.dataset == predictions.dataset
    duplicates, shown = _copies(predictions, table)
    facts = {
        "data set": f"{predictions.dataset}, the model's own"
        if same_data
        else f"{predictions.dataset}, unknown to the model",
        "split": _provenance(predictions, folder, table),
        "part in the training": _part_in_training(predictions),
        "training data": _training_data(predictions, table),
        "people in this split and in training": _shared_people(predictions, table),
        "exact copies of training images": f"{duplicates.sum():,} of {len(duplicates):,} images",
        "left out": _left_out(predictions, table),
        "labels": _label_sources(predictions),
        "protocol": protocol(predictions),
        "crops": f"aligned by {crop_options(folder)['align']}",
    }
    frame = pd.DataFrame({"": facts.values()}, index=pd.Index(facts, name="question"))
    tables = [Table(frame, "Where the figures come from")]
    values: dict = {
        "banner": banner(predictions),
        "held_out": predictions.exposure.held_out,
        "selected_on": predictions.exposure.selected > 0,
        "trained_on_images": predictions.exposure.trained,
        "selected_on_images": predictions.exposure.selected,
        "protocol": protocol(predictions),
        "duplicates": int(duplicates.sum()),
    }
    sentences = []
    if duplicates.any() and not duplicates.all():
        compared = _without_copies(predictions, duplicates, options)
        values["copies_scores"] = compared
        tables.append(_copies_table(compared, predictions))
        with_all, without = (compared[name]["accuracy"]["value"] for name in ("all", "without copies"))
        sentences.append(
            f"{duplicates.sum():,} of the {len(duplicates):,} images are exact copies of {shown}; without them the "
            f"accuracy is {percent(without)} instead of {percent(with_all)}. Only exact copies (equal pixels) are "
            "found: a picture saved again, cropped or mirrored is not."
        )
    else:
        sentences.append("No image is an exact copy (equal pixels) of a training image." if not duplicates.any() else
                         "Every image is an exact copy of a training image.")  # fmt: skip
    return Section(
        name="honesty",
        title="How honest",
        sentences=sentences,
        warnings=[*notes, *_warnings(predictions, folder, table, duplicates)],
        tables=tables,
        values=values | {"facts": facts},
    )


def overlaps_training(predictions: Predictions, table: pd.DataFrame, column: str) -> np.ndarray:
    """Return which images have something in common with what the network that answered them learnt from, bool (n,).

    Args:
        answers: The answers, of one network or of one per fold; of a network of another data set, nothing is.
        table: All of `split.csv`.
        column: What to have in common: `subject` or `pixel_hash`; where it is empty, nothing is.
    """
    own = predictions.rows[column]
    shared = np.zeros(len(own), bool)
    if not predictions.fold_column:
        parts = {"": usable(table)} if predictions.card.was_trained_on(predictions.dataset) else {}
        is_answered = dict.fromkeys(parts, np.ones(len(own), bool))
    else:
        folds = fold_numbers(table, predictions.fold_column)
        parts = {str(fold): usable(split_by_fold(table, fold, predictions.fold_column)) for fold in folds}
        is_answered = {fold: (predictions.rows[predictions.fold_column] == fold).to_numpy() for fold in parts}
    for name, rows in parts.items():
        learnt = set(rows.loc[rows["split"] == "train", column]) - {""}
        shared |= is_answered[name] & own.isin(learnt).to_numpy()
    return shared


def _copies(predictions: Predictions, table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return which images have an exact copy in another part of the table, bool (n,), and what that part is called."""
    if predictions.split != "train" and predictions.exposure.complete:
        return predictions.exposure.training, "training images"
    if predictions.fold_column:
        return overlaps_training(predictions, table, "pixel_hash"), "training images"
    rows = usable(table)
    elsewhere = rows["split"] == "train" if predictions.split != "train" else rows["split"].isin(["dev", "test"])
    hashes = set(rows.loc[elsewhere, "pixel_hash"]) - {""}
    return predictions.rows["pixel_hash"].isin(hashes).to_numpy(), (
        "training images" if predictions.split != "train" else "dev or test images"
    )


def _without_copies(predictions: Predictions, duplicates: np.ndarray, options: EvaluationConfig) -> dict:
    """Return the scores with and without the copies, and of the copies alone, each with its interval."""
    compared = {}
    for name, keep in {
        "all": np.ones(len(duplicates), bool),
        "without copies": ~duplicates,
        "copies alone": duplicates,
    }.items():
        groups = pd.factorize(predictions.clusters[keep])[0]
        values, intervals = estimate_scores(
            predictions.probabilities[keep], predictions.truth[keep], predictions.labels, groups, options
        )
        compared[name] = {"n": int(keep.sum())} | {
            score: {"value": values[score], "interval": list(intervals[score])} for score in _SCORES
        }
    return compared


def _copies_table(compared: dict, predictions: Predictions) -> Table:
    frame = pd.DataFrame(index=pd.Index(compared, name="images"))
    frame["n"] = [part["n"] for part in compared.values()]
    for score in _SCORES:
        frame[score.replace("_", " ").replace("f1", "F1")] = [
            f"{format_score(score, part[score]['value'])} [{format_interval(score, part[score]['interval'])}]"
            for part in compared.values()
        ]
    return Table(frame, f"Scores with and without exact copies, {predictions.title}")


def _warnings(predictions: Predictions, folder: Path, table: pd.DataFrame, duplicates: np.ndarray) -> list[str]:
    card, warnings = predictions.card, []
    if text := banner(predictions):
        warnings.append(text)
    if predictions.rule.text:
        left_out = f" ({predictions.left_out} images)" if predictions.left_out else ""
        warnings.append(f"labels: {predictions.rule.text}{left_out}")
    if duplicates.any() and predictions.split != "train":
        warnings.append(
            f"{duplicates.sum():,} images have an exact copy among the training images: see the score without"
        )
    people = _shared_subjects(predictions, table)
    if people and predictions.split != "train":
        warnings.append(f"{len(people):,} people of this split are also in the training split")
    current = split_hash(read_table(folder, "split.csv"))
    if card.dataset == predictions.dataset and card.split_hash not in (None, current):
        warnings.append(
            "the split was made anew since the model was trained: it may know these people, or other frames of these "
            "sequences"
        )
    if (start := card.pretrained) and _learnt_more(start, card):
        warnings.append(f"extra data: {_started_from(start)}")
    for entry in card.sources:
        if entry.was_trained_on_another_split(predictions.dataset, current):
            warnings.append(
                f"{_name(entry)} knows another split of {predictions.dataset}: it may know these very images"
            )
    align = crop_options(folder)["align"]
    if align != card.align:
        warnings.append(f"crops are aligned by {align}, the model was trained on {card.align}")
    if sources := _extra_sources(predictions.rows):
        warnings.append(f"extra labels: {', '.join(sources)} are not the data set's own")
    return warnings


def _provenance(predictions: Predictions, folder: Path, table: pd.DataFrame) -> str:
    """Return how the split came about, as step 3 noted it, and the data set's own name of it."""
    if predictions.fold_column:
        kind = "by subject" if predictions.has_subjects else "of copies and sequences: not every image has a subject"
        return f"{predictions.split} {kind}; each image is answered by the network that was trained without its fold"
    try:
        strategy = read_provenance(folder, "split.csv").get("strategy")
    except InputError:
        strategy = None
    if not isinstance(strategy, str):
        return f"{predictions.split}, {len(predictions.rows):,} images; step 3 left no note of how it was made"
    strategy = str(choose_strategy(table)) if strategy == "auto" else strategy
    meaning = {
        "official": "the data set's own split",
        "subject": "made by subject: nobody is in two splits",
        "random": "made at random, whoever is in the pictures",
        "folds": "made of folds: test is fold 0, dev fold 1",
    }.get(strategy, strategy)
    own = sorted(set(predictions.rows["usage"]) - {""})
    named = f" ({', '.join(own)} of the data set)" if strategy == "official" and own else ""
    return f"{predictions.split}, {meaning}{named}"


def _part_in_training(predictions: Predictions) -> str:
    if predictions.fold_column and not predictions.exposure.trained:
        return "of the network that answers: none; its epoch was chosen on the next fold"
    exposure, n = predictions.exposure, len(predictions.rows)
    if exposure.trained:
        return f"the model was trained on {_part_of(exposure.trained, n)}"
    if exposure.selected:
        how = predictions.card.chosen_by or "the dev split of its training"
        return f"the model was selected on {_part_of(exposure.selected, n)} ({how})"
    return "none" if exposure.complete else "none that the card states"


def _training_data(predictions: Predictions, table: pd.DataFrame) -> str:
    images, exposure = predictions.card.training_images, predictions.exposure
    text = f"{predictions.card.dataset or 'unknown'}" + (f", {images:,} images" if isinstance(images, int) else "")
    if start := predictions.card.pretrained:
        text += f", after {', '.join(start.trained_on)}, which {_name(start)} learnt from"
    if teachers := predictions.card.teachers:
        text += f", {_taught_by(teachers)}"
    if predictions.card.dataset != predictions.dataset:
        seen = f"{exposure.training.sum():,}" if exposure.complete else "an unknown number"
        return f"{text}; {seen} of these images are among its training images"
    if predictions.card.targets == "votes":
        return f"{text}; learnt from the crowd's votes, not from the data set's own labels"
    extra = [name for name in _extra_sources(usable(table).query("split == 'train'")) if not name.startswith(MAJORITY)]
    return f"{text}; extra labels: {', '.join(extra)}" if extra else f"{text}; no labels but the data set's own"


def _extra_sources(rows: pd.DataFrame) -> list[str]:
    """Return where labels come from that are not the data set's own, with their numbers."""
    counts = rows["label_source"].value_counts()
    return [f"{name} ({count:,})" for name, count in counts.items() if name not in ("", "dataset", "first_frame")]


def _label_sources(predictions: Predictions) -> str:
    counts = predictions.rows["label_source"].value_counts()
    return ", ".join(f"{name or 'unknown'} ({count:,})" for name, count in counts.items())


def _shared_subjects(predictions: Predictions, table: pd.DataFrame) -> set[str]:
    if predictions.fold_column:
        return set(predictions.rows.loc[overlaps_training(predictions, table, "subject"), "subject"])
    trained = table.loc[table["split"] == "train", "subject"]
    return (set(predictions.rows["subject"]) & set(trained)) - {""}


def _shared_people(predictions: Predictions, table: pd.DataFrame) -> str:
    if not (predictions.rows["subject"] != "").any():
        return "not known: the table does not say who is in the pictures"
    return f"{len(_shared_subjects(predictions, table)):,}"


def _left_out(predictions: Predictions, table: pd.DataFrame) -> str:
    """Return which rows of the split are not scored, and why; of official splits, also those that have no split."""
    inside = table["split"] == ("" if predictions.fold_column else predictions.split)
    if "usage" in table.columns:
        inside |= (table["split"] == "") & (table["usage"].str.lower().map(OFFICIAL_SPLITS) == predictions.split)
    rows = table[inside & ~is_usable(table)]
    unwanted = table[inside & is_usable(table) & (table["split"] == "")]
    without = f"without a {MAJORITY}" if predictions.scored_by_majority else "without a label"
    reasons = {
        "unreadable": rows["status"] == "unreadable",
        "of a single gray level": rows["status"] == "constant",
        without: rows["emotion"] == "",
        "without a face": rows["face_status"] == "not_found",
    }
    parts = [f"{int(reason.sum()):,} {name}" for name, reason in reasons.items() if reason.any()]
    if predictions.split != "train" and len(unwanted):  # of official ones, step 3 also takes copies out
        parts.append(f"{len(unwanted):,} of an emotion that the split leaves out")
    if predictions.left_out:
        parts.append(f"{predictions.left_out:,} of a label that the model does not know")
    return ", ".join(parts) or "nothing"
