"""Tables to batches: the pixel cache, `flow_from_dataframe`, and the training and dev splits of a run."""

from training.data.batches import FaceBatches, flow_from_dataframe
from training.data.crops import read_crops, read_image

__all__ = ["FaceBatches", "flow_from_dataframe", "read_crops", "read_image"]
