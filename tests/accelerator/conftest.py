"""Tests of whatever device is here, by themselves: ``python -m pytest tests/accelerator``, from the root.

Unlike the other tests' settings, these change nothing of how a program is compiled or where it runs. In a run of all
tests they are left out, and ``tests/test_accelerator.py`` runs them in a process of its own. They need no plugin of
pytest, and no network.
"""

import os
import pathlib

import pytest

HERE = pathlib.Path(__file__).parent

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # tests start processes


def pytest_ignore_collect(config):
    return True if config.rootpath != HERE else None


def pytest_addoption(parser):
    parser.addoption("--dear", action="store_true", help="all cases, also on a CPU")


def pytest_collection_modifyitems(config, items):
    import jax

    # The time for them may be short.
    items.sort(key=lambda item: item.get_closest_marker("dear") is not None)
    if jax.default_backend() == "cpu" and not config.getoption("--dear"):
        for item in items:
            if item.get_closest_marker("dear"):
                item.add_marker(pytest.mark.skip(reason="dear on a CPU; --dear runs it"))


@pytest.fixture(scope="session")
def environment():
    """What a process that a test starts is given."""
    path = [str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}
