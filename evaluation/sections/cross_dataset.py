"""Beside a network: one that has learnt nothing of this data set, the one that it started from or the released one."""

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from common.emotions import relate
from common.errors import InputError
from configuration import PATHS, EvaluationConfig
from evaluation.metrics.paired import mcnemar
from evaluation.metrics.scores import apply_rule
from evaluation.predictions import Predictions
from evaluation.report.section import Section, Table, interval_text
from evaluation.sections.comparison import check_aligned, on_common_labels
from evaluation.sections.cross_validation import gap, protocol_row, score_and_interval
from evaluation.sections.performance import MAIN_SCORES, format_score
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import ModelCard, read_card
from training.lineage import exposure_of, knows_images


def predict_with(predictions: Predictions, start: Path, table: pd.DataFrame, name: str = "zero-shot") -> Predictions:
    """Ask another network about the images that a model answered, as it is.

    Args:
        answers: The model's answers.
        start: The other network; it takes crops of the same size.
        table: All of the data set's `split.csv`.
        name: What the report calls it.

    Raises:
        InputError: the network cannot be used, takes other crops, or no rule relates its labels to the data's.
    """
    classifier = EmotionClassifier.load(start)
    rule = relate(classifier.labels, predictions.labels)
    shape = (classifier.input_size, classifier.input_size, classifier.channels)
    if predictions.images.shape[1:] != shape:
        raise InputError(
            f"{start} takes crops of {shape}, these are {predictions.images.shape[1:]} (height, width, channels)"
        )
    asked = predictions.select(predictions.rows["emotion"].isin(rule.labels).to_numpy())
    return replace(
        asked,
        name=name,
        model_file=start,
        card=classifier.card,
        rule=rule,
        left_out=predictions.left_out + len(predictions.rows) - len(asked.rows),
        probabilities=apply_rule(classifier.predict(asked.images), rule),
        exposure=exposure_of(start, classifier.card, asked.rows, table, predictions.dataset),
        fold_column="",
    )


def zero_shot_file(card: ModelCard, dataset: str, table: pd.DataFrame) -> Path:
    """Return the network that is set beside another one as it is: the one that it started from, else the released one.

    Args:
        card: The other network's.
        dataset: The data set that is scored, on none of whose images its lineage may have been trained.
        table: All of that data set's `split.csv`.

    Raises:
        InputError: it is gone, another one by now, or learnt from this data set.
    """
    file = found_start(card) if card.pretrained else PATHS.pretrained
    if knows_images(file, read_card(file), table, dataset):
        raise InputError(f"{file} learnt from {dataset} itself")
    return file


def ask_zero_shot(predictions: Predictions, file: Path, table: pd.DataFrame) -> tuple[str, Predictions]:
    """Return what a table of protocols calls a network that learnt nothing of the data, and its answers.

    Raises:
        InputError: as `predict_with`.
    """
    from training.fine_tuning import Start  # imports Keras

    learnt = ", ".join(Start.read(file).trained_on)
    return f"zero-shot: {file.name}, which learnt from {learnt} and nothing of {predictions.dataset}", predict_with(
        predictions, file, table
    )


def cross_dataset_section(predictions: Predictions, table: pd.DataFrame, options: EvaluationConfig) -> Section | None:
    """Set a fine-tuned network beside the one that it started from, on the same images.

    None where there is no fine-tuning on this data set to judge: the network started from none, was trained on another
    data set itself, or started from a network that knows images of this data set. Where that network is gone, has
    changed since, or does not fit the data, the section says so.

    Args:
        answers: The fine-tuned network's answers, also those pooled over folds.
        table: All of the data set's `split.csv`.
        options: For the intervals.
    """
    entry = predictions.card.pretrained
    if not entry or predictions.card.dataset != predictions.dataset or entry.was_trained_on(predictions.dataset):
        return None
    if (file := entry.find()) and knows_images(file, read_card(file), table, predictions.dataset):
        return None
    learnt = ", ".join(entry.trained_on)
    try:
        zero_shot = predict_with(predictions, found_start(predictions.card), table)
    except InputError as error:
        text = f"zero-shot was not measured: {error}"
        return Section("zero_shot", "Without any training on this data", warnings=[text], values={"not_measured": text})
    tuned, start = on_common_labels([predictions, zero_shot])
    check_aligned([tuned, start])
    rows = {"fine-tuned": protocol_row("fine-tuned", tuned, table, options),
            "zero-shot": protocol_row("zero-shot", start, table, options)}  # fmt: skip
    difference, test = gap(start, tuned, options), mcnemar(start.correct, tuned.correct)
    change = difference["accuracy"]
    low, high = change["interval"]
    printed = pd.DataFrame(
        {text: [score_and_interval(score, row) for row in rows.values()] for score, text in MAIN_SCORES.items()},
        index=pd.Index(rows, name="network"),
    )
    verdict = "Training on this data set is not shown to help." if low <= 0 <= high else (
        "Training on this data set helped." if low > 0 else "Training on this data set did harm.")  # fmt: skip
    return Section(
        name="zero_shot",
        title="Without any training on this data",
        sentences=[
            f"The network started from one that learnt from {learnt}. That one, as it is, is right for "
            f"{format_score('accuracy', rows['zero-shot']['accuracy'])} of the same {len(start.rows):,} images; "
            f"fine-tuning changed this by {100 * change['value']:+.1f} points ({interval_text(options.level)} "
            f"{100 * low:+.1f} to {100 * high:+.1f}; "
            f"{test['only_b']:,} images are right only since, {test['only_a']:,} were only before). "
            f"{verdict}",
            *([f"Zero-shot, labels: {zero_shot.rule.text}."] if zero_shot.rule.text else []),
        ],
        tables=[
            Table(
                printed,
                f"Fine-tuned and zero-shot on {predictions.dataset}, {predictions.part} (n = {len(start.rows):,})",
            )
        ],
        values={**rows, "difference": difference, "mcnemar": test, "pretrained": asdict(entry)},
    )


def found_start(card: ModelCard) -> Path:
    """Return the network that a card says it started from.

    Raises:
        InputError: it is gone, or another one by now.
    """
    entry = card.pretrained
    if entry is None:
        raise InputError("the network was initialised from no other network")
    if (file := entry.find()) is None:
        raise InputError(
            f"{entry.file} (SHA-256 {entry.sha256}...), which the network started from, is gone or has "
            "changed since; put it back and evaluate again"
        )
    return file
