"""Image files and videos, one after the other."""

import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from common.errors import InputError
from common.files import printable
from inference.crops import read_image_rgb
from realtime.sources.folders import is_picture
from realtime.sources.frames import FALLBACK_FPS, Frame, oriented
from realtime.sources.video import Video, open_video


class Pictures:
    """Files, one after the other: an image is one frame, a video gives all its frames.

    Unreadable files are skipped and named on standard error.

    Args:
        files: The files, in order.
        name: Name of the source, for messages.
        mirror: Flip frames horizontally.
        root: Folder that frame names are relative to; None: frame names are file names.

    Attributes:
        name: Name of the source, for messages.
        fps: Frames per second of a recording: that of the first video, where there is one.
        count: Maximum number of frames; None where there are videos.
        size: Width and height of the first frame, pixels.
        live: False: frames wait for the reader.
        still: There are only images.
        has_pictures: There is at least one image.
        warning: One line about unreadable files, set after the last frame; else empty.

    Raises:
        InputError: no file can be read.
    """

    live = False

    def __init__(self, files: list[Path], name: str, mirror: bool = False, root: Path | None = None):
        self._files, self._mirror, self._root = files, mirror, root
        self._video: Video | None = None
        self.name, self.fps, self.warning = printable(name), FALLBACK_FPS, ""
        self.still = all(map(is_picture, files))
        self.has_pictures = any(map(is_picture, files))
        self.count = len(files) if self.still else None
        self.size = (0, 0)
        self._probe()
        if not any(self.size):
            tried = f" ({len(files)} files were tried)" if len(files) > 1 else ""
            raise InputError(f"--source {name} holds no readable picture or video{tried}")

    def _probe(self) -> None:
        """Read the size of the first readable file and the frame rate of the first readable video."""
        is_rate_known = self.still
        for file in self._files:
            with suppress(InputError):
                if not is_picture(file) and not is_rate_known:
                    with closing(open_video(file, False)) as video:
                        self.fps, is_rate_known = video.fps, True
                        self.size = self.size if any(self.size) else video.size
                elif not any(self.size):
                    height, width = read_image_rgb(file).shape[:2]
                    self.size = (width, height)
            if any(self.size) and is_rate_known:
                return

    def __iter__(self) -> Iterator[Frame]:
        elapsed, end, skipped = 0.0, 0.0, list[str]()
        for index, file in enumerate(self._files):
            name = printable(file.relative_to(self._root).as_posix() if self._root else file.name)
            position = (index + 1, len(self._files))
            try:
                for frame in self._read(file, index, name):
                    offset = max(0.0, elapsed - frame.time) if frame.still else elapsed
                    frame = replace(frame, position=position, offset=offset)
                    yield frame
                    end = frame.elapsed + 1 / (self._video.fps if self._video else self.fps)
                elapsed = end
            except InputError as error:
                print("skipped:", *str(error).split(), file=sys.stderr)
                skipped.append(name)
        if skipped:
            kind = "pictures" if self.still else "files"
            shown = ", ".join(skipped[:5])
            self.warning = f"{len(skipped)} of {len(self._files)} {kind} could not be read: {shown}"

    def _read(self, file: Path, index: int, name: str) -> Iterator[Frame]:
        self._video = None
        if is_picture(file):
            yield Frame(self._read_picture(file), index, index / self.fps, name, still=True)
            return
        with closing(open_video(file, self._mirror, name)) as self._video:
            yield from self._video
        if self._video.warning:
            print(self._video.warning, file=sys.stderr)

    def picture(self, place: int) -> np.ndarray:
        """Read an image again.

        Args:
            place: Place of the file, from 1, as in `Frame.position`.

        Returns:
            uint8 BGR, (height, width, 3), upright.

        Raises:
            InputError: it can no longer be read.
        """
        return self._read_picture(self._files[place - 1])

    def _read_picture(self, file: Path) -> np.ndarray:
        return oriented(cv2.cvtColor(read_image_rgb(file), cv2.COLOR_RGB2BGR), self._mirror)

    def close(self) -> None:
        """Close the open video."""
        if self._video:
            self._video.close()
