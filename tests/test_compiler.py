"""What XLA is told, decided without a GPU, and what a run says when it goes on under other circumstances."""

import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from bpgan.runtime import compiler, program, records
from bpgan.types import Algorithm, Source

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def choice():
    """The next test finds the process as it was."""
    yield
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "cpu")
        compiler.choose(deterministic=True)


GRAPH, DETERMINISTIC = "xla_gpu_enable_command_buffer", "xla_gpu_exclude_nondeterministic_ops"
WIDTH = "xla_cpu_prefer_vector_width"


@pytest.mark.parametrize(
    "platform, deterministic, flags, expected",
    [
        ("cpu", True, "", {WIDTH}),
        ("cpu", True, f"--{WIDTH}=256", set()),
        ("tpu", True, "", set()),
        ("gpu", True, "", {GRAPH, DETERMINISTIC}),
        ("gpu", False, "", {GRAPH}),
        ("gpu", True, f"--{GRAPH}=", {DETERMINISTIC}),
        ("gpu", True, f"--xla_dump_to=/a  --{DETERMINISTIC}=false", {GRAPH}),
        ("gpu", True, f"--{DETERMINISTIC} --{GRAPH}=+WHILE", set()),
        ("gpu", True, f"--{GRAPH}_not=1 --xla_a='unfinished", {GRAPH, DETERMINISTIC}),
    ],
)
def test_options_are_for_a_platform_and_the_users_flags_win(
    platform, deterministic, flags, expected
):
    found = compiler.options(platform, deterministic=deterministic, flags=flags)
    assert set(found) == expected
    assert found.get(DETERMINISTIC, True) is True
    assert {"WHILE", "CONDITIONAL", "FUSION"} <= set(
        found.get(GRAPH, "WHILE,CONDITIONAL,FUSION").split(",")
    )


def test_products_of_matrices_are_not_ynnpacks_unless_the_user_says_so():
    name = "xla_cpu_experimental_ynn_fusion_type"
    found = compiler.options("cpu", matrices=True, flags="")
    assert set(found) == {WIDTH, name}
    assert jax.jit(lambda x: x @ x, compiler_options=found)(np.ones((2, 2)))[0, 0] == 2
    assert set(compiler.options("cpu", matrices=True, flags=f"--{name}=dot")) == {WIDTH}
    assert set(compiler.options("gpu", matrices=True, flags="")) == {GRAPH, DETERMINISTIC}


def test_the_flags_are_those_of_the_environment_and_the_choice_that_of_the_process(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert set(compiler.options("gpu")) == {GRAPH, DETERMINISTIC}
    compiler.choose(deterministic=False)
    assert set(compiler.options("gpu")) == {GRAPH}
    monkeypatch.setenv("XLA_FLAGS", f"--{GRAPH}=")
    assert not compiler.options("gpu")


@pytest.mark.parametrize("deterministic", [True, False])
def test_jaxlib_knows_the_options(deterministic):
    """One of another name or value would be an error at the first compilation on a GPU."""
    options = compiler.options("gpu", deterministic=deterministic, flags="")
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_a_deterministic_process_on_a_gpu_takes_no_measured_kernels(monkeypatch):
    name, asked = "jax_persistent_cache_enable_xla_caches", []
    monkeypatch.setattr(jax.config, "update", lambda *pair: asked.append(pair))
    for backend, deterministic in (("cpu", True), ("tpu", True), ("gpu", False)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        compiler.choose(deterministic)
    assert not asked
    compiler.choose(True)
    assert asked == [(name, "none")]


class State(NamedTuple):
    step: Any
    w: Any


@pytest.mark.medium
def test_programs_compile_with_the_options(monkeypatch):
    """Under ``jit`` and ``pmap``; the options here are such as a CPU takes, and change no bits."""

    def trained(mode):
        x = jax.numpy.arange(32.0).reshape(16, 2)
        source = Source({"x": x}, lambda data, step: data, 16, 16, fingerprint="x", examples=x)
        algorithm = Algorithm(
            init=lambda key: State(jax.numpy.zeros((), int), jax.random.normal(key, (2,))),
            step=lambda state, batch, key: (
                State(state.step + 1, state.w + batch["x"].mean()),
                {"loss": state.w.sum()},
            ),
            sample=None,
        )
        one = program.compile_program(algorithm, source, seed=0, mode=mode)
        carry = one.init()
        for k in (1, 2):
            carry, _ = one.run(carry, k)
        return np.asarray(carry.state.w)

    plain = {mode: trained(mode) for mode in ("jit", "pmap")}
    asked = []

    def options(platform):
        asked.append(platform)
        return {"xla_embed_ir_in_executable": False}

    monkeypatch.setattr(compiler, "options", options)
    for mode, expected in plain.items():
        asked.clear()
        np.testing.assert_array_equal(trained(mode), expected)
        assert set(asked) == {"cpu"}


def test_only_the_width_of_vectors_is_set_on_a_cpu():
    """With a program; nothing is set in the environment, nor in JAX's settings."""
    code = """
import os, jax
before = dict(os.environ)
from bpgan.runtime import compiler, distributed
kept = jax.config.values["jax_persistent_cache_enable_xla_caches"]
distributed.setup()
assert jax.config.values["jax_persistent_cache_enable_xla_caches"] == kept
assert compiler.options(jax.default_backend()) == {"xla_cpu_prefer_vector_width": 512}
print({k for k in os.environ if os.environ[k] != before.get(k)})
"""
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "set()", done.stderr


NOW = {
    "versions": {"jax": "0.11.0", "jaxlib": "0.11.0"},
    "devices": ["gpu:0 NVIDIA H100", "gpu:1 NVIDIA H100"],
    "compiler": {"xla_flags": "", "options": "a=1", "runtime": "cuda 13000", "cache": "/c"},
}


def record(**changed):
    return records.RunRecord(experiment="e", **(NOW | changed))


@pytest.mark.parametrize(
    "before, said",
    [
        (record(), []),
        (records.RunRecord(experiment="e"), []),  # an older one, which says nothing
        (record(compiler={}), []),
        (record(versions={"jax": "0.11.0", "jaxlib": "0.10.2"}), ["jaxlib was 0.10.2, now 0.11.0"]),
        (record(devices=["gpu:0 NVIDIA A100"]), ["devices was 1 x NVIDIA A100, now 2 x NVIDIA H100"]),
        (
            record(compiler=NOW["compiler"] | {"xla_flags": "b=2", "options": ""}),
            ["XLA_FLAGS was b=2, now empty", "compiler options was empty, now a=1"],
        ),
        (record(compiler=NOW["compiler"] | {"runtime": "cuda 12080"}), ["runtime was cuda 12080, now cuda 13000"]),
        (record(compiler=NOW["compiler"] | {"cache": "off"}), ["compilation cache was off, now /c"]),
    ],
)  # fmt: skip
def test_what_can_change_the_bits_is_named_with_both_values(before, said):
    assert compiler.differences(before, NOW) == said


def test_the_cache_matters_on_a_gpu_alone():
    now = NOW | {"devices": ["cpu:0 cpu"]}
    before = record(devices=["cpu:0 cpu"], compiler=NOW["compiler"] | {"cache": "off"})
    assert compiler.differences(before, now) == []


def test_circumstances(monkeypatch):
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_dump_to=/x --xla_b=2 --xla_a"
    )
    found = compiler.circumstances()
    assert found["compiler"]["xla_flags"] == "xla_a= xla_b=2"
    assert found["compiler"]["options"] == f"{WIDTH}=512"
    assert found["versions"]["jax"] == jax.__version__
    assert len(found["devices"]) == len(jax.devices())
    assert compiler.differences(records.RunRecord(experiment="e", **found), found) == []
