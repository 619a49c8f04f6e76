"""Sources of step-indexed batches: what is trained on, and in which order.

A batch is a pure function of ``(seed, step)``: no iterator, nothing to checkpoint, any step reachable at once.
"""

from bpgan.data import poisson
from bpgan.data.datasets import (
    Dataset,
    hold_out,
    load,
    load_for_training,
    of_arrays,
    without_images,
)
from bpgan.data.known import DATASETS, File, Row
from bpgan.data.names import Name, forms, parse, parse_or_none
from bpgan.data.order import epoch_order
from bpgan.data.sources import (
    Feed,
    fingerprint_of,
    in_memory,
    mirrored,
    parse_feed,
    source,
    streamed,
)

__all__ = [
    "DATASETS",
    "Dataset",
    "Feed",
    "File",
    "Name",
    "Row",
    "epoch_order",
    "fingerprint_of",
    "forms",
    "hold_out",
    "in_memory",
    "load",
    "load_for_training",
    "mirrored",
    "of_arrays",
    "parse",
    "parse_or_none",
    "parse_feed",
    "poisson",
    "source",
    "streamed",
    "without_images",
]
