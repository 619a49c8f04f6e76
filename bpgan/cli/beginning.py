"""A run that begins from another one: what ``--init_from`` and ``--init`` ask for."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from bpgan.cli.config import RunConfig
from bpgan.runtime import distributed, origin, records, remote
from bpgan.types import Algorithm, UserError


def beginning_of(
    cfg: RunConfig, workdir: str | os.PathLike, algorithm: Algorithm
) -> Callable[[Any], tuple[Any, records.Origin]] | None:
    """``RunSpec.begin`` of a run; None if it begins by itself.

    The other run is read here, before anything is compiled, if this one has not been saved yet; if it has, it goes on
    without.

    Raises:
      UserError: if the other run cannot be read, or the flags do not go with this one.
    """
    place, step = cfg.init_from.value
    if not place:
        if cfg.init:
            raise UserError("has no effect without `init_from`", argument="init", value=cfg.init)
        return None
    parts = [part for part in cfg.init.split(",") if part]
    origin.check_parts(jax.eval_shape(algorithm.init, jax.random.key(0)), parts)
    known: list[origin.Source] = []
    if not remote.is_url(workdir) and not records.has_checkpoint(pathlib.Path(workdir)):
        known.append(origin.read(place, step))

    def begin(state: Any) -> tuple[Any, records.Origin]:
        source = known[0] if known else origin.read(place, step)
        begun = origin.begin(state, source, parts)
        record = source.record
        found = records.Origin(
            place=source.place,
            run=record.run,
            experiment=record.experiment,
            step=source.step,
            data=record.data,
            taken=len(begun.taken),
            left=begun.left,
        )
        if distributed.is_lead():
            print(records.said_of(found), flush=True)
        return begun.state, found

    return begin
