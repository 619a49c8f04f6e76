"""Networks: one file per architecture, each a ``Generator`` and a ``Discriminator``.

Every generator is a Linen module called as ``module(z, labels, train=bool)``, every discriminator as
``module(x, labels, train=bool)``; labels, int32 ``[b]``, are needed if its attribute ``classes`` is not 0, and ignored
otherwise. The rest of bpgan never sees Linen: ``linen_net`` turns a module into the pure pair ``types.Net``, and
nothing outside this package imports flax.

========================  ======================================================================
``mlp``, ``dcgan``        perceptrons, strided convolutions
``resnet``, ``biggan``    residual networks with spectral norm: SNGAN, SAGAN, BigGAN
``r3gan``                 residual networks without norms
``stylegan2``             a mapping, and convolutions that it modulates
``layers``, ``heads``     what they are made of; what conditional discriminators return
========================  ======================================================================

To add an architecture, write its file here; the tests find it by its classes. Submodules are named
explicitly (``dense0``, ``conv0``, ``norm0``, ...), because the names are the keys of the parameter
tree and so of checkpoints.
"""

from typing import Any

from flax import linen as nn

from bpgan.types import PRNG, Net


def linen_net(module: nn.Module) -> Net:
    """The Linen module as pure functions.

    Args:
      module: called as ``module(*inputs, train=bool)``. It draws no random numbers after ``init``
        (noise comes in as an input), and its variables are ``"params"`` and any mutable collections
        such as ``"batch_stats"`` and ``"spectral"``.

    Returns:
      ``Net(init, apply)``. ``apply`` returns ``(output, mutable)`` where ``mutable`` is ``{}`` for
      a network without state; pass it back as ``{"params": params, **mutable}``.
    """

    def init(key: PRNG, *inputs: Any) -> dict[str, Any]:
        return dict(module.init(key, *inputs, train=False))

    def apply(variables: Any, *inputs: Any, train: bool) -> tuple[Any, dict[str, Any]]:
        mutable = {name: value for name, value in variables.items() if name != "params"}
        if not train:
            return module.apply(variables, *inputs, train=False), mutable
        output, mutable = module.apply(variables, *inputs, train=True, mutable=list(mutable))
        return output, dict(mutable)

    return Net(init, apply)
