"""Runs one experiment, of the project or of your own.

    python -m bpgan.cli NAME --flag=value ...

NAME is a short name such as mnist_gan, package.module, or path/to/file.py. ``NAME --help`` describes its flags.
Where bpgan is installed, ``bpgan-run`` is the same.
"""

import sys
from collections.abc import Sequence

from bpgan.cli import ended, experiments
from bpgan.cli.flags import columns
from bpgan.cli.help import docstring_of, is_help
from bpgan.cli.program import DONE, leave, run
from bpgan.types import UserError


def run_named(argv: Sequence[str], record: ended.Record = ended.ignore) -> int:
    """Runs the experiment ``argv[0]`` with the flags that follow; returns the exit code of ``run``.

    Raises:
      UserError: if there is no such experiment.
    """
    if is_help(argv[:1]):
        rows = [(name, experiments.describe(name)[0]) for name in experiments.names()]
        text = docstring_of(sys.modules[__name__])
        print("\n".join([text, "", "Experiments of bpgan:", *columns(rows)]))
        return DONE
    if not argv or argv[0].startswith("-"):
        raise UserError("the first argument names an experiment; --help lists them")
    script = experiments.find(argv[0])
    return run(script.config, script.action, script.presets, argv[1:], record)


def main() -> None:
    """``run_named`` with the process's arguments, then exits."""
    leave(lambda: run_named(sys.argv[1:], ended.recorder()))


if __name__ == "__main__":
    main()
