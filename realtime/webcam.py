"""Names the expression on every face that a camera, a video, an image or a stream shows.

Reads:  --source (camera 0), models/pretrained.keras and its card
Writes: --record, an annotated video, animation or picture; --log, one row per face and frame; --segments, one row per
        stretch of time with one expression; --summary, a page with each face's time line

    python -m realtime.webcam
    python -m realtime.webcam --source talk.mp4 --no-window --record annotated.mp4 --log faces.csv --summary talk.html
    python -m realtime.webcam --doctor
"""

import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from common.command_line import progress_bar, run
from configuration import FACES, PATHS, WEBCAM
from inference.face_detector import build_detector
from inference.faces import Detector
from inference.sequence_classifier import SequenceClassifier
from realtime.recognition import Classifier, Result, check_temporal, watch
from realtime.sinks.outputs import OutputOptions, Outputs
from realtime.sinks.window import has_display
from realtime.sources import Source, holds_pictures, open_source


def main(
    source: Annotated[
        str, typer.Option(help="Camera number, video, image, folder of them, or rtsp:// or http:// address.")
    ] = WEBCAM.source,
    model: Annotated[Path, typer.Option(help="Trained network; its card lies beside it.")] = PATHS.pretrained,
    detector: Annotated[str, typer.Option(help="mtcnn, or haar: OpenCV's frontal cascade.")] = WEBCAM.detector,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Annotated video to write (.mp4, .mkv, .mov, .avi), or a small moving .webp or .gif; of an image .png "
            "or .jpg."
        ),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Table to write (.csv, .jsonl), a row per face and frame.")] = None,
    segments: Annotated[
        Path | None, typer.Option(help="Table to write (.csv), a row per stretch of time with one expression.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Page to write (.html): each face's time line, shares of time, changes.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files of --record, --log, --segments, --summary.")
    ] = False,
    window: Annotated[
        bool, typer.Option("--window/--no-window", help="Show the frames; h lists the keys. Needs a display.")
    ] = True,
    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous",
            help="Cover every detected face with a solid fill, in the window, recordings and snapshots, from half a "
            "second before its detection to a second after its loss. Delays the window by half a second. Undetected "
            "faces stay visible.",
        ),
    ] = False,
    blur_unknown: Annotated[
        bool,
        typer.Option(
            "--blur-unknown",
            help="Cover, in the same way, every face but the followed one (--follow, or a key 1-9); without one, all.",
        ),
    ] = False,
    follow: Annotated[int, typer.Option(min=0, help="Number of the face that stands out from the start; 0: none.")] = 0,
    captures: Annotated[
        Path, typer.Option(help="Folder for the snapshots and recordings of the keys s and r.")
    ] = PATHS.captures,
    min_face_size: Annotated[int, typer.Option(help="Smaller faces are not looked for; pixels.")] = FACES.min_face_size,
    mirror: Annotated[
        bool | None, typer.Option("--mirror/--no-mirror", help="As a mirror shows it. [default: cameras alone]")
    ] = None,
    temporal: Annotated[
        Path | None,
        typer.Option(
            help="Sequence network of step4_sequence_model, which names what each face did, not a single frame; in "
            "place of the steadying. Reads the features of --model."
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Show the network as it is: not steadied, never unsure.")] = False,
    doctor: Annotated[
        bool, typer.Option("--doctor", help="Say what works on this machine, how fast, and what to do about the rest.")
    ] = False,
) -> None:
    """Name the expression on every face of a source. In the window, h lists the keys; q or Esc quits."""
    end_on_signals()
    if doctor:
        from inference.emotion_classifier import EmotionClassifier
        from realtime.doctor import examine

        sys.exit(0 if examine(model, EmotionClassifier.load_litert) else 1)
    options = OutputOptions(
        record, log, segments, summary, window, anonymous, blur_unknown, follow, captures, overwrite
    )
    options.check_files(source)
    with closing(open_source(source, mirror)) as frames:
        options.check(frames)
        if window and not has_display():
            print("no display here: going on without a window", file=sys.stderr)
            options = replace(options, window=False)

        from inference.emotion_classifier import EmotionClassifier  # a mistake above is told first

        if temporal:
            reader = SequenceClassifier.load_litert(temporal)
            classifier = EmotionClassifier.load_litert(model, features=True)
            check_temporal(reader, classifier, raw, holds_pictures(frames))
        else:
            reader, classifier = None, EmotionClassifier.load_litert(model)
        face_detector = build_detector(detector, replace(classifier.faces, min_face_size=min_face_size))
        _, warning = show(frames, face_detector, classifier, options, model.name, raw, reader)
    if frames.warning:
        print(frames.warning, file=sys.stderr)
    if warning or (frames.warning and frames.live):
        sys.exit(1)


def end_on_signals() -> None:
    """Let SIGTERM, and SIGHUP (its terminal was closed), end the program by an exception: what is open is closed.

    Often both come. The second one must not interrupt the closing, or the summary is lost.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has one

    def end(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to go on
            signal.signal(number, end)


@dataclass
class Tally:
    """What was done so far, in numbers."""

    frames: int = 0
    faces: int = 0
    start: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        """Count a frame, and its faces without the tentative ones."""
        self.frames += 1
        self.faces += sum(not each.tentative for each in result.recognitions)

    def __str__(self) -> str:
        rate = self.frames / max(time.monotonic() - self.start, 1e-9)
        return f"frames: {self.frames}, faces: {self.faces}, frames per second: {rate:.1f}"


def show(
    source: Source,
    detector: Detector,
    classifier: Classifier,
    options: OutputOptions,
    model: str = "",
    raw: bool = False,
    temporal: SequenceClassifier | None = None,
) -> tuple[Tally, str]:
    """Recognize a source to its end, or until a person ends it, and do with it what is wanted.

    However it ends, what was written is closed, and one line is printed that says what was done.

    Args:
        source: An open source.
        detector: What finds the faces.
        classifier: What names the expressions.
        options: What becomes of the results.
        model: What a person calls the network.
        raw: Show the network as it is; see `watch`.
        temporal: What names the expressions instead; see `watch`.

    Returns:
        What was done, and what went wrong without ending it: one line, or nothing.

    Raises:
        InputError: a file cannot be written.
    """
    outputs, tally = Outputs(options, source, (temporal or classifier).labels, model), Tally()
    hides = options.anonymous or options.blur_unknown  # who is to be hidden must be found in time
    results = watch(source, classifier, detector, raw=raw, temporal=temporal, synchronous=hides)
    try:
        with closing(results), closing(outputs), progress_bar() as progress:
            for result in progress.track(results, total=source.count, description=escape(source.name)):
                tally.add(result)
                outputs.write(result)
                if outputs.closed:
                    break
            else:
                outputs.finish()
    finally:  # also where a file cannot be finished
        wrote = ", ".join(str(file) for file in outputs.written if file.exists())
        kept = f"wrote {wrote}" if wrote else "kept nothing (--record, --log, --segments, --summary)"
        print(f"{source.name}: {tally}; {kept}")
    return tally, outputs.warning


def console() -> None:
    """Run the installed command."""
    run(main)


if __name__ == "__main__":
    console()
