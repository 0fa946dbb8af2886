import cv2
import numpy as np
import pytest
from realtime_fakes import write_video

from configuration import WEBCAM
from preprocessing.errors import InputError
from realtime.sources import open_source


def write_png(file, value):
    file.write_bytes(cv2.imencode(".png", np.full((8, 12, 3), value, np.uint8))[1].tobytes())


def test_a_video_gives_every_frame_in_order_with_its_time(tmp_path):
    source = open_source(str(write_video(tmp_path / "clip.mp4", frames=12, fps=10)))
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx([index / 10 for index in range(12)])
    assert {(frame.name, frame.image_bgr.shape) for frame in frames} == {("clip.mp4", (64, 96, 3))}
    brightness = [frame.image_bgr.mean() for frame in frames]
    assert brightness == sorted(brightness)
    assert (source.fps, source.count, source.size, source.live, source.trouble) == (10, 12, (96, 64), False, "")


def test_a_video_that_breaks_off_says_so(tmp_path):
    data = write_video(tmp_path / "whole.avi", frames=60).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(data[: len(data) // 3])
    source = open_source(str(cut))
    count = len(list(source))
    assert 0 < count < 50
    assert source.trouble.startswith(f"cut.avi ended after {count} of {source.count} frames")


def test_a_folder_gives_its_pictures_in_name_order_and_tells_of_the_unreadable_one(tmp_path):
    for name, value in (("b.png", 20), ("a.PNG", 10), ("d.png", 40)):
        write_png(tmp_path / name, value)
    (tmp_path / "c.jpg").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    source = open_source(str(tmp_path))
    assert [(frame.name, frame.image_bgr[0, 0, 0]) for frame in source] == [("a.PNG", 10), ("b.png", 20), ("d.png", 40)]
    assert source.still
    assert source.trouble == "1 of 4 pictures could not be read: c.jpg"


def test_one_picture_is_a_source_of_one_frame(tmp_path):
    write_png(tmp_path / "me.png", 9)
    source = open_source(str(tmp_path / "me.png"))
    assert [(frame.index, frame.time, frame.name) for frame in source] == [(0, 0.0, "me.png")]
    assert (source.count, source.size, source.still) == (1, (12, 8), True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "does not exist"),
        ("letter.txt", b"Dear camera,\n" * 100, "is no video"),
        ("letter.mp4", b"Dear camera,\n" * 100, "is no video"),
        ("empty.mp4", b"", "is no video"),
        ("empty.jpg", b"", "no readable picture"),
        ("letter.png", b"Dear camera,\n" * 100, "no readable picture"),
    ],
)
def test_a_file_that_shows_nothing_is_refused(tmp_path, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message) as refusal:
        open_source(str(file))
    assert name in str(refusal.value)


def test_a_video_without_a_single_frame_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no video"):
        open_source(str(write_video(tmp_path / "none.mp4", frames=0)))


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="no readable picture"):
        open_source(str(tmp_path))


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    write_png(tmp_path / "me.png", 9)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--source '' does not exist"):
        open_source("")


@pytest.mark.parametrize("source", ["987", "/dev/video987"])
def test_without_a_camera_the_message_names_the_remedy(source):
    with pytest.raises(InputError, match=r"camera 987 gives no picture; plug one in.*--source"):
        open_source(source)


def test_a_stream_that_does_not_answer_is_refused_without_telling_its_password():
    with pytest.raises(InputError, match=r"rtsp://127\.0\.0\.1:9/door gives no picture") as refusal:
        open_source("rtsp://me:secret@127.0.0.1:9/door")
    assert "secret" not in str(refusal.value)


class FakeCapture:
    """A camera that gives three pictures and is then unplugged."""

    def __init__(self, *_):
        self.left = 3
        self.released = False

    def read(self):
        self.left -= 1
        return (True, np.zeros((48, 64, 3), np.uint8)) if self.left >= 0 else (False, None)

    def get(self, _):
        return 0.0

    def set(self, *_):
        return False

    def release(self):
        self.released = True


@pytest.mark.parametrize(
    ("source", "name"), [("0", "camera 0"), ("/dev/video2", "camera 2"), ("rtsp://u:p@door/1", "rtsp://door/1")]
)
def test_a_live_source_that_is_lost_gives_what_it_had_and_says_so(monkeypatch, source, name):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    live = open_source(source)
    frames = list(live)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.time for frame in frames] == sorted(frame.time for frame in frames)
    assert (live.name, live.live, live.count, live.fps) == (name, True, None, WEBCAM.fallback_fps)
    assert live.trouble.startswith(f"{name} gives no more frames")
