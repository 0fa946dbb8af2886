"""Say what looking at a whole sequence is worth: the sequence network against networks that see the last frame alone.

Reads:  models/NAME/sequence.keras, or with --folds its networks of the folds; models/NAME/best.keras (or its folds)
        where there is one, and the released network, which never saw this data; data/NAME/split.csv and its crops
Writes: reports/NAME/sequence/SPLIT/ (with --folds: reports/NAME/sequence/folds/): scores.csv, differences.csv,
        predictions.csv, metrics.json, and accuracy by how much of the sequence was seen, seen.csv and seen.png

    python -m evaluation.sequences --dataset ckplus
    python -m evaluation.sequences --dataset ckplus --folds
    python -m evaluation.sequences --dataset ckplus --calibrate
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer

from common.command_line import DataRoot, DatasetName, ModelsRoot, ReportsRoot, dataset_folder, run, step_command
from common.emotions import relate
from common.errors import InputError
from common.logging import quiet_start
from configuration import EVALUATION, PATHS, SAMPLE_NAME, EvaluationConfig
from evaluation.metrics.calibration import choose_threshold, fit_temperature, is_settled, with_temperature
from evaluation.metrics.intervals import MIN_SUBJECTS, bootstrap, estimate_share, percentile_intervals, subject_clusters
from evaluation.metrics.paired import mcnemar
from evaluation.metrics.scores import apply_rule, predicted_labels, score_intervals, score_statistic
from evaluation.report.section import interval_text
from evaluation.report.writer import report_folder, write_json
from evaluation.sections.performance import MAIN_SCORES
from inference.emotion_classifier import EmotionClassifier
from inference.lineage import ImageHashes, read_hashes, write_hashes
from inference.model_card import Card, read_card, read_sequence_card, write_card
from inference.sequence_classifier import SequenceClassifier
from preprocessing.tables import (
    SPLITS,
    crop_options,
    fold_numbers,
    labels_of,
    read_table,
    split_by_fold,
    split_hash,
    write_table,
)
from training.cross_validation import features_without, fold_file
from training.lineage import Exposure, exposure_of, knows_images

if TYPE_CHECKING:
    from training.sequences.data import SequenceSet

SHARES = tuple(tenth / 10 for tenth in range(1, 11))  # of each sequence's frames, seen from its start


@dataclass(frozen=True)
class Part:
    """Sequences that one set of networks is scored on: a split, or the test part of a fold.

    Attributes:
        table: `split.csv`, as the networks were to be trained on it.
        sequences: Those to score.
        network_file: Says where a network lies that learnt from this part's training split, given the network that
            stands for all parts.
        features_file: Whose features the sequence network reads.
    """

    table: pd.DataFrame
    sequences: "SequenceSet"
    network_file: Callable[[Path], Path]
    features_file: Path


@dataclass(frozen=True)
class Seen:
    """A network's answers when it has seen a share of each sequence.

    Attributes:
        name: What the tables call it.
        labels: Its classes.
        probabilities: float (shares, sequences, classes), at each of `SHARES`.
        sequences: Name of each sequence, (sequences,).
    """

    name: str
    labels: tuple[str, ...]
    probabilities: np.ndarray
    sequences: np.ndarray


def main(
    dataset: DatasetName = SAMPLE_NAME,
    data: DataRoot = PATHS.data,
    models: ModelsRoot = PATHS.models,
    reports: ReportsRoot = PATHS.reports,
    model: Annotated[
        Path | None, typer.Option(help="Sequence network; left out: MODELS/DATASET/sequence.keras.")
    ] = None,
    peak_model: Annotated[
        Path | None, typer.Option(help="Network of single faces; left out: MODELS/DATASET/best.keras, if it is there.")
    ] = None,
    features: Annotated[
        Path, typer.Option(help="Network whose features the sequence network reads.")
    ] = PATHS.pretrained,
    folds: Annotated[
        bool, typer.Option("--folds", help="Score each fold by the networks that were trained without it.")
    ] = False,
    split: Annotated[str | None, typer.Option(help=f"{', '.join(SPLITS)}; left out: test, or dev without one.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First fit temperature and threshold on dev, into the network's card.")
    ] = False,
    resamples: Annotated[
        int, typer.Option(min=20, max=100_000, help="Bootstrap resamples behind each interval.")
    ] = EVALUATION.resamples,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = EVALUATION.seed,
) -> None:
    """Compare a sequence network with networks that see each sequence's last frame alone."""
    folder = dataset_folder(data, dataset)
    table = read_table(folder, "split.csv")
    model_file = model or models / dataset / "sequence.keras"
    if folds and (split is not None or calibrate):
        raise InputError("--folds scores every sequence, by several networks: leave --split and --calibrate out")
    if split is not None and split not in SPLITS:
        raise InputError(f"--split {split!r} is not one of {', '.join(SPLITS)}")
    numbers = fold_numbers(table) if folds else []
    of_folds = ["--folds", len(numbers)] if folds else []
    train = step_command("training.step4_sequence_model", folder, *of_folds, "--output", model_file)
    for file in [fold_file(model_file, fold) for fold in numbers] or [model_file]:
        read_sequence_card(file, train)  # before Keras is imported, so that a mistake is told at once
    read_card(features)
    with quiet_start():
        from training.sequences.data import read_sequences

    if folds:
        sequences = read_sequences(table, folder)
        parts = [_fold(table, folder, features, fold) for fold in numbers]
        heading = f"{dataset}, {len(numbers)} folds"
    else:
        sequences = read_sequences(table, folder)
        split = split or ("test" if (sequences.table["split"] == "test").any() else "dev")
        chosen = sequences.of_split(split)
        if not len(chosen):
            raise InputError(f"split {split!r} of {folder / 'split.csv'} has no labelled sequence; use another")
        parts = [Part(table, chosen, lambda file: file, features)]
        heading = f"{dataset}, {split} split"
        if calibrate:
            calibrate_card(Part(table, sequences.of_split("dev"), lambda file: file, features), folder, model_file)
    print(sequences.note)
    predictions, notes = ask_all(parts, folder, model_file, peak_model or models / dataset / "best.keras")
    if dataset == SAMPLE_NAME:
        notes.append("the sample is one portrait, warped: no score on it means anything")
    exposures = [
        exposure_of(file, read_sequence_card(file), _frames(part), part.table, dataset)
        for part in parts
        for file in [part.network_file(model_file)]
    ]
    exposure = Exposure.joined(exposures)
    held_out = exposure.held_out
    notes += _leakage(model_file, exposure)
    rows = pd.concat([part.sequences.table for part in parts], ignore_index=True)
    options = EvaluationConfig(resamples=resamples, seed=seed)
    report = reports / dataset / model_file.stem / (split or "folds")
    write_report(predictions, rows, labels_of(sequences.table), notes, heading, report, options, held_out)


def _fold(table: pd.DataFrame, folder: Path, features: Path, fold: int) -> Part:
    from training.sequences.data import read_sequences

    divided = split_by_fold(table, fold)
    return Part(
        divided,
        read_sequences(divided, folder).of_split("test"),
        lambda file: fold_file(file, fold),
        features_without(features, folder.name, table, fold),
    )


def calibrate_card(dev: Part, folder: Path, model_file: Path, options: EvaluationConfig = EVALUATION) -> None:
    """Fit a sequence network's temperature and threshold to its answers at the last frames, and write both to its card.

    Raises:
        InputError: the network cannot be used, learnt from another split, or the sequences do not tell.
    """
    if not len(dev.sequences):
        raise InputError(f"{folder / 'split.csv'} has no labelled dev sequence to calibrate with; split again")
    check_split(model_file, dev, folder)
    labels, probabilities = _ask_sequence(model_file, dev, folder)
    card = read_sequence_card(model_file)
    raw = with_temperature(probabilities[-1], 1 / card.temperature)
    truth = np.array([labels.index(emotion) for emotion in dev.sequences.table["emotion"]])
    temperature = round(fit_temperature(raw, truth), 4)
    if not is_settled(temperature):
        raise InputError(
            f"--calibrate: {len(truth)} dev sequences of {folder.name} do not tell how sure {model_file.name} may be "
            f"(temperature {temperature:.2g}): too few, or all answered alike"
        )
    chosen = choose_threshold(with_temperature(raw, temperature), truth, options.target_accuracy, options.min_coverage)
    how = {"dataset": folder.name, "split": "dev", "sequences": len(truth), "frame": "last"}
    fitted: dict[str, Any] = {
        "temperature": temperature,
        "abstention_threshold": round(chosen.threshold, 4),
        "calibration": how,
    }
    selected = ImageHashes.of(selection=_frames(dev)["pixel_hash"])
    write_hashes(model_file, read_hashes(model_file) | selected)
    write_card(replace(card, **fitted), model_file)
    print(
        f"{model_file.name}: temperature {temperature}, unsure below {fitted['abstention_threshold']}, fitted on the "
        "last "
        f"frames of {len(truth):,} dev sequences, where it answers {chosen.coverage:.1%} with {chosen.accuracy:.1%} "
        f"right; written into {model_file.with_suffix('.json')}"
    )


def check_split(model_file: Path, part: Part, folder: Path) -> None:
    """Refuse a sequence network that may have learnt from what it is scored on, itself or by its features.

    Raises:
        InputError: it, or the network whose features it reads, learnt from another split of this data.
    """
    if not _fits(model_file, read_sequence_card(model_file), part, folder):
        raise InputError(
            f"{model_file}, or a network in its lineage, was trained on another split of {folder.name}, or on images "
            "that are scored; train it again: step4_sequence_model"
        )
    if not _fits(part.features_file, read_card(part.features_file), part, folder):
        raise InputError(
            f"{part.features_file}, whose features are read, was trained on another split of {folder.name}, or on "
            "images that are scored; train it again, or give --features of a network that was trained on other data"
        )


def ask_all(parts: Sequence[Part], folder: Path, model_file: Path, peak_file: Path) -> tuple[list[Seen], list[str]]:
    """Return the answers of the sequence network, the peak-only one where it can be used, and the released one.

    Args:
        parts: What is scored, with the networks that may be asked about it.
        folder: The data set's folder.
        model_file: The sequence network, or what its folds stand for.
        peak_file: The network of single faces, or what its folds stand for.

    Returns:
        The answers, and what a reader must know of them.

    Raises:
        InputError: the sequence network cannot be used, or learnt from another split.
    """
    notes: list[str] = []
    for part in parts:
        check_split(part.network_file(model_file), part, folder)
    predictions = [_joined("sequence", parts, lambda part: _ask_sequence(part.network_file(model_file), part, folder))]
    peak_files = [part.network_file(peak_file) for part in parts]
    absent = [file for file in peak_files if not file.is_file()]
    if absent:
        notes.append(f"no peak-only network of this data to compare with: {absent[0]} does not exist")
    elif not all(_fits(file, read_card(file), part, folder) for file, part in zip(peak_files, parts, strict=True)):
        notes.append(f"{peak_file} is not compared: it was trained on another split, or on images that are scored")
    else:
        seen = [
            exposure_of(file, read_card(file), _frames(part), part.table, folder.name)
            for file, part in zip(peak_files, parts, strict=True)
        ]
        notes += _leakage(peak_file, Exposure.joined(seen))
        predictions.append(
            _joined(
                f"peak only ({peak_file.stem})",
                parts,
                lambda part: _ask_frames(part.network_file(peak_file), part, folder),
            )
        )
    released, crops = read_card(PATHS.pretrained), crop_options(folder)
    if (released.input_size, released.channels) != (crops["size"], crops["channels"]):
        notes.append(
            f"the released network takes faces of {released.input_size} pixels in {released.channels} channel "
            "and is not compared"
        )
    elif not any(knows_images(PATHS.pretrained, released, _frames(part), folder.name) for part in parts):
        name = f"peak only, zero-shot ({PATHS.pretrained.stem})"
        predictions.append(_joined(name, parts, lambda part: _ask_frames(PATHS.pretrained, part, folder)))
    return predictions, notes


def _frames(part: Part) -> pd.DataFrame:
    """Return the rows of the frames that are scored, each with the split of its sequence."""
    steps = part.sequences.steps
    split = np.repeat(part.sequences.table["split"].to_numpy(), [len(each) for each in steps])
    return part.sequences.frames.iloc[np.concatenate(steps)].assign(split=split)


def _fits(model_file: Path, card: Card, part: Part, folder: Path) -> bool:
    """Return whether a network's lineage was trained on no scored frame outside the part's own training split."""
    judged = _frames(part).query("split != 'train'")
    exposure = exposure_of(model_file, card, judged, part.table, folder.name)
    return not exposure.trained and not card.was_trained_on_another_split(folder.name, split_hash(part.table))


def _leakage(model_file: Path, exposure: Exposure) -> list[str]:
    """Return what makes a network's score no clean held-out score; nothing where it is one."""
    notes, frames = [], len(exposure.training)
    if exposure.held_out is False:
        notes.append(
            f"NOT A HELD-OUT SCORE: {model_file} was trained on {exposure.trained:,} of the {frames:,} scored frames"
        )
    elif exposure.held_out is None:
        notes.append(
            f"NOT KNOWN WHETHER HELD OUT: no complete list of the training images of {model_file} lies beside it"
        )
    if exposure.selected:
        notes.append(
            f"{model_file} was selected on {exposure.selected:,} of the {frames:,} scored frames: expect a lower score "
            "on images that played no part in its selection"
        )
    return notes


def _joined(name: str, parts: Sequence[Part], predict: Callable[[Part], tuple[tuple[str, ...], np.ndarray]]) -> Seen:
    predictions = [predict(part) for part in parts]
    labels = predictions[0][0]
    if any(each != labels for each, _ in predictions):
        raise InputError(f"{name}: the networks of the folds have different labels; train all folds again")
    sequences = np.concatenate([part.sequences.table["sequence"].to_numpy() for part in parts])
    return Seen(name, labels, np.concatenate([probabilities for _, probabilities in predictions], axis=1), sequences)


def _ask_sequence(model_file: Path, part: Part, folder: Path) -> tuple[tuple[str, ...], np.ndarray]:
    from training.sequences.data import frame_features

    network = SequenceClassifier.load(model_file)
    classifier = _single_faces(part.features_file)
    network.check_features(classifier.features_of)
    features = frame_features(classifier, folder, part.sequences.frames)[0]
    return network.labels, np.stack(
        [
            network.predict([(features[steps[:count]], features[steps[0]]) for steps, count in _seen(part, share)])
            for share in SHARES
        ]
    )


def _ask_frames(model_file: Path, part: Part, folder: Path) -> tuple[tuple[str, ...], np.ndarray]:
    from training.data import read_crops

    classifier = _single_faces(model_file)
    needed = np.unique(np.concatenate(part.sequences.steps))
    rows = part.sequences.frames.iloc[needed]
    probabilities = classifier.predict(read_crops(classifier, folder, rows))
    return classifier.labels, np.stack(
        [
            probabilities[np.searchsorted(needed, [steps[count - 1] for steps, count in _seen(part, share)])]
            for share in SHARES
        ]
    )


@cache
def _single_faces(model_file: Path) -> EmotionClassifier:
    return EmotionClassifier.load(model_file, features=True)  # one serves all folds


def _seen(part: Part, share: float) -> list[tuple[np.ndarray, int]]:
    """Return each sequence's steps, and how many of them the share is; at least one."""
    return [(steps, max(1, round(share * len(steps)))) for steps in part.sequences.steps]


def write_report(
    predictions: Sequence[Seen],
    rows: pd.DataFrame,
    shown: Sequence[str],
    notes: list[str],
    heading: str,
    report: Path,
    options: EvaluationConfig,
    held_out: bool | None,
) -> dict[str, Any]:
    """Score the answers against each other, print and write all figures, and return them.

    All are scored on the emotions that every network knows; an emotion that no sequence ends with is taken out of the
    answers. Intervals are resampled by person.

    Args:
        answers: The sequence network's first.
        rows: A row per sequence: `sequence`, `subject`, `emotion`.
        shown: The emotions that sequences end with.
        notes: Lines for the reader.
        heading: What was measured on what.
        report: Folder of the figures.
        options: For the intervals.
        held_out: Whether the sequence network was trained on none of the frames; None where that is not known.

    Raises:
        InputError: no rule relates a network's labels to the data's, or a network answered other sequences.
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
    clusters = subject_clusters(rows)
    groups = np.arange(len(rows)) if clusters is None else clusters
    if clusters is None or clusters.max() + 1 < MIN_SUBJECTS:
        notes = [*notes, f"{len(set(groups))} people or sequences are few: the intervals are too narrow"]
    chances = {
        each.name: np.stack([apply_rule(part[keep], relate(each.labels, labels)) for part in each.probabilities])
        for each in predictions
    }
    statistics = {name: score_statistic(part[-1], truth, labels) for name, part in chances.items()}

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = {name: one(weights) for name, one in statistics.items()}
        return {f"{name}|{score}": values[name][score] for name in values for score in MAIN_SCORES}

    drawn = bootstrap(statistic, groups, options.resamples, options.seed)
    measured = {name: float(value[0]) for name, value in statistic(np.ones((1, len(rows)))).items()}
    each_one = {
        f"{name}|{score}": ends
        for name, part in chances.items()
        for score, ends in score_intervals(
            {score: drawn[f"{name}|{score}"] for score in MAIN_SCORES},
            {score: measured[f"{name}|{score}"] for score in MAIN_SCORES},
            part[-1], truth, labels, groups, options.level,
        ).items()
    }  # fmt: skip
    scores = pd.DataFrame(
        [
            {"model": name, "score": score, "value": measured[key], "low": each_one[key][0], "high": each_one[key][1]}
            for name in chances
            for score in MAIN_SCORES
            for key in [f"{name}|{score}"]
        ]
    )
    differences = _differences(chances, truth, measured, drawn, options)
    curve = pd.DataFrame(
        [
            {"model": name, "seen": share, **_share(hits, clusters, options)}
            for name, part in chances.items()
            for share, hits in zip(SHARES, part.argmax(axis=2) == truth, strict=True)
        ]
    ).rename(columns={"value": "accuracy"})
    predicted = rows[["sequence", "subject", "emotion"]].copy()
    for name, part in chances.items():
        predicted[f"prediction: {name}"] = predicted_labels(part[-1], labels)
    title = f"Accuracy by the share of each sequence that was seen\n{heading} (n = {len(rows):,} sequences)"
    found = {
        "heading": heading,
        "held_out": held_out,
        "n": len(rows),
        "subjects": None if clusters is None else int(clusters.max()) + 1,
        "labels": labels,
        "rules": {each.name: rule.text for each, rule in zip(predictions, rules, strict=True)},
        "notes": notes,
        "scores": scores.to_dict("records"),
        "differences": differences.to_dict("records"),
        "seen": curve.to_dict("records"),
    }
    tables = {"scores": scores, "differences": differences, "seen": curve, "predictions": predicted}
    with report_folder(report) as folder:
        for name, table in tables.items():
            write_table(table, folder / f"{name}.csv")
        draw_seen(curve, title, folder / "seen.png", interval_text(options.level))
        write_json(folder / "metrics.json", found)
    print(_in_words(found, options), f"wrote {report}/", sep="\n")
    return found


def _share(hits: np.ndarray, clusters: np.ndarray | None, options: EvaluationConfig) -> dict[str, float]:
    return estimate_share(hits, clusters, options.resamples, options.seed, options.level)._asdict()


def _differences(
    chances: dict[str, np.ndarray],
    truth: np.ndarray,
    measured: dict[str, float],
    drawn: dict[str, np.ndarray],
    options: EvaluationConfig,
) -> pd.DataFrame:
    """Return how much better the first network is than each other one, on the same sequences and resamples."""
    first, *others = chances
    right = {name: part[-1].argmax(axis=1) == truth for name, part in chances.items()}
    rows = []
    for other in others:
        gaps = {score: drawn[f"{first}|{score}"] - drawn[f"{other}|{score}"] for score in MAIN_SCORES}
        p_value = mcnemar(right[other], right[first])["p_value"]  # of accuracy alone
        for score, (low, high) in percentile_intervals(gaps, options.level).items():
            value = measured[f"{first}|{score}"] - measured[f"{other}|{score}"]
            rows.append({"difference": f"{first} minus {other}", "score": score, "value": value, "low": low,
                         "high": high, "p_value": p_value if score == "accuracy" else None})  # fmt: skip
    return pd.DataFrame(rows, columns=["difference", "score", "value", "low", "high", "p_value"])


def _in_words(found: dict[str, Any], options: EvaluationConfig) -> str:
    lines = [f"{found['heading']}, {found['n']:,} sequences, {interval_text(options.level)}s by "
             f"{'person' if found['subjects'] else 'sequence'}"]  # fmt: skip
    for row in found["scores"]:
        lines.append(f"  {row['model']:32} {MAIN_SCORES[row['score']]:9} {_figure(row)}")
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
    """Draw each network's accuracy against the share of the sequences that it has seen.

    Args:
        curve: Columns `model`, `seen`, `accuracy`, `low`, `high`, all shares 0-1.
        title: Lines above the figure.
        file: PNG to write.
        interval: Name of the intervals, as `interval_text` gives it.
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
