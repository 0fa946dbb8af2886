"""Compare the segments of the webcam program with hand-labelled segments: agreement, Cohen's kappa, delay.

Reads:  the webcam's `--segments` table, and hand labels: a CSV with the columns `start`, `end` (seconds since the first
        frame), `emotion`, and `track_id` (optional where the webcam's table holds one face)
Writes: FOLDER/segments.json, segments.csv (both time lines, cut at every change of label) and segments_changes.csv;
        FOLDER is REPORTS/segments/SEGMENTS-TRUTH, the names of both files

    python -m realtime.webcam --source talk.mp4 --no-window --segments talk.csv
    python -m evaluation.segments --segments talk.csv --truth labels.csv
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from sklearn.metrics import accuracy_score, cohen_kappa_score

from common.command_line import ReportsRoot, run
from common.emotions import canonical
from common.errors import InputError
from configuration import PATHS
from evaluation.report.section import percent
from evaluation.report.writer import write_json
from preprocessing.tables import write_table

NOT_SURE, NO_FACE = "unsure", "no face"  # predictions other than emotions


def main(
    segments: Annotated[Path, typer.Option(help="CSV that realtime.webcam wrote with --segments.")],
    truth: Annotated[
        Path, typer.Option(help="CSV of hand labels: start, end (seconds), emotion; track_id for several faces.")
    ],
    reports: ReportsRoot = PATHS.reports,
) -> None:
    """Compare the webcam's segments with hand-labelled segments."""
    predicted, labelled = read_segments(segments, "--segments", "label"), read_segments(truth, "--truth", "emotion")
    tracks = ", ".join(map(str, predicted["track_id"].unique()))
    if "track_id" not in labelled:
        if predicted["track_id"].nunique() > 1:
            raise InputError(
                f"--segments {segments} holds several faces ({tracks}): add a column track_id to --truth {truth}, with "
                "the IDs that a recorded video shows (--record)"
            )
        labelled["track_id"] = predicted["track_id"].iloc[0]
    lines = time_lines(labelled, predicted)
    if not ((lines["truth"] != "") & (lines["prediction"] != NO_FACE)).any():
        raise InputError(
            f"--truth {truth} and --segments {segments} share no moment of any face; give labels of the same video, in "
            f"seconds since its first frame, with its track IDs ({tracks})"
        )
    changes = delays(labelled, lines)
    found = agreement(lines, changes["delay"])
    others = sorted({*predicted["track_id"]} - {*labelled["track_id"]})
    folder = reports / "segments" / f"{segments.stem}-{truth.stem}"
    write_table(lines, folder / "segments.csv")
    write_table(changes.replace(np.inf, np.nan), folder / "segments_changes.csv")
    facts = {"segments": str(segments), "truth": str(truth), **found, "unlabelled_faces": others}
    write_json(folder / "segments.json", facts, digits=6)  # last, so that it never describes missing files
    print("\n".join([*_summary(found), f"wrote {folder / 'segments.json'}"]))


def read_segments(file: Path, option: str, label_column: str) -> pd.DataFrame:
    """Return segments by face and time; adjacent segments with the same label are merged.

    Args:
        file: CSV with the columns `start`, `end`, `label_column`, and `track_id`, which is optional for hand labels.
        option: Option that named the file, for error messages.
        label_column: `label` in the webcam's table, which also has `unsure`; `emotion` in hand labels.

    Returns:
        Columns `start`, `end` (seconds), `label` (canonical), and `track_id` (int) if the file has it.

    Raises:
        InputError: The file cannot be read, or a row is invalid.
    """
    name, is_program = f"{option} {file}", label_column == "label"
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} is not a readable CSV table ({error})") from error
    if {"time", "unsure"} <= set(table.columns):
        raise InputError(f"{name} was written with --log; write one with realtime.webcam --segments and give that")
    needed = ["start", "end", label_column, *(["track_id"] if is_program else [])]
    if missing := [column for column in needed if column not in table.columns]:
        raise InputError(f"{name} lacks the columns {', '.join(missing)}; it needs {', '.join(needed)}")
    rows = [_segment(row, f"{name}, line {line}", label_column) for line, row in enumerate(table.to_dict("records"), 2)]
    read = pd.DataFrame(rows, columns=["track_id", "start", "end", "label"]).sort_values(["track_id", "start"])
    read = read.loc[read["end"] > read["start"]]
    if read.empty:
        raise InputError(f"{name} holds no segment longer than 0 s")
    is_same_face = read["track_id"] == read["track_id"].shift()
    overlaps = is_same_face & (read["start"] < read["end"].shift())
    if overlaps.any():
        one: dict[Any, Any] = read[overlaps].iloc[0].to_dict()
        raise InputError(
            f"{name}: the segment of face {one['track_id']} at {one['start']:g} to {one['end']:g} s overlaps the one "
            "before; a face has one label at a time, and faces differ by the column track_id"
        )
    continues = is_same_face & (read["start"] == read["end"].shift()) & (read["label"] == read["label"].shift())
    columns = {"track_id": "first", "start": "first", "end": "last", "label": "first"}
    merged = read.groupby((~continues).cumsum(), as_index=False).agg(columns)
    return merged if "track_id" in table.columns else merged.drop(columns="track_id")


def _segment(row: dict[Any, str], place: str, label_column: str) -> tuple[int, float, float, str]:
    try:
        start, end = (round(float(row[column]), 6) for column in ("start", "end"))  # equal times become equal
        track_id = int(row.get("track_id", 0))
    except ValueError as error:
        raise InputError(f"{place}: times are seconds such as 12.5, track IDs are integers ({error})") from error
    is_program = label_column == "label"
    if not 0 <= start <= end < np.inf or (start == end and not is_program):
        raise InputError(f"{place}: start {start:g} s and end {end:g} s; give 0 <= start < end")
    try:
        label = NOT_SURE if is_program and row[label_column] == NOT_SURE else canonical(row[label_column])
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    return track_id, start, end, label


def time_lines(labelled: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Cut the time of each labelled face wherever its label or prediction changes.

    Returns:
        Columns `track_id`, `start`, `end`, `truth` (an emotion; empty: unlabelled) and `prediction` (an emotion,
        `unsure` or `no face`). Time with neither is left out.
    """
    parts = []
    for track_id, own in labelled.groupby("track_id"):
        seen = predicted.loc[predicted["track_id"] == track_id]
        edges = np.unique(np.concatenate([each[side] for each in (own, seen) for side in ("start", "end")]))
        part = pd.DataFrame({"track_id": track_id, "start": edges[:-1], "end": edges[1:]})
        parts.append(
            part.assign(truth=_labels_at(own, edges[:-1], ""), prediction=_labels_at(seen, edges[:-1], NO_FACE))
        )
    lines = pd.concat(parts, ignore_index=True)
    return lines.loc[(lines["truth"] != "") | (lines["prediction"] != NO_FACE)].reset_index(drop=True)


def _labels_at(segments: pd.DataFrame, times: np.ndarray, absent: str) -> np.ndarray:
    place = np.searchsorted(segments["start"], times, side="right") - 1
    inside = times < np.append(segments["end"].to_numpy(float), -np.inf)[place]  # place -1: before the first one
    return np.where(inside, np.append(segments["label"].to_numpy(object), absent)[place], absent)


def delays(labelled: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """Return the changes of emotion, and how long the webcam takes to show each.

    Args:
        labelled: Hand-labelled segments.
        lines: Both time lines, as `time_lines` returns them.

    Returns:
        A row per segment that changes the emotion: `track_id`, `time`, `before`, `emotion`, and `delay` (seconds): 0
        where the emotion is shown already, infinite where it is not shown before the segment ends.
    """
    before = labelled.groupby("track_id")["label"].shift()
    rows = []
    segments: list[dict[Any, Any]] = labelled.to_dict("records")
    for previous, segment in zip(before, segments, strict=True):
        if pd.notna(previous) and previous != segment["label"]:
            during = (lines["track_id"] == segment["track_id"]) & lines["start"].between(
                segment["start"], segment["end"], "left"
            )
            shown = lines.loc[during & (lines["prediction"] == segment["label"]), "start"]
            delay = round(shown.iloc[0] - segment["start"], 6) if len(shown) else np.inf
            rows.append((segment["track_id"], segment["start"], previous, segment["label"], delay))
    return pd.DataFrame(rows, columns=["track_id", "time", "before", "emotion", "delay"]).astype({"delay": float})


def agreement(lines: pd.DataFrame, delay: pd.Series) -> dict[str, Any]:
    """Return the agreement of both time lines; None where a denominator is zero.

    Args:
        lines: Both time lines, as `time_lines` returns them.
        delay: Delay of each change in seconds, as `delays` returns it.

    Returns:
        `seconds` of each kind; `accuracy` of the labelled seconds with a face (unsure is incorrect),
        `accuracy_when_sure` and `kappa` (Cohen 1960, seconds as counts) of those with a predicted emotion; shares
        `unsure`, `no_face` and `unlabelled`; number of `changes`, the median `delay` of those shown, and the shares
        `already` shown and `never` shown; and the `confusion` matrix in seconds.
    """
    lines = lines.assign(seconds=lines["end"] - lines["start"])
    is_labelled, is_seen = lines["truth"] != "", lines["prediction"] != NO_FACE
    seen, sure = lines.loc[is_labelled & is_seen], lines.loc[is_labelled & is_seen & (lines["prediction"] != NOT_SURE)]
    kinds = {
        "labelled": is_labelled,
        "labelled_and_seen": is_labelled & is_seen,
        "agree": lines["truth"] == lines["prediction"],
        "unsure": is_labelled & (lines["prediction"] == NOT_SURE),
        "no_face": is_labelled & ~is_seen,
        "unlabelled": ~is_labelled,
    }
    seconds = {name: float(lines.loc[rows, "seconds"].sum()) for name, rows in kinds.items()}
    shown = delay[np.isfinite(delay)]
    judged = lines.loc[is_labelled]
    confusion = pd.crosstab(judged["truth"], judged["prediction"], judged["seconds"], aggfunc="sum").fillna(0)
    return {
        "seconds": seconds,
        "accuracy": accuracy_score(seen["truth"], seen["prediction"], sample_weight=seen["seconds"]),
        "accuracy_when_sure": _score(accuracy_score, sure),
        "kappa": _score(cohen_kappa_score, sure) if len({*sure["truth"], *sure["prediction"]}) > 1 else None,
        "unsure": seconds["unsure"] / seconds["labelled"],
        "no_face": seconds["no_face"] / seconds["labelled"],
        "unlabelled": seconds["unlabelled"] / float(lines.loc[is_seen, "seconds"].sum()),
        "changes": len(delay),
        "delay": float(shown.median()) if len(shown) else None,
        "already": float((delay == 0).mean()) if len(delay) else None,
        "never": float(np.isinf(delay).mean()) if len(delay) else None,
        "confusion": confusion.to_dict("index"),
    }


def _score(score: Any, lines: pd.DataFrame) -> float | None:
    return score(lines["truth"], lines["prediction"], sample_weight=lines["seconds"]) if len(lines) else None


def _summary(found: dict[str, Any]) -> list[str]:
    seconds = found["seconds"]
    lines = [f"accuracy {percent(found['accuracy'])} of {seconds['labelled_and_seen']:.1f} s with a label and a face"]
    if found["accuracy_when_sure"] is not None:
        kappa = "" if found["kappa"] is None else f", kappa {found['kappa']:.3f}"
        lines.append(f"where an emotion is predicted: accuracy {percent(found['accuracy_when_sure'])}{kappa}")
    lines.append(
        f"of {seconds['labelled']:.1f} s labelled: unsure {percent(found['unsure'])}, no face "
        f"{percent(found['no_face'])}; unlabelled: {percent(found['unlabelled'])} of the time with a face"
    )
    if found["changes"]:
        delay = "none shown" if found["delay"] is None else f"median delay {found['delay']:.2f} s"
        shares = f"already shown {percent(found['already'])}, never shown {percent(found['never'])}"
        lines.append(f"changes of emotion: {found['changes']}; {delay}; {shares}")
    return lines


if __name__ == "__main__":
    run(main)
