"""The rules of the design, read off the source: who may import what, who may compile, who may read flags."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("bpgan/**/*.py"), *ROOT.glob("experiments/*.py"), ROOT / "launch.py"])

# What each layer may import of the project. A folder's own modules are always allowed.
ALLOWED = {
    "bpgan": {"bpgan.version"},
    "bpgan.version": set(),
    "bpgan.types": set(),
    "bpgan.lookup": {"bpgan.types"},
    "bpgan.files": {"bpgan.types"},
    "bpgan.memory": {"bpgan.types"},
    "bpgan.measures": set(),
    "bpgan.losses": {"bpgan.types", "bpgan.lookup"},
    "bpgan.penalties": {"bpgan.types", "bpgan.lookup", "bpgan.optim"},
    "bpgan.nets": {"bpgan.types", "bpgan.lookup"},
    "bpgan.data": {"bpgan.types", "bpgan.files", "bpgan.memory"},
    "bpgan.metrics": {"bpgan.types"},
    "bpgan.metrics.features": {"bpgan.types", "bpgan.files", "bpgan.nets"},
    "bpgan.optim": set(),
    "bpgan.augment": {"bpgan.types", "bpgan.optim"},
    "bpgan.backprop": {"bpgan.types", "bpgan.losses"},
    "bpgan.algorithms": {"bpgan.types", "bpgan.losses", "bpgan.penalties", "bpgan.optim", "bpgan.augment"},
    "bpgan.runtime": {"bpgan.types", "bpgan.files", "bpgan.memory", "bpgan.measures", "bpgan.version",
                      "bpgan.runtime.records"},
    "bpgan.runtime.records": {"bpgan.files"},
    "bpgan.report": {"bpgan.types", "bpgan.files", "bpgan.measures", "bpgan.runtime", "bpgan.runtime.records"},
    "bpgan.cli": {"bpgan.types", "bpgan.files", "bpgan.measures", "bpgan.data", "bpgan.runtime",
                  "bpgan.runtime.records", "bpgan.report"},
    "bpgan.launcher": {"bpgan.types", "bpgan.files", "bpgan.memory", "bpgan.measures", "bpgan.runtime",
                       "bpgan.runtime.records", "bpgan.report", "bpgan.cli"},
    "experiments": {"bpgan.types", "bpgan.files", "bpgan.measures", "bpgan.losses", "bpgan.penalties", "bpgan.optim",
                    "bpgan.augment", "bpgan.nets", "bpgan.data", "bpgan.backprop",
                    "bpgan.algorithms", "bpgan.metrics", "bpgan.metrics.features", "bpgan.version", "bpgan.runtime",
                    "bpgan.runtime.records", "bpgan.report", "bpgan.cli", "bpgan.launcher"},
    "launch": {"bpgan.launcher"},
}  # fmt: skip

# Third-party packages that only certain files may import, anywhere in the file.
RESERVED = {
    "absl": {"bpgan/cli", "bpgan/launcher", "bpgan/data/sources.py"},  # grain's flags
    "flax": {"bpgan/nets", "bpgan/metrics/features"},
    "orbax": {"bpgan/runtime/checkpoint.py"},
    "tensorflow_datasets": {"bpgan/data/builders.py"},
    "array_record": {"bpgan/data/cache.py"},
    "grain": {"bpgan/data/sources.py"},
    "requests": {"bpgan/data/builders.py"},
    "tensorboardX": {"bpgan/runtime/events.py"},
    "tqdm": {"bpgan/runtime/log.py", "bpgan/data"},
    "matplotlib": set(),  # reports draw their own pictures
    "submitit": {"bpgan/launcher/slurm.py"},
    "cloudpickle": {"bpgan/launcher/slurm.py"},
    "optuna": {"bpgan/launcher/search.py"},
    "PIL": {"bpgan/runtime/images.py", "bpgan/report", "bpgan/data/images.py"},
}
COMPILERS = {"jit", "pmap", "shard_map", "make_mesh", "Mesh"}
HEAVY = {
    "orbax",
    "tensorflow_datasets",
    "tensorboardX",
    "matplotlib",
    "PIL",
    "tqdm",
    "scipy",
    "grain",
    "array_record",
    "requests",
    "submitit",
    "optuna",
}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """The entry of ALLOWED a module belongs to: itself, or its folder."""
    if module in ALLOWED:
        return module
    return next((m for m in (module.rpartition(".")[0],) if m in ALLOWED), module)


def imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def project_module(name: str) -> str | None:
    """The project's module an imported dotted name refers to, or None."""
    if name.split(".")[0] not in ("bpgan", "experiments", "launch"):
        return None
    path = name
    while path and not (
        (ROOT / path.replace(".", "/")).is_dir() or (ROOT / f"{path.replace('.', '/')}.py").exists()
    ):
        path = path.rpartition(".")[0]
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    relative = path.relative_to(ROOT).as_posix()
    layer = layer_of(module_name(path))
    assert layer in ALLOWED, f"{relative}: no rule for this module"
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imports(node):
            if target := project_module(name):
                other = layer_of(target)
                assert other == layer or other in ALLOWED[layer], (
                    f"{relative} must not import {target}"
                )
            owners = RESERVED.get(name.split(".")[0])
            assert owners is None or any(relative.startswith(o) for o in owners), (
                f"{relative} imports {name}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_two_modules_compile(path):
    relative = path.relative_to(ROOT).as_posix()
    if relative in ("bpgan/runtime/program.py", "bpgan/runtime/group.py"):
        return
    # Metrics are not part of a run: they compile functions of arrays, and nothing else.
    forbidden = COMPILERS - {"jit"} if relative.startswith("bpgan/metrics/") else COMPILERS
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "jax"
        ):
            assert node.attr not in forbidden, f"{relative}:{node.lineno} uses jax.{node.attr}"
        for name in imports(node):
            assert not (name.startswith("jax.") and name.rsplit(".", 1)[1] in forbidden), (
                f"{relative}: {name}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_imports_are_lazy(path):
    """At module level only what every run needs, so that the first step and an error message come soon."""
    for node in ast.parse(path.read_text()).body:
        for name in imports(node):
            if name.startswith("scipy") and path.is_relative_to(ROOT / "bpgan/metrics"):
                continue  # no run imports metrics
            assert name.split(".")[0] not in HEAVY, (
                f"{path.relative_to(ROOT)} imports {name} at the top"
            )


def test_no_utils():
    assert not [p for p in FILES if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_layers_do_not_form_a_cycle():
    graph = {layer: {a for a in allowed if a != layer} for layer, allowed in ALLOWED.items()}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = [layer for layer in graph if layer not in done and graph[layer] <= done]
        assert ready, f"cycle among {set(graph) - done}"
        done.update(ready)


def test_importing_opens_no_device():
    """Several processes must be able to join before JAX looks for devices, which any array of JAX makes it do."""
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES]
    names = [name.removesuffix(".__init__") for name in modules if not name.endswith("plug")]
    code = (
        f"import importlib\nfor name in {names!r}: importlib.import_module(name)\n"
        "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
