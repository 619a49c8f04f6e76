"""How fast GANs train on a GPU: bpgan's compiled program against PyTorch, eager, compiled and with CUDA graphs.

    python -m benchmarks.gpu --net=mlp|sngan|r3gan [--precision=float32|tf32|bfloat16] [--batch=N] [--rounds=5]
        [--article] [--profile=DIR] [--json=FILE] [--check] [--device=cuda|cpu]

``mlp``: the article's GAN (``mnist_gan --preset=article``), batch 128. A step is one update of D and one of G.

``sngan``: ``image_gan --preset=sngan-32`` as it is: hinge loss, Adam (2e-4 to 0, beta1 0), batch 64. A step is five
updates of D and one of G.

``r3gan``: networks and losses of ``image_gan --preset=r3-32``: ten classes, relativistic loss, R1 and R2 in every
update of D; batch 256, the preset's being 512. Augmentation, flips, schedules and the average of G are left out. A step
is one update of D and one of G.

Everyone computes the same from images that lie on the device: parameter counts are compared before anything is timed.
``float32`` allows no TF32 on either side, ``tf32`` allows it in every product, ``bfloat16`` computes in bfloat16 with
float32 parameters, logits and penalties; what stays float32 then may use TF32. Compiled PyTorch is channels-last too.
``torch.compile`` makes one program of a whole step, Adam included, for ``mlp`` and ``r3gan``, whose networks have no
state and can be differentiated as functions; for ``sngan`` one of each loss, beside the fused Adam of the eager peers.

Peers are processes on the same device and cores, asked in turn for two seconds of work each, until the device is done
with it; ratios are taken within a round, their medians reported. The table's columns: images are real ones that D is
shown; model FLOP utilization (MFU) is what a step needs in matrix products and convolutions, over what the card's data
sheet promises for the precision. Those FLOPs are counted in the traced step of bpgan: two for each multiplication, each
distinct product once, none that nobody uses.
"""

import importlib.util
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.peers import Answer, cores_of, flags, machine, measure, serve

OURS, LOOSE = "bpgan", "bpgan, --deterministic=false"
EAGER, LAST = "torch, eager", "torch, eager, channels-last"
COMPILED, GRAPHS = "torch.compile", "torch.compile, CUDA graphs"
COUNT, PROFILE = "count", "profile"
TARGETS = {"sngan": 1.3, "r3gan": 1.3}
"""What bpgan must reach on a GPU, as a multiple of the best PyTorch form's steps per second."""
ARTICLE_STEPS, ARTICLE_SECONDS = 469_000, 20.0
"""The article's 1000 epochs, and in how many seconds the ``mlp`` is to train for as long."""
SECONDS = 2.0
"""Of work in a round."""
PRECISIONS = ("float32", "tf32", "bfloat16")
PEAKS = {
    "NVIDIA H100 80GB HBM3": (66.9, 494.7, 989.4),
    "NVIDIA H200": (66.9, 494.7, 989.4),
    "NVIDIA A100-SXM4-40GB": (19.5, 156.0, 312.0),
    "NVIDIA A100-SXM4-80GB": (19.5, 156.0, 312.0),
    "NVIDIA A100-PCIE-40GB": (19.5, 156.0, 312.0),
    "NVIDIA A100 80GB PCIe": (19.5, 156.0, 312.0),
    "NVIDIA L4": (30.3, 60.0, 121.0),
}
"""Dense TFLOP/s of a card, by the name that ``nvidia-smi`` gives it, in each of ``PRECISIONS``."""
# NVIDIA's data sheets "H100 Tensor Core GPU" (column SXM), "H200 Tensor Core GPU" (column SXM), "A100 Tensor Core GPU"
# and "L4 Tensor Core GPU". Those of Hopper and of L4 print twice these for TF32 and BF16: with sparsity.


class Kind(NamedTuple):
    """What all peers of a network have in common, beside the loss.

    Attributes:
      shape: of an image; classes: of the labels.
      uniform: whether z is ``U(-1, 1)`` rather than ``N(0, I)``; latents: its dimension.
      batch: images of an update, unless ``--batch`` says otherwise.
      d_steps: updates of D in a step.
      betas: of Adam.
      decay: steps over which its step size falls to 0; 0: it does not.
    """

    shape: tuple[int, int, int]
    classes: int
    uniform: bool
    latents: int
    batch: int
    d_steps: int
    betas: tuple[float, float]
    decay: int = 0


KINDS = {
    "mlp": Kind((28, 28, 1), 0, True, 100, 128, 1, (0.5, 0.999)),
    "sngan": Kind((32, 32, 3), 0, False, 128, 64, 5, (0.0, 0.9), 100_000),
    "r3gan": Kind((32, 32, 3), 10, False, 64, 256, 1, (0.0, 0.9)),
}
LR, GAMMA = 2e-4, 0.05  # of Adam in all three, and of R1 and R2


class Settings(NamedTuple):
    """What is measured. ``show`` and ``read`` are the way to a peer."""

    net: str
    precision: str
    batch: int
    device: str

    @property
    def kind(self) -> Kind:
        return KINDS[self.net]

    def show(self) -> str:
        return "/".join(map(str, self)) + "/"

    @staticmethod
    def read(peer: str) -> tuple["Settings", str]:
        net, precision, batch, device, name = peer.split("/")
        return Settings(net, precision, int(batch), device), name


def noise(shape: tuple[int, int, int]):
    """Random images and labels: no peer's speed depends on what they show."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2048, *shape), np.uint8)
    return x, rng.integers(0, 10, len(x)).astype(np.int32)


def examples(settings: Settings):
    """Images and labels: the embedded digits, or random ones."""
    from bpgan import data

    if settings.net == "mlp":
        return data.load("mnist10k").arrays()
    return noise(settings.kind.shape)


# --- bpgan --------------------------------------------------------------------------------------------------------


def build(name: str, argv: list[str], shape: tuple[int, int, int] | None):
    """The experiment of a command line, on random images of a shape where one is given; nothing is read or fetched."""
    import importlib

    from bpgan import cli, data

    module = importlib.import_module(f"experiments.{name}")
    if shape is not None:
        images = data.of_arrays("benchmark", "train", *noise(shape), 10)
        data.load_for_training = lambda *_: (images, None)
    return module.build(cli.resolve(module.Config, module.PRESETS, argv))


def experiment(settings: Settings):
    """The presets themselves, as far as this module's docstring goes."""
    from experiments import mnist_gan

    article = mnist_gan.PRESETS["article"]
    argv = {
        "mlp": [  # image_gan has the same networks and knows bfloat16
            *(f"--{name}={article[name]}" for name in ("net", "latents", "loss", "penalty", "ema")),
            f"--lr={article['g_lr']}/{article['d_lr']}",
            f"--betas={article['b1']},{article['b2']}",
        ],
        "sngan": ["--preset=sngan-32"],
        "r3gan": [
            "--preset=r3-32", "--augment=none", "--flip=false", "--ema=0",
            f"--lr={LR}", "--betas=0,0.9", f"--penalty=r1={GAMMA}+r2={GAMMA}",
        ],
    }[settings.net]  # fmt: skip
    narrow = settings.precision == "bfloat16"
    argv += [f"--batch_size={settings.batch}", f"--precision={'bfloat16' if narrow else 'float32'}"]
    return build("image_gan", argv, None if settings.net == "mlp" else settings.kind.shape)


def shapes(settings: Settings) -> tuple[Any, ...]:
    """The algorithm's step, and the shapes of what it takes."""
    import jax

    built = experiment(settings)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.eval_shape(built.source.batch_at, built.source.data, 0)
    return built.algorithm.step, jax.eval_shape(built.algorithm.init, key), batch, key


def compiled(make: Callable[[], Any], precision: str | None = None, deterministic: bool = True):
    """The program of the experiment that ``make`` returns, on one device."""
    import jax

    from bpgan.runtime import distributed
    from bpgan.runtime.program import compile_program

    distributed.setup(deterministic=deterministic)
    if precision is not None:
        # In bfloat16 the default is left alone, which on a GPU is TF32 for what remains float32.
        level = {"float32": "highest", "tf32": "tensorfloat32"}.get(precision)
        jax.config.update("jax_default_matmul_precision", level)
    built = make()
    return compile_program(built.algorithm, built.source, seed=0, devices=1)


def bpgan_run(settings: Settings, deterministic: bool = True) -> Callable[[int], None]:
    """So many steps, in one call."""
    program = compiled(lambda: experiment(settings), settings.precision, deterministic)
    carry = program.init()

    def run(steps: int) -> None:
        nonlocal carry
        carry, finite = program.run(carry, steps)
        assert bool(finite)  # waits for the device

    return run


# --- FLOPs --------------------------------------------------------------------------------------------------------


def products(eqn: Any) -> int:
    """FLOPs of an equation that is a matrix product or a convolution; padded zeros count."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        raise NotImplementedError("a convolution that is not one of bpgan.nets.conv")
    if name.startswith("bpgan_"):  # of images, kernel and responses one is the result
        a, b = (v.aval for v in eqn.invars)
        if name.endswith("weight_grad"):
            return 2 * b.size * math.prod(out.shape[:3])
        responses = a if name.endswith("input_grad") else out
        return 2 * responses.size * math.prod(b.shape[:3])
    return 0


def flops(closed: Any) -> int:
    """FLOPs of a closed jaxpr's products, each distinct one once."""
    from jax.extend.core import Literal

    numbers: dict[Any, int] = {}  # of what is computed, by how and from what
    total = 0

    def number(*key: Any) -> int:
        return numbers.setdefault(key, len(numbers))

    def walk(jaxpr: Any, arguments: list[int]) -> list[int]:
        nonlocal total
        names = dict(zip([*jaxpr.constvars, *jaxpr.invars], arguments, strict=True))

        def read(v: Any) -> int:
            return number("literal", str(v), str(v.aval)) if isinstance(v, Literal) else names[v]

        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
            scan = eqn.primitive.name == "scan"
            if inner is not None and not scan:
                consts = [number("constant", id(c)) for c in getattr(inner, "consts", ())]
                outputs = walk(getattr(inner, "jaxpr", inner), [*consts, *inputs])
            else:
                key = (eqn.primitive.name, str(eqn.params), *inputs)
                if key not in numbers:
                    total += eqn.params["length"] * flops(inner) if scan else products(eqn)
                outputs = [number(number(*key), i) for i in range(len(eqn.outvars))]
            names |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    count = len(closed.jaxpr.constvars) + len(closed.jaxpr.invars)
    walk(closed.jaxpr, [number("argument", i) for i in range(count)])
    return total


def step_flops(settings: Settings) -> int:
    """What a step needs for the state after it; not for its metrics."""
    import jax
    from jax.interpreters import partial_eval

    step, *arguments = shapes(settings)
    closed = jax.make_jaxpr(lambda *args: step(*args)[0])(*arguments)
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), True)
    return flops(closed.replace(jaxpr=used))


# --- PyTorch ------------------------------------------------------------------------------------------------------


def torch_r3gan(fused: bool):
    """G and D. ``fused``: resampling as elementwise arithmetic, which a compiler fuses; else as convolutions."""
    import torch
    from torch import nn
    from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu, pad

    widths = (256, 256, 192, 128)

    class Resample(nn.Module):
        """The filter [1, 2, 1] on the way to twice or half the size, zero outside."""

        def __init__(self, channels, up):
            super().__init__()
            self.up, line = up, torch.tensor([1.0, 2.0, 1.0])
            kernel = torch.outer(line, line) / (4 if up else 16)
            self.register_buffer("kernel", kernel.repeat(channels, 1, 1, 1))

        def forward(self, x):
            if fused:
                return self.line(self.line(x, 2, (0, 0, 1, -1)), 3, (1, -1, 0, 0))
            if self.up:
                return conv_transpose2d(x, self.kernel, None, 2, groups=len(self.kernel))[
                    :, :, :-1, :-1
                ]
            return conv2d(x, self.kernel, None, 2, 1, groups=len(self.kernel))

        def line(self, x, axis, shift):
            if self.up:
                return torch.stack([0.5 * pad(x, shift) + 0.5 * x, x], axis + 1).flatten(
                    axis, axis + 1
                )
            even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
            return 0.25 * pad(odd, shift) + 0.5 * even + 0.25 * odd

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.c1 = nn.Conv2d(width, 2 * width, 1)
            self.c2 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, groups=width // 8)
            self.c3 = nn.Conv2d(2 * width, width, 1, bias=False)
            nn.init.zeros_(self.c3.weight)

        def forward(self, x):
            return x + self.c3(leaky_relu(self.c2(leaky_relu(self.c1(x), 0.2)), 0.2))

    def stages(widths, up):
        modules = [Block(widths[0]), Block(widths[0])]
        for before, width in zip(widths, widths[1:], strict=False):
            change = [nn.Conv2d(before, width, 1, bias=False)] if width != before else []
            resample = [Resample(width if up else before, up)]
            modules += [*(change + resample if up else resample + change)]
            modules += [Block(width), Block(width)]
        return nn.Sequential(*modules)

    class G(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 64)
            self.basis = nn.Parameter(torch.randn(256, 4, 4))
            self.dense = nn.Linear(128, 256, bias=False)
            self.stages = stages(widths, True)
            self.last = nn.Conv2d(128, 3, 1, bias=False)

        def forward(self, z, labels):
            scale = self.dense(torch.cat([z, self.embed(labels)], 1))
            return torch.tanh(self.last(self.stages(self.basis * scale[:, :, None, None])))

    class D(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 128, 1, bias=False)
            self.stages = stages(widths[::-1], False)
            self.basis = nn.Parameter(torch.randn(256, 4, 4) / 4)
            self.dense = nn.Linear(256, 1)
            self.embed = nn.Embedding(10, 256)

        def forward(self, x, labels):
            features = (self.stages(self.first(x)).float() * self.basis).sum((2, 3))
            return self.dense(features)[:, 0] + (self.embed(labels) * features).sum(1) / 16

    return G(), D()


def torch_players(settings: Settings, fused: bool):
    """G and D, called as ``g(z, labels)`` and ``d(x, labels)``."""
    import torch
    from torch import nn

    from benchmarks.conv_gan import torch_sngan
    from benchmarks.mlp_gan import torch_nets

    if settings.net == "r3gan":
        return torch_r3gan(fused)

    class Unconditional(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x, labels):
            return self.module(x)

    g, d = torch_sngan() if settings.net == "sngan" else torch_nets()
    if settings.precision == "bfloat16":  # spectral norms are computed in float32
        wide = torch.autocast(settings.device, enabled=False)
        for module in d.modules():
            for hook in module._forward_pre_hooks.values():
                hook.compute_weight = wide(hook.compute_weight)
    return Unconditional(g), Unconditional(d)


class Objectives(NamedTuple):
    """What the players minimize. ``d`` and ``g`` are functions, ``critic`` and ``generator`` calls of the networks."""

    generate: Callable
    d: Callable
    g: Callable


def objectives(settings: Settings, functional: bool) -> Objectives:
    """``functional``: derivatives with respect to images are taken by ``torch.func``, not on a tape."""
    import torch
    from torch.nn.functional import relu, softplus

    net, narrow = settings.net, settings.precision == "bfloat16"

    def wide(call, *inputs):
        """float32 of what the call computes in the precision."""
        with torch.autocast(
            settings.device, torch.bfloat16, enabled=narrow, cache_enabled=not functional
        ):
            return call(*inputs).float()

    def with_penalty(critic, x):
        """Logits, and half the squared norm of the gradient."""
        if functional:

            def total(x):
                logits = wide(critic, x)
                return logits.sum(), logits

            slope, (_, logits) = torch.func.grad_and_value(total, has_aux=True)(x)
        else:
            x = x.detach().requires_grad_()
            logits = wide(critic, x)
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return logits, slope.square().sum((1, 2, 3)) / 2

    def d(critic, real, fake):
        if net == "r3gan":
            (real, r1), (fake, r2) = with_penalty(critic, real), with_penalty(critic, fake)
            return softplus(fake - real).mean() + GAMMA * (r1.mean() + r2.mean())
        real, fake = wide(critic, real), wide(critic, fake)
        if net == "sngan":
            return (relu(1 - real) + relu(1 + fake)).mean()
        return (softplus(-real) + softplus(fake)).mean()

    def g(critic, real, fake):
        if net == "r3gan":
            return softplus(wide(critic, real) - wide(critic, fake)).mean()
        fake = wide(critic, fake)
        return softplus(-fake).mean() if net == "mlp" else -fake.mean()

    return Objectives(wide, d, g)


def torch_data(settings: Settings, last: bool):
    """Images on the device. Called, it draws a batch: images, labels and latents."""
    import torch
    from torch import nn

    kind, size = settings.kind, (settings.batch, settings.kind.latents)
    x, y = map(torch.from_numpy, examples(settings))
    x = x.flatten(1) if settings.net == "mlp" else x.permute(0, 3, 1, 2).contiguous()

    class Data(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer(
                "x", x.contiguous(memory_format=torch.channels_last) if last else x
            )
            self.register_buffer("y", y.long())

        def forward(self):
            rows = torch.randint(len(self.x), (settings.batch,), device=self.x.device)
            real = self.x[rows].float() / 127.5 - 1
            if last:
                real = real.contiguous(memory_format=torch.channels_last)
            return real, self.y[rows], self.latents()

        def latents(self):
            draw = torch.rand if kind.uniform else torch.randn
            z = draw(size, device=self.x.device)
            return 2 * z - 1 if kind.uniform else z

    return Data()


def torch_modules(settings: Settings, data, g, d, options: dict | None) -> Callable[[], None]:
    """A step on a tape with fused Adam, the losses compiled with the options, if there are any."""
    import torch

    kind, losses = settings.kind, objectives(settings, False)
    g_adam, d_adam = (
        torch.optim.Adam(player.parameters(), LR, betas=kind.betas, fused=True) for player in (g, d)
    )
    done = {g_adam: 0, d_adam: 0}

    def d_loss(real, labels, z):
        with torch.no_grad():
            fake = losses.generate(g, z, labels)
        return losses.d(lambda x: d(x, labels), real, fake)

    def g_loss(real, labels, z):
        return losses.g(lambda x: d(x, labels), real, losses.generate(g, z, labels))

    if options is not None:
        d_loss, g_loss = (torch.compile(loss, **options) for loss in (d_loss, g_loss))

    def move(adam, updates):
        if kind.decay:
            adam.param_groups[0]["lr"] = LR * (1 - done[adam] / (kind.decay * updates))
        done[adam] += 1
        adam.step()
        adam.zero_grad()  # at once: what a CUDA graph has returned must not outlive its next run

    def step():
        for _ in range(kind.d_steps):
            real, labels, z = data()
            d_loss(real, labels, z).backward()
            move(d_adam, kind.d_steps)
        d.requires_grad_(False)
        g_loss(real, labels, data.latents()).backward()
        move(g_adam, 1)
        d.requires_grad_(True)

    return step


def torch_whole_step(settings: Settings, data, g, d, options: dict) -> Callable[[], None]:
    """A step as one compiled program that changes parameters and moments in place."""
    import torch
    from torch import nn
    from torch.func import functional_call, grad

    kind, losses = settings.kind, objectives(settings, True)
    (b1, b2), device = kind.betas, data.x.device

    class Player(nn.Module):
        """A network and its Adam; a module, because a CUDA graph uses the tensors of modules where they are."""

        def __init__(self, net):
            super().__init__()
            self.net = net.requires_grad_(False)
            self.register_buffer("count", torch.zeros((), device=device))
            for i, p in enumerate(net.parameters()):
                for moment in "mv":
                    self.register_buffer(f"{moment}{i}", torch.zeros_like(p))

        def update(self, objective):
            """Of the call of the network by its parameters."""
            params = dict(self.net.named_parameters())
            grads = list(grad(objective)(params).values())
            params = list(params.values())
            m, v = ([getattr(self, f"{c}{i}") for i in range(len(params))] for c in "mv")
            self.count.add_(1)
            torch._foreach_lerp_(m, grads, 1 - b1)
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, grads, grads, 1 - b2)
            scale = torch._foreach_sqrt(v)
            torch._foreach_div_(scale, (1 - b2**self.count).sqrt())
            torch._foreach_add_(scale, 1e-8)
            torch._foreach_mul_(scale, 1 - b1**self.count)
            torch._foreach_addcdiv_(params, m, scale, -LR)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.g, self.d, self.data = Player(g), Player(d), data

        def forward(self):
            g, d = self.g.net, self.d.net
            real, labels, z = self.data()
            fake = losses.generate(g, z, labels)

            def d_objective(params):
                return losses.d(lambda x: functional_call(d, params, (x, labels)), real, fake)

            self.d.update(d_objective)
            z = self.data.latents()

            def g_objective(params):
                fake = losses.generate(
                    lambda *inputs: functional_call(g, params, inputs), z, labels
                )
                return losses.g(lambda x: d(x, labels), real, fake)

            self.g.update(g_objective)

    compiled = torch.compile(Step(), fullgraph=True, **options)

    def step():
        with torch.no_grad():
            compiled()

    return step


def torch_run(settings: Settings, name: str) -> tuple[Callable[[int], None], Callable[[], None]]:
    """So many steps, and what to do between rounds."""
    import torch

    tf32 = settings.precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    last = settings.net != "mlp" and name != EAGER
    options: dict | None = {"dynamic": False} if name in (COMPILED, GRAPHS) else None
    if name == GRAPHS:
        options = {"dynamic": False, "mode": "reduce-overhead"}
        torch._inductor.config.triton.cudagraph_or_error = True  # it would go on without them
    g, d = (
        player.to(settings.device, memory_format=torch.channels_last if last else None)
        for player in torch_players(settings, fused=options is not None)
    )
    data = torch_data(settings, last).to(settings.device)
    if options is None or settings.net == "sngan":
        step = torch_modules(settings, data, g, d, options)
    else:
        step = torch_whole_step(settings, data, g, d, options)
    cuda = settings.device == "cuda"

    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()

    def rest() -> None:
        if cuda and name != GRAPHS:  # for the other peers
            torch.cuda.empty_cache()

    return run, rest


# --- Measuring ----------------------------------------------------------------------------------------------------


def rounds(run: Callable[[int], None], rest: Callable[[], None]) -> Iterator[Answer]:
    """Rounds of about ``SECONDS``; the first one finds out how many steps that is."""

    def timed(steps: int) -> Answer:
        cpu, wall = time.process_time(), time.perf_counter()
        run(steps)
        return steps, time.process_time() - cpu, time.perf_counter() - wall

    run(4)  # compilation, and the capture of CUDA graphs
    answer = timed(1)
    while answer[2] < SECONDS / 8:
        answer = timed(2 * answer[0])
    steps = max(1, round(answer[0] * SECONDS / answer[2]))
    while True:
        rest()
        yield answer
        run(1)  # memory that was given back
        answer = timed(steps)


def peers(settings: Settings) -> dict[str, Callable]:
    forms = (EAGER, COMPILED, GRAPHS) if settings.net == "mlp" else (EAGER, LAST, COMPILED, GRAPHS)
    return {
        OURS: lambda: rounds(bpgan_run(settings), lambda: None),
        LOOSE: lambda: rounds(bpgan_run(settings, deterministic=False), lambda: None),
        **{name: lambda name=name: rounds(*torch_run(settings, name)) for name in forms},
    }


def counted(settings: Settings) -> dict[str, Any]:
    """Parameters of bpgan's G and D, which PyTorch's must have too, and the FLOPs of a step."""
    import jax

    state = shapes(settings)[1]
    ours = [
        sum(x.size for x in jax.tree.leaves(player.params))
        for player in (state.players["g"], state.players["d"])
    ]
    if importlib.util.find_spec("torch"):
        import torch

        with torch.device("meta"):
            players = torch_players(settings, fused=False)
        theirs = [sum(p.numel() for p in player.parameters()) for player in players]
        assert theirs == ours, f"parameters of G and D: bpgan has {ours}, PyTorch {theirs}"
    return {"parameters": ours, "flops_per_step": step_flops(settings)}


def child(settings: Settings, name: str, backend: str, *argv: str) -> str:
    """What a process of its own prints: one that has used JAX must not fork peers."""
    command = [sys.executable, "-m", "benchmarks.gpu", f"--peer={settings.show()}{name}", *argv]
    environment = os.environ | {"JAX_PLATFORMS": backend}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def card() -> dict[str, str]:
    """Name and driver of the GPU that the peers see; exits if there is none."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    os.environ |= {"CUDA_VISIBLE_DEVICES": first, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    query = ["nvidia-smi", "-i", first, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        sys.exit("error: --device=cuda: nvidia-smi finds no card; --device=cpu tries the rest")
    name, _, driver = found.strip().rpartition(", ")
    return {"card": name, "driver": driver}


def summarize(
    results: dict[str, list[Answer]], settings: Settings, counts: dict[str, Any], name: str
) -> dict:
    """Medians over the rounds, ratios being taken within a round. ``name`` is the card's."""
    rates = {
        peer: [steps / wall for steps, _, wall in answers] for peer, answers in results.items()
    }
    level = PRECISIONS.index(settings.precision)
    peak = PEAKS[name][level] * 1e12 if name in PEAKS else None
    rows = {}
    for peer, measured in rates.items():
        rate = statistics.median(measured)
        rows[peer] = {
            "steps_per_s": rate,
            "images_per_s": rate * settings.batch * settings.kind.d_steps,
            "ratio": statistics.median(a / b for a, b in zip(rates[OURS], measured, strict=True)),
            "mfu": peak and rate * counts["flops_per_step"] / peak,
        }
    return {**settings._asdict(), **counts, "rows": rows}


def verdicts(summary: dict) -> tuple[list[str], bool]:
    """A line for the net's target, and whether it was missed; it holds on a GPU and for the net's own batch."""
    rows, net = summary["rows"], summary["net"]
    if summary["device"] != "cuda" or summary["batch"] != KINDS[net].batch:
        return [], False
    if net == "mlp":
        reached = ARTICLE_STEPS / rows[OURS]["steps_per_s"] <= ARTICLE_SECONDS
        target = f"{ARTICLE_STEPS:,} steps in {ARTICLE_SECONDS:.0f} s"
    elif others := [name for name in rows if name.startswith("torch")]:
        best = min(others, key=lambda name: rows[name]["ratio"])
        reached = rows[best]["ratio"] >= TARGETS[net]
        target = f"{TARGETS[net]}x the best PyTorch form that ran ({best})"
    else:
        return [f"not measured: {TARGETS[net]}x the best PyTorch form"], False
    return [f"{'reached' if reached else 'MISSED'}: {target}"], not reached


def show(summary: dict, about: dict[str, str]) -> None:
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    print(
        f"{summary['net']}, {summary['precision']}, batch {summary['batch']}, {summary['device']},"
        f" medians of {summary['rounds']} rounds\n"
    )
    print(f"{'':30}{'steps/s':>10}{'images/s':>11}{'bpgan is':>10}{'MFU':>8}")
    for name, row in summary["rows"].items():
        mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
        print(
            f"{name:30}{row['steps_per_s']:10.4g}{row['images_per_s']:11.4g}"
            f"{row['ratio']:9.2f}x{mfu:>8}"
        )
    print(
        f"\nA step needs {summary['flops_per_step'] / 1e9:.4g} GFLOP in matrix products and convolutions;"
        f" G has {summary['parameters'][0]:,} parameters, D {summary['parameters'][1]:,}."
    )


# --- Profile ------------------------------------------------------------------------------------------------------

SORTS = {
    "convolutions": r"conv(?!ert)|fprop|dgrad|wgrad|winograd|cudnn",
    "matrix products": r"gemm|gemv|dot|cutlass|nvjet|splitk",
    "copies": r"memcpy|memset|copy|transpose",
    "the rest: elementwise, reductions, random numbers": "",
}
"""Kernels by what their names contain; the first that fits."""


def trace(settings: Settings, folder: str) -> None:
    """Writes a trace of one call of the compiled program, of some 0.2 s, and prints where its time goes."""
    import jax

    run = bpgan_run(settings)
    run(1)
    start = time.perf_counter()
    run(4)
    steps = max(1, round(0.8 / (time.perf_counter() - start)))
    with jax.profiler.trace(folder):
        start = time.perf_counter()
        run(steps)
        wall = time.perf_counter() - start
    print(f"\nprofile of {steps} steps in {wall:.3f} s: {folder}")
    newest = max(pathlib.Path(folder).rglob("*.xplane.pb"), key=os.path.getmtime)
    kernels = kernel_seconds(jax.profiler.ProfileData.from_file(str(newest)))
    sorts: Counter[str] = Counter()
    for name, seconds in kernels.items():
        fits = (sort for sort, pattern in SORTS.items() if re.search(pattern, name, re.IGNORECASE))
        sorts[next(fits)] += seconds
    idle = max(0.0, wall - sum(kernels.values()))
    for name, seconds in [*sorts.most_common(), ("no kernel", idle)]:
        print(f"{seconds / wall:7.1%}  {name}")
    print("of which, names without their numbers:")
    for name, seconds in kernels.most_common(12):
        print(f"{seconds / wall:7.1%}  {name[:100]}")


def kernel_seconds(profile: Any) -> Counter[str]:
    """Seconds on the device by kernel; by operation of XLA where there is no GPU."""
    kernels: Counter[str] = Counter()
    lines = [(plane.name, line) for plane in profile.planes for line in plane.lines]
    streams = [line for plane, line in lines if "GPU" in plane and line.name.startswith("Stream")]
    for line in streams or [line for plane, line in lines if plane.startswith("/host")]:
        for event in line.events:
            # Loops and calls hold what they call.
            if streams or (
                "hlo_op" in dict(event.stats) and not re.match("while|call|cond", event.name)
            ):
                kernels[re.sub(r"[._]?\d+$", "", event.name)] += event.duration_ns / 1e9
    return kernels


def main() -> int:
    parser = flags(__doc__ or "", rounds=5)
    parser.set_defaults(cores=len(os.sched_getaffinity(0)))
    parser.add_argument("--net", choices=tuple(KINDS), default="mlp")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument(
        "--batch", type=int, default=0, help="images of an update; 0: the net's own"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--profile", metavar="DIR", help="trace one call of bpgan's program to there"
    )
    parser.add_argument(
        "--article",
        action="store_true",
        help="extrapolate the seconds of the article's steps (mlp)",
    )
    given = parser.parse_args()
    if given.peer:
        settings, name = Settings.read(given.peer)
        if name == COUNT:
            print(json.dumps(counted(settings)))
        elif name == PROFILE:
            trace(settings, given.profile)
        else:
            serve(peers(settings), name)
        return 0
    cores, about = cores_of(parser, given), machine()
    if given.batch < 0:
        parser.error(f"--batch={given.batch}: must be at least 1")
    if given.article and given.net != "mlp":
        parser.error(f"--article: --net={given.net}, must be mlp")
    settings = Settings(
        given.net, given.precision, given.batch or KINDS[given.net].batch, given.device
    )
    about |= card() if given.device == "cuda" else {}
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # all peers are there at once
    counts = json.loads(child(settings, COUNT, "cpu"))
    names = list(peers(settings))
    if given.device == "cpu":
        for name in (LOOSE, GRAPHS):
            names.remove(name)
            print(f"skipped: {name}: needs --device=cuda")
    results = measure("benchmarks.gpu", names, given.rounds, cores, settings.show(), given.device)
    if OURS not in results:
        sys.exit(f"error: nothing to compare: {OURS} did not run")
    summary = summarize(results, settings, counts, about.get("card", ""))
    summary["rounds"] = given.rounds
    lines, missed = verdicts(summary)
    show(summary, about)
    if EAGER not in results:
        print("PyTorch is not installed (requirements-bench.txt), or did not run: see above")
    if given.article:
        seconds = ARTICLE_STEPS / summary["rows"][OURS]["steps_per_s"]
        print(
            f"The article's {ARTICLE_STEPS:,} steps: {seconds:.1f} s, extrapolated from the rate"
            " above; logs, samples and checkpoints not included."
        )
    for line in lines:
        print(line)
    if given.json:
        with open(given.json, "w") as file:
            json.dump(
                summary | {"machine": about, "verdicts": lines, "answers": results}, file, indent=1
            )
    if given.profile:
        print(child(settings, PROFILE, given.device, f"--profile={given.profile}"), end="")
    return int(missed and given.check)


if __name__ == "__main__":
    sys.exit(main())
