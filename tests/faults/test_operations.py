"""A training process that is interrupted at its n-th file operation, again and again: by SIGKILL or by the disk."""

import collections
import errno
import pathlib
import shutil
import signal
import subprocess

import numpy as np
import pytest
from checks.harness import assert_same, finish, start

pytestmark = [pytest.mark.usefixtures("optimized"), pytest.mark.filterwarnings("ignore")]

KINDS = ("open", "write", "rename", "fsync", "unlink", "mkdir")
"""Of file operations, in the order of the counters of ``operations.c``."""

KILLS = ("kill", "torn", "after")

ERRORS = tuple(
    str(getattr(errno, name))
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EFBIG", "ESTALE", "EACCES")
)

MOST = {"open": 60, "write": 80, "rename": 30, "fsync": 60, "unlink": 40, "mkdir": 25}
"""Operations of each kind in a life: about three checkpoints."""

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


def interrupted(library, run, at):
    """A life of the run that ends at an operation: ``KIND:N:ACTION:TIMES``; its exit code, output and counters."""
    counters = run.with_name("counters")
    process = start(
        *(run, *FLAGS),
        LD_PRELOAD=str(library),
        FAULT_ROOT=f"{run}/",
        FAULT_COUNT=str(counters),
        FAULT_AT=at,
    )
    said, _ = process.communicate(timeout=120)
    counts = dict(zip(KINDS, np.fromfile(counters, np.uint64).tolist(), strict=True))
    counters.unlink()
    return process.returncode, said, counts


def interrupt(library, run, lives, actions, most, rng):
    """Lives that end at random operations, each kind and action in turn; how many were struck, by kind and action.

    ``most`` says of each kind the last operation of a life that may be chosen.
    """
    struck = collections.Counter()
    for life in range(lives):
        kind, action = list(most)[life % len(most)], actions[life // len(most) % len(actions)]
        n, times = rng.integers(1, most[kind] + 1), rng.choice([1, 10**6])
        at = f"{kind}:{n}:{action}:{times}"
        code, said, counts = interrupted(library, run, at)
        expected = (-signal.SIGKILL,) if action in KILLS else (0, 2, 75)
        if counts[kind] >= n:
            assert code in expected, (at, code, said)
            struck[kind, action] += 1
        else:  # the end came before the operation
            assert code == 0, (at, code, said)
        assert "Traceback" not in said, (at, said)
    return struck


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("what", "actions", "lives", "late", "least"),
    [("kills", KILLS, 144, 27, 150), ("errors", ERRORS, 84, 21, 50)],
)
def test_interrupted_operations(library, tmp_path, capsys, what, actions, lives, late, least):
    """The same command ends in the same bits, log, grids and TensorBoard scalars.

    Kills strike before an operation, amid a write, and after an operation; errors are those of a disk that fails once,
    or from then on. The last lives are of a run at its end, which writes its result and its report. A life that an
    error does not harm comes to its end, and then others find less to do.
    """
    rng, run = np.random.default_rng(len(what)), tmp_path / "run"
    finish(start(tmp_path / "alone", *FLAGS))
    struck = interrupt(library, run, lives, actions, MOST, rng)
    finish(start(run, *FLAGS))
    struck += interrupt(library, run, late, actions, {"open": 12, "write": 12, "rename": 6}, rng)
    finish(start(run, *FLAGS))
    compared = assert_same(tmp_path / "alone", run, STEPS)
    with capsys.disabled():
        print(f"\n{struck.total()} {what} survived ({dict(struck)}); {compared:,} bytes equal")
    assert struck.total() >= least and {kind for kind, _ in struck} == set(KINDS)
