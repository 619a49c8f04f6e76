"""How fast convolutional GANs train: bpgan's compiled step against PyTorch, eager and compiled.

    python -m benchmarks.conv_gan [--net=dcgan|sngan] [--cores=1] [--rounds=5] [--json=FILE] [--check]

``dcgan``: z ~ N(0, I) of 100, G dense to 7x7x128, two transposed convolutions (128, 1) with batch norm between, tanh;
D convolutions of 64 and 128 channels, dense; leaky ReLU, non-saturating loss, Adam (2e-4, beta1 0.5), batch 128, 28
pixels. A step is one update of D and one of G, each with latents of its own.

``sngan``: the 32-pixel ResNets of Miyato et al. 2018 (256 channels in G, 128 with spectral norm in D), hinge loss, Adam
(2e-4, beta1 0), batch 16. A step is five updates of D and one of G.

Everyone computes the same in float32, from images in memory; PyTorch's are channels-last. Peers are processes on the
same cores, asked in turn; ratios are of steps per CPU-second within a round, their medians reported.
"""

import functools
import json
import statistics
import sys

from benchmarks.peers import Work, cores_of, flags, machine, measure, serve

OURS, EAGER, COMPILED = "bpgan", "torch, eager, channels-last", "torch.compile, channels-last"
TARGETS = {("dcgan", EAGER): 1.0, ("dcgan", COMPILED): 1.0, ("sngan", EAGER): 1.0}
"""What bpgan must reach on one core, as a multiple of the peer's steps per CPU-second."""
BATCH = {"dcgan": 128, "sngan": 16}
STEPS = {"dcgan": 12, "sngan": 1}
"""Steps of a round: a few seconds."""
D_STEPS = {"dcgan": 1, "sngan": 5}
SHAPE = {"dcgan": (28, 28, 1), "sngan": (32, 32, 3)}


def images(net: str):
    """Random images: no peer's speed depends on what they show."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (2048, *SHAPE[net]), np.uint8)


def bpgan_step(net: str) -> Work:
    import numpy as np
    import optax

    from bpgan import data
    from bpgan.algorithms import gan
    from bpgan.losses import LOSSES
    from bpgan.nets import dcgan, linen_net, resnet
    from bpgan.runtime import distributed
    from bpgan.runtime.program import compile_program

    distributed.setup()
    if net == "dcgan":
        g, d = dcgan.Generator(SHAPE[net], (128, 128)), dcgan.Discriminator((64, 128))
        loss, latents, adam = "nonsaturating", 100, optax.adam(2e-4, b1=0.5)
    else:
        g, d = resnet.Generator(SHAPE[net]), resnet.Discriminator()
        loss, latents, adam = "hinge", 128, optax.adam(2e-4, b1=0.0, b2=0.9)
    algorithm = gan.make(
        gan.Networks(linen_net(g), linen_net(d), gan.normal_latents(latents), SHAPE[net]),
        LOSSES[loss],
        gan.Optimizers(adam, adam),
        d_steps=D_STEPS[net],
    )
    x = images(net)
    source = data.in_memory(
        x, np.zeros(len(x), np.int32), seed=0, batch_size=BATCH[net] * D_STEPS[net]
    )
    program = compile_program(algorithm, source, seed=0)
    carry = program.init()

    def work():
        nonlocal carry
        carry, finite = program.run(carry, STEPS[net])
        assert bool(finite)
        return STEPS[net]

    return work


def torch_dcgan():
    from torch import nn

    class Reshape(nn.Module):
        def forward(self, x):
            return x.view(-1, 128, 7, 7)

    slope = functools.partial(nn.LeakyReLU, 0.2)
    g = nn.Sequential(
        nn.Linear(100, 7 * 7 * 128), Reshape(), nn.BatchNorm2d(128), slope(),
        nn.ConvTranspose2d(128, 128, 4, 2, 1), nn.BatchNorm2d(128), slope(),
        nn.ConvTranspose2d(128, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    d = nn.Sequential(
        nn.Conv2d(1, 64, 4, 2, 1), slope(), nn.Conv2d(64, 128, 4, 2, 1), slope(),
        nn.Flatten(), nn.Linear(7 * 7 * 128, 1),
    )  # fmt: skip
    return g, d


def torch_sngan():
    from torch import nn
    from torch.nn.functional import avg_pool2d, interpolate, relu
    from torch.nn.utils import spectral_norm

    def up(x):
        return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.n1, self.n2 = nn.BatchNorm2d(256), nn.BatchNorm2d(256)
            self.c1, self.c2 = (nn.Conv2d(256, 256, 3, 1, 1) for _ in range(2))
            self.shortcut = nn.Conv2d(256, 256, 1)

        def forward(self, x):
            h = self.c1(up(relu(self.n1(x))))
            return self.c2(relu(self.n2(h))) + up(self.shortcut(x))

    class Down(nn.Module):
        def __init__(self, inputs, down, first):
            super().__init__()
            self.down, self.first = down, first
            hidden = 128 if first else inputs
            self.c1 = spectral_norm(nn.Conv2d(inputs, hidden, 3, 1, 1))
            self.c2 = spectral_norm(nn.Conv2d(hidden, 128, 3, 1, 1))
            self.shortcut = spectral_norm(nn.Conv2d(inputs, 128, 1)) if down else nn.Identity()

        def forward(self, x):
            h = self.c2(relu(self.c1(x if self.first else relu(x))))
            if self.down:
                h, x = avg_pool2d(h, 2), avg_pool2d(x, 2)
            return h + self.shortcut(x)

    class G(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(128, 4 * 4 * 256)
            self.blocks = nn.Sequential(Up(), Up(), Up())
            self.last = nn.Sequential(
                nn.BatchNorm2d(256), nn.ReLU(), nn.Conv2d(256, 3, 3, 1, 1), nn.Tanh()
            )

        def forward(self, z):
            return self.last(self.blocks(self.dense(z).view(-1, 256, 4, 4)))

    class D(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(
                Down(3, True, True),
                Down(128, True, False),
                Down(128, False, False),
                Down(128, False, False),
            )
            self.dense = spectral_norm(nn.Linear(128, 1))

        def forward(self, x):
            return self.dense(relu(self.blocks(x)).sum((2, 3)))

    return G(), D()


def torch_step(net: str, compiled: bool) -> Work:
    import torch
    from torch.nn.functional import relu, softplus

    g, d = torch_dcgan() if net == "dcgan" else torch_sngan()
    channels_last = torch.channels_last
    g, d = g.to(memory_format=channels_last), d.to(memory_format=channels_last)
    x = torch.from_numpy(images(net)).permute(0, 3, 1, 2).contiguous(memory_format=channels_last)
    betas, latents = ((0.5, 0.999), 100) if net == "dcgan" else ((0.0, 0.9), 128)
    adam = functools.partial(torch.optim.Adam, lr=2e-4, betas=betas, fused=not compiled)
    g_adam, d_adam = adam(g.parameters()), adam(d.parameters())
    batch = BATCH[net]

    def d_loss(real, z):
        with torch.no_grad():
            fake = g(z)
        if net == "dcgan":
            return (softplus(-d(real)) + softplus(d(fake))).mean()
        return (relu(1 - d(real)) + relu(1 + d(fake))).mean()

    def g_loss(z):
        logits = d(g(z))
        return softplus(-logits).mean() if net == "dcgan" else -logits.mean()

    d_move, g_move = d_adam.step, g_adam.step
    if compiled:
        d_loss, g_loss, d_move, g_move = map(torch.compile, (d_loss, g_loss, d_move, g_move))

    def work():
        for _ in range(STEPS[net]):
            for _ in range(D_STEPS[net]):
                real = x[torch.randint(0, len(x), (batch,))].float() / 127.5 - 1
                d_adam.zero_grad()
                d_loss(real, torch.randn(batch, latents)).backward()
                d_move()
            d.requires_grad_(False)
            g_adam.zero_grad()
            g_loss(torch.randn(batch, latents)).backward()
            g_move()
            d.requires_grad_(True)
        return STEPS[net]

    return work


def peers(net: str):
    return {
        OURS: lambda: bpgan_step(net),
        EAGER: lambda: torch_step(net, False),
        COMPILED: lambda: torch_step(net, True),
    }


def main() -> int:
    parser = flags(__doc__ or "", rounds=5)
    parser.add_argument("--net", choices=tuple(BATCH), default="dcgan")
    arguments = parser.parse_args()
    net = arguments.net
    if arguments.peer:
        net, _, name = arguments.peer.partition("/")
        serve(peers(net), name)
        return 0
    cores, about = cores_of(parser, arguments), machine()
    results = measure("benchmarks.conv_gan", peers(net), arguments.rounds, cores, prefix=f"{net}/")
    if OURS not in results:
        sys.exit(f"error: nothing to compare: {OURS} did not run")
    rates = {name: [s / c for s, c, _ in rounds] for name, rounds in results.items()}
    walls = {name: [s / w for s, _, w in rounds] for name, rounds in results.items()}
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    print(
        f"{net}, batch {BATCH[net]}, {arguments.cores} core(s), medians of {arguments.rounds} rounds\n"
    )
    print(f"{'':30}{'steps/cpu-s':>12}{'steps/s':>9}{'bpgan is':>10}{'by the clock':>14}")
    rows, missed = {}, False
    for name in results:
        row = rows[name] = {
            "steps_per_cpu_s": statistics.median(rates[name]),
            "steps_per_wall_s": statistics.median(walls[name]),
            "ratio": statistics.median(
                a / b for a, b in zip(rates[OURS], rates[name], strict=True)
            ),
            "wall_ratio": statistics.median(
                a / b for a, b in zip(walls[OURS], walls[name], strict=True)
            ),
        }
        print(
            f"{name:30}{row['steps_per_cpu_s']:12.3f}{row['steps_per_wall_s']:9.3f}"
            f"{row['ratio']:9.2f}x{row['wall_ratio']:13.2f}x"
        )
    for (of, name), target in TARGETS.items() if arguments.cores == 1 else ():
        if of != net:
            continue
        if name not in rows:
            print(f"not measured: {target:.2f}x {name}")
            continue
        reached = rows[name]["ratio"] >= target
        missed |= not reached
        print(f"{'reached' if reached else 'MISSED'}: {target:.2f}x {name}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {"net": net, "rows": rows, "machine": about, "answers": results}, file, indent=1
            )
    return int(missed and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
