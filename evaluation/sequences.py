"""Compare a sequence network with networks that see the last frame only.

Reads:  models/NAME/sequence.keras, or with --folds its networks of the folds; models/NAME/best.keras (or its folds) if
        it exists, and the released network; data/NAME/split.csv and its crops
Writes: reports/NAME/sequence/SPLIT/ (with --folds: reports/NAME/sequence/folds/): scores.csv, differences.csv,
        predictions.csv, metrics.json, and accuracy by the share of the sequence seen, seen.csv and seen.png

    python -m evaluation.sequences --dataset ckplus
    python -m evaluation.sequences --dataset ckplus --folds
    python -m evaluation.sequences --dataset ckplus --calibrate
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, ModelsRoot, ReportsRoot, dataset_folder, run, step_command
from common.emotions import relate
from common.errors import InputError
from common.logging import quiet_start
from configuration import EVALUATION, PATHS, SAMPLE_NAME, EvaluationConfig
from evaluation.metrics.calibration import choose_threshold, fit_temperature, is_settled, with_temperature
from evaluation.metrics.intervals import MIN_SUBJECTS, estimate_share, subject_clusters
from evaluation.metrics.paired import mcnemar, paired_difference
from evaluation.metrics.scores import apply_rule, estimate_scores, predicted_labels, score_statistic
from evaluation.report.section import interval_text
from evaluation.report.writer import report_folder, write_json
from evaluation.sections.performance import MAIN_SCORES
from evaluation.sequence_predictions import (
    SHARES,
    Part,
    SequencePredictions,
    check_split,
    leakage_notes,
    predict_all,
    predict_sequences,
)
from inference.lineage import ImageHashes, read_hashes, write_hashes
from inference.model_card import read_card, read_sequence_card, write_card
from preprocessing.tables import SPLITS, fold_numbers, labels_of, read_table, write_table
from training.cross_validation import fold_file
from training.lineage import Exposure


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    reports: ReportsRoot = PATHS.reports,
    model: Annotated[
        Path | None, typer.Option(help="Sequence network.", show_default="MODELS/DATASET/sequence.keras")
    ] = None,
    peak_model: Annotated[
        Path | None, typer.Option(help="Network of single frames.", show_default="MODELS/DATASET/best.keras")
    ] = None,
    features: Annotated[
        Path, typer.Option(help="Network whose features the sequence network reads.")
    ] = PATHS.pretrained,
    folds: Annotated[bool, typer.Option("--folds", help="Evaluate each fold with its own networks.")] = False,
    split: Annotated[
        str | None, typer.Option(help=f"Split to evaluate: {', '.join(SPLITS)}.", show_default="test, else dev")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit temperature and abstention threshold on dev first.")
    ] = False,
) -> None:
    """Compare a sequence network with networks that see the last frame only."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")
    model_file = model or models / dataset / "sequence.keras"
    if folds and (split is not None or calibrate):
        raise InputError("--folds evaluates every sequence with several networks: leave --split and --calibrate out")
    if split is not None and split not in SPLITS:
        raise InputError(f"--split {split!r} is not one of {', '.join(SPLITS)}")
    numbers = fold_numbers(table) if folds else []
    of_folds = ["--folds", len(numbers)] if folds else []
    train = step_command("training.step4_sequence_model", folder, *of_folds, "--output", model_file)
    for file in [fold_file(model_file, fold) for fold in numbers] or [model_file]:
        read_sequence_card(file, train)  # before Keras is imported, so that an error comes at once
    read_card(features)
    with quiet_start():
        from training.sequences.data import read_sequences

    sequences = read_sequences(table, folder)
    if folds:
        parts = [Part.of_fold(table, folder, features, fold) for fold in numbers]
        heading = f"{dataset}, {len(numbers)} folds"
    else:
        split = split or ("test" if (sequences.table["split"] == "test").any() else "dev")
        chosen = sequences.of_split(split)
        if not len(chosen):
            raise InputError(f"split {split!r} of {folder / 'split.csv'} has no labelled sequence; use another")
        parts, heading = [Part(table, chosen, features)], f"{dataset}, {split} split"
        if calibrate:
            calibrate_card(Part(table, sequences.of_split("dev"), features), folder, model_file)
    print(sequences.note)
    predictions, notes = predict_all(parts, folder, model_file, peak_model or models / dataset / "best.keras")
    if dataset == SAMPLE_NAME:
        notes.append("the sample is one warped portrait: its scores have no meaning")
    files = {part.network(model_file): part for part in parts}
    exposure = Exposure.joined([part.exposure(file, read_sequence_card(file), folder) for file, part in files.items()])
    notes += leakage_notes(model_file, exposure)
    rows = pd.concat([part.sequences.table for part in parts], ignore_index=True)
    report = reports / dataset / model_file.stem / (split or "folds")
    write_report(predictions, rows, labels_of(sequences.table), notes, heading, report, EVALUATION, exposure.held_out)


def calibrate_card(dev: Part, folder: Path, model_file: Path) -> None:
    """Fit temperature and abstention threshold of a sequence network on the last frames, and write them to its card.

    Raises:
        InputError: The network cannot be used, was trained on another split, or the sequences do not suffice.
    """
    if not len(dev.sequences):
        raise InputError(f"{folder / 'split.csv'} has no labelled dev sequence to calibrate with; split again")
    check_split(model_file, dev, folder)
    labels, probabilities = predict_sequences(model_file, dev, folder)
    card, emotions = read_sequence_card(model_file), dev.sequences.table["emotion"]
    keep = emotions.isin(labels).to_numpy()
    if not keep.any():
        raise InputError(f"--calibrate: {model_file.name} knows no emotion of the dev sequences of {folder.name}")
    raw = with_temperature(probabilities[-1], 1 / card.temperature)[keep]  # of all its classes, as the camera sees them
    truth = np.array([labels.index(emotion) for emotion in emotions[keep]])
    temperature = round(fit_temperature(raw, truth), 4)
    if not is_settled(temperature):
        raise InputError(
            f"--calibrate: {len(truth)} dev sequences of {folder.name} do not determine the temperature of "
            f"{model_file.name} ({temperature:.2g}): too few, or all correct or all incorrect"
        )
    chosen = choose_threshold(
        with_temperature(raw, temperature), truth, EVALUATION.target_accuracy, EVALUATION.min_coverage
    )
    fitted: dict[str, Any] = {
        "temperature": temperature,
        "abstention_threshold": round(chosen.threshold, 4),
        "calibration": {"dataset": folder.name, "split": "dev", "sequences": len(truth), "frame": "last"},
    }
    selected = ImageHashes.of(selection=dev.frames()["pixel_hash"])
    write_hashes(model_file, read_hashes(model_file) | selected)
    write_card(replace(card, **fitted), model_file)
    print(
        f"{model_file.name}: temperature {temperature}, abstention threshold {fitted['abstention_threshold']}, fitted "
        f"on the last frames of {len(truth):,} dev sequences: coverage {chosen.coverage:.1%}, accuracy "
        f"{chosen.accuracy:.1%}; written into {model_file.with_suffix('.json')}"
    )


def write_report(
    predictions: Sequence[SequencePredictions],
    rows: pd.DataFrame,
    shown: Sequence[str],
    notes: list[str],
    heading: str,
    report: Path,
    options: EvaluationConfig,
    held_out: bool | None,
) -> dict[str, Any]:
    """Compare the networks on the emotions that all of them know; print and write the report, and return its facts.

    Args:
        predictions: Of the sequence network first.
        rows: A row per sequence: `sequence`, `subject`, `emotion`.
        shown: Emotions of the sequences.
        notes: Notes for the reader.
        heading: Data set and split.
        report: Folder of the report.
        options: Resamples, level and seed.
        held_out: Whether the sequence network was trained on none of the frames; None if unknown.

    Raises:
        InputError: The labels of a network and of the data are unrelated, or predictions are for other sequences.
    """
    for each in predictions:
        own, expected = each.sequences, rows["sequence"].to_numpy()
        if each.probabilities.shape[1] != len(rows) or len(own) != len(rows) or (own != expected).any():
            raise InputError(
                f"{each.name} was not scored on the same sequences in the same order: it cannot be compared in pairs; "
                "evaluate all networks on one split"
            )
    rules = [relate(each.labels, shown) for each in predictions]
    labels = [label for label in shown if all(label in rule.labels for rule in rules)]
    keep = rows["emotion"].isin(labels).to_numpy()
    if not keep.all():
        notes = [*notes, f"left out: {(~keep).sum():,} sequences of emotions that a network does not know"]
    rows = rows.loc[keep].reset_index(drop=True)
    truth = pd.Categorical(rows["emotion"], categories=labels).codes.astype(np.int64)
    subjects = subject_clusters(rows)
    clusters = np.arange(len(rows)) if subjects is None else subjects
    if subjects is None:
        notes = [*notes, "the data has no subjects, so each sequence counts as one: the intervals are too narrow"]
    elif subjects.max() + 1 < MIN_SUBJECTS:
        notes = [*notes, f"only {subjects.max() + 1} subjects: the intervals are too narrow"]
    chances = {
        each.name: np.stack([apply_rule(part[keep], relate(each.labels, labels)) for part in each.probabilities])
        for each in predictions
    }
    scores, curve = [], []
    for name, part in chances.items():
        values, limits = estimate_scores(part[-1], truth, labels, clusters, options)
        scores += [(name, score, values[score], *limits[score]) for score in MAIN_SCORES]
        for share, hits in zip(SHARES, part.argmax(axis=2) == truth, strict=True):
            estimate = estimate_share(hits, subjects, options.resamples, options.seed, options.level)
            curve.append((name, share, *estimate))
    tables = {
        "scores": pd.DataFrame(scores, columns=["model", "score", "value", "low", "high"]),
        "differences": _differences(chances, truth, labels, clusters, options),
        "seen": pd.DataFrame(curve, columns=["model", "seen", "accuracy", "low", "high"]),
    }
    found = {
        "heading": heading,
        "held_out": held_out,
        "n": len(rows),
        "subjects": None if subjects is None else int(subjects.max()) + 1,
        "labels": labels,
        "rules": {each.name: rule.text for each, rule in zip(predictions, rules, strict=True)},
        "notes": notes,
        **{name: table.to_dict("records") for name, table in tables.items()},
    }
    predicted = {f"prediction: {name}": predicted_labels(part[-1], labels) for name, part in chances.items()}
    title = f"Accuracy by the share of each sequence that was seen\n{heading} (n = {len(rows):,} sequences)"
    with report_folder(report) as folder:
        for name, table in tables.items():
            write_table(table, folder / f"{name}.csv")
        write_table(rows[["sequence", "subject", "emotion"]].assign(**predicted), folder / "predictions.csv")
        draw_seen(tables["seen"], title, folder / "seen.png", interval_text(options.level))
        write_json(folder / "metrics.json", found)
    print(_summary(found, options), f"wrote {report}/", sep="\n")
    return found


def _differences(
    chances: dict[str, np.ndarray],
    truth: np.ndarray,
    labels: list[str],
    clusters: np.ndarray,
    options: EvaluationConfig,
) -> pd.DataFrame:
    """Return the paired differences of the first network and each other one; McNemar's p-value is of accuracy."""
    first, *others = chances
    statistics = {name: score_statistic(part[-1], truth, labels) for name, part in chances.items()}
    correct = {name: part[-1].argmax(axis=1) == truth for name, part in chances.items()}
    rows = []
    for other in others:
        p_value = mcnemar(correct[other], correct[first])["p_value"]
        found = paired_difference(statistics[other], statistics[first], clusters, options, MAIN_SCORES)
        for score, estimate in found.items():
            own = p_value if score == "accuracy" else None
            rows.append((f"{first} minus {other}", score, *estimate, own))
    return pd.DataFrame(rows, columns=["difference", "score", "value", "low", "high", "p_value"]).astype(
        {"p_value": object}
    )


def _summary(found: dict[str, Any], options: EvaluationConfig) -> str:
    clusters = "subject" if found["subjects"] else "sequence"
    lines = [f"{found['heading']}, {found['n']:,} sequences, {interval_text(options.level)}s by {clusters}"]
    lines += [f"  {row['model']:32} {MAIN_SCORES[row['score']]:9} {_figure(row)}" for row in found["scores"]]
    for row in found["differences"]:
        test = f"  McNemar p = {row['p_value']:.3f}" if row["score"] == "accuracy" else ""
        lines.append(f"  {row['difference']}: {MAIN_SCORES[row['score']]} {_figure(row, '+')}{test}")
    rules = sorted({text for text in found["rules"].values() if text})
    return "\n".join([*lines, *(f"labels: {text}" for text in rules), *(f"note: {note}" for note in found["notes"])])


def _figure(row: dict[str, Any], sign: str = "") -> str:
    scale, digits = (100, 1) if row["score"] == "accuracy" else (1, 3)
    value, low, high = (f"{scale * row[name]:{sign}.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low} to {high}]"


def draw_seen(curve: pd.DataFrame, title: str, file: Path, interval: str) -> Path:
    """Draw the accuracy of each network against the share of the sequences that it has seen.

    Args:
        curve: Columns `model`, `seen`, `accuracy`, `low`, `high`; shares 0-1.
        title: Lines above the figure.
        file: PNG to write.
        interval: Name of the intervals.
    """
    from evaluation.report.plots import SERIES, canvas, save

    figure, axes = canvas(title)
    for (name, part), (color, marker, line) in zip(curve.groupby("model", sort=False), SERIES, strict=False):
        axes.plot(part["seen"], part["accuracy"], color=color, marker=marker, linestyle=line, label=str(name))
        axes.fill_between(part["seen"], part["low"], part["high"], color=color, alpha=0.12, linewidth=0)
    axes.set(xlabel="share of the frames seen, from the start", ylabel=f"accuracy (band: {interval})", ylim=(0, 1.01))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.0%}")
    axes.grid(color="#dddddd")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return save(figure, file)


if __name__ == "__main__":
    run(main)
