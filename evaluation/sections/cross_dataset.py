"""Cross-dataset evaluation: the network before fine-tuning, or the released one, on images of a new data set."""

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from common.emotions import relate
from common.errors import InputError
from configuration import PATHS, EvaluationConfig
from evaluation.metrics.paired import is_significant, mcnemar
from evaluation.metrics.scores import apply_rule
from evaluation.predictions import Load, Predictions
from evaluation.report.section import Section, Table, interval_text
from evaluation.sections.comparison import check_aligned, on_common_labels
from evaluation.sections.cross_validation import gap, protocol_row, score_and_interval, with_intervals
from evaluation.sections.performance import MAIN_SCORES, format_score
from inference.emotion_classifier import EmotionClassifier
from inference.model_card import ModelCard, read_card
from training.lineage import exposure_of, knows_images

_NAME, _TITLE = "cross_dataset", "Cross-dataset evaluation"


def predict_with(
    predictions: Predictions,
    model_file: Path,
    table: pd.DataFrame,
    name: str = "cross-dataset",
    load: Load = EmotionClassifier.load,
) -> Predictions:
    """Return the predictions of another network for the same images.

    Args:
        predictions: The predictions of the first network.
        model_file: The other network, with crops of the same size.
        table: The whole `split.csv` of the data set.
        name: Name of the other network in the report.
        load: Loads the network.

    Raises:
        InputError: The network is unusable, takes other crops, or no rule relates its labels to the data.
    """
    classifier = load(model_file)
    rule = relate(classifier.labels, predictions.labels)
    shape = (classifier.input_size, classifier.input_size, classifier.channels)
    if predictions.images.shape[1:] != shape:
        raise InputError(
            f"{model_file} takes crops of {shape}, these are {predictions.images.shape[1:]} (height, width, channels)"
        )
    known = predictions.select(predictions.rows["emotion"].isin(rule.labels).to_numpy())
    return replace(
        known,
        name=name,
        model_file=model_file,
        card=classifier.card,
        rule=rule,
        left_out=predictions.left_out + len(predictions.rows) - len(known.rows),
        probabilities=apply_rule(classifier.predict(known.images), rule),
        exposure=exposure_of(model_file, classifier.card, known.rows, table, predictions.dataset),
        fold_column="",
        classifiers={"": classifier},
    )


def cross_dataset_network(card: ModelCard, dataset: str, table: pd.DataFrame) -> Path:
    """Return the network to compare with: the one that a network was initialised from, else the released one.

    Args:
        card: Card of the network under evaluation.
        dataset: Name of the data set.
        table: Its whole `split.csv`.

    Raises:
        InputError: The file is missing or has changed, or its lineage knows images of this data set.
    """
    file = find_pretrained(card) if card.pretrained else PATHS.pretrained
    if knows_images(file, read_card(file), table, dataset):
        raise InputError(f"{file} was trained or selected on images of {dataset}")
    return file


def find_pretrained(card: ModelCard) -> Path:
    """Return the file of the network that a network was initialised from.

    Raises:
        InputError: There is none, or the file is missing or has changed.
    """
    entry = card.pretrained
    if entry is None:
        raise InputError("the network was initialised from no other network")
    if (file := entry.find()) is None:
        raise InputError(
            f"the pretrained network {entry.file} (SHA-256 {entry.sha256}...) is missing or has changed; restore it "
            "and evaluate again"
        )
    return file


def describe_network(file: Path, dataset: str) -> str:
    """Return the name of a cross-dataset network in a table of protocols."""
    from training.pretrained import PretrainedNetwork  # imports Keras

    return (
        f"cross-dataset: {file.name}, trained on {', '.join(PretrainedNetwork.read(file).trained_on)}, not on {dataset}"
    )


def cross_dataset_section(
    predictions: Predictions, table: pd.DataFrame, options: EvaluationConfig, load: Load = EmotionClassifier.load
) -> Section | None:
    """Compare a fine-tuned network with the network that it was initialised from.

    Args:
        predictions: Predictions of the fine-tuned network, or of the networks of all folds.
        table: The whole `split.csv` of the data set.
        options: Resamples, seed and level.
        load: Loads the network.

    Returns:
        None if the network was not fine-tuned on this data set, or the pretrained network knows its images.
    """
    entry = predictions.card.pretrained
    if not entry or predictions.card.dataset != predictions.dataset or entry.was_trained_on(predictions.dataset):
        return None
    if (file := entry.find()) and knows_images(file, read_card(file), table, predictions.dataset):
        return None
    try:
        other = predict_with(predictions, find_pretrained(predictions.card), table, load=load)
    except InputError as error:
        text = f"cross-dataset accuracy was not measured: {error}"
        return Section(_NAME, _TITLE, warnings=[text], values={"not_measured": text})
    tuned, start = on_common_labels([predictions, other])
    check_aligned([tuned, start])
    rows = {part.name: protocol_row(part.name, part, table, options)
            for part in (replace(tuned, name="fine-tuned"), start)}  # fmt: skip
    difference, test = gap(start, tuned, options)[1], mcnemar(start.correct, tuned.correct)
    change = difference["accuracy"]
    verdict = "The difference is not significant."
    if is_significant(change, test["p_value"], options.level):
        verdict = f"Fine-tuning {'improves' if change.low > 0 else 'reduces'} the accuracy."
    printed = pd.DataFrame(
        {text: [score_and_interval(score, row) for row in rows.values()] for score, text in MAIN_SCORES.items()},
        index=pd.Index(rows, name="network"),
    )
    return Section(
        name=_NAME,
        title=_TITLE,
        sentences=[
            f"Before fine-tuning, trained on {', '.join(entry.trained_on)}: accuracy "
            f"{format_score('accuracy', rows[start.name]['accuracy'])} of the same {len(start.rows):,} images. "
            f"Fine-tuning: {100 * change.value:+.1f} points ({interval_text(options.level)} {100 * change.low:+.1f} to "
            f"{100 * change.high:+.1f}). Correct only after: {test['only_b']:,} images; only before: "
            f"{test['only_a']:,}. {verdict}",
            *([f"Labels before fine-tuning: {other.rule.text}."] if other.rule.text else []),
        ],
        tables=[Table(printed, f"Before and after fine-tuning, {predictions.dataset}, {predictions.part}")],
        values={
            "fine-tuned": rows["fine-tuned"],
            "cross-dataset": rows[start.name],
            "difference": {"n": len(start.rows), **with_intervals(difference)},
            "mcnemar": test,
            "pretrained": asdict(entry),
        },
    )
