"""Sources of step-indexed batches: what is trained on, and in which order.

A batch is a pure function of ``(seed, step)``: no iterator, nothing to checkpoint, any step reachable at once.
"""

from bpgan.data.datasets import (
    DATASETS,
    FORMS,
    Dataset,
    hold_out,
    load,
    load_for_training,
    of_arrays,
)
from bpgan.data.order import epoch_order
from bpgan.data.sources import (
    fingerprint_of,
    in_memory,
    mirrored,
    parse_feed,
    source,
    streamed,
)

__all__ = [
    "DATASETS",
    "FORMS",
    "Dataset",
    "epoch_order",
    "fingerprint_of",
    "hold_out",
    "in_memory",
    "load",
    "load_for_training",
    "mirrored",
    "of_arrays",
    "parse_feed",
    "source",
    "streamed",
]
