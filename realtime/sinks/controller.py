"""Controller of the outputs: log, draw, record and show each result, and obey the keys of the window."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import InputError
from realtime.anonymity import Anonymizer
from realtime.recognition import Result
from realtime.sinks.drawing import Drawer, View, draw_notes
from realtime.sinks.files import claim
from realtime.sinks.log import FaceLog
from realtime.sinks.options import OutputOptions
from realtime.sinks.recorder import Recorder
from realtime.sinks.segments import SegmentTable
from realtime.sinks.summary import SummaryPage
from realtime.sinks.window import Window
from realtime.sources import Frame, Live, Pictures, Source, Video

_Sink = FaceLog | SegmentTable | SummaryPage
_NOTE_SECONDS = 4.0  # a note in the window stays this long


class OutputController:
    """Take the results of a run one by one and pass them to the outputs.

    A recording that cannot be written, such as on a full disk, ends alone; the other outputs continue.

    Args:
        options: Outputs of the run.
        source: The open source.
        labels: The emotions, in class order.
        model: Name of the network.

    Attributes:
        closed: The user has quit.
        warning: What went wrong without ending the run, one line; else empty.

    Raises:
        InputError: a file cannot be written.
    """

    def __init__(self, options: OutputOptions, source: Source, labels: Sequence[str], model: str = ""):
        self.closed, self.warning = False, ""
        self._options, self._source = options, source
        self._view, self._note, self._note_end = View(followed=options.follow), "", 0.0
        self._video: str | None = None  # name of the current video; empty for images
        self._restart(source.still)
        blank_bgr = np.zeros((source.size[1], source.size[0], 3), np.uint8)  # until the first frame comes
        blank = Result(Frame(blank_bgr, 0, 0.0, source.name), [])
        self._shown = blank, blank_bgr  # content of the window, and how it was drawn
        self._pictures: list[Result] = []  # images shown so far, without pixels
        self._position = 0  # index of the image shown
        self._has_stepped = False  # the user stepped with an arrow key, which does not end the run
        self._sinks: list[_Sink] = []
        self._recorder = Recorder(options.captures, source.fps)
        self._window: Window | None = None
        self._new: list[Path] = []  # files that did not exist before
        self._is_empty = True  # no result has come
        makers: dict[str, Callable[[Path], _Sink]] = {
            "--log": lambda file: FaceLog(file, labels),
            "--segments": SegmentTable,
            "--summary": lambda file: SummaryPage(file, labels, source.name, model),
        }
        with ExitStack() as opened:
            opened.callback(self._remove_unused)  # called last
            for option, file in options.files.items():
                if claim(option, file, options.overwrite):
                    self._new.append(file)
            opened.callback(self._recorder.stop)
            if options.record:
                self._recorder.start(options.record, source.size)
            for option, make in makers.items():
                if file := options.files.get(option):
                    self._sinks.append(opened.enter_context(closing(make(file))))
            if options.window:
                self._window = opened.enter_context(closing(Window(source.size, source.live)))
                if isinstance(source, Live | Video):
                    source.on_wait = self.idle
            opened.callback(self._record_delayed)  # called first
            self._opened = opened.pop_all()

    @property
    def written(self) -> list[Path]:
        """Files written, those of the options first."""
        tables = [file for option, file in self._options.files.items() if option != "--record"]
        return [*tables, *self._recorder.written]

    def write(self, result: Result) -> None:
        """Take the next result.

        Raises:
            InputError: a table cannot be written, or a recording cannot and there is no other output.
        """
        self._is_empty = False
        for sink in self._sinks:
            sink.write(result)
        if not (self._window or self._recorder.is_running):
            return
        video = "" if self._is_still(result.frame) else result.frame.name
        if self._video is not None and video != self._video:
            if not self._show_all(self._delayed()):
                return
            self._restart(not video)
            self._view.followed = 0  # track IDs restart with each file
        self._video = video
        self._show_all(self._anonymizer.add(result, self._visible) if self._anonymizer else [result])

    def finish(self) -> None:
        """Keep the window open after the last image while the user steps through the images."""
        while self._window and self._has_stepped and not self.closed:
            self._notify("no more pictures; q quits")
            self._run_window()

    def close(self) -> None:
        """Finish all files and close the window, even where a file cannot be finished."""
        self._opened.close()

    def idle(self, is_waiting: bool) -> bool:
        """Keep window and keys alive while the source gives no frame.

        Args:
            is_waiting: The source is lost or stalls, which the window says.

        Returns:
            Whether the run continues.
        """
        self._run_window("waiting for the camera" if is_waiting else "")
        return not self.closed

    def _restart(self, is_still: bool) -> None:
        """Forget the previous file."""
        self._drawer = Drawer(is_still)
        self._anonymizer = Anonymizer(is_still) if self._options.hides_faces else None

    def _is_still(self, frame: Frame) -> bool:
        return self._source.still or frame.still

    @property
    def _visible(self) -> int:
        """Track ID of the face that is not covered; 0: none."""
        return 0 if self._options.anonymous else self._view.followed

    def _delayed(self) -> list[Result]:
        """Return the results that the anonymizer still holds."""
        return self._anonymizer.finish(self._visible) if self._anonymizer else []

    def _record_delayed(self) -> None:
        for ready in self._delayed() if self._recorder.is_running else []:
            self._record(ready.frame.elapsed, self._drawer.draw(ready, self._view))

    def _remove_unused(self) -> None:
        """Remove new files without content, so that the next run can use their names."""
        for file in self._new:
            if file.is_file() and (self._is_empty or not file.stat().st_size):
                file.unlink()

    # ------------------------------------------------------------------ window

    def _show_all(self, results: list[Result]) -> bool:
        """Draw, record and show results, and return whether the run continues."""
        for result in results:
            drawn_bgr = self._drawer.draw(result, self._view)
            self._record(result.frame.elapsed, drawn_bgr)
            self._shown = result, drawn_bgr
            if self._window and self._is_still(result.frame):
                no_pixels = np.empty((0, 0, 3), np.uint8)
                self._pictures.append(replace(result, frame=replace(result.frame, image_bgr=no_pixels)))
                self._position = len(self._pictures) - 1
            self._run_window()
            if self.closed:
                return False
        return True

    def _run_window(self, state: str = "") -> None:
        """Show the newest frame, or an earlier image, and obey the keys, until the next frame is due."""
        view = self._view
        while self._window:
            result, drawn_bgr = self._shown
            is_still = self._is_still(result.frame)
            note = self._note if time.monotonic() < self._note_end else self._lost_note(result)
            view.note = "   ".join(filter(None, (_position_text(result.frame), state, note)))
            view.recording = self._recorder.is_running
            self._window.show(draw_notes(drawn_bgr, view))
            action = self._window.wait(result.frame.elapsed, view.paused, is_still)
            if action == "quit":
                self.closed = True
                return
            if is_still and action in ("", "next", "previous"):
                if action != "previous" and self._position == len(self._pictures) - 1:
                    self._has_stepped = action == "next"
                    return
                self._step(-1 if action == "previous" else 1)
            elif not action:
                return
            elif action not in ("next", "previous"):  # videos have no steps
                self._obey(action, result, drawn_bgr)
                self._shown = result, self._drawer.redraw(result, view)

    def _step(self, step: int) -> None:
        """Show an image that was shown before."""
        if self._position + step < 0:
            self._notify("first picture")
            return
        self._position += step
        self._notify("")
        result = self._pictures[self._position]
        assert isinstance(self._source, Pictures)
        try:
            image_bgr = self._source.picture(result.frame.position[0])
        except InputError:
            self._notify("this picture can no longer be read")
            return
        result = replace(result, frame=replace(result.frame, image_bgr=image_bgr))
        if self._anonymizer:
            (result,) = self._anonymizer.add(result, self._visible)
        self._shown = result, self._drawer.draw(result, self._view)

    def _lost_note(self, result: Result) -> str:
        followed = self._view.followed
        is_seen = not followed or any(each.track_id == followed for each in result.recognitions)
        return "" if is_seen else f"face {followed} is not detected"

    def _notify(self, note: str) -> None:
        self._note, self._note_end = note, time.monotonic() + _NOTE_SECONDS

    def _report(self, text: str) -> None:
        print(text, file=sys.stderr)
        self._notify(text)

    # ------------------------------------------------------------------ keys

    def _obey(self, action: str, result: Result, drawn_bgr: np.ndarray) -> None:
        view = self._view
        if action in ("paused", "bars", "help"):
            setattr(view, action, not getattr(view, action))
        elif action == "snapshot":
            self._report(self._recorder.snapshot(drawn_bgr))
        elif action == "record":
            self._report(self._recorder.toggle((drawn_bgr.shape[1], drawn_bgr.shape[0])))
            self._record(result.frame.elapsed, drawn_bgr)
        elif self._is_still(result.frame):
            self._notify("images are not tracked")
        elif action.isdigit():
            track_id = _chosen_track(int(action), result)
            view.followed = 0 if track_id == view.followed else track_id
            self._notify(f"following face {track_id}" if view.followed else "all faces")

    def _record(self, now: float, drawn_bgr: np.ndarray) -> None:
        try:
            self._recorder.write(now, drawn_bgr)
        except InputError as error:
            if not (self._sinks or self._window):
                raise
            self.warning = f"the recording ended early: {error}"
            self._report(f"{self.warning}; the other outputs continue")


def _chosen_track(digit: int, result: Result) -> int:
    """Return the track ID that a digit key selects: the ID itself, or the n-th of the IDs in the frame."""
    track_ids = sorted(each.track_id for each in result.recognitions if each.track_id)
    return track_ids[digit - 1] if digit not in track_ids and 0 < digit <= len(track_ids) else digit


def _position_text(frame: Frame) -> str:
    """Return which of several files the frame comes from."""
    number, count = frame.position
    return f"{number}/{count} {frame.name}" if count > 1 else ""
