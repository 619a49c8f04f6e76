"""How the game between G and D fares: the spectrum of its Jacobian at checkpoints of a run.

The field is ``xi = (grad_theta L_G, grad_psi L_D)``, which both players descend, and ``J`` its Jacobian
(``bpgan.algorithms.game``). One step of simultaneous gradient descent of size h multiplies what lies along an
eigenvector by ``1 - h l``: it contracts where ``|1 - h l| < 1``, that is ``h < 2 Re(l) / |l|^2`` with Re(l) > 0. An
eigenvalue with a negative real part grows whatever the step, and a large ``|Im| / |Re|`` is rotation, which needs
small steps (Mescheder et al. 2017, arXiv:1705.10461; Nagarajan & Kolter 2017, arXiv:1706.04156).

Of real networks only the outermost eigenvalues can be had, by Arnoldi's method, and they are those of the game on one
batch. A run that has not converged is not at an equilibrium: what is predicted is for plain simultaneous descent
nearby. Adam scales each parameter by itself and takes other steps.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Complex

from bpgan.algorithms import game
from bpgan.types import PRNG, UserError

Play = Callable[[Any], tuple[game.Losses, game.Pair]]
"""``state -> (losses, params)``, traceable: the game at a state, as ``game.of`` gives it."""

DENSE = 300
"""Parameters up to which all eigenvalues are computed."""


class Spectrum(NamedTuple):
    """What the eigenvalues of J say.

    Attributes:
      eigenvalues: the outermost ones, by decreasing absolute value.
      exact: whether they are all of J's, and not Ritz values.
      max_real, min_real: the greatest and the smallest real part among them.
      rotation: the greatest ``|Im| / |Re|``; infinite if one is imaginary.
      step: ``min 2 |Re| / |l|^2``, the predicted largest stable step of simultaneous descent if all real parts are
        positive. It bounds the steps that contract every direction that contracts at all.
      stable: whether all real parts are positive.

    Eigenvalues that are 0 to rounding are left out of the numbers, because nothing moves along them.
    """

    eigenvalues: Complex[np.ndarray, " k"]
    exact: bool
    max_real: float
    min_real: float
    rotation: float
    step: float
    stable: bool


def describe(
    eigenvalues: Complex[np.ndarray, " k"], *, exact: bool = True, keep: int | None = None
) -> Spectrum:
    """The numbers of a spectrum.

    Args:
      eigenvalues: of J, in the precision in which it was computed.
      exact: whether they are all of J's.
      keep: only so many of the outermost, by absolute value: of Ritz values the inner ones are no eigenvalues.

    Raises:
      ValueError: if there are none, or one is not finite.
    """
    values = np.atleast_1d(eigenvalues)
    stable_step = game.largest_stable_step(values)  # refuses what is not finite
    neutral = np.zeros(len(values), bool)
    neutral[stable_step.neutral] = True
    order = np.argsort(-np.abs(values), kind="stable")[:keep]
    moving = values[order][~neutral[order]].astype(complex)
    values = values[order]
    if not len(moving):
        return Spectrum(values, exact, 0.0, 0.0, 0.0, np.inf, False)
    real, size = moving.real, np.abs(moving)
    with np.errstate(divide="ignore"):
        rotation = float(np.max(np.abs(moving.imag) / np.abs(real)))
    step = float(np.min(2 * (np.abs(real) / size) / size))
    low = float(real.min())
    return Spectrum(values, exact, float(real.max()), low, rotation, step, low > 0)


def solver(
    play: Play, key: PRNG, *, iterations: int = 30, keep: int = 10
) -> Callable[[Any], Spectrum]:
    """``state -> Spectrum``, compiled once for all states of one structure.

    Args:
      play: the game at a state.
      key: of the start of Arnoldi's iterations.
      iterations: each costs a product with J, and memory for a vector of all parameters. Games of up to ``DENSE``
        parameters have all their eigenvalues computed instead.
      keep: how many of the Ritz values are told, the outermost ones.

    Raises:
      UserError: if ``iterations`` or ``keep`` is below 1; from the function, if there are fewer parameters than
        iterations.
    """
    for name, value in (("iterations", iterations), ("keep", keep)):
        if value < 1:
            raise UserError("must be at least 1", argument=name, value=value)
    dense = jax.jit(lambda state: game.jacobian(*play(state)))
    krylov = jax.jit(lambda state, key: game.krylov(*play(state), key, iterations))

    def solve(state: Any) -> Spectrum:
        size = sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda s: play(s)[1], state)))
        if size <= DENSE:
            found = np.linalg.eigvals(np.asarray(dense(state)))
            return describe(found, exact=True)
        if size < iterations:
            reason = f"must be at most {size}, as many as there are parameters"
            raise UserError(reason, argument="iterations", value=iterations)
        columns = krylov(state, jax.random.clone(key))  # the same start for all
        return describe(game.ritz(np.asarray(columns)), exact=False, keep=keep)

    return solve


def trajectory(
    play: Play,
    states: Iterable[tuple[int, Any]],
    key: PRNG,
    *,
    iterations: int = 30,
    keep: int = 10,
) -> list[tuple[int, Spectrum]]:
    """The spectrum at each of the checkpoints ``(step, state)`` of a run, with the same start, and compiled once.

    Arguments as of ``solver``. A state whose J is not finite is left out.
    """
    solve = solver(play, key, iterations=iterations, keep=keep)
    found = []
    for step, state in states:
        with contextlib.suppress(ValueError):
            found.append((step, solve(state)))
    return found


def of_run(
    algorithm: Any, batch: Any, key: PRNG, every: Iterable[int] = (), most: int = 16
) -> Play:
    """The game that an algorithm plays, on one batch, as ``solver`` takes it.

    A lazy penalty, which enters every n-th update n times as much, would make the spectrum depend on the remainder of a
    checkpoint's step. So the losses are means over the updates of one period, each kind of update with its share.

    Args:
      algorithm: with players ``g`` and ``d``.
      batch: of one step.
      key: the root key of the steps.
      every: the intervals of the lazy penalties.
      most: updates in a period, beyond which only its first ones count.
    """
    shares = phases(every, most)

    def play(state: Any) -> tuple[game.Losses, game.Pair]:
        period = state.step - state.step % sum(count for _, count in shares)
        games = [
            (game.of(algorithm, state._replace(step=period + offset), batch, key), count)
            for offset, count in shares
        ]
        total = sum(count for _, count in games)

        def losses(params: game.Pair) -> tuple[tuple[Any, Any], Any]:
            values = [(of[0](params)[0], count / total) for of, count in games]
            g, d = (sum(share * value[i] for value, share in values) for i in (0, 1))
            return (g, d), ()

        return losses, games[0][0][1]

    return play


def phases(every: Iterable[int], most: int = 16) -> list[tuple[int, int]]:
    """The kinds of updates in a period of lazy penalties: the first offset at which each occurs, and how often.

    >>> phases([4])
    [(0, 1), (1, 3)]
    >>> phases([4, 16])
    [(0, 1), (1, 12), (4, 3)]
    """
    intervals = sorted({n for n in every if n > 1})
    period = min(int(np.lcm.reduce(intervals)), most) if intervals else 1
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for offset in range(period):
        kinds.setdefault(tuple(offset % n == 0 for n in intervals), []).append(offset)
    return [(offsets[0], len(offsets)) for offsets in kinds.values()]
