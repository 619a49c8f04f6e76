"""How fast S runs train: as one program, in a process each, or in turn.

    python -m benchmarks.sweep [--net=mlp|dcgan] [--sizes=1,4,8,32] [--cores=N] [--rounds=3] [--json=FILE]

``mlp`` is the article's GAN, ``dcgan`` the one of ``mnist_gan`` at a fourth of its width, both at batch 64. Each form
has all cores, is asked in turn with the others, and is measured in trained steps of members per second, by the clock
(of several processes the sum, each over its own time: an upper bound where they do not end together);
ratios are to training in turn, within a round, medians over rounds. Training in turn is as fast as one run (S = 1).

=================  =============================================================================
in turn            one process, one member after the other, each with the program of a single run
vmap, map          one process, a group (``bpgan.runtime.group``)
process per core   as many processes as cores, pinned, each with its share as a group, ``map``
S processes        a process for each member
=================  =============================================================================
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable

from benchmarks.peers import Peer, Work, cores_of, flags, machine, serve

FORMS = ("in turn", "vmap", "map", "process per core", "S processes")
SECONDS = 2.0


def maker(net: str) -> Callable:
    """``make`` of ``bpgan.runtime.group``."""
    import dataclasses

    from bpgan import cli
    from experiments import mnist_gan

    chosen = ["--preset=article"] if net == "mlp" else ["--net=dcgan:8"]
    cfg = cli.resolve(mnist_gan.Config, mnist_gan.PRESETS, [*chosen, "--batch_size=64"])

    def make(**values):
        built = mnist_gan.build(dataclasses.replace(cfg, **values))
        return built.algorithm, built.source

    return make


def members(size: int) -> list[dict]:
    return [{"seed": i, "g_lr": 1e-4 * (1 + i / size)} for i in range(size)]


def timed(step: Callable[[int], None], size: int) -> Work:
    """Work of about ``SECONDS``: ``step(k)`` trains every member by ``k`` steps."""
    import time

    step(1)
    k, took = 1, 0.0
    while took < SECONDS / 4:
        k *= 2
        start = time.perf_counter()
        step(k)
        took = time.perf_counter() - start
    k = max(1, int(k * SECONDS / took))

    def work() -> int:
        step(k)
        return k * size

    return work


def in_turn(net: str, size: int) -> Work:
    from bpgan.runtime import distributed
    from bpgan.runtime.program import compile_program

    distributed.setup()
    make = maker(net)
    program = compile_program(*make(**members(size)[0]), seed=0)
    carries = [program.init() for _ in range(size)]

    def step(k: int) -> None:
        for i, carry in enumerate(carries):
            carries[i], finite = program.run(carry, k)
            assert bool(finite)

    return timed(step, size)


def group_of(net: str, size: int, lowering: str):
    """The members as one program."""
    from bpgan.runtime import distributed
    from bpgan.runtime.group import compile_group

    distributed.setup()
    return compile_group(maker(net), members(size), lowering)


def together(net: str, size: int, lowering: str) -> Work:
    import numpy as np

    group = group_of(net, size, lowering)
    carry, alive = group.init(), np.ones(size, bool)

    def step(k: int) -> None:
        nonlocal carry
        carry, finite = group.run(carry, k, alive)
        assert finite.all()

    return timed(step, size)


def peer(name: str) -> Callable[[], Work]:
    net, form, size = name.split("/")
    if form in ("vmap", "map"):
        return lambda: together(net, int(size), form)
    return lambda: in_turn(net, int(size))


def processes(form: str, size: int, cores: list[int]) -> list[tuple[str, int, list[int]]]:
    """Form, members and cores of each process of a form."""
    if form == "process per core":
        count = min(size, len(cores))
        shares = [size // count + (i < size % count) for i in range(count)]
        return [("map", share, [cores[i]]) for i, share in enumerate(shares)]
    if form == "S processes":
        return [("in turn", 1, cores) for _ in range(size)]
    return [(form, size, cores)]


def measure(net: str, size: int, rounds: int, cores: list[int]) -> dict[str, list[float]]:
    """Steps of members per second of each form, by round."""
    rates: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        forms = {}
        for form in FORMS:
            if form == "S processes" and size == 1:
                continue  # "in turn" is that
            print(f"{net}, S = {size}: starting {form}", file=sys.stderr)
            peers = []
            for kind, share, own in processes(form, size, cores):
                peers.append(Peer("benchmarks.sweep", f"{net}/{kind}/{share}", own, folder))
                stack.callback(peers[-1].stop)
            if all([each.ask() for each in peers]):  # starts and compiles; not counted
                forms[form], rates[form] = peers, []
        for _ in range(rounds):
            for form, peers in forms.items():
                for each in peers:
                    each.begin()
                answers = [answer for each in peers if (answer := each.answer())]
                rates[form].append(sum(steps / wall for steps, _, wall in answers))
    return rates


def main() -> int:
    parser = flags(__doc__ or "", rounds=3)
    parser.add_argument("--net", choices=("mlp", "dcgan"), default="mlp")
    parser.add_argument("--sizes", default="1,4,8,32", help="members of a sweep")
    parser.set_defaults(cores=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if arguments.peer:
        serve({arguments.peer: peer(arguments.peer)}, arguments.peer)
        return 0
    about, cores = machine(), cores_of(parser, arguments)
    results = {
        size: measure(arguments.net, size, arguments.rounds, cores)
        for size in map(int, arguments.sizes.split(","))
    }
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    print(
        f"{arguments.net}, {len(cores)} core(s): steps of members per second, and times in turn;"
        f" medians of {arguments.rounds} rounds\n"
    )
    print(f"{'S':>3}" + "".join(f"{form:>20}" for form in FORMS))
    for size, rates in results.items():
        cells = []
        for form in FORMS:
            if form not in rates:
                cells.append(f"{'':>20}")
                continue
            ratio = statistics.median(
                a / b for a, b in zip(rates[form], rates["in turn"], strict=True)
            )
            cells.append(f"{statistics.median(rates[form]):12.0f} {ratio:6.2f}x")
        print(f"{size:3d}" + "".join(cells))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"net": arguments.net, "machine": about, "rates": results}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
