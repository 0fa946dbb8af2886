"""Shows what the project does, without a download or a camera: `make demo`.

Reads:  the portrait and the sample sequences made of it (`preprocessing.datasets.sample`), the released model
Writes: reports/demo/picture.png, the annotated portrait; expressions.png, six annotated peaks; sample.mp4, the
        sequences as they are; video.mp4, the same annotated; predictions.csv, one row per face (columns:
        `realtime.sinks.recording.Log`)

    python -m realtime.demo
    python -m realtime.webcam --source reports/demo/sample.mp4 --no-window --record docs/webcam.webp
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

from common.command_line import ReportsRoot, run
from common.emotions import CKPLUS_CODES, EMOTIONS
from common.logging import silence_opencv
from configuration import PATHS
from inference.face_detector import build_detector
from inference.faces import Detector
from inference.model_card import ModelCard
from preprocessing.datasets.sample import SAMPLE
from realtime.recognition import Classifier, recognize
from realtime.sinks.drawing import Drawer, draw
from realtime.sinks.recording import Log, VideoRecording, write_picture
from realtime.sources import Frame, Pictures

_PERSON = replace(SAMPLE, subjects=1, unlabelled=0, width=640, height=480, seed=5)
_SHOWN = [emotion for emotion in EMOTIONS if emotion not in ("neutral", "contempt")]
_FPS = 24.0  # frames per second of the video
_STEPS = 8.0  # frames of a sequence per second
_PAUSE = 0.8  # seconds that a peak stays longer than the other frames


def main(
    reports: ReportsRoot = PATHS.reports,
    model: Annotated[Path, typer.Option(help="Trained network; its card lies beside it.")] = PATHS.pretrained,
) -> None:
    """Find the faces of the embedded sample, name their expressions, and show it in pictures, a video and a table."""
    silence_opencv()
    from inference.emotion_classifier import EmotionClassifier

    classifier = EmotionClassifier.load_litert(model)
    written = demonstrate(reports / "demo", build_detector("mtcnn", classifier.faces), classifier)
    for file in written:
        print(f"wrote {file}")
    print(f"model {model.name}: {describe_scores(classifier.card)}")
    print("The expressions of the sample are one portrait, warped: what the model calls them is no measure of it.")


def demonstrate(folder: Path, detector: Detector, classifier: Classifier) -> list[Path]:
    """Recognize the embedded sample and write the annotated pictures, the video and the table.

    Returns:
        The files written.

    Raises:
        RuntimeError: no face is found in the portrait.
    """
    with TemporaryDirectory() as temporary:
        portrait, sequences = _write_sample(Path(temporary))
        (result,) = recognize(Pictures([portrait], portrait.name), detector, classifier, still=True)
        if not result.recognitions:
            raise RuntimeError(f"no face was found in {portrait}: the detector does not work on this machine")
        folder.mkdir(parents=True, exist_ok=True)
        names = ("picture.png", "expressions.png", "sample.mp4", "video.mp4", "predictions.csv")
        picture, expressions, sample, video, table = (folder / name for name in names)
        write_picture(picture, draw(result))
        frames = Pictures([file for sequence in sequences.values() for file in sequence], "the sample", _STEPS)
        peaks_bgr = {}
        with (
            closing(Log(table, classifier.labels)) as log,
            closing(VideoRecording(sample, frames.size, _FPS)) as plain,
            closing(VideoRecording(video, frames.size, _FPS)) as recording,
        ):
            log.write(result)
            drawer = Drawer(still=True)
            for result in recognize(_with_pauses(frames), detector, classifier, still=True):
                drawn_bgr = drawer.draw(result)
                log.write(result)
                for time in _repeated(result.frame):
                    plain.write(time, result.frame.image_bgr)
                    recording.write(time, drawn_bgr)
                peaks_bgr[list(sequences)[result.frame.index // _PERSON.frames]] = drawn_bgr  # the last one stays
        rows = [np.hstack([peaks_bgr[emotion] for emotion in row]) for row in (_SHOWN[:3], _SHOWN[3:])]
        write_picture(expressions, np.vstack(rows))
    return [picture, expressions, sample, video, table]


def _write_sample(folder: Path) -> tuple[Path, dict[str, list[Path]]]:
    """Write the sample, and return the portrait it is made of and, by emotion, the frames of a sequence."""
    import matplotlib  # late, as what imports it: a mistake is told at once

    from preprocessing.datasets.sample import write_raw

    write_raw(folder / "sample", _PERSON)
    sequences = {}
    for label in sorted(folder.glob("sample/Emotion/*/*/*_emotion.txt")):
        emotion = CKPLUS_CODES[int(float(label.read_text(encoding="ascii")))]
        images = folder / "sample" / "cohn-kanade-images" / label.parts[-3] / label.parts[-2]
        sequences[emotion] = sorted(images.glob("*.png"))
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return portrait, {emotion: sequences[emotion] for emotion in EMOTIONS if emotion in sequences}


def _with_pauses(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Let the last frame of each sequence stay longer."""
    for frame in frames:
        yield replace(frame, time=frame.time + _PAUSE * (frame.index // _PERSON.frames))


def _repeated(frame: Frame) -> list[float]:
    """Return the times at which a frame is written, so that the videos have a constant frame rate."""
    is_peak = (frame.index + 1) % _PERSON.frames == 0
    return [frame.time + step / _FPS for step in range(round((1 / _STEPS + _PAUSE * is_peak) * _FPS))]


def describe_scores(card: ModelCard) -> str:
    """Return what a model's card says of its measured accuracy, in words."""
    published = {("fer2013", "dev"): "FER2013's PublicTest", ("fer2013", "test"): "FER2013's PrivateTest"}
    told = [
        f"accuracy {score['accuracy']:.1%} on {published.get((score['dataset'], score['split']), 'another split')} "
        f"({score['protocol']})" + (f", {score['banner']}" if score.get("banner") else "")
        for score in card.scores
    ]
    return "; ".join(told) or "its card has no score yet"


if __name__ == "__main__":
    run(main)
