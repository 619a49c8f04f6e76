"""bpgan: backpropagation and generative adversarial networks in JAX.

``bpgan.load("runs/...")`` opens a trained run. For the code start at ``bpgan.types`` (the vocabulary), then
``bpgan.algorithms.turns`` (the step) and ``gan``. Importing the package does nothing but name its version.
"""

from typing import TYPE_CHECKING, Any

from bpgan.version import __version__

if TYPE_CHECKING:
    from bpgan.trained.run import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from bpgan.trained.run import load

        return load
    raise AttributeError(f"module 'bpgan' has no attribute {name!r}")
