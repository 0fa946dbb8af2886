"""Let the realtime program run for an hour's worth of frames: does memory stay flat, and is every count right?

    python -m benchmarks.soak_test --video talk_640x480.mkv --frames 108000

The video is played in a loop, as one source whose time goes on; all of the program runs but the window: faces,
expressions, drawing, recording, log, spans and summary, written to a folder that goes at the end (`--keep` keeps it;
an hour of 640x480 takes about a gigabyte). Prints the memory that the process holds as it goes, then what was read,
recognized, recorded and logged, each counted by its own means. Ends with status 1 where the counts differ.
"""

import csv
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from common.command_line import run
from configuration import FACES, PATHS
from inference.emotion_classifier import EmotionClassifier
from inference.face_detector import FaceDetector
from inference.faces import Detector
from realtime.recognition import Classifier
from realtime.sinks.outputs import OutputOptions
from realtime.sources import Frame, open_source
from realtime.webcam import show

HOUR = 108_000  # frames: an hour of 30 a second


@dataclass(frozen=True)
class Endurance:
    """What became of a long run.

    Attributes:
        read: Frames that the source gave.
        counted: Frames that the program says it recognized.
        recorded: Frames that the recording gives back.
        faces: Faces that the program says it found.
        logged: Rows of the log, without those of tentative faces.
        frames_logged: Different frames that these rows tell of, at most `read`.
        megabytes: By the number of frames read: memory that the process held.
        seconds: What the run took.
    """

    read: int
    counted: int
    recorded: int
    faces: int
    logged: int
    frames_logged: int
    megabytes: dict[int, float]
    seconds: float

    @property
    def agrees(self) -> bool:
        """Every count is right."""
        same = self.read == self.counted == self.recorded and self.faces == self.logged
        return same and self.frames_logged <= self.read


class Loop:
    """A video that begins anew when it ends, until so many frames were given. Attributes as of `sources.Video`.

    Args:
        file: The video.
        frames: How many frames to give.
        at: Called with the number of frames given so far, before each one.
    """

    still = live = False

    def __init__(self, file: Path, frames: int, at: Callable[[int], None]):
        with closing(open_source(str(file))) as source:
            self.name, self.fps, self.size, self.warning = source.name, source.fps, source.size, ""
        self.count, self.given, self._file, self._at = frames, 0, file, at

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with closing(open_source(str(self._file))) as turn:
                for frame in turn:
                    self._at(self.given)
                    if self.given == self.count:
                        return
                    yield replace(frame, index=self.given, time=self.given / self.fps)
                    self.given += 1

    def close(self) -> None:
        """Do nothing: each turn is closed when it ends."""


def endure(
    file: Path,
    frames: int,
    folder: Path,
    detector: Detector,
    classifier: Classifier,
    say: Callable[[str], object] = print,
    reports: int = 20,
) -> Endurance:
    """Run the whole program, without a window, on a video in a loop.

    Args:
        file: The video.
        frames: How many frames of it are given in all.
        folder: Where the recording, the log, the spans and the summary are written.
        detector: What finds the faces.
        classifier: What names the expressions.
        say: Takes a line for a person to read, now and then.
        reports: How often the memory is looked at.

    Raises:
        InputError: the video cannot be read, or a file not be written.
    """
    megabytes: dict[int, float] = {}
    start = time.monotonic()

    def look(given: int) -> None:
        if given % max(frames // reports, 1) == 0:
            megabytes[given] = resident_megabytes()
            say(f"{given:7d} frames  {megabytes[given]:7.1f} MB  {time.monotonic() - start:6.0f} s")

    source: Any = Loop(file, frames, look)
    record, log, segments, page = (folder / name for name in ("out.mkv", "out.csv", "spans.csv", "summary.html"))
    wanted = OutputOptions(record, log, segments, page, overwrite=True)
    tally, warning = show(source, detector, classifier, wanted)
    seconds = time.monotonic() - start
    if warning:
        say(warning)
    with (folder / "out.csv").open(newline="", encoding="utf-8") as stream:
        logged = Counter(int(row["frame"]) for row in csv.DictReader(stream) if row["tentative"] == "0")
    with closing(open_source(str(folder / "out.mkv"))) as recording:
        recorded = sum(1 for _ in recording)
    return Endurance(source.given, tally.frames, recorded, tally.faces, logged.total(), len(logged), megabytes, seconds)


def resident_megabytes() -> float:
    """Return the memory that this process holds now; where the system does not tell, the most that it ever held."""
    if (told := Path("/proc/self/statm")).exists():
        return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    from resource import RUSAGE_SELF, getrusage  # not on Windows

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20


def main(
    video: Annotated[Path, typer.Option(help="Video to play in a loop.")],
    frames: Annotated[int, typer.Option(min=100, help="Frames in all; 108000 are an hour.")] = HOUR,
    keep: Annotated[Path | None, typer.Option(help="Folder that keeps what is written; left out, none does.")] = None,
) -> None:
    """Let the realtime program run for long, and tell whether memory stays flat and every count is right."""
    classifier = EmotionClassifier.load_litert(PATHS.pretrained)
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        ended = endure(video, frames, folder, FaceDetector(FACES), classifier)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    print(f"frames: {ended.read} read, {ended.counted} recognized, {ended.recorded} recorded")
    print(f"faces: {ended.faces} found, {ended.logged} rows logged, of {ended.frames_logged} frames")
    after = [megabytes for given, megabytes in ended.megabytes.items() if given >= frames / 10]
    print(
        f"memory after the first tenth: {min(after):.1f} to {max(after):.1f} MB, at the end {after[-1]:.1f} MB; "
        f"{1000 * ended.seconds / ended.read:.1f} ms per frame; {size:.0f} MB written"
    )
    if not ended.agrees:
        print("the counts differ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(main)
