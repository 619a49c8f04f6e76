"""Convolutions whose derivatives of every order are fast, on XLA:CPU and inside a scan too.

One trilinear form of images ``x``, kernels ``w`` and responses ``g``,

    T(x, w, g) = sum_{n,p,q,i,j,c,o} x[n, sp + i - lo, sq + j - lo, c] w[i, j, c, o] g[n, p, q, o],

has three partial gradients, and they are the three primitives of this file:

==================  ==============================  =====================================
primitive           gradient of T                   its own transposes
==================  ==============================  =====================================
``conv``            ``(x, w) -> g``, ``dT/dg``      ``input_grad``, ``weight_grad``
``input_grad``      ``(g, w) -> x``, ``dT/dx``      ``conv``, ``weight_grad``
``weight_grad``     ``(x, g) -> w``, ``dT/dw``      ``input_grad``, ``conv``
==================  ==============================  =====================================

They are closed under differentiation, so gradient penalties (reverse over reverse), ``jvp`` and
Jacobians of gradients never leave them. Each one is lowered twice:

- On CPU as plain NHWC/HWIO convolutions. XLA:CPU has a fast path for those only; the gradient
  convolutions that JAX's own transpose rules emit reach it at the top level of a program but not
  inside a loop, where they are many times slower. ``benchmarks/conv_in_scan.py`` guards this.
- Elsewhere as what autodiff of ``lax.conv_general_dilated`` emits, the patterns that the GPU and
  TPU compilers know.

Layout everywhere: images ``[b, h, w, c]``, kernels ``[kh, kw, in, out]`` of the operation at hand.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from bpgan.types import Images, Labels

Kernel = Float[Array, "kh kw i o"]
Init = Callable[..., Array]
"""``(key, shape, dtype) -> array``, the initial value of a parameter."""
Pair = tuple[int, int]
Padding = int | Sequence[Sequence[int]] | Literal["SAME"]

_NHWC = ("NHWC", "HWIO", "NHWC")


# The three primitives: forms for GPU and TPU, forms for CPU, rules.
# Parameters: strides and padding ((lo, hi), (lo, hi)) of the convolution, and size, the spatial
# axes of the result.


def _lax_conv(x: Array, w: Array, *, strides: Pair, padding: Any, size: Any) -> Array:
    del size  # follows from the rest
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=_NHWC)


def _lax_input_grad(g: Array, w: Array, *, strides: Pair, padding: Any, size: Any) -> Array:
    x = jax.ShapeDtypeStruct((g.shape[0], *size, w.shape[2]), g.dtype)
    form = partial(_lax_conv, strides=strides, padding=padding, size=g.shape[1:3])
    return jax.linear_transpose(lambda x: form(x, w), x)(g)[0]


def _lax_weight_grad(x: Array, g: Array, *, strides: Pair, padding: Any, size: Any) -> Array:
    w = jax.ShapeDtypeStruct((*size, x.shape[3], g.shape[3]), g.dtype)
    form = partial(_lax_conv, strides=strides, padding=padding, size=g.shape[1:3])
    return jax.linear_transpose(lambda w: form(x, w), w)(g)[0]


def _cpu_input_grad(g: Array, w: Array, *, strides: Pair, padding: Any, size: Any) -> Array:
    """``x[h] = sum_{s p + i = h + lo} g[p] w[i]``, from the dilated g or by sub-pixels.

    With ``h + lo = s m + a`` only the taps ``i = s u + a`` meet the response ``p = m - u``. So the
    ``s * s`` phases ``a`` of x are the output channels of one stride-1 convolution of g,
    interleaved afterwards; unlike in the dilated form no zero is multiplied. A kernel size that s
    does not divide is filled up with zeros.
    """
    (kh, kw, c, o), (sh, sw) = w.shape, strides
    spatial = list(zip((kh, kw), strides, padding, size, g.shape[1:3], strict=True))
    if strides == (1, 1) or c < 8:  # to interleave few channels costs more than the zeros do
        pads = [(k - 1 - lo, n + lo - s * (p - 1) - 1) for k, s, (lo, _), n, p in spatial]
        w = w[::-1, ::-1].transpose(0, 1, 3, 2)
        return lax.conv_general_dilated(
            g, w, (1, 1), pads, lhs_dilation=strides, dimension_numbers=_NHWC
        )
    uh, uw = -(-kh // sh), -(-kw // sw)  # taps per phase
    w = jnp.pad(w, ((0, uh * sh - kh), (0, uw * sw - kw), (0, 0), (0, 0)))
    phases = w.reshape(uh, sh, uw, sw, c, o)[::-1, :, ::-1]
    phases = phases.transpose(0, 2, 5, 1, 3, 4).reshape(uh, uw, o, sh * sw * c)
    pads, crops = [], []
    for k, s, (lo, _), n, p in spatial:
        first, last = lo // s, (lo + n - 1) // s  # the coarse rows m that x needs
        pads.append((-(-k // s) - 1 - first, last - (p - 1)))
        crops.append(slice(lo - s * first, lo - s * first + n))
    x = lax.conv_general_dilated(g, phases, (1, 1), pads, dimension_numbers=_NHWC)
    b, mh, mw, _ = x.shape
    x = x.reshape(b, mh, mw, sh, sw, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, mh * sh, mw * sw, c)[:, crops[0], crops[1]]


def _cpu_weight_grad(x: Array, g: Array, *, strides: Pair, padding: Any, size: Any) -> Array:
    """``w[i] = sum_p x[s p + i - lo] g[p]``: batch and channels trade places, g is the kernel."""
    pads = [
        (lo, s * (length - 1) + k - lo - n)  # so that the result has exactly k rows
        for k, s, (lo, _), n, length in zip(
            size, strides, padding, x.shape[1:3], g.shape[1:3], strict=True
        )
    ]
    w = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        pads,
        rhs_dilation=strides,
        dimension_numbers=_NHWC,
    )
    return w.transpose(1, 2, 0, 3)


def _shape(a: Array, b: Array, *, free: Any, size: Pair, **_: Any) -> tuple[int, ...]:
    """Shape of the result: the given spatial sizes, and each operand's axis that is not summed."""
    (axis_a, out_a), (axis_b, out_b) = free
    shape = dict(zip([i for i in range(4) if i not in (out_a, out_b)], size, strict=True))
    shape |= {out_a: a.shape[axis_a], out_b: b.shape[axis_b]}
    return tuple(shape[i] for i in range(4))


def _batch(
    args: Any, dims: Any, *, prim: Primitive, form: Callable, free: Any, **params: Any
) -> Any:
    """vmap: a batch of one operand joins the axis it alone shares with the result.

    With both operands batched there is no such axis; lax makes it a grouped convolution.
    """
    a, b = args
    if None not in dims:
        return jax.vmap(partial(form, **params), in_axes=dims)(a, b), 0
    side = 0 if dims[1] is None else 1
    axis, out = free[side]
    stacked = jnp.moveaxis(args[side], dims[side], axis)
    shape = stacked.shape
    folded = stacked.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    y = prim.bind(*((folded, b) if side == 0 else (a, folded)), **params)
    y = y.reshape(*y.shape[:out], *shape[axis : axis + 2], *y.shape[out + 1 :])
    return y, out


def _primitive(name: str, form: Callable, cpu_form: Callable, free: tuple[Pair, Pair]) -> Primitive:
    """A bilinear primitive, but for its transposes.

    ``free`` says which axis of each operand is not summed over, and which axis of the result it is;
    for ``conv`` these are n of x and o of w.
    """
    prim = Primitive(name)
    prim.def_impl(form)  # eager: a program of one convolution has no loop, and lax is as good

    def abstract(a: Any, b: Any, **params: Any) -> Any:
        return a.update(shape=_shape(a, b, free=free, **params), weak_type=False)

    prim.def_abstract_eval(abstract)
    batching.primitive_batchers[prim] = partial(_batch, prim=prim, form=form, free=free)
    mlir.register_lowering(prim, mlir.lower_fun(form, multiple_results=False))
    mlir.register_lowering(prim, mlir.lower_fun(cpu_form, multiple_results=False), platform="cpu")
    return prim


_conv_p = _primitive("bpgan_conv", _lax_conv, _lax_conv, ((0, 0), (3, 3)))
_input_grad_p = _primitive(
    "bpgan_conv_input_grad", _lax_input_grad, _cpu_input_grad, ((0, 0), (2, 3))
)
_weight_grad_p = _primitive(
    "bpgan_conv_weight_grad", _lax_weight_grad, _cpu_weight_grad, ((3, 2), (3, 3))
)


def _to_x(g: Array, w: Array, x: Any, *, strides: Pair, padding: Any, **_: Any) -> Array:
    size = x.aval.shape[1:3]
    return _input_grad_p.bind(g, w, strides=strides, padding=padding, size=size)


def _to_w(x: Array, g: Array, w: Any, *, strides: Pair, padding: Any, **_: Any) -> Array:
    return _weight_grad_p.bind(x, g, strides=strides, padding=padding, size=w.aval.shape[:2])


def _to_g(x: Array, w: Array, g: Any, *, strides: Pair, padding: Any, **_: Any) -> Array:
    return _conv_p.bind(x, w, strides=strides, padding=padding, size=g.aval.shape[1:3])


# A rule gets the cotangent, named here by the tensor it stands for, and the two operands, one of
# them unknown.
ad.defbilinear(
    _conv_p,
    lambda g, x, w, **params: _to_x(g, w, x, **params),
    lambda g, x, w, **params: _to_w(x, g, w, **params),
)
ad.defbilinear(
    _input_grad_p,
    lambda x, g, w, **params: _to_g(x, w, g, **params),
    lambda x, g, w, **params: _to_w(x, g, w, **params),
)
ad.defbilinear(
    _weight_grad_p,
    lambda w, x, g, **params: _to_x(g, w, x, **params),
    lambda w, x, g, **params: _to_g(x, w, g, **params),
)


# Grouped convolutions of stride 1 that keep the size: the same trilinear form, restricted to kernels
# that connect group with group. Its input gradient is again such a convolution, so two primitives are closed under
# differentiation. XLA:CPU computes a grouped convolution 5 to 10 times, and its gradients 50 to 150
# times more slowly than dense convolutions of a few groups each, the other groups' taps zero.

_CHUNK = 32  # channels of one dense convolution: narrower ones leave vector units idle and compile longer


def _lax_grouped(x: Array, w: Array, *, groups: int) -> Array:
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=_NHWC, feature_group_count=groups
    )


def _lax_grouped_weight_grad(x: Array, g: Array, *, groups: int, size: Pair) -> Array:
    w = jax.ShapeDtypeStruct((*size, x.shape[3] // groups, g.shape[3]), g.dtype)
    return jax.linear_transpose(lambda w: _lax_grouped(x, w, groups=groups), w)(g)[0]


def _chunks(groups: int, width: int) -> tuple[int, int]:
    """How many dense convolutions there are, and how many groups each one joins."""
    joined = next(n for n in range(max(_CHUNK // width, 1), 0, -1) if groups % n == 0)
    return groups // joined, joined


def _cpu_grouped(x: Array, w: Array, *, groups: int) -> Array:
    kh, kw, i, o = *w.shape[:3], w.shape[3] // groups
    n, joined = _chunks(groups, i)
    blocks = w.reshape(kh, kw, 1, i, n, joined, 1, o)
    diagonal = jnp.eye(joined, dtype=w.dtype).reshape(1, 1, joined, 1, 1, joined, 1, 1)
    # [kh, kw, from group, i, chunk, to group, 1, o], zero unless the two groups are one
    blocks = (blocks * diagonal).reshape(kh, kw, joined * i, n, joined * o)
    return lax.concatenate(
        [
            lax.conv_general_dilated(a, blocks[:, :, :, m], (1, 1), "SAME", dimension_numbers=_NHWC)
            for m, a in enumerate(jnp.split(x, n, axis=3))
        ],
        3,
    )


def _cpu_grouped_weight_grad(x: Array, g: Array, *, groups: int, size: Pair) -> Array:
    i, o = x.shape[3] // groups, g.shape[3] // groups
    n, joined = _chunks(groups, i)
    pads = tuple((k // 2, k // 2) for k in size)
    parts = []
    for a, b in zip(jnp.split(x, n, axis=3), jnp.split(g, n, axis=3), strict=True):
        w = _cpu_weight_grad(a, b, strides=(1, 1), padding=pads, size=size)
        w = w.reshape(*size, joined, i, joined, o)
        parts.append(jnp.stack([w[:, :, m, :, m] for m in range(joined)], axis=3))
    return jnp.stack(parts, axis=3).reshape(*size, i, groups * o)


def _grouped_primitive(name: str, form: Callable, cpu_form: Callable) -> Primitive:
    prim = Primitive(name)
    prim.def_impl(form)

    def abstract(a: Any, b: Any, **params: Any) -> Any:
        return a.update(shape=jax.eval_shape(partial(form, **params), a, b).shape, weak_type=False)

    def batch(args: Any, dims: Any, **params: Any) -> Any:
        return jax.vmap(partial(form, **params), in_axes=dims)(*args), 0

    prim.def_abstract_eval(abstract)
    batching.primitive_batchers[prim] = batch
    mlir.register_lowering(prim, mlir.lower_fun(form, multiple_results=False))
    mlir.register_lowering(prim, mlir.lower_fun(cpu_form, multiple_results=False), platform="cpu")
    return prim


_grouped_p = _grouped_primitive("bpgan_grouped_conv", _lax_grouped, _cpu_grouped)
_grouped_weight_grad_p = _grouped_primitive(
    "bpgan_grouped_conv_weight_grad", _lax_grouped_weight_grad, _cpu_grouped_weight_grad
)


def _adjoint(w: Array, groups: int) -> Array:
    """The kernel of the input gradient: turned by 180 degrees, in and out exchanged in each group."""
    kh, kw, i, o = *w.shape[:3], w.shape[3] // groups
    w = w[::-1, ::-1].reshape(kh, kw, i, groups, o)
    return w.transpose(0, 1, 4, 3, 2).reshape(kh, kw, o, groups * i)


def _grouped_to_w(x: Array, g: Array, w: Any, *, groups: int) -> Array:
    return _grouped_weight_grad_p.bind(x, g, groups=groups, size=w.aval.shape[:2])


ad.defbilinear(
    _grouped_p,
    lambda g, x, w, *, groups: _grouped_p.bind(g, _adjoint(w, groups), groups=groups),
    lambda g, x, w, *, groups: _grouped_to_w(x, g, w, groups=groups),
)
ad.defbilinear(
    _grouped_weight_grad_p,
    lambda w, x, g, *, groups, size: _grouped_p.bind(g, _adjoint(w, groups), groups=groups),
    lambda w, x, g, *, groups, size: _grouped_p.bind(x, w, groups=groups),
)


# The three operations.


def conv(x: Images, kernel: Kernel, *, stride: int | Pair = 1, padding: Padding = "SAME") -> Images:
    """Cross-correlation, what deep learning calls convolution.

    ``y[n, p, q, o] = sum_{i,j,c} x[n, s p + i - lo, s q + j - lo, c] kernel[i, j, c, o]``, with x
    zero outside its bounds. Equal to ``lax.conv_general_dilated`` in NHWC/HWIO, and to torch
    ``conv2d`` with the kernel permuted to OIHW.

    Args:
      x: ``[b, h, w, c]``.
      kernel: ``[kh, kw, c, o]``.
      stride: one for both axes, or ``(height, width)``.
      padding: zeros around x, one number for all sides, ``((top, bottom), (left, right))``, or
        "SAME": ``ceil(size / stride)`` outputs; of an odd number of zeros the larger half comes
        after.

    Returns:
      ``[b, h', w', o]`` with ``h' = (h + top + bottom - kh) // stride + 1``.

    Raises:
      ValueError: ranks, channels, dtypes, stride or padding that do not fit, or an empty output.
    """
    x, kernel = _operands("conv", x, kernel)
    strides, spatial = _pair("stride", stride), x.shape[1:3]
    if padding == "SAME":
        padding = _split(
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(spatial, strides, kernel.shape, strict=False)
        )
    padding = _margins(padding)
    size = tuple(
        (n + lo + hi - k) // s + 1
        for n, s, k, (lo, hi) in zip(spatial, strides, kernel.shape[:2], padding, strict=True)
    )
    if min(size) < 1:
        raise ValueError(
            f"conv: kernel {kernel.shape[:2]} exceeds the image {spatial} padded by {padding}"
        )
    return _conv_p.bind(x, kernel, strides=strides, padding=padding, size=size)


def conv_transpose(
    x: Images, kernel: Kernel, *, stride: int | Pair = 1, padding: Padding = "SAME"
) -> Images:
    """Transposed convolution: every input pixel adds a copy of the kernel, times it, to the output.

    ``y[n, s p + i - lo, s q + j - lo, o] = sum x[n, p, q, c] kernel[i, j, c, o]`` over all p, q, i,
    j, c that meet there. It is the adjoint of the convolution with the same stride and padding,
    ``<conv_transpose(x, k), y> = <x, conv(y, k.transpose(0, 1, 3, 2))>``. Kernel 4, stride 2,
    padding 1 doubles the size. The same function elsewhere, for padding ``(lo, hi)`` and kernel
    size k:

    - torch ``ConvTranspose2d(..., stride, padding=lo)`` with the weight
      ``kernel.transpose(2, 3, 0, 1)``, where ``lo == hi``;
    - ``lax.conv_transpose(x, kernel[::-1, ::-1], strides, [(k - 1 - lo, k - 1 - hi), ...])``,
      because lax correlates, and its paddings are those of the dilated input;
    - the same with ``kernel.transpose(0, 1, 3, 2)`` and ``transpose_kernel=True``.

    Args:
      x: ``[b, h, w, c]``.
      kernel: ``[kh, kw, c, o]``, in and out channels of this operation.
      stride: one for both axes, or ``(height, width)``.
      padding: what is cut off the full output, one number for all sides, or
        ``((top, bottom), (left, right))``, or "SAME": ``stride * size`` outputs, the adjoint of the
        "SAME" convolution.

    Returns:
      ``[b, h', w', o]`` with ``h' = stride * (h - 1) + kh - top - bottom``.

    Raises:
      ValueError: ranks, channels, dtypes, stride or padding that do not fit, or an empty output.
    """
    x, kernel = _operands("conv_transpose", x, kernel)
    strides, spatial = _pair("stride", stride), x.shape[1:3]
    if padding == "SAME":
        padding = _split(max(k - s, 0) for k, s in zip(kernel.shape, strides, strict=False))
        size = tuple(s * n for s, n in zip(strides, spatial, strict=True))
    else:
        padding = _margins(padding)
        size = tuple(
            s * (n - 1) + k - lo - hi
            for n, s, k, (lo, hi) in zip(spatial, strides, kernel.shape[:2], padding, strict=True)
        )
    if min(size) < 1:
        raise ValueError(f"conv_transpose: padding {padding} leaves nothing of the output")
    adjoint = kernel.transpose(0, 1, 3, 2)
    return _input_grad_p.bind(x, adjoint, strides=strides, padding=padding, size=size)


def grouped_conv(x: Images, kernel: Kernel, *, groups: int) -> Images:
    """``groups`` convolutions side by side, each from its own channels to its own, stride 1, "SAME".

    ``y[n, p, q, g o + r] = sum_{i,j,c} x[n, p + i - kh//2, q + j - kw//2, g c' + c] kernel[i, j, c, g o + r]`` with
    ``c' = kernel.shape[2]`` channels into a group and ``o = kernel.shape[3] / groups`` out of it. Equal to
    ``lax.conv_general_dilated(..., feature_group_count=groups)``, and to torch ``conv2d(..., groups=groups)``.
    Aggregated transformations of Xie et al. 2017, arXiv:1611.05431.

    Args:
      x: ``[b, h, w, groups * c']``.
      kernel: ``[kh, kw, c', groups * o]``, kh and kw odd.

    Raises:
      ValueError: channels that the groups do not divide, an even kernel, or dtypes that do not fit.
    """
    x, kernel = _operands("grouped_conv", x, kernel, groups)
    if kernel.shape[3] % groups or not kernel.shape[0] % 2 or not kernel.shape[1] % 2:
        raise ValueError(
            f"grouped_conv: kernel {kernel.shape} must be odd, and groups={groups} divide its outputs"
        )
    return _grouped_p.bind(x, kernel, groups=groups)


def _operands(name: str, x: Array, kernel: Array, groups: int = 1) -> tuple[Array, Array]:
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != groups * kernel.shape[2]:
        raise ValueError(
            f"{name}: needs x [b,h,w,c] and kernel [kh,kw,c,o], got {x.shape} and {kernel.shape}"
        )
    dtype = jnp.result_type(x, kernel)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"{name}: needs floating-point images and kernel, got {dtype}")
    # In shard_map an operand that is the same on every device meets one that is not; the transpose
    # of this cast is the sum over devices.
    axes = [jax.typeof(t).manual_axis_type.varying for t in (x, kernel)]
    x, kernel = (
        lax.pcast(t.astype(dtype), tuple(missing), to="varying") if missing else t.astype(dtype)
        for t, missing in zip((x, kernel), (axes[1] - axes[0], axes[0] - axes[1]), strict=True)
    )
    return x, kernel


def _pair(name: str, value: int | Sequence[int]) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name}={value!r}: must be a positive integer or a pair of them")
    return pair


def _margins(padding: Padding) -> tuple[Pair, Pair]:
    """``((top, bottom), (left, right))``, not negative."""
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    try:
        (top, bottom), (left, right) = cast(Any, padding)
    except (TypeError, ValueError):
        raise ValueError(
            f'padding={padding!r}: must be an integer, ((top, bottom), (left, right)) or "SAME"'
        ) from None
    if min(top, bottom, left, right) < 0:
        raise ValueError(f"padding={padding!r}: must not be negative")
    return (top, bottom), (left, right)


def _split(totals: Any) -> tuple[Pair, ...]:
    """Zeros shared out before and after; the odd one goes after, as in lax and TensorFlow."""
    return tuple((total // 2, total - total // 2) for total in totals)


def upsample2(x: Images) -> Images:
    """``[b, h, w, c] -> [b, 2h, 2w, c]``, bilinear with half-pixel centers.

    Each output pixel lies a quarter of a pixel off an input pixel, so per axis
    ``y[2i] = (x[i-1] + 3 x[i]) / 4``, ``y[2i+1] = (3 x[i] + x[i+1]) / 4``, the edge repeated. The
    same as ``jax.image.resize(x, ..., "bilinear")``, which multiplies by dense ``[h, 2h]``
    matrices.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        # Not jnp.pad(mode="edge"), whose derivative is ten times slower on CPU.
        first, last = (lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, n - 1))
        before = lax.concatenate([first, lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
        after = lax.concatenate([lax.slice_in_dim(x, 1, n, axis=axis), last], axis)
        pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def downsample2(x: Images) -> Images:
    """``[b, 2h, 2w, c] -> [b, h, w, c]``: the mean of each 2x2 square."""
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"downsample2: {h}x{w} cannot be halved")
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


# Linen layers.


def storage_dtype(dtype: Any) -> Any:
    """Parameters and logits are never narrower than float32, whatever the network computes in."""
    return jnp.promote_types(dtype, jnp.float32)


def equalized(parameter: Array, rate: float | None, fan_in: int = 1) -> Array:
    """``rate / sqrt(fan_in) * parameter``, or the parameter itself if the rate is None.

    Equalized learning rate (Karras et al. 2018, arXiv:1710.10196, Sec. 4.1): parameters start as ``N(0, 1 / rate^2)``,
    and one step of Adam changes every kernel by the same share of its scale, times ``rate``.
    """
    return parameter if rate is None else rate / math.sqrt(fan_in) * parameter


def _scale(x: Array, axis: int | None = None) -> Array:
    """The power of two that brings the greatest number of x, along an axis or of all, to between 2 and 4; of zeros, 1.

    Squares of the product stay in the range of floats, so that no epsilon is needed, which would be a scale of its own.
    A constant to differentiation, and exact, so that it changes no digit of a quotient.
    """
    top = jnp.max(jnp.abs(lax.stop_gradient(x)), axis, keepdims=True)
    return jnp.where(top > 0, 4 * jnp.frexp(top)[0] / jnp.where(top > 0, top, 1), 1)


def unit(x: Array, axis: int | None = None) -> Array:
    """``x / |x|`` along an axis, or of all of x, whatever its size; zeros have no direction and stay."""
    x = x * _scale(x, axis)
    square = jnp.sum(jnp.square(x), axis, keepdims=True)
    return x * lax.rsqrt(jnp.where(square > 0, square, 1))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def spectral_norm(module: nn.Module, kernel: Array, *, train: bool) -> Array:
    """``W / sigma(W)`` for ``W[out, rest]``, the kernel's last axis against all others.

    Miyato et al. 2018, arXiv:1802.05957, Alg. 1: ``sigma = u^T W v`` with ``v`` along ``W^T u`` and ``u`` along
    ``W v``, which near convergence is the largest singular value. Of a convolution it is that of the reshaped
    kernel, not the norm of the operator. u and v are constants to differentiation, W is not:
    ``d sigma / d W = u v^T``. A kernel of zeros stays as it is, and so does u.

    Args:
      module: keeps ``u[out]`` in its collection ``"spectral"``, at the start one iteration from a normal vector.
      train: whether the iteration starts from the u kept and leaves the new one; otherwise ``sigma = |W^T u|``
        with the u kept.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])  # W^T
    fixed = lax.stop_gradient(matrix)

    def iterate(u: Array) -> tuple[Array, Array]:
        v = unit(_product(fixed, u))
        new = unit(_product(v, fixed))
        return v, jnp.where(jnp.any(new != 0), new, u)

    def start() -> Array:
        # Of a kernel of low rank, such as that of a single channel, a random u may see nothing; one iteration mends it.
        key = module.make_rng("params")
        return iterate(unit(jax.random.normal(key, matrix.shape[1:], kernel.dtype)))[1]

    kept = module.variable("spectral", "u", start)
    u = unit(kept.value)  # an average over steps is shorter
    v, new = iterate(u)
    if train:
        kept.value = u = new
    sigma = _product(v, _product(matrix, u))
    scale = _scale(sigma)  # for the derivative, which has the square of sigma
    return kernel * scale / jnp.where(sigma == 0, 1, sigma * scale)


def biased(y: Array, bias: Array) -> Array:
    """``y + bias`` along the last axis, of y's type.

    Added in the type of the bias, float32 or wider: its gradient sums over batch and pixels, which in bfloat16 would
    lose nearly all of them.
    """
    return (y.astype(bias.dtype) + bias.reshape((1,) * (y.ndim - 1) + (-1,))).astype(y.dtype)


class _Layer(nn.Module):
    """Parameters ``kernel[kh, kw, in, features]`` and ``bias[features]``, zero at the start.

    Attributes:
      features: output channels.
      kernel_size: one for both axes, or ``(height, width)``.
      stride, padding: as in ``conv`` and ``conv_transpose``.
      use_bias: whether a bias is added.
      kernel_init: called as ``(key, shape, dtype)``.
      dtype: of the computation; the parameters are float32 or wider.
      spectral: whether the kernel is divided by its ``spectral_norm``.
      rate: of ``equalized`` kernels and biases; None: they are used as they are.
    """

    features: int
    kernel_size: int | Pair = 3
    stride: int | Pair = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    spectral: bool = False
    rate: float | None = None

    def _apply(self, operation: Callable[..., Array], x: Images, train: bool) -> Images:
        shape = (*_pair("kernel_size", self.kernel_size), x.shape[-1], self.features)
        stored = storage_dtype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, shape, stored)
        kernel = equalized(kernel, self.rate, math.prod(shape[:3]))
        if self.spectral:
            kernel = spectral_norm(self, kernel, train=train)
        kernel = kernel.astype(self.dtype)
        y = operation(x.astype(self.dtype), kernel, stride=self.stride, padding=self.padding)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), stored)
        return biased(y, equalized(bias, self.rate))


class Conv(_Layer):
    """``conv(x, kernel) + bias``."""

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Images:
        return self._apply(conv, x, train)


class ConvTranspose(_Layer):
    """``conv_transpose(x, kernel) + bias``.

    An output pixel sums only ``kh * kw * in / stride**2`` terms: an initializer that divides by the
    fan-in ``kh * kw * in`` keeps the scale of the input if its variance is ``stride**2``.
    """

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Images:
        return self._apply(conv_transpose, x, train)


class Dense(nn.Module):
    """``x[b, i] @ kernel[i, features] + bias[features]``; parameters as of ``nn.Dense``.

    Attributes:
      features, use_bias, kernel_init, dtype, spectral, rate: as in ``Conv``.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    spectral: bool = False
    rate: float | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b i"], *, train: bool = False) -> Float[Array, "b o"]:
        stored = storage_dtype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), stored)
        kernel = equalized(kernel, self.rate, x.shape[-1])
        if self.spectral:
            kernel = spectral_norm(self, kernel, train=train)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), stored)
        return biased(y, equalized(bias, self.rate))


def lookup(table: Float[Array, "k f"], labels: Labels) -> Float[Array, "b f"]:
    """``table[labels]``; zeros where a label is no row.

    A product with indicators, whose derivative is the same sum in the same order in every run; that of indexing
    adds rows in an order that GPUs do not fix.
    """
    return _product(jax.nn.one_hot(labels, table.shape[0], dtype=table.dtype), table)


class Embed(nn.Module):
    """``labels[b] -> embedding[labels]``, vectors ``[b, features]``.

    Attributes:
      classes: number of rows of ``embedding[classes, features]``.
      embedding_init: of the rows; standard normal, the distribution of latents.
      dtype, spectral: as in ``Conv``.
    """

    classes: int
    features: int
    embedding_init: Callable[..., Array] = nn.initializers.normal(1.0)
    dtype: Any = jnp.float32
    spectral: bool = False

    @nn.compact
    def __call__(self, labels: Labels, *, train: bool = False) -> Float[Array, "b f"]:
        shape = (self.classes, self.features)
        table = self.param("embedding", self.embedding_init, shape, storage_dtype(self.dtype))
        if self.spectral:
            table = spectral_norm(self, table, train=train)
        return lookup(table, labels).astype(self.dtype)


def check_labels(labels: Any, classes: int) -> Labels:
    """The labels of a network with so many classes; anything goes, and nothing comes of it, if there are none.

    Raises:
      ValueError: there are classes but no integer labels.
    """
    if classes and (labels is None or not jnp.issubdtype(jnp.result_type(labels), jnp.integer)):
        got = "none" if labels is None else jnp.result_type(labels)
        raise ValueError(f"classes={classes}: needs integer labels [b], got {got}")
    return labels


def lookup_size(attribute: str, table: dict[int, Any], size: int) -> Any:
    """The default of an attribute for an image height: the entry of the greatest height that is not above it."""
    if size < min(table):
        raise ValueError(
            f"{attribute}: has a default from image height {min(table)} on, not for {size}"
        )
    return table[max(height for height in table if height <= size)]


class BatchNorm(nn.Module):
    """``(x - mean) / sqrt(var + epsilon) * scale + bias``, per channel (the last axis).

    Ioffe & Szegedy 2015, arXiv:1502.03167. In training, mean and (biased) variance are those of the
    batch, and the running averages, collection ``"batch_stats"``, move towards them:
    ``average = momentum * average + (1 - momentum) * batch``. Otherwise the averages stand in.

    Attributes:
      axis_name: mapped axis over which the batch is split; None where the batch is whole (which
        includes an array sharded over devices).
      momentum: of the running averages.
      epsilon: added to the variance.
      dtype: of the result; statistics are computed and kept in float32 or wider.
      classes: with labels, scale and bias are rows of tables ``[classes, c]`` (conditional batch norm, Dumoulin et
        al. 2017, arXiv:1610.07629). 0: not.
      spectral: whether the kernels of the next case are divided by their spectral norm.

    With vectors ``y[b, d]`` for labels, scale and bias are ``1 + dense(y)`` and ``dense(y)`` without biases (Brock
    et al. 2019, arXiv:1809.11096, App. C).
    """

    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    classes: int = 0
    spectral: bool = False
    kernel_init: Callable[..., Array] = nn.initializers.orthogonal()

    def _affine(self, x: Array, y: Any, stored: Any, train: bool) -> tuple[Array, Array]:
        """Scale and bias, broadcastable to x."""
        features = x.shape[-1:]
        per_example = (x.shape[0],) + (1,) * (x.ndim - 2) + features
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        if self.classes:
            shape = (self.classes, *features)
            tables = (
                self.param("scale", ones, shape, stored),
                self.param("bias", zeros, shape, stored),
            )
            scale, bias = (lookup(table, y).reshape(per_example) for table in tables)
        elif y is not None:
            scale, bias = (
                Dense(*features, use_bias=False, kernel_init=self.kernel_init, dtype=stored,
                      spectral=self.spectral, name=name)(y, train=train).reshape(per_example)
                for name in ("scale", "bias")
            )  # fmt: skip
            scale = 1 + scale
        else:
            whole = (1,) * (x.ndim - 1) + features
            scale = self.param("scale", ones, features, stored).reshape(whole)
            bias = self.param("bias", zeros, features, stored).reshape(whole)
        return scale, bias

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ... c"], y: Any = None, *, train: bool
    ) -> Float[Array, "b ... c"]:
        stored, features = storage_dtype(self.dtype), x.shape[-1:]
        scale, bias = self._affine(x, y, stored, train)
        averages = (
            self.variable("batch_stats", "mean", jnp.zeros, features, stored),
            self.variable("batch_stats", "var", jnp.ones, features, stored),
        )
        x = x.astype(stored)
        axes, wide = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + features

        def average(t: Array) -> Array:
            t = jnp.mean(t, axes)
            return t if self.axis_name is None else lax.pmean(t, self.axis_name)

        if train:
            mean = average(x)
            var = average(jnp.square(x - mean.reshape(wide)))  # two passes: no cancellation
            for kept, new in zip(averages, (mean, var), strict=True):
                kept.value = self.momentum * kept.value + (1 - self.momentum) * new
        else:
            mean, var = (kept.value for kept in averages)
        factor = scale * lax.rsqrt(var + self.epsilon).reshape(wide)
        return ((x - mean.reshape(wide)) * factor + bias).astype(self.dtype)
