"""bpgan: backpropagation and generative adversarial networks in JAX.

``bpgan.load("runs/...")`` opens a trained run, ``bpgan.run("mnist_gan")`` runs an experiment from Python, and
``bpgan.picture(images)`` shows images. For the code start at ``bpgan.types`` (the vocabulary), then
``bpgan.algorithms.turns`` (the step) and ``gan``. Importing the package does nothing but name its version.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bpgan.version import __version__

if TYPE_CHECKING:
    from bpgan.cli.calls import run
    from bpgan.runtime.images import picture
    from bpgan.trained.run import load

__all__ = ["__version__", "load", "picture", "run"]

_FOUND_IN = {
    "load": "bpgan.trained.run",
    "picture": "bpgan.runtime.images",
    "run": "bpgan.cli.calls",
}


def __getattr__(name: str) -> Any:
    if name in _FOUND_IN:
        return getattr(importlib.import_module(_FOUND_IN[name]), name)
    raise AttributeError(f"module 'bpgan' has no attribute {name!r}")
