"""One run trained by several processes: the same model, saved and resumed together, and ended together."""

import concurrent.futures
import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np
import pytest
from checks.harness import LIMIT, ROOT, arrays, finish, kill, logged, start, wait_for_step
from jax.experimental import multihost_utils

from bpgan.runtime import directory, peers

pytestmark = pytest.mark.filterwarnings("ignore")

FLAGS = [
    "--preset=smoke",
    "--net=mlp",
    "--log_every=5",
    "--sample_every=20",
    "--checkpoint_every=5",
]
GAN = ["-m", "experiments.mnist_gan", *FLAGS]
AT_FAULT = str(ROOT / "tests" / "faults" / "at_fault.py")
TOY = ["--preset=dirac", "--log_every=5", "--sample_every=0", "--checkpoint_every=10"]
TOY += ["--tensorboard=false"]


def launch(workdir, processes, steps, *flags, experiment="mnist_gan", **environment):
    """The launcher's command, as a user would give it."""
    argv = [
        sys.executable, str(ROOT / "launch.py"), f"--experiment={experiment}", f"--processes={processes}",
        *(FLAGS if experiment == "mnist_gan" else TOY), f"--steps={steps}", f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    return start(workdir, argv=argv, **environment)


def wait_until(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def each(workdir, processes, steps, argv=GAN, **environment):
    """The processes without the launcher, as a cluster would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    argv = [sys.executable, *argv, f"--steps={steps}", f"--workdir={workdir}"]
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
    devices = "1 cpu device" if processes == 1 else f"{processes} cpu devices"
    assert f"resuming at step 10, 20 steps (0.03556 epochs) on {devices}," in said
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
    """Both processes save, with code 75."""
    processes = each(tmp_path / "run", 2, 100000)
    wait_for_step(processes[0], 20)
    processes[1].send_signal(number)
    said = finish(processes[0], code=75)
    finish(processes[1], code=75)
    assert "saved at step" in said
    step = int(said.rpartition("saved at step ")[2].split(";")[0])
    assert len(arrays(tmp_path / "run", step)) > 20
    assert "resuming at step" in finish(launch(tmp_path / "run", 2, step + 5))


def meet(fault, index, workdir, *flags, steps=40):
    """Two processes, to one of which something happens; see ``at_fault.py``."""
    return each(workdir, 2, steps, argv=[AT_FAULT, fault, str(index), "toy_gan", *TOY, *flags])


def ends_of(processes):
    """The exit codes of processes and what they said; once one has ended, the others have ten seconds."""
    deadline = time.monotonic() + 2 * LIMIT
    while all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    said = [process.communicate(timeout=10)[0] for process in processes]
    return [process.returncode for process in processes], said


FOUND = [
    ("data", 1, 2, "error: process 1 of 2: --dataset=x: is torn"),
    ("log", 0, 2, "cannot be written (No space left on device"),
    ("bug", 1, 1, "error: process 1 of 2: TypeError: a bug"),
    ("result", 0, 2, "cannot be written (No space left on device"),
    ("data", 0, 2, "error: --dataset=x: is torn"),
    ("record", 0, 2, "cannot be written (No space left on device"),
    ("stop", 0, 3, "error: it diverged"),
]


@pytest.mark.medium
@pytest.mark.parametrize(
    "fault,index,code,line",
    [pytest.param(*case, marks=pytest.mark.slow if i > 2 else ()) for i, case in enumerate(FOUND)],
)
def test_what_one_process_meets_ends_all_with_its_code(tmp_path, fault, index, code, line):
    """Before training, amid it, and when the others have done their part already; said once."""
    codes, said = ends_of(meet(fault, index, tmp_path / "run"))
    assert codes == [code, code], said
    assert said[0].count("error: ") == 1 and line in said[0], said[0]
    assert ("error: " in said[1] or "Traceback" in said[1]) == (index == 1)


@pytest.mark.slow
def test_processes_do_not_gather_their_data(tmp_path):
    """JAX would, to compare them: of n processes n datasets on every device. Digests are compared instead."""
    codes, said = ends_of(meet("gather", 0, tmp_path / "run"))
    assert codes == [0, 0], said
    codes, said = ends_of(meet("other data", 1, tmp_path / "other"))
    assert codes == [2, 2], said
    assert "error: the processes of this run have different data" in said[0]
    assert "Traceback" not in said[0] + said[1]


@pytest.mark.slow
def test_what_only_the_first_process_checks(tmp_path):
    """A directory that is busy, flags of another run, and a checkpoint that one process cannot read."""
    path = tmp_path / "run"
    assert ends_of(meet("nothing", 0, path))[0] == [0, 0]
    with directory.locked(path):
        codes, said = ends_of(meet("nothing", 0, path, steps=60))
    assert codes == [2, 2] and "another process is training here" in said[0]
    codes, said = ends_of(meet("nothing", 0, path, "--lr=0.2", steps=60))
    assert codes == [2, 2] and "another configuration" in said[0] and said[0].count("error: ") == 1
    codes, said = ends_of(meet("checkpoint", 1, path, steps=60))
    assert codes == [0, 0] and "resuming at step 30" in said[0], said


def wait_for_child(process, index):
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            return child(process, index)
        time.sleep(0.02)
    raise AssertionError("not started")


@pytest.mark.medium
def test_a_signal_to_the_launcher_before_training_began(tmp_path):
    """While the processes look for each other, and while they compile: nothing is there to save."""
    process = launch(tmp_path / "run", 2, 40, experiment="toy_gan")
    children = [wait_for_child(process, index) for index in (0, 1)]
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    finish(process, code=75)
    assert time.monotonic() - begin < 10
    process = launch(tmp_path / "run", 2, 40, experiment="toy_gan")
    assert any(line.startswith("toy_gan --") for line in process.stdout)
    children += [child(process, index) for index in (0, 1)]
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    finish(process, code=75)
    assert time.monotonic() - begin < 10
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


def listening(pids):
    """The addresses at which processes listen for TCP connections, in hexadecimal."""
    inodes = set()
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    rows = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{table}") as file:
            rows += [line.split() for line in file.readlines()[1:]]
    own = [
        row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes
    ]
    assert own
    return set(own)


@pytest.mark.medium
@pytest.mark.parametrize("numbers,code", [([signal.SIGTERM] * 2, 75), ([signal.SIGINT] * 2, 130)])
def test_signals_to_the_launcher_amid_training(tmp_path, numbers, code):
    """The first one saves; a second Ctrl-C ends at once. Meanwhile no other machine can connect to the processes.

    They connect to each other directly, not by the proxy that leads out of a cluster.
    """
    proxy = {"http_proxy": "http://192.0.2.1:3128"}
    process = launch(
        tmp_path / "run", 2, 10**6, "--checkpoint_every=0", experiment="toy_gan", **proxy
    )
    wait_for_step(process, 20)
    everywhere = {"0" * 8, "0" * 32}
    children = [child(process, index) for index in (0, 1)]
    assert not everywhere & listening(children)
    if code == 130:  # children that stand still cannot have saved before the second Ctrl-C
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    said = finish(process, code=code)
    assert time.monotonic() - begin < 20
    assert ("SIGTERM: saved at step" in said) == (code == 75), said


@pytest.mark.slow
def test_a_process_that_is_told_to_stop_before_training_ends_the_other(tmp_path):
    processes = meet("slow", 1, tmp_path / "run")
    assert any(line == "waiting\n" for line in processes[1].stdout)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ends_of(processes)
    assert codes == [75, -signal.SIGTERM] and "has ended or cannot be reached" in said[0], said


@pytest.fixture
def pair(monkeypatch):
    """Both ends of a run of two processes, in this one; the codes with which they would end it are noted."""
    ended, tickets = [], queue.Queue()

    def broadcast(ticket):
        if ticket.any():
            tickets.put(ticket)
        return ticket if ticket.any() else tickets.get(timeout=5)

    here = threading.local()
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(jax, "process_index", lambda: here.index)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(peers, "leave_at_once", ended.append)
    monkeypatch.setattr(peers, "GRACE", 0.2)

    def make(index):
        here.index = index
        return peers.Peers("127.0.0.1")

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = list(pool.map(make, (0, 1)))
    yield both, ended
    for each in both:
        each.end(0, "")
        for connection in each._connections.values():
            connection.close()
        for listener in each._listeners:
            listener.join(5)


@pytest.mark.medium
@pytest.mark.parametrize("index", [0, 1])
def test_a_reason_reaches_the_other_process(pair, capsys, index):
    both, ended = pair
    assert both[index].end(3, "it diverged") == 3
    assert both[index].end(2, "what came of it") == 3  # the first word counts
    wait_until(lambda: ended == [3])
    said = "error: process 1 of 2: it diverged\n" if index else ""
    assert capsys.readouterr().err == said


def test_a_word_that_comes_with_the_greeting_is_heard(monkeypatch):
    """A process may fail as soon as it has joined; its messages then arrive as one."""
    heard = []
    watch = peers.Peers.__new__(peers.Peers)
    watch._connections, watch._listeners, watch._done, watch._index = {}, [], set(), 0
    monkeypatch.setattr(watch, "_follow", lambda *message: heard.append(message))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b'{"secret": "5ec2e7", "index": 1}\n\n{"code": 2, "reason": "is torn"}\n')
        watch._greet(ours, "5ec2e7")
        wait_until(lambda: heard == [(1, 2, "is torn")])


def test_one_that_is_done_ends_nobody(pair):
    (first, second), ended = pair
    assert second.end(0, "") == 0 == second.end(2, "too late")
    second._connections[0].shutdown(socket.SHUT_RDWR)
    time.sleep(0.5)
    assert not ended and first._code is None


def test_one_that_vanishes_ends_the_other_with_75(pair, capsys):
    (_, second), ended = pair
    second._connections[0].shutdown(socket.SHUT_RDWR)
    wait_until(lambda: ended == [75, 75])  # each has lost the other
    assert "process 1 of 2 has ended or cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n", b"[]\n", b'{"secret": "\xc3\xa9", "index": 1}\n',
                                  b'{"secret": 1, "index": 1}\n', b"x" * 9999])  # fmt: skip
def test_strangers_are_sent_away(said):
    ours, theirs = socket.socketpair()
    watch = peers.Peers.__new__(peers.Peers)
    watch._connections = {}
    with theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        watch._greet(ours, "5ec2e7")
    assert not watch._connections and ours.fileno() == -1


@pytest.mark.parametrize(
    "host,addresses",
    [("127.0.0.1", ["127.0.0.1"]),
     ("localhost", ["127.0.0.1", "::1"]),
     ("[::1]", ["::1", ""]),  # where there is no IPv6
     ("192.0.2.1", [""]),
     ("no.such.host.invalid", [""])],
)  # fmt: skip
def test_only_those_who_may_can_connect(host, addresses):
    """A run of one machine listens at its loopback interface; at what is none of its addresses, nobody can listen."""
    assert peers.interface_of(host) in addresses


def test_a_name_that_is_loopback_here_only_is_for_all_interfaces(monkeypatch):
    where = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [where])
    assert peers.interface_of("node7") == ""


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
    assert "on 2 cpu devices" in said[0] and "step 5/5" not in said[1]


@pytest.mark.parametrize(
    "environment,message",
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two: needs JAX_PROCESS_ID"),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS=two: must be a whole number"),
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
