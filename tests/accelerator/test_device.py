"""What bpgan promises of the device that is here: a CPU, a GPU, several, a TPU.

References are computed on the host, in float64 where the mathematics allows it. ``HIGHEST`` is full float32; tolerances
are stated beside what they bound, relative to the greatest entry, and hold on a CPU as well.
"""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree as ravel

from bpgan import cli, data
from bpgan.nets import conv, dcgan
from bpgan.runtime import distributed
from bpgan.runtime.group import compile_group
from bpgan.runtime.program import compile_program
from experiments import image_gan, mnist_gan

ROOT = pathlib.Path(__file__).parent.parent.parent

HIGHEST = "highest"
CONVOLUTION = 1e-5
"""Of float32 convolutions and their derivatives against float64: sums of up to 576 products."""
LOSS, GRADIENT = 1e-4, 5e-3
"""Of a first step against the same step on the host: losses, and gradients relative to a player's greatest entry."""
SEVERAL = 2e-4
"""Of several devices against one, after four steps; see docs/reproducibility.md."""


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision(HIGHEST):
        yield


def relative(found, exact):
    exact = np.asarray(exact, np.float64)
    return np.abs(np.asarray(found, np.float64) - exact).max() / np.abs(exact).max()


def host():
    return jax.local_devices(backend="cpu")[0]


def each(cases, *cheap):
    """The cases, of which a CPU is given the cheap ones alone."""
    return [name if name in cheap else pytest.param(name, marks=pytest.mark.dear) for name in cases]


def noise(shape):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (512, *shape), np.uint8)
    return data.of_arrays("noise", "train", x, rng.integers(0, 10, len(x)).astype(np.int32), 10)


SMALL = {  # recipes, at a width that any device compiles soon where the network has one
    "article": (mnist_gan, ["--preset=article"], None),
    "mnist": (mnist_gan, ["--net=dcgan:8"], None),
    "lite28": (image_gan, ["--preset=lite28", "--net=lite:8"], (28, 28, 1)),
    "cgan28": (image_gan, ["--preset=cgan28", "--net=lite:8"], (28, 28, 1)),
    "sngan-32": (image_gan, ["--preset=sngan-32", "--d_steps=1"], (32, 32, 3)),
    "biggan-32": (
        image_gan, ["--preset=biggan-32", "--net=biggan:8/biggan:8", "--d_steps=1"], (32, 32, 3)
    ),
    "dcgan-32": (image_gan, ["--preset=dcgan-32", "--d_steps=1"], (32, 32, 3)),
}  # fmt: skip


def build(monkeypatch, name, *more):
    module, argv, shape = SMALL[name]
    if shape is not None:
        monkeypatch.setattr(data, "load_for_training", lambda *_: (noise(shape), None))
    return module.build(
        cli.resolve(module.Config, module.PRESETS, [*argv, "--batch_size=16", *more])
    )


# --- Mathematics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (1, 4)])
def test_convolutions_and_their_derivatives_are_those_of_lax_in_float64(stride, groups):
    rng = np.random.default_rng(0)
    x, v = (rng.standard_normal((4, 8, 8, 64)).astype(np.float32) for _ in range(2))
    w = rng.standard_normal((3, 3, 64 // groups, 64)).astype(np.float32)

    def ours(x, w):
        if groups > 1:
            return conv.grouped_conv(x, w, groups=groups)
        return conv.conv(x, w, stride=stride, padding=1)

    def lax(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    def found(op):
        def energy(x, w):
            return jnp.sum(jnp.square(op(x, w))) / 2

        def slope(x, w, v):
            return jnp.sum(jax.grad(energy)(x, w) * v)

        return lambda x, w, v: (
            op(x, w), *jax.grad(energy, (0, 1))(x, w), *jax.grad(slope, (0, 1))(x, w, v)
        )  # fmt: skip

    here = jax.jit(found(ours))(x, w, v)
    with jax.enable_x64(True), jax.default_device(host()):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, w, v)]
        exact = jax.device_get(jax.jit(found(lax))(*wide))
    for a, b in zip(here, exact, strict=True):
        assert relative(a, b) < CONVOLUTION


@pytest.mark.parametrize("name", each(SMALL, "article"))
def test_a_step_is_that_of_the_host(monkeypatch, name):
    algorithm, source = build(monkeypatch, name)[:2]
    key = jax.random.key(0)

    def step(key):
        state = algorithm.init(key)
        after, metrics = algorithm.step(state, source.batch_at(source.data, jnp.int32(0)), key)
        # Adam's first step is the sign of the gradient, which rounding decides where that is nearly 0: of a bias
        # before batch norm, say. Its first mean is the gradient itself, but for a factor.
        means = {k: optax.tree.get(v.opt, "mu") for k, v in after.players.items()}
        return means, metrics, after.players

    means, metrics, players = jax.device_get(jax.jit(step)(key))
    with jax.default_device(host()):
        expected, losses, _ = jax.device_get(jax.jit(step)(jax.random.key(0)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(players))
    for loss in (name for name in losses if name.endswith("loss")):
        assert metrics[loss] == pytest.approx(losses[loss], rel=LOSS, abs=LOSS)
    for player, theirs in expected.items():
        ours, theirs = (ravel(tree)[0] for tree in (means[player], theirs))
        assert relative(ours, theirs) < GRADIENT


@pytest.mark.dear
def test_one_step_in_bfloat16_is_near_that_in_float32(monkeypatch):
    losses = []
    for precision in ("float32", "bfloat16"):
        algorithm, source = build(monkeypatch, "lite28", f"--precision={precision}")[:2]
        key = jax.random.key(0)
        state, metrics = jax.jit(algorithm.step)(
            algorithm.init(key), source.batch_at(source.data, jnp.int32(0)), key
        )
        assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state.players))
        losses.append({k: float(v) for k, v in metrics.items() if k.endswith("loss")})
    for name, exact in losses[0].items():  # 8 bits, through about ten layers
        assert losses[1][name] == pytest.approx(exact, rel=0.1, abs=0.1)


def test_features_are_those_of_the_host():
    """Of the classifier whose hidden layer is bpgan's own extractor."""
    net = dcgan.Classifier(10, features=True)
    x = np.random.default_rng(0).standard_normal((8, 28, 28, 1)).astype(np.float32)
    params = jax.device_get(net.init(jax.random.key(0), x))
    here = jax.jit(net.apply)(params, x)
    with jax.default_device(host()):
        there = jax.jit(net.apply)(params, x)
    assert relative(here, there) < 1e-4


# --- The program --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each(("article", "lite28"), "article"))
def test_nothing_goes_to_the_host_while_a_program_runs(monkeypatch, name):
    built = build(monkeypatch, name)
    program = compile_program(built.algorithm, built.source, seed=0, devices=1)
    carry, _ = program.run(program.init(), 2)
    jax.block_until_ready(carry.state)
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        carry, finite = program.run(carry, 5)
        jax.block_until_ready(carry.state)
    assert bool(finite)


def test_a_program_keeps_within_the_memory_that_xla_says():
    device = jax.local_devices()[0]
    if not (device.memory_stats() or {}).get("peak_bytes_in_use"):
        pytest.skip(f"{device.platform} does not say how much memory is used")
    w = jnp.ones((2048, 2048))
    run = (
        jax.jit(lambda w: jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), w))
        .lower(w)
        .compile()
    )
    about = run.memory_analysis()
    said = about.temp_size_in_bytes + about.output_size_in_bytes + about.argument_size_in_bytes
    before = device.memory_stats()["bytes_in_use"]
    run(w).block_until_ready()
    assert device.memory_stats()["peak_bytes_in_use"] <= max(before, 0) + 1.5 * said + (256 << 20)


@pytest.mark.skipif(jax.device_count() < 2, reason="one device")
def test_several_devices_are_one(monkeypatch):
    states = []
    for devices in (1, min(8, jax.device_count())):
        built = build(monkeypatch, "lite28", "--batch_size=32")
        program = compile_program(built.algorithm, built.source, seed=0, devices=devices)
        carry, finite = program.run(program.init(), 4)
        assert bool(finite)
        states.append(jax.device_get({k: p.params for k, p in carry.state.players.items()}))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, atol=10 * SEVERAL)


@pytest.mark.parametrize("lowering", each(("vmap", "map"), "vmap"))
def test_runs_of_a_sweep_are_the_single_runs(lowering):
    cfg = cli.resolve(mnist_gan.Config, mnist_gan.PRESETS, ["--preset=article", "--batch_size=16"])

    def make(**values):
        built = mnist_gan.build(dataclasses.replace(cfg, **values))
        return built.algorithm, built.source

    members = [{"seed": i, "g_lr": 1e-4 * (1 + i)} for i in range(3)]
    distributed.setup()
    with jax.default_matmul_precision(HIGHEST):
        group = compile_group(make, members, lowering)
        carry, finite = group.run(group.init(), 4, np.ones(3, bool))
        assert finite.all()
        for i, values in enumerate(members):
            program = compile_program(*make(**values), seed=values["seed"], devices=1)
            alone, _ = program.run(program.init(), 4)
            ours = jax.device_get(alone.state)
            theirs = jax.device_get(group.member(carry, i).state)
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                if np.issubdtype(np.asarray(a).dtype, np.floating):
                    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


# --- Bits across processes ----------------------------------------------------------------------------------------


def trained(environment, cache, calls, steps=12, more=()):
    command = [
        sys.executable,
        str(ROOT / "tests/accelerator/run.py"),
        "mnist_gan",
        str(steps),
        str(calls),
    ]
    done = subprocess.run(
        [*command, "--preset=smoke", *more], cwd=ROOT, capture_output=True, text=True,
        env=environment | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])["bits"]


@pytest.mark.dear
def test_processes_end_in_the_same_bits(environment, tmp_path):
    first = trained(environment, tmp_path / "a", 1)
    found = {
        "the program from the cache": trained(environment, tmp_path / "a", 1),
        "other lengths of calls": trained(environment, tmp_path / "a", 4),
        "compiled anew": trained(environment, tmp_path / "b", 1),
    }
    assert found == dict.fromkeys(found, first)


@pytest.mark.dear
def test_a_killed_run_ends_in_the_same_bits(environment, tmp_path):
    environment = environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}

    def start(workdir):
        command = [
            sys.executable, "-m", "experiments.mnist_gan", "--preset=smoke", "--steps=400", "--log_every=20",
            "--sample_every=0", "--checkpoint_every=20", "--tensorboard=false", f"--workdir={tmp_path / workdir}",
        ]  # fmt: skip
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def finish(workdir):
        with start(workdir) as process:
            assert process.wait(timeout=300) == 0

    finish("whole")
    with start("killed") as process:
        deadline = time.monotonic() + 240
        log = tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_text().count("\n") >= 4:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
    finish("killed")

    def numbers(workdir):
        lines = map(json.loads, (tmp_path / workdir / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]

    assert numbers("killed") == numbers("whole")
