"""Demonstrate the project without a download or a camera: `make demo`.

Reads:  the portrait of the sample data set (`preprocessing.datasets.sample`), the released network
Writes: reports/demo/picture.png, the annotated portrait; expressions.png, six annotated peaks; sample.mp4, the sample's
        sequences; video.mp4, the same annotated; predictions.csv, one row per face and video frame (`FaceLog`)

    python -m realtime.demo
    python -m realtime.webcam --source reports/demo/sample.mp4 --no-window --record docs/webcam.webp --overwrite
"""

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
from inference.crops import read_image_rgb
from inference.face_detector import build_detector
from inference.faces import Detector
from inference.model_card import ModelCard
from preprocessing.datasets.sample import PORTRAIT, SAMPLE, write_raw
from realtime.program import run_program
from realtime.recognition import Classifier, recognize
from realtime.sinks.drawing import Drawer
from realtime.sinks.files import write_picture
from realtime.sinks.options import OutputOptions
from realtime.sinks.recording import VideoRecording
from realtime.sources import Pictures, open_source

_PERSON = replace(SAMPLE, subjects=1, unlabelled=0, width=640, height=480, seed=5)
_SHOWN = [emotion for emotion in EMOTIONS if emotion not in ("neutral", "contempt")]
_FPS = 24.0  # frames per second of the videos
_REPEATS, _PEAK_REPEATS = 3, 22  # video frames of one frame of a sequence, and of its last one


def main(
    reports: ReportsRoot = PATHS.reports,
    model: Annotated[Path, typer.Option(help="Trained network, with its card beside it.")] = PATHS.pretrained,
) -> None:
    """Recognize the embedded sample; write pictures, a video and a table."""
    silence_opencv()
    from inference.emotion_classifier import EmotionClassifier

    classifier = EmotionClassifier.load_litert(model)
    for file in demonstrate(reports / "demo", build_detector("mtcnn", classifier.faces), classifier):
        print(f"wrote {file}")
    print(f"model {model.name}: {describe_scores(classifier.card)}")
    print("The sample is one warped portrait, so predictions on it do not measure the model.")


def demonstrate(folder: Path, detector: Detector, classifier: Classifier) -> list[Path]:
    """Recognize the embedded sample and write annotated pictures, videos and a table.

    Returns:
        The files written.

    Raises:
        RuntimeError: no face is detected in the portrait.
    """
    names = ("picture.png", "expressions.png", "sample.mp4", "video.mp4", "predictions.csv")
    picture, expressions, sample, video, table = files = [folder / name for name in names]
    with TemporaryDirectory() as temporary:
        sequences = _write_sample(Path(temporary))
        peaks = Pictures([sequences[emotion][-1] for emotion in _SHOWN], "the peaks")
        (result,) = recognize(Pictures([PORTRAIT], PORTRAIT.name), detector, classifier, still=True)
        if not result.recognitions:
            raise RuntimeError(f"no face was detected in {PORTRAIT}: the detector does not work on this machine")
        folder.mkdir(parents=True, exist_ok=True)
        write_picture(picture, Drawer(still=True).draw(result))
        drawn_bgr = [Drawer(still=True).draw(each) for each in recognize(peaks, detector, classifier, still=True)]
        write_picture(expressions, np.vstack([np.hstack(drawn_bgr[:3]), np.hstack(drawn_bgr[3:])]))
        with closing(VideoRecording(sample, peaks.size, _FPS)) as recording:
            images_bgr = (
                image_bgr
                for images in sequences.values()
                for place, image_bgr in enumerate(map(_read, images), 1)
                for _ in range(_PEAK_REPEATS if place == len(images) else _REPEATS)
            )
            for index, image_bgr in enumerate(images_bgr):
                recording.write(index / _FPS, image_bgr)
    with closing(open_source(str(sample))) as source:
        run_program(source, detector, classifier, OutputOptions(video, table, overwrite=True))
    return files


def _read(file: Path) -> np.ndarray:
    return read_image_rgb(file)[..., ::-1]


def _write_sample(folder: Path) -> dict[str, list[Path]]:
    """Write the sample, and return, by emotion, the frames of a sequence."""
    write_raw(folder / "sample", _PERSON)
    sequences = {}
    for label in sorted(folder.glob("sample/Emotion/*/*/*_emotion.txt")):
        emotion = CKPLUS_CODES[int(float(label.read_text(encoding="ascii")))]
        images = folder / "sample" / "cohn-kanade-images" / label.parts[-3] / label.parts[-2]
        sequences[emotion] = sorted(images.glob("*.png"))
    return {emotion: sequences[emotion] for emotion in EMOTIONS if emotion in sequences}


def describe_scores(card: ModelCard) -> str:
    """Return the accuracies on a model's card in words."""
    splits = {("fer2013", "dev"): "FER2013's PublicTest", ("fer2013", "test"): "FER2013's PrivateTest"}
    scores = [
        f"accuracy {score['accuracy']:.1%} on {splits.get((score['dataset'], score['split']), 'another split')} "
        f"({score['protocol']})" + (f", {score['banner']}" if score.get("banner") else "")
        for score in card.scores
    ]
    return "; ".join(scores) or "its card has no score yet"


if __name__ == "__main__":
    run(main)
