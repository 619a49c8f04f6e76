"""What privacy costs: an update of D with the gradient of every record clipped, against the plain one.

    python -m benchmarks.private [--net=mlp|dcgan] [--cores=1] [--rounds=5] [--json=FILE] [--check]

``mlp``: the article's GAN (``mlp_gan``). ``dcgan``: the convolutional one of ``conv_gan``, whose D has no batch norm.
An update draws latents, generates fakes, takes the gradient of D's loss and moves D by Adam, on batches of 128 random
images. A record is a real image with the fake that it is paired with; gradients are clipped to norm 1. Every form of
``bpgan.privacy.clipping`` is a row, and so is the noise that a private update adds, sigma = 1.

Opacus is the peer for privacy in PyTorch, where it is installed (requirements-bench.txt): gradients of all records by
its hooks, clipped flat, with and without noise.

Peers are processes on the same cores, asked in turn; ratios are of updates per CPU-second within a round, their medians
reported.
"""

import functools
import json
import statistics
import sys

from benchmarks.peers import Work, cores_of, flags, machine, measure, serve

PLAIN, TORCH, OPACUS = "bpgan, plain", "torch, plain", "torch, Opacus"
FORMS = ("auto", "ghost", "microbatch=16", "vmap")
NOISE = ", with noise"
TARGETS = {"mlp": 1.15, "dcgan": 1.3}
"""What the time of a private update without its noise may be at most, as a multiple of the plain one's, on one core."""
BATCH, CLIP = 128, 1.0
UPDATES = {"mlp": (300, 10), "dcgan": (4, 2)}
"""Updates of a round, and of one of those that write the gradients of all records: up to a second."""


def images():
    """Random images: no peer's speed depends on what they show."""
    import numpy as np

    return np.random.default_rng(0).normal(size=(8 * BATCH, 28, 28, 1)).astype(np.float32)


def bpgan_game(net: str):
    """The networks, the loss and both optimizers, and D's turn."""
    import optax

    from bpgan.algorithms import gan
    from bpgan.losses import LOSSES
    from bpgan.nets import dcgan, linen_net, mlp

    shape = (28, 28, 1)
    if net == "mlp":
        g, d, latents = mlp.Generator(shape), mlp.Discriminator(), gan.uniform_latents(100)
    else:
        g, d = dcgan.Generator(shape, (128, 128)), dcgan.Discriminator((64, 128))
        latents = gan.normal_latents(100)
    networks = gan.Networks(linen_net(g), linen_net(d), latents, shape)
    adam = optax.adam(2e-4, b1=0.5)
    setting = gan.Setting(networks, LOSSES["nonsaturating"])
    return setting, adam, gan.alternate(setting, gan.Optimizers(adam, adam))[0]


def bpgan_players(setting, adam, key, x):
    from bpgan.algorithms import turns

    networks = setting.networks
    for name, net, shown in (("g", networks.g, networks.latents(key, 2)), ("d", networks.d, x[:2])):
        variables = dict(net.init(key, shown))
        params = variables.pop("params")
        yield name, turns.Player(params, variables, adam.init(params))


def bpgan_update(net: str, form: str | None, noise: bool = False) -> Work:
    import jax
    import jax.numpy as jnp
    from jax import lax

    from bpgan import threefry
    from bpgan.algorithms import turns
    from bpgan.privacy import mechanism
    from bpgan.runtime import compiler, distributed, products

    distributed.setup()
    updates = UPDATES[net][form == "vmap"]
    setting, adam, turn = bpgan_game(net)
    key, x = jax.random.key(0), jnp.asarray(images())
    players = dict(bpgan_players(setting, adam, key, x))
    key = threefry.unroll(key)  # as in a run
    if form:
        private = mechanism.gaussian(CLIP, float(noise), BATCH, key, form)
        turn = turn._replace(gradient=private)
    rows = {"mask": jnp.ones(BATCH, bool)} if form else {}

    def one(player, x, i):
        batch = {"x": lax.dynamic_slice_in_dim(x, i % 8 * BATCH, BATCH), **rows}
        own = jax.random.fold_in(key, i)
        now = turns.Now({**players, "d": player}, batch, own, i, i, {}, turns.TOGETHER)
        player, _, metrics = turns.update(turn, now)
        return player, metrics["grad_norm"]

    # compiled as a run is
    arranged = products.arranged(jax.jit(one).trace(players["d"], x, jnp.int32(0)))
    body, options = (
        arranged or one,
        compiler.options(jax.default_backend(), matrices=bool(arranged)),
    )

    @functools.partial(jax.jit, compiler_options=options)
    def run(player, x):
        return lax.scan(lambda player, i: body(player, x, i), player, jnp.arange(updates))

    player = players["d"]

    def work():
        nonlocal player
        player, norms = run(player, x)
        assert bool(jnp.all(jnp.isfinite(norms)))
        return updates

    return work


def torch_update(net: str, private: bool, noise: bool = False) -> Work:
    import torch
    from torch import nn
    from torch.nn.functional import softplus

    from benchmarks.conv_gan import torch_dcgan

    updates = UPDATES[net][private]
    if net == "mlp":
        g = nn.Sequential(nn.Linear(100, 128), nn.LeakyReLU(0.2), nn.Linear(128, 784), nn.Tanh())
        d = nn.Sequential(
            nn.Linear(784, 128), nn.LeakyReLU(0.2), nn.Linear(128, 64), nn.LeakyReLU(0.2),
            nn.Linear(64, 1),
        )  # fmt: skip
        x = torch.from_numpy(images()).reshape(-1, 784)
    else:
        g, d = torch_dcgan()
        x = torch.from_numpy(images()).permute(0, 3, 1, 2).contiguous()
    adam = torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    if private:
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        d = GradSampleModule(d)
        adam = DPOptimizer(
            adam, noise_multiplier=float(noise), max_grad_norm=CLIP, expected_batch_size=BATCH
        )

    def work():
        for i in range(updates):
            real = x[i % 8 * BATCH :][:BATCH]
            with torch.no_grad():
                fake = g(torch.randn(BATCH, 100))
            adam.zero_grad()
            (softplus(-d(real)) + softplus(d(fake))).mean().backward()
            adam.step()
        return updates

    return work


def peers(net: str):
    found = {PLAIN: lambda: bpgan_update(net, None)}
    for form in FORMS:
        found[f"bpgan, {form}"] = lambda form=form: bpgan_update(net, form)
    found[f"bpgan, auto{NOISE}"] = lambda: bpgan_update(net, "auto", True)
    found[TORCH] = lambda: torch_update(net, False)
    found[OPACUS] = lambda: torch_update(net, True)
    found[OPACUS + NOISE] = lambda: torch_update(net, True, True)
    return found


def main() -> int:
    parser = flags(__doc__ or "", rounds=5)
    parser.add_argument("--net", choices=tuple(TARGETS), default="mlp")
    parser.add_argument("--only", nargs="+", help="rows to measure, beside the plain ones")
    arguments = parser.parse_args()
    net = arguments.net
    if arguments.peer:
        net, _, name = arguments.peer.partition("/")
        serve(peers(net), name)
        return 0
    cores, about = cores_of(parser, arguments), machine()
    names = [n for n in peers(net) if not arguments.only or n in (PLAIN, TORCH, *arguments.only)]
    results = measure("benchmarks.private", names, arguments.rounds, cores, prefix=f"{net}/")
    if PLAIN not in results:
        sys.exit(f"error: nothing to compare: {PLAIN} did not run")
    rates = {name: [s / c for s, c, _ in rounds] for name, rounds in results.items()}

    def times(name: str, plain: str) -> float | None:
        """The time of an update as a multiple of the plain one's."""
        if plain not in rates:
            return None
        return statistics.median(b / a for a, b in zip(rates[name], rates[plain], strict=True))

    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    print(
        f"{net}, batch {BATCH}, {arguments.cores} core(s), medians of {arguments.rounds} rounds\n"
    )
    print(f"{'':30}{'updates/cpu-s':>14}{'x bpgan, plain':>16}{'x torch, plain':>16}")
    rows = {}
    for name in results:
        row = rows[name] = {
            "updates_per_cpu_s": statistics.median(rates[name]),
            "times_plain": times(name, PLAIN),
            "times_torch": times(name, TORCH),
        }
        shown = (f"{row[k]:.2f}" if row[k] else "" for k in ("times_plain", "times_torch"))
        print(f"{name:30}{row['updates_per_cpu_s']:14.2f}" + "".join(f"{x:>16}" for x in shown))
    missed = False
    if arguments.cores == 1 and "bpgan, auto" in rows:
        reached = rows["bpgan, auto"]["times_plain"] <= TARGETS[net]
        missed = not reached
        print(
            f"{'reached' if reached else 'MISSED'}: at most {TARGETS[net]} times the plain update"
        )
    if arguments.json:
        record = {"net": net, "rows": rows, "machine": about, "answers": results}
        with open(arguments.json, "w") as file:
            json.dump(record, file, indent=1)
    return int(missed and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
