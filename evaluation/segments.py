"""Compare, second by second, what the webcam program wrote with `--segments` and what a person noted down.

Reads:  the program's spans, and a person's labels: a CSV with the columns `start`, `end` (seconds since the source's
        first frame), `emotion`, and `track_id` (optional where the
        program's table holds one face)
Writes: FOLDER/time_spans.json, time_spans.png, time_spans.csv (both time lines, cut where either changes), and
        time_spans_{confusion,emotions,changes}.csv; FOLDER is reports/time_spans/SPANS-TRUTH, the names of both files

    python -m realtime.webcam --source talk.mp4 --no-window --segments talk.csv
    python -m evaluation.segments --segments talk.csv --truth labels.csv

A log (`--log`) is refused: it has no rows for frames without a face, so it does not tell for how long one was gone.
"""

from pathlib import Path
from typing import Annotated, Any

import matplotlib.patches
import numpy as np
import pandas as pd
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.command_line import run
from common.emotions import COLORS, UNSURE, canonical, in_class_order
from common.errors import InputError
from configuration import EVALUATION, PATHS, EvaluationConfig
from evaluation.metrics.intervals import Statistic, bootstrap, boundary_interval, percentile_intervals
from evaluation.report.plots import save
from evaluation.report.section import percent
from evaluation.report.writer import write_json
from evaluation.sections.performance import format_interval, format_score
from preprocessing.tables import write_table

NOT_SURE, NO_FACE = "unsure", "no face"  # what the program shows besides emotions
UNLABELLED = ""  # what a person says of the rest of the time


def main(
    segments: Annotated[Path, typer.Option(help="CSV that the webcam program wrote with --segments.")],
    truth: Annotated[Path, typer.Option(help="CSV of a person's labels: start, end (seconds), emotion, track_id.")],
    report: Annotated[
        Path | None, typer.Option(help="Folder to write; left out: reports/time_spans/SPANS-TRUTH.")
    ] = None,
) -> None:
    """Compare the webcam program's labels with a person's, in time."""
    predicted, labelled = read_spans(segments, "--segments", "label"), read_spans(truth, "--truth", "emotion")
    labelled = with_faces(labelled, predicted, segments, truth)
    lines = time_lines(labelled, predicted)
    if not ((lines["span"] >= 0) & (lines["prediction"] != NO_FACE)).any():
        raise InputError(
            f"--truth {truth} and --segments {segments} share no moment of any face; give labels of the same video, in "
            f"seconds since its first frame, with the program's track IDs ({_listed(predicted['track_id'].unique())})"
        )
    folder = report or PATHS.reports / "time_spans" / f"{segments.stem}-{truth.stem}"
    found = compare(labelled, predicted, lines, EVALUATION)
    _write(found, folder)
    write_table(lines.drop(columns="span"), folder / "time_spans.csv")
    draw_time_lines(lines, f"{segments.name} against {truth.name}", folder / "time_spans.png")
    facts = {"segments": str(segments), "truth": str(truth), **found["facts"]}
    write_json(folder / "time_spans.json", facts, digits=6)  # last: it vouches for the other files
    print("\n".join([*_told(found["facts"]), f"wrote {folder / 'time_spans.json'}"]))


# ---------------------------------------------------------------- reading


def read_spans(file: Path, option: str, label_column: str) -> pd.DataFrame:
    """Return a table's spans by face and time; those of one label that follow each other without a gap are one.

    Args:
        file: CSV with the columns `start`, `end`, `label_column`, and perhaps `track_id`.
        option: What the file was given as, for messages.
        label_column: `label` in the program's table, which also knows `unsure`; `emotion` in a person's.

    Returns:
        Columns `start`, `end` (seconds), `label` (canonical), and `track_id` (int) where the file has it.

    Raises:
        InputError: the file cannot be read, or one of its spans makes no sense.
    """
    name = f"{option} {file}"
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} is not a readable CSV table ({error})") from error
    if {"time", "unsure"} <= set(table.columns):
        raise InputError(f"{name} was written with --log; write one with realtime.webcam --segments and give that")
    is_program = label_column == "label"
    needed = ["start", "end", label_column, *(["track_id"] if is_program else [])]
    if missing := [column for column in needed if column not in table.columns]:
        raise InputError(f"{name} lacks the columns {', '.join(missing)}; it needs {', '.join(needed)}")
    rows = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        place = f"{name}, line {line}"
        start, end = (_seconds(row[column], f"{place}: {column}") for column in ("start", "end"))
        if end < start or (end == start and not is_program):
            raise InputError(f"{place}: the span ends at {end:g} s, not after its start at {start:g} s; mend its times")
        try:
            label = NOT_SURE if is_program and row[label_column] == NOT_SURE else canonical(row[label_column])
            face = int(row.get("track_id", 0))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        except ValueError as error:
            raise InputError(f"{place}: face {row['track_id']!r} is no whole number; give the program's") from error
        if end > start:
            rows.append((face, start, end, label))
    if not rows:
        raise InputError(f"{name} holds no span; a face must have been seen, and labelled, for some time")
    merged: list[tuple[int, float, float, str]] = []
    for face, start, end, label in sorted(rows):
        if merged and merged[-1][0] == face and start < merged[-1][2]:
            whose = f" of face {face}" if "track_id" in table.columns else ""
            raise InputError(
                f"{name}: the spans{whose} at {merged[-1][1]:g} to {merged[-1][2]:g} s and {start:g} to {end:g} s "
                "overlap; a face has one label at a time"
                + ("" if whose else ", or tell the faces by a column track_id")
            )
        if merged and (merged[-1][0], merged[-1][2:]) == (face, (start, label)):
            start = merged.pop()[1]
        merged.append((face, start, end, label))
    read = pd.DataFrame(merged, columns=["track_id", "start", "end", "label"])
    return read if "track_id" in table.columns else read.drop(columns="track_id")


def _seconds(text: str, what: str) -> float:
    try:
        value = round(float(text), 6)  # so that equal times are equal
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise InputError(f"{what} {text!r} is no time; give seconds since the first frame, such as 12.5")
    return value


def with_faces(labelled: pd.DataFrame, predicted: pd.DataFrame, segments: Path, truth: Path) -> pd.DataFrame:
    """Return a person's labels with the column `track_id`, where need be the only face's number.

    Raises:
        InputError: there are several faces, and nothing tells which one the labels are of.
    """
    if "track_id" in labelled:
        return labelled
    faces = predicted["track_id"].unique()
    if len(faces) > 1:
        raise InputError(
            f"--segments {segments} holds {len(faces)} faces ({_listed(faces)}) and --truth {truth} does not "
            "say whose its "
            "labels are; add a column track_id with the program's numbers, which the recorded video shows (--record)"
        )
    return labelled.assign(track_id=int(faces[0]))


# ---------------------------------------------------------------- comparing


def time_lines(labelled: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Cut the time of each labelled face wherever its label or the program's changes.

    Returns:
        Columns `track_id`, `start`, `end`, `truth` (an emotion; empty: unlabelled), `prediction` (an emotion, `unsure`
        or `no face`), `span` (row of `labelled`, or -1). Time that is neither labelled nor seen is left out.
    """
    parts = []
    for face, own in labelled.groupby("track_id"):
        seen = predicted.loc[predicted["track_id"] == face]
        edges = np.unique(np.concatenate([each[side] for each in (own, seen) for side in ("start", "end")]))
        part = pd.DataFrame({"track_id": face, "start": edges[:-1], "end": edges[1:]})
        truth, shown = _span_at(own, edges[:-1]), _span_at(seen, edges[:-1])
        part["truth"] = np.append(own["label"].to_numpy(object), UNLABELLED)[truth]
        part["prediction"] = np.append(seen["label"].to_numpy(object), NO_FACE)[shown]
        part["span"] = np.append(own.index.to_numpy(), -1)[truth]
        parts.append(part.loc[(truth >= 0) | (shown >= 0)])
    return pd.concat(parts, ignore_index=True)


def _span_at(segments: pd.DataFrame, times: np.ndarray) -> np.ndarray:
    """Return the place of the span that holds each time, int; -1: none does."""
    place = np.searchsorted(segments["start"], times, side="right") - 1
    ends = np.append(segments["end"].to_numpy(float), -np.inf)  # the last for place -1
    return np.where(times < ends[place], place, -1)


def compare(
    labelled: pd.DataFrame, predicted: pd.DataFrame, lines: pd.DataFrame, options: EvaluationConfig
) -> dict[str, Any]:
    """Return the figures, `facts`, and the tables behind them: `confusion`, `emotions`, `changes`.

    Intervals are by bootstrap over the person's spans (Efron and Tibshirani 1993, chapter 6): each is drawn whole,
    with all its seconds and its delay, since neighbouring frames are nothing like independent.

    Args:
        labelled: A person's labels, with `track_id`.
        predicted: The program's.
        lines: Both, from `time_lines`.
        options: Resamples, level and seed.
    """
    seconds = lines["end"] - lines["start"]
    is_labelled, is_seen = lines["span"] >= 0, lines["prediction"] != NO_FACE
    judged = lines.loc[is_labelled].assign(seconds=seconds)
    emotions = in_class_order({*judged["truth"], *judged["prediction"]})
    shown = [*emotions, NOT_SURE, NO_FACE]
    cells = np.zeros((len(labelled), len(emotions), len(shown)))
    where = (judged["span"], judged["truth"].map(emotions.index), judged["prediction"].map(shown.index))
    np.add.at(cells, tuple(each.to_numpy(int) for each in where), judged["seconds"].to_numpy())
    changes = onsets(labelled, judged)
    statistic = agreement(cells, changes["delay"].to_numpy(float), emotions)
    values = {name: float(value[0]) for name, value in statistic(np.ones((1, len(labelled)))).items()}
    intervals = dict.fromkeys(values, (float("nan"), float("nan")))  # of one span nothing can be drawn
    if len(labelled) > 1:
        drawn = bootstrap(statistic, np.arange(len(labelled)), options.resamples, options.seed)
        intervals = percentile_intervals(drawn, options.level)
        intervals |= boundary_intervals(cells, changes["delay"].to_numpy(float), emotions, options.level)
    names = pd.Index(emotions, name="truth")
    confusion = pd.DataFrame(cells.sum(axis=0), names, pd.Index(shown, name="prediction"))
    per_emotion = pd.DataFrame(
        {"emotion": emotions, "seconds": confusion[[*emotions, NOT_SURE]].sum(axis=1).to_numpy()}
    )
    for score in ("precision", "recall"):
        per_emotion[score] = [values[f"{score}/{emotion}"] for emotion in emotions]
        for side, end in enumerate(("low", "high")):
            per_emotion[f"{score}_{end}"] = [intervals[f"{score}/{emotion}"][side] for emotion in emotions]
    others = predicted.loc[~predicted["track_id"].isin(labelled["track_id"])]
    by_other = (others["end"] - others["start"]).groupby(others["track_id"]).sum().round(3)
    changed = changes.loc[changes["delay"].notna()]
    facts = {
        "seconds": {
            "labelled": seconds[is_labelled].sum(),
            "labelled_and_seen": seconds[is_labelled & is_seen].sum(),
            "agree": seconds[lines["truth"] == lines["prediction"]].sum(),
            "unsure": seconds[is_labelled & (lines["prediction"] == NOT_SURE)].sum(),
            "no_face": seconds[is_labelled & ~is_seen].sum(),
            "unlabelled": seconds[~is_labelled].sum(),
        },
        "values": {**values, "unlabelled": seconds[~is_labelled].sum() / seconds[is_seen].sum()},
        "intervals": intervals,
        "resampled": f"{options.resamples} times, {len(labelled)} labelled spans drawn whole; level {options.level}",
        "segments": len(labelled),
        "changes": len(changed),
        "changes_shown": int(np.isfinite(changed["delay"]).sum()),
        "faces": sorted(int(face) for face in labelled["track_id"].unique()),
        "faces_never_seen": sorted(int(face) for face in {*labelled["track_id"]} - {*predicted["track_id"]}),
        "seconds_of_faces_without_labels": by_other.to_dict(),
        "confusion": confusion.to_dict("index"),
        "emotions": per_emotion.to_dict("records"),
    }
    return {"facts": facts, "confusion": confusion.reset_index(), "emotions": per_emotion, "changes": changed}


def onsets(labelled: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """Return, for each of a person's spans, how long the program takes to show its emotion.

    Returns:
        A row per span, `track_id`, `time`, `before`, `emotion`, and `delay` (seconds): 0 where the emotion is shown
        already, infinite where it is not shown before the span ends, NaN where the face had no other emotion before.
    """
    agreeing = judged.loc[judged["truth"] == judged["prediction"]]
    delay = agreeing.groupby("span")["start"].min().reindex(labelled.index) - labelled["start"]
    before = labelled.groupby("track_id")["label"].shift()
    delay = delay.fillna(np.inf).where(before.notna() & (before != labelled["label"]))
    columns = {
        "track_id": labelled["track_id"],
        "time": labelled["start"],
        "before": before,
        "emotion": labelled["label"],
    }
    return pd.DataFrame({**columns, "delay": delay.round(6)})


def agreement(cells: np.ndarray, delays: np.ndarray, emotions: list[str]) -> Statistic:
    """Return the figures of agreement as a function of how often each span is drawn.

    `accuracy` (of the seconds with a label and a face; unsure agrees with nothing), `accuracy_when_sure` (of those with
    an emotion shown), `kappa` (of the latter; Cohen 1960, with seconds as counts), `unsure` and `no_face` (of the
    labelled seconds), `precision/EMOTION` and `recall/EMOTION` (recall of the seconds with a face), `delay` (seconds:
    median of the changes that are shown), `already` and `never` (share of the changes whose emotion is shown when they
    come, and not before the span ends). NaN where nothing is divided.

    Args:
        cells: Seconds, (spans, emotions, emotions + unsure and no face).
        delays: Seconds, (spans,), as in `onsets`.
        emotions: Names in class order.
    """
    is_change, is_never = ~np.isnan(delays), np.isinf(delays)
    is_shown = np.isfinite(delays)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        matrices = np.tensordot(weights, cells, 1)
        total, by_shown = matrices.sum(axis=(1, 2)), matrices.sum(axis=1)
        unsure, no_face = by_shown[:, -2], by_shown[:, -1]
        named = matrices[:, :, :-2]
        hits, truth, predictions = named.diagonal(axis1=1, axis2=2), named.sum(axis=2), named.sum(axis=1)
        support = truth + matrices[:, :, -2]
        sure = total - unsure - no_face
        drawn = [np.repeat(delays[is_shown], row.astype(int)) for row in weights[:, is_shown]]
        with np.errstate(invalid="ignore", divide="ignore"):
            observed = np.where(sure > 1e-9, hits.sum(axis=1) / sure, np.nan)
            chance = (truth * predictions).sum(axis=1) / sure**2
            precision = np.where(predictions > 0, hits / predictions, np.nan)
            recall = np.where(support > 0, hits / support, np.nan)
            values = {
                "accuracy": np.where(total - no_face > 1e-9, hits.sum(axis=1) / (total - no_face), np.nan),
                "accuracy_when_sure": observed,
                "kappa": np.where(chance < 1 - 1e-9, (observed - chance) / (1 - chance), np.nan),
                "unsure": unsure / total,
                "no_face": no_face / total,
                "delay": np.array([np.median(each) if len(each) else np.nan for each in drawn]),
                "already": (weights @ (delays == 0)) / (weights @ is_change),
                "never": (weights @ is_never) / (weights @ is_change),
            }
        for index, emotion in enumerate(emotions):
            values |= {f"precision/{emotion}": precision[:, index], f"recall/{emotion}": recall[:, index]}
        return values

    return statistic


def boundary_intervals(
    cells: np.ndarray, delays: np.ndarray, emotions: list[str], level: float
) -> dict[str, tuple[float, float]]:
    """Return the intervals of those shares of `agreement` that are 0 or 1, where a bootstrap interval has no width.

    They are Wilson's, for as many observations as the spans are worth by their seconds. A kappa of 1 has none (NaN).

    Args:
        cells: As for `agreement`.
        delays: As for `agreement`.
        emotions: Names in class order.
        level: Level of the intervals, 0-1.
    """
    hits = cells[:, :, :-2].diagonal(axis1=1, axis2=2)
    total, unsure, no_face = cells.sum(axis=(1, 2)), cells[:, :, -2].sum(axis=1), cells[:, :, -1].sum(axis=1)
    is_change = ~np.isnan(delays)
    shares = {
        "accuracy": (hits.sum(axis=1), total - no_face),
        "accuracy_when_sure": (hits.sum(axis=1), total - no_face - unsure),
        "unsure": (unsure, total),
        "no_face": (no_face, total),
        "already": (delays == 0, is_change),
        "never": (np.isinf(delays), is_change),
    }
    for index, emotion in enumerate(emotions):
        shares[f"recall/{emotion}"] = hits[:, index], cells[:, index, :-1].sum(axis=1)
        shares[f"precision/{emotion}"] = hits[:, index], cells[:, :, index].sum(axis=1)
    found = {
        name: boundary_interval(part, np.where(whole > 1e-9, whole, 0), None, level)
        for name, (part, whole) in shares.items()
    }
    intervals = {name: ends for name, ends in found.items() if ends}
    if intervals.get("accuracy_when_sure", (0, 0))[1] == 1:
        intervals["kappa"] = float("nan"), float("nan")
    return intervals


# ---------------------------------------------------------------- telling


def draw_time_lines(lines: pd.DataFrame, title: str, file: Path) -> None:
    """Draw each face's labels above what the program showed, over one time axis, in the webcam program's colours."""
    faces = lines["track_id"].unique()
    figure = Figure(figsize=(10, 1.0 * len(faces) + 1.7), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set_title(title, fontsize=10, loc="left", wrap=True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    start, end = lines["start"].min(), lines["end"].max()
    looks: dict[str, Any] = {name: {"facecolor": np.divide(color, 255)} for name, color in COLORS.items()}
    looks |= {NOT_SURE: {"facecolor": np.divide(UNSURE, 255)}, NO_FACE: {"facecolor": "white", "hatch": "xxx"}}
    rows = [(face, column) for face in faces for column in ("truth", "prediction")]
    places = [row + 0.25 * (row // 2) for row in range(len(rows))]
    for place, (face, column) in zip(places, rows, strict=True):
        own = lines.loc[(lines["track_id"] == face) & (lines[column] != UNLABELLED)]
        is_new = (own[column] != own[column].shift()) | (own["start"] != own["end"].shift())
        bars = own.groupby(is_new.cumsum()).agg(start=("start", "min"), end=("end", "max"), label=(column, "first"))
        for label, same in bars.groupby("label"):
            segments = list(zip(same["start"], same["end"] - same["start"], strict=True))
            axes.broken_barh(segments, (place - 0.4, 0.8), edgecolor="#444444", linewidth=0.4, **looks[str(label)])
        for bar in bars.itertuples():
            if bar.end - bar.start > 0.012 * (len(bar.label) + 1) * (end - start):  # it has room for its name
                color = "white" if bar.label in (NOT_SURE, "sadness", "anger", "disgust") else "black"
                back = {"bbox": {"facecolor": "white", "edgecolor": "none"}} if bar.label == NO_FACE else {}
                middle = (bar.start + bar.end) / 2
                axes.text(middle, place, bar.label, ha="center", va="center", fontsize=9, color=color, **back)
    axes.set_yticks(places, [f"face {face}: {'label' if column == 'truth' else 'program'}" for face, column in rows])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set(xlim=(start, end), xlabel="seconds since the first frame (empty: not labelled)")
    present = [label for label in looks if label in {*lines["truth"], *lines["prediction"]}]
    keys = [matplotlib.patches.Patch(edgecolor="#444444", label=label, **looks[label]) for label in present]
    figure.legend(handles=keys, loc="outside lower center", ncols=5, frameon=False)
    save(figure, file)


def _write(found: dict[str, Any], folder: Path) -> None:
    for name in ("confusion", "emotions", "changes"):
        write_table(found[name].replace(np.inf, np.nan).round(6), folder / f"time_spans_{name}.csv")


def _told(facts: dict[str, Any]) -> list[str]:
    seconds, values, intervals = facts["seconds"], facts["values"], facts["intervals"]

    def with_interval(name: str) -> str:
        score = "accuracy" if name != "kappa" else name  # by whose form it is printed
        return f"{format_score(score, values[name])} [{format_interval(score, intervals[name])}]"

    told = [
        f"agree: {with_interval('accuracy')} of {seconds['labelled_and_seen']:.1f} s with a label and a face "
        f"(unsure counts against it); {with_interval('accuracy_when_sure')} where an emotion is shown; "
        f"kappa there {with_interval('kappa')}",
        f"of {seconds['labelled']:.1f} s labelled: unsure {percent(values['unsure'])}, no face "
        f"{percent(values['no_face'])}; unlabelled: {percent(values['unlabelled'])} of the time these faces are seen",
    ]
    if facts["changes"]:
        delay = f"after {values['delay']:.2f} s (median)" if facts["changes_shown"] else "none"
        already, never = (percent(values[name]) for name in ("already", "never"))
        told.append(f"changes: {facts['changes']}; shown {delay}; shown already {already}, never {never}")
    if facts["seconds_of_faces_without_labels"]:
        others = (f"face {face}, {spent:.1f} s" for face, spent in facts["seconds_of_faces_without_labels"].items())
        told.append(f"left out, without labels: {'; '.join(others)}")
    if facts["faces_never_seen"]:
        told.append(f"labelled, and never seen by the program: face {_listed(facts['faces_never_seen'])}")
    if facts["segments"] < EVALUATION.few_segments:
        told.append(f"intervals are too narrow: only {facts['spans']} labelled spans are drawn from")
    return told


def _listed(faces: Any) -> str:
    return ", ".join(map(str, sorted(faces)))


if __name__ == "__main__":
    run(main)
