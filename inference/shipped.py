"""Convert the networks that come with the project for LiteRT, so that the camera needs no TensorFlow: `make litert`.

Run it after a released network, the version of mtcnn or `inference.litert.REVISION` changed, and commit the result.

Reads:  models/pretrained.keras, models/fer2013.keras and their cards; the weights of the package mtcnn
Writes: models/litert/NAME-SOURCES-CONTENT.tflite (content hashes); files of earlier networks are removed

    python -m inference.shipped
"""

from common.command_line import run
from configuration import PATHS
from inference.emotion_classifier import converted_classifier
from inference.keras_networks import RELEASED
from inference.model_card import read_card
from inference.mtcnn_networks import network_files


def main() -> None:
    """Convert the released networks and mtcnn's for LiteRT; remove outdated files."""
    files = [converted_classifier(model_file, read_card(model_file), PATHS.shipped) for model_file in RELEASED]
    files += network_files(PATHS.shipped)
    for outdated in set(PATHS.shipped.glob("*.tflite")) - set(files):
        outdated.unlink()
    print(f"{PATHS.shipped}: {', '.join(file.name for file in files)}")


if __name__ == "__main__":
    run(main)
