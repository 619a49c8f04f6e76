"""Experiments by name: one of the project's own, or a module or a file of the user's.

The project's own are the modules of one folder. In a checkout that is ``experiments``, beside the package; where bpgan
is installed it is ``bpgan.experiments``. Either way each is known by its short name, such as ``mnist_gan``.
"""

import ast
import importlib
import importlib.util
import os
import pathlib
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from bpgan.cli.config import Config, Presets, RunConfig
from bpgan.cli.flags import did_you_mean
from bpgan.lookup import check_trusted, import_module
from bpgan.types import UserError

_BPGAN = pathlib.Path(__file__).resolve().parent.parent
_INSTALLED = "bpgan.experiments"


class Script(NamedTuple):
    """The module of an experiment, and its name.

    Attributes:
      name: the same wherever a run is started from: the short name of one of the project's own, ``package.module``, or
        the absolute path of a file. Empty for what is in no file, such as the cells of a notebook.
      module: with ``Config``, ``build`` or ``run``, and perhaps ``PRESETS``.
    """

    name: str
    module: ModuleType

    @property
    def config(self) -> type[Config]:
        """The dataclass of its flags."""
        return self.module.Config

    @property
    def presets(self) -> Presets:
        """Its presets."""
        return getattr(self.module, "PRESETS", {})

    @property
    def action(self) -> Callable[..., Any]:
        """``build``, which makes what is trained, or ``run`` of an experiment that does not train."""
        return getattr(self.module, "build", None) or self.module.run

    @property
    def trains(self) -> bool:
        """Whether it is something to train."""
        return issubclass(self.config, RunConfig)


def find(text: str) -> Script:
    """The experiment that a text names.

    Args:
      text: a short name; ``package.module``, for which the current directory is searched last; or
        ``path/to/file.py``, whose folder is then imported from, as by ``python path/to/file.py``.

    Raises:
      UserError: of the argument ``experiment``, if there is none of this name or it cannot be imported.
    """
    prefix, _, short = text.rpartition(".")
    if prefix in (_package(), _INSTALLED) and short in names():
        text = short
    if text in names():
        module = _import(text, lambda: importlib.import_module(f"{_own_package()}.{text}"))
    elif text.endswith(".py") or os.sep in text:
        module = _of_file(text)
    elif re.fullmatch(r"\w+(\.\w+)+", text):
        module = _import(text, lambda: import_module(text))
    else:
        allowed = f"{', '.join(names())}, or of your own package.module or path/to/file.py"
        raise _refusal(text, f"must be one of {allowed}{did_you_mean(text, names())}")
    if fault := find_fault(module):
        raise _refusal(text, fault)
    return Script(name_of(module), module)


def find_fault(module: ModuleType) -> str:
    """Why a module is no experiment; empty if it is one."""
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Config)):
        return "is no experiment: it has no Config derived from cli.Config"
    if config.__module__ != module.__name__:  # by its class a config knows its experiment
        return f"needs a Config of its own, if only derived from that of {config.__module__}"
    if not callable(getattr(module, "build", getattr(module, "run", None))):
        return "is no experiment: it has neither build(cfg, axis_name) nor run(cfg)"
    presets = getattr(module, "PRESETS", {})
    if not (isinstance(presets, Mapping) and all(isinstance(p, Mapping) for p in presets.values())):
        return "PRESETS must be a dict from names to dicts of flags"
    return ""


def name_of(module: ModuleType) -> str:
    """The canonical name of an experiment's module, whether it was imported or is the program itself."""
    file = getattr(module, "__file__", None)
    path = pathlib.Path(os.path.abspath(file)) if file else None
    if path and path.parent.resolve() == _folder():
        return path.stem
    spec = (
        module.__spec__
    )  # `python -m package.module` has one, too, in which it is called __main__
    if spec is not None and "." in spec.name:
        return spec.name
    return str(path or "")


def label_of(name: str) -> str:
    """The last part of a canonical name, for folders and titles."""
    last = os.path.basename(name).removesuffix(".py") if os.sep in name else name.rpartition(".")[2]
    return last or "notebook"


def program_of(name: str) -> list[str]:
    """What runs the experiment of a canonical name: the words after ``python -m``, before the flags."""
    in_reach = is_installed() or str(_folder().parent) in sys.path
    return [f"{_package()}.{name}"] if in_reach and name in names() else ["bpgan.cli", name]


def names() -> list[str]:
    """The short names of the project's own experiments: modules that do not begin with ``_``."""
    return sorted(p.stem for p in _folder().glob("*.py") if not p.name.startswith("_"))


def describe(name: str) -> tuple[str, list[str]]:
    """First docstring line and preset names of one of the project's own, read without importing it."""
    tree = ast.parse((_folder() / f"{name}.py").read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if [t.id for t in targets if isinstance(t, ast.Name)] == ["PRESETS"]:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return summary, [str(k.value) for k in keys if isinstance(k, ast.Constant)]
    return summary, []


def is_installed() -> bool:
    """Whether this is an installed bpgan, which has its experiments inside, and not a checkout."""
    return (_BPGAN / "experiments").is_dir()


def _folder() -> pathlib.Path:
    return (_BPGAN if is_installed() else _BPGAN.parent) / "experiments"


def _package() -> str:
    return _INSTALLED if is_installed() else "experiments"


def _own_package() -> str:
    """The package of the project's own, imported from its place even if another of its name is found first."""
    package, folder = _package(), _folder()
    if package not in sys.modules:
        _load(package, folder / "__init__.py", [str(folder)])
    return package


def _of_file(text: str) -> ModuleType:
    path = os.path.expanduser(text)
    if not path.endswith(".py") or not os.path.isfile(path):
        raise _refusal(text, "must be the path of a Python file (*.py) that exists")
    path = os.path.abspath(path)
    folder, file = os.path.split(path)
    if pathlib.Path(folder).resolve() == _folder():
        return find(file.removesuffix(".py")).module
    check_trusted(path)
    name = re.sub(r"\W", "_", file.removesuffix(".py"))
    other = f"{name}_{zlib.crc32(os.fsencode(path)):08x}"  # where a module of this name exists
    for module in filter(None, map(sys.modules.get, ("__main__", name, other))):
        if os.path.abspath(getattr(module, "__file__", None) or "") == path:
            return module
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return _import(text, lambda: _load(other if name in sys.modules else name, path))


def _load(name: str, path: str | os.PathLike, folders: list[str] | None = None) -> ModuleType:
    """Imports a file under a name that it keeps, for dataclasses and pickles look for it there."""
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import(text: str, load: Callable[[], ModuleType]) -> ModuleType:
    """What ``load`` returns. Raises a UserError of one line for whatever goes wrong in the user's code."""
    try:
        return load()
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if f"{text}.".startswith(f"{error.name}."):
            raise _refusal(text, f"there is no module {error.name}") from None
        reason = f"{error}{_place_of(error)}"
        raise _refusal(text, f"cannot be imported: {reason}") from error
    except SystemExit as error:
        reason = 'it ran when it was imported; begin its last lines with if __name__ == "__main__":'
        raise _refusal(text, reason) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}{_place_of(error)}"
        raise _refusal(text, f"cannot be imported: {reason}") from error


def _place_of(error: Exception) -> str:
    """``, FILE:LINE`` of where a module raised an error; empty where the error says it, or no file is known."""
    frames = traceback.extract_tb(error.__traceback__)
    files = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<frozen")]
    if isinstance(error, SyntaxError) or not files:
        return ""
    return f", {files[-1].filename}:{files[-1].lineno}"


def _refusal(text: str, reason: str) -> UserError:
    return UserError(reason, argument="experiment", value=text)
