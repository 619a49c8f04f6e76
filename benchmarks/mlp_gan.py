"""How fast the article's GAN trains: bpgan against PyTorch, a Flax tutorial loop, and the machine's own limit.

    python -m benchmarks.mlp_gan [--cores=1] [--rounds=7] [--json=FILE] [--check]
    python -m benchmarks.mlp_gan --profile [--cores=1]

Everyone trains the same thing in float32: z ~ U(-1, 1)^100, G 100-128-784 tanh, D 784-128-64-1, leaky ReLU, logistic
non-saturating loss, Adam (2e-4, beta1 0.5), batch 128, fresh latents for D and for G, on mnist10k's 9,000 digits.

Each peer is a process of its own, pinned to the same cores. They are asked in turn for a few seconds of work, so
that a slow moment of the machine meets all of them; ratios are taken within a round and their median is reported.
``steps/cpu-s`` counts the CPU time of all threads of the process and is the figure to trust on a shared machine;
ratios are ratios of it. ``of matmul`` is the arithmetic a step needs over what a large matrix product reaches, and ``of
products`` over what the step's own matrix products reach by themselves, as JAX compiles them, each again and again on
the same arrays: by CPU time on one core, and by the clock on several, where the question is whether they are kept busy.
Eigen, by which bpgan multiplies, computes them faster; that has a row of its own.

``--profile`` traces bpgan's compiled program alone and says what each part of a step takes.
"""

import contextlib
import json
import os
import pathlib
import queue
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers import FOLDER, Answer, Work, cores_of, flags, machine, measure, serve

BATCH = 128
G_LAYERS, D_LAYERS = [(100, 128), (128, 784)], [(784, 128), (128, 64), (64, 1)]
SQUARE = 2048
FULL, BARE, FLAX = "bpgan, full loop", "bpgan, bare program", "flax, tutorial loop"
EAGER, BEST_EAGER = "torch, eager + DataLoader", "torch, eager, best"
COMPILED, COMPILED_STEP = "torch.compile, modules", "torch.compile, whole step"
BEST_COMPILED = "best torch.compile"
MATMUL, SHAPES, BEST_SHAPES = f"matmul {SQUARE}^2", "matmuls of one step", "the same, by Eigen"
TARGETS = {
    "AMD": {EAGER: 3.5, BEST_COMPILED: 2.0, BARE: 0.95},
    "Intel": {EAGER: 2.3, BEST_COMPILED: 1.4, BARE: 0.95},
}
"""What the full loop must reach on one core, as a multiple of each peer's steps per CPU-second, by the vendor:
PyTorch multiplies by MKL, which reaches half the rate of XLA's products on AMD's, and all of it on Intel's."""
GOALS = {1: (SHAPES, 0.85), 2: (MATMUL, 0.6)}
"""What the full loop is meant to reach of a rate of products, by cores."""
FRACTIONS = {MATMUL: "fraction_of_matmul_rate", SHAPES: "fraction_of_own_products"}


def gemms() -> list[tuple[int, int, int]]:
    """The matrix products (m, k, n) of one step, with no product that a good compiler would leave out."""

    def forward(layers):
        return [(BATCH, i, o) for i, o in layers]

    def weights(layers):
        return [(i, BATCH, o) for i, o in layers]

    def inputs(layers):
        return [(BATCH, o, i) for i, o in layers]

    d_pass = forward(D_LAYERS) + weights(D_LAYERS) + inputs(D_LAYERS[1:])
    g_pass = forward(G_LAYERS) + weights(G_LAYERS) + inputs(G_LAYERS[1:])
    return forward(G_LAYERS) + 2 * d_pass + g_pass + forward(D_LAYERS) + inputs(D_LAYERS)


FLOPS = sum(2 * m * k * n for m, k, n in gemms())


# --- Peers: each returns a function that does some work and says how many steps that was --------------------------


def digits():
    from bpgan import data

    return data.load("mnist10k")


def experiment():
    from bpgan import cli
    from bpgan.runtime import distributed
    from experiments import mnist_gan

    distributed.setup()
    cfg = cli.resolve(mnist_gan.Config, mnist_gan.PRESETS, ["--preset=article"])
    return cfg, mnist_gan.build(cfg)


def bare_program() -> Work:
    """As many steps as one window of the full loop, in one call."""
    from bpgan.runtime.program import compile_program

    cfg, built = experiment()
    program = compile_program(built.algorithm, built.source, seed=0)
    carry = program.init()
    steps = cfg.checkpoint_every.value.steps(built.source.steps_per_epoch)

    def work():
        nonlocal carry
        carry, finite = program.run(carry, steps)
        assert bool(finite)
        return steps

    return work


def full_loop() -> Iterator[Answer]:
    """Windows of a real run of the article preset, each from the first log line after a checkpoint to the next such.

    So each holds one whole checkpoint, with what its threads do after ``save`` has returned, two sample grids and ten
    log lines with their TensorBoard events. The first one holds the start and all compilation. Between windows the
    run is held up.
    """
    from bpgan.runtime import signals, train
    from bpgan.runtime.log import Log

    cfg, built = experiment()
    log_every, sample_every, checkpoint_every = (
        every.value.steps(built.source.steps_per_epoch)
        for every in (cfg.log_every, cfg.sample_every, cfg.checkpoint_every)
    )
    go, done = queue.SimpleQueue(), queue.SimpleQueue()
    log_write = Log.write
    last = (0, time.process_time(), time.perf_counter())

    def write(self, step, window, *others):
        nonlocal last
        anomalies = log_write(self, step, window, *others)
        if window and (step - 1) // checkpoint_every > max(0, last[0] - 1) // checkpoint_every:
            now = (step, time.process_time(), time.perf_counter())
            done.put(tuple(b - a for a, b in zip(last, now, strict=True)))
            go.get()
            last = (step, now[1], time.perf_counter())
        return anomalies

    def run():
        try:
            train.fit(
                built.algorithm,
                built.source,
                train.RunSpec(config={}, workdir=os.environ[FOLDER], seed=0),
                train.Plan(
                    name="benchmark",
                    restart_safe=frozenset(),
                    steps=2**31 - 1,
                    log_every=log_every,
                    sample_every=sample_every,
                    checkpoint_every=checkpoint_every,
                ),
            )
        finally:
            done.put(None)

    Log.write = write
    # Signals belong to the main thread, which is ours; the run ends with the process.
    signals.listen = lambda: contextlib.nullcontext(lambda: None)
    threading.Thread(target=run, daemon=True).start()
    while answer := done.get():
        yield answer
        go.put(None)


def flax_tutorial() -> Work:
    """Two jitted updates a step and both losses read by the host, as tutorials do."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax.training.train_state import TrainState

    images = digits().arrays()[0].reshape(-1, 784).astype(np.float32) / 127.5 - 1

    class G(nn.Module):
        @nn.compact
        def __call__(self, z):
            return nn.tanh(nn.Dense(784)(nn.leaky_relu(nn.Dense(128)(z), 0.2)))

    class D(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.leaky_relu(nn.Dense(128)(x), 0.2)
            return nn.Dense(1)(nn.leaky_relu(nn.Dense(64)(x), 0.2))

    def player(module, key, width):
        params = module.init(key, jnp.ones((1, width)))["params"]
        return TrainState.create(apply_fn=module.apply, params=params, tx=optax.adam(2e-4, b1=0.5))

    def fakes(g, params, key):
        z = jax.random.uniform(key, (BATCH, 100), minval=-1, maxval=1)
        return g.apply_fn({"params": params}, z)

    bce = optax.sigmoid_binary_cross_entropy

    @jax.jit
    def d_step(g, d, real, key):
        fake = fakes(g, g.params, key)

        def loss(params):
            real_logits = d.apply_fn({"params": params}, real)
            fake_logits = d.apply_fn({"params": params}, fake)
            return bce(real_logits, 1.0).mean() + bce(fake_logits, 0.0).mean()

        value, grads = jax.value_and_grad(loss)(d.params)
        return d.apply_gradients(grads=grads), value

    @jax.jit
    def g_step(g, d, key):
        def loss(params):
            return bce(d.apply_fn({"params": d.params}, fakes(g, params, key)), 1.0).mean()

        value, grads = jax.value_and_grad(loss)(g.params)
        return g.apply_gradients(grads=grads), value

    g, d = player(G(), jax.random.key(0), 100), player(D(), jax.random.key(1), 784)
    key, rng = jax.random.key(2), np.random.default_rng(0)

    def work():
        nonlocal g, d, key
        order = rng.permutation(len(images))
        steps = 12 * (len(images) // BATCH)
        for i in range(steps):
            key, d_key, g_key = jax.random.split(key, 3)
            start = i * BATCH % (len(images) - BATCH)
            d, d_loss = d_step(g, d, images[order[start : start + BATCH]], d_key)
            g, g_loss = g_step(g, d, g_key)
            float(d_loss), float(g_loss)
        return steps

    return work


def torch_nets():
    from torch import nn

    def perceptron(layers, *last):
        modules = []
        for i, (a, b) in enumerate(layers):
            modules += (
                [nn.Linear(a, b), nn.LeakyReLU(0.2)] if i < len(layers) - 1 else [nn.Linear(a, b)]
            )
        return nn.Sequential(*modules, *last)

    return perceptron(G_LAYERS, nn.Tanh()), perceptron(D_LAYERS)


def torch_tutorial() -> Work:
    """A Dataset of images normalized one by one, DataLoader, BCEWithLogitsLoss, ``.item()`` each step."""
    import torch

    images = digits().arrays()[0].reshape(-1, 784)

    class Digits(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return (torch.from_numpy(images[i].copy()).float() / 255 - 0.5) / 0.5, 0

    loader = torch.utils.data.DataLoader(Digits(), batch_size=BATCH, shuffle=True, drop_last=True)
    g, d = torch_nets()
    g_adam = torch.optim.Adam(g.parameters(), 2e-4, betas=(0.5, 0.999))
    d_adam = torch.optim.Adam(d.parameters(), 2e-4, betas=(0.5, 0.999))
    bce = torch.nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)

    def work():
        steps = 0
        for _ in range(4):
            for real, _ in loader:
                d_adam.zero_grad()
                fake = g(torch.rand(BATCH, 100) * 2 - 1).detach()
                d_loss = bce(d(real), ones) + bce(d(fake), zeros)
                d_loss.backward()
                d_adam.step()
                g_adam.zero_grad()
                g_loss = bce(d(g(torch.rand(BATCH, 100) * 2 - 1)), ones)
                g_loss.backward()
                g_adam.step()
                d_loss.item(), g_loss.item()
                steps += 1
        return steps

    return work


def torch_modules(compiled: bool) -> Work:
    """Images in memory, fused Adam or compiled losses and optimizers, D frozen while G learns, no ``.item()``."""
    import torch
    from torch.nn.functional import softplus

    images = torch.from_numpy(digits().arrays()[0].reshape(-1, 784)).float() / 127.5 - 1
    g, d = torch_nets()
    options = {"betas": (0.5, 0.999), "fused": not compiled}
    g_adam = torch.optim.Adam(g.parameters(), 2e-4, **options)
    d_adam = torch.optim.Adam(d.parameters(), 2e-4, **options)

    def d_loss(real, z):
        with torch.no_grad():
            fake = g(z)
        return (softplus(-d(real)) + softplus(d(fake))).mean()

    def g_loss(z):
        return softplus(-d(g(z))).mean()

    d_move, g_move = d_adam.step, g_adam.step
    if compiled:
        d_loss, g_loss, d_move, g_move = map(torch.compile, (d_loss, g_loss, d_move, g_move))

    def work():
        for _ in range(400):
            real = images[torch.randint(0, len(images), (BATCH,))]
            d_adam.zero_grad()
            d_loss(real, torch.rand(BATCH, 100) * 2 - 1).backward()
            d_move()
            d.requires_grad_(False)
            g_adam.zero_grad()
            g_loss(torch.rand(BATCH, 100) * 2 - 1).backward()
            g_move()
            d.requires_grad_(True)
        return 400

    return work


def torch_whole_step() -> Work:
    """The whole step, Adam included, as one compiled function of tensors."""
    import torch
    from torch.func import grad_and_value
    from torch.nn.functional import leaky_relu, linear, softplus

    images = torch.from_numpy(digits().arrays()[0].reshape(-1, 784)).float() / 127.5 - 1
    state = []
    for module in torch_nets():
        params = [p.detach().clone() for p in module.parameters()]
        state.append(
            (params, [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params])
        )
    g_state, d_state = state

    def forward(params, x):
        for i in range(0, len(params), 2):
            x = linear(x, params[i], params[i + 1])
            x = leaky_relu(x, 0.2) if i < len(params) - 2 else x
        return x

    def adam(state, grads, t):
        new = []
        for p, m, v, g in zip(*state, grads, strict=True):
            m, v = m + 0.5 * (g - m), v + 0.001 * (g * g - v)
            p = p - 2e-4 * (m / (1 - 0.5**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            new.append((p, m, v))
        return tuple(list(part) for part in zip(*new, strict=True))

    def step(g_state, d_state, t, index, z1, z2):
        real, fake = images[index], torch.tanh(forward(g_state[0], z1))

        def d_loss(params):
            return (softplus(-forward(params, real)) + softplus(forward(params, fake))).mean()

        grads, d_value = grad_and_value(d_loss)(d_state[0])
        d_state = adam(d_state, grads, t)

        def g_loss(params):
            return softplus(-forward(d_state[0], torch.tanh(forward(params, z2)))).mean()

        grads, g_value = grad_and_value(g_loss)(g_state[0])
        return adam(g_state, grads, t), d_state, d_value, g_value

    compiled, t = torch.compile(step, fullgraph=True), torch.zeros(())

    def work():
        nonlocal g_state, d_state, t
        with torch.no_grad():
            for _ in range(500):
                t = t + 1
                index = torch.randint(0, len(images), (BATCH,))
                z1, z2 = torch.rand(BATCH, 100) * 2 - 1, torch.rand(BATCH, 100) * 2 - 1
                g_state, d_state, *_ = compiled(g_state, d_state, t, index, z1, z2)
        return 500

    return work


def matmuls(shapes: list[tuple[int, int, int]], repeats: int, eigen: bool = False) -> Work:
    """Each product ``repeats`` times in a compiled loop whose rounds depend on each other."""
    import jax
    import jax.numpy as jnp

    from bpgan.runtime import compiler

    options = compiler.options("cpu", matrices=True) if eigen else None

    def one(m, k, n):
        b = jnp.full((k, n), 1e-3)

        def body(_, carry):
            a, _ = carry
            c = a @ b  # carried whole, lest only the element used below is computed
            return a.at[0, 0].add(c[0, 0] * 1e-9), c

        start = jnp.ones((m, k)), jnp.zeros((m, n))
        loop = jax.jit(
            lambda start: jax.lax.fori_loop(0, repeats, body, start), compiler_options=options
        )
        return loop, start

    programs = [one(*shape) for shape in shapes]

    def work():
        for program, start in programs:
            jax.block_until_ready(program(start))
        return repeats

    return work


PEERS: dict[str, Callable] = {
    FULL: full_loop,
    BARE: bare_program,
    FLAX: flax_tutorial,
    EAGER: torch_tutorial,
    BEST_EAGER: lambda: torch_modules(compiled=False),
    COMPILED: lambda: torch_modules(compiled=True),
    COMPILED_STEP: torch_whole_step,
    SHAPES: lambda: matmuls(gemms(), 600),
    BEST_SHAPES: lambda: matmuls(gemms(), 600, eigen=True),
    MATMUL: lambda: matmuls([(SQUARE, SQUARE, SQUARE)], 20),
}


def summarize(results: dict[str, list[Answer]], cores: int) -> dict:
    """Medians over the rounds, ratios being taken within a round."""
    results = dict(results)
    if compiled := [name for name in (COMPILED, COMPILED_STEP) if name in results]:
        best = max(compiled, key=lambda name: statistics.median(s / c for s, c, _ in results[name]))
        results[BEST_COMPILED] = results[best]
    cpu = {name: [s / c for s, c, _ in rounds] for name, rounds in results.items()}
    wall = {name: [s / w for s, _, w in rounds] for name, rounds in results.items()}
    busy = cpu if cores == 1 else wall
    peaks = [rate * 2 * SQUARE**3 for rate in busy[MATMUL]]
    rows = {
        name: {
            "steps_per_cpu_s": statistics.median(cpu[name]),
            "steps_per_wall_s": statistics.median(wall[name]),
            "full_loop_ratio": statistics.median(
                a / b for a, b in zip(cpu[FULL], cpu[name], strict=True)
            ),
            FRACTIONS[MATMUL]: statistics.median(
                rate * FLOPS / peak for rate, peak in zip(busy[name], peaks, strict=True)
            ),
            FRACTIONS[SHAPES]: statistics.median(
                a / b for a, b in zip(busy[name], busy[SHAPES], strict=True)
            ),
        }
        for name in results
        if name != MATMUL
    }
    return {
        "cores": cores,
        "rows": rows,
        "flops_per_step": FLOPS,
        "full_loop_gflops": statistics.median(busy[FULL]) * FLOPS / 1e9,
        "matmul_gflops": statistics.median(peaks) / 1e9,
    }


def verdicts(summary: dict, processor: str) -> tuple[list[str], bool]:
    """A line for each target and goal, and whether a target was missed; targets hold for one core."""
    rows, cores = summary["rows"], summary["cores"]
    lines, missed = [], False
    targets = next((found for vendor, found in TARGETS.items() if vendor in processor), {})
    for name, target in targets.items() if cores == 1 else ():
        if name not in rows:
            lines.append(f"not measured: {target:.2f}x {name}")
            continue
        reached = rows[name]["full_loop_ratio"] >= target
        missed |= not reached
        lines.append(f"{'reached' if reached else 'MISSED'}: {target:.2f}x {name}")
    if cores in GOALS:
        name, fraction = GOALS[cores]
        reached = rows[FULL][FRACTIONS[name]] >= fraction
        goal = f"{fraction:.0%} of the rate of {name} on {cores} core(s)"
        lines.append(f"goal {'reached' if reached else 'not reached'}: {goal}")
    return lines, missed


def show(summary: dict, about: dict[str, str]) -> None:
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{summary['cores']} core(s), medians of {summary['rounds']} rounds\n")
    print(
        f"{'':26}{'steps/cpu-s':>12}{'steps/s':>9}{'full loop is':>14}{'of matmul':>11}{'of products':>13}"
    )
    for name, row in summary["rows"].items():
        print(
            f"{name:26}{row['steps_per_cpu_s']:12.0f}{row['steps_per_wall_s']:9.0f}"
            f"{row['full_loop_ratio']:13.2f}x{row[FRACTIONS[MATMUL]]:11.0%}{row[FRACTIONS[SHAPES]]:13.0%}"
        )
    if EAGER not in summary["rows"]:
        print("PyTorch is not installed (requirements-bench.txt): its rows are left out")
    print(
        f"\nA step needs {FLOPS / 1e6:.1f} MFLOP in matrix products. Full loop: {summary['full_loop_gflops']:.0f}"
        f" GFLOP/s; {SQUARE}^2 matmul: {summary['matmul_gflops']:.0f} GFLOP/s."
    )


PARTS = {
    "matrix products": r"dot_general",
    "matrices transposed for products": r"dense\d/transpose$",
    "batch": r"/batch/",
    "latents": r"/draw/|threefry|/stream/",
    "Adam": r"/optimizer/",
    "gradient norms": r"/grad_norm/",
    "activations, losses, gradients of biases": r"jvp|Generator|Discriminator|tanh",
    "the rest: copies, counters, sums of metrics": "",
}
"""Parts of a step by the names that the operations of its program have; the first one that fits counts."""


def profile(cores: list[int], steps: int = 100) -> None:
    """Prints what the parts of a step of the bare program take, each operation at the lower quartile of its calls.

    On a shared machine, calls above it may hold moments in which others ran.
    """
    os.sched_setaffinity(0, cores)
    import jax

    from bpgan.runtime import program

    _, built = experiment()
    traced = program.trace(built.algorithm, built.source, jax.devices())
    text = traced.run.lower().compile().as_text() or ""
    sources = dict(re.findall(r"^ *(?:ROOT )?%(\S+) = .*?op_name=\"([^\"]*)\"", text, re.MULTILINE))
    products = set(re.findall(r"%(\S+) = \S+ dot\(", text))
    compiled = program.compile_program(built.algorithm, built.source, seed=0)
    carry, _ = compiled.run(compiled.init(), steps)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled.run(carry, steps))
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        calls = own_times(jax.profiler.ProfileData.from_file(str(path)))
    parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for name, times in calls.items():
        if len(times) < steps:  # outside the loop, or the loop itself
            continue
        source = "dot_general" if name in products else sources.get(name, "")
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, source))
        parts[part] += sorted(times)[len(times) // 4] * len(times) / steps
    total = sum(parts.values())
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{len(cores)} core(s), {total * 1e6:.0f} us a step, traced; of them\n")
    for part, seconds in parts.items():
        print(f"{seconds / total:7.1%}  {seconds * 1e6:6.0f} us  {part}")


def own_times(profile: Any) -> dict[str, list[float]]:
    """Seconds of each call of each operation, without the operations inside it."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in (line for plane in profile.planes for line in plane.lines):
        events = [e for e in line.events if "hlo_op" in dict(e.stats)]
        inside: list[
            tuple[float, str, int]
        ] = []  # (end, name, index) of the operations that are open
        for event in sorted(events, key=lambda e: (e.start_ns, -e.duration_ns)):
            while inside and inside[-1][0] <= event.start_ns:
                inside.pop()
            if inside:
                _, name, index = inside[-1]
                found[name][index] -= event.duration_ns / 1e9
            found[event.name].append(event.duration_ns / 1e9)
            end = event.start_ns + event.duration_ns
            inside.append((end, event.name, len(found[event.name]) - 1))
    return found


def main() -> int:
    parser = flags(__doc__ or "", rounds=7)
    parser.add_argument("--profile", action="store_true", help="what the parts of a step take")
    arguments = parser.parse_args()
    if arguments.profile:
        profile(cores_of(parser, arguments))
        return 0
    if arguments.peer:
        serve(PEERS, arguments.peer)
        return 0
    cores, about = cores_of(parser, arguments), machine()
    results = measure("benchmarks.mlp_gan", PEERS, arguments.rounds, cores)
    if missing := {FULL, MATMUL, SHAPES} - set(results):
        sys.exit(f"error: nothing to compare with: {', '.join(sorted(missing))} did not run")
    summary = summarize(results, arguments.cores) | {"rounds": arguments.rounds}
    lines, missed = verdicts(summary, about["processor"])
    show(summary, about)
    print("\n".join(lines))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                summary | {"machine": about, "verdicts": lines, "answers": results}, file, indent=1
            )
    return int(missed and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
