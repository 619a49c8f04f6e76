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

- On CPU as plain NHWC/HWIO convolutions, or what is faster for a shape, by ``conv_cpu.py``. The gradient convolutions
  that JAX's own transpose rules emit are fast there at the top level of a program, but many times slower inside a loop.
  ``benchmarks/conv_in_scan.py`` guards this.
- Elsewhere as what autodiff of ``lax.conv_general_dilated`` emits, the patterns that the GPU and
  TPU compilers know.

Each has a ``precision``, that of its products on GPUs and TPUs, which its derivatives of every order
inherit. It is what ``jax_default_matmul_precision`` says where the operation is traced, as it is
for the products of ``jax.numpy``.

Layout everywhere: images ``[b, h, w, c]``, kernels ``[kh, kw, in, out]`` of the operation at hand.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array, Float

from bpgan.nets import conv_cpu, primitives
from bpgan.sharding import by_rows
from bpgan.types import Images

Kernel = Float[Array, "kh kw i o"]
Pair = tuple[int, int]
Padding = int | Sequence[Sequence[int]] | Literal["SAME"]

_NHWC = ("NHWC", "HWIO", "NHWC")


# The three primitives: forms for GPU and TPU, forms for CPU, rules.
# Parameters: strides and padding ((lo, hi), (lo, hi)) of the convolution, size, the spatial axes of
# the result, and precision.


def _asked_precision() -> Any:
    """What lax takes where no precision is given; here, because a primitive may be lowered elsewhere."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def _lax_conv(
    x: Array, w: Array, *, strides: Pair, padding: Any, size: Any, precision: Any
) -> Array:
    del size  # follows from the rest
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=_NHWC, precision=precision
    )


def _lax_input_grad(g: Array, w: Array, *, size: Any, **params: Any) -> Array:
    x = jax.ShapeDtypeStruct((g.shape[0], *size, w.shape[2]), g.dtype)
    form = partial(_lax_conv, size=g.shape[1:3], **params)
    return jax.linear_transpose(lambda x: form(x, w), x)(g)[0]


def _lax_weight_grad(x: Array, g: Array, *, size: Any, **params: Any) -> Array:
    w = jax.ShapeDtypeStruct((*size, x.shape[3], g.shape[3]), g.dtype)
    form = partial(_lax_conv, size=g.shape[1:3], **params)
    return jax.linear_transpose(lambda w: form(x, w), w)(g)[0]


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


def _primitive(
    name: str,
    form: Callable,
    cpu_form: Callable,
    free: tuple[Pair, Pair],
    plain: Callable | None = None,
) -> Primitive:
    """A bilinear primitive, but for its transposes.

    ``free`` says which axis of each operand is not summed over, and which axis of the result it is;
    for ``conv`` these are n of x and o of w.
    """
    prim = primitives.define(name, form, cpu_form, plain=plain)

    def abstract(a: Any, b: Any, **params: Any) -> Any:
        return a.update(shape=_shape(a, b, free=free, **params), weak_type=False)

    prim.def_abstract_eval(abstract)
    batching.primitive_batchers[prim] = partial(_batch, prim=prim, form=form, free=free)
    return prim


_conv_p = _primitive("bpgan_conv", _lax_conv, conv_cpu.conv, ((0, 0), (3, 3)))
_input_grad_p = _primitive(
    "bpgan_conv_input_grad",
    _lax_input_grad,
    conv_cpu.input_grad,
    ((0, 0), (2, 3)),
    plain=conv_cpu.dilated_input_grad,
)
_weight_grad_p = _primitive(
    "bpgan_conv_weight_grad", _lax_weight_grad, conv_cpu.weight_grad, ((3, 2), (3, 3))
)

WEIGHT_GRAD = _weight_grad_p
"""What gradients of kernels come from; ``conv_cpu.columns`` makes a matrix product of it."""


def _to_x(g: Array, w: Array, x: Any, **params: Any) -> Array:
    return _input_grad_p.bind(g, w, **params | {"size": x.aval.shape[1:3]})


def _to_w(x: Array, g: Array, w: Any, **params: Any) -> Array:
    return _weight_grad_p.bind(x, g, **params | {"size": w.aval.shape[:2]})


def _to_g(x: Array, w: Array, g: Any, **params: Any) -> Array:
    return _conv_p.bind(x, w, **params | {"size": g.aval.shape[1:3]})


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


def _lax_grouped(x: Array, w: Array, *, groups: int, precision: Any) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        "SAME",
        dimension_numbers=_NHWC,
        feature_group_count=groups,
        precision=precision,
    )


def _split_grouped(x: Array, w: Array, **params: Any) -> Array:
    """XLA gathers the rows of all devices before a grouped convolution (openxla/xla#47945)."""
    return by_rows(partial(_lax_grouped, **params), x, whole=(w,))


def _lax_grouped_weight_grad(
    x: Array, g: Array, *, groups: int, size: Pair, precision: Any
) -> Array:
    w = jax.ShapeDtypeStruct((*size, x.shape[3] // groups, g.shape[3]), g.dtype)
    form = partial(_lax_grouped, groups=groups, precision=precision)
    return jax.linear_transpose(lambda w: form(x, w), w)(g)[0]


def _chunks(groups: int, width: int) -> tuple[int, int]:
    """How many dense convolutions there are, and how many groups each one joins."""
    joined = next(n for n in range(max(_CHUNK // width, 1), 0, -1) if groups % n == 0)
    return groups // joined, joined


def _cpu_grouped(x: Array, w: Array, *, groups: int, precision: Any) -> Array:
    kh, kw, i, o = *w.shape[:3], w.shape[3] // groups
    n, joined = _chunks(groups, i)
    blocks = w.reshape(kh, kw, 1, i, n, joined, 1, o)
    diagonal = jnp.eye(joined, dtype=w.dtype).reshape(1, 1, joined, 1, 1, joined, 1, 1)
    # [kh, kw, from group, i, chunk, to group, 1, o], zero unless the two groups are one
    blocks = (blocks * diagonal).reshape(kh, kw, joined * i, n, joined * o)
    dense = partial(_lax_conv, strides=(1, 1), padding="SAME", size=None, precision=precision)
    parts = jnp.split(x, n, axis=3)
    return lax.concatenate([dense(a, blocks[:, :, :, m]) for m, a in enumerate(parts)], 3)


def _cpu_grouped_weight_grad(
    x: Array, g: Array, *, groups: int, size: Pair, precision: Any
) -> Array:
    i, o = x.shape[3] // groups, g.shape[3] // groups
    n, joined = _chunks(groups, i)
    pads = tuple((k // 2, k // 2) for k in size)
    parts = []
    for a, b in zip(jnp.split(x, n, axis=3), jnp.split(g, n, axis=3), strict=True):
        w = conv_cpu.weight_grad(a, b, strides=(1, 1), padding=pads, size=size, precision=precision)
        w = w.reshape(*size, joined, i, joined, o)
        parts.append(jnp.stack([w[:, :, m, :, m] for m in range(joined)], axis=3))
    return jnp.stack(parts, axis=3).reshape(*size, i, groups * o)


_grouped_p = primitives.define(
    "bpgan_grouped_conv", _split_grouped, _cpu_grouped, plain=_lax_grouped
)
_grouped_weight_grad_p = primitives.define(
    "bpgan_grouped_conv_weight_grad", _lax_grouped_weight_grad, _cpu_grouped_weight_grad
)


def _adjoint(w: Array, groups: int) -> Array:
    """The kernel of the input gradient: turned by 180 degrees, in and out exchanged in each group."""
    kh, kw, i, o = *w.shape[:3], w.shape[3] // groups
    w = w[::-1, ::-1].reshape(kh, kw, i, groups, o)
    return w.transpose(0, 1, 4, 3, 2).reshape(kh, kw, o, groups * i)


def _grouped_to_x(g: Array, w: Array, *, groups: int, precision: Any, **_: Any) -> Array:
    return _grouped_p.bind(g, _adjoint(w, groups), groups=groups, precision=precision)


def _grouped_to_w(x: Array, g: Array, w: Any, **params: Any) -> Array:
    return _grouped_weight_grad_p.bind(x, g, size=w.aval.shape[:2], **params)


def _grouped_to_g(x: Array, w: Array, *, groups: int, precision: Any, **_: Any) -> Array:
    return _grouped_p.bind(x, w, groups=groups, precision=precision)


ad.defbilinear(
    _grouped_p,
    lambda g, x, w, **params: _grouped_to_x(g, w, **params),
    lambda g, x, w, **params: _grouped_to_w(x, g, w, **params),
)
ad.defbilinear(
    _grouped_weight_grad_p,
    lambda w, x, g, **params: _grouped_to_x(g, w, **params),
    lambda w, x, g, **params: _grouped_to_g(x, w, **params),
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
    strides, spatial = pair_of("stride", stride), x.shape[1:3]
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
    precision = _asked_precision()
    return _conv_p.bind(x, kernel, strides=strides, padding=padding, size=size, precision=precision)


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
    strides, spatial = pair_of("stride", stride), x.shape[1:3]
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
    precision = _asked_precision()
    return _input_grad_p.bind(
        x, adjoint, strides=strides, padding=padding, size=size, precision=precision
    )


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
    return _grouped_p.bind(x, kernel, groups=groups, precision=_asked_precision())


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


def pair_of(name: str, value: int | Sequence[int]) -> Pair:
    """``(height, width)`` of one number for both, or of two.

    Raises:
      ValueError: naming the argument, if they are not positive.
    """
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
