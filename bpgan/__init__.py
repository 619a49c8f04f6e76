"""bpgan: backpropagation and generative adversarial networks in JAX.

Start at ``bpgan.types`` (the vocabulary), then ``bpgan.algorithms.gan`` (the two-player step).
Importing the package does nothing but name its version.
"""

from bpgan.version import __version__

__all__ = ["__version__"]
