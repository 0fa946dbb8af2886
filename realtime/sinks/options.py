"""What a run of the realtime program writes and shows, and which of it a source allows."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from configuration import PATHS
from realtime.sinks.files import check_target
from realtime.sources import Pictures, Source

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi")
ANIMATION_SUFFIXES = (".webp", ".gif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class OutputOptions:
    """Outputs of a run.

    Attributes:
        record: Annotated video, animation or picture to write.
        log: Table to write, one row per face and frame.
        segments: Table to write, one row per track and stretch of time with one label.
        summary: HTML page to write.
        window: Show the frames in a window.
        anonymous: Cover all faces in the window and in recordings.
        blur_unknown: Cover all faces but the followed one.
        follow: Track ID of the face to highlight; 0: none.
        captures: Folder for snapshots and recordings that the keys start.
        overwrite: Replace existing files of `record`, `log`, `segments` and `summary`.
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
        """Files to write, by option."""
        options = {"--record": self.record, "--log": self.log, "--segments": self.segments, "--summary": self.summary}
        return {option: file for option, file in options.items() if file}

    @property
    def hides_faces(self) -> bool:
        """Whether any faces are covered."""
        return self.anonymous or self.blur_unknown

    def check_files(self, source: str) -> None:
        """Refuse files that cannot be written or would be lost. Call it before the source is opened.

        Raises:
            InputError: names the option, the reason and the remedy.
        """
        options: dict[Path, str] = {}
        for option, file in self.files.items():
            first = options.setdefault(file.resolve(), option)
            if first != option:
                raise InputError(f"{first} and {option} both name {file}; give each a file of its own")
            check_target(option, file, source, self.overwrite)

    def check_source(self, source: Source) -> None:
        """Refuse options that the source does not allow.

        Raises:
            InputError: names the option, what it accepts and the remedy.
        """
        reason = ""
        if source.still:
            reason = "images are not tracked"
        elif isinstance(source, Pictures):
            reason = "in a folder, times and track IDs restart with each video"
        timed = {"--segments": self.segments, "--summary": self.summary}
        timed |= {"--follow": self.follow, "--blur-unknown": self.blur_unknown}
        for option, value in timed.items():
            if reason and value:
                given = option if value is True else f"{option} {value}"
                alternative = "; --anonymous covers all faces" if value is True else ""
                raise InputError(f"{given} needs one video or a camera: {reason}{alternative}")
        is_picture = source.still and source.count == 1
        suffixes = {
            "--record": VIDEO_SUFFIXES + (PICTURE_SUFFIXES if is_picture else ANIMATION_SUFFIXES),
            "--log": (".csv", ".jsonl"),
            "--segments": (".csv",),
            "--summary": (".html",),
        }
        for option, file in self.files.items():
            if file.suffix.lower() not in suffixes[option]:
                raise InputError(f"{option} {file} must end in {' or '.join(suffixes[option])} for this source")
