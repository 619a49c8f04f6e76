"""Sources of step-indexed batches: what is trained on, and in which order.

A batch is a pure function of ``(seed, step)``: no iterator, nothing to checkpoint, any step reachable at once.
"""

from bpgan.data import pairs, poisson, tasks
from bpgan.data.datasets import (
    Dataset,
    for_conditions,
    hold_out,
    load,
    load_for_training,
    of_arrays,
    with_attributes,
    without_images,
)
from bpgan.data.domains import Domains, domain_source, domains_of_task, load_domains
from bpgan.data.known import DATASETS, File, Row
from bpgan.data.names import Name, forms, parse, parse_or_none
from bpgan.data.order import epoch_order
from bpgan.data.pairs import Pairs, load_pairs, pair_source
from bpgan.data.sources import (
    Feed,
    fingerprint_of,
    in_memory,
    mirrored,
    parse_feed,
    source,
    streamed,
)
from bpgan.data.tasks import TASKS, Task

__all__ = [
    "DATASETS",
    "Dataset",
    "Domains",
    "Feed",
    "File",
    "Name",
    "Pairs",
    "Row",
    "TASKS",
    "Task",
    "domain_source",
    "domains_of_task",
    "epoch_order",
    "fingerprint_of",
    "for_conditions",
    "forms",
    "hold_out",
    "in_memory",
    "load",
    "load_domains",
    "load_for_training",
    "load_pairs",
    "mirrored",
    "of_arrays",
    "parse",
    "parse_or_none",
    "parse_feed",
    "pair_source",
    "pairs",
    "poisson",
    "source",
    "streamed",
    "tasks",
    "with_attributes",
    "without_images",
]
