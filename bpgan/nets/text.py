"""Captions for networks: an encoder of words, and a generator and a discriminator that are conditioned on it.

The encoder is a transformer with its norms before the sublayers (Vaswani et al. 2017, arXiv:1706.03762; Xiong et al.
2020, arXiv:2002.04745). Any generator of a vector and any discriminator with a classifier's head can be conditioned:
each has an encoder of its own, which is a part of its parameters and is trained by its loss. So the players share
nothing, the average of G draws with the average of its encoder, and G alone is all that drawing needs.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from bpgan.nets.attention import perceptron, positions, self_attention
from bpgan.nets.layers import Dense, Embed, storage_dtype
from bpgan.types import PRNG, Net

PAD = 0
"""The number behind the end of a caption; these places are not seen."""

Tokens = Int[Array, "b t"]


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + dense(gelu(dense(norm(x))))``.

    Attributes:
      heads: of the attention; they must divide the width of x.
      dtype: of the computation.
    """

    heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t f"], seen: Bool[Array, "b t"]) -> Float[Array, "b t f"]:
        stored = storage_dtype(self.dtype)
        h = nn.LayerNorm(dtype=stored, param_dtype=stored, name="norm0")(x)
        x = x + self_attention(h, self.heads, seen=seen, dtype=self.dtype)
        h = nn.LayerNorm(dtype=stored, param_dtype=stored, name="norm1")(x)
        return x + perceptron(h, 2 * x.shape[-1], dtype=self.dtype)


class Encoder(nn.Module):
    """``tokens[b, t] -> e[b, features]``: embeddings and positions, blocks, the mean over the words, a dense layer.

    What stands behind the end of a caption changes nothing, and neither does how much of it there is.

    Attributes:
      words: of the vocabulary.
      features: of the sentence's embedding.
      width: of a word's; a multiple of ``heads``, and even.
      depth: blocks.
      heads: of the attention.
      dtype: of the computation; e is float32 or wider.
    """

    words: int
    features: int = 64
    width: int = 64
    depth: int = 2
    heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens, *, train: bool = False) -> Float[Array, "b f"]:
        del train  # no state
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"width={self.width}: must be even and a multiple of {self.heads} heads"
            )
        b, t = tokens.shape
        stored, seen = storage_dtype(self.dtype), tokens != PAD
        table = Embed(self.words, self.width, dtype=self.dtype, name="embed")
        x = table(tokens.reshape(-1)).reshape(b, t, self.width)
        x = x + positions(t, self.width).astype(x.dtype)[None]
        for i in range(self.depth):
            x = Block(self.heads, self.dtype, name=f"block{i}")(x, seen)
        x = nn.LayerNorm(dtype=stored, param_dtype=stored, name="norm")(x)
        weight = seen.astype(stored)[..., None]
        mean = jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)
        return Dense(self.features, dtype=stored, name="sentence")(mean)


def _split(variables: Any) -> tuple[Any, Any]:
    """Those of the encoder, and those of the network; only the latter has other collections."""
    params = variables["params"]
    return {"params": params["text"]}, {**variables, "params": params["net"]}


def _joined(encoder: Any, net: Any) -> dict[str, Any]:
    return {**net, "params": {"text": encoder["params"], "net": net["params"]}}


def generator(net: Net, encoder: Net) -> Net:
    """``(z[b, z], tokens[b, t]) -> x``: a generator whose latents are ``concat(z, e)``."""

    def init(key: PRNG, z: Any, tokens: Tokens) -> dict[str, Any]:
        keys = jax.random.split(key)
        text = encoder.init(keys[0], tokens)
        e, _ = encoder.apply(text, tokens, train=False)
        return _joined(text, net.init(keys[1], jnp.concatenate([z, e.astype(z.dtype)], axis=1)))

    def apply(variables: Any, z: Any, tokens: Tokens, *, train: bool) -> tuple[Any, dict[str, Any]]:
        text, own = _split(variables)
        e, _ = encoder.apply(text, tokens, train=train)
        return net.apply(own, jnp.concatenate([z, e.astype(z.dtype)], axis=1), train=train)

    return Net(init, apply)


def discriminator(net: Net, encoder: Net) -> Net:
    """``(x[b, h, w, c], tokens[b, ..., t]) -> logits[b, ...]``: a projection (Miyato & Koyama 2018, arXiv:1802.05637).

        logit = psi(phi(x)) + <e, V phi(x)> / sqrt(f)

    Several captions of an image are scored by one pass of the image.

    Args:
      net: ``(x, labels) -> (psi(phi(x))[b], V phi(x)[b, f])``, as discriminators with the head ``acgan`` of f classes
        are (``nets.heads``), of which the second part does not depend on the labels. The bias of its dense layer adds a
        number to the logit that depends on the caption alone.
      encoder: ``tokens[b, t] -> e[b, f]``.
    """

    def labels(x: Any) -> Any:  # which this head only looks at the type of
        return jnp.zeros(len(x), jnp.int32)

    def init(key: PRNG, x: Any, tokens: Any) -> dict[str, Any]:
        keys = jax.random.split(key)
        text = encoder.init(keys[0], tokens.reshape(-1, tokens.shape[-1]))
        return _joined(text, net.init(keys[1], x, labels(x)))

    def apply(variables: Any, x: Any, tokens: Any, *, train: bool) -> tuple[Any, dict[str, Any]]:
        text, own = _split(variables)
        e, _ = encoder.apply(text, tokens.reshape(-1, tokens.shape[-1]), train=train)
        (score, projected), stats = net.apply(own, x, labels(x), train=train)
        several = e.reshape(len(x), -1, e.shape[-1])
        products = jnp.einsum("bkf,bf->bk", several, projected.astype(e.dtype))
        logits = score[:, None] + products / math.sqrt(e.shape[-1])
        return logits.reshape(tokens.shape[:-1]), stats

    return Net(init, apply)
