"""What several files of fault tests compare with."""

import pytest
from checks import harness


@pytest.fixture(scope="module")
def undisturbed(optimized, tmp_path_factory):
    """The run directory of a process that was left alone."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    harness.finish(harness.start(path))
    return path
