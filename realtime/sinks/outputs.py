"""Everything that becomes of a result: it is logged, drawn, recorded and shown, and a person's keys are obeyed."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import InputError
from configuration import PATHS, WEBCAM
from realtime.anonymity import Anonymizer
from realtime.recognition import Result
from realtime.sinks.drawing import Drawer, View, draw_for_person
from realtime.sinks.recording import (
    LOG_SUFFIXES,
    Log,
    Recording,
    check_suffix,
    check_target,
    claim,
    create,
    open_recording,
    suffixes_for,
    write_picture,
)
from realtime.sinks.summary import SpanTable, Summary
from realtime.sinks.window import Window
from realtime.sources import Frame, Live, Pictures, Source, Video


@dataclass(frozen=True)
class OutputOptions:
    """What a person wants of a run.

    Attributes:
        record: Annotated video, animation or picture to write.
        log: Table to write, one row per face and frame.
        spans: Table to write, one row per stretch of time with one expression.
        summary: Page to write.
        window: Show the frames in a window.
        anonymous: Hide all faces in whatever is shown or recorded.
        blur_unknown: Hide all faces but the followed one.
        follow: Number of the face that is followed from the start; 0: none.
        captures: Folder for what the window's keys write.
        overwrite: Existing files of `record`, `log`, `spans` and `summary` may be replaced.
    """

    record: Path | None = None
    log: Path | None = None
    segments: Path | None = None
    summary: Path | None = None
    window: bool = False
    anonymous: bool = False
    blur_unknown: bool = False
    follow: int = 0
    captures: Path = PATHS.captures
    overwrite: bool = False

    @property
    def files(self) -> dict[str, Path]:
        """The files to write, by option."""
        options = {"--record": self.record, "--log": self.log, "--segments": self.segments, "--summary": self.summary}
        return {option: file for option, file in options.items() if file}

    def check_files(self, source: str) -> None:
        """Refuse files that cannot be written or would be lost; called before the source is opened.

        Raises:
            InputError: naming the option, the reason and the remedy.
        """
        for option, file in self.files.items():
            same = [other for other, path in self.files.items() if other < option and path.resolve() == file.resolve()]
            if same:
                raise InputError(f"{same[0]} and {option} are both to write {file}; give each a file of its own")
            check_target(option, file, source, self.overwrite)

    def check(self, frames: Source) -> None:
        """Refuse what makes no sense for a source.

        Raises:
            InputError: naming the option, what it accepts, and the remedy.
        """
        suffixes = {
            "--record": suffixes_for(frames),
            "--log": LOG_SUFFIXES,
            "--segments": (".csv",),
            "--summary": (".html",),
        }
        is_folder = isinstance(frames, Pictures) and not frames.still
        for option, file in self.files.items():
            if frames.still and option in ("--segments", "--summary"):
                raise InputError(f"{option} {file} needs a video or a camera: pictures have no time; --log takes both")
            if is_folder and option in ("--segments", "--summary"):
                raise InputError(
                    f"{option} {file} needs one video or a camera: in a folder, times and face numbers begin anew with "
                    "each video; give one video, or use --log, which names the file"
                )
            check_suffix(option, file, suffixes[option])
        if frames.still and self.follow:
            raise InputError(f"--follow {self.follow} needs a video or a camera: in pictures no face is followed")
        if is_folder and self.follow:
            raise InputError(
                f"--follow {self.follow} needs one video or a camera: in a folder, face numbers begin anew with each "
                "video; give one video"
            )
        if is_folder and self.blur_unknown:
            raise InputError("--blur-unknown needs one video or a camera; give one video, or use --anonymous")
        if frames.still and frames.count != 1 and self.blur_unknown:
            raise InputError(
                "--blur-unknown needs a video or a camera: in pictures no face is followed; use --anonymous"
            )


class _Sink(Protocol):
    def write(self, result: Result) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Note:
    text: str = ""
    until: float = 0.0  # seconds of `time.monotonic`

    def say(self, text: str) -> None:
        self.text, self.until = text, time.monotonic() + WEBCAM.note_seconds

    def __str__(self) -> str:
        return self.text if time.monotonic() < self.until else ""


@dataclass
class _Running:
    """A recording that is being written."""

    file: Path
    recording: Recording


class Outputs:
    """Takes the results of a run, one after the other, and does with them what is wanted.

    What a recording cannot take (a full disk) ends that recording; everything else goes on.

    Args:
        options: What to do.
        source: The open source.
        labels: The network's classes, in class order.
        model: What a person calls the network.

    Attributes:
        closed: The person at the window has had enough.
        warning: What went wrong without ending the run, one line; else empty.
        written: The files written.

    Raises:
        InputError: a file cannot be written.
    """

    def __init__(self, options: OutputOptions, source: Source, labels: Sequence[str], model: str = ""):
        self.closed, self.warning = False, ""
        self.written: list[Path] = []
        self._options, self._source = options, source
        self._view = View(followed=options.follow)
        self._note = _Note()
        self._hides = options.anonymous or options.blur_unknown
        self._video: str | None = None  # the name of the video that is shown; empty for pictures
        self._begin(source.still)
        self._shown: tuple[Result, np.ndarray] | None = None  # what is in the window, and how it was drawn
        self._pictures: list[Result] = []  # those shown already, without their pixels
        self._at = 0  # the place of the shown one among them
        self._has_stepped = False  # the next picture was asked for by an arrow, which does not end the run
        self._sinks: list[_Sink] = []
        self._running: _Running | None = None
        self._window: Window | None = None
        self._new: list[Path] = []  # files that did not exist before
        self._is_empty = True  # no result has come
        with ExitStack() as opened:
            opened.callback(self._remove_unused)  # called last
            for option, file in options.files.items():
                if claim(option, file, options.overwrite):
                    self._new.append(file)
            opened.callback(self._stop_recording)
            if options.record:
                self._start_recording(options.record, source.size)
            for sink_of, file in self._sinks_of(labels, model):
                self._sinks.append(opened.enter_context(closing(sink_of(file))))
                self.written.append(file)
            if options.window:
                self._window = opened.enter_context(closing(Window(source.size, source.live)))
                if isinstance(source, Live | Video):
                    source.on_wait = self.idle
            opened.callback(self._flush)  # called first
            self._opened = opened.pop_all()

    def _sinks_of(self, labels: Sequence[str], model: str) -> list[tuple[Callable[[Path], _Sink], Path]]:
        options, name = self._options, self._source.name
        sinks: list[tuple[Callable[[Path], _Sink], Path | None]] = [
            (lambda file: Log(file, labels), options.log),
            (SpanTable, options.segments),
            (lambda file: Summary(file, labels, name, model), options.summary),
        ]
        return [(sink_of, file) for sink_of, file in sinks if file]

    def _begin(self, is_still: bool) -> None:
        """Forget the file before: what it showed says nothing about the next one."""
        self._drawer = Drawer(is_still)
        self._anonymizer = Anonymizer(is_still) if self._hides else None

    def _is_still(self, frame: Frame) -> bool:
        return self._source.still or frame.still

    @property
    def _known(self) -> int:
        return 0 if self._options.anonymous else self._view.followed

    @property
    def _is_drawn(self) -> bool:
        return self._window is not None or self._running is not None

    def write(self, result: Result) -> None:
        """Take up the next result.

        Raises:
            InputError: a table cannot be written, or a recording cannot and nothing else was wanted.
        """
        self._is_empty = False
        for sink in self._sinks:
            sink.write(result)
        if not self._is_drawn:
            return
        video = "" if self._is_still(result.frame) else result.frame.name
        if self._video is not None and video != self._video:
            for ready in self._anonymizer.finish(self._known) if self._anonymizer else []:
                self._show(ready)
                if self.closed:
                    return
            self._begin(not video)
            self._view.followed = 0  # a number means another face there
        self._video = video
        for ready in self._anonymizer.add(result, self._known) if self._anonymizer else [result]:
            self._show(ready)
            if self.closed:
                return

    def close(self) -> None:
        """Finish all files and take the window away; all of them, also where one cannot be finished."""
        self._opened.close()

    def _remove_unused(self) -> None:
        """Remove new files that hold nothing, so that the next run may use their names."""
        for file in self._new:
            if file.is_file() and (self._is_empty or not file.stat().st_size):
                file.unlink()

    def _flush(self) -> None:
        """Record what is still held back."""
        if self._anonymizer and self._running:
            for ready in self._anonymizer.finish(self._known):
                self._record(ready.frame.elapsed, self._drawer.draw(ready, self._view))

    def idle(self, is_waiting: bool) -> bool:
        """Keep window and keys alive while the source gives no frame.

        Args:
            is_waiting: The source is lost or stalls, which the window says.

        Returns:
            Whether the run goes on.
        """
        self._attend("waiting for the camera" if is_waiting else "")
        return not self.closed

    def finish(self) -> None:
        """After the last picture, stay in the window while a person only steps through the pictures."""
        while self._window and self._has_stepped and not self.closed:
            self._note.say("no further picture; q quits")
            self._attend()

    def _show(self, result: Result) -> None:
        drawn_bgr = self._drawer.draw(result, self._view)
        self._record(result.frame.elapsed, drawn_bgr)
        self._shown = result, drawn_bgr
        if self._window and self._is_still(result.frame):
            no_pixels = np.empty((0, 0, 3), np.uint8)
            self._pictures.append(replace(result, frame=replace(result.frame, image_bgr=no_pixels)))
            self._at = len(self._pictures) - 1
        self._attend()

    def _attend(self, state: str = "") -> None:
        """Show the newest frame, or a picture before it, and obey the keys, until the next frame is wanted."""
        view = self._view
        while self._window:
            if not self._shown:  # every frame is still held back, to hide faces in it
                view.note = state
                width, height = self._source.size
                self._window.show(draw_for_person(np.zeros((height, width, 3), np.uint8), view))
                self.closed = self._window.wait(0.0) == "quit"
                return
            result, drawn_bgr = self._shown
            is_still = self._is_still(result.frame)
            note = str(self._note) or self._missing(result)
            view.note = "   ".join(filter(None, (_place(result.frame), state, note)))
            view.recording = self._running is not None
            self._window.show(draw_for_person(drawn_bgr, view))
            action = self._window.wait(result.frame.elapsed, view.paused, is_still)
            if action == "quit":
                self.closed = True
                return
            if is_still and action in ("", "next", "previous"):
                if action != "previous" and self._at == len(self._pictures) - 1:
                    self._has_stepped = action == "next"
                    return
                self._step(-1 if action == "previous" else 1)
            elif not action:
                return
            elif action not in ("next", "previous"):  # which mean nothing in a video
                self._obey(action, result, drawn_bgr)
                self._shown = result, self._drawer.redraw(result, view)

    def _step(self, step: int) -> None:
        """Go to a picture that was shown before."""
        if self._at + step < 0:
            self._note.say("first picture")
            return
        self._at += step
        self._note.say("")
        result = self._pictures[self._at]
        assert isinstance(self._source, Pictures)
        try:
            image_bgr = self._source.picture(result.frame.position[0])
        except InputError:
            self._note.say("this picture can no longer be read")
            width, height = self._source.size
            result, image_bgr = replace(result, recognitions=[]), np.zeros((height, width, 3), np.uint8)
        result = replace(result, frame=replace(result.frame, image_bgr=image_bgr))
        if self._anonymizer:
            (result,) = self._anonymizer.add(result, self._known)
        self._shown = result, self._drawer.draw(result, self._view)

    def _missing(self, result: Result) -> str:
        followed = self._view.followed
        is_there = not followed or any(each.track_id == followed for each in result.recognitions)
        return "" if is_there else f"face {followed} is not in sight"

    def _obey(self, action: str, result: Result, drawn_bgr: np.ndarray) -> None:
        view = self._view
        if action == "pause":
            view.paused = not view.paused
        elif action == "bars":
            view.bars = not view.bars
        elif action == "help":
            view.help = not view.help
        elif action == "snapshot":
            self._snapshot(drawn_bgr)
        elif action == "record":
            self._toggle_recording(result.frame.elapsed, drawn_bgr)
        elif self._is_still(result.frame):
            self._note.say("in pictures no face is followed")  # none has a number
        elif action.isdigit():
            number = _chosen(int(action), result)
            view.followed = 0 if number == view.followed else number
            self._note.say(f"following face {number}" if view.followed else "all faces")

    def _snapshot(self, drawn_bgr: np.ndarray) -> None:
        try:
            with self._capture_file(".png") as file:
                write_picture(file, drawn_bgr)
        except (InputError, OSError) as error:
            self._tell(f"no snapshot: {error}")
            return
        self.written.append(file)
        self._tell(f"wrote {_short(file)}")

    def _toggle_recording(self, now: float, drawn_bgr: np.ndarray) -> None:
        if self._running:
            file = self._running.file
            try:
                self._stop_recording()
            except InputError as error:
                self._tell(f"the recording could not be finished: {error}")
            else:
                self._tell(f"wrote {_short(file)}")
            return
        try:
            with self._capture_file(".mp4") as file:
                self._start_recording(file, (drawn_bgr.shape[1], drawn_bgr.shape[0]))
        except (InputError, OSError) as error:
            self._tell(f"no recording: {error}")
            return
        self._record(now, drawn_bgr)
        if self._running:
            self._tell(f"recording {_short(self._running.file)}")

    @contextmanager
    def _capture_file(self, suffix: str) -> Iterator[Path]:
        """Create a file named after the time, with a number where that name is taken; an error removes it."""
        self._options.captures.mkdir(parents=True, exist_ok=True)
        stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        names = (self._options.captures / f"{stem}{f'_{n}' if n > 1 else ''}{suffix}" for n in count(1))
        file = next(filter(create, names))
        try:
            yield file
        except BaseException:
            file.unlink(missing_ok=True)
            raise

    def _tell(self, text: str) -> None:
        print(text, file=sys.stderr)
        self._note.say(text)

    def _start_recording(self, file: Path, size: tuple[int, int]) -> None:
        self._running = _Running(file, open_recording(file, size, self._source.fps))

    def _stop_recording(self) -> None:
        if running := self._running:
            self._running = None
            self.written.append(running.file)
            running.recording.close()

    def _record(self, now: float, drawn_bgr: np.ndarray) -> None:
        if not self._running:
            return
        try:
            self._running.recording.write(now, drawn_bgr)
        except InputError as error:
            warning = error
            try:
                self._stop_recording()
            except InputError as later:
                warning = later
            if not (self._sinks or self._window):
                raise warning from error
            self.warning = f"the recording ended early: {warning}"
            self._tell(f"{self.warning}; everything else goes on")


def _chosen(digit: int, result: Result) -> int:
    """Return the number of the face that a key means: its own number, else its place among the numbers in sight."""
    numbers = sorted(each.track_id for each in result.recognitions if each.track_id)
    return numbers[digit - 1] if digit not in numbers and 0 < digit <= len(numbers) else digit


def _place(frame: Frame) -> str:
    """Return which file of how many is shown; empty where there is one."""
    number, count = frame.position
    return f"{number}/{count} {frame.name}" if count > 1 else ""


def _short(file: Path) -> Path:
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file
