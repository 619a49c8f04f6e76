"""The rooms of the code: what each is, what it may import, and the order of the modules in it.

This table is the only one. ``test_architecture.py`` holds the code to it, and the README's diagram is made from it::

    python tests/checks/rooms.py            writes the diagram into README.md
    python tests/checks/rooms.py --orders   shows for each room an order that its imports allow, to copy from
"""

import ast
import functools
import pathlib
import re
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent.parent
PROJECT = ("bpgan", "experiments", "launch")


class Room(NamedTuple):
    """A folder or a single module.

    Attributes:
      says: what it holds, for the diagram.
      imports: the rooms below that it may import, by their short names; ``runtime.records`` is a single module.
      modules: those of a folder, top to bottom: each may import what stands behind it. Modules in parentheses stand
        side by side and import none of each other.
    """

    says: str
    imports: str = ""
    modules: str = ""


ROOMS = {  # top to bottom; imports go down
    "launch": Room("runs a sweep from a checkout", "launcher"),
    "experiments": Room(
        "what a researcher writes: one file an experiment",
        "launcher explain trained evaluation cli report privacy insight algorithms backprop metrics metrics.features"
        " runtime data nets losses penalties augment optim files measures lookup types version",
        "(evaluate_text flow_gan lucic private_gan) (audit classifier data dp_merf evaluate export image_gan infogan"
        " interpret linear_regression lr_range mnist_gan sample sensitivity study text_gan toy_gan translate vae)",
    ),
    "bpgan.launcher": Room(
        "sweeps, searches, processes, Slurm",
        "cli report privacy.accounting runtime files memory measures types",
        "__main__ main strategies sweep (jobs summary) outcomes runs flags slurm"
        " (budget group processes search studies) devices",
    ),
    "bpgan.explain": Room(
        "a trained run explained: its numbers, pictures and page",
        "trained evaluation cli report insight metrics metrics.features runtime data types",
        "parts (ablations inversions maps neighbors paths spectra walks) subject",
    ),
    "bpgan.trained": Room(
        "a trained run: loaded, drawn from, exported",
        "cli privacy.accounting insight.geometry runtime data nets files measures lookup types version",
        "(card export) dataset (paths run)",
    ),
    "bpgan.evaluation": Room(
        "samples, feature nets and metrics of a trained run",
        "cli algorithms backprop metrics metrics.features runtime data nets files measures lookup types version",
        "(evaluate monitor translation) (features table) (classifier images rows samples)",
    ),
    "bpgan.cli": Room(
        "flags from a dataclass, and a run from flags",
        "report runtime data optim files measures lookup types",
        "(__main__ calls saved) program (beginning help plan) experiments (averages config ended) flags",
    ),
    "bpgan.report": Room(
        "the page of a run, the comparison of runs",
        "runtime.records runtime.images files measures types",
        "(audit compare explore) page (canvas plot tables)",
    ),
    "bpgan.privacy": Room(
        "training with differential privacy: its accounting, and audits of it",
        "algorithms metrics data nets losses optim sharding threefry types files measures lookup",
        "(audit canaries dpgan) (mechanism merf) (accounting clipping noise) products",
    ),
    "bpgan.insight": Room(
        "what a generator has learned, what a discriminator looks at",
        "algorithms metrics nets losses optim types lookup measures",
        "(attribution directions dynamics inversion units) (affine geometry rows)",
    ),
    "bpgan.algorithms": Room(
        "GANs, games, VAEs and supervised nets as pure steps",
        "losses penalties augment optim sharding types",
        "(flow latents text) (game gan supervised translate vae) turns",
    ),
    "bpgan.backprop": Room(
        "backpropagation by hand, as a chapter",
        "losses types",
        "(chain networks) (check layers losses)",
    ),
    "bpgan.metrics": Room(
        "distances between sets of features",
        "types",
        "(memorization translation) (frechet kernel neighbors scores)"
        " (arrays classes modes regression retrieval transport)",
    ),
    "bpgan.metrics.features": Room(
        "nets that make features of images",
        "runtime nets download files lookup types",
        "(classifier effnet inception) (kept preprocess weights)",
    ),
    "bpgan.runtime": Room(
        "compiles, trains, saves, resumes",
        "files memory measures threefry types version",
        "(origin secret train) (remote run) (checkpoint directory) distributed (group log peers)"
        " (anomaly compile_cache environment events images limits loggers program signals)"
        " (compiler products) records",
    ),
    "bpgan.data": Room(
        "datasets, and batches as functions of the step",
        "download files memory lookup threefry types",
        "(altered captions domains toys) (pairs poisson) (duplicates sources tasks) datasets names (known sides)"
        " convert readers (cache images order tfds) (attributes flat)",
    ),
    "bpgan.nets": Room(
        "convolutions, layers, architectures",
        "sharding lookup types",
        "(biggan cnn dcgan mlp patchgan r3gan resnet stylegan2 timed translator unet vit) architecture"
        " (blocks heads text vae) attention wrappers layers"
        " (conv resample sizes spectral) (conv_cpu primitives) winograd",
    ),
    "bpgan.losses": Room("what the players minimize", "lookup types"),
    "bpgan.penalties": Room("gradient penalties and other regularizers", "optim lookup types"),
    "bpgan.augment": Room("augmentations that are differentiable", "optim sharding types"),
    "bpgan.optim": Room("optimizers and schedules"),
    "bpgan.sharding": Room("the rows of a batch on several devices"),
    "bpgan.download": Room("files from the network, verified", "files types"),
    "bpgan.files": Room("JSON, CSV and locks", "types"),
    "bpgan.memory": Room("how much memory there is", "types"),
    "bpgan.measures": Room("means, directions, goals", "types"),
    "bpgan.threefry": Room("JAX's random numbers in one pass, and on the host", "types"),
    "bpgan.lookup": Room("a name of a table, or module:name", "types"),
    "bpgan.types": Room("array names, records, random streams, errors"),
    "bpgan.version": Room("the version"),
}
GROUND = "download files memory measures lookup sharding threefry types version"
"""Rooms of one small module; the diagram shows the first of them that everyone knows, ``types``."""


def of(short: str) -> str:
    """The room, or module of one, that a short name means."""
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

MARK = "<!-- rooms -->\n"
FLOORS = (  # of the diagram: what stands side by side
    ("launch", "experiments"),
    (
        "bpgan.launcher",
        "bpgan.explain",
        "bpgan.trained",
        "bpgan.evaluation",
        "bpgan.cli",
        "bpgan.report",
    ),
    ("bpgan.privacy", "bpgan.insight"),
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
    """A page with the diagram behind its mark, which it must have, in the place of the one that is there."""
    before, mark, after = text.partition(MARK)
    if not mark:
        raise ValueError(
            f"README.md must have a line {MARK.strip()}, behind which the diagram stands"
        )
    return (
        before
        + MARK
        + diagram()
        + re.sub(r"\A```\n.*?^```\n", "", after, flags=re.DOTALL | re.MULTILINE)
    )


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
