"""Recognize the expressions of all faces of a camera, video, image, folder or stream.

Reads:  --source (camera 0), models/pretrained.keras and its card
Writes: --record, an annotated video, animation or picture; --log, one row per face and frame; --segments, one row per
        track and stretch of time with one label; --summary, a page with the timeline of each face

    python -m realtime.webcam
    python -m realtime.webcam --source talk.mp4 --no-window --record annotated.mp4 --log faces.csv --summary talk.html
    python -m realtime.webcam --doctor
"""

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import run
from configuration import FACES, PATHS, WEBCAM
from inference.face_detector import build_detector
from inference.sequence_classifier import SequenceClassifier
from realtime.program import exit_on_signals, run_program
from realtime.recognition import check_temporal
from realtime.sinks.options import OutputOptions
from realtime.sinks.window import has_display
from realtime.sources import holds_pictures, open_source


def main(
    source: Annotated[
        str, typer.Option(help="Camera number, video, image, folder, or rtsp:// or http:// address.")
    ] = WEBCAM.source,
    model: Annotated[Path, typer.Option(help="Trained network, with its card beside it.")] = PATHS.pretrained,
    detector: Annotated[str, typer.Option(help="Face detector: mtcnn, or haar (OpenCV).")] = WEBCAM.detector,
    record: Annotated[
        Path | None,
        typer.Option(help="Annotated video (.mp4, .mkv, .mov, .avi), animation (.webp, .gif) or picture (.png, .jpg)."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Table to write, a row per face and frame: .csv or .jsonl.")] = None,
    segments: Annotated[
        Path | None, typer.Option(help="Table to write, a row per track and label in time: .csv.")
    ] = None,
    summary: Annotated[Path | None, typer.Option(help="Page to write with each face's timeline: .html.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")] = False,
    window: Annotated[bool, typer.Option("--window/--no-window", help="Show the frames; h lists the keys.")] = True,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Cover detected faces. Delays the window by half a second.")
    ] = False,
    blur_unknown: Annotated[
        bool, typer.Option("--blur-unknown", help="Cover (solid fill) all detected faces but the followed one.")
    ] = False,
    follow: Annotated[int, typer.Option(min=0, help="Track ID of the face to highlight; 0: none.")] = 0,
    min_face_size: Annotated[int, typer.Option(min=1, help="Smallest face to detect, pixels.")] = FACES.min_face_size,
    mirror: Annotated[
        bool | None, typer.Option("--mirror/--no-mirror", help="Flip horizontally. [default: cameras only]")
    ] = None,
    temporal: Annotated[
        Path | None, typer.Option(help="Sequence network of step4_sequence_model, in place of the smoothing.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Turn off smoothing and abstention.")] = False,
    doctor: Annotated[bool, typer.Option("--doctor", help="Check camera, display, network and speed.")] = False,
) -> None:
    """Recognize the expression of each face. In the window, h lists the keys; q or Esc quits."""
    exit_on_signals()
    if doctor:
        from inference.emotion_classifier import EmotionClassifier
        from realtime.doctor import examine

        sys.exit(0 if examine(model, EmotionClassifier.load_litert) else 1)
    options = OutputOptions(
        record, log, segments, summary, window, anonymous, blur_unknown, follow, overwrite=overwrite
    )
    options.check_files(source)
    with closing(open_source(source, mirror)) as frames:
        options.check_source(frames)
        if window and not has_display():
            print("no display: continuing without a window", file=sys.stderr)
            options = replace(options, window=False)

        from inference.emotion_classifier import EmotionClassifier  # imported late: errors above come at once

        if temporal:
            sequences = SequenceClassifier.load_litert(temporal)
            classifier = EmotionClassifier.load_litert(model, features=True)
            check_temporal(sequences, classifier, raw, holds_pictures(frames))
        else:
            sequences, classifier = None, EmotionClassifier.load_litert(model)
        face_detector = build_detector(detector, replace(classifier.faces, min_face_size=min_face_size))
        counts = run_program(frames, face_detector, classifier, options, model.name, raw, sequences)
    if frames.warning:
        print(frames.warning, file=sys.stderr)
    if counts.warning or (frames.warning and frames.live):
        sys.exit(1)


def console() -> None:
    """Run the installed command."""
    run(main)


if __name__ == "__main__":
    console()
