"""Two-player games as pure functions: rules that update both players, and the spectrum that says how they will fare.

A game is ``losses(params) -> ((loss_g, loss_d), aux)`` with ``params = (theta, psi)``, any two pytrees of floats; each
player minimizes its own loss over its own parameters. ``losses`` is a deterministic function: batch and key are bound
by the caller, so all evaluations within one update see the same minibatch and noise. The *field* is

    xi(theta, psi) = (grad_theta L_G, grad_psi L_D),    J = d xi / d (theta, psi)

and both players *descend* it: the flow is ``w' = -xi(w)``, and an equilibrium is stable if every eigenvalue of J has a
positive real part. (Mescheder et al. write v = -xi: their eigenvalues are minus those of this file.)

A rule is ``update(losses, txs, params, opts) -> (params, opts, gradients, aux)`` with the optax transformations
``txs = (g_tx, d_tx)`` and their states ``opts = (g_opt, d_opt)``; ``gradients`` is xi and ``aux`` that of the losses,
both at the start of the update, whatever the rule then moves along. Under ``jit`` what is not used costs nothing.
``spectrum`` and ``arnoldi`` run on the host and compile nothing themselves: hand them ``jax.jit(losses)``.

docs/games.md has the rules side by side, with their costs, and what is proven of each by which test.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Complex, Float

from bpgan.algorithms.turns import Aux, Now, Rule, State, Term, Turn, play
from bpgan.types import PRNG, Algorithm, Params

Pair = tuple[Params, Params]
Optimizer = optax.GradientTransformation
Losses = Callable[[Pair], tuple[tuple[Array, Array], Any]]
PLAYERS = ("g", "d")
"""The names of the players, theta's first."""


def _gradient(losses: Losses, params: Pair, player: int) -> tuple[Params, Any]:
    """The gradient of one player's loss (0: G, 1: D) in its own parameters, and aux."""

    def own(mine: Params):
        values, aux = losses((mine, params[1]) if player == 0 else (params[0], mine))
        return values[player], aux

    return jax.grad(own, has_aux=True)(params[player])


def field(losses: Losses) -> Callable[[Pair], tuple[Pair, Any]]:
    """``params -> (xi, aux)``: each player's gradient of its own loss, with the structure of ``params``."""

    def xi(params: Pair) -> tuple[Pair, Any]:
        g, aux = _gradient(losses, params, 0)
        d, _ = _gradient(losses, params, 1)  # the compiler merges the two forward passes
        return (g, d), aux

    return xi


def _move(tx, gradient: Params, params: Params, opt) -> tuple[Params, Any]:
    """One player's optimizer step: new parameters and state."""
    updates, opt = tx.update(gradient, opt, params)
    return optax.apply_updates(params, updates), opt


def _move_both(txs, gradients: Pair, params: Pair, opts) -> tuple[Pair, Any]:
    (theta, g_opt), (psi, d_opt) = map(_move, txs, gradients, params, opts)
    return (theta, psi), (g_opt, d_opt)


def _along(direction: Callable[[Losses, Pair], tuple[Pair, Pair, Any]]) -> Rule:
    """The rule that hands the optimizers a vector of its own: ``(losses, params) -> (vector, xi, aux)``."""

    def update(losses, txs, params, opts):
        vector, gradients, aux = direction(losses, params)
        params, opts = _move_both(txs, vector, params, opts)
        return params, opts, gradients, aux

    return Rule(update)


def _plain(losses: Losses, params: Pair) -> tuple[Pair, Pair, Any]:
    gradients, aux = field(losses)(params)
    return gradients, gradients, aux


simultaneous = _along(_plain)
"""Both players step from the same point: ``w <- w - h xi(w)``. Diverges on bilinear games, by sqrt(1 + h^2) a step."""


def _alternating(losses, txs, params, opts):
    gradients, aux = field(losses)(params)
    psi, d_opt = _move(txs[1], gradients[1], params[1], opts[1])
    against_new_d, _ = _gradient(losses, (params[0], psi), 0)
    theta, g_opt = _move(txs[0], against_new_d, params[0], opts[0])
    return (theta, psi), (g_opt, d_opt), gradients, aux


alternating = Rule(_alternating)
"""D steps, then G against the new D: what most GAN code does. Bounded on bilinear games for ``h sigma_max < 2``."""


def _extragradient(losses, txs, params, opts):
    xi = field(losses)
    gradients, aux = xi(params)
    ahead, opts = _move_both(txs, gradients, params, opts)
    params, opts = _move_both(txs, xi(ahead)[0], params, opts)
    return params, opts, gradients, aux


extragradient = Rule(_extragradient, counts=2)
"""``w' = w - h xi(w); w <- w - h xi(w')``. Korpelevich 1976; Gidel et al. 2019, arXiv:1802.10551.

Any optimizer: its update extrapolates, and its update from the start with the gradient found there is the step. Its
state advances at both evaluations (with Adam: ExtraAdam, moments updated twice), and so does a schedule's count, which
``counts`` tells. Both evaluations are of the same minibatch.
"""


class OptimisticState(NamedTuple):
    """State of an optimistic optimizer: the inner state, its last update, and whether there was one."""

    inner: Any
    previous: Params
    started: Array


def _optimistic(tx: Optimizer) -> Optimizer:
    def init(params):
        return OptimisticState(
            tx.init(params), jax.tree.map(jnp.zeros_like, params), jnp.zeros((), bool)
        )

    def update(updates, state, params=None):
        now, inner = tx.update(updates, state.inner, params)
        doubled = jax.tree.map(
            lambda u, p: 2 * u - jnp.where(state.started, p, u), now, state.previous
        )
        return doubled, OptimisticState(inner, now, jnp.ones((), bool))

    return optax.GradientTransformation(init, update)


optimistic = Rule(simultaneous.update, _optimistic, remembers=True)
"""``w <- w + 2 u_t - u_{t-1}`` with the updates u of any optimizer and ``u_{-1} = u_0``; simultaneous.

Daskalakis et al. 2018, arXiv:1711.00141: with SGD ``w - 2 h xi_t + h xi_{t-1}``, with Adam their Optimistic Adam. The
previous update is optimizer state, so ``optimizer`` must wrap the transformations before their ``init``.
"""


def consensus(weight: float = 1.0) -> Rule:
    """Descends ``xi + weight J' xi = xi + weight grad |xi|^2 / 2`` (one vjp), which pulls towards every zero of xi.

    Mescheder et al. 2017, arXiv:1705.10461. It also attracts to unstable equilibria if ``weight`` is large.
    """

    def direction(losses, params):
        gradients, pullback, aux = jax.vjp(field(losses), params, has_aux=True)
        (adjustment,) = pullback(gradients)
        return optax.tree.add_scale(gradients, weight, adjustment), gradients, aux

    return _along(direction)


def symplectic(weight: float = 1.0, align: bool = True) -> Rule:
    """Symplectic gradient adjustment: descends ``xi + s weight A' xi`` with ``A = (J - J') / 2`` (one vjp, one jvp).

    Balduzzi et al. 2018, arXiv:1802.05642. With ``align`` (their Algorithm 1) the sign is
    ``s = sign(<xi, J' xi> <A' xi, J' xi> / d + 1/10)`` for ``d`` parameters in all, else 1: towards stable equilibria,
    away from unstable ones. ``A' xi`` vanishes on potential games and is ``J' xi`` on Hamiltonian ones.
    """

    def direction(losses, params):
        gradients, pushforward, aux = jax.linearize(field(losses), params, has_aux=True)
        (transposed,) = jax.linear_transpose(pushforward, params)(gradients)
        adjustment = jax.tree.map(lambda jt, j: (jt - j) / 2, transposed, pushforward(gradients))
        scale = weight
        if align:
            towards, turn = (optax.tree.vdot(v, transposed) for v in (gradients, adjustment))
            scale = weight * jnp.sign(towards * turn / optax.tree.size(params) + 0.1)
        return optax.tree.add_scale(gradients, scale, adjustment), gradients, aux

    return _along(direction)


def unrolled(steps: int = 5, lr: float = 0.1) -> Rule:
    """G descends ``L_G(theta, psi_K)`` with ``psi_{k+1} = psi_k - lr grad_psi L_D(theta, psi_k)`` and ``psi_0 = psi``.

    Metz et al. 2017, arXiv:1611.02163. G differentiates *through* the ``steps`` plain gradient steps of D. D then takes
    one ordinary step, from psi and not from psi_K, against the old G. With no steps it is ``simultaneous``.
    """

    def direction(losses, params):
        theta, psi = params

        def surrogate(theta):
            def descend(psi, _):
                gradient, _ = _gradient(losses, (theta, psi), 1)
                return optax.tree.add_scale(psi, -lr, gradient), None

            after, _ = lax.scan(descend, psi, None, length=steps)
            return losses((theta, after))[0][0]

        gradients, aux = field(losses)(params)
        return (jax.grad(surrogate)(theta), gradients[1]), gradients, aux

    if steps < 0:
        raise ValueError(f"{steps=} must not be negative")
    return _along(direction)


RULES = {
    "simultaneous": simultaneous,
    "alternating": alternating,
    "extragradient": extragradient,
    "optimistic": optimistic,
    "consensus": consensus(),
    "symplectic": symplectic(),
    "unrolled": unrolled(),
}
"""Every rule by name, with its default parameters."""
_WEIGHTED = {"consensus": consensus, "symplectic": symplectic}
_PARAMETERS = {**dict.fromkeys(_WEIGHTED, "[=WEIGHT]"), "unrolled": "[=STEPS:LR]"}
RULE_FORMS = ", ".join(["none", *(name + _PARAMETERS.get(name, "") for name in RULES)])
"""What ``rule_of`` reads."""


def rule_of(text: str) -> Rule | None:
    """The rule that a flag names, in one of ``RULE_FORMS``; None for ``none``. Raises ValueError, saying so."""
    name, equals, parameters = text.partition("=")
    if text in ("none", *RULES):
        return RULES.get(text)
    with contextlib.suppress(ValueError):
        if equals and name in _WEIGHTED:
            weight = float(parameters)
            if 0 <= weight < math.inf:
                return _WEIGHTED[name](weight)
        if equals and name == "unrolled":
            steps, lr = parameters.split(":")
            if int(steps) >= 0 and 0 < float(lr) < math.inf:
                return unrolled(int(steps), float(lr))
    raise ValueError(f"must be one of {RULE_FORMS}; WEIGHT and STEPS >= 0, LR > 0")


def make(losses: Losses, init: Callable[[PRNG], Any], txs: Pair, rule: Rule) -> Algorithm:
    """A game that is known exactly, an expectation in closed form for example, as an algorithm without data.

    Args:
      losses: of both players.
      init: ``key -> (theta, psi)``.
      txs: the two optimizers, before the rule makes its own of them.
      rule: moves the players.

    Returns:
      The algorithm of the players ``g`` and ``d``; metrics are ``g/loss, d/loss, g/grad_norm, d/grad_norm`` before the
      step. It draws no samples.
    """

    def start(key: PRNG) -> dict[str, Any]:
        return {name: {"params": p} for name, p in zip(PLAYERS, init(key), strict=True)}

    def turn(player: int) -> Turn:
        def objective(now: Now) -> tuple[Array, Aux]:
            theta, psi = (now.players[name].params for name in PLAYERS)
            value = losses((theta, psi))[0][player]
            return value, Aux(metrics={"loss": value})

        return Turn(PLAYERS[player], [Term(objective)], txs[player])

    return play(start, [turn(1), turn(0)], rule=rule)


def of(algorithm: Algorithm, state: State, batch: Any, key: PRNG) -> tuple[Losses, Pair]:
    """The game that a two-player algorithm plays at a state, with its networks, losses, penalties and this batch.

    For ``spectrum``, ``arnoldi`` and their like.

    Args:
      algorithm: with players ``g`` and ``d``, with a rule or without.
      state: of the algorithm.
      batch: of one step.
      key: the root key of the steps.
    """
    if algorithm.objectives is None:
        raise ValueError("the algorithm does not say what its players minimize")
    both = algorithm.objectives(state, batch, key)

    def losses(params: Pair) -> tuple[tuple[Array, Array], Any]:
        values, aux = both(dict(zip(PLAYERS, params, strict=True)))
        return (values["g"], values["d"]), aux

    return losses, (state.players["g"].params, state.players["d"].params)


def _flat_field(losses: Losses, params: Pair) -> tuple[Callable[[Array], Array], Array]:
    """The field as a function of one vector, and that vector: theta's entries, then psi's."""
    flat, unravel = ravel_pytree(params)
    return lambda flat: ravel_pytree(field(losses)(unravel(flat))[0])[0], flat


def jacobian(losses: Losses, params: Pair) -> Float[Array, "p p"]:
    """``J = d xi / d (theta, psi)`` at ``params``, dense; rows and columns are theta's entries, then psi's.

    Its blocks are ``[[grad2_theta L_G, d_psi grad_theta L_G], [d_theta grad_psi L_D, grad2_psi L_D]]``; of a zero-sum
    game ``J12 = -J21'``. ``p`` forward passes through the field at once: for a few thousand parameters.
    """
    xi, flat = _flat_field(losses, params)
    return jax.jacfwd(xi)(flat)


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Complex numbers as precise as the matrix, whose type says how far they are to be trusted."""
    found = np.linalg.eigvals(matrix)
    return found.astype(np.result_type(found, np.complex64))


def _rounding(size: int, dtype: Any) -> float:
    """How far rounding moves what is computed of vectors of so many numbers, as a share of the largest."""
    return 10 * math.sqrt(size) * float(jnp.finfo(dtype).eps)


def spectrum(losses: Losses, params: Pair) -> Complex[np.ndarray, " p"]:
    """The eigenvalues of ``jacobian(losses, params)``, in no order, on the host; stable if all have Re > 0.

    Complex64 where the parameters are float32.
    """
    return _eigenvalues(np.asarray(jacobian(losses, params)))


def krylov(
    losses: Losses, params: Pair, key: PRNG, iterations: int
) -> Float[Array, "iterations+1 iterations"]:
    """The Hessenberg matrix of Arnoldi's iterations on J, a pure function; ``ritz`` has what it says.

    Arguments as of ``arnoldi``, but with ``iterations`` from 1 to the number of parameters.
    """
    xi, flat = _flat_field(losses, params)
    _, multiply = jax.linearize(xi, flat)
    start = jax.random.normal(key, flat.shape, flat.dtype)
    basis = jnp.zeros((iterations + 1, flat.size), flat.dtype)
    basis = basis.at[0].set(start / jnp.linalg.norm(start))
    dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    rounding = _rounding(flat.size, flat.dtype)

    def extend(carry, j):
        basis, largest = carry
        vector = multiply(basis[j])
        largest = jnp.maximum(largest, jnp.linalg.norm(vector))  # a lower bound of |J|
        column = jnp.zeros(iterations + 1, flat.dtype)
        for _ in range(2):
            projection = dot(basis, vector)  # the rows still to come are zero
            vector = vector - dot(projection, basis)
            column = column + projection
        norm = jnp.linalg.norm(vector)
        exhausted = norm <= rounding * largest
        basis = basis.at[j + 1].set(jnp.where(exhausted, 0, vector / jnp.where(exhausted, 1, norm)))
        return (basis, largest), column.at[j + 1].set(jnp.where(exhausted, 0, norm))

    _, columns = lax.scan(extend, (basis, jnp.zeros((), flat.dtype)), jnp.arange(iterations))
    return columns.T


def ritz(hessenberg: Float[np.ndarray, "iterations+1 iterations"]) -> Complex[np.ndarray, " k"]:
    """The Ritz values of ``krylov``, on the host: as many as the Krylov space has dimensions."""
    hessenberg = np.asarray(hessenberg)
    last = hessenberg.shape[1] - 1
    k = np.append(np.flatnonzero(np.diagonal(hessenberg, -1) == 0), last)[0] + 1
    return _eigenvalues(hessenberg[:k, :k])


def arnoldi(losses: Losses, params: Pair, key: PRNG, iterations: int) -> Complex[np.ndarray, " k"]:
    """Ritz values of J from a random start: approximate eigenvalues, the outermost ones first to converge.

    Arnoldi 1951, matrix-free: one jvp of the field per iteration, and memory for ``iterations + 1`` vectors. Each new
    vector is orthogonalized twice against all before it ("twice is enough": Giraud et al. 2005).

    Returns:
      ``k <= min(iterations, p)`` complex numbers on the host. Fewer than asked for if the Krylov space is exhausted:
      they are then eigenvalues of J to rounding, but a multiple eigenvalue comes once. With ``iterations >= p`` all of
      J's distinct eigenvalues.

    Raises:
      ValueError: if ``iterations`` is not positive.
    """
    if iterations < 1:
        raise ValueError(f"{iterations=} must be positive")
    size = sum(x.size for x in jax.tree.leaves(params))
    return ritz(np.asarray(krylov(losses, params, key, min(iterations, size))))


class StableStep(NamedTuple):
    """How large a step of simultaneous gradient descent may be.

    Attributes:
      step: below it descent contracts to the equilibrium in all directions that are not neutral; 0 if no step does,
        infinite if all are neutral.
      neutral: int ``[m]``, which of the eigenvalues are 0 to rounding: along these directions nothing moves, and
        nothing contracts. The bias of a D in a loss of differences is one, whatever the step size.
    """

    step: float
    neutral: np.ndarray


def largest_stable_step(
    eigenvalues: Complex[np.ndarray, " k"], tolerance: float | None = None
) -> StableStep:
    """The step size below which simultaneous gradient descent contracts to an equilibrium: ``min 2 Re(l) / |l|^2``.

    ``|1 - h l| < 1`` for every eigenvalue l of J at the equilibrium that is not neutral; 0 if one of these has
    Re <= 0 to rounding, for then no step size does. Mescheder et al. 2017, arXiv:1705.10461. Ritz values give an
    estimate.

    Args:
      eigenvalues: of J, in the precision in which J was computed.
      tolerance: eigenvalues up to so many times the largest, in absolute value, are neutral. Default: as far as
        rounding moves a simple eigenvalue, ten times the square root of their number times the machine epsilon. It
        moves a double one farther, as far as the square root of the epsilon.

    Raises:
      ValueError: if there are no eigenvalues, or one is not finite.
    """
    values = np.atleast_1d(eigenvalues)
    values = values.astype(np.result_type(values, np.complex64))
    if not values.size or not np.isfinite(values).all():
        raise ValueError("eigenvalues must be finite numbers, at least one")
    size = np.abs(values).astype(float)
    bound = size.max() * (_rounding(values.size, values.dtype) if tolerance is None else tolerance)
    neutral = size <= bound
    real, size = np.real(values[~neutral]).astype(float), size[~neutral]
    # Not over |l|^2, which leaves the range of floats before l does.
    steps = np.where(real > bound, 2 * (real / size) / size, 0.0)
    return StableStep(float(steps.min(initial=np.inf)), np.flatnonzero(neutral))


def growth(sizes: Float[np.ndarray, " n"]) -> float:
    """The factor of each step, by least squares on the logarithms."""
    return math.exp(np.polyfit(np.arange(len(sizes)), np.log(sizes), 1)[0])


def linear_factor(
    points: Float[np.ndarray, "n p"],
    moved: Float[np.ndarray, "n p"],
    jacobian: Float[np.ndarray, "p p"],
) -> tuple[float, float] | None:
    """The factor of each step of a path near an equilibrium, and the spectral radius that it is to be.

    With the eigenvalue l of ``jacobian`` that is largest in absolute value and its left eigenvector w, a linear step
    multiplies ``|w x|`` by ``|l|``, the spectral radius, wherever x is: no period, transient or polynomial factor of a
    double eigenvalue comes in. Measured is what the last run of up to 101 points has of it, of those from where the
    step is linear and ``w x`` is not lost in the rounding of x.

    Args:
      points: of the path, as it was played; moved: a step from each of them, exactly.
      jacobian: of the step at the equilibrium, 0.

    Returns:
      The factor measured and the one known; None if fewer than five points can tell.
    """
    values, left = np.linalg.eig(jacobian.T)
    top = np.abs(values).argmax()
    along, after = points @ left[:, top], moved @ left[:, top]
    counts = np.abs(after - values[top] * along) <= 1e-5 * np.abs(along)
    counts &= np.abs(along) >= 1e-3 * np.linalg.norm(points, axis=1)
    runs = [run[counts[run]] for run in np.split(np.arange(len(points)), np.flatnonzero(~counts))]
    long = [run[-101:] for run in runs if len(run) >= 5]
    return (growth(np.abs(along[long[-1]])), abs(values[top])) if long else None
