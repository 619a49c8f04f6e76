"""Features of a classifier trained on the data themselves: its hidden layer.

The authors of the Fréchet inception distance advise it for images that are no photographs, and warn that the values
depend on the classifier (Heusel et al. 2017, arXiv:1706.08500, and their issue tracker). Distances made with it are
named after the net and its weights, and compare with no others.
"""

import functools
import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from bpgan.metrics.features import Extractor, in_batches, kept
from bpgan.nets import dcgan, exact, linen_net
from bpgan.runtime import compiler

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

    def traced(features: bool, params):
        # In full precision: the name of a net is that of its features, whatever the device.
        net = exact(linen_net(dcgan.Classifier(classes, features=features)))
        return lambda x: net.apply({"params": params}, x.astype(jnp.float32), train=False)[0]

    def function(features: bool):
        @functools.partial(jax.jit, compiler_options=compiler.options(jax.default_backend()))
        def compiled(params, x):
            return traced(features, params)(x.astype(jnp.float32) / 127.5 - 1)

        return lambda images: in_batches(lambda x: compiled(params, x), images, _BATCH)

    sha256 = digest.hexdigest()
    return Extractor(
        f"{name}-{sha256[:8]}",
        sha256,
        "x / 127.5 - 1",
        function(True),
        function(False),
        of_data=True,
        traced=(traced(True, params), traced(False, params)),
    )


def load(path: pathlib.Path, shape: tuple[int, ...], *, classes: int) -> Any | None:
    """The parameters that ``save`` kept; None unless they are whole, and of a net for images ``[h, w, c]``."""
    arrays = kept.load(path)
    if arrays is None:
        return None
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    wanted = jax.eval_shape(dcgan.Classifier(classes).init, jax.random.key(0), image)["params"]
    sizes = {name: np.shape(leaf) for name, leaf in _flat(wanted).items()}
    if {name: array.shape for name, array in arrays.items()} != sizes:
        return None
    return traverse_util.unflatten_dict(arrays, sep="/")


def save(path: pathlib.Path, params: Any) -> str:
    """Keeps the parameters. Returns why the disk did not take them, empty if it did."""
    return kept.save(path, {name: np.asarray(leaf) for name, leaf in _flat(params).items()})


def _flat(params: Any) -> dict[str, Any]:
    """By names such as ``conv0/kernel``."""
    return dict(traverse_util.flatten_dict(params, sep="/"))  # type: ignore[arg-type]
