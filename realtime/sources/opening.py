"""Open what `--source` names."""

import re
from pathlib import Path

from common.errors import InputError
from common.logging import silence_opencv
from common.urls import redacted
from realtime.sources.cameras import open_camera
from realtime.sources.folders import is_picture, media_files
from realtime.sources.live import Live
from realtime.sources.pictures import Pictures
from realtime.sources.streams import open_stream
from realtime.sources.video import Video, open_video

Source = Pictures | Video | Live
_ACCEPTED = (
    "accepted are a camera number, a video, an image, a folder of images or videos, or an rtsp:// or http:// address"
)


def open_source(source: str, mirror: bool | None = None) -> Source:
    """Open a source and read its first frame.

    Args:
        source: A camera number or `/dev/videoN`, a video or image file, the address of a stream, or a folder of images
            and videos with its subfolders.
        mirror: Flip frames horizontally; None: only those of cameras.

    Raises:
        InputError: the source does not exist, or it gives no frame.
    """
    silence_opencv()
    if camera := re.fullmatch(r"(?:/dev/video)?(\d{1,3})", source):
        return open_camera(int(camera[1]), mirror is not False)
    mirror = bool(mirror)
    if "://" in source:
        return open_stream(source, mirror)
    path = Path(source)
    try:  # `Path("")` is the current folder
        is_folder, is_file = bool(source) and path.is_dir(), path.is_file()
    except OSError as error:
        raise InputError(f"--source {redacted(source)} cannot be read ({error.strerror}); {_ACCEPTED}") from error
    if is_folder:
        files = media_files(path)
        if len(files) == 1 and not is_picture(files[0]):
            return open_video(files[0], mirror, files[0].relative_to(path).as_posix())
        return Pictures(files, str(path), mirror=mirror, root=path)
    if not is_file:
        raise InputError(f"--source {redacted(source) or repr(source)} does not exist; {_ACCEPTED}")
    return Pictures([path], str(path), mirror=mirror) if is_picture(path) else open_video(path, mirror)


def holds_pictures(source: Source) -> bool:
    """Return whether a source has images, alone or among videos."""
    return source.still or (isinstance(source, Pictures) and source.has_pictures)
