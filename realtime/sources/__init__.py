"""Sources of frames: cameras, videos, images, folders and streams.

Frames are upright (EXIF and video rotation are applied), mirrored on request, and BGR. Files give every frame. Live
sources give the newest frame, so that a slow reader does not fall behind.
"""

from realtime.sources.folders import media_files
from realtime.sources.frames import Frame
from realtime.sources.live import Live
from realtime.sources.opening import Source, holds_pictures, open_source
from realtime.sources.pictures import Pictures
from realtime.sources.video import Video

__all__ = ["Frame", "Live", "Pictures", "Source", "Video", "holds_pictures", "media_files", "open_source"]
