"""Two-player games: rules that move both players at once, and the spectrum that says whether they will converge.

A game is ``losses(params) -> ((loss_g, loss_d), aux)`` with ``params = (theta, psi)``, any pytrees. Its vector field is
what each player descends, ``xi = (grad_theta loss_g, grad_psi loss_d)``; J is the Jacobian of xi, so a fixed point is
stable for small steps where all eigenvalues of J have a *positive* real part.

=================  ==========================================================  ==========  =======================
rule               direction, with w = (theta, psi)                            gradients   source
=================  ==========================================================  ==========  =======================
``simultaneous``   xi(w)                                                       1
``alternating``    xi_psi(w), then xi_theta(w with the new psi)                2
``extragradient``  xi(w'), w' one update from w; update from w                 2           Korpelevich 1976; Gidel 2019
``optimistic``     twice this update less the last one                         1           Daskalakis 2018
``consensus``      xi + g J^T xi                                               2           Mescheder 2017
``symplectic``     xi + l A^T xi, A = (J - J^T) / 2                            3           Balduzzi 2018
``unrolled``       theta through K steps of psi, psi as ever                   1 + 2 K     Metz 2017
=================  ==========================================================  ==========  =======================

Any optax optimiser takes the direction. Every rule is pure, so it can be compiled, scanned and mapped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from bpgan.types import PRNG, Algorithm, Metrics

Losses = Callable[[Any], tuple[tuple[jax.Array, jax.Array], Any]]


class Rule(NamedTuple):
    """How the players move.

    Attributes:
      update: ``update(losses, txs, params, opts) -> (params, opts, field, aux)`` with a pair of everything: optimisers,
        parameters, their states, and the plain gradients at the start; ``aux`` is that of the losses at the start.
      optimiser: ``optimiser(tx) -> tx``, what the rule makes of each player's optimiser.
    """

    update: Callable[..., tuple[Any, Any, Any, Any]]
    optimiser: Callable[[optax.GradientTransformation], optax.GradientTransformation] = lambda tx: (
        tx
    )


def field(losses: Losses) -> Callable[[Any], tuple[Any, Any]]:
    """``params -> (xi, aux)``: the gradient of each player's own loss in its own parameters."""

    def xi(params: Any) -> tuple[Any, Any]:
        theta, psi = params
        # One pull-back for each player, so that what both losses share is computed once.
        _, pullback, aux = jax.vjp(losses, (theta, psi), has_aux=True)
        one, zero = jnp.ones(()), jnp.zeros(())

        def cotangent(i: int) -> tuple[jax.Array, ...]:
            shapes = jax.eval_shape(losses, params)[0]
            return tuple(
                (one if i == j else zero).astype(shape.dtype) for j, shape in enumerate(shapes)
            )

        return (pullback(cotangent(0))[0][0], pullback(cotangent(1))[0][1]), aux

    return xi


def _apply(txs: Any, gradients: Any, opts: Any, params: Any) -> tuple[Any, Any]:
    """One update of each player from its own gradient."""
    moved, kept = [], []
    for tx, gradient, opt, p in zip(txs, gradients, opts, params, strict=True):
        updates, opt = tx.update(gradient, opt, p)
        moved.append(optax.apply_updates(p, updates))
        kept.append(opt)
    return tuple(moved), tuple(kept)


def _add(a: Any, scale: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: x + scale * y, a, b)


def _dot(a: Any, b: Any) -> Any:
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _simultaneous(losses: Losses, txs: Any, params: Any, opts: Any) -> tuple[Any, Any, Any, Any]:
    xi, aux = field(losses)(params)
    params, opts = _apply(txs, xi, opts, params)
    return params, opts, xi, aux


def _alternating(losses: Losses, txs: Any, params: Any, opts: Any) -> tuple[Any, Any, Any, Any]:
    """D first, then G against the new D."""
    xi, aux = field(losses)(params)
    (psi,), (d_opt,) = _apply(txs[1:], xi[1:], opts[1:], params[1:])
    second, _ = field(losses)((params[0], psi))
    (theta,), (g_opt,) = _apply(txs[:1], second[:1], opts[:1], params[:1])
    return (theta, psi), (g_opt, d_opt), (second[0], xi[1]), aux


def _extragradient(losses: Losses, txs: Any, params: Any, opts: Any) -> tuple[Any, Any, Any, Any]:
    """Both gradients are of the same examples, and enter the moments of an optimiser that has any (ExtraAdam).

    Gidel et al. 2019, arXiv:1802.10551, Alg. 4.
    """
    xi, aux = field(losses)(params)
    ahead, opts = _apply(txs, xi, opts, params)
    there, _ = field(losses)(ahead)
    params, opts = _apply(txs, there, opts, params)
    return params, opts, xi, aux


def optimistic_updates(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """``2 u_t - u_{t-1}`` of the updates u of any optimiser; the first counts as its own predecessor.

    Daskalakis et al. 2018, arXiv:1711.00141: of gradient descent this is optimistic mirror descent, of Adam Alg. 1.
    """

    def init(params: Any) -> Any:
        return tx.init(params), jnp.zeros((), bool), jax.tree.map(jnp.zeros_like, params)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        inner, begun, last = state
        new, inner = tx.update(gradients, inner, params)
        updates = jax.tree.map(lambda u, v: 2 * u - jnp.where(begun, v, u), new, last)
        return updates, (inner, jnp.ones((), bool), new)

    return optax.GradientTransformation(init, cast(Any, update))


def consensus(weight: float = 1.0) -> Rule:
    """``xi + weight J^T xi``, the gradient of ``weight |xi|^2 / 2`` added. Mescheder et al. 2017, arXiv:1705.10461."""

    def update(losses: Losses, txs: Any, params: Any, opts: Any) -> tuple[Any, Any, Any, Any]:
        xi, pullback, aux = jax.vjp(field(losses), params, has_aux=True)
        (adjoint,) = pullback(xi)
        params, opts = _apply(txs, _add(xi, weight, adjoint), opts, params)
        return params, opts, xi, aux

    return Rule(update)


def symplectic(weight: float = 1.0, align: bool = True, epsilon: float = 0.1) -> Rule:
    """``xi + l A^T xi``, ``A^T xi = (J^T xi - J xi) / 2``. Balduzzi et al. 2018, arXiv:1802.05642.

    Args:
      weight: of the adjustment.
      align: whether the sign of l is that of ``<xi, h> <A^T xi, h> / d + epsilon`` with ``h = J^T xi`` and d
        parameters, which turns towards stable fixed points and away from unstable ones; otherwise it is positive.
      epsilon: of the alignment; weak attraction by default.
    """

    def update(losses: Losses, txs: Any, params: Any, opts: Any) -> tuple[Any, Any, Any, Any]:
        plain = lambda params: field(losses)(params)[0]  # noqa: E731
        xi, pullback, aux = jax.vjp(field(losses), params, has_aux=True)
        (h,) = pullback(xi)
        _, forward = jax.jvp(plain, (params,), (xi,))
        turn = jax.tree.map(lambda a, b: 0.5 * (a - b), h, forward)
        scale: Any = weight
        if align:
            d = sum(x.size for x in jax.tree.leaves(params))
            scale = weight * jnp.sign(_dot(xi, h) * _dot(turn, h) / d + epsilon)
        params, opts = _apply(txs, _add(xi, scale, turn), opts, params)
        return params, opts, xi, aux

    return Rule(update)


def unrolled(steps: int = 5, lr: float = 1e-3) -> Rule:
    """G descends its loss against the D that ``steps`` gradient steps of size ``lr`` would make, and through them.

    Metz et al. 2017, arXiv:1611.02163, Eqs. 7 to 9. D then takes one ordinary step from where it was. With 0 steps this
    is ``simultaneous``.
    """

    def update(losses: Losses, txs: Any, params: Any, opts: Any) -> tuple[Any, Any, Any, Any]:
        xi, aux = field(losses)(params)

        def surrogate(theta: Any) -> jax.Array:
            psi = params[1]
            for _ in range(steps):
                psi = _add(psi, -lr, jax.grad(lambda psi: losses((theta, psi))[0][1])(psi))
            return losses((theta, psi))[0][0]

        theta = jax.grad(surrogate)(params[0]) if steps else xi[0]
        params, opts = _apply(txs, (theta, xi[1]), opts, params)
        return params, opts, xi, aux

    return Rule(update)


RULES = {
    "simultaneous": Rule(_simultaneous),
    "alternating": Rule(_alternating),
    "extragradient": Rule(_extragradient),
    "optimistic": Rule(_simultaneous, optimistic_updates),
    "consensus": consensus(),
    "symplectic": symplectic(),
    "unrolled": unrolled(),
}
"""Every rule by name, with its defaults."""


class GameState(NamedTuple):
    """``step`` of a game without data: parameters of both players and the states of their optimisers."""

    step: jax.Array
    params: Any
    opts: Any


def make(losses: Losses, init: Callable[[PRNG], Any], txs: Any, rule: Rule) -> Algorithm:
    """A game that is known exactly, an expectation in closed form for example, as an algorithm without data.

    Args:
      losses: of both players.
      init: ``key -> (theta, psi)``.
      txs: the two optimisers, before the rule makes its own of them.
      rule: moves the players.

    Returns:
      The algorithm; metrics are ``g/loss, d/loss, g/grad_norm, d/grad_norm`` before the step. It draws no samples.
    """
    txs = tuple(rule.optimiser(tx) for tx in txs)

    def start(key: PRNG) -> GameState:
        params = init(key)
        opts = tuple(tx.init(p) for tx, p in zip(txs, params, strict=True))
        return GameState(jnp.zeros((), jnp.int32), params, opts)

    def step(state: GameState, batch: Any, key: PRNG) -> tuple[GameState, Metrics]:
        del batch, key
        params, opts, xi, _ = rule.update(losses, txs, state.params, state.opts)
        (g, d), _ = losses(state.params)
        norms = (optax.tree.norm(gradient) for gradient in xi)
        names = ("g/loss", "d/loss", "g/grad_norm", "d/grad_norm")
        return GameState(state.step + 1, params, opts), dict(
            zip(names, (g, d, *norms), strict=True)
        )

    return Algorithm(start, step)


def _flat(losses: Losses, params: Any) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """The vector field on one vector of all parameters, and where it stands."""
    point, unravel = ravel_pytree(params)
    return lambda w: ravel_pytree(field(losses)(unravel(w))[0])[0], point


def jacobian(losses: Losses, params: Any) -> jax.Array:
    """J ``[n, n]`` of the vector field, for games of a few thousand parameters n, G's before D's."""
    xi, point = _flat(losses, params)
    return jax.jacfwd(xi)(point)


def spectrum(losses: Losses, params: Any) -> np.ndarray:
    """Eigenvalues of J, complex ``[n]``, on the host."""
    return np.linalg.eigvals(np.asarray(jacobian(losses, params)))


def arnoldi(losses: Losses, params: Any, key: PRNG, iterations: int = 50) -> np.ndarray:
    """Ritz values of J, complex ``[iterations]`` or fewer, from products with J alone; the outermost converge first.

    Arnoldi 1951, with every vector orthogonalised twice; memory is that of ``iterations`` copies of the parameters.
    Fewer values come back if the vectors so far span an invariant space, and they are eigenvalues then.
    """
    xi, point = _flat(losses, params)
    iterations = min(iterations, point.size)

    _, product = jax.linearize(xi, point)
    v = np.asarray(jax.random.normal(key, point.shape, point.dtype), np.float64)
    basis, h = [v / np.linalg.norm(v)], np.zeros((iterations + 1, iterations))
    for k in range(iterations):
        w = np.asarray(product(jnp.asarray(basis[k], point.dtype)), np.float64)
        size = np.linalg.norm(w)
        matrix = np.stack(basis)
        for _ in range(2):
            overlap = matrix @ w
            h[: k + 1, k] += overlap
            w = w - matrix.T @ overlap
        h[k + 1, k] = np.linalg.norm(w)
        if (
            h[k + 1, k] <= 1e-5 * size
            if point.dtype == jnp.float32
            else h[k + 1, k] <= 1e-12 * size
        ):
            iterations = k + 1
            break
        basis.append(w / h[k + 1, k])
    return np.linalg.eigvals(h[:iterations, :iterations])


def largest_stable_step(eigenvalues: Any) -> float:
    """The largest step size at which simultaneous gradient descent contracts: ``min 2 Re(l) / |l|^2``.

    ``|1 - h l| < 1`` for every eigenvalue l of J and every smaller h > 0. 0 if some l has no positive real part: then
    no step does; infinite if there is no eigenvalue.
    """
    values: Any = np.asarray(eigenvalues, complex).ravel()
    if not values.size:
        return float("inf")
    if np.any(values.real <= 0):
        return 0.0
    return float(np.min(2 * values.real / np.abs(values) ** 2))
