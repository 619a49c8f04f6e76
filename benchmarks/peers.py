"""Peers of a benchmark: processes on the same cores that are asked in turn for a few seconds of work.

A slow moment of the machine meets all of them, and ratios are taken within a round. A benchmark is a module with a
table ``PEERS`` of functions, each of which returns its work, and a call of ``serve`` for ``--peer=NAME``.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata

Work = Callable[[], int]
"""Does some work and says how many steps that was."""
Answer = tuple[int, float, float]
"""Steps, CPU seconds, wall seconds."""
FOLDER = "BPGAN_BENCHMARK_FOLDER"
"""Environment variable: a folder that is gone when the benchmark ends."""


def serve(peers: Mapping[str, Callable], name: str) -> None:
    """A peer: does one round for every line it reads and answers with ``[steps, CPU seconds, wall seconds]``."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    peer = peers[name]()

    def timed(work: Work) -> Iterator[Answer]:
        while True:
            cpu, wall = time.process_time(), time.perf_counter()
            steps = work()
            yield steps, time.process_time() - cpu, time.perf_counter() - wall

    rounds = peer if isinstance(peer, Iterator) else timed(peer)
    for _ in sys.stdin:
        out.write(json.dumps(next(rounds)) + "\n")
        out.flush()


class Peer:
    """The parent's view of a peer: a process that sees only ``cores``, and of JAX only the ``backend``."""

    def __init__(self, module: str, name: str, cores: list[int], folder: str, backend: str = "cpu"):
        self.name, self.rounds = name, []
        threads = str(len(cores))
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "JAX_PLATFORMS": backend,
            FOLDER: folder,
        }
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, f"--peer={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def begin(self) -> None:
        """Asks for one round."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def ask(self) -> Answer | None:
        """One round, or None where the peer cannot do it; the reason is printed."""
        self.begin()
        return self.answer()

    def wait(self, seconds: float) -> bool:
        """Whether there is an answer, or an end, within so many seconds."""
        assert self._process.stdout
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def answer(self) -> Answer | None:
        """Waits for the round that was begun."""
        assert self._process.stdout
        try:
            return tuple(json.loads(self._process.stdout.readline()))
        except ValueError:
            self._log.seek(0)
            reason = (self._log.read().strip().splitlines() or ["no message"])[-1]
            print(f"{self.name} failed: {reason}", file=sys.stderr)
            return None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(
    module: str,
    names: Iterable[str],
    rounds: int,
    cores: list[int],
    prefix: str = "",
    backend: str = "cpu",
) -> dict[str, list[Answer]]:
    """All rounds of the peers that can run. Those whose names begin with "torch" need PyTorch.

    ``module`` serves them, called with ``--peer=`` the prefix and the name. ``backend`` is JAX's.
    """
    names = [n for n in names if not n.startswith("torch") or importlib.util.find_spec("torch")]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        peers = []
        for (
            name
        ) in names:  # the first round of each is its start and compilation; it is not counted
            print(f"starting {name}", file=sys.stderr)
            peer = Peer(module, prefix + name, cores, folder, backend)
            stack.callback(peer.stop)
            if peer.ask():
                peers.append(peer)
        for i in range(rounds):
            print(f"round {i + 1}/{rounds}", file=sys.stderr)
            for peer in peers:
                if answer := peer.ask():
                    peer.rounds.append(answer)
    return {
        peer.name.removeprefix(prefix): peer.rounds for peer in peers if len(peer.rounds) == rounds
    }


def flags(doc: str, rounds: int) -> argparse.ArgumentParser:
    """The flags of every benchmark of peers, to which it adds its own."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--cores", type=int, default=1, help="cores each peer is pinned to")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", help="write everything measured to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    return parser


def cores_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> list[int]:
    """The cores that every peer is pinned to: the last ones. Exits for numbers that make no sense."""
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= given.cores <= len(available):
        parser.error(f"--cores={given.cores}: must be between 1 and {len(available)}")
    if given.rounds < 1:
        parser.error(f"--rounds={given.rounds}: must be at least 1")
    return available[-given.cores :]


def machine() -> dict[str, str]:
    """The processor, its load and the versions that decide the figures."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        model = f"{len(names)} x {names[0]}" if names else model
    packages = [
        name for name in ("jax", "jaxlib", "flax", "torch") if importlib.util.find_spec(name)
    ]
    return {
        "processor": model,
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
