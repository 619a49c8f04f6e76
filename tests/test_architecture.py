"""The rules of the design, read off the source: who may import what, who may compile, how long a function may be."""

import ast
import pathlib
import subprocess
import sys

import pytest
from checks import rooms
from checks.rooms import ROOMS, ROOT

FILES = rooms.files()
TESTS = sorted(p for p in ROOT.glob("tests/**/*.py") if "references" not in p.parts)

# Third-party packages that only certain files may import, anywhere in the file.
RESERVED = {
    "absl": {"bpgan/cli", "bpgan/launcher", "bpgan/data/sources.py"},  # grain's flags
    "dp_accounting": {"bpgan/privacy/accounting.py"},
    "flax": {"bpgan/nets", "bpgan/metrics/features", "bpgan/insight/units.py"},
    "orbax": {"bpgan/runtime/checkpoint.py"},
    "tensorflow_datasets": {"bpgan/data/tfds.py"},
    "array_record": {"bpgan/data/cache.py"},
    "grain": {"bpgan/data/sources.py"},
    "tensorboardX": {"bpgan/runtime/events.py"},
    "tqdm": {"bpgan/runtime/log.py", "bpgan/download.py", "bpgan/data"},
    "matplotlib": set(),
    "submitit": {"bpgan/launcher/slurm.py"},
    "cloudpickle": {"bpgan/launcher/slurm.py"},
    "optuna": {"bpgan/launcher/search.py"},
    "PIL": {"bpgan/report", "bpgan/runtime/images.py", "bpgan/data/images.py"},
    "requests": set(),
    "wandb": {"bpgan/runtime/loggers.py"},
    "mlflow": {"bpgan/runtime/loggers.py"},
}
COMPILERS = {"jit", "pmap", "shard_map", "make_mesh", "Mesh"}
COMPILE = {"bpgan/runtime/program.py", "bpgan/runtime/group.py", "bpgan/sharding.py"}
"""The modules that may use them."""
HEAVY = {
    "orbax", "tensorflow_datasets", "tensorboardX", "matplotlib", "PIL", "tqdm", "scipy", "grain", "array_record",
    "requests", "submitit", "dp_accounting", "optuna", "wandb", "mlflow",
}  # fmt: skip
LINES, NESTING, ARGUMENTS = 80, 4, 12
"""What a function has at most: lines without its docstring, blocks within blocks, arguments."""
RECORD_METHODS = {"_replace", "_asdict", "_fields", "_make", "_field_defaults"}
PRIVATE: dict[str, set[str]] = {
    "faults/at_fault.py": {"checkpoint.Checkpoints._read"},
    "test_augment.py": {"augment._NUMBERS", "augment._contracted", "augment._looked_up"},
    "test_conv_cpu.py": {"resample._upsample2"},
    "test_compare.py": {
        "compare._curves",
        "compare._section",
        "compare._sensitivity",
        "compare._thinned",
    },
    "test_compile_cache.py": {"compile_cache._Checked"},
    "test_datasets.py": {
        "cache._remove",
        "cache._with_seal",
        "cache._write",
        "convert._BLOCK",
        "convert._SOON",
        "datasets._MOMENT",
        "datasets._bytes_of",
        "images._LARGEST",
    },
    "test_download.py": {"download._BLOCK", "download._PAUSE", "download._SOON", "download._STALL"},
    "test_features_effnet.py": {"effnet._Depthwise"},
    "test_features_inception.py": {"inception._BATCH", "inception._average_pool"},
    "test_features_weights.py": {
        "download._PAUSE",
        "weights._Storage",
        "weights._Tensor",
        "weights._array",
    },
    "test_image_gan.py": {"program._draw_batch"},
    "test_images.py": {"images._MANY"},
    "test_known.py": {"download._PAUSE", "download._STALL"},
    "test_lucic.py": {"lucic._models", "lucic._table"},
    "test_metrics_frechet.py": {"frechet._distance", "frechet._root_of_rows", "kernel._BLOCK"},
    "test_metrics_neighbors.py": {
        "neighbors._TILE",
        "neighbors._candidates_on_host",
        "neighbors._distances",
        "neighbors._gamma",
        "neighbors._products",
    },
    "test_sources.py": {"data.sources._WINDOW", "data.sources._Windows"},
    "test_train.py": {"train._CALL_SECONDS"},
    "test_vae.py": {"experiment._CHUNK", "experiment._IMAGES"},
    "test_precision.py": {"neighbors._products", "scores._ms_ssim"},
}
"""Private names of bpgan that a test uses, by its file, for want of a public way. This may only become shorter."""


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


# Rooms --------------------------------------------------------------------------------------------------------------


def test_the_table_goes_down():
    """A room imports what stands below it, so there is no circle."""
    above = set()
    for name, room in ROOMS.items():
        above.add(name)
        targets = [rooms.of(short) for short in room.imports.split()]
        allowed = {rooms.room_of(target) or target for target in targets}  # of a module its room
        assert allowed <= ROOMS.keys(), f"{name}: {allowed - ROOMS.keys()} are no rooms"
        assert not allowed & above, f"{name} stands below {allowed & above}, and must not import it"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_down(path):
    module = rooms.name_of(path)
    if module == "bpgan":
        handed_on = {"bpgan.cli.calls", "bpgan.runtime.images", "bpgan.trained.run"}
        assert rooms.imports(path) == {"bpgan.version", *handed_on}
        assert [name for node in rooms.parse(path).body for name in names(node)] == [
            "importlib", "typing.TYPE_CHECKING", "typing.Any", "bpgan.version.__version__",
        ]  # the rest is imported when it is asked for  # fmt: skip
        return
    room = rooms.room_of(module)
    assert room, f"{relative(path)} is in no room of tests/checks/rooms.py"
    allowed = {rooms.of(short) for short in ROOMS[room].imports.split()}
    for target in rooms.imports(path):
        other = rooms.room_of(target)
        assert other == room or {other, target} & allowed or target == "bpgan", (
            f"{relative(path)} must not import {target}: a module of {room} imports {', '.join(sorted(allowed))}"
        )


@pytest.mark.parametrize(
    "room", [name for name in ROOMS if (ROOT / name.replace(".", "/")).is_dir()]
)
def test_imports_inside_a_room_go_down(room):
    floors, graph = rooms.floors(room), rooms.inside(room)
    where = {name: i for i, floor in enumerate(floors) for name in floor}
    hint = "see `python tests/checks/rooms.py --orders`"
    assert where.keys() == graph.keys(), f"{room}: not as tests/checks/rooms.py says; {hint}"
    for name, targets in graph.items():
        up = {target for target in targets if where[target] <= where[name]}
        assert not up, f"{name} must not import {', '.join(sorted(up))}; {hint}"


def test_the_diagram_of_the_readme_is_that_of_the_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert rooms.with_diagram(text) == text, "run `python tests/checks/rooms.py`, which writes it"


def test_every_room_is_in_the_diagram_or_at_the_ground():
    shown = {room for floor in rooms.FLOORS for room in floor}
    ground = {rooms.of(short) for short in rooms.GROUND.split()}
    assert ROOMS.keys() - shown - ground == {"bpgan.metrics.features"}  # a part of metrics


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_some_packages_belong_to_some_files(path):
    for node in ast.walk(rooms.parse(path)):
        for name in names(node):
            owners = RESERVED.get(name.split(".")[0])
            assert owners is None or any(relative(path).startswith(o) for o in owners), (
                f"{relative(path)} imports {name}"
            )


def test_the_owners_of_packages_exist():
    owners = set().union(*RESERVED.values(), COMPILE)
    assert not [owner for owner in owners if not (ROOT / owner).exists()]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_two_modules_compile(path):
    if relative(path) in COMPILE:
        return
    # Metrics, insight and explanations are not part of a run: they compile functions of arrays, and nothing else.
    apart = relative(path).startswith(("bpgan/metrics/", "bpgan/insight/", "bpgan/explain/"))
    forbidden = COMPILERS - {"jit"} if apart else COMPILERS
    for node in ast.walk(rooms.parse(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jax":
            assert node.attr not in forbidden, (
                f"{relative(path)}:{node.lineno} uses jax.{node.attr}"
            )
        for name in names(node):
            assert not (name.startswith("jax.") and name.rsplit(".", 1)[1] in forbidden), (
                f"{relative(path)}: {name}"
            )


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_heavy_imports_are_lazy(path):
    """At module level only what every run needs, so that the first step and an error message come soon."""
    for node in rooms.parse(path).body:
        for name in names(node):
            if name.startswith("scipy") and path.is_relative_to(ROOT / "bpgan/metrics"):
                continue  # no run imports metrics
            assert name.split(".")[0] not in HEAVY, f"{relative(path)} imports {name} at the top"


def test_no_utils():
    assert not [p for p in FILES if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_importing_opens_no_device():
    """Several processes must be able to join before JAX looks for devices, which any array of JAX makes it do."""
    modules = [rooms.name_of(p) for p in FILES if p.stem not in ("plug", "__main__")]
    code = (
        f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Functions ----------------------------------------------------------------------------------------------------------

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
BLOCK = ast.For | ast.While | ast.If | ast.With | ast.Try | ast.Match | ast.AsyncFor | ast.AsyncWith


def functions(path: pathlib.Path) -> dict[str, FUNCTION]:
    """Every function of a file by its dotted name."""
    found = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, FUNCTION | ast.ClassDef):
                inner = f"{prefix}.{child.name}"
                if isinstance(child, FUNCTION):
                    found[inner] = child
            walk(child, inner)

    walk(rooms.parse(path), rooms.name_of(path))
    return found


def lines_of(function: FUNCTION) -> int:
    """Lines without the docstring."""
    first, lines = function.body[0], function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    return lines - (first.end_lineno - first.lineno + 1)


def nesting_of(node: ast.AST) -> int:
    """Blocks within blocks; ``elif`` is not one more, and a function or lambda inside begins anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTION | ast.ClassDef | ast.Lambda):
            continue
        elif_ = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting_of(child) + (isinstance(child, BLOCK) and not elif_))
    return deepest


def arguments_of(function: FUNCTION) -> int:
    """Arguments, keyword-only ones included; not ``self``."""
    given = function.args
    listed = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return (
        len([a for a in listed if a.arg not in ("self", "cls")])
        + bool(given.vararg)
        + bool(given.kwarg)
    )


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_function_fits_a_screen(path):
    for function in functions(path).values():
        measured = lines_of(function), nesting_of(function), arguments_of(function)
        within = all(x <= y for x, y in zip(measured, (LINES, NESTING, ARGUMENTS), strict=True))
        assert within, (
            f"{relative(path)}:{function.lineno} {function.name} has {measured[0]} lines without its docstring"
            f" ({LINES}), {measured[1]} blocks within blocks ({NESTING}) and {measured[2]} arguments ({ARGUMENTS})"
        )


# Tests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_no_test_imports_another(path):
    """What several of them share is in ``tests/checks/``; what they start in processes may not do so either."""
    text = path.read_text()
    imported = [name for node in ast.walk(rooms.parse(path)) for name in names(node)]
    inner = [
        line.strip(" \"'")
        for line in text.splitlines()
        if line.strip(" \"'").startswith(("import test_", "from test_"))
    ]
    assert not inner and not [
        n for n in imported if n.startswith(("test_", "tests.test_", "conftest"))
    ]


def private_names(path: pathlib.Path) -> set[str]:
    """Private names of bpgan's modules in a test, as ``module._name``: read, imported or replaced."""
    tree, modules, found = rooms.parse(path), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias, name in zip(node.names, names(node), strict=True):
                if name.split(".")[0] in rooms.PROJECT:
                    modules[(alias.asname or alias.name).split(".")[0]] = name
                    if is_private(alias.name):
                        found.add(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            text = ast.unparse(node)
            if text.split(".")[0] in modules:
                found.add(text)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("setattr")
            and len(node.args) > 2
        ):
            owner, name = node.args[0], node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                if ast.unparse(owner).split(".")[0] in modules:
                    found.add(f"{ast.unparse(owner)}.{name.value}")
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in RECORD_METHODS


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_tests_use_public_names(path):
    found, known = (
        private_names(path),
        PRIVATE.get(path.relative_to(ROOT / "tests").as_posix(), set()),
    )
    assert not found - known, "these are private: is there a public way?"
    assert not known - found, "these are not used any more: take them out of PRIVATE"
