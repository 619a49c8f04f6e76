"""Networks in tests: small ones, comparisons of derivatives, and the check of spectral norm."""

import importlib
import pkgutil
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

import bpgan.nets
from bpgan.nets import linen_net, spectral
from checks.fusions import FUSIONS


def compiled(f):
    """``jit`` that compiles fast rather than well."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0, **FUSIONS})


def normal(seed, *shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(a, b, tolerance):
    """Every leaf agrees to ``tolerance`` of its own largest element."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(a) == len(b)
    for u, v in zip(a, b, strict=True):
        assert u.shape == v.shape and u.dtype == v.dtype
        np.testing.assert_allclose(u, v, rtol=0, atol=tolerance * max(float(abs(v).max()), 1e-30))


def derivatives(f, x, w):
    """Value, gradient, gradient of the squared gradient norms, and tangents of all three."""

    def value(x, w):
        return jnp.sum(jnp.sin(f(x, w)))

    gradient = jax.grad(value, argnums=(0, 1))

    def penalty(x, w):
        return sum(jnp.sum(jnp.square(g)) for g in gradient(x, w))

    def everything(x, w):
        return f(x, w), gradient(x, w), jax.grad(penalty, argnums=(0, 1))(x, w)

    return compiled(lambda x, w: jax.jvp(everything, (x, w), (jnp.cos(x), jnp.cos(w))))(x, w)


def convolutions(f, platform, *arguments):
    """The convolutions that f is lowered to, layouts and paddings included."""
    text = jax.jit(f).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return sorted(
        re.sub(r"%\w+", "%", line.strip()) for line in text.splitlines() if ".convolution(" in line
    )


def modules():
    """Every file of ``bpgan/nets`` that has a generator; by name."""
    names = [info.name for info in pkgutil.iter_modules(bpgan.nets.__path__)]
    found = {n: importlib.import_module(f"bpgan.nets.{n}") for n in names}
    return {n: module for n, module in found.items() if hasattr(module, "Generator")}


# Options that make the networks small, of generators and of discriminators; without an entry a network is as it is.
TINY = {
    "cnn": ({"widths": (16, 8, 8)}, {"widths": (16, 8, 8)}),
    "resnet": ({"widths": (16, 16, 16)}, {"widths": (16, 16)}),
    "biggan": (
        {"channels": 8, "widths": (2, 2, 2), "shared": 4},
        {"channels": 8, "widths": (2, 2)},
    ),
    "r3gan": ({"widths": (16, 8, 8), "blocks": 1}, {"widths": (16, 8, 8), "blocks": 1}),
    "stylegan2": ({"widths": (16, 8, 8), "styles": 16, "depth": 2}, {"widths": (16, 8, 8)}),
    "vit": (
        {"width": 16, "depth": 1, "heads": 2, "patch": 4},
        {"width": 16, "depth": 1, "heads": 2, "patch": 4},
    ),
}


def tiny(name, kind, *args, **options):
    """A small ``Generator`` or ``Discriminator``."""
    small = TINY.get(name, ({}, {}))[kind == "Discriminator"]
    return getattr(modules()[name], kind)(*args, **small, **options)


def stirred(variables):
    """With other parameters: those that are zero at the start are no longer, and tables differ in their rows."""
    moved = jax.tree.map(
        lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), variables["params"]
    )
    return {**variables, "params": moved}


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


class Normed(nn.Module):
    """``kernel -> kernel / sigma``."""

    norm: Any = spectral.spectral_norm

    @nn.compact
    def __call__(self, kernel, *, train):
        return self.norm(self, kernel, train=train)


def converge(net, kernel, steps=200):
    variables = net.init(jax.random.key(0), kernel)

    def step(variables, _):
        return net.apply(variables, kernel, train=True)[1], None

    return compiled(lambda v: lax.scan(step, v, None, length=steps)[0])(variables)


def largest(matrix):
    return np.linalg.svd(matrix, compute_uv=False)[0]


def check_spectral_norm(norm):
    """T1.5: the largest singular value of a kernel ``[out, kh kw in]``, after 200 updates that keep u."""
    kernel = normal(0, 3, 3, 16, 32, dtype=np.float32)
    net = linen_net(Normed(norm))
    variables = converge(net, kernel)
    sigma = largest(kernel.transpose(3, 0, 1, 2).reshape(32, -1))
    for train in (False, True):
        normed, _ = net.apply(variables, kernel, train=train)
        np.testing.assert_allclose(kernel / sigma, normed, rtol=1e-5)
    # The control: reshaping to (kh, rest) is another matrix with another norm.
    assert abs(largest(kernel.reshape(3, -1)) / sigma - 1) > 0.5
