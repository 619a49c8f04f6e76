"""bpgan: backpropagation and generative adversarial networks in JAX.

Start at ``bpgan.types`` (the vocabulary), then ``bpgan.algorithms.turns`` (the step) and ``gan``.
Importing the package does nothing but name its version.
"""

from bpgan.version import __version__

__all__ = ["__version__"]
