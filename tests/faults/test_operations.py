"""A training process that is interrupted at its n-th file operation, again and again: by SIGKILL or by the disk."""

import errno
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from harness import assert_same, finish, start

pytestmark = [pytest.mark.usefixtures("optimised"), pytest.mark.filterwarnings("ignore")]

KINDS = ("open", "write", "rename", "fsync", "unlink", "mkdir")
"""Of file operations, in the order of the counters of ``operations.c``."""

ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.EACCES,
)  # fmt: skip

STEPS = 1500
FLAGS = [f"--steps={STEPS}", "--checkpoint_every=5"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """``operations.c``, compiled."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    source = pathlib.Path(__file__).with_name("operations.c")
    path = tmp_path_factory.mktemp("library") / "operations.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True)
    return path


def interrupted(library, run, at="", *flags):
    """A life of the run that ends at an operation: ``KIND:N:ACTION:TIMES``; its exit code, output and counters."""
    counters = run.with_name("counters")
    process = start(
        *(run, *flags),
        LD_PRELOAD=str(library),
        FAULT_ROOT=f"{run}/",
        FAULT_COUNT=str(counters),
        FAULT_AT=at,
    )
    said, _ = process.communicate(timeout=120)
    counts = dict(zip(KINDS, np.fromfile(counters, np.uint64).tolist(), strict=True))
    counters.unlink()
    return process.returncode, said, counts


def chain(library, run, lives, seed, actions, flags):
    """Lives that are interrupted in turn, of all kinds, at random operations of their first few checkpoints.

    Returns how many were struck, by kind and action. Each of them must end as a user is told it does.
    """
    rng = np.random.default_rng(seed)
    most = {"open": 60, "write": 80, "rename": 30, "fsync": 60, "unlink": 40, "mkdir": 25}
    struck = {}
    for life in range(lives):
        kind, action = KINDS[life % len(KINDS)], actions[life // len(KINDS) % len(actions)]
        n, times = rng.integers(1, most[kind] + 1), rng.choice([1, 10**6])
        at = f"{kind}:{n}:{action}:{times}"
        code, said, counts = interrupted(library, run, at, *flags)
        if action in ("kill", "torn", "after"):
            assert code in (-9, 0, 2), (at, code, said)  # 0, 2: the end came before the operation
        else:
            assert code in (0, 2, 75), (at, code, said)
        assert "Traceback" not in said, (at, said)
        if counts[kind] >= n:
            name = action if action in ("kill", "torn", "after") else errno.errorcode[int(action)]
            struck[kind, name] = struck.get((kind, name), 0) + 1
    return struck


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_operations(library, tmp_path, capsys):
    """Before an operation, amid a write, after an operation."""
    finish(start(tmp_path / "alone", *FLAGS))
    struck = chain(
        library,
        tmp_path / "run",
        int(os.environ.get("LIVES", 180)),
        0,
        ("kill", "torn", "after"),
        FLAGS,
    )
    finish(start(tmp_path / "run", *FLAGS))
    compared = assert_same(tmp_path / "alone", tmp_path / "run", STEPS)
    with capsys.disabled():
        print(
            f"\n{sum(struck.values())} kills at operations survived ({struck}); {compared:,} bytes equal"
        )
    assert sum(struck.values()) >= 150 and {kind for kind, _ in struck} == set(KINDS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_errors_of_operations(library, tmp_path, capsys):
    """A disk that fails once or from then on: one line and exit code 2, or no harm; the same command goes on."""
    finish(start(tmp_path / "alone", *FLAGS))
    actions = [str(number) for number in ERRORS]
    struck = chain(library, tmp_path / "run", int(os.environ.get("LIVES", 84)), 1, actions, FLAGS)
    finish(start(tmp_path / "run", *FLAGS))
    compared = assert_same(tmp_path / "alone", tmp_path / "run", STEPS)
    with capsys.disabled():
        print(f"\n{sum(struck.values())} errors survived ({struck}); {compared:,} bytes equal")
    assert len(struck) >= 30
