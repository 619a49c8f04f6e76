"""Checkpoints of a whole run over orbax: the only module that knows the format.

A checkpoint is the run's carry and a manifest with the type, shape and CRC-32 of every array in it. orbax commits a
checkpoint by renaming its directory, so a killed process leaves none that is half written; it does not notice what
happens to the files afterwards, and that is what the manifest is for.
"""

import concurrent.futures
import logging
import operator
import pathlib
import re
import shutil
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan.runtime import parallel
from bpgan.types import UserError


class Keep(NamedTuple):
    """Which checkpoints stay: the ``newest``, and the ``best`` by a metric (the least of it if ``mode`` is ``min``)."""

    newest: int = 3
    best: int = 0
    metric: str = ""
    mode: str = "min"

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """Reads ``3`` or ``3,best=2,min:d/loss``: the three newest, and the two with the least ``d/loss``.

        Raises:
          ValueError: for anything else.
        """
        match = re.fullmatch(r"(\d+)(?:(?:,best=(\d+))?,(min|max):(\S+))?", text)
        if not match or int(match[1]) < 1 or match[2] == "0":
            raise ValueError("must be N or N,best=M,min:METRIC (or max:METRIC), N and M at least 1")
        if match[4] is None:
            return cls(int(match[1]))
        return cls(int(match[1]), int(match[2] or 1), match[4], match[3])


NEWEST = Keep()
"""The three newest."""


class Checkpoints:
    """The checkpoints of one run directory.

    A save is asynchronous and atomic: a process killed at any moment leaves the checkpoints that were complete. Where
    several processes train one run, each calls every method at the same step.

    Args:
      directory: created if need be; belongs to this object, leftovers of killed saves in it are removed.
      keep: which checkpoints stay; the newest always does.
      read_only: only restore, and change nothing in the directory, which another process may be writing to.
    """

    def __init__(
        self, directory: str | pathlib.Path, *, keep: Keep = NEWEST, read_only: bool = False
    ):
        import orbax.checkpoint as ocp

        # orbax logs every save, and what it finds in a damaged checkpoint before raising.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp, self._keep, self._closed = ocp, keep, False
        self._read_only = read_only
        self._directory = pathlib.Path(directory).absolute()
        policies = ocp.checkpoint_managers.preservation_policy
        policy: list[Any] = [policies.LatestN(keep.newest)]
        options: dict[str, Any] = {}
        if keep.best:
            rank = operator.itemgetter(keep.metric)
            best = policies.BestN(
                get_metric_fn=rank,
                reverse=keep.mode == "min",
                n=keep.best,
                keep_checkpoints_without_metrics=False,
            )
            policy.append(best)
            # Without these orbax would not write the metrics, and could not rank old checkpoints after a restart.
            options = {"best_fn": rank, "best_mode": keep.mode}

        class Manager(ocp.CheckpointManager):
            def metrics(self, step: int) -> Any:
                """None, as without a rank, for a damaged one and for that by the metric of an earlier ``keep``."""
                try:
                    found = super().metrics(step) or {}
                    return {keep.metric: float(found[keep.metric])}
                except (ValueError, TypeError, KeyError):
                    return None

        try:
            self._manager = Manager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(policy),
                    enable_async_checkpointing=True,
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    create=not read_only,
                    **options,
                ),
            )
        except OSError as error:
            raise UserError(
                f"--workdir: {self._directory}: cannot be used ({error.strerror})"
            ) from None

    def save(self, step: int, tree: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Starts saving ``tree``; returns once its values are safe from later changes of the buffers.

        Args:
          step: later than any before.
          tree: arrays.
          metrics: values by name, by one of which the best checkpoints are told; without it, this is none of them.

        Raises:
          UserError: if this or the save before it cannot be written.
        """
        # The caller goes on to donate these buffers, and on CPU orbax may write from them directly.
        copy = jax.block_until_ready(parallel.copy(tree))
        # Asked beforehand: when the disk fills up amid a save, tensorstore's threads fill the terminal with tracebacks.
        needed = (1 << 20) + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(copy))
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            short = f"No space left: {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
            raise self._cannot_write(step, OSError(short))
        args = self._ocp.args.Composite(
            carry=self._ocp.args.StandardSave(copy),
            manifest=self._ocp.args.JsonSave({"format": 1, "leaves": _checksums(copy)}),
        )
        name = self._keep.metric
        ranked = {name: metrics[name]} if metrics and name in metrics else None
        try:
            self._manager.save(step, args=args, metrics=ranked, force=True)
        except Exception as error:
            raise self._cannot_write(step, error) from None

    def restore(
        self, abstract: Any, *, best: bool = False, step: int | None = None
    ) -> tuple[int, Any] | None:
        """The newest sound checkpoint as ``(step, tree)``, or None if there is none.

        A checkpoint is sound if it can be read and every array has the checksum it had when it was saved. Others are
        reported and set aside as ``<step>.damaged``, unless this only reads.

        Args:
          abstract: shapes, types and shardings of the tree; devices may be others than those it was saved from.
          best: only the one that is best by the metric of ``keep``; None if none was ranked, or that one is damaged.
          step: only the one of this step; None if there is none, or it is damaged.

        Raises:
          UserError: if the newest is asked for, there are checkpoints, and none is sound; they are left where they are.
        """
        damaged, steps = [], self.steps()[::-1]
        if best:
            first = self._manager.best_step() if self._keep.metric else None
            steps = [] if first is None else [first]
        elif step is not None:
            steps = [step] if step in steps else []
        for at in steps:
            tree, reason = self._read(at, abstract)
            # What one process cannot read, none uses: they must go on from the same step.
            if parallel.agree(not reason).all():
                if self._read_only:
                    return at, tree
                if damaged and parallel.is_lead():
                    for path in damaged:
                        path.rename(_unused(path.with_name(f"{path.name}.damaged")))
                if damaged:
                    parallel.agree(True)  # the directories have their new names before anyone looks
                    self._manager.reload()
                return at, tree
            damaged.append(self._directory / str(at))
            if parallel.is_lead():
                print(f"warning: checkpoint {damaged[-1]} is damaged: {reason or 'see above'}")
        if damaged and not best and step is None:
            away = f"; move {self._directory.parent} away to start afresh"
            raise UserError(
                f"{self._directory}: none of the {len(damaged)} checkpoints can be read"
                + away * (not self._read_only)
            )
        return None

    def steps(self) -> list[int]:
        """The steps of all checkpoints, sound or not."""
        return sorted(self._manager.all_steps())

    def rewind(self, step: int) -> None:
        """Deletes the checkpoints of later steps: a run that goes on from ``step`` will save them again."""
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def _read(self, step: int, abstract: Any) -> tuple[Any, str]:
        """The tree of one checkpoint, and what is wrong with it or ''."""
        args = self._ocp.args
        wanted = args.Composite(carry=args.StandardRestore(abstract), manifest=args.JsonRestore())
        try:
            read = self._manager.restore(step, args=wanted)
            tree, saved = read["carry"], read["manifest"]["leaves"]
        except Exception as error:  # orbax raises many types, bare Exception among them
            return None, _first_line(error)
        found = _checksums(tree)
        wrong = [name for name in saved if saved[name] != found.get(name)]
        if wrong or len(found) != len(saved):
            return None, f"checksum mismatch in {', '.join(wrong[:3]) or 'its manifest'}" + (
                f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            )
        return tree, ""

    def close(self) -> None:
        """Waits for the last save to be complete. Raises a UserError if it could not be written. May be repeated."""
        if self._closed:
            return
        self._closed = True
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(None, error) from None
        finally:
            self._manager.close()

    def _cannot_write(self, step: int | None, error: Exception) -> Exception:
        disk = isinstance(error, OSError) or re.search("space|quota|PERMISSION|I/O", str(error))
        if jax.process_count() > 1 and not disk:  # orbax could not talk with another process
            return jax.errors.JaxRuntimeError(_first_line(error))
        which = "the last checkpoint" if step is None else f"the checkpoint of step {step}"
        newest = max(self.complete(), default=None)
        kept = f"that of step {newest} is kept" if newest is not None else "there is none before it"
        return UserError(
            f"--workdir: {which} could not be written to {self._directory} ({_first_line(error)});"
            f" {kept}. Make room or mend the disk, and repeat the command"
        )

    def complete(self) -> list[int]:
        """The steps of those on disk; of a save that is under way it is none yet."""
        return [int(p.name) for p in self._directory.glob("*") if p.name.isdecimal()]


def _checksums(tree: Any) -> dict[str, list]:
    """Type, shape and CRC-32 of every array by its path. NaN and -0.0 count as the bits they are."""

    def describe(leaf) -> list:
        array = np.asarray(leaf)
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
        return [str(array.dtype), list(array.shape), crc]

    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # zlib lets other threads run
        return dict(zip(names, pool.map(describe, leaves), strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _unused(path: pathlib.Path) -> pathlib.Path:
    """``path``, or with a number behind it if there is such a file already."""
    candidates = (path.with_name(f"{path.name}.{n}") if n else path for n in range(10**6))
    return next(candidate for candidate in candidates if not candidate.exists())
