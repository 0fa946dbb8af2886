"""The realtime program: recognize a source to its end and write its outputs, whatever ends the run."""

import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field

from rich.markup import escape

from common.command_line import progress_bar
from inference.faces import Detector
from inference.sequence_classifier import SequenceClassifier
from realtime.recognition import Classifier, Result, watch
from realtime.sinks.controller import OutputController
from realtime.sinks.options import OutputOptions
from realtime.sources import Source


@dataclass
class RunCounts:
    """Counts of a run.

    Attributes:
        frames: Frames recognized.
        faces: Faces in these frames, without tentative ones.
        warning: What went wrong without ending the run, one line; else empty.
    """

    frames: int = 0
    faces: int = 0
    warning: str = ""
    _start: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        """Count a frame and its faces."""
        self.frames += 1
        self.faces += sum(not each.tentative for each in result.recognitions)

    def __str__(self) -> str:
        rate = self.frames / max(time.monotonic() - self._start, 1e-9)
        return f"frames: {self.frames}, faces: {self.faces}, frames per second: {rate:.1f}"


def run_program(
    source: Source,
    detector: Detector,
    classifier: Classifier,
    options: OutputOptions,
    model: str = "",
    raw: bool = False,
    temporal: SequenceClassifier | None = None,
) -> RunCounts:
    """Recognize a source until it ends or the user quits. All files are closed and one line is printed in any case.

    Args:
        source: An open source.
        detector: Face detector.
        classifier: Emotion classifier.
        options: Outputs of the run.
        model: Name of the network.
        raw: Turn smoothing off; see `watch`.
        temporal: Sequence classifier in place of the smoothing; see `watch`.

    Raises:
        InputError: a file cannot be written.
    """
    controller = OutputController(options, source, (temporal or classifier).labels, model)
    counts = RunCounts()
    # A face that is to be covered must be detected before its frame is shown.
    results = watch(source, classifier, detector, raw=raw, temporal=temporal, synchronous=options.hides_faces)
    try:
        with closing(results), closing(controller), progress_bar() as progress:
            for result in progress.track(results, total=source.count, description=escape(source.name)):
                counts.add(result)
                controller.write(result)
                if controller.closed:
                    break
            else:
                controller.finish()
    finally:  # also where a file cannot be finished
        files = ", ".join(str(file) for file in controller.written if file.exists())
        end = f"wrote {files}" if files else "nothing written (--record, --log, --segments, --summary)"
        print(f"{source.name}: {counts}; {end}")
    counts.warning = controller.warning
    return counts


def exit_on_signals() -> None:
    """Turn SIGTERM and SIGHUP (the terminal was closed) into an exception, so that all files are closed.

    Often both arrive. The second one must not interrupt the closing, or the summary is lost.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has one

    def end(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, end)
