"""Checkpoints of a whole run over orbax: the only module that knows the format.

A checkpoint is the run's carry and a manifest. orbax commits a checkpoint by renaming its directory, so a killed
process leaves none that is half written; it does not notice what happens to the files afterwards, and that is what the
manifest is for. It says which run the checkpoint is of, its step, the metric by which it ranks, and the type, shape and
CRC-32 of every array, and ends with a CRC-32 of itself.
"""

import asyncio
import concurrent.futures
import errno
import json
import logging
import math
import operator
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan.measures import Goal
from bpgan.runtime import distributed, program, records
from bpgan.types import UserError, counted


class Keep(NamedTuple):
    """Which checkpoints stay: the ``newest``, and the ``best`` by a goal."""

    newest: int = 3
    best: int = 0
    goal: Goal | None = None

    @property
    def metric(self) -> str:
        """Of the goal; empty if there is none."""
        return self.goal.metric if self.goal else ""

    @property
    def mode(self) -> str:
        """Of the goal: ``min`` if there is none."""
        return self.goal.mode if self.goal else "min"

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """Reads ``3`` or ``3,best=2,min:d/loss``: the three newest, and the two with the least ``d/loss``.

        Raises:
          ValueError: for anything else.
        """
        match = re.fullmatch(r"(0*[1-9]\d*)(?:(?:,best=(0*[1-9]\d*))?,(.+))?", text, re.ASCII)
        try:
            if not match:
                raise ValueError
            goal = Goal.parse(match[3]) if match[3] else None
        except ValueError:
            form = "must be N or N,best=M,min:METRIC (or max:METRIC), N and M at least 1"
            raise ValueError(form) from None
        return cls(int(match[1]), int(match[2] or 1) if goal else 0, goal)


NEWEST = Keep()
"""The three newest."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that what comes too late finds closed, and leaves.

    When one array cannot be read, or written, orbax closes its loop. tensorstore's threads come back with the others,
    and each would print a traceback.
    """

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().call_soon_threadsafe(*args, **kwargs)
        except RuntimeError:
            if not self.is_closed():
                raise


class _Loops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


class _Unsound(Exception):
    """Why a checkpoint cannot be used, as what follows its name."""


_FORMAT = 2
"""Of the manifest. Format 1 did not say which run and step it was of."""


class Checkpoints:
    """The checkpoints of one run directory.

    A save is asynchronous and atomic: a process killed at any moment leaves the checkpoints that were complete. Where
    several processes train one run, each calls every method at the same step.

    Args:
      directory: created if need be; belongs to this object, leftovers of killed saves in it are removed.
      run: what tells this run from every other; the checkpoints of others are not used. None: of any run.
      keep: which checkpoints stay; the newest always does.
      read_only: only restore, and change nothing in the directory, which another process may be writing to.
      shared: several processes that train one run have this directory in common, and write each a part; else each has
        one of its own, with the whole.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        run: str | None = None,
        keep: Keep = NEWEST,
        read_only: bool = False,
        shared: bool = True,
    ):
        import orbax.checkpoint as ocp

        # orbax logs every save, and what it finds in a damaged checkpoint before raising.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        if type(asyncio.get_event_loop_policy()) is asyncio.DefaultEventLoopPolicy:
            asyncio.set_event_loop_policy(_Loops())
        self._ocp, self._keep, self._closed = ocp, keep, False
        self._read_only, self._run = read_only, run
        self._alone = not shared and jax.process_count() > 1
        self._ranks: dict[int, float] = {}
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
            # The manifest has the rank; orbax's own file of it could be changed unseen.
            options = {"best_fn": rank, "best_mode": keep.mode, "prevent_write_metrics": True}
        ranked = self._ranked

        class Manager(ocp.CheckpointManager):
            def metrics(self, step: int) -> Any:
                return ranked(step)

        if self._alone:
            me = distributed.index()
            options["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
            )
            self._directory.mkdir(parents=True, exist_ok=True)  # orbax does it for all of them only
            # Else it waits for a signal of the processes' that these do not give each other.
            options["async_options"] = ocp.options.AsyncOptions(
                create_directories_asynchronously=False
            )
        try:
            self._manager = Manager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(policy),
                    enable_async_checkpointing=True,
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    create=not read_only and not self._alone,
                    **options,
                ),
            )
        except OSError as error:
            reason = f"{self._directory}: cannot be used ({error.strerror})"
            raise UserError(reason, argument="workdir") from None

    def save(
        self,
        step: int,
        tree: Any,
        metrics: Mapping[str, float] | None = None,
        log: Sequence[int] = (),
    ) -> None:
        """Starts saving ``tree``; returns once its values are safe from later changes of the buffers.

        Args:
          step: later than any before.
          tree: arrays.
          metrics: values by name, by one of which the best checkpoints are told; without it, or where it is not finite,
            this is none of them.
          log: what ``log`` is to say of this step.

        Raises:
          UserError: if this or the save before it cannot be written.
        """
        # The caller goes on to donate these buffers, and on CPU orbax may write from them directly.
        copy = jax.block_until_ready(program.copy(tree))
        value = (metrics or {}).get(self._keep.metric, math.nan)
        rank = {self._keep.metric: float(value)} if math.isfinite(value) else None
        manifest = {"format": _FORMAT, "run": self._run, "step": step, "rank": rank}
        manifest |= {"best": self._best(step, rank), "log": list(log), "leaves": _checksums(copy)}
        if self._alone:  # orbax would write the part of an array that this process is to write
            copy = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), copy)
        args = self._ocp.args.Composite(
            carry=self._ocp.args.StandardSave(copy),
            manifest=self._ocp.args.JsonSave(manifest | {"crc": _checksum(manifest)}),
        )
        try:
            self._check_room(copy)
            self._manager.save(step, args=args, metrics=rank, force=True)
        except Exception as error:
            raise self._cannot_write(step, error) from None

    def _best(self, step: int, rank: Mapping[str, float] | None) -> list[Any] | None:
        """By what they rank, and the step of the best once there is that of this step; of equals the newest."""
        if not self._keep.best:
            return None
        ranks = {at: self._ranks[at] for at in self.steps() if at in self._ranks}
        if rank:
            ranks[step] = self._ranks[step] = rank[self._keep.metric]
        sign = -1.0 if self._keep.mode == "min" else 1.0
        best = max(ranks, key=lambda at: (sign * ranks[at], at), default=None)
        return None if best is None else [self._keep.mode, self._keep.metric, best]

    def _check_room(self, tree: Any) -> None:
        """When the disk fills up amid a save, tensorstore's threads fill the terminal with tracebacks."""
        needed = (1 << 20) + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            short = f"No space left: {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
            raise OSError(errno.ENOSPC, short)

    def restore(
        self, abstract: Any, *, best: bool = False, step: int | None = None
    ) -> tuple[int, Any] | None:
        """The newest sound checkpoint as ``(step, tree)``, or None if there is none.

        A checkpoint is sound if it is of this run and of the step that it is named after, can be read, and every array
        has the checksum it had when it was saved. Others are reported and set aside as ``<step>.damaged``, unless this
        only reads.

        Args:
          abstract: shapes, types and shardings of the tree; devices may be others than those it was saved from.
          best: only the one that is best by the metric of ``keep``; None if none was ranked, or that one is damaged.
          step: only the one of this step; None if there is none, or it is damaged.

        Raises:
          UserError: if the newest is asked for, there are checkpoints, and none is sound; they are left where they are.
            If one was saved by a version of bpgan with another format.
        """
        self._finish_saving()
        damaged: dict[pathlib.Path, str] = {}
        steps = self._with_sound_manifest(damaged, self.steps() if step is None else [step])
        if steps and step is None:
            self._miss_best(steps, damaged)
        if best:
            first = self._manager.best_step() if self._keep.metric else None
            steps = [at for at in steps if at == first]
        for at in steps[::-1]:
            tree, reason = self._read(at, abstract)
            # What one process cannot read, none uses: they must go on from the same step.
            if distributed.agree(not reason).all():
                self._set_aside(damaged)
                return at, tree
            self._report(damaged, at, reason)
        if damaged and not best and step is None:
            away = f"; move {self._directory.parent} away to start afresh"
            newest = max(damaged, key=lambda path: int(path.name))
            raise UserError(
                f"{self._directory}: its {counted(len(damaged), 'checkpoint')} cannot be read"
                f" ({newest.name} {damaged[newest]})" + away * (not self._read_only)
            )
        return None

    def log(self, step: int) -> list[int]:
        """What ``save`` was told of the log, of a sound checkpoint."""
        return self._manifest(step)["log"]

    def _with_sound_manifest(self, damaged: dict[pathlib.Path, str], steps: list[int]) -> list[int]:
        """Those of ``steps`` whose manifest is sound for every process; the others are reported as ``damaged``.

        All are looked at, not only the newest: one whose rank cannot be read may have been the best.
        """
        steps, reasons = [at for at in steps if at in self.steps()], []
        if not steps:
            return []
        for at in steps:
            try:
                self._manifest(at)
                reasons.append("")
            except _Unsound as error:
                reasons.append(str(error))
        agreed = distributed.agree([not reason for reason in reasons])
        sound = {at for i, at in enumerate(steps) if agreed[:, i].all()}
        for at, reason in zip(steps[::-1], reasons[::-1], strict=True):
            if at not in sound:
                self._report(damaged, at, reason)
        return [at for at in steps if at in sound]

    def _miss_best(self, steps: Sequence[int], damaged: Collection[pathlib.Path]) -> None:
        """Says it if the best checkpoint is gone: from now on another one is."""
        *by, at = self._manifest(steps[-1])["best"] or [None]
        path = self._directory / str(at)
        gone = (
            by == [self._keep.mode, self._keep.metric] and at not in steps and path not in damaged
        )
        if gone and distributed.is_lead():
            print(
                f"warning: checkpoint {path}, the best one, is gone; the best of the others counts"
            )

    def _report(self, damaged: dict[pathlib.Path, str], step: int, reason: str) -> None:
        path = self._directory / str(step)
        damaged[path] = reason or "is damaged: see above"
        if distributed.is_lead():
            print(f"warning: checkpoint {path} {damaged[path]}")

    def _set_aside(self, damaged: Collection[pathlib.Path]) -> None:
        if self._read_only or not damaged:
            return
        for path in damaged if distributed.is_lead() or self._alone else ():
            path.rename(_unused(path.with_name(f"{path.name}.damaged")))
        distributed.agree(True)  # the directories have their new names before anyone looks
        self._manager.reload()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, sound or not."""
        return sorted(self._manager.all_steps())

    def rewind(self, step: int) -> None:
        """Deletes the checkpoints of later steps: a run that goes on from ``step`` will save them again."""
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def _manifest(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself.

        Raises:
          _Unsound: if that is damaged, or not of this run or this step.
          UserError: if another version of bpgan wrote it.
        """
        path = self._directory / str(step)
        try:
            manifest = json.loads((path / records.MANIFEST).read_bytes())
            form = manifest["format"]
            first = form == 1 and "crc" not in manifest  # format 1 had no checksum of its own
            sound = first or manifest.pop("crc") == _checksum(manifest)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            sound, form = False, None
        if not sound:
            raise _Unsound("is damaged: checksum mismatch in its manifest")
        if form != _FORMAT:
            raise UserError(
                f"{path}: was saved by another version of bpgan (format {form}, not {_FORMAT}); go on with that version"
                " or begin the run anew in another directory"
            )
        if self._run is not None and manifest["run"] != self._run:
            other = f"it is of run {manifest['run']}, and this is run {self._run or '(unknown)'}"
            raise _Unsound(f"is not used: {other}")
        if manifest["step"] != step:
            raise _Unsound(f"is not used: it is of step {manifest['step']}")
        return manifest

    def _ranked(self, step: int) -> dict[str, float] | None:
        """The value by which one ranks; None without one, and for that by the metric of an earlier ``keep``."""
        try:
            rank = self._manifest(step)["rank"]
        except (_Unsound, UserError):
            return None
        if not rank or self._keep.metric not in rank:
            return None
        self._ranks[step] = rank[self._keep.metric]
        return rank

    def _read(self, step: int, abstract: Any) -> tuple[Any, str]:
        """The tree of one checkpoint, and what is wrong with it or ''."""
        args = self._ocp.args
        try:
            saved = self._manifest(step)["leaves"]
            wanted = args.Composite(carry=args.StandardRestore(abstract))
            tree = self._manager.restore(step, args=wanted)["carry"]
        except UserError:
            raise
        except Exception as error:  # orbax raises many types, bare Exception among them
            return None, f"is damaged: {_first_line(error)}"
        found = _checksums(tree)
        wrong = [name for name in saved if saved[name] != found.get(name)]
        if wrong or len(found) != len(saved):
            return (
                None,
                f"is damaged: checksum mismatch in {', '.join(wrong[:3]) or 'its manifest'}"
                + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""),
            )
        return tree, ""

    def read_arrays(self, step: int | None = None) -> tuple[int, dict[str, np.ndarray]] | None:
        """The arrays of the newest sound checkpoint, or of that of a step, by their paths; None if there is none.

        No structure is needed to read them into. Damaged checkpoints are reported and left where they are.
        """
        damaged: dict[pathlib.Path, str] = {}
        steps = self._with_sound_manifest(damaged, self.steps() if step is None else [step])
        for at in steps[::-1]:
            try:
                tree = self._read_freely(at)
            except Exception as error:  # orbax raises many types, bare Exception among them
                self._report(damaged, at, f"is damaged: {_first_line(error)}")
                continue
            if _checksums(tree) == self._manifest(at)["leaves"]:
                leaves = jax.tree_util.tree_leaves_with_path(tree)
                name = jax.tree_util.keystr
                return at, {name(p, simple=True, separator="/"): x for p, x in leaves}
            self._report(damaged, at, "is damaged: checksum mismatch")
        return None

    def _read_freely(self, step: int) -> Any:
        """The tree of one checkpoint as nested dictionaries of arrays on the host."""
        ocp, path = self._ocp, (self._directory / str(step) / "carry").absolute()
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.metadata(path).item_metadata.tree
            wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(found))
            return checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=wanted))

    def close(self) -> None:
        """Waits for the last save to be complete. Raises a UserError if it could not be written. May be repeated."""
        if self._closed:
            return
        self._closed = True
        try:
            self._finish_saving()
        finally:
            self._manager.close()

    def _finish_saving(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(None, error) from None

    def _cannot_write(self, step: int | None, error: Exception) -> Exception:
        if jax.process_count() > 1 and not isinstance(error, OSError) and self._takes_files():
            # orbax could not talk with another process
            return jax.errors.JaxRuntimeError(_first_line(error))
        which = "the last checkpoint" if step is None else f"the checkpoint of step {step}"
        newest = max(self.complete(), default=None)
        kept = f"that of step {newest} is kept" if newest is not None else "there is none before it"
        return UserError(
            f"{which} could not be written to {self._directory} ({_first_line(error)}); {kept}."
            " Make room or mend the disk, and repeat the command",
            argument="workdir",
            value=self._directory.parent,
        )

    def _takes_files(self) -> bool:
        """Whether the disk takes a file now: what orbax raises does not tell a disk from a process that is gone."""
        try:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            return False
        return True

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


def _checksum(manifest: Mapping[str, Any]) -> int:
    """CRC-32 of a manifest as JSON in its shortest form, keys in order."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _unused(path: pathlib.Path) -> pathlib.Path:
    """``path``, or with a number behind it if there is such a file already."""
    candidates = (path.with_name(f"{path.name}.{n}") if n else path for n in range(10**6))
    return next(candidate for candidate in candidates if not candidate.exists())
