"""Names of before ``distributed`` and ``program`` were modules of their own."""

from bpgan.runtime.distributed import agree, find_devices, is_lead, join, leave, setup
from bpgan.runtime.program import axis_name
from bpgan.runtime.program import compile_program as compile
from bpgan.runtime.program import draw_batches as draw
from bpgan.runtime.program import record_metrics as recorded

__all__ = [
    "agree",
    "axis_name",
    "compile",
    "draw",
    "find_devices",
    "is_lead",
    "join",
    "leave",
    "recorded",
    "setup",
]
