"""The average of a trained run at a length that is chosen after training: a sum of what its checkpoints keep."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan import optim
from bpgan.runtime import checkpoint
from bpgan.types import UserError

FARTHEST = 0.1
"""The greatest relative distance of a sum from the profile that is asked for."""


def parse(text: str) -> float | None:
    """Reads a relative width such as 0.08; None of an empty text, for the average that draws in the run.

    Raises:
      ValueError: for anything else, and for a width beyond which the oldest weights would count most.
    """
    if not text:
        return None
    try:
        sigma = float(text)
    except ValueError:
        raise ValueError(
            "must be a relative width such as 0.1, or empty for the run's own average"
        ) from None
    optim.exponent_of(sigma)
    return sigma


def check(sigma: float) -> None:
    """Raises a UserError for a relative width that no average has."""
    try:
        optim.exponent_of(sigma)
    except ValueError as error:
        raise UserError(str(error), argument="ema", value=sigma) from None


class Reconstruction(NamedTuple):
    """How an average was had.

    Attributes:
      sigma: its relative width.
      sources: the step and the relative width of each stored average.
      combination: their coefficients, the residual and the condition number.
    """

    sigma: float
    sources: tuple[tuple[int, float], ...]
    combination: optim.Combination

    def __str__(self) -> str:
        checkpoints = len({step for step, _ in self.sources})
        return (
            f"average of relative width {self.sigma:g} from {len(self.sources)} averages of {checkpoints} checkpoints:"
            f" residual {self.combination.residual:.2g}, condition number {self.combination.condition:.2g}"
        )


def plan(sigmas: Sequence[float | None], steps: Sequence[int], sigma: float) -> Reconstruction:
    """The sum of stored averages that is nearest to one of another length.

    Args:
      sigmas: relative widths of those that each checkpoint has; None: it is none of a power.
      steps: of the checkpoints; the average is as of the last one.
      sigma: its relative width.

    Raises:
      UserError: if nothing is stored, or what is stored does not give it well enough.
    """

    def refuse(reason: str) -> UserError:
        return UserError(reason, argument="ema", value=f"{sigma:g}")

    sources = tuple((step, each) for step in steps for each in sigmas if each is not None)
    if not sources:
        raise refuse("the run keeps no power averages, as `ema=power:0.05+power:0.1` does")
    stored = [optim.Profile(optim.exponent_of(each), step) for step, each in sources]
    wanted = optim.Profile(optim.exponent_of(sigma), steps[-1])
    try:
        combination = optim.combine(stored, wanted)
        off = combination.residual
    except ValueError:
        combination, off = None, math.inf
    if combination is None or off > FARTHEST:
        found = f"{len(sources)} averages of {len(steps)} checkpoints"
        reason = f"the {found} miss it by {off:.1%} of its norm, more than {FARTHEST:.0%}; it takes averages of lengths"
        raise refuse(f"{reason} around it, or more checkpoints (`checkpoint_every` and `keep`)")
    return Reconstruction(sigma, sources, combination)


def reconstruct(
    folder: pathlib.Path, run: str | None, step: int, state: Any, lengths: Any, sigma: float
) -> tuple[Any, Reconstruction]:
    """A state whose G draws with an average of another length; each array is a sum in float64.

    Args:
      folder: of the checkpoints.
      run: that they are of.
      step, state: of one of them; later ones have no part.
      lengths: ``optim.Lengths`` of the run; anything else if it has none.
      sigma: the relative width.

    Raises:
      UserError: as ``plan``.
    """
    sigmas = lengths.sigmas if isinstance(lengths, optim.Lengths) else ()
    keys = optim.names_of_averages("g", len(sigmas))
    stored = checkpoint.Checkpoints(folder, run=run, keep=checkpoint.NEWEST, read_only=True)
    try:
        steps = [at for at in stored.steps() if at < step] if any(sigmas) else []
        found = {at: arrays for at in steps if (arrays := _arrays(stored, at))}
    finally:
        stored.close()
    found[step] = _flat(state.ema)
    how = plan(sigmas, sorted(found), sigma)
    places = [(at, key) for at in sorted(found) for key, s in zip(keys, sigmas, strict=True) if s]
    leaves, structure = jax.tree_util.tree_flatten_with_path(state.ema["g"])
    new = []
    for path, leaf in leaves:
        inner = jax.tree_util.keystr(path, simple=True, separator="/")
        parts = (np.asarray(found[at][f"{key}/{inner}"], np.float64) for at, key in places)
        total = sum(c * x for c, x in zip(how.combination.coefficients, parts, strict=True))
        new.append(np.asarray(total).astype(leaf.dtype))
    ema = {**state.ema, "g": jax.tree_util.tree_unflatten(structure, new)}
    return state._replace(ema=ema), how


def _arrays(stored: checkpoint.Checkpoints, step: int) -> dict[str, np.ndarray]:
    """The averages of a checkpoint by their paths; none if it is damaged."""
    read = stored.read_arrays(step)
    mark = "ema/"
    found = read[1].items() if read else ()
    return {
        name.partition(mark)[2]: x for name, x in found if name.startswith(("state/ema/", mark))
    }


def _flat(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = jax.tree_util.keystr
    return {name(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}
