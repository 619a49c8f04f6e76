"""One run trained by several processes: the same model, saved and resumed together, and ended together."""

import os
import signal
import socket
import sys
import time

import jax
import numpy as np
import pytest
from harness import ROOT, arrays, finish, kill, logged, start, wait_for_step

pytestmark = pytest.mark.filterwarnings("ignore")

FLAGS = [
    "--preset=smoke",
    "--net=mlp",
    "--log_every=5",
    "--sample_every=20",
    "--checkpoint_every=5",
]
GAN = ["-m", "experiments.mnist_gan", *FLAGS]


def launch(workdir, processes, steps, *flags):
    """The launcher's command, as a user would give it."""
    argv = [
        sys.executable, str(ROOT / "launch.py"), "--experiment=mnist_gan", f"--processes={processes}",
        *FLAGS, f"--steps={steps}", f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    return start(workdir, argv=argv)


def each(workdir, processes, steps, **environment):
    """The processes without the launcher, as a cluster would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    argv = [sys.executable, *GAN, f"--steps={steps}", f"--workdir={workdir}"]
    where = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    return [
        start(workdir, argv=argv, **(where | {"JAX_PROCESS_ID": str(i)} | environment))
        for i in range(processes)
    ]


def assert_close(a, b, step):
    first, second = arrays(a, step), arrays(b, step)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.medium
@pytest.mark.parametrize("feed,bitwise", [("memory", False), pytest.param("memory", True, marks=pytest.mark.slow),
                                          pytest.param("stream", True, marks=pytest.mark.slow)])  # fmt: skip
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_train_the_model_of_one(tmp_path, processes, feed, bitwise):
    """On disjoint shards of one global batch: float tolerance after 20 steps, and those resumed half-way."""
    argv = [sys.executable, *GAN, "--steps=20", f"--workdir={tmp_path / 'one'}"]
    finish(start(tmp_path, argv=argv))
    flags = [f"--feed={feed}"]
    finish(launch(tmp_path / "several", processes, 10, *flags))
    said = finish(launch(tmp_path / "several", processes, 20, *flags))
    assert f"resuming at step 10, 20 steps (0.03556 epochs) on {processes} cpu device(s)" in said
    assert said.count("step 20/20") == 1  # only one of them speaks
    assert_close(tmp_path / "one", tmp_path / "several", 20)
    steps = [line["step"] for line in logged(tmp_path / "several")]
    assert steps == [line["step"] for line in logged(tmp_path / "one")] == [5, 10, 15, 20]
    if bitwise:
        finish(launch(tmp_path / "straight", processes, 20, *flags))
        a, b = arrays(tmp_path / "several", 20), arrays(tmp_path / "straight", 20)
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.slow
def test_several_processes_and_then_one(tmp_path):
    """A run of two processes goes on in one, and the other way round."""
    finish(launch(tmp_path / "run", 2, 10))
    alone = [sys.executable, *GAN, f"--workdir={tmp_path / 'run'}"]
    assert "resuming at step 10" in finish(start(tmp_path, argv=[*alone, "--steps=20"]))
    assert "resuming at step 20" in finish(launch(tmp_path / "run", 2, 30))
    finish(start(tmp_path, argv=[*alone[:-1], f"--workdir={tmp_path / 'one'}", "--steps=30"]))
    assert_close(tmp_path / "one", tmp_path / "run", 30)


def child(process, index):
    """The launcher's child that is process ``index`` of the run."""
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/environ", "rb") as environ:
                parent = int(stat.read().rpartition(")")[2].split()[1])
                if (
                    parent == process.pid
                    and f"JAX_PROCESS_ID={index}".encode() in environ.read().split(b"\0")
                ):
                    return pid
        except OSError:
            continue
    raise AssertionError("no such process")


@pytest.mark.medium
@pytest.mark.parametrize("index", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_the_others(tmp_path, index):
    """Within a minute, with a line that says so and a code that says: repeat the command."""
    process = launch(tmp_path / "run", 2, 100000)
    wait_for_step(process, 20)
    os.kill(child(process, index), signal.SIGKILL)
    begin = time.monotonic()
    said = finish(process, code=75)
    assert time.monotonic() - begin < 60
    kept = "the checkpoints are kept, and the same command continues"
    assert f"process {index} of 2: failed (SIGKILL); {kept}; ending the others" in said


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_without_a_launcher_the_others_notice_too(tmp_path, index):
    processes = each(tmp_path / "run", 2, 100000)
    wait_for_step(processes[0], 20)
    kill(processes[index])
    begin = time.monotonic()
    said, _ = processes[1 - index].communicate(timeout=60)
    assert time.monotonic() - begin < 60
    # When the first process dies JAX may be quicker to end the others, with SIGABRT and words of its own.
    assert processes[1 - index].returncode in ((75,) if index else (75, -signal.SIGABRT)), said
    assert (
        "another process of this run has ended" in said
        or f"process {index} of 2" in said
        or ("another task died" in said)
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path, number):
    """SIGTERM through JAX's and orbax's preemption service; both processes save, with code 75."""
    processes = each(tmp_path / "run", 2, 100000)
    wait_for_step(processes[0], 20)
    processes[1].send_signal(number)
    said = finish(processes[0], code=75)
    finish(processes[1], code=75)
    assert "saved at step" in said
    step = int(said.rpartition("saved at step ")[2].split(";")[0])
    assert len(arrays(tmp_path / "run", step)) > 20
    assert "resuming at step" in finish(launch(tmp_path / "run", 2, step + 5))


@pytest.mark.slow
def test_slurm_environment(tmp_path):
    """What srun sets is enough; the variables are those of a step with two tasks on one node."""
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip
    argv = [sys.executable, *GAN, "--steps=5", f"--workdir={tmp_path / 'run'}"]
    processes = [
        start(tmp_path, argv=argv, **slurm, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in (0, 1)
    ]
    said = [finish(process) for process in processes]
    assert "on 2 cpu device(s)" in said[0] and "step 5/5" not in said[1]


@pytest.mark.parametrize(
    "environment,message",
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two: needs JAX_PROCESS_ID"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2", "JAX_COORDINATOR_ADDRESS": "a:1"},
            "below it",
        ),
    ],
)
def test_bad_environment_is_one_line(tmp_path, environment, message):
    argv = [sys.executable, *GAN, f"--workdir={tmp_path / 'run'}"]
    said = finish(start(tmp_path, argv=argv, **environment), code=2)
    assert message in said and "Traceback" not in said


@pytest.mark.medium
@pytest.mark.parametrize(
    "flags,message",
    [(["--parallel=pmap"], "--parallel=pmap: works in one process only"),
     (["--batch_size=7"], "cannot be split over 2 devices"),
     (["--sweep=seed=0:2"], "cannot be combined with --sweep")],
)  # fmt: skip
def test_mistakes_end_all_processes_with_one_code(tmp_path, flags, message):
    said = finish(launch(tmp_path / "run", 2, 5, *flags), code=2)
    assert message in said and "Traceback" not in said
    assert jax.process_count() == 1
