"""Another run as the beginning of a new one: which of its arrays are taken, and which do not fit.

An array is taken if the new run has one of the same name and shape: data, losses, classes and sizes may be others, and
what depends on them begins anew. The step, and what losses and augmentations remember, always do.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpgan.runtime import records, remote
from bpgan.runtime.checkpoint import Checkpoints
from bpgan.types import UserError

AVERAGES, OPTIMIZER = "ema", "optimizer"


class Source(NamedTuple):
    """A checkpoint to begin from.

    Attributes:
      place: of its run, as it was named.
      record: of its run.
      step: of the checkpoint.
      arrays: by their paths in the state, such as ``players/g/params/dense0/kernel``.
    """

    place: str
    record: records.RunRecord
    step: int
    arrays: Mapping[str, np.ndarray]


def parse(text: str) -> tuple[str, int | None]:
    """Reads ``RUN`` or ``RUN:STEP``; both empty of an empty text. Raises ValueError.

    A directory that is there is a run, even if its name ends like a step, as ``default_latents=normal:8`` does.
    """
    place, colon, step = text.rpartition(":")
    if not (colon and step.isdecimal()) or os.path.isdir(os.path.expanduser(text)):
        place, step = text, ""
    if text and not place:
        raise ValueError("must be RUN or RUN:STEP, a run directory")
    if place:
        remote.check_place(place)
    return place, int(step) if step else None


def read(place: str, step: int | None) -> Source:
    """The newest sound checkpoint of a run, or that of a step; neither its experiment nor its data are needed.

    Raises:
      UserError: of the argument ``init_from``, if there is none.
    """

    def refuse(reason: str) -> UserError:
        text = place if step is None else f"{place}:{step}"
        return UserError(reason, argument="init_from", value=text)

    wanted = remote.in_run(checkpoints=True if step is None else str(step))
    with remote.visited(place, wanted) as path:
        record = records.read_run(path / "config.json")
        if record is None:
            raise refuse("holds no run (config.json)")
        if foreign := records.foreign_format(record):
            raise refuse(foreign)
        if not (path / "checkpoints").is_dir():
            raise refuse("has no checkpoint")
        checkpoints = Checkpoints(path / "checkpoints", run=record.run, read_only=True)
        try:
            found = checkpoints.read_arrays(step)
        finally:
            checkpoints.close()
    if found is None:
        raise refuse("has no sound checkpoint" + (f" of step {step}" if step is not None else ""))
    at, arrays = found
    state = {n.removeprefix("state/"): x for n, x in arrays.items() if n.startswith("state/")}
    return Source(os.fspath(place), record, at, state)


class Begun(NamedTuple):
    """A state that begins from another run.

    Attributes:
      state: as it begins.
      taken: names of the arrays that are the other run's.
      left: names of those that were asked for and begin anew, with the reason.
    """

    state: Any
    taken: list[str]
    left: dict[str, str]


def check_parts(state: Any, parts: Sequence[str]) -> list[str]:
    """What is taken: players by name, ``ema`` and ``optimizer``; without any, all players and their averages.

    Args:
      state: of the new run, or its shapes.
      parts: as they were asked for.

    Raises:
      UserError: if the new run is not made of players, or has none of that name.
    """
    players = getattr(state, "players", None)
    if not isinstance(players, dict) or not hasattr(state, "ema"):
        reason = "this experiment cannot begin from another run: its state has no players"
        raise UserError(reason, argument="init_from")
    known = [*sorted(players), AVERAGES, OPTIMIZER]
    if unknown := [part for part in parts if part not in known]:
        reason = f"{unknown[0]!r} is not a part of this run; must be some of {', '.join(known)}"
        raise UserError(reason, argument="init", value=",".join(parts))
    if parts and not set(parts) & {*players}:
        reason = f"must name a player, too: {', '.join(sorted(players))}"
        raise UserError(reason, argument="init", value=",".join(parts))
    return list(parts) or [*players, AVERAGES]


def begin(state: Any, source: Source, parts: Sequence[str]) -> Begun:
    """The state of a new run with the arrays of another one, where they fit.

    Args:
      state: at the beginning.
      source: where the arrays come from.
      parts: as of ``check_parts``.

    Raises:
      UserError: if nothing at all fits.
    """
    parts = check_parts(state, parts)
    taken: list[str] = []
    left: dict[str, str] = {}

    def fill(tree: Any, prefix: str, *, whole: bool = False) -> Any:
        """A part of the state; ``whole``: all of it or nothing."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        names = [_name(prefix, path) for path, _ in leaves]
        misfits = {
            name: why
            for name, (_, leaf) in zip(names, leaves, strict=True)
            if (why := _misfit(leaf, source.arrays.get(name)))
        }
        if whole and misfits:
            first = next(iter(misfits))
            left[prefix] = f"{first} {misfits[first]}"
            return tree
        left.update(misfits)
        taken.extend(name for name in names if name not in misfits)
        new = [
            leaf if name in misfits else _like(leaf, source.arrays[name])
            for name, (_, leaf) in zip(names, leaves, strict=True)
        ]
        return jax.tree_util.tree_unflatten(structure, new)

    players, ema = dict(state.players), dict(state.ema)
    for name in [name for name in players if name in parts]:
        params = fill(players[name].params, f"players/{name}/params")
        stats = fill(players[name].stats, f"players/{name}/stats")
        players[name] = players[name]._replace(params=params, stats=stats)
        if OPTIMIZER in parts:
            opt = fill(players[name].opt, f"players/{name}/opt", whole=True)
            players[name] = players[name]._replace(opt=opt)
        for key in _averages_of(name, ema):  # an average begins at what it is an average of
            ema[key] = jax.tree.map(jnp.copy, players[name].variables)
            if AVERAGES in parts:
                ema[key] = fill(ema[key], f"ema/{key}")
    if not taken:
        name, why = next(iter(left.items()))
        reason = f"nothing of it fits: {name} {why}"
        raise UserError(reason, argument="init_from", value=source.place)
    return Begun(state._replace(players=players, ema=ema), taken, left)


def _averages_of(player: str, ema: dict[str, Any]) -> list[str]:
    """The names of a player's averages: its own, and of further ones with a number behind it."""
    return [key for key in ema if re.fullmatch(rf"{re.escape(player)}(_\d+)?", key)]


def _name(prefix: str, path: Any) -> str:
    inner = jax.tree_util.keystr(path, simple=True, separator="/")
    return f"{prefix}/{inner}" if inner else prefix


def _misfit(leaf: Any, array: np.ndarray | None) -> str:
    """Why an array cannot stand in the place of a leaf; empty if it can."""
    if array is None:
        return "is not in it"
    if array.shape != leaf.shape:
        return f"is {list(array.shape)} there, {list(leaf.shape)} here"
    return ""


def _like(leaf: Any, array: np.ndarray) -> Any:
    """Of the type and in the place of a leaf; a copy, for the buffers of a state are given away."""
    return jax.device_put(np.array(array).astype(leaf.dtype), leaf.sharding)
