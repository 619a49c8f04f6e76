"""The sum of the gradients of single records, each of bounded norm.

    sum_i g_i min(1, C / |g_i|),     g_i the gradient of the objective of record i by itself

(Abadi et al. 2016, arXiv:1607.00133). Whatever a record is, it moves the sum by at most C. The forms compute the same:

===============  =====================================================================================================
``vmap``         every g_i, all at once: the plain reference, in the memory of as many gradients
``auto``         what is fastest for each leaf: norms and sums from the factors of g_i (``products``) where these are
                 few, g_i itself where they are many, as in convolutions of many pixels: one row at a time on a CPU, in
                 blocks elsewhere. What is no sum of products is computed as by ``vmap``
``ghost``        norms from the factors everywhere, so that no g_i is ever written; refused where that is not exact
``microbatch=N`` ``auto``, N records at a time: the memory of N activations
===============  =====================================================================================================

Which form a leaf gets follows from the shapes of the network alone, so bits do not depend on what a machine measures.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bpgan.algorithms.turns import TOGETHER, Now, Objective, global_norm
from bpgan.privacy.products import Products, evaluate, keep, read, take_apart
from bpgan.types import Params, UserError

BLOCK = 2**28
"""Numbers of the gradients of a block of records on an accelerator, 1 GiB of float32."""


class Form(NamedTuple):
    """How the sum is computed: by ``name``, so many ``rows`` at a time; 0: all."""

    name: str = "auto"
    rows: int = 0


def parse_form(text: str) -> Form:
    """Reads ``auto``, ``vmap``, ``ghost`` or ``microbatch=N``.

    Raises:
      ValueError: for anything else.
    """
    name, equals, rows = text.partition("=")
    if name == "microbatch" and rows.isdecimal() and int(rows) > 0:
        return Form(rows=int(rows))
    if name not in ("auto", "vmap", "ghost") or equals:
        raise ValueError("must be auto, vmap, ghost or microbatch=N, N records at a time")
    return Form(name)


class Clipped(NamedTuple):
    """What ``clipped_sum`` returns."""

    sum: Params
    values: jax.Array
    norms: jax.Array


def clipped_sum(
    objective: Objective,
    now: Now,
    player: str,
    mask: jax.Array,
    clip: float | jax.Array,
    form: Form | str = "auto",
    views: int = 1,
) -> Clipped:
    """The sum over records of their gradients, each scaled down to the norm ``clip`` if it is longer.

    Args:
      objective: the mean over the rows of a batch; here it sees the rows of one record at a time, with a key of its own
        and no other devices.
      now: its batch has ``b * views`` rows, those of a record one after the other.
      player: whose parameters it is differentiated by. The norm is over all of them.
      mask: bool ``[b]``; what is not true adds exactly zero, whatever its rows are.
      clip: C; infinite: no gradient is scaled.
      form: how it is computed, or the text of it.
      views: rows of a record, whose gradients are averaged before they are clipped.

    Returns:
      The sum; the values ``[b]`` of the objective and the norms ``[b]`` before clipping, both 0 where the mask is not
      true. A record whose gradient is not finite adds nothing.

    Raises:
      UserError: ``ghost`` for a network that has no such form.
    """
    form = parse_form(form) if isinstance(form, str) else form
    b, key = len(mask), now.axis.key(now.key)

    def one(params: Params, rows: Any, index: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, index)
        alone = now.of({player: params})._replace(batch=rows, key=own, axis=TOGETHER)
        return objective(alone)[0]

    def shown(x: jax.Array) -> jax.Array:
        return keep(mask, x.reshape(b, views, *x.shape[1:]))

    compute = (
        _of_vmap if form.name == "vmap" else functools.partial(_of_parts, form.name == "ghost")
    )
    compute = functools.partial(compute, one, now.players[player].params, clip)
    inputs = (jax.tree.map(shown, dict(now.batch)), jnp.arange(b), mask)
    total, (values, norms) = _in_blocks(compute, inputs, b, form.rows or b)
    return Clipped(total, jnp.where(mask, values, 0), jnp.where(mask, norms, 0))


def _in_blocks(compute: Callable[[Any], Any], inputs: Any, b: int, rows: int) -> Any:
    """``compute(rows of inputs) -> (total, each[rows])``, of so many rows at a time: totals added, the others joined.

    Args:
      inputs: arrays ``[b, ...]``; the last of them is a mask of the rows that count. The last block begins early enough
        to be whole, and the rows that it repeats do not count in it.
    """
    rows = max(rows, 1)
    if rows >= b:
        return compute(inputs)
    blocks = -(-b // rows)

    def block(i: Any) -> Any:
        start = jnp.minimum(i * rows, b - rows)
        cut = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, rows), inputs)
        *others, mask = cut
        return compute((*others, mask & (start + jnp.arange(rows) >= i * rows)))

    def body(total: Any, i: jax.Array) -> Any:
        more, each = block(i)
        return jax.tree.map(jnp.add, total, more), each

    shapes, _ = jax.eval_shape(block, jnp.zeros((), jnp.int32))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, each = lax.scan(body, start, jnp.arange(blocks))
    new = b - (blocks - 1) * rows

    def joined(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x[:-1].reshape(-1, *x.shape[2:]), x[-1, rows - new :]])

    return total, jax.tree.map(joined, each)


def _scale(norms: jax.Array, mask: jax.Array, clip: Any) -> jax.Array:
    """What each gradient is multiplied by; 0 for those that do not count."""
    counts = mask & jnp.isfinite(norms)
    tiny = jnp.finfo(norms.dtype).tiny
    return jnp.where(counts, jnp.minimum(clip / jnp.maximum(norms, tiny), 1), 0)


def _weighted(weights: jax.Array, each: jax.Array) -> jax.Array:
    """The sum over rows; of weight 0, whatever they are."""
    each = keep(weights != 0, each)
    return jnp.tensordot(weights.astype(each.dtype), each, 1, precision=lax.Precision.HIGHEST)


def _of_vmap(one: Any, params: Params, clip: Any, inputs: Any) -> Any:
    """The plain form: every gradient by itself."""
    rows, indices, mask = inputs
    values, each = jax.vmap(jax.value_and_grad(one), (None, 0, 0))(params, rows, indices)
    norms = jax.vmap(global_norm)(each)
    weights = _scale(norms, mask, clip)
    total = jax.tree.map(functools.partial(_weighted, weights), each)
    return total, (values, norms)


class _Row(NamedTuple):
    """What the program of a row has computed before the last products.

    Attributes:
      value: of the objective.
      leaves: of the gradient, those that are no sum of products, by place.
      operands: of the sums of products that are leaves, by place.
      cuts: operands of those that more is computed from.
      inner: what else that is computed from.
    """

    value: jax.Array
    leaves: dict[int, jax.Array]
    operands: dict[int, Any]
    cuts: list[Any]
    inner: list[Any]


def _of_parts(ghost: bool, one: Any, params: Params, clip: Any, inputs: Any) -> Any:
    """Each leaf in the form that suits it."""
    rows, indices, mask = inputs
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (rows, indices))
    parts = take_apart(jax.value_and_grad(one), params, *shapes)
    sums = {i: leaf for i, leaf in enumerate(parts.leaves) if isinstance(leaf, Products)}
    late = {i: leaf for i, leaf in enumerate(parts.leaves) if i not in sums and parts.is_late(leaf)}
    early = {i: leaf for i, leaf in enumerate(parts.leaves) if i not in sums and i not in late}
    if ghost:
        _check_ghost(params, [*late, *(i for i, x in early.items() if parts.is_of_row(x))])
    shared = parts.begin(params)

    def head(row: Any, index: jax.Array) -> _Row:
        env = parts.run_head(shared, row, index)
        get = functools.partial(read, env)
        return _Row(
            get(parts.value),
            {i: get(x) for i, x in early.items()},
            {i: x.operands(get) for i, x in sums.items()},
            [x.operands(get) for x in parts.cuts.values()],
            [get(x) for x in parts.inner],
        )

    found = jax.vmap(head)(rows, indices)
    factored = {i for i, x in sums.items() if ghost or x.by_gram}
    at_once = {i for i in factored if not sums[i].has_convs}
    others = [*late, *(i for i in sums if i not in at_once)]
    squares = _squares(found, sums, at_once, len(mask))

    def finish(row: _Row, square: jax.Array) -> tuple[dict[int, jax.Array], jax.Array]:
        """The other leaves of a row, and the norm of its gradient."""
        env = {**shared, **dict(zip(parts.inner, row.inner, strict=True))}
        for (name, x), operands in zip(parts.cuts.items(), row.cuts, strict=True):
            env[name] = x.value(operands)
        evaluate(parts.program, parts.rest, env)
        leaves = {i: env[x] for i, x in late.items()}
        for i, x in sums.items():
            if i not in factored:
                leaves[i] = x.value(row.operands[i])
            elif i not in at_once:
                square += x.squared_norm(row.operands[i])
        return leaves, jnp.sqrt(square + jnp.square(global_norm(leaves)))

    sizes = [parts.size(late[i]) if i in late else sums[i].numbers(i in factored) for i in others]
    total, norms = {}, jnp.sqrt(squares)
    if others:
        total, norms = _finished(finish, (found, squares, mask), clip, sum(sizes))
    weights = _scale(norms, mask, clip)
    for i in factored:
        total[i] = sums[i].weighted(found.operands[i], weights)
    for i, each in found.leaves.items():
        total[i] = _weighted(weights, each)
    leaves, tree = jax.tree.flatten(params)
    total = [total[i].astype(x.dtype) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, total), (found.value, norms)


def _check_ghost(params: Params, others: list[int]) -> None:
    """Vectors are no larger than the factors of a matrix, so their gradients may be written."""
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        if i in others and jnp.ndim(leaf) > 1:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"the gradient of {name} is no sum of products of activations and cotangents, as those of plain"
                " dense layers and convolutions are; must be auto, vmap or microbatch=N",
                argument="private_gradients",
                value="ghost",
            )


def _squares(found: _Row, sums: dict[int, Products], at_once: set[int], b: int) -> jax.Array:
    """The squared norms ``[b]`` of the leaves that are known, and of those that follow from their factors."""
    total: Any = jnp.zeros(b)
    if found.leaves:
        total = jnp.square(jax.vmap(global_norm)(found.leaves))
    for i in sorted(at_once):
        total = total + jax.vmap(sums[i].squared_norm)(found.operands[i])
    return total


def _finished(finish: Any, inputs: Any, clip: Any, size: int) -> Any:
    """The clipped sums of the leaves that ``finish`` writes, and the norms of all rows.

    A CPU does best with a row at a time: its gradient does not leave the cache, and a product of the pixels of one row
    is large enough. Others want many rows at once.

    Args:
      finish: of what a row has, and its squared norm so far.
      inputs: these of all rows, and their mask.
      clip: C.
      size: numbers that a row needs.
    """

    def one(inputs: Any) -> Any:
        row, square, counts = jax.tree.map(lambda x: x[0], inputs)
        each, norm = finish(row, square)
        weight = _scale(norm, counts, clip)
        total = jax.tree.map(lambda g: jnp.where(weight != 0, weight.astype(g.dtype) * g, 0), each)
        return total, norm[None]

    def many(inputs: Any) -> Any:
        row, square, counts = inputs
        each, norms = jax.vmap(finish)(row, square)
        weights = _scale(norms, counts, clip)
        return jax.tree.map(functools.partial(_weighted, weights), each), norms

    b = len(inputs[-1])
    return lax.platform_dependent(
        inputs,
        cpu=lambda inputs: _in_blocks(one, inputs, b, 1),
        default=lambda inputs: _in_blocks(many, inputs, b, BLOCK // size),
    )
