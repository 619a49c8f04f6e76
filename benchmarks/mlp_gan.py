"""How fast the article's GAN trains: bpgan against PyTorch, a Flax tutorial loop, and the machine's own limit.

    python -m benchmarks.mlp_gan [--cores=1] [--rounds=5] [--json=FILE] [--check]

Everyone trains the same thing in float32: z ~ U(-1, 1)^100, G 100-128-784 tanh, D 784-128-64-1, leaky ReLU, logistic
non-saturating loss, Adam (2e-4, beta1 0.5), batch 128, fresh latents for D and for G, on mnist10k's 9,000 digits.

Each peer is a process of its own, pinned to the same cores. They are asked for about a second of work in turn, so
that a slow moment of the machine meets all of them; ratios are taken within a round and their median is reported.
``steps/cpu-s`` counts the CPU time of all threads of the process and is the figure to trust on a shared machine.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

BATCH = 128
G_LAYERS, D_LAYERS = [(100, 128), (128, 784)], [(784, 128), (128, 64), (64, 1)]
SQUARE = 2048
FULL, BARE, FLAX = "bpgan, full loop", "bpgan, bare program", "flax, tutorial loop"
EAGER, BEST_EAGER = "torch, eager + DataLoader", "torch, eager, best"
COMPILED, COMPILED_STEP = "torch.compile, modules", "torch.compile, whole step"
MATMUL, SHAPES = f"matmul {SQUARE}^2", "matmuls of one step"
TARGETS = {EAGER: 3.5, "best torch.compile": 2.0, BARE: 0.95}
"""What the full loop must reach on one core, as a multiple of each peer's steps per CPU-second."""

Work = Callable[[], int]


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
    from bpgan.runtime import parallel
    from experiments import _cli as cli
    from experiments import mnist_gan

    parallel.setup()
    cfg = cli.resolve(mnist_gan.Config, mnist_gan.PRESETS, ["--preset=article"])
    return cfg, mnist_gan.build(cfg)


def bare_program() -> Work:
    from bpgan.runtime import parallel

    _, built = experiment()
    program = parallel.compile(built.algorithm, built.source, seed=0)
    carry = program.init()

    def work():
        nonlocal carry
        carry, finite = program.run(carry, 600)
        assert bool(finite)
        return 600

    return work


def full_loop() -> Iterator[tuple[int, float, float]]:
    """(steps, CPU seconds, wall seconds) from checkpoint to checkpoint of a real run of the article preset.

    Such an interval holds ten log lines, two sample grids and one checkpoint. The CPU time a save spends after it has
    returned is part of the next interval.
    """
    import contextlib
    import threading

    from bpgan.runtime import parallel, train
    from bpgan.runtime.checkpoint import Checkpoints
    from experiments import _cli as cli

    cfg, built = experiment()
    pair = threading.Barrier(2)
    marks: list[tuple[int, float]] = []
    save = Checkpoints.save

    def marked_save(self, step, tree):
        save(self, step, tree)
        marks.append((step, time.process_time()))
        pair.wait()  # the interval is over
        pair.wait()  # the next one may begin
        marks.append((step, time.perf_counter()))

    Checkpoints.save = marked_save
    per_epoch = built.source.steps_per_epoch

    def run(folder):
        with contextlib.redirect_stdout(sys.stderr):
            train.fit(
                built.algorithm,
                built.source,
                name="benchmark",
                config={},
                restart_safe=frozenset(),
                workdir=folder,
                seed=0,
                steps=2**31 - 1,
                log_every=cli.duration(cfg.log_every, per_epoch),
                sample_every=cli.duration(cfg.sample_every, per_epoch),
                checkpoint_every=cli.duration(cfg.checkpoint_every, per_epoch),
            )

    # Signals belong to the main thread, which is ours; the run ends with the process.
    train._signals = lambda: contextlib.nullcontext(lambda: None)
    del parallel
    folder = tempfile.mkdtemp()
    threading.Thread(target=run, args=(folder,), daemon=True).start()
    pair.wait()
    step, cpu = marks[-1]
    while True:
        pair.wait()
        pair.wait()
        began = marks[-2][1]
        next_step, next_cpu = marks[-1]
        yield next_step - step, next_cpu - cpu, time.perf_counter() - began
        step, cpu = next_step, next_cpu


def flax_tutorial() -> Work:
    """Two jitted updates a step and both losses read by the host, as tutorials do."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax.training.train_state import TrainState

    images = digits().x.reshape(-1, 784).astype(np.float32) / 127.5 - 1

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
        steps = 5 * (len(images) // BATCH)
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
    """A Dataset of images normalised one by one, DataLoader, BCEWithLogitsLoss, ``.item()`` each step."""
    import torch

    images = digits().x.reshape(-1, 784)

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
        for _ in range(2):
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
    """Images in memory, fused Adam or compiled losses and optimisers, D frozen while G learns, no ``.item()``."""
    import torch
    from torch.nn.functional import softplus

    images = torch.from_numpy(digits().x.reshape(-1, 784)).float() / 127.5 - 1
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
        for _ in range(250):
            real = images[torch.randint(0, len(images), (BATCH,))]
            d_adam.zero_grad()
            d_loss(real, torch.rand(BATCH, 100) * 2 - 1).backward()
            d_move()
            d.requires_grad_(False)
            g_adam.zero_grad()
            g_loss(torch.rand(BATCH, 100) * 2 - 1).backward()
            g_move()
            d.requires_grad_(True)
        return 250

    return work


def torch_whole_step() -> Work:
    """The whole step, Adam included, as one compiled function of tensors."""
    import torch
    from torch.func import grad_and_value
    from torch.nn.functional import leaky_relu, linear, softplus

    images = torch.from_numpy(digits().x.reshape(-1, 784)).float() / 127.5 - 1
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
            for _ in range(300):
                t = t + 1
                index = torch.randint(0, len(images), (BATCH,))
                z1, z2 = torch.rand(BATCH, 100) * 2 - 1, torch.rand(BATCH, 100) * 2 - 1
                g_state, d_state, *_ = compiled(g_state, d_state, t, index, z1, z2)
        return 300

    return work


def matmuls(shapes: list[tuple[int, int, int]], repeats: int) -> Work:
    """Each product ``repeats`` times in a compiled loop whose rounds depend on each other."""
    import jax
    import jax.numpy as jnp

    def one(m, k, n):
        b = jnp.full((k, n), 1e-3)

        def body(_, a):
            c = a @ b
            return a.at[0, 0].add(c[0, 0] * 1e-9)

        return jax.jit(lambda a: jax.lax.fori_loop(0, repeats, body, a)), jnp.ones((m, k))

    programs = [one(*shape) for shape in shapes]

    def work():
        for program, a in programs:
            program(a).block_until_ready()
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
    SHAPES: lambda: matmuls(gemms(), 300),
    MATMUL: lambda: matmuls([(SQUARE, SQUARE, SQUARE)], 10),
}


# --- The two ends of the pipe -------------------------------------------------------------------------------------


def serve(name: str) -> None:
    """A peer: does one round for every line it reads and answers with ``[steps, CPU seconds, wall seconds]``."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    peer = PEERS[name]()
    if callable(peer):
        peer()

        def answers():
            while True:
                cpu, wall = time.process_time(), time.perf_counter()
                steps = peer()
                yield steps, time.process_time() - cpu, time.perf_counter() - wall

        rounds = answers()
    else:
        rounds = peer
    for _ in sys.stdin:
        out.write(json.dumps(next(rounds)) + "\n")
        out.flush()


class Peer:
    """The parent's view of a peer."""

    def __init__(self, name: str, cores: list[int]):
        threads = str(len(cores))
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "JAX_PLATFORMS": "cpu",
        }
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.mlp_gan", f"--peer={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.name = name
        self.rounds: list[tuple[int, float, float]] = []

    def ask(self) -> tuple[int, float, float] | None:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            return tuple(json.loads(self.process.stdout.readline()))
        except (BrokenPipeError, ValueError):
            self.log.seek(0)
            print(
                f"{self.name} failed: {self.log.read().strip().splitlines()[-1:]}", file=sys.stderr
            )
            return None


def measure(rounds: int, cores: list[int]) -> dict[str, list[tuple[int, float, float]]]:
    """All peers' rounds; a peer that cannot run is left out."""
    names = [n for n in PEERS if not n.startswith("torch") or importlib.util.find_spec("torch")]
    # One at a time: the first round of each is its compilation and warm-up, and is not counted.
    peers = [peer for peer in (Peer(name, cores) for name in names) if peer.ask()]
    for i in range(rounds):
        print(f"round {i + 1}/{rounds}", file=sys.stderr)
        for peer in peers:
            if answer := peer.ask():
                peer.rounds.append(answer)
    for peer in peers:
        peer.process.kill()
    return {peer.name: peer.rounds for peer in peers if len(peer.rounds) == rounds}


def summarise(results: dict[str, list[tuple[int, float, float]]], cores: int) -> dict:
    """Medians, and ratios of the full loop to each row within a round."""
    cpu = {name: [steps / c for steps, c, _ in rounds] for name, rounds in results.items()}
    compiled = [cpu[name] for name in (COMPILED, COMPILED_STEP) if name in cpu]
    if compiled:
        cpu["best torch.compile"] = max(compiled, key=statistics.median)
    rows = {}
    for name, rates in cpu.items():
        wall = [s / w for s, _, w in results[name]] if name in results else None
        rows[name] = {
            "steps_per_cpu_s": statistics.median(rates),
            "steps_per_wall_s": statistics.median(wall) if wall else None,
            "full_loop_ratio": statistics.median(
                a / b for a, b in zip(cpu[FULL], rates, strict=True)
            ),
        }
    # The limit is what the same cores do in a given time, so it is compared in wall time.
    peak = statistics.median(s * 2 * SQUARE**3 / w for s, _, w in results[MATMUL])
    shapes = statistics.median(s * FLOPS / w for s, _, w in results[SHAPES])
    achieved = statistics.median(s * FLOPS / w for s, _, w in results[FULL])
    return {
        "cores": cores,
        "rows": rows,
        "matmul_gflops": peak / 1e9,
        "step_shapes_gflops": shapes / 1e9,
        "full_loop_gflops": achieved / 1e9,
        "fraction_of_matmul_rate": achieved / peak,
    }


def show(summary: dict, versions: dict) -> None:
    print(f"\n{platform.processor() or platform.machine()}, {summary['cores']} core(s); {versions}")
    print(f"{'':28}{'steps/cpu-s':>12}{'steps/s':>10}{'full loop is':>14}")
    for name, row in summary["rows"].items():
        if name not in (MATMUL, SHAPES):
            wall = f"{row['steps_per_wall_s']:.0f}" if row["steps_per_wall_s"] else ""
            print(
                f"{name:28}{row['steps_per_cpu_s']:12.0f}{wall:>10}{row['full_loop_ratio']:13.2f}x"
            )
    print(
        f"full loop {summary['full_loop_gflops']:.0f} GFLOP/s = {summary['fraction_of_matmul_rate']:.0%} of"
        f" a {SQUARE}^2 matmul ({summary['matmul_gflops']:.0f}); the step's own shapes alone run at"
        f" {summary['step_shapes_gflops']:.0f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=1, help="cores each peer is pinned to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write everything measured to this file")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        serve(arguments.peer)
        return 0
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= arguments.cores <= len(available):
        parser.error(f"--cores={arguments.cores}: must be between 1 and {len(available)}")
    from importlib import metadata

    versions = {
        name: metadata.version(name)
        for name in ("jax", "flax", "torch")
        if importlib.util.find_spec(name)
    }
    if "torch" not in versions:
        print("PyTorch is not installed (requirements-bench.txt): its rows are left out")
    results = measure(arguments.rounds, available[: arguments.cores])
    summary = summarise(results, arguments.cores)
    show(summary, versions)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(summary | {"versions": versions, "rounds": results}, file, indent=1)
    missed = [
        f"{name}: {summary['rows'][name]['full_loop_ratio']:.2f}x, target {target}x"
        for name, target in TARGETS.items()
        if name in summary["rows"] and summary["rows"][name]["full_loop_ratio"] < target
    ]
    print("\n".join(f"missed: {line}" for line in missed) or "all targets reached")
    return int(bool(missed) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
