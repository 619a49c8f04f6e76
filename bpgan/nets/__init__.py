"""Networks: one file per architecture, each a ``Generator`` and a ``Discriminator``.

Every generator is a Linen module called as ``module(z, labels, train=bool)``, every discriminator as
``module(x, labels, train=bool)``; labels, int32 ``[b]``, are needed if its attribute ``classes`` is not 0, and ignored
otherwise. ``linen_net`` turns a module into the pure pair ``types.Net``, and what trains it never sees Linen: beside
this package only the feature nets of ``metrics.features`` import flax.

=========================  =====================================================================
``conv``, ``resample``     convolutions and interpolations as functions of arrays, without Linen
``spectral``               kernels divided by their largest singular values, all of a network at once
``sizes``                  what an image's size makes of a network
``layers``                 Linen layers
``attention``              positions, attention, the sublayers of transformers
``blocks``, ``heads``      residual blocks; what conditional discriminators return
``wrappers``               modules as pure functions, and networks made of networks
``architecture``           the table of architectures, and what is true of each
``mlp``, ``dcgan``         perceptrons, strided convolutions
``cnn``                    the plain networks of the spectral norm's paper, StudioGAN's DCGAN
``resnet``, ``biggan``     residual networks with spectral norm: SNGAN, SAGAN, BigGAN
``r3gan``                  residual networks without norms
``vit``                    transformers over patches
``stylegan2``              a mapping, and convolutions that it modulates
``vae``                    encoders
``unet``, ``translator``   images made of images: U-Net, residual networks
``patchgan``               discriminators of patches
``timed``                  perceptrons and a U-Net that take times, for flows
=========================  =====================================================================

Each file imports those above it only. To add an architecture, write its file here, and enter it into ``ARCHITECTURES``
in its last lines: experiments offer it, and the tests find it. Submodules are named explicitly (``dense0``, ``conv0``,
``norm0``, ...), because the names are the keys of the parameter tree and so of checkpoints.
"""

import importlib
import pkgutil

from bpgan.nets.architecture import ARCHITECTURES, Architecture, Network, Option
from bpgan.nets.layers import storage_dtype
from bpgan.nets.wrappers import energy, exact, labeled, linen_net, truncated

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Network",
    "Option",
    "energy",
    "exact",
    "labeled",
    "linen_net",
    "storage_dtype",
    "truncated",
]

for _file in pkgutil.iter_modules(__path__):  # each enters its own architectures
    importlib.import_module(f"{__name__}.{_file.name}")
