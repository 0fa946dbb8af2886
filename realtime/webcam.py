"""Names the expression on every face that a camera, a video, an image or a stream shows.

Reads:  --source (camera 0), models/pretrained.keras and its card
Writes: --record, an annotated video (or, of an image, an image); --log, a CSV with one row per face

    python -m realtime.webcam
    python -m realtime.webcam --source talk.mp4 --no-window --record annotated.mp4 --log faces.csv
"""

import os
import signal
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

if not __package__:  # run as a plain file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import typer

from configuration import FACES, PATHS, WEBCAM
from preprocessing.command_line import progress_bar, run
from preprocessing.faces import Detector, build_detector
from realtime.drawing import draw
from realtime.recognition import Classifier, Result, recognize
from realtime.recording import Log, Output, check_target, open_recording, suffixes_for
from realtime.sources import Source, open_source
from realtime.window import Window, has_display


def main(
    source: Annotated[
        str, typer.Option(help="Camera number, video, image, folder of images, or rtsp:// or http:// address.")
    ] = WEBCAM.source,
    model: Annotated[Path, typer.Option(help="Trained network; its card lies beside it.")] = PATHS.pretrained,
    detector: Annotated[str, typer.Option(help="mtcnn, or haar: OpenCV's frontal cascade.")] = WEBCAM.detector,
    record: Annotated[
        Path | None, typer.Option(help="Annotated video to write (.mp4); of an image also .png or .jpg.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="CSV to write, one row per face.")] = None,
    window: Annotated[bool, typer.Option("--window/--no-window", help="Show the frames in a window.")] = True,
    smallest_face: Annotated[int, typer.Option(help="Smaller faces are not looked for; pixels.")] = FACES.smallest_face,
) -> None:
    """Name the expression on every face of a source. In the window, q or Esc quits."""
    silence_opencv()
    end_on_signals()
    with closing(open_source(source)) as frames:
        if record:
            check_target("--record", record, suffixes_for(frames), source)
        if log:
            check_target("--log", log, (".csv",), source)
        if window and not has_display():
            print("no display here: going on without a window", file=sys.stderr)

        from training.emotion_classifier import EmotionClassifier  # pandas comes with it; a mistake above is told first

        classifier = EmotionClassifier.load(model)
        face_detector = build_detector(detector, replace(classifier.faces, smallest_face=smallest_face))
        watch(frames, face_detector, classifier, record, log, window and has_display())
    if frames.trouble:
        print(frames.trouble, file=sys.stderr)
        sys.exit(1 if frames.live else 0)


def silence_opencv() -> None:
    """Keep OpenCV and FFmpeg from adding their own lines to ours. Has effect before the first video is opened."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def end_on_signals() -> None:
    """Let SIGTERM, and SIGHUP (its terminal was closed), end the program by an exception: what is open is closed."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to go on
            signal.signal(number, lambda number, _: sys.exit(128 + number))


@dataclass
class Tally:
    """What was done so far, in numbers."""

    frames: int = 0
    faces: int = 0
    start: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        """Count a frame."""
        self.frames += 1
        self.faces += len(result.recognitions)

    def __str__(self) -> str:
        rate = self.frames / max(time.monotonic() - self.start, 1e-9)
        return f"frames: {self.frames}, faces: {self.faces}, frames per second: {rate:.1f}"


def watch(
    source: Source,
    detector: Detector,
    classifier: Classifier,
    record: Path | None = None,
    log: Path | None = None,
    show: bool = False,
) -> Tally:
    """Recognize a source to its end, or until a person ends it, and keep what was asked for.

    However it ends, what was written is closed, and one line is printed that says what was done.

    Args:
        source: An open source.
        detector: What finds the faces.
        classifier: What names the expressions.
        record: Annotated video to write; where the source is one picture, also a picture.
        log: CSV to write.
        show: Open a window.

    Raises:
        InputError: a file cannot be written.
    """
    with ExitStack() as opened:
        window = opened.enter_context(closing(Window(source.size, source.still))) if show else None
        outputs: list[Output] = []
        if record:
            outputs.append(opened.enter_context(closing(open_recording(record, source))))
        if log:
            outputs.append(opened.enter_context(closing(Log(log, classifier.labels))))
        if window:  # after the others: when it waits for a key, the frame is kept already
            outputs.append(window)
        progress = opened.enter_context(progress_bar())
        tally = Tally()
        try:
            frames = progress.track(source, total=source.count, description=source.name)
            for result in recognize(frames, detector, classifier):
                tally.add(result)
                drawn_bgr = draw(result)
                for output in outputs:
                    output.write(result, drawn_bgr)
                if window and window.closed:
                    break
        finally:
            try:
                opened.close()
            finally:  # also where a file cannot be finished
                wrote = ", ".join(str(file) for file in (record, log) if file and file.exists())
                print(f"{source.name}: {tally}; " + (f"wrote {wrote}" if wrote else "kept nothing (--record, --log)"))
    return tally


if __name__ == "__main__":
    run(main)
