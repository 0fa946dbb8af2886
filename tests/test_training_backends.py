import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
from configuration import AugmentationConfig, TrainingConfig
from preprocessing.tables import read_table
from training.trainer import train_network
folder, model_file = map(Path, sys.argv[1:])
small = TrainingConfig(filters=(8, 16), convolutions=1, epochs=2, batch_size=8, warmup_epochs=1, precision="float32",
                mixup=0.2, augmentation=AugmentationConfig(cutout_max_size=8, noise=10.0, crop=5 / 6))
table = read_table(folder, "split.csv")
teacher = model_file.with_stem(f"{model_file.stem}_teacher")
train_network(table, folder, teacher, small, "python")
train_network(table, folder, model_file, replace(small, teachers=(str(teacher),)), "python")
"""
PREDICT = """
import sys
import keras, numpy as np
images, out, *files = sys.argv[1:]
predict = lambda file: keras.models.load_model(file, safe_mode=True).predict(np.load(images), verbose=0)
np.save(out, [predict(file) for file in files])
"""


def run_under(backend: str, code: str, *arguments: Path) -> None:
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_networks_trained_with_jax_and_tensorflow_load_with_both_and_agree(make_dataset, tmp_path):
    folder = make_dataset()
    images = np.random.default_rng(4).integers(0, 256, (16, 24, 24, 1)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    backends = ("jax", "tensorflow")
    files = [tmp_path / f"trained_by_{backend}.keras" for backend in backends]
    for backend, file in zip(backends, files, strict=True):
        run_under(backend, TRAIN, folder, file)
    for backend in backends:
        run_under(backend, PREDICT, tmp_path / "images.npy", tmp_path / f"{backend}.npy", *files)
    under_jax, under_tensorflow = (np.load(tmp_path / f"{backend}.npy") for backend in backends)
    assert under_jax.shape == (2, 16, 3) and np.ptp(under_jax) > 0.01  # predictions differ between images
    np.testing.assert_allclose(under_jax, under_tensorflow, atol=1e-4)
