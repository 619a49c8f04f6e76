"""One experiment per file; ``python launch.py --list`` describes them."""

import sys as _sys

try:  # JAX reads its variables when it is imported, which every experiment does at once
    import jax as _  # noqa: F401
except ValueError as _error:
    print(f"error: the environment has a value that JAX refuses: {_error}", file=_sys.stderr)
    _sys.exit(2)
