#!/bin/bash
# Everything that bpgan promises of a GPU, measured by one command of at most nine minutes:
#
#     bash benchmarks/gpu_run.sh [PHASE...] [--out=DIR] [--seconds=540]     on a machine with a GPU
#     bash benchmarks/gpu_run.sh --rehearse                                 the same at tiny sizes on a CPU
#     bash benchmarks/gpu_run.sh --table                                    the results as tables of Markdown
#
# It needs Python with JAX, flax, optax and orbax as they are there ($PYTHON, else python3), and fetches nothing.
# PyTorch, TensorBoard and the packages that read datasets may be missing. See benchmarks/README.md.
set -u
cd "$(dirname "$0")/.." || exit 2
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 XLA_PYTHON_CLIENT_PREALLOCATE=false MPLBACKEND=agg
# bpgan reads its files with msgspec. Where that is missing a stand-in does it.
"${PYTHON:-python3}" -c "import msgspec" 2>/dev/null || export PYTHONPATH="$PWD/benchmarks/standins${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu_run "$@"
