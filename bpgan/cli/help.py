"""What ``--help`` prints, and other text for people."""

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from types import ModuleType

from bpgan.cli import experiments
from bpgan.cli.config import Config, Presets, RunConfig, flags_of
from bpgan.cli.flags import columns, show
from bpgan.measures import CONTROLS

_HELP = re.compile(r"-h|--?help(short|full)?")


def help_text(config_class: type[Config], presets: Presets, module: ModuleType) -> str:
    """What ``--help`` prints: the docstring, the experiment's flags and presets, general flags."""
    own, general = [], []
    trains = issubclass(config_class, RunConfig)
    shared = (RunConfig if trains else Config).__dataclass_fields__
    for spec in flags_of(config_class).values():
        bounds = f" ({spec.bounds})" if spec.bounds else ""
        mark = " *" if trains and spec.restart_safe else ""
        row = (f"--{spec.name}={show(spec.default)}", spec.help + bounds + mark)
        (general if spec.name in shared else own).append(row)
    own.append(("--preset=NAME", "start from other defaults (explicit flags still win):"))
    for name, preset in presets.items():
        own.append(("", f"{name}: " + " ".join(f"--{k}={show(v)}" for k, v in preset.items())))
    general.append(("--flagfile=FILE", "read flags from a file, one a line"))
    lines = [docstring_of(module), "", "Flags of this experiment:", *columns(own)]
    lines += ["", "Flags of every experiment:", *columns(general), ""]
    lines += ["Values shown are defaults."]
    lines[-1] += " * may differ when an interrupted run is resumed." * trains
    return "\n".join(lines)


def docstring_of(module: ModuleType) -> str:
    """The docstring of a module, which under ``python -OO`` is in its source only; empty if there is none.

    Where bpgan is installed, the commands in it are those that are installed, not those of a checkout.
    """
    try:
        text = ast.get_docstring(ast.parse(inspect.getsource(module))) or ""
    except OSError:  # no source: python -c
        text = inspect.cleandoc(module.__doc__ or "")
    return _as_installed(text) if experiments.is_installed() else text


def _as_installed(text: str) -> str:
    """A text whose commands are those of a checkout, with the commands of an installation."""
    return re.sub(
        r"\bpython launch\.py\b", "bpgan", text.replace("python -m experiments.", "bpgan-run ")
    )


def is_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks for help, wherever in it."""
    return any(_HELP.fullmatch(arg) for arg in argv)


def value_rows(found: Mapping[str, float]) -> list[tuple[str, str]]:
    """Names and values; beside that of ``name`` stands what theory says, ``name/known``, and its controls."""
    rows = []
    for name, value in found.items():
        base, _, of = name.rpartition("/")
        if base in found and f"/{of}" in _BESIDE:
            continue
        beside = {of[1:]: found.get(f"{name}{of}") for of in _BESIDE}
        said = [f"{of} {number:<10.6g}" for of, number in beside.items() if number is not None]
        rows.append(
            (name, "  ".join([f"{value:<12.6g}" if said else f"{value:.6g}", *said]).rstrip())
        )
    return rows


_BESIDE = ("/known", *CONTROLS)
