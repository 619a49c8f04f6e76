"""Checkpoints of a whole run over orbax: the only module that knows the format."""

import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from bpgan.types import UserError


class Checkpoints:
    """The checkpoints of one run directory.

    A save is asynchronous and atomic: a process killed at any moment leaves the checkpoints that were complete. The
    newest ``keep`` are kept.

    Args:
      directory: created if need be.
      keep: how many to keep, at least 1.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int):
        import orbax.checkpoint as ocp

        # orbax logs every save, and what it finds in a damaged checkpoint before raising.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
        self._directory = pathlib.Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )

    def save(self, step: int, tree: Any) -> None:
        """Starts saving ``tree``; returns once its values are safe from later changes of the buffers."""
        # The caller goes on to donate these buffers, and on CPU orbax may write from them directly.
        copy = jax.block_until_ready(jax.tree.map(jnp.copy, tree))
        args = self._ocp.args.Composite(carry=self._ocp.args.StandardSave(copy))
        self._manager.save(step, args=args, force=True)

    def restore(self, abstract: Any) -> tuple[int, Any] | None:
        """The newest readable checkpoint as ``(step, tree)``, or None if there is none.

        Unreadable ones are reported and set aside as ``<step>.damaged``.

        Args:
          abstract: shapes, types and shardings of the tree.

        Raises:
          UserError: if there are checkpoints and none can be read; they are left where they are.
        """
        args = self._ocp.args.Composite(carry=self._ocp.args.StandardRestore(abstract))
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                tree = self._manager.restore(step, args=args)["carry"]
            except Exception as error:  # orbax raises many types, bare Exception among them
                damaged.append(self._directory / str(step))
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                print(f"warning: checkpoint {damaged[-1]} is unreadable: {reason}")
            else:
                for path in damaged:
                    path.rename(path.with_name(f"{path.name}.damaged"))
                self._manager.reload()
                return step, tree
        if damaged:
            raise UserError(
                f"--workdir: none of the {len(damaged)} checkpoints in {self._directory} can be read;"
                " move the directory away to start afresh"
            )
        return None

    def close(self) -> None:
        """Waits for the last save to be complete."""
        self._manager.wait_until_finished()
        self._manager.close()
