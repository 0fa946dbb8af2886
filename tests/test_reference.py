"""The numbers on the embedded sample, from before the redesign (942d47c): a refactoring must not change them.

The predictions are those of the released network, and are renewed with it.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.images import read_image
from configuration import PATHS, TrainingConfig
from inference.emotion_classifier import EmotionClassifier
from preprocessing.tables import read_table, usable
from training.trainer import train_network

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    from preprocessing.step1_inventory import main as inventory
    from preprocessing.step2_face_crops import main as face_crops
    from preprocessing.step3_split import main as split

    data = tmp_path_factory.mktemp("data")
    for step in (inventory, face_crops, split):
        step(data=data)
    return data / "sample"


def test_splits_crops_and_predictions_on_the_sample_are_unchanged(sample):
    expected = pd.read_csv(REFERENCE / "sample.csv")
    rows = usable(read_table(sample, "split.csv")).reset_index(drop=True)
    pd.testing.assert_frame_equal(rows[["path", "emotion", "split"]], expected[["path", "emotion", "split"]])
    images = [read_image(sample / path) for path in rows["face_path"]]
    crops = np.stack([image[:, :, :1] for image in images if image is not None])
    np.testing.assert_allclose(crops.mean(axis=(1, 2, 3)), expected["crop_mean"], atol=0.1)
    np.testing.assert_allclose(crops.std(axis=(1, 2, 3)), expected["crop_std"], atol=0.1)
    classifier = EmotionClassifier.load(PATHS.pretrained)
    probabilities = expected[[f"p_{label}" for label in classifier.labels]]
    np.testing.assert_allclose(classifier.predict(crops), probabilities, atol=0.01)


def test_history_of_a_short_training_is_unchanged(sample, tmp_path):
    config = TrainingConfig(
        filters=(4, 8), convolutions=1, epochs=3, batch_size=16, precision="float32", warmup_epochs=1, mixup=0.2
    )
    train_network(read_table(sample, "split.csv"), sample, tmp_path / "network.keras", config, "python")
    (file,) = tmp_path.rglob("history.csv")
    expected = pd.read_csv(REFERENCE / "history.csv")
    pd.testing.assert_frame_equal(pd.read_csv(file)[list(expected)], expected, rtol=0.01, check_dtype=False)
