import numpy as np
from realtime_fakes import FACE, FakeClassifier, write_video

from benchmarks.soak_test import endure


class Passing:
    """Sees a face in two of three frames, in every third second nobody, and remembers nothing."""

    count = -1

    def detect(self, image_rgb):
        self.count += 1
        return [] if self.count % 3 == 2 or self.count % 90 >= 60 else [FACE]


class Forgetful(FakeClassifier):
    def predict(self, images):
        answer = super().predict(images)
        self.batches.clear()
        return answer


def test_the_whole_program_in_a_loop_leaves_memory_flat_and_every_count_right(tmp_path, capsys):
    """A short form of an hour: more would show no other growth, as the loop is the same."""
    lines = []
    video = write_video(tmp_path / "clip.mp4", frames=50, fps=30)
    ended = endure(video, 3000, tmp_path, Passing(), Forgetful(), lines.append, 10)
    seen = np.arange(3000)
    faces = int(((seen % 3 != 2) & (seen % 90 < 60) & (seen % 90 > 0)).sum())  # the first frame of a visit is tentative
    assert (ended.read, ended.counted, ended.recorded) == (3000, 3000, 3000)
    assert (ended.faces, ended.logged, ended.frames_logged) == (faces, faces, faces)
    assert ended.agrees
    assert list(ended.megabytes) == list(range(0, 3001, 300)) and len(lines) == 11
    assert ended.megabytes[3000] - ended.megabytes[900] < 10
    assert capsys.readouterr().out.startswith(f"clip.mp4: frames: 3000, faces: {faces}, ")
