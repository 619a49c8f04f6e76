"""One experiment per file; ``python launch.py --list`` describes them."""

import bpgan.cli  # noqa: F401, first of all: it says in one line which variable JAX refuses
