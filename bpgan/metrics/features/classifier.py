"""Features of a classifier trained on the data themselves: its hidden layer.

The authors of the Fréchet inception distance advise it for images that are no photographs, and warn that the values
depend on the classifier (Heusel et al. 2017, arXiv:1706.08500, and their issue tracker). Distances made with it are
named after the net and its weights, and compare with no others.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpgan.metrics.features import Extractor, in_batches
from bpgan.nets import dcgan

_BATCH = 500


def extractor(params: Any, *, classes: int, name: str) -> Extractor:
    """The hidden layer of a ``nets.dcgan.Classifier``.

    Args:
      params: of the classifier, for images ``x / 127.5 - 1``.
      classes: how many it was trained to tell apart.
      name: of the extractor; the beginning of the weights' hash is added to it.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf, np.float32).tobytes())

    def function(features: bool):
        net = dcgan.Classifier(classes, features=features)
        compiled = jax.jit(
            lambda params, x: net.apply({"params": params}, x.astype(jnp.float32) / 127.5 - 1)
        )
        return lambda images: in_batches(lambda x: compiled(params, x), images, _BATCH)

    sha256 = digest.hexdigest()
    return Extractor(
        f"{name}-{sha256[:8]}",
        sha256,
        "x / 127.5 - 1",
        function(True),
        function(False),
        of_data=True,
    )
