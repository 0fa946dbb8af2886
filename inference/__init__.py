"""Run saved networks: detect faces, crop them, and classify their expression.

The names below are imported at first use, so that importing a single module of this package stays cheap.
"""

from typing import TYPE_CHECKING, Any

import common  # noqa: F401  # first: from then on, Ctrl-C ends a command in one line

if TYPE_CHECKING:
    from inference.crops import network_input, read_image_rgb
    from inference.emotion_classifier import EmotionClassifier
    from inference.face_detector import FaceDetector
    from inference.faces import choose_face

__all__ = ["EmotionClassifier", "FaceDetector", "choose_face", "network_input", "read_image_rgb"]

_MODULES = {
    "EmotionClassifier": "emotion_classifier",
    "FaceDetector": "face_detector",
    "choose_face": "faces",
    "network_input": "crops",
    "read_image_rgb": "crops",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
