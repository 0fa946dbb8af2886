import numpy as np
import pytest
from cards import sequence_card
from realtime_fakes import FACE, FakeClassifier, FakeDetector, scene, write_video

from common.errors import InputError
from inference.sequence_classifier import SequenceClassifier
from realtime.recognition import recognize, watch
from realtime.sequence_smoothing import SequenceSmoother
from realtime.sources import Frame

SINGLE = ("anger", "neutral")  # features: frame index, then the probabilities of both


class Network(SequenceClassifier):
    """Returns given predictions and records its inputs: frame indices and reference of each face."""

    def __init__(self, window: int = 6, rate: float = 30.0, predictions: tuple[float, ...] = (0.9,)):
        card = sequence_card(window=window, rate=rate, features={"sha256": "ab"})
        super().__init__(lambda rows: rows, card, "fake.keras", 1)
        self.inputs: list[list[tuple[list[int], int]]] = []
        self.predictions = list(predictions)

    def predict(self, faces):
        self.inputs.append([([int(row[0]) for row in frames], int(reference[0])) for frames, reference in faces])
        first = self.predictions[min(len(self.inputs), len(self.predictions)) - 1]
        return np.array([[first, 1 - first]] * len(faces), np.float32).reshape(-1, 2)


def inputs_of(network: Network, times: list[float], neutrals: list[float] | None = None) -> list[tuple[list[int], int]]:
    smoother = SequenceSmoother(network, SINGLE)
    for frame, time in enumerate(times):
        neutral = neutrals[frame] if neutrals else 0.5
        smoother.update([1], np.array([[frame, 1 - neutral, neutral]], np.float32), time)
    return [predictions[0] for predictions in network.inputs]


@pytest.mark.parametrize(
    ("fps", "last"),
    [
        (30.0, [24, 25, 26, 27, 28, 29]),
        (60.0, [19, 21, 23, 25, 27, 29]),  # every second frame
        (15.0, [27, 27, 28, 28, 29, 29]),  # each frame is used twice
        (10.0, [28, 28, 28, 29, 29, 29]),
    ],
)
def test_frames_are_resampled_to_training_rate(fps, last):
    jitter = np.random.default_rng(1).uniform(-0.15, 0.15, 30) / fps
    late = jitter if fps == 30 else np.zeros(30)
    inputs = inputs_of(Network(), list(np.arange(30) / fps + late))
    frames = inputs[-1][0]
    assert len(frames) == 6 and frames[-1] == 29 and max(frames) == 29
    assert np.abs(np.array(frames) - last).max() <= 1 and (fps not in (30.0, 60.0) or frames == last)
    assert inputs[0][0] == [0] and [len(frames) for frames, _ in inputs][:2] == [1, 1 + round(30 / fps)]
    assert all(frame <= now for now, (frames, _) in enumerate(inputs) for frame in frames)  # never ahead


def test_reference_is_most_neutral_frame():
    inputs = inputs_of(Network(), [frame / 30 for frame in range(6)], [0.4, 0.3, 0.6, 0.5, 0.9, 0.9])
    assert [reference for _, reference in inputs] == [0, 0, 2, 2, 4, 4]


def test_tracks_have_separate_pasts():
    network = Network()
    smoother = SequenceSmoother(network, SINGLE)
    row = np.array([[7, 0.5, 0.5], [8, 0.5, 0.5]], np.float32)
    smoother.update([1, 2], row, 0.0)
    smoother.update([2], row[:1], 1 / 30)
    smoother.update([1, 2], row, 2 / 30)
    assert network.inputs[1:] == [[([8, 7], 8)], [([7, 7, 7], 7), ([8, 7, 8], 8)]]
    smoother.update([2], row[:1], 0.0)
    assert network.inputs[-1] == [([7], 7)]


class FakeFeatureClassifier(FakeClassifier):
    features_of = "ab"

    def features(self, images: np.ndarray) -> np.ndarray:
        return np.array([[index, 0.1, 0.7, 0.2] for index in range(len(images))], np.float32)


def test_watch_uses_sequence_network(tmp_path):
    clip, network = write_video(tmp_path / "clip.mp4", frames=8), Network()
    results = list(watch(clip, FakeFeatureClassifier(), FakeDetector(FACE), temporal=network))
    assert [result.recognitions[0].label for result in results] == ["anger"] * 8
    assert results[0].recognitions[0].probabilities == pytest.approx({"anger": 0.9, "happiness": 0.1})
    assert [result.recognitions[0].track_id for result in results] == [0] + [1] * 7 and len(network.inputs) == 8
    assert len(list(watch(clip, FakeFeatureClassifier(), FakeDetector(), temporal=Network()))) == 8  # no face


def test_past_ends_at_a_cut():
    network, shown = Network(), [scene(0)] * 8 + [scene(1)] * 2
    frames = [Frame(image_bgr, index, index / 30, "clip.mp4") for index, image_bgr in enumerate(shown)]
    list(recognize(frames, FakeDetector(FACE), FakeFeatureClassifier(), temporal=network))
    counts = [len(frames) for ((frames, _),) in network.inputs]
    assert counts[:8] == sorted(counts[:8]) and counts[7] > 2, "also across the confirmation"
    assert counts[8] == 1, "nothing is left of the face before the cut"


def test_unfit_sequence_network_is_refused(tmp_path):
    clip, network = write_video(tmp_path / "clip.mp4", frames=2), Network()
    other = FakeFeatureClassifier()
    other.features_of = "cd"
    for classifier in (other, FakeClassifier()):
        with pytest.raises(InputError, match="--model"):
            next(watch(clip, classifier, FakeDetector(FACE), temporal=network))
    with pytest.raises(InputError, match="--raw"):
        next(watch(clip, FakeFeatureClassifier(), FakeDetector(FACE), temporal=network, raw=True))
    with pytest.raises(InputError, match="step4_sequence_model"):
        next(watch(clip, temporal=tmp_path / "none.keras"))
