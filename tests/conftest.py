"""A hostile environment for every test: several devices, no silent broadcasting, no key used twice, no warnings."""

import functools
import os
import pathlib
import sys
import weakref

# Most of the tests' time is compilation. What must hold of optimized programs (bitwise resume above all) asks for the
# `optimized` fixture.
if not os.environ.get("BPGAN_TESTS_OPTIMIZED"):  # as on an accelerator
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Programs that several tests (and the processes they start) share are compiled once.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
)

# Converted datasets do not belong into the user's cache.
os.environ["BPGAN_DATA_DIR"] = str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "data")

import jax
import numpy as np
import pytest
from absl import logging
from checks.fusions import FUSIONS
from jax._src import compiler

# absl keeps the stream of errors that it finds when it is imported, which is pytest's capture. `logging.config`, as
# `import submitit` calls it, closes that stream wherever a test has replaced `sys.stderr`. absl never closes this one.
logging.get_absl_handler().python_handler.setStream(sys.__stderr__)

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests marked medium or slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="needs --slow")
        for item in items:
            if {"medium", "slow"} & set(item.keywords):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def plain_settings():
    """What a run sets in this process does not reach the next test: the width of numbers, the precision of products."""

    def reset():
        jax.config.update("jax_enable_x64", False)
        jax.config.update("jax_default_matmul_precision", None)

    reset()
    yield
    reset()


@pytest.fixture
def x64():
    """64-bit floats for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def optimized():
    """Compiles as users do, in this process and in those it starts."""
    del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


@pytest.fixture(scope="module")
def short_fusions():
    """Fusions take a shorter way to their code, in this process: on a CPU, half of a compilation of a step is theirs.

    Not in `optimized` tests, and not for those that count the last bits of a sum: the other way, which users have,
    rounds in other places. ``XLA_FLAGS`` would hold for all tests, and cost each run a process that reads them.
    """
    get_options = compiler.get_compile_options

    @functools.wraps(get_options)
    def short(*args, **kwargs):
        found = get_options(*args, **kwargs)
        if jax.config.values["jax_disable_most_optimizations"] and jax.default_backend() == "cpu":
            found.env_option_overrides = [*found.env_option_overrides, *FUSIONS.items()]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", short)
        yield


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """A cache of converted datasets for one test; its directory."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BPGAN_DATA_DIR", str(directory))
    return directory


@pytest.fixture(scope="module")
def no_curves():
    """Draws no ``curves.svg`` in this process: most tests do not look at it."""
    from bpgan.report import plot

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "write_svg", lambda *_, **__: None)
        yield


@pytest.fixture
def trees_equal():
    """Asserts that two pytrees of arrays are bitwise equal."""

    def check(a, b):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()

    return check


@pytest.fixture
def trees_close():
    """Asserts that two pytrees of arrays agree to tolerances."""

    def check(a, b, **tolerances):
        compare = functools.partial(np.testing.assert_allclose, **tolerances)
        jax.tree.map(compare, jax.device_get(a), jax.device_get(b))

    return check


@pytest.fixture
def one_device_is_eight(x64):
    """``one_device_is_eight(make, steps)``: asserts that a run on eight devices has the state of one; that state.

    ``make(axis_name)`` has ``algorithm`` and ``source`` in float64, where only the order of sums differs. ``modes`` are
    those of the eight: one program, or one for each device.
    """
    from bpgan.runtime.program import axis_name, compile_program

    def train(make, steps, mode, devices):
        made = make(axis_name(mode))
        program = compile_program(made.algorithm, made.source, seed=0, devices=devices, mode=mode)
        carry, finite = program.run(program.init(), steps)
        assert finite
        return jax.device_get(carry.state)

    def check(make, steps, modes=("jit", "pmap")):
        one = train(make, steps, "jit", 1)
        for mode in modes:
            eight = train(make, steps, mode, 8)
            for x, y in zip(*map(jax.tree.leaves, (one, eight)), strict=True):
                y = y if np.shape(y) == np.shape(x) else y[0]
                np.testing.assert_allclose(y, x, rtol=0, atol=1e-9)
        return one

    return check


@pytest.fixture
def copies(monkeypatch):
    """``copies(module)``: a list to which each ``build`` adds how many of those so far still have their data."""

    def watch(module):
        build, built, alive = module.build, [], []

        def watched(*args, **kwargs):
            experiment = build(*args, **kwargs)
            built.append(weakref.ref(experiment.source.data["x"]))
            alive.append(sum(data() is not None for data in built))
            return experiment

        monkeypatch.setattr(module, "build", watched)
        return alive

    return watch
