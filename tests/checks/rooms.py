"""The rooms of the code: what each is, what it may import, and the order of the modules in it.

This table is the only one. ``test_architecture.py`` holds the code to it, and the README's diagram is made from it::

    python tests/checks/rooms.py            writes the diagram into README.md
    python tests/checks/rooms.py --orders   shows for each room an order that its imports allow, to copy from
"""

import ast
import functools
import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent.parent
PROJECT = ("bpgan", "experiments", "launch")


class Room(NamedTuple):
    """A folder or a single module.

    Attributes:
      says: what it holds, for the diagram.
      imports: the rooms below that it may import, by their short names.
      modules: those of a folder, top to bottom: each may import what stands behind it. Modules in parentheses stand
        side by side and import none of each other.
    """

    says: str
    imports: str = ""
    modules: str = ""


GROUND = "files memory measures lookup types version"
TOOLS = f"losses penalties augment optim {GROUND}"
ROOMS = {  # top to bottom; imports go down
    "launch": Room("the launcher, from a checkout", "launcher"),
    "experiments": Room(
        "what a researcher writes: one file an experiment",
        "launcher evaluation cli report algorithms backprop metrics metrics.features runtime data nets "
        + TOOLS,
        "lucic (sensitivity lr_range infogan image_gan vae) toy_gan mnist_gan evaluate (classifier linear_regression"
        " data)",
    ),
    "bpgan.launcher": Room(
        "sweeps, searches, processes, Slurm",
        "cli report runtime files memory measures lookup types version",
    ),
    "bpgan.evaluation": Room(
        "samples, features and metrics of a trained run",
        "cli report algorithms metrics metrics.features runtime data nets " + GROUND,
    ),
    "bpgan.cli": Room(
        "a dataclass to flags, flags to a run",
        "report runtime data files memory measures lookup types version",
    ),
    "bpgan.report": Room(
        "the page of a run, the comparison of runs", "runtime files measures lookup types version"
    ),
    "bpgan.algorithms": Room("GANs, games, VAEs and supervised nets as pure steps", TOOLS),
    "bpgan.backprop": Room("backpropagation by hand, as a chapter", "losses lookup types"),
    "bpgan.metrics": Room("distances between sets of features", "files measures lookup types"),
    "bpgan.metrics.features": Room(
        "nets that make features of images", "nets files measures lookup types"
    ),
    "bpgan.runtime": Room("compiles, trains, saves, resumes", GROUND),
    "bpgan.data": Room(
        "datasets, and batches as functions of the step", "files memory measures lookup types"
    ),
    "bpgan.nets": Room("convolutions, layers, architectures", "lookup types"),
    "bpgan.losses": Room("adversarial losses", "lookup types"),
    "bpgan.penalties": Room("gradient penalties and other regularizers", "lookup types"),
    "bpgan.augment": Room("augmentations that are differentiable", "lookup types"),
    "bpgan.optim": Room("optimizers and schedules", "lookup types"),
    "bpgan.files": Room("JSON, CSV and locks", "types"),
    "bpgan.memory": Room("how much memory there is", "types"),
    "bpgan.measures": Room("means, directions, goals", "types"),
    "bpgan.lookup": Room("a name of a table, or module:name", "types"),
    "bpgan.types": Room("arrays, records, random streams, errors"),
    "bpgan.version": Room("the version"),
}


def of(short: str) -> str:
    """The room of a short name."""
    return short if short in ROOMS else f"bpgan.{short}"


def name_of(path: pathlib.Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files() -> list[pathlib.Path]:
    """Every file of the project's code."""
    return sorted([*ROOT.glob("bpgan/**/*.py"), *ROOT.glob("experiments/*.py"), ROOT / "launch.py"])


def room_of(module: str) -> str | None:
    """The room of a module; None of the package itself, and of what is in no room."""
    return next((m for m in (module, module.rpartition(".")[0]) if m in ROOMS), None)


@functools.cache
def parse(path: pathlib.Path) -> ast.Module:
    """The syntax of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: pathlib.Path) -> set[str]:
    """The modules of the project that a file imports, anywhere in it."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [package.rsplit(".", node.level - 1)[0]] if node.level else []
            start = ".".join(base + [node.module] * bool(node.module))
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {target for name in names if (target := _module(name))}
    return found - {name_of(path)}


def _module(name: str) -> str | None:
    """The module that a dotted name is, or is in; None if it is none of the project's."""
    if name.split(".")[0] not in PROJECT:
        return None
    path = ROOT / name.replace(".", "/")
    return (
        name
        if path.is_dir() or path.with_suffix(".py").exists()
        else _module(name.rpartition(".")[0])
    )


def floors(room: str) -> list[set[str]]:
    """The modules of a room as the table orders them; those of one floor stand side by side."""
    found, side = [], False
    for word in ROOMS[room].modules.split():
        name = f"{room}.{word.strip('()')}"
        if side:
            found[-1].add(name)
        else:
            found.append({name})
        side = (side or word.startswith("(")) and not word.endswith(")")
    return found


def inside(room: str) -> dict[str, set[str]]:
    """The modules of a room with those of it that each imports; not the ``__init__`` that hands their names on."""
    paths = {
        name_of(p): p for p in files() if p.name != "__init__.py" and room_of(name_of(p)) == room
    }
    return {
        name: imports(path) & set(paths) - {name} for name, path in paths.items() if name != room
    }


def order(graph: dict[str, set[str]]) -> list[set[str]]:
    """Floors of a graph, top to bottom. Raises ValueError, with its modules, for a circle."""
    left, found = dict(graph), []
    while left:
        bottom = {name for name, needs in left.items() if not needs & set(left)}
        if not bottom:
            raise ValueError(f"a circle among {', '.join(sorted(left))}")
        found.insert(0, bottom)
        left = {name: needs for name, needs in left.items() if name not in bottom}
    return found


# The diagram --------------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- rooms: python tests/checks/rooms.py -->\n", "<!-- end of rooms -->\n"
FLOORS = (  # of the diagram: what stands side by side
    ("launch", "experiments"),
    ("bpgan.launcher", "bpgan.evaluation", "bpgan.cli", "bpgan.report"),
    ("bpgan.algorithms", "bpgan.backprop", "bpgan.metrics"),
    ("bpgan.runtime", "bpgan.data", "bpgan.nets"),
    ("bpgan.losses", "bpgan.penalties", "bpgan.augment", "bpgan.optim"),
    ("bpgan.types",),
)


def diagram() -> str:
    """The rooms that a reader needs to know, top to bottom; imports go down."""
    lines = []
    for i, floor in enumerate(FLOORS):
        lines += ["    │"] * bool(i)
        for room in floor:
            folder = (ROOT / room.replace(".", "/")).is_dir()
            name = room.replace(".", "/") + ("/" if folder else ".py")
            lines.append(f"{name:20} {ROOMS[room].says}")
    lines[lines.index("    │")] = "    │  imports go down only"
    return "```\n" + "\n".join(lines) + "\n```\n"


def with_diagram(text: str) -> str:
    """A page with the diagram between its marks, which it must have."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must have the lines {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + diagram() + END + after


def show_orders() -> None:
    """For each folder an order that its imports allow."""
    for room in ROOMS:
        if graph := inside(room):
            try:
                words = []
                for floor in order(graph):
                    names = sorted(name.removeprefix(f"{room}.") for name in floor)
                    words.append(f"({' '.join(names)})" if len(names) > 1 else names[0])
                print(f"{room}: {' '.join(words)}")
            except ValueError as error:
                print(f"{room}: {error}")


if __name__ == "__main__":
    if "--orders" in sys.argv:
        show_orders()
    else:
        page = ROOT / "README.md"
        page.write_text(with_diagram(page.read_text(encoding="utf-8")), encoding="utf-8")
