"""An experiment that is run from Python, such as the cells of a notebook."""

from typing import Any

from bpgan.cli import experiments
from bpgan.cli.flags import show
from bpgan.cli.program import INTERRUPTED, Interrupted, perform, request_of
from bpgan.runtime import distributed


def run(experiment: str, /, **flags: Any) -> str:
    """Does in this process what ``bpgan-run EXPERIMENT --flag=value`` does, and returns the directory it has written.

    It prints what the command prints. An unfinished run is resumed, and a finished one is not trained again. If you
    interrupt the cell of a notebook, the run is saved, and the same call continues it. On a GPU a notebook should use
    this and no command after ``!``, because a second process finds the GPU's memory taken::

        folder = bpgan.run("mnist_gan", preset="article", epochs=20)
        images = bpgan.load(folder).sample(16)
        bpgan.run("evaluate", run=folder, metrics="fd,prdc")

    Args:
      experiment: a short name such as ``mnist_gan``, ``package.module``, or ``path/to/file.py``.
      flags: those of its ``--help``, ``preset`` among them; values are text, numbers or booleans.

    Raises:
      UserError: for an experiment or flags that are not allowed, in the words of the command.
      cli.Anomaly: if the run was stopped by an anomaly, such as NaN.
      cli.Interrupted: if it was interrupted, and saved.
    """
    script = experiments.find(experiment)
    argv = [f"--{name}={show(value)}" for name, value in flags.items()]
    request = request_of(script.config, script.presets, argv)
    with distributed.kept_settings():
        code = perform(request, script.action)
    if code == INTERRUPTED:
        raise Interrupted(f"{request.workdir}: was interrupted; the same call continues it")
    return request.workdir
