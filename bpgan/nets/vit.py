"""Transformers over patches of an image, as both players: DiT blocks that a condition modulates.

Peebles & Xie 2023, arXiv:2212.09748 (DiT: adaLN-zero, fixed positions); Lin et al. 2025, arXiv:2511.22475 (adversarial
flow models: G without times maps noise of the images' shape, D is the same network with a token for the class). With
ordinary latents, which modulate as labels do, G is a transformer over positions, as in GAT (arXiv:2509.24935), whose
blocks differ.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from bpgan.nets.architecture import ALL_CONDITIONS, ARCHITECTURES, Architecture, Network, Option
from bpgan.nets.attention import (
    Rows,
    Tokens,
    embedded,
    grid_angles,
    grid_positions,
    modulation,
    perceptron,
    self_attention,
    time_waves,
    tokenwise,
)
from bpgan.nets.blocks import xavier
from bpgan.nets.heads import Kind, Scores, score
from bpgan.nets.layers import Embed, layer_norm, rms_norm, split_given, storage_dtype
from bpgan.nets.resample import patches_of, patchify, unpatchify
from bpgan.types import Images

_SMALL = nn.initializers.normal(0.02)
_ZERO = nn.initializers.zeros_init()


class Block(nn.Module):
    """``x + g1 attention(n(x) (1 + k1) + s1)``, then ``x + g2 mlp(n(x) (1 + k2) + s2)``, in x's width.

    Shifts s, scales k and gates g are a dense layer of ``SiLU(condition)`` that is zero at the start, and so is the
    whole block but for x (adaLN-zero). The perceptron is four times as wide as x; GELU is the form with tanh.

    Attributes:
      heads: of the attention; they divide the width of x.
      qk_norm: as in ``attention.self_attention``.
      rms: whether the norm n is ``rms_norm``; else ``layer_norm``.
      dtype: of the computation.
    """

    heads: int
    qk_norm: bool = False
    rms: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, condition: Rows, angles: Any = None) -> Tokens:
        layer: dict[str, Any] = {"kernel_init": xavier(), "dtype": self.dtype}
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(x, condition, 6, dtype=self.dtype)
        norm = rms_norm if self.rms else layer_norm
        h = norm(x) * (1 + scale1) + shift1
        x = x + gate1 * self_attention(h, self.heads, angles=angles, qk_norm=self.qk_norm, **layer)
        h = norm(x) * (1 + scale2) + shift2
        return x + gate2 * perceptron(h, 4 * x.shape[-1], approximate=True, **layer)


class _Transformer(nn.Module, kw_only=True):
    """What both players share.

    Attributes:
      width: of a token, a multiple of 4 and of ``heads``.
      depth: blocks.
      heads: of an attention; 0: one for each 32 numbers of the width.
      patch: side of a patch in pixels; 0: the power of two that makes 7 to 13 rows of them.
      rope: whether queries and keys are turned by their places (``attention.grid_angles``), beside the fixed positions
        that are added to the tokens.
      qk_norm, rms: as in ``Block``. Derivatives of a layer norm are as great as a token is small, which a loss that has
        them, such as that of a continuous flow, cannot bear: then rms.
      times: how many times ``f32[b]`` the network takes behind its first input, before the labels: 0, 1 or 2. They
        modulate, each by ``dense(SiLU(dense(waves)))`` of 256 sines and cosines.
      time_scale: what a time in [0, 1] is multiplied by first. A D whose derivative by the time is used takes less.
      classes: of the labels; 0: unconditional. Without labels, times and latents the condition is zero, and biases
        alone modulate.
      dtype: of the computation; parameters are float32 or wider.
    """

    width: int = 192
    depth: int = 6
    heads: int = 0
    patch: int = 0
    rope: bool = False
    qk_norm: bool = False
    rms: bool = False
    times: int = 0
    time_scale: float = 1000.0
    classes: int = 0
    dtype: Any = jnp.float32

    def _side(self, height: int) -> int:
        return self.patch or 1 << max((height // 7).bit_length() - 1, 0)

    def _heads(self) -> int:
        heads = self.heads or max(self.width // 32, 1)
        if self.width % 4 or self.width % heads:
            raise ValueError(f"width={self.width}: must be a multiple of 4 and of {heads} heads")
        if self.rope and self.width // heads % 4:
            size = self.width // heads
            raise ValueError(f"rope: needs heads whose width is a multiple of 4, got {size}")
        return heads

    def _condition(self, b: int, times: Sequence[Any], labels: Any, latents: Any = None) -> Rows:
        """The sum of what modulates."""
        layer: dict[str, Any] = {"dtype": self.dtype, "kernel_init": _SMALL}
        c = jnp.zeros((b, self.width), self.dtype)
        for i, time in enumerate(times):
            c = c + embedded(f"time{i}", self.width, time_waves(time, self.time_scale), **layer)
        if labels is not None:
            table = Embed(self.classes, self.width, embedding_init=_SMALL, dtype=self.dtype,
                          name="labels")  # fmt: skip
            c = c + table(labels)
        if latents is not None:
            c = c + embedded("latents", self.width, latents, dtype=self.dtype)
        return c

    def _blocks(self, x: Tokens, condition: Rows, angles: Any) -> Tokens:
        for i in range(self.depth):
            block = Block(self._heads(), self.qk_norm, self.rms, self.dtype, name=f"block{i}")
            x = block(x, condition, angles)
        return x

    def _norm(self, x: Array) -> Array:
        return rms_norm(x) if self.rms else layer_norm(x)

    def _places(self, grid: tuple[int, int]) -> tuple[Tokens, Any]:
        """Fixed positions ``[1, t, f]``, and the angles, if queries and keys are turned."""
        head = self.width // self._heads()
        angles = grid_angles(*grid, head) if self.rope else None
        return grid_positions(*grid, self.width)[None].astype(self.dtype), angles


class Generator(_Transformer):
    """``z -> x[b, h, w, c]``: patches of z, blocks, ``dense(n(x) (1 + k) + s)`` that is zero at the start.

    Latents of as many numbers as an image has, ``[b, h w c]`` or ``[b, h, w, c]``, are noise that G maps to an image,
    patch by patch. Others, ``[b, z]``, modulate the blocks, ``dense(SiLU(dense(z)))`` beside the labels, and the tokens
    start as their positions. The output is linear. What follows z is the times and then the labels.

    Attributes:
      shape: ``(h, w, c)`` of an image.
      residual: whether the image is z minus what the blocks make of it; then G starts as the identity.
      width, depth, heads, patch, rope, qk_norm, rms, times, time_scale, classes, dtype: as in ``_Transformer``.

    Raises:
      ValueError: a patch that does not divide the image, heads that do not divide the width, too few times, missing
        labels, or residual with latents that are not of the images' size.
    """

    shape: tuple[int, int, int]
    residual: bool = False

    @nn.compact
    def __call__(self, z: Any, *given: Any, train: bool = False) -> Images:
        del train  # no state
        times, labels = split_given(given, self.times, self.classes)
        numbers, patch = math.prod(self.shape), self._side(self.shape[0])
        places, angles = self._places(patches_of(self.shape[:2], patch))
        z = z.astype(self.dtype)
        mapped = math.prod(z.shape[1:]) == numbers
        layer: dict[str, Any] = {"kernel_init": xavier(), "dtype": self.dtype}
        if mapped:
            z = z.reshape(-1, *self.shape)
            x = tokenwise("patches", self.width, patchify(z, patch), **layer) + places
        elif self.residual:
            size = math.prod(z.shape[1:])
            raise ValueError(f"residual: needs latents of the {numbers} numbers of x, got {size}")
        else:
            x = jnp.broadcast_to(places, (len(z), *places.shape[1:]))
        labels = labels if self.classes else None
        condition = self._condition(len(z), times, labels, None if mapped else z)
        x = self._blocks(x, condition, angles)
        shift, scale = modulation(x, condition, 2, dtype=self.dtype)
        x = self._norm(x) * (1 + scale) + shift
        x = tokenwise("pixels", patch**2 * self.shape[2], x, kernel_init=_ZERO, dtype=self.dtype)
        x = unpatchify(x, self.shape, patch)
        return z - x if self.residual else x


class Discriminator(_Transformer):
    """``x[b, h, w, c] -> logits[b]``: patches and a learned token before them, blocks, that token's norm, a head.

    As the blocks start as the identity, D starts as a constant of x. What follows x is the times and then the labels.

    Attributes:
      head, embedding: as in ``heads.score``. The head ``"modulation"`` is a bias-free dense layer, and the labels
        modulate the blocks as they do G's; with any other one they enter in the head alone.
      width, depth, heads, patch, rope, qk_norm, rms, times, time_scale, classes, dtype: as in ``_Transformer``; the
        logits are float32 or wider.

    Raises:
      ValueError: as in ``Generator`` and ``heads.score``.
    """

    head: Kind = "modulation"
    embedding: int = 512

    @nn.compact
    def __call__(self, x: Images, *given: Any, train: bool = False) -> Scores:
        times, labels = split_given(given, self.times, self.classes)
        patch = self._side(x.shape[1])
        places, angles = self._places(patches_of(x.shape[1:3], patch))
        x = patchify(x.astype(self.dtype), patch)
        x = tokenwise("patches", self.width, x, kernel_init=xavier(), dtype=self.dtype) + places
        token = self.param("token", _SMALL, (self.width,), storage_dtype(self.dtype))
        token = token.astype(self.dtype).reshape(1, 1, -1)
        token = jnp.broadcast_to(token, (len(x), 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        if angles is not None:  # that token has no place
            angles = jnp.pad(angles, ((1, 0), (0, 0)))
        modulated = self.classes and self.head == "modulation"
        condition = self._condition(len(x), times, labels if modulated else None)
        features = self._norm(self._blocks(x, condition, angles)[:, 0])
        return score(
            features, labels, name="dense0", classes=self.classes, head=self.head,
            embedding=self.embedding, use_bias=False, kernel_init=xavier(), train=train,
            dtype=self.dtype,
        )  # fmt: skip


_OPTIONS = {
    "depth": Option("BLOCKS"),
    "heads": Option("HEADS"),
    "patch": Option("SIDE", meaning="pixels"),
    "rope": Option(meaning="rotary positions"),
    "qknorm": Option(meaning="queries and keys of one norm"),
    "rms": Option(meaning="RMS norms"),
}


def _fields(width: int, *, depth: int, qknorm: bool, **given: Any) -> dict[str, Any]:
    """Fields of the modules, of what an option means."""
    return dict(given, width=width, depth=depth or _Transformer.depth, qk_norm=qknorm)


ARCHITECTURES["vit"] = Architecture(
    Network(
        lambda shape, size, **given: Generator(shape, **_fields(size, **given)),
        options={**_OPTIONS, "residual": Option(meaning="G subtracts from its noise")},
        times=True,
    ),
    Network(
        lambda shape, size, **given: Discriminator(**_fields(size, **given)),
        options=_OPTIONS,
        conditions=ALL_CONDITIONS,
        times=True,
        smooth=True,
        smooth_if="rms",
    ),
    size=192,
    size_of="width",
)
