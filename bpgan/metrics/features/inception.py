"""InceptionV3 with the weights of the published Fréchet inception distance.

The network of Szegedy et al. 2016, arXiv:1512.00567, as TensorFlow's 2015 graph has it, with 1008 classes, which Heusel
et al. 2017, arXiv:1706.08500, took: its average pools do not count the padding, and the last block pools by maximum.
The weights come from the user or are downloaded; with any others no number is called FID.
"""

import functools
import os
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

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"
"""What the hash of the published weights begins with, as their name says."""

SIZE = 299
CLASSES = 1008
EPS = 1e-3
PRESETS: dict[str, tuple[preprocess.Resize, float, float]] = {
    "tf1": ("tf1", 128.0, 128.0),
    "torch": ("torch", 127.5, 127.5),
    "clean": ("clean", 128.0, 128.0),
}
"""``(resize, mean, scale)``: torch-fidelity and the TensorFlow original; pytorch-fid; clean-fid."""

_BATCH = 50


def _average_pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


class _Conv(nn.Module):
    """Convolution, folded batch norm, ReLU; ``same`` padding with stride 1, none with stride 2."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = "VALID" if self.stride == 2 else self.padding
        conv = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            padding=padding,
            name="conv",
            precision=jax.lax.Precision.HIGHEST,
        )
        return nn.relu(conv(x))


def _chain(x: jax.Array, name: str, *layers: tuple) -> jax.Array:
    """Layers called ``name_1``, ``name_2``, ..."""
    for i, layer in enumerate(layers, 1):
        x = _Conv(*layer, name=f"{name}_{i}")(x)
    return x


class _A(nn.Module):
    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate(
            [
                _Conv(64, name="branch1x1")(x),
                _chain(x, "branch5x5", (48,), (64, (5, 5))),
                _chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
                _Conv(self.pooled, name="branch_pool")(_average_pool(x)),
            ],
            axis=-1,
        )


class _B(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate(
            [
                _Conv(384, (3, 3), 2, name="branch3x3")(x),
                _chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2)),
                _halve(x),
            ],
            axis=-1,
        )


class _C(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, row, column = self.width, (1, 7), (7, 1)
        double = ((c,), (c, column), (c, row), (c, column), (192, row))
        return jnp.concatenate(
            [
                _Conv(192, name="branch1x1")(x),
                _chain(x, "branch7x7", (c,), (c, row), (192, column)),
                _chain(x, "branch7x7dbl", *double),
                _Conv(192, name="branch_pool")(_average_pool(x)),
            ],
            axis=-1,
        )


class _D(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        seven = ((192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2))
        return jnp.concatenate(
            [
                _chain(x, "branch3x3", (192,), (320, (3, 3), 2)),
                _chain(x, "branch7x7x3", *seven),
                _halve(x),
            ],
            axis=-1,
        )


class _E(nn.Module):
    pool: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def split(x: jax.Array, name: str) -> list[jax.Array]:
            parts = (("a", (1, 3)), ("b", (3, 1)))
            return [_Conv(384, kernel, name=f"{name}{part}")(x) for part, kernel in parts]

        three = _chain(x, "branch3x3", (384,))
        double = _chain(x, "branch3x3dbl", (448,), (384, (3, 3)))
        pooled = _max_pool(x) if self.pool == "max" else _average_pool(x)
        return jnp.concatenate(
            [
                _Conv(320, name="branch1x1")(x),
                *split(three, "branch3x3_2"),
                *split(double, "branch3x3dbl_3"),
                _Conv(192, name="branch_pool")(pooled),
            ],
            axis=-1,
        )


class InceptionV3(nn.Module):
    """``x[b, 299, 299, 3]`` -> the taps ``64``, ``192``, ``768``, ``2048``, each averaged over the image, and
    ``logits_unbiased`` and ``logits`` [b, 1008]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        x = _Conv(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = _Conv(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = _halve(_Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
        taps = {"64": x}
        x = _Conv(80, name="Conv2d_3b_1x1")(x)
        x = _halve(_Conv(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x))
        taps["192"] = x
        for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = _A(pooled, name=f"Mixed_{name}")(x)
        x = _B(name="Mixed_6a")(x)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = _C(width, name=f"Mixed_{name}")(x)
        taps["768"] = x
        x = _D(name="Mixed_7a")(x)
        x = _E("average", name="Mixed_7b")(x)
        # Probably a mistake of the original graph; the weights were trained with it.
        x = _E("max", name="Mixed_7c")(x)
        taps["2048"] = x
        found = {name: tap.mean(axis=(1, 2)) for name, tap in taps.items()}
        logits = nn.Dense(CLASSES, use_bias=False, name="fc", precision=jax.lax.Precision.HIGHEST)(
            found["2048"]
        )
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,))
        return found | {"logits_unbiased": logits, "logits": logits + bias[None]}


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    """What PyTorch's state dict of the network must hold, by name."""
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    wanted = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    found: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, 2048), "fc.bias": (CLASSES,)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        name = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        if name.endswith("conv") and leaf.ndim == 4:
            h, w, inputs, outputs = leaf.shape
            found[f"{name}.weight"] = (outputs, inputs, h, w)
            parts = ("weight", "bias", "running_mean", "running_var")
            found |= {f"{name[:-4]}bn.{part}": (outputs,) for part in parts}
    return found


def params_of(
    state: dict[str, np.ndarray], path: Any = "weights", *, eps: float = EPS
) -> dict[str, Any]:
    """The parameters of ``InceptionV3`` from PyTorch's state dict, that of torch-fidelity or of pytorch-fid.

    Raises:
      UserError: if the state dict is of another network.
    """
    weights.expect(state, shapes(), path)
    params: dict[str, Any] = {"fc": {"kernel": state["fc.weight"].T}, "fc_bias": state["fc.bias"]}
    for name in shapes():
        if name.endswith(".conv.weight"):
            layer = name.removesuffix(".conv.weight")
            node = params
            for part in layer.split("."):
                node = node.setdefault(part, {})
            node["conv"] = weights.fold_batch_norm(state, f"{layer}.conv", f"{layer}.bn", eps=eps)
    return params


def taps(params: Any, images: jax.Array, preset: str = "tf1") -> dict[str, jax.Array]:
    """Everything ``InceptionV3`` gives of images uint8 ``[b, h, w, 3]``, traceable."""
    how, mean, scale = PRESETS[preset]
    x = (preprocess.resize(images, SIZE, how) - mean) / scale
    return InceptionV3().apply({"params": params}, x)  # type: ignore[return-value]


def download(folder: str | os.PathLike) -> pathlib.Path:
    """The published weights in ``folder``, fetched if they are not there (95 MB).

    Raises:
      UserError: if they cannot be had.
    """
    return weights.download(URL, pathlib.Path(folder) / FILE, SHA256)


def extractor(path: str | os.PathLike, preset: str = "tf1") -> Extractor:
    """The 2048 features of the last pool, and the logits without bias, as torch-fidelity's Inception score has them.

    Args:
      path: of the weights as PyTorch's state dict; ``download`` fetches the published ones.
      preset: one of ``PRESETS``.

    Raises:
      UserError: for a file that cannot be read or is of another network, or another preset.
    """
    if preset not in PRESETS:
        raise UserError(f"preset={preset}: must be one of {', '.join(PRESETS)}")
    digest = weights.sha256(path)
    params = params_of(weights.read(path), path)
    options = compiler.options(jax.default_backend())
    compiled = jax.jit(lambda params, x: taps(params, x, preset), compiler_options=options)
    published = digest.startswith(SHA256)
    name = f"Inception-{preset}" if published else f"Inception-unpublished-{digest[:8]}-{preset}"

    def function(tap: str):
        return lambda images: in_batches(
            lambda x: np.asarray(compiled(params, preprocess.rgb(x, name))[tap]),
            images,
            images_at_a_time(_BATCH),
        )

    how, mean, scale = PRESETS[preset]
    text = f"gray repeated to RGB, {how} resize to {SIZE}x{SIZE}, (x - {mean:g}) / {scale:g}"
    return Extractor(
        name, digest, text, function("2048"), function("logits_unbiased"), inception=published
    )
