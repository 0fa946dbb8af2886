"""Run the realtime program for an hour's worth of frames; check that memory stays flat and all counts agree.

    python -m benchmarks.soak_test --video talk_640x480.mkv

The video is repeated as one long source. Everything but the window runs: recognition, drawing, recording, log, segments
and summary, written to a temporary folder (about a gigabyte for an hour of 640x480). The reference is the memory after
the first tenth of the run. Ends with status 1 where the counts differ.
"""

import csv
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common import resident_bytes
from common.command_line import run
from configuration import FACES, PATHS
from inference.emotion_classifier import EmotionClassifier
from inference.face_detector import FaceDetector
from inference.faces import Detector
from realtime.program import run_program
from realtime.recognition import Classifier
from realtime.sinks.options import OutputOptions
from realtime.sources import Frame, open_source

HOUR = 108_000  # frames: an hour at 30 frames per second
REPORTS = 20  # how often the memory is measured


@dataclass(frozen=True)
class SoakResult:
    """Result of a long run.

    Attributes:
        frames: Counts of frames that must be equal: read, recognized, recorded.
        faces: Counts of faces that must be equal: found, logged (without tentative ones).
        megabytes: Resident memory, by the number of frames read.
        seconds: Duration of the run.
    """

    frames: tuple[int, int, int]
    faces: tuple[int, int]
    megabytes: dict[int, float]
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether all counts agree."""
        return len(set(self.frames)) == len(set(self.faces)) == 1


class Loop:
    """A video that restarts until a number of frames was read. Attributes as of `sources.Video`.

    Args:
        file: The video.
        frames: Number of frames.
        on_frame: Called with the number of frames read so far, before each one.
    """

    still = live = False

    def __init__(self, file: Path, frames: int, on_frame: Callable[[int], None]):
        with closing(open_source(str(file))) as source:
            self.name, self.fps, self.size, self.warning = source.name, source.fps, source.size, ""
        self.count, self.read, self._file, self._on_frame = frames, 0, file, on_frame

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with closing(open_source(str(self._file))) as source:
                for frame in source:
                    self._on_frame(self.read)
                    if self.read == self.count:
                        return
                    yield replace(frame, index=self.read, time=self.read / self.fps)
                    self.read += 1

    def close(self) -> None:
        """Do nothing: each pass closes its source."""


def soak(file: Path, frames: int, folder: Path, detector: Detector, classifier: Classifier) -> SoakResult:
    """Run the whole program, without a window, on a repeated video.

    Args:
        file: The video.
        frames: Number of frames in all.
        folder: Folder for recording, log, segments and summary.
        detector: Face detector.
        classifier: Emotion classifier.

    Raises:
        InputError: the video cannot be read, or a file cannot be written.
    """
    megabytes: dict[int, float] = {}
    start = time.monotonic()

    def report(read: int) -> None:
        if read % max(frames // REPORTS, 1) == 0:
            megabytes[read] = resident_megabytes()
            print(f"{read:7d} frames  {megabytes[read]:7.1f} MB  {time.monotonic() - start:6.0f} s")

    source: Any = Loop(file, frames, report)
    record, log, segments, page = (folder / name for name in ("out.mkv", "out.csv", "segments.csv", "summary.html"))
    counts = run_program(source, detector, classifier, OutputOptions(record, log, segments, page, overwrite=True))
    seconds = time.monotonic() - start
    if counts.warning:
        print(counts.warning)
    with log.open(newline="", encoding="utf-8") as stream:
        logged = sum(row["tentative"] == "0" for row in csv.DictReader(stream))
    with closing(open_source(str(record))) as recording:
        recorded = sum(1 for _ in recording)
    return SoakResult((source.read, counts.frames, recorded), (counts.faces, logged), megabytes, seconds)


def resident_megabytes() -> float:
    """Return the memory that this process holds; where the system does not report it, its peak."""
    if Path("/proc/self/statm").exists():
        return resident_bytes() / 2**20
    from resource import RUSAGE_SELF, getrusage  # not on Windows

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20


def main(
    video: Annotated[Path, typer.Option(help="Video to repeat.")],
    frames: Annotated[int, typer.Option(min=100, help="Number of frames; 108000 are an hour.")] = HOUR,
) -> None:
    """Run the realtime program for long; check memory and counts."""
    classifier = EmotionClassifier.load_litert(PATHS.pretrained)
    with tempfile.TemporaryDirectory() as folder:
        result = soak(video, frames, Path(folder), FaceDetector(FACES), classifier)
    print("frames: {} read, {} recognized, {} recorded".format(*result.frames))
    print("faces: {} found, {} logged".format(*result.faces))
    later = [megabytes for read, megabytes in result.megabytes.items() if read >= frames / 10]
    print(
        f"memory after the first tenth {later[0]:.1f} MB, then at most {max(later):.1f} MB "
        f"(ratio {max(later) / later[0]:.3f}); {1000 * result.seconds / frames:.1f} ms per frame"
    )
    if not result.agrees:
        print("the counts differ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(main)
