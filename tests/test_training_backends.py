import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from tiny_training import history_of

from preprocessing.tables import read_table, split_hash

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
train_network(table, folder, teacher, replace(small, optimizer="muon"), "python")
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


@pytest.mark.system
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


@pytest.mark.system
def test_four_devices_have_the_loss_curve_of_one(make_dataset, tiny_model, tmp_path):
    folder = make_dataset(per_split=(("train", 21), ("dev", 5)))  # 63 and 15 images: 7 in the last batches
    config = {"filters": [8, 16], "convolutions": 1, "epochs": 5, "batch_size": 8, "mixup": 0.2, "dropout": 0.1}
    config |= {"optimizer": "sgd", "learning_rate": 0.2, "distillation_weight": 0.2}  # adamw amplifies rounding errors
    config |= {"precision": "float32", "balance": "emotion", "augmentation": {"noise": 10.0, "cutout_max_size": 8}}
    (tmp_path / "settings.json").write_text(json.dumps({"config": config}))
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    split = split_hash(read_table(folder, "split.csv"))
    teacher = tiny_model(name="teacher.keras", trained_on=folder, split_hash=split)

    def step3(output: Path, *options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "training.step3_best_model", "--dataset", folder.name, "--data", folder.parent]
        command += ["--settings", tmp_path / "settings.json", "--output", output, *options]
        return subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)

    def curves(output: Path, *options: object) -> np.ndarray:
        """Return the loss and the dev loss of each epoch."""
        done = step3(output, "--teacher", teacher, *options)
        assert done.returncode == 0, done.stderr
        return np.array([[float(row[name]) for name in ("loss", "val_loss")] for row in history_of(output.parent)])

    alone = curves(tmp_path / "1" / "best.keras")
    shared = curves(tmp_path / "4" / "best.keras", "--devices", 4)
    assert shared.shape == (5, 2) and np.ptp(alone, axis=0).min() > 0.03
    np.testing.assert_allclose(shared[:, 0], alone[:, 0], atol=0.005)
    np.testing.assert_allclose(shared[:, 1], alone[:, 1], atol=0.01)
    assert len({history.parent.name for history in tmp_path.glob("[14]/runs/*/history.csv")}) == 1  # equal keys
    done = step3(tmp_path / "8" / "best.keras", "--devices", 8)
    assert done.returncode == 2 and "give at most --devices 4" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
