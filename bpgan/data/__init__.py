"""Sources of step-indexed batches: what is trained on, and in which order.

A batch is a pure function of ``(seed, step)``: no iterator, nothing to checkpoint, any step reachable at once.
"""

from bpgan.data.datasets import DATASETS, Dataset, load
from bpgan.data.order import epoch_order, in_memory

__all__ = ["DATASETS", "Dataset", "epoch_order", "in_memory", "load"]
