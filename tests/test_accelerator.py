"""The tests of whatever device is here, in a process of their own; see ``tests/accelerator``."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_they_pass_on_this_device(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/accelerator"],
        cwd=ROOT, env=kept | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
