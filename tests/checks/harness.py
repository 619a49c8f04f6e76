"""A real training process, disturbed in every way, and what its run directory must hold in the end."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np

from checks.tensorboard_points import assert_says_the_log

ROOT = pathlib.Path(__file__).parent.parent.parent
STEPS = 400
FLAGS = [
    "--preset=smoke", "--net=mlp", "--log_every=7", "--sample_every=50", "--checkpoint_every=20",
    f"--steps={STEPS}",
]  # fmt: skip
LIMIT = 120.0


def command(workdir, *flags):
    """The command line of the run; the same each time, as a user would repeat it."""
    return [sys.executable, "-m", "experiments.mnist_gan", *FLAGS, *flags, f"--workdir={workdir}"]


def start(workdir, *flags, argv=None, **environment):
    """Starts the process; its output is one stream of lines."""
    return subprocess.Popen(
        argv or command(workdir, *flags),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process, step):
    """Reads the output until that step has been logged."""
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= step:
            return
    raise AssertionError("the process ended first: " + "".join(said))


def finish(process, code=0):
    """Waits for the process to end with that exit code; returns what it said since."""
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == code, f"exit code {process.returncode}: {said}"
    return said


def kill(process, number=signal.SIGKILL):
    """Sends a signal and waits for the end."""
    process.send_signal(number)
    said, _ = process.communicate(timeout=LIMIT)
    return said


def arrays(workdir, step=STEPS):
    """Every array of the newest checkpoint by its path, read without knowing the experiment."""
    import orbax.checkpoint as ocp

    folders = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()]
    newest = max(folders, key=lambda p: int(p.name))
    assert int(newest.name) == step
    checkpointer, path = ocp.PyTreeCheckpointer(), newest.absolute() / "carry"
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        dict(checkpointer.metadata(path).item_metadata.tree),
    )
    tree = checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}


def logged(workdir):
    """The log without its clock."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def assert_same(a, b, step=STEPS):
    """Parameters, optimizers, averages, statistics, metric window, log and sample grids: bit for bit.

    And TensorBoard shows of the second what its log says.

    Returns how many bytes were compared.
    """
    first, second = arrays(a, step), arrays(b, step)
    assert first.keys() == second.keys() and len(first) > 20
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].tobytes() == second[name].tobytes(), name
    assert logged(a) == logged(b)
    assert_says_the_log(b)
    grids = sorted(p.name for p in (a / "samples").iterdir())
    assert grids == sorted(p.name for p in (b / "samples").iterdir() if p.suffix == ".png")
    for name in grids:
        assert (a / "samples" / name).read_bytes() == (b / "samples" / name).read_bytes(), name
    compared = sum(x.nbytes for x in first.values()) + (a / "metrics.jsonl").stat().st_size
    return compared + sum((a / "samples" / name).stat().st_size for name in grids)
