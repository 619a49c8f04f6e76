"""Linen modules as pure functions, and networks made of other networks."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpgan.nets.layers import check_labels, indicators_of
from bpgan.nets.spectral import normalize, updated
from bpgan.types import PRNG, Net


def linen_net(module: nn.Module) -> Net:
    """The Linen module as pure functions.

    Args:
      module: called as ``module(*inputs, train=bool)``. It draws no random numbers after ``init``
        (noise comes in as an input), and its variables are ``"params"`` and any mutable collections
        such as ``"batch_stats"`` and ``"spectral"``.

    Returns:
      ``Net(init, apply)``. ``apply`` returns ``(output, mutable)`` where ``mutable`` is ``{}`` for
      a network without state; pass it back as ``{"params": params, **mutable}``. ``method=name``
      calls another method of the module.
    """

    def init(key: PRNG, *inputs: Any) -> dict[str, Any]:
        return dict(module.init(key, *inputs, train=False))

    def apply(
        variables: Any, *inputs: Any, train: bool, method: str | None = None
    ) -> tuple[Any, dict[str, Any]]:
        mutable = {name: value for name, value in variables.items() if name != "params"}
        ready, directions = normalize(variables, train=train)
        if not train:
            return module.apply(ready, *inputs, train=False, method=method), mutable
        output, mutable = module.apply(
            ready, *inputs, train=True, mutable=list(mutable), method=method
        )
        return output, updated(mutable, directions)

    return Net(init, apply)


def exact(net: Net) -> Net:
    """A network whose products are in full precision on every device, forward and backward, whatever a run asks for.

    Args:
      net: that computes in float32 or wider.
    """

    def apply(*arguments: Any, **options: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return net.apply(*arguments, **options)

    return Net(net.init, apply)


def energy(autoencoder: Net) -> Net:
    """A discriminator whose logits are ``-mean |x - autoencoder(x)|`` over all axes but the first.

    Zhao et al. 2017, arXiv:1609.03126; Berthelot et al. 2017, arXiv:1703.10717 (BEGAN, with this norm).
    """

    def apply(variables: Any, x: Any, *inputs: Any, train: bool) -> tuple[Any, dict[str, Any]]:
        y, mutable = autoencoder.apply(variables, x, *inputs, train=train)
        return -jnp.mean(jnp.abs(x - y), axis=tuple(range(1, x.ndim))), mutable

    return Net(autoencoder.init, apply)


def labeled(discriminator: Net, classes: int, *, flat: bool = False) -> Net:
    """An unconditional discriminator that sees labels as ``classes`` more channels, one of them 1, the others 0.

    Mirza & Osindero 2014, arXiv:1411.1784: labels concatenated to the input; as maps, so that convolutions see them at
    every pixel. Vectors ``[b, classes]`` are such channels themselves. Gradient penalties are with respect to the image
    alone.

    Args:
      flat: whether the discriminator flattens its input. Of maps it would see each label once for every pixel, by a
        kernel of that many rows. So it is given the image as one row, and behind it one number a class, which is the
        square root of the number of pixels where a map is 1: the norm of what it sees is the same.
    """

    def seen(x: Any, labels: Any) -> Any:
        one_hot = indicators_of(check_labels(labels, classes), classes, x.dtype)
        if flat:
            norm = math.sqrt(math.prod(x.shape[1:-1]))
            return jnp.concatenate([x.reshape(len(x), -1), norm * one_hot], axis=-1)
        maps = jnp.broadcast_to(one_hot[:, None, None, :], (*x.shape[:3], classes))
        return jnp.concatenate([x, maps], axis=-1)

    def init(key: PRNG, x: Any, labels: Any) -> dict[str, Any]:
        return discriminator.init(key, seen(x, labels))

    def apply(variables: Any, x: Any, labels: Any, *, train: bool) -> tuple[Any, dict[str, Any]]:
        return discriminator.apply(variables, seen(x, labels), train=train)

    return Net(init, apply)


def truncated(
    generator: Net, psi: float, latents: Any, *, classes: int = 0, draws: int = 4096
) -> Net:
    """A generator with a mapping, its styles drawn towards their mean: ``w' = w_mean + psi (w - w_mean)``.

    Karras et al. 2019, arXiv:1812.04948, App. B. With labels, the mean is that of each row's class. It is taken over
    ``draws`` latents, the same in every call.

    Args:
      generator: of a module with methods ``mapping`` and ``synthesis``.
      psi: 1 changes nothing, 0 draws the mean alone.
      latents: ``(key, n) -> z[n, z]``.
      classes: of the labels; 0: unconditional.
    """

    def apply(variables: Any, z: Any, *labels: Any, train: bool) -> tuple[Any, dict[str, Any]]:
        call = functools.partial(generator.apply, variables, train=train)
        many = latents(jax.random.key(0), draws)

        def mean(*label: Any) -> Any:
            repeated = [jnp.full((draws,), y) for y in label]
            return jnp.mean(call(many, *repeated, method="mapping")[0], axis=0)

        w, _ = call(z, *labels, method="mapping")
        if labels:  # of every class once, however many rows there are
            (y,) = labels
            center = jax.lax.map(mean, jnp.arange(classes, dtype=y.dtype))[y]
        else:
            center = mean()[None]
        return call(center + psi * (w - center), method="synthesis")

    return Net(generator.init, apply)
