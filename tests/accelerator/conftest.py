"""Settings of the tests of whatever device is here, by themselves: ``python -m pytest tests/accelerator``.

Unlike the other tests', they change nothing of how a program is compiled or where it runs. In a run of all tests, which
forces eight devices of a CPU and no optimization, they are left out; ``tests/test_accelerator.py`` runs them in a
process of its own. They need only pytest, and no network.
"""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
OTHER = "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ
"""Whether ``tests/conftest.py`` has made this process one that says nothing of the device."""

collect_ignore_glob = ["test_*.py"] if OTHER else []

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # tests start processes


@pytest.fixture(scope="session")
def environment():
    """What a process that a test starts is given."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}
