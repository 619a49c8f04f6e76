"""The data that a run was trained on, found again, and what it has not seen."""

from typing import Any, NamedTuple

from bpgan import cli, data
from bpgan.trained.run import Run
from bpgan.types import UserError


class Data(NamedTuple):
    """Images that a run was trained on, and others.

    Attributes:
      trained: the training split, without canaries.
      whole: the same with the run's canaries, if it had any.
      held_out: the part that ``eval_every`` held out; None if there is none.
      test: the test split.
    """

    trained: data.Dataset
    whole: data.Dataset
    held_out: data.Dataset | None
    test: data.Dataset

    @property
    def others(self) -> data.Dataset:
        """What was held out; where nothing was, the test split."""
        return self.test if self.held_out is None else self.held_out


def data_of(run: Run, moved: data.Name | None = None) -> Data:
    """The data of a run.

    Args:
      moved: where they are now; None: where they were.

    Raises:
      UserError: if it was trained on no dataset of images, or its data are gone or others.
    """
    config = vars(run.config)
    facts = run.record.dataset
    if facts is None or facts.parts or facts.words or "dataset" not in config:
        reason = f"a run of {run.experiment} has no dataset of images"
        raise UserError(reason, argument="run", value=run.path)
    name = moved or config["dataset"]
    hint = "" if moved else "; if the data have moved, `dataset` says where to"
    flag: dict[str, Any] = {"argument": "dataset", "value": moved} if moved else {}
    try:
        trained, held_out = data.load_for_training(name, bool(run.config.eval_every.value))
        test = data.load(name, "test")
    except UserError as error:
        reason = f"the data are not there ({cli.message_of(error)}){hint}"
        raise UserError(reason, **flag) from None
    planted = config.get("canaries")
    whole = planted.value.plant(trained) if isinstance(planted, cli.Parsed) else trained
    if whole.sha256 != run.record.data:
        reason = f"{name} holds other data than those that {run.path} was trained on{hint}"
        raise UserError(reason, **flag)
    return Data(trained, whole, held_out, test)
