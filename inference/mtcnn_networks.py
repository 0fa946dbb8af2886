"""P-Net, R-Net and O-Net of the `mtcnn` package, converted to LiteRT."""

from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from configuration import PATHS
from inference.litert import Network, converted


@lru_cache(maxsize=1)
def network_files(folder: Path = PATHS.converted) -> tuple[Path, Path, Path]:
    """Return the converted P-Net, R-Net and O-Net. They are converted if the shipped ones belong to other weights.

    Args:
        folder: Folder of converted networks.

    Raises:
        InputError: mtcnn is not installed, or Keras cannot convert the networks because it does not run on TensorFlow.
    """
    pnet, rnet, onet = (
        converted(name, [_weights(name)], partial(_build_network, name), folder) for name in ("pnet", "rnet", "onet")
    )
    return pnet, rnet, onet


class MtcnnNetworks:
    """The three networks of mtcnn: uint8 RGB in, float32 arrays out.

    Args:
        pnet, rnet, onet: The converted networks.
    """

    def __init__(self, pnet: Path, rnet: Path, onet: Path):
        self._pnet, self._rnet, self._onet = Network(pnet), Network(rnet), Network(onet)

    def propose(self, level_rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run P-Net on (h, w, 3); return offsets (h', w', 4) in cells and face scores (h', w')."""
        classes, offsets = self._pnet(level_rgb[None])
        return offsets[0], classes[0, ..., 1]

    def refine(self, patches_rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run R-Net on (n, 24, 24, 3); return offsets (n, 4) in box sides and face scores (n,)."""
        classes, offsets = self._rnet(patches_rgb)
        return offsets, classes[:, 1]

    def finish(self, patches_rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run O-Net on (n, 48, 48, 3); return offsets (n, 4), landmarks (n, 5, 2) in box sides, face scores (n,)."""
        classes, offsets, points = self._onet(patches_rgb)
        return offsets, np.stack([points[:, :5], points[:, 5:]], axis=-1), classes[:, 1]


def _weights(name: str) -> Path:
    """Return the installed weights of a network, found without importing mtcnn and TensorFlow.

    The path is absolute: given a bare name, mtcnn looks in the current directory first and unpickles what it finds.
    """
    package = find_spec("mtcnn")
    if package is None or package.origin is None:
        raise InputError("the package mtcnn is not installed; install what requirements-realtime.txt lists")
    return Path(package.origin).resolve().parent / "assets" / "weights" / f"{name}.lz4"


def _build_network(name: str) -> Any:
    """Return a network as a Keras model that takes uint8 pixels."""
    import keras
    from mtcnn.stages import StageONet, StagePNet, StageRNet

    stage, side = {"pnet": (StagePNet, None), "rnet": (StageRNet, 24), "onet": (StageONet, 48)}[name]
    pixels = keras.Input((side, side, 3), dtype="uint8")
    scaled_pixels = keras.layers.Rescaling(1 / 128, offset=-127.5 / 128)(pixels)  # as mtcnn was trained
    return keras.Model(pixels, stage(weights=str(_weights(name))).model(scaled_pixels))
