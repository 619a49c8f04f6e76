"""What conditional discriminators make of their features: a projection, a classifier, an embedding.

The logit is a dense layer of the features ``phi(x)``; ``head`` says where the label enters:

================  ================================================  ====================================
``head``          output                                            source
================  ================================================  ====================================
``"projection"``  ``logits = dense(phi) + <e_y, phi>``              Miyato & Koyama 2018, arXiv:1802.05637
``"acgan"``       ``(logits, class_logits[b, k])``                  Odena et al. 2017, arXiv:1610.09585
``"d2d"``         ``(logits, (embedding[b, f], proxy[b, f]))``,     Kang et al. 2021, arXiv:2111.01118
                  rows of unit norm, ``proxy`` the label's
``"ucd"``         ``(o_y, o[b, k])`` of ``o = dense(phi)``          Xia et al. 2025, arXiv:2510.00624
``"modulation"``  ``logits = dense(phi)``; the label has modulated  Peebles & Xie 2023, arXiv:2212.09748
                  the layers that made ``phi``
================  ================================================  ====================================

Tables start as the network's kernels do, as matrices ``[k, f]``. Where that goes by the fan-in alone (He, LeCun),
``e_y`` has a variance like 1 / k, not 1 / f, and ``<e_y, phi>`` starts about ``sqrt(f / k)`` times as large as
``dense(phi)``.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from bpgan.nets.layers import Dense, Embed, check_labels, storage_dtype
from bpgan.nets.spectral import unit
from bpgan.types import Labels, Logits

Kind = Literal["projection", "acgan", "d2d", "ucd", "modulation"]
Scores = (
    Logits
    | tuple[Logits, Float[Array, "b k"]]
    | tuple[Logits, tuple[Float[Array, "b f"], Float[Array, "b f"]]]
)


def score(
    features: Float[Array, "b f"],
    labels: Labels | None,
    *,
    name: str,
    classes: int = 0,
    head: Kind = "projection",
    embedding: int = 512,
    projection_scale: float = 1.0,
    train: bool = False,
    **layer: Any,
) -> Scores:
    """The end of a discriminator; called inside its ``@nn.compact`` method, where its layers belong.

    Args:
      features: ``phi(x)``; of size f.
      labels: needed by the projection and the proxies, checked for all heads.
      name: of the dense layer that makes the logit. Its companions are called ``embed0`` (projection),
        ``classes0`` (acgan; ucd, which has it alone), ``embedding0`` and ``proxies0`` (d2d).
      classes: number of classes k; 0: only the logits, and labels are ignored.
      embedding: size of the d2d embedding.
      projection_scale: factor of ``<e_y, phi>``.
      layer: ``kernel_init`` and ``spectral`` of all layers, ``rate`` and ``use_bias`` of the dense ones; and
        ``dtype``, that of the network, which is not that of the head if it is narrower than float32.

    Returns:
      As in the table above, computed in float32 or wider.

    Raises:
      ValueError: an unknown head, or labels that are needed and not integers.
    """
    if head not in get_args(Kind):
        raise ValueError(f"head={head!r}: must be one of {', '.join(get_args(Kind))}")
    labels = check_labels(labels, classes)
    layer["dtype"] = storage_dtype(layer.get("dtype", jnp.float32))
    features = features.astype(layer["dtype"])
    if classes and head == "ucd":
        of_classes = Dense(classes, name="classes0", **layer)(features, train=train)
        chosen = jax.nn.one_hot(labels, classes, dtype=of_classes.dtype)
        return jnp.sum(of_classes * chosen, -1), of_classes
    logits = Dense(1, name=name, **layer)(features, train=train)[:, 0]
    if not classes or head == "modulation":
        return logits
    table = {k: v for k, v in layer.items() if k in ("spectral", "dtype")}
    init = layer.get("kernel_init", nn.initializers.lecun_normal())
    if head == "projection":
        embed = Embed(classes, features.shape[-1], embedding_init=init, name="embed0", **table)
        products = embed(labels, train=train) * features
        return logits + projection_scale * jnp.sum(products, -1)
    if head == "acgan":
        return logits, Dense(classes, name="classes0", **layer)(features, train=train)
    place = Dense(embedding, name="embedding0", **layer)(features, train=train)
    proxies = Embed(classes, embedding, embedding_init=init, name="proxies0", **table)
    rows = proxies(labels, train=train)
    return logits, (unit(place, -1), unit(rows, -1))
