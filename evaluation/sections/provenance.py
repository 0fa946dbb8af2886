"""Provenance and leakage: the split, the lineage of the model, duplicates, and the score without them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import InputError
from configuration import SAMPLE_NAME, EvaluationConfig
from evaluation.metrics.scores import estimate_scores
from evaluation.predictions import Predictions
from evaluation.report.section import Section, Table, percent
from evaluation.sections.performance import format_estimate
from inference.lineage import SourceNetwork, hashes_file
from inference.model_card import ModelCard
from preprocessing.datasets.votes import MAJORITY
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
_TARGETS = {"votes": ("annotator votes",)}  # names in cards
_STRATEGIES = {
    "official": "the official split",
    "subject": "by subject: no subject is in two splits",
    "random": "random, ignoring subjects",
    "folds": "by folds: test is fold 0, dev is fold 1",
}


def protocol(predictions: Predictions, averaging: str = "no test-time augmentation") -> str:
    """Return the protocol of a score in one line."""
    card = predictions.card
    trained = "trained on annotator votes" if card.targets == "votes" else "no extra labels"
    if start := card.pretrained:
        extra = _adds_data(start, card)
        own = "" if extra and trained == "no extra labels" else f"{trained}, "
        trained = f"{own}{'extra data: ' if extra else ''}{_initialised_from(start)}"
    if card.teachers:
        if any(_adds_data(teacher, card) for teacher in card.teachers):
            trained = trained.replace("no extra labels", "extra labels")
        trained = f"{trained}, {_distilled_from(card.teachers)}"
    networks = "one network per fold" if predictions.fold_column else "one network"
    truth = f", scored against the {MAJORITY}" if predictions.scored_by_majority else ""
    return f"{networks}, one crop per face, {averaging}, {trained}{truth}"


def _adds_data(source: SourceNetwork, card: ModelCard) -> bool:
    """Return whether a network of the lineage was trained on other data, or other targets, than the network itself."""
    own = [f"{card.dataset} ({targets})" for targets in _TARGETS.get(card.targets, ("labels",))]
    elsewhere = source.was_trained_on_another_split(card.dataset or "", card.split_hash or "")
    return elsewhere or any(data not in own for data in source.trained_on)


def _initialised_from(start: SourceNetwork) -> str:
    return f"initialised from {_name(start)} (trained on {', '.join(start.trained_on)})"


def _distilled_from(teachers: Sequence[SourceNetwork]) -> str:
    data = dict.fromkeys(source for teacher in teachers for source in teacher.trained_on)
    return f"distilled from {', '.join(map(_name, teachers))} (trained on {', '.join(data)})"


def _name(source: SourceNetwork) -> str:
    return source.file.rpartition("/")[2]


def banner(predictions: Predictions) -> str:
    """Return the most severe warning, for every page of a report; empty for a clean held-out score."""
    if SAMPLE_NAME in (predictions.dataset, predictions.card.dataset):
        return "the sample is one portrait, warped: its scores are meaningless"
    exposure, n = predictions.exposure, len(predictions.rows)
    if exposure.held_out is False:
        return f"NOT A HELD-OUT SCORE: the model was trained on {_part_of(exposure.trained, n)}"
    if exposure.held_out is None:
        return (
            "NOT KNOWN WHETHER HELD OUT: no complete list of the model's training images "
            f"({hashes_file(predictions.model_file).name}) lies beside its card"
        )
    if exposure.selected:
        return f"the model was selected on {_part_of(exposure.selected, n)}: expect a lower score on new images"
    return ""


def _part_of(count: int, n: int) -> str:
    return "these images" if count == n else f"{count:,} of these {n:,} images"


@dataclass(frozen=True)
class Provenance:
    """Provenance of a score.

    Attributes:
        facts: Question -> answer.
        duplicates: Whether each image has an exact duplicate elsewhere, bool (n,).
        elsewhere: Where the duplicates are.
        scores: `all`, `without duplicates`, `duplicates only` -> `n`, and value and interval of each score; None if
            no image, or every image, is a duplicate.
    """

    facts: dict[str, str]
    duplicates: np.ndarray
    elsewhere: str
    scores: dict[str, dict[str, Any]] | None


def measure_provenance(
    predictions: Predictions, folder: Path, table: pd.DataFrame, options: EvaluationConfig
) -> Provenance:
    """Return the provenance of predictions.

    Args:
        predictions: The predictions.
        folder: Folder of the data set.
        table: Its whole `split.csv`.
        options: Resamples, seed and level.
    """
    duplicates, elsewhere = _duplicates(predictions, table)
    own = "the model's own" if predictions.card.dataset == predictions.dataset else "new to the model"
    facts = {
        "data set": f"{predictions.dataset}, {own}",
        "split": _split_text(predictions, folder),
        "role in training": _role_text(predictions),
        "training data": _training_text(predictions, table),
        "subjects shared with training": _subjects_text(predictions, table),
        "duplicates of training images": f"{duplicates.sum():,} of {len(duplicates):,} images",
        "left out": _left_out_text(predictions, table),
        "labels": _counts(predictions.rows, skip=()),
        "protocol": protocol(predictions),
        "crops": f"aligned by {crop_options(folder)['align']}",
    }
    mixed = duplicates.any() and not duplicates.all()
    return Provenance(facts, duplicates, elsewhere, _split_scores(predictions, duplicates, options) if mixed else None)


def provenance_section(
    predictions: Predictions, folder: Path, table: pd.DataFrame, notes: list[str], options: EvaluationConfig
) -> Section:
    """Return the section on provenance and leakage.

    Args:
        predictions: As for `measure_provenance`.
        folder: As for `measure_provenance`.
        table: As for `measure_provenance`.
        notes: Further warnings.
        options: As for `measure_provenance`.
    """
    found = measure_provenance(predictions, folder, table, options)
    count, exposure = int(found.duplicates.sum()), predictions.exposure
    facts = pd.DataFrame({"": found.facts.values()}, index=pd.Index(found.facts, name="question"))
    tables = [Table(facts, "Provenance")]
    values: dict[str, Any] = {
        "banner": banner(predictions),
        "held_out": exposure.held_out,
        "selected_on": exposure.selected > 0,
        "trained_on_images": exposure.trained,
        "selected_on_images": exposure.selected,
        "protocol": protocol(predictions),
        "duplicates": count,
        "facts": found.facts,
    }
    if found.scores:
        values["duplicate_scores"] = found.scores
        tables.append(_scores_table(found.scores, predictions))
        with_all, without = (percent(found.scores[name]["accuracy"]["value"]) for name in ("all", "without duplicates"))
        text = (
            f"Exact duplicates of {found.elsewhere}: {count:,} of {len(found.duplicates):,} images. Accuracy without "
            f"them: {without} instead of {with_all}. Only images with equal pixels are found."
        )
    else:
        text = f"Exact duplicates of {found.elsewhere}: {'all' if count else 'no'} images."
    return Section(
        name="provenance",
        title="Provenance and leakage",
        sentences=[text],
        warnings=[*notes, *_warnings(predictions, folder, table, found)],
        tables=tables,
        values=values,
    )


def overlaps_training(predictions: Predictions, table: pd.DataFrame, column: str) -> np.ndarray:
    """Return which images share a value with the training images of the network that predicted them, bool (n,).

    Args:
        predictions: Predictions of one network, or of one per fold. A network of another data set shares nothing.
        table: The whole `split.csv`.
        column: `subject` or `pixel_hash`; empty values are not shared.
    """
    own = predictions.rows[column]
    if not predictions.fold_column:
        if not predictions.card.was_trained_on(predictions.dataset):
            return np.zeros(len(own), bool)
        return _shared(own, usable(table), column)
    shared = np.zeros(len(own), bool)
    for fold in fold_numbers(table, predictions.fold_column):
        rows = usable(split_by_fold(table, fold, predictions.fold_column))
        in_fold = (predictions.rows[predictions.fold_column] == str(fold)).to_numpy()
        shared |= in_fold & _shared(own, rows, column)
    return shared


def _shared(own: pd.Series, rows: pd.DataFrame, column: str) -> np.ndarray:
    return own.isin(set(rows.loc[rows["split"] == "train", column]) - {""}).to_numpy()


def _duplicates(predictions: Predictions, table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return which images have a duplicate in another part of the table, bool (n,), and the name of that part."""
    if predictions.split == "train":
        rows = usable(table)
        hashes = set(rows.loc[rows["split"].isin(["dev", "test"]), "pixel_hash"]) - {""}
        return predictions.rows["pixel_hash"].isin(hashes).to_numpy(), "dev or test images"
    if predictions.exposure.complete:
        return predictions.exposure.training, "training images"
    if predictions.fold_column:
        return overlaps_training(predictions, table, "pixel_hash"), "training images"
    return _shared(predictions.rows["pixel_hash"], usable(table), "pixel_hash"), "training images"


def _split_scores(
    predictions: Predictions, duplicates: np.ndarray, options: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """Return the scores of all images, without duplicates, and of duplicates only, with intervals."""
    parts = {
        "all": np.ones(len(duplicates), bool),
        "without duplicates": ~duplicates,
        "duplicates only": duplicates,
    }
    compared = {}
    for name, keep in parts.items():
        clusters = pd.factorize(predictions.clusters[keep])[0]
        values, intervals = estimate_scores(
            predictions.probabilities[keep], predictions.truth[keep], predictions.labels, clusters, options
        )
        compared[name] = {"n": int(keep.sum())} | {
            score: {"value": values[score], "interval": list(intervals[score])} for score in _SCORES
        }
    return compared


def _scores_table(scores: dict[str, dict[str, Any]], predictions: Predictions) -> Table:
    frame = pd.DataFrame({"n": [part["n"] for part in scores.values()]}, index=pd.Index(scores, name="images"))
    for score in _SCORES:
        frame[score.replace("_", " ").replace("f1", "F1")] = [
            format_estimate(score, part[score]["value"], tuple(part[score]["interval"])) for part in scores.values()
        ]
    return Table(frame, f"Scores with and without duplicates, {predictions.title}")


def _warnings(predictions: Predictions, folder: Path, table: pd.DataFrame, found: Provenance) -> list[str]:
    card, split = predictions.card, predictions.split
    warnings = [text] if (text := banner(predictions)) else []
    if predictions.rule.text:
        left_out = f" ({predictions.left_out} images)" if predictions.left_out else ""
        warnings.append(f"labels: {predictions.rule.text}{left_out}")
    if found.duplicates.any() and split != "train":
        warnings.append(f"{found.duplicates.sum():,} images are duplicates of training images: see the score without")
    subjects = _shared_subjects(predictions, table)
    if subjects and split != "train":
        warnings.append(f"{len(subjects):,} subjects of this split are also in the training split")
    current = split_hash(read_table(folder, "split.csv"))
    if card.dataset == predictions.dataset and card.split_hash not in (None, current):
        warnings.append("the split has changed since the training: the model may know these subjects or sequences")
    if (start := card.pretrained) and _adds_data(start, card):
        warnings.append(f"extra data: {_initialised_from(start)}")
    for entry in card.sources:
        if entry.was_trained_on_another_split(predictions.dataset, current):
            warnings.append(
                f"{_name(entry)} was trained on another split of {predictions.dataset}: it may know these images"
            )
    if (align := crop_options(folder)["align"]) != card.align:
        warnings.append(f"crops are aligned by {align}, the model was trained on {card.align}")
    if sources := _extra_labels(predictions.rows):
        warnings.append(f"extra labels: {sources} are not from the data set")
    return warnings


def _split_text(predictions: Predictions, folder: Path) -> str:
    if predictions.fold_column:
        kind = "by subject" if predictions.has_subjects else "by duplicates and sequences, as some subjects are unknown"
        return f"{predictions.split} {kind}; each image is predicted by the network that was trained without its fold"
    try:
        strategy = read_provenance(folder, "split.csv").get("strategy")
    except InputError:
        strategy = None
    if not isinstance(strategy, str):
        return f"{predictions.split}, {len(predictions.rows):,} images; step 3 left no record"
    own = sorted(set(predictions.rows["usage"]) - {""})
    named = f" ({', '.join(own)} of the data set)" if strategy == "official" and own else ""
    return f"{predictions.split}, {_STRATEGIES.get(strategy, strategy)}{named}"


def _role_text(predictions: Predictions) -> str:
    exposure, n = predictions.exposure, len(predictions.rows)
    if predictions.fold_column and not exposure.trained:
        return "none; the next fold chose the epoch"
    if exposure.trained:
        return f"the model was trained on {_part_of(exposure.trained, n)}"
    if exposure.selected:
        how = predictions.card.chosen_by or "dev split of its training"
        return f"the model was selected on {_part_of(exposure.selected, n)} ({how})"
    return "none" if exposure.complete else "none that the card states"


def _training_text(predictions: Predictions, table: pd.DataFrame) -> str:
    card, exposure = predictions.card, predictions.exposure
    images = f", {card.training_images:,} images" if isinstance(card.training_images, int) else ""
    parts = [f"{card.dataset or 'unknown'}{images}"]
    if card.pretrained:
        parts.append(_initialised_from(card.pretrained))
    if card.teachers:
        parts.append(_distilled_from(card.teachers))
    text = ", ".join(parts)
    if card.dataset != predictions.dataset:
        known = f"{exposure.training.sum():,}" if exposure.complete else "an unknown number"
        return f"{text}; {known} of these images are among its training images"
    if card.targets == "votes":
        return f"{text}; targets: annotator votes"
    extra = _extra_labels(usable(table).query("split == 'train' and label_source != @MAJORITY"))
    return f"{text}; extra labels: {extra}" if extra else f"{text}; labels of the data set"


def _counts(rows: pd.DataFrame, skip: Sequence[str]) -> str:
    counts = rows["label_source"].value_counts()
    return ", ".join(f"{name or 'unknown'} ({count:,})" for name, count in counts.items() if name not in skip)


def _extra_labels(rows: pd.DataFrame) -> str:
    """Return the sources of labels that are not from the data set, with their counts."""
    return _counts(rows, skip=("", "dataset", "first_frame"))


def _shared_subjects(predictions: Predictions, table: pd.DataFrame) -> set[str]:
    if predictions.fold_column:
        return set(predictions.rows.loc[overlaps_training(predictions, table, "subject"), "subject"])
    trained = table.loc[table["split"] == "train", "subject"]
    return (set(predictions.rows["subject"]) & set(trained)) - {""}


def _subjects_text(predictions: Predictions, table: pd.DataFrame) -> str:
    if not (predictions.rows["subject"] != "").any():
        return "unknown: the table has no subjects"
    return f"{len(_shared_subjects(predictions, table)):,}"


def _left_out_text(predictions: Predictions, table: pd.DataFrame) -> str:
    """Return how many rows of the split are not scored, by reason; of official splits also rows without a split."""
    inside = table["split"] == ("" if predictions.fold_column else predictions.split)
    if "usage" in table.columns:
        inside |= (table["split"] == "") & (table["usage"].str.lower().map(OFFICIAL_SPLITS) == predictions.split)
    rows = table[inside & ~is_usable(table)]
    reasons = {
        "unreadable": rows["status"] == "unreadable",
        "of a single gray level": rows["status"] == "constant",
        f"without a {MAJORITY if predictions.scored_by_majority else 'label'}": rows["emotion"] == "",
        "without a face": rows["face_status"] == "not_found",
    }
    parts = [f"{int(reason.sum()):,} {name}" for name, reason in reasons.items() if reason.any()]
    excluded = inside & is_usable(table) & (table["split"] == "")
    if predictions.split != "train" and excluded.any():  # of official train splits, step 3 also drops duplicates
        parts.append(f"{excluded.sum():,} of an emotion that the split excludes")
    if predictions.left_out:
        parts.append(f"{predictions.left_out:,} of a label that the model does not know")
    return ", ".join(parts) or "nothing"
