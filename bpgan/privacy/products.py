"""The gradient of a single row, taken apart: where it is a sum of products, their factors are enough.

The gradient of the kernel of a dense layer or a convolution is ``sum_t a_t g_t^T``, over the places t at which the
kernel was used: activations a and cotangents g of one row. Its norm follows from the factors (Goodfellow 2015,
arXiv:1510.01799; Li et al. 2021, arXiv:2110.05679),

    |sum_t a_t g_t^T|^2 = sum_{t,u} <a_t, a_u> <g_t, g_u>,

and the sum over rows, each times a number, is one product again (Bu et al. 2022, arXiv:2210.00038), so that no second
backward pass is needed. A network is not asked for its layers: ``take_apart`` reads the program of the gradient of one
row, as JAX traces it, and finds the last products before the gradients come out. So a kernel that is used several
times, gradient penalties, embeddings and tied kernels are exact as well, and what is no such sum is still computed.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array

from bpgan.nets import conv, conv_cpu

Eqn = Any
"""An operation of a program, ``jax.extend.core.JaxprEqn``, whose variables have no shapes as far as types go."""
Env = dict[Any, Any]
"""The values of the variables of a program."""

_LINEAR = frozenset(
    "add add_any broadcast_in_dim convert_element_type copy div dot_general mul neg reduce_sum reshape rev slice"
    " squeeze sub transpose".split()
)
"""Operations that may stand between products and gradients; any other one has its operands computed as usual."""
_HIGHEST = lax.Precision.HIGHEST
"""Of norms, and of sums whose norms are known: their rounding would loosen the bound. So they are never narrower than
float32 either."""


_LANES = 16
"""Numbers of float32 that a CPU computes with at once."""


class Product(NamedTuple):
    """``sum_t a_t g_t^T``, of one operation.

    Attributes:
      eqn: the operation, a matrix product or the gradient of a kernel of ``bpgan.nets.conv``.
      turned: whether its second operand holds the a.
      scale: the operations by which numbers multiply or divide it, ``(name, number)``.
    """

    eqn: Eqn
    turned: bool = False
    scale: tuple[tuple[str, Any], ...] = ()

    @property
    def is_conv(self) -> bool:
        return self.eqn.primitive is conv.WEIGHT_GRAD

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(t, i, o)``: places, length of a and of g."""
        if self.is_conv:
            *_, o = self.eqn.outvars[0].aval.shape
            n, p, q, _ = self.eqn.invars[1].aval.shape
            return n * p * q, self.eqn.outvars[0].aval.size // o, o
        (summed, _), _ = self.eqn.params["dimension_numbers"]
        sides = [x.aval for x in self.eqn.invars]
        t = 1
        for axis in summed:
            t *= sides[0].shape[axis]
        i, o = (x.size // max(t, 1) for x in sides)
        return (t, o, i) if self.turned else (t, i, o)

    def operands(self, read: Callable[[Any], Any]) -> tuple[Array, Array]:
        """Images and responses of a convolution, otherwise ``a[t, i]`` and ``g[t, o]``, the scale in the second."""
        a, g = map(read, self.eqn.invars)
        if not self.is_conv:
            axes, _ = self.eqn.params["dimension_numbers"]
            t, i, o = self.shape
            a, g = (
                jnp.moveaxis(x, summed, range(len(summed)))
                for x, summed in zip((a, g), axes, strict=True)
            )
            a, g = (g, a) if self.turned else (a, g)
            a, g = a.reshape(t, i), g.reshape(t, o)
        if self.scale:
            a, g = _wide(a), _wide(g)
        for name, number in self.scale:
            if name == "neg":
                g = -g
            else:
                g = g * read(number) if name == "mul" else g / read(number)
        return a, g

    def columns(self, a: Array, g: Array) -> tuple[Array, Array]:
        """``a[i, t]`` and ``g[t, o]`` of the operands of one row."""
        if not self.is_conv:
            return a.T, g
        return conv_cpu.columns(a, g.shape[1:3], **self.eqn.params), g.reshape(-1, g.shape[-1])

    def weighted(self, a: Array, g: Array, weights: Array) -> Array:
        """The sum over rows of ``weight * sum_t a_t g_t^T``, of operands ``[b, ...]``; rows of weight 0 may be NaN."""
        used = weights != 0
        a, g = _wide(keep(used, a)), _wide(keep(used, g))
        g = g * weights.reshape(-1, *(1,) * (g.ndim - 1))
        if self.is_conv:
            x, y = (t.reshape(-1, *t.shape[2:]) for t in (a, g))
            return conv.WEIGHT_GRAD.bind(x, y, **self.eqn.params | {"precision": "highest"})
        a, g = a.reshape(-1, a.shape[-1]), g.reshape(-1, g.shape[-1])
        return lax.dot_general(a, g, (((0,), (0,)), ((), ())), precision=_HIGHEST)


class Products(NamedTuple):
    """A sum of products of one row.

    Attributes:
      terms: of the same ``i`` and ``o``.
      shape: of the sum.
      after: operations that rearrange its numbers, or widen their type.
    """

    terms: tuple[Product, ...]
    shape: tuple[int, ...]
    after: tuple[Eqn, ...] = ()

    @property
    def has_convs(self) -> bool:
        return any(term.is_conv for term in self.terms)

    @property
    def by_gram(self) -> bool:
        """Whether the norm is cheaper from the factors than from the sum, which has to be written and read again."""
        t = sum(term.shape[0] for term in self.terms)
        _, i, o = self.terms[0].shape
        return t * t * (i + o) <= 8 * i * o

    def numbers(self, by_gram: bool) -> int:
        """How many are written to know the norm of a row: the columns of the factors, or the sum."""
        sizes = [term.shape for term in self.terms]
        return sum(t * (i + o) for t, i, o in sizes) if by_gram else sizes[0][1] * sizes[0][2]

    def operands(self, read: Callable[[Any], Any]) -> list[tuple[Array, Array]]:
        """Of every term (``Product.operands``)."""
        return [term.operands(read) for term in self.terms]

    def rearranged(self, matrix: Array) -> Array:
        """Of ``[i, o]``, what the operations after the sum make of it."""
        x = matrix.reshape(self.shape)
        for eqn in self.after:
            x = eqn.primitive.bind(x, **eqn.params)
        return x

    def value(self, operands: Sequence[tuple[Array, Array]]) -> Array:
        """The sum, of the operands of one row."""
        total = None
        for term, sides in _joined(self.terms, operands):
            a, g = term.columns(*sides)
            more = jnp.matmul(_wide(a), _wide(g), precision=_HIGHEST)
            total = more if total is None else total + more
        assert total is not None
        return self.rearranged(total)

    def squared_norm(self, operands: Sequence[tuple[Array, Array]]) -> Array:
        """``|sum|^2``, of the operands of one row, from the factors.

        Rounding errs by about epsilon times ``d = sum_t |a_t|^2 |g_t|^2``. Where terms cancel so far that little of d
        is left, a multiple of the error is added: a gradient may be scaled down too far, but not too little.
        """
        sides = [term.columns(*each) for term, each in zip(self.terms, operands, strict=True)]
        sides = [(_wide(a), _wide(g).T) for a, g in sides]
        square: Any = 0.0
        d: Any = 0.0
        for k, (a, g) in enumerate(sides):
            for b, h in sides[:k]:
                square += 2 * jnp.sum(_gram(a, b) * _gram(g, h))
            products = _gram(a, a) * _gram(g, g)
            square += jnp.sum(products)
            d += jnp.trace(products) if products.ndim else products
        if sum(term.shape[0] for term in self.terms) == 1:
            return square
        error = 4 * jnp.finfo(square.dtype).eps * d
        return jnp.where(d > 8 * square, jnp.maximum(square, 0) + error, square)

    def weighted(self, operands: Sequence[tuple[Array, Array]], weights: Array) -> Array:
        """The sum over rows, of operands ``[b, ...]``."""
        parts = [
            term.weighted(*sides, weights).reshape(term.shape[1:])
            for term, sides in zip(self.terms, operands, strict=True)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return self.rearranged(total)


def keep(rows: Array, x: Array) -> Array:
    """``x[b, ...]`` with zeros for the rows ``[b]`` that are not true, whatever stands there."""
    return jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _gram(a: Array, b: Array) -> Array:
    """``<a_t, b_u>`` of ``a[i, t]`` and ``b[i, u]``; of a single t and u, a number."""
    if a.shape[1] == b.shape[1] == 1:
        return _inner(a[:, 0], b[:, 0])
    return jnp.matmul(a.T, b, precision=_HIGHEST)


def _inner(x: Array, y: Array) -> Array:
    """``<x, y>`` of vectors; 16 parts of long ones are added up first, place by place, which a CPU does all at once."""
    parts = len(x) // _LANES
    if len(x) % _LANES or not 2 <= parts <= 64:
        return jnp.sum(x * y)
    x, y = x.reshape(parts, _LANES), y.reshape(parts, _LANES)
    return jnp.sum(functools.reduce(operator.add, (x[i] * y[i] for i in range(parts))))


def _joined(
    terms: Sequence[Product], operands: Sequence[tuple[Array, Array]]
) -> Iterable[tuple[Product, tuple[Array, Array]]]:
    """The same sum in as few products as there can be: those of one kind are one, of more places."""
    groups: dict[Any, tuple[Product, list]] = {}
    for term, sides in zip(terms, operands, strict=True):
        kind = str(sorted(term.eqn.params.items())) if term.is_conv else ""
        shapes = tuple(x.shape[1:] for x in sides)
        groups.setdefault((kind, shapes), (term, []))[1].append(sides)
    for term, members in groups.values():
        a, g = (jnp.concatenate(side) for side in zip(*members, strict=True))
        yield term, (a, g)


# Reading the program.


class Parts(NamedTuple):
    """The program of one row's value and gradient, in the order in which it runs.

    Attributes:
      consts, invars: of the program; the last variables of ``invars`` are the row's.
      shared: operations that no row has a part in.
      head: those of a row, up to the products.
      rest: those after products that are not sums of products alone.
      cuts: the sums of products that ``rest`` starts from, by variable.
      value: the variable of the objective.
      leaves: of every leaf of the gradient, its ``Products``, or its variable.
      late: the variables that ``rest`` makes.
      inner: the variables of ``head`` that ``rest`` reads.
    """

    program: ClosedJaxpr
    shared: list[Eqn]
    head: list[Eqn]
    rest: list[Eqn]
    cuts: dict[Any, Products]
    value: Any
    leaves: list[Any]
    late: set[Any]
    inner: list[Any]

    def is_late(self, leaf: Any) -> bool:
        """Whether it is computed from products."""
        return not _is_literal(leaf) and leaf in self.late

    @staticmethod
    def size(leaf: Any) -> int:
        """Its numbers."""
        return leaf.aval.size

    def is_of_row(self, leaf: Any) -> bool:
        """Whether it differs from row to row."""
        return any(leaf is x for eqn in self.head for x in eqn.outvars)

    def begin(self, params: Any) -> Env:
        """What all rows share."""
        jaxpr, leaves = self.program.jaxpr, jax.tree.leaves(params)
        env = dict(zip(jaxpr.constvars, self.program.consts, strict=True))
        env.update(zip(jaxpr.invars[: len(leaves)], leaves, strict=True))
        evaluate(self.program, self.shared, env)
        return env

    def run_head(self, shared: Env, *row: Any) -> Env:
        """What a row computes before the products."""
        leaves = jax.tree.leaves(row)
        env = {
            **shared,
            **dict(zip(self.program.jaxpr.invars[-len(leaves) :], leaves, strict=True)),
        }
        evaluate(self.program, self.head, env)
        return env


def evaluate(program: ClosedJaxpr, eqns: Sequence[Eqn], env: Env) -> None:
    """Runs some operations of a program; their results enter the environment."""
    made = dict.fromkeys(x for eqn in eqns for x in eqn.outvars)
    given = dict.fromkeys(x for eqn in eqns for x in _variables(eqn) if x not in made)
    part = program.jaxpr.replace(
        constvars=[], invars=list(given), outvars=list(made), eqns=list(eqns)
    )
    found = eval_jaxpr(part, (), *(env[x] for x in given))
    env.update(zip(made, found, strict=True))


def read(env: Mapping[Any, Any], atom: Any) -> Any:
    """The value of a variable or a literal."""
    return jnp.asarray(atom.val, atom.aval.dtype) if _is_literal(atom) else env[atom]


def _flat(program: ClosedJaxpr) -> ClosedJaxpr:
    """The same program without calls of compiled functions, whose operations stand in their places."""

    def run(closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
        env = dict(zip(closed.jaxpr.invars, arguments, strict=True))
        env.update(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        for eqn in closed.jaxpr.eqns:
            if eqn.primitive.name == "jit":
                found = run(eqn.params["jaxpr"], [read(env, x) for x in eqn.invars])
                env.update(zip(eqn.outvars, found, strict=True))
            else:
                evaluate(closed, [eqn], env)
        return [read(env, x) for x in closed.jaxpr.outvars]

    return jax.make_jaxpr(lambda *arguments: run(program, arguments))(*program.in_avals)


def take_apart(one: Callable[..., Any], params: Any, *row: Any) -> Parts:
    """The parts of ``one(params, *row) -> (value, gradient)``, where ``row`` are the shapes of what a row has."""
    program = _flat(jax.make_jaxpr(one)(params, *row))
    jaxpr = program.jaxpr
    of_row = set(jaxpr.invars[len(jax.tree.leaves(params)) :])
    shared, eqns = [], []
    for eqn in jaxpr.eqns:
        if any(x in of_row for x in _variables(eqn)):
            of_row.update(eqn.outvars)
            eqns.append(eqn)
        else:
            shared.append(eqn)
    value, *outputs = jaxpr.outvars
    after_all = _after_all(eqns, of_row, value)
    head = [eqn for i, eqn in enumerate(eqns) if i not in after_all]
    sums, rest, cuts = _sums([eqns[i] for i in sorted(after_all)], of_row)
    late = {x for eqn in rest for x in eqn.outvars}
    leaves = [x if _is_literal(x) else sums.get(x, x) for x in outputs]
    inner = {x: None for eqn in rest for x in _variables(eqn) if x in of_row}
    inner = [x for x in inner if x not in late and x not in cuts]
    return Parts(program, shared, head, rest, cuts, value, leaves, late, inner)


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, Literal)


def _variables(eqn: Eqn) -> list[Any]:
    return [x for x in eqn.invars if not _is_literal(x)]


def _is_product(eqn: Eqn) -> bool:
    if eqn.primitive.name == "dot_general":
        return not any(eqn.params["dimension_numbers"][1])
    return eqn.primitive is conv.WEIGHT_GRAD


def _after_all(eqns: Sequence[Eqn], of_row: set[Any], value: Any) -> set[int]:
    """Which operations come after everything else: products, and linear ones of their results.

    A product whose result is used for anything but a gradient is none of these; that shows from the end.
    """
    early: set[int] = set()
    while True:
        made: set[Any] = set()
        late = set()
        for i, eqn in enumerate(eqns):
            after = [x in made for x in _variables(eqn)]
            fits = _is_linear(eqn, made, of_row) if any(after) else _is_product(eqn)
            if fits and i not in early:
                late.add(i)
                made.update(eqn.outvars)
        used = {value} if not _is_literal(value) else set()
        known = len(early)
        for i in reversed(range(len(eqns))):
            eqn = eqns[i]
            if i in late and any(x in used for x in eqn.outvars):
                early.add(i)
            if i not in late or i in early:
                used.update(_variables(eqn))
        if len(early) == known:
            return late


def _is_linear(eqn: Eqn, made: set[Any], of_row: set[Any]) -> bool:
    """Whether it is so in what products have made, with numbers that are the same for all rows."""
    name, variables = eqn.primitive.name, _variables(eqn)
    if name in ("mul", "dot_general", "div"):
        below = name == "div" and not _is_literal(eqn.invars[1]) and eqn.invars[1] in made
        return sum(x in of_row for x in variables) == 1 and not below
    return name in _LINEAR


def _sums(
    eqns: Sequence[Eqn], of_row: set[Any]
) -> tuple[dict[Any, Products], list[Eqn], dict[Any, Products]]:
    """The variables that are sums of products, what else there is to compute, and the sums it starts from."""
    sums: dict[Any, Products] = {}
    rest: list[Eqn] = []
    cuts: dict[Any, Products] = {}
    late: set[Any] = set()
    for eqn in eqns:
        found = _as_sum(eqn, sums, of_row) if not late.intersection(_variables(eqn)) else None
        if found is not None:
            sums[eqn.outvars[0]] = found
        else:
            rest.append(eqn)
            late.update(eqn.outvars)
            cuts.update({x: sums[x] for x in _variables(eqn) if x in sums})
    return sums, rest, cuts


def _as_sum(eqn: Eqn, sums: Mapping[Any, Products], of_row: set[Any]) -> Products | None:
    """The result as a sum of products, or None if it is not one."""
    name, shape = eqn.primitive.name, tuple(eqn.outvars[0].aval.shape)
    mine = [None if _is_literal(x) else sums.get(x) for x in eqn.invars]
    if not any(mine):
        no_sum = any(x in of_row and x not in sums for x in _variables(eqn))
        return Products((Product(eqn),), shape) if no_sum and _is_product(eqn) else None
    first = mine[0]
    if name in ("add", "add_any") and len(mine) == 2 and mine[0] and mine[1]:
        return _added(mine[0], mine[1])
    if name == "mul" and first is None and mine[1]:
        return _scaled(eqn, mine[1], eqn.invars[0], of_row)
    if first is None:
        return None
    if name == "neg":
        return _scaled(eqn, first, None, of_row)
    if name in ("mul", "div"):
        return _scaled(eqn, first, eqn.invars[1], of_row)
    if name == "transpose" and len(shape) == 2 and not first.after:
        if eqn.params["permutation"] == (0, 1):
            return first
        if not any(term.is_conv for term in first.terms):
            turned = tuple(term._replace(turned=not term.turned) for term in first.terms)
            return Products(turned, shape)
    if name in ("transpose", "reshape", "squeeze") or (
        name == "convert_element_type" and _widens(eqn)
    ):
        return first._replace(after=(*first.after, eqn))
    return None


def _widens(eqn: Eqn) -> bool:
    old, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    return jnp.promote_types(old, new) == new


def _added(a: Products, b: Products) -> Products | None:
    same = [(x.primitive, x.params) for x in a.after] == [(x.primitive, x.params) for x in b.after]
    fits = a.shape == b.shape and a.terms[0].shape[1:] == b.terms[0].shape[1:]
    return a._replace(terms=a.terms + b.terms) if same and fits else None


def _scaled(eqn: Eqn, a: Products, number: Any, of_row: set[Any]) -> Products | None:
    """Times a number, or divided by it, that is the same for all rows; None: times -1."""
    if number is not None and number.aval.shape:
        return None
    if number is not None and not _is_literal(number) and number in of_row:
        return None
    scale = ((eqn.primitive.name, number),)
    return a._replace(terms=tuple(t._replace(scale=t.scale + scale) for t in a.terms))
