"""A trained run as an object: `bpgan.load`, without its data and its flags."""

import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from PIL import Image

import bpgan
from bpgan import cli, data
from bpgan.evaluation import samples
from bpgan.nets import conv, primitives, resample
from bpgan.trained import export as files
from bpgan.trained import paths
from bpgan.types import UserError
from experiments import classifier, evaluate, export, image_gan, mnist_gan, sample, toy_gan, vae

pytestmark = pytest.mark.usefixtures("no_curves")
QUIET = ("--preset=smoke", "--notensorboard", "--sample_every=0")


def train(experiment, workdir, *flags):
    argv = [*QUIET, *flags, f"--workdir={workdir}"]
    assert cli.run(experiment.Config, experiment.build, experiment.PRESETS, argv) == 0
    return workdir


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Images with named classes, which are gone once something was trained on them."""
    file = tmp_path_factory.mktemp("data") / "own.npz"
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (120, 8, 8, 3), np.uint8), np.arange(120) % 3
    np.savez(file, x=x, y=y, class_names=np.array(["cat", "dog", "owl"]))
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def labeled(own, tmp_path_factory):
    """The run of a conditional GAN; its data are gone."""
    flags = ("--net=dcgan:4", "--condition=projection", f"--dataset=npz:{own}", "--keep=9")
    run = train(image_gan, tmp_path_factory.mktemp("labeled") / "run", *flags)
    own.rename(own.with_suffix(".gone"))
    yield run
    own.with_suffix(".gone").rename(own)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The run of the article's networks."""
    return train(mnist_gan, tmp_path_factory.mktemp("digits") / "run", "--net=mlp")


def refused(call, text):
    with pytest.raises(UserError) as error:
        call()
    assert text in str(error.value)


@pytest.mark.medium
def test_a_run_is_loaded_where_its_data_are_not(labeled):
    run = bpgan.load(labeled)
    assert (run.experiment, run.step, run.classes) == ("image_gan", 8, 3)
    assert run.class_names == ("cat", "dog", "owl") and run.config.net == "dcgan:4"
    assert [line["step"] for line in run.log] == [2, 4, 6, 8] and run.result.status == "done"
    assert run.evaluations == [] and bpgan.load(labeled, 4).step == 4
    x = run.sample(5, seed=1, labels="owl")
    assert x.dtype == np.uint8 and x.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(x, run.sample(5, seed=1, labels=[2] * 5))
    assert (x != run.sample(5, seed=1, labels=1)).any() and (x != run.sample(5, labels=2)).any()
    np.testing.assert_array_equal(run.sample(4), run.sample(4, labels=[0, 1, 2, 0]))
    assert run.discriminator(run.sample(2, floats=True), np.zeros(2, int)).shape == (2,)


@pytest.mark.medium
def test_the_generator_is_a_pure_function_of_variables(labeled):
    run = bpgan.load(labeled)
    z, y = run.latents(6, seed=2), np.arange(6, dtype=np.int32) % 3
    apply, variables = run.generator
    drawn = jax.jit(apply)(variables, z, y)
    np.testing.assert_allclose(drawn, run.sample(6, seed=2, floats=True), atol=1e-6)
    np.testing.assert_array_equal(run.sample(z=z), run.sample(6, seed=2))
    np.testing.assert_array_equal(variables["params"], run.state.ema["g"]["params"])
    none = jax.tree.map(lambda w: 0 * w, variables)
    assert np.ptp(apply(none, z, y)) == 0


@pytest.mark.medium
def test_samples_are_those_of_an_evaluation(digits):
    """Of whole batches in the same bits, of less but for rounding; the first ones whatever the number."""
    run, opened = bpgan.load(digits), cli.restore(digits)
    drawn = cli.draw(opened.experiment.algorithm, opened.state, seed=3, n=510)
    np.testing.assert_array_equal(run.sample(510, seed=3), drawn)
    few = run.sample(7, seed=3, floats=True)
    np.testing.assert_allclose(few, run.sample(510, seed=3, floats=True)[:7], atol=1e-6)
    np.testing.assert_array_equal(run.latents(7, seed=3), run.latents(501, seed=3)[:7])


@pytest.mark.medium
def test_truncation_bounds_the_latents(digits):
    run = bpgan.load(digits)
    assert np.abs(run.latents(500)).max() > 1 > np.abs(run.latents(500, truncation=0.5)).max() / 0.6
    z = run.latents(9, truncation=0.5)
    np.testing.assert_array_equal(run.sample(9, truncation=0.5), run.sample(z=z))
    np.testing.assert_array_equal(run.sample(9, truncation=0), run.sample(9))


@pytest.mark.medium
def test_arguments_that_do_not_fit_are_refused(labeled, digits):
    run, plain = bpgan.load(labeled), bpgan.load(digits)
    refused(lambda: run.sample(0), "n=0: must be a whole number, at least 1")
    refused(lambda: run.sample(), "n: is needed without `z`")
    refused(lambda: run.sample(2, seed=-1), "seed=-1: must be")
    refused(lambda: run.sample(2, labels=3), "labels=3: must be in 0 to 2 or one of cat, dog, owl")
    refused(lambda: run.sample(2, labels="cow"), "labels=cow: must be in 0 to 2")
    refused(lambda: run.sample(2, labels=[0.5, 1]), "labels=0.5: must be")
    refused(lambda: run.sample(2, labels=[0, 1, 2]), "labels: are 3, must be one or 2")
    refused(lambda: plain.sample(2, labels=1), "labels: mnist_gan was trained without labels")
    refused(lambda: run.sample(z=np.zeros((2, 3))), "z: is [2, 3], must be [n, 8]")
    refused(lambda: run.sample(z=np.zeros((0, 8))), "z: is [0, 8], must be [n, 8]")
    refused(lambda: run.sample(z="no"), "z: must be an array of numbers")
    refused(lambda: run.sample(3, z=np.zeros((2, 8))), "n=3: must be 2")
    refused(lambda: run.sample(2, truncation=-1), "truncation=-1.0: must be a number >= 0")
    refused(lambda: bpgan.load(labeled, "last"), "checkpoint=last: must be newest, best or a step")
    refused(lambda: bpgan.load(labeled, 5), "has no sound checkpoint of step 5")
    refused(lambda: bpgan.load("nowhere"), "nowhere: holds no run of an experiment")


@pytest.mark.medium
def test_a_damaged_checkpoint_is_passed_over(labeled, tmp_path):
    run = shutil.copytree(labeled, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "8" / "carry")
    assert bpgan.load(run).step == 4
    before = sorted(p.name for p in run.rglob("*"))
    refused(lambda: bpgan.load(run, 8), "has no sound checkpoint of step 8")
    assert sorted(p.name for p in run.rglob("*")) == before


@pytest.mark.medium
def test_a_vae_draws_from_latents(tmp_path):
    run = bpgan.load(train(vae, tmp_path / "run", "--bound=0"))
    x, z = run.sample(3, seed=1), run.latents(3, seed=1)
    np.testing.assert_array_equal(run.sample(z=z), x)
    mean, _ = run.networks["encoder"](np.zeros((2, 28, 28, 1), np.float32))
    assert mean.shape == (2, 4) and x.shape == (3, 28, 28, 1)
    refused(lambda: run.discriminator, "a run of vae has no discriminator; it has generator, enc")
    assert np.abs(run.latents(99, truncation=0.1)).max() <= 0.1


@pytest.mark.medium
@pytest.mark.parametrize(
    "problem", [pytest.param("gaussian1d", marks=pytest.mark.slow), "dirac", "lqg", "ring8"]
)
def test_a_toy_draws_points(problem, tmp_path):
    """By hand: a + b z; theta; z G'."""
    flags = ["--penalty=none", "--d_steps=1", "--ema=0"] if problem != "ring8" else []
    run = bpgan.load(train(toy_gan, tmp_path / "run", f"--problem={problem}", *flags))
    x, z = run.sample(50, seed=1), run.latents(50, seed=1)
    assert x.dtype == np.float32 and len(x) == 50
    if problem == "ring8":
        assert x.shape == (50, 2)
        return
    g = (run.state.state if problem == "dirac" else run.state).players["g"].params
    wanted = {
        "gaussian1d": lambda: g["a"] + g["b"] * z,
        "dirac": lambda: np.full((50, 1), g),
        "lqg": lambda: z @ np.asarray(g).T,
    }[problem]()
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.sample(z=2 * z[:3]), run.generator(2 * z[:3]), atol=1e-6)
    compiled = jax.jit(run.generator)(2 * z[:3])  # as any function
    np.testing.assert_allclose(compiled, run.generator(2 * z[:3]), atol=1e-5)
    refused(lambda: run.sample(2, truncation=0.5), "toy_gan has no such flag")


@pytest.mark.medium
def test_what_does_not_draw_is_loaded_all_the_same(own, tmp_path):
    run = bpgan.load(train(classifier, tmp_path / "run", "--eval_every=4"))
    refused(lambda: run.sample(2), "a run of classifier draws no samples")
    assert run.networks["classifier"](np.zeros((2, 28, 28, 1), np.float32)).shape == (2, 10)
    assert bpgan.load(tmp_path / "run", "best").step in (4, 8)  # of eval/accuracy


# From Python --------------------------------------------------------------------------------------------------------


@pytest.mark.medium
def test_a_call_is_the_command(digits, tmp_path, capsys):
    """In the same bits; settings of JAX that the run asks for do not stay."""
    flags = dict(preset="smoke", tensorboard=False, sample_every=0, net="mlp")
    folder = bpgan.run("mnist_gan", **flags, workdir=tmp_path / "run", matmul_precision="highest")
    assert folder == str(tmp_path / "run") and "done at step 8" in capsys.readouterr().out
    assert jax.config.values["jax_default_matmul_precision"] is None
    np.testing.assert_array_equal(bpgan.load(folder).sample(3), bpgan.load(digits).sample(3))
    again = bpgan.run("sample", run=folder, seeds="0:2", workdir=tmp_path / "drawn")
    assert len(list(pathlib.Path(again).glob("*.png"))) == 3


def test_a_call_is_refused_as_the_command_is():
    refused(lambda: bpgan.run("mnist_gun"), "experiment=mnist_gun: must be one of")
    refused(lambda: bpgan.run("mnist_gan", epoch=3), "unknown flag; did you mean --epochs?")
    refused(lambda: bpgan.run("mnist_gan", epochs=-1), "epochs=-1: must be a number > 0")


@pytest.mark.medium
def test_a_call_that_is_interrupted_says_so_and_goes_on(tmp_path):
    """By a signal after some steps, as a notebook sends it."""
    flags = dict(steps=100_000, log_every=100, checkpoint_every=0, tensorboard=False)
    flags |= dict(workdir=tmp_path / "run")

    def interrupt():
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(cli.Interrupted, match="the same call continues it"):
        bpgan.run("linear_regression", **flags)
    thread.join()
    assert 0 <= (step := bpgan.load(tmp_path / "run").step) < 100_000
    flags |= dict(steps=step + 100)
    assert bpgan.load(bpgan.run("linear_regression", **flags)).step == step + 100


# Pictures -----------------------------------------------------------------------------------------------------------


def draw(run, out, *flags):
    argv = [f"--run={run}", f"--workdir={out}", *flags]
    return cli.run(sample.Config, sample.run, sample.PRESETS, argv)


def pixels(path):
    found = np.asarray(Image.open(path))
    return found if found.ndim == 3 else found[..., None]


@pytest.mark.medium
def test_pictures_by_seeds_and_classes(labeled, tmp_path):
    run = bpgan.load(labeled)
    flags = ["--seeds=0,5:7", "--labels=owl,0", "--truncation=0.5"]
    assert draw(labeled, tmp_path / "a", *flags) == draw(labeled, tmp_path / "b", *flags) == 0
    names = sorted(p.name for p in (tmp_path / "a").glob("*.png"))
    seeds = [
        f"step00000008_seed{s:04d}_class{y:03d}_truncation0.5.png"
        for s in (0, 5, 6)
        for y in (0, 2)
    ]
    grid = "step00000008_grid0,5-7_classesowl,0_truncation0.5.png"
    assert names == sorted([*seeds, grid])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    of_five = run.sample(1, seed=5, labels="owl", truncation=0.5)[0]
    np.testing.assert_array_equal(pixels(tmp_path / "a" / seeds[3]), of_five)
    found = pixels(tmp_path / "a" / grid)  # rows are seeds, columns the classes as they were named
    np.testing.assert_array_equal(found[10:18, :8], of_five)
    assert found.shape == (3 * 8 + 2 * 2 + 16, 18, 3) and found[28:].min() < 128  # letters below
    facts = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert facts["files"] == names and facts["labels"] == ["owl", "cat"] and facts["step"] == 8


@pytest.mark.medium
def test_an_animation_goes_from_seed_to_seed(labeled, tmp_path, monkeypatch, capsys):
    program = tmp_path / "bin" / "ffmpeg"  # a stand-in that writes down how it was called
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    out, flags = (
        tmp_path / "out",
        ["--interpolate=3,4,3", "--frames=4", "--labels=dog", "--rate=10"],
    )
    assert draw(labeled, out, *flags) == 0
    name = "step00000008_from3-4-3_frames4_class001"
    frames = sorted((out / name).iterdir())
    run = bpgan.load(labeled)
    assert len(frames) == 9
    for frame, seed in ((0, 3), (4, 4), (8, 3)):
        np.testing.assert_array_equal(pixels(frames[frame]), run.sample(1, seed=seed, labels=1)[0])
    with Image.open(out / f"{name}.gif") as gif:
        assert gif.n_frames >= 7 and gif.info["duration"] == 100  # equal ones may be joined
    assert f"-framerate 10 -i {out / name}/frame_%05d.png" in (out / f"{name}.mp4").read_text()
    program.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    assert draw(labeled, out, *flags) == 0
    assert "warning: no MP4: ffmpeg failed (broken)" in capsys.readouterr().out


def test_a_path_keeps_to_the_sphere():
    a, b = np.random.default_rng(0).normal(size=(2, 64))
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    found = paths.path([a, b], 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(a), rtol=1e-12)
    steps = np.linalg.norm(np.diff(found, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-12)
    np.testing.assert_array_equal(found[[0, -1]], [a, b])
    for x, y in ((a, a), (a, -a), (0 * a, a)):  # where there is no great circle, or many
        np.testing.assert_allclose(paths.path([x, y], 4)[1], 0.75 * x + 0.25 * y)


@pytest.mark.medium
def test_what_cannot_be_drawn_is_said_in_a_line(labeled, digits, tmp_path, capsys):
    out = tmp_path / "out"

    def said(run, *flags):
        assert draw(run, out, *flags) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "--run: must name a run" in said("")
    assert "nowhere: holds no run" in said("nowhere")
    assert "--labels=cow: must be in 0 to 2 or one of cat, dog, owl" in said(
        labeled, "--labels=cow"
    )
    assert "must name each class once" in said(labeled, "--labels=0,cat")
    assert "--labels=1: mnist_gan was trained without" in said(digits, "--labels=1")
    assert "--seeds=3:3: must be seeds" in said(digits, "--seeds=3:3")
    assert "--seeds=4294967297: must be seeds" in said(digits, "--seeds=4294967297")
    assert "--seeds: asks for 5,000 images of 3 classes" in said(
        labeled, "--labels=all", "--seeds=0:5000"
    )
    assert "must be two seeds" in said(digits, "--interpolate=1")
    assert not out.exists()
    (out / "step00000008_seed0000.png").mkdir(parents=True)
    assert "seed0000.png cannot be written (Is a directory)" in said(digits, "--seeds=0")


# Files for others ---------------------------------------------------------------------------------------------------


def exported(run, out, *flags):
    argv = [f"--run={run}", f"--workdir={out}", *flags]
    assert cli.run(export.Config, export.run, export.PRESETS, argv) == 0
    return out


def read_safetensors(path):
    """By the format's definition."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    facts, arrays, kinds = header.pop("__metadata__"), {}, {"F32": "<f4", "I32": "<i4"}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        array = np.frombuffer(body[first:last], kinds[entry["dtype"]])
        arrays[name] = array.reshape(entry["shape"])
    assert sum(array.nbytes for array in arrays.values()) == len(body)
    return facts, arrays


def elsewhere(code, folder):
    """Runs Python where there is no bpgan."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code += "\nimport sys\nassert 'bpgan' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.medium
def test_safetensors_hold_the_variables(digits, tmp_path):
    """Bit for bit; and the article's generator by hand from them."""
    out = exported(digits, tmp_path / "out", "--to=safetensors", "--license=cc-by-4.0")
    facts, arrays = read_safetensors(out / "generator_step00000008.safetensors")
    run = bpgan.load(digits)
    params = run.generator.variables["params"]
    assert set(arrays) == {f"params/{layer}/{p}" for layer in params for p in params[layer]}
    for name, array in arrays.items():
        _, layer, part = name.split("/")
        assert array.tobytes() == np.asarray(params[layer][part]).tobytes()
    z = run.latents(5, seed=1)
    hidden = z @ arrays["params/dense0/kernel"] + arrays["params/dense0/bias"]
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    by_hand = np.tanh(hidden @ arrays["params/dense1/kernel"] + arrays["params/dense1/bias"])
    drawn = run.sample(z=z, floats=True).reshape(5, -1)
    np.testing.assert_allclose(by_hand, drawn, atol=1e-5)
    assert facts["step"] == "8" and json.loads(facts["config"])["net"] == "mlp"
    card = (out / "README.md").read_text()
    for text in ("cc-by-4.0", run.record.data, run.record.run, "| `net` | `mlp` |", "`mnist10k`"):
        assert text in card
    reader = pytest.importorskip("safetensors.numpy")
    found = reader.load_file(out / "generator_step00000008.safetensors")
    assert all(found[name].tobytes() == array.tobytes() for name, array in arrays.items())


@pytest.mark.medium
def test_every_type_of_a_file():
    rng = np.random.default_rng(0)
    arrays = {
        "b": rng.normal(size=(2, 3)),
        "a/x": np.zeros((0, 2), np.float32),
        "c": np.array(True),
    }
    raw = files.safetensors(arrays, {"of": "\u00e9"})
    reader = pytest.importorskip("safetensors.numpy")
    found = reader.load(raw)
    assert {k: (v.shape, str(v.dtype), v.tobytes()) for k, v in found.items()} == {
        k: (v.shape, str(v.dtype), v.tobytes()) for k, v in arrays.items()
    }


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_functions_are_read_without_bpgan(kind, labeled, tmp_path):
    """Of batches of other sizes, and as the card says."""
    for package in {"stablehlo": ["flatbuffers"], "onnx": ["jax2onnx", "onnxruntime"]}[kind]:
        pytest.importorskip(package)
    out = exported(labeled, tmp_path / "out", f"--to={kind}")
    run = bpgan.load(labeled)
    z, y = run.latents(7, seed=1), np.arange(7, dtype=np.int32) % 3
    np.savez(out / "inputs.npz", z=z, y=y)
    calls = {
        "stablehlo": "generator.call(z, y)",
        "onnx": "generator.run(None, {'z': z, 'labels': y})[0]",
    }
    (block,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    elsewhere(
        f"{block}\nassert images.shape == (4, 8, 8, 3)\nfound = np.load('inputs.npz')\n"
        f"z, y = found['z'], found['y']\nnp.save('images.npy', {calls[kind]})",
        out,
    )
    found = np.load(out / "images.npy")
    apply, variables = run.generator
    compiled = np.asarray(jax.jit(lambda z, y: apply(variables, z, y))(z, y))
    if kind == "stablehlo":
        assert found.tobytes() == compiled.tobytes()
    np.testing.assert_allclose(found, compiled, atol=1e-5)
    np.testing.assert_allclose(found, run.sample(z=z, labels=y, floats=True), atol=1e-5)


@pytest.mark.parametrize("kernel, stride, padding", [
    (4, 2, 1), (3, 2, "SAME"), (5, 1, "SAME"), (3, 1, ((0, 2), (1, 1))), (4, (1, 2), "SAME"), (5, 3, 1),
])  # fmt: skip
def test_convolutions_of_lax_are_the_same_functions(kernel, stride, padding):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 5, 6, 3)), rng.normal(size=(kernel, kernel, 3, 4))
    x, w = (jax.numpy.asarray(a, "float32") for a in (x, w))
    for form in (conv.conv, conv.conv_transpose):
        call = functools.partial(form, stride=stride, padding=padding)
        wanted = call(x, w)
        with primitives.as_plain_lax():
            jaxpr, found = str(jax.make_jaxpr(call)(x, w)), call(x, w)
        assert "bpgan" not in jaxpr
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert "bpgan_conv" in str(jax.make_jaxpr(lambda x, w: conv.conv(x, w))(x, w))


def test_exporters_see_no_operation_of_bpgan():
    """Every primitive of its own is one that ``as_plain_lax`` knows: grouped convolutions and resampling, too."""
    x, w = jax.numpy.ones((2, 4, 4, 8)), jax.numpy.ones((3, 3, 4, 8))

    def operations(x, w):
        return resample.upsample2(conv.grouped_conv(x, w, groups=2))

    wanted = operations(x, w)

    def names():  # of a function of its own, for JAX remembers traces
        traced = jax.make_jaxpr(lambda x, w: operations(x, w))(x, w)
        return {equation.primitive.name for equation in traced.eqns}

    assert {"bpgan_grouped_conv", "upsample2"} <= names()
    with primitives.as_plain_lax():
        found = names()
        np.testing.assert_allclose(operations(x, w), wanted, atol=1e-5)
    assert not {name for name in found if "bpgan" in name or "upsample" in name}


@pytest.mark.medium
def test_what_cannot_be_exported_is_said_in_a_line(digits, tmp_path, capsys, monkeypatch):
    def said(run, *flags):
        argv = [f"--run={run}", f"--workdir={tmp_path / 'out'}", *flags]
        assert cli.run(export.Config, export.run, export.PRESETS, argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "--to=torch: must be some of safetensors, stablehlo, onnx" in said(digits, "--to=torch")
    assert "nowhere: holds no run" in said("nowhere")
    assert "--run: must name a run" in said("")
    no_draw = train(classifier, tmp_path / "run")
    assert "a run of classifier has no generator; it has classifier" in said(no_draw)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs jax2onnx, installed without its requirements" in said(digits, "--to=onnx")


# Trust --------------------------------------------------------------------------------------------------------------

HARM = "import pathlib\npathlib.Path({marker!r}).touch()\nfrom bpgan.losses import LOSSES\n"


@pytest.mark.medium
@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "harmful.module"},
        {"experiment": "{folder}/harmful.py"},
        {"loss": "harmful:LOSSES"},
        {"penalty": "harmful:LOSSES=1"},
        {"net": "dcgan:4/harmful:LOSSES"},
        {"dataset": "harmful:LOSSES"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_code_from_elsewhere_is_not_run(change, labeled, tmp_path, monkeypatch):
    marker = tmp_path / "it ran"
    (tmp_path / "harmful.py").write_text(HARM.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    run = shutil.copytree(labeled, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    ((name, value),) = change.items()
    value = value.format(folder=tmp_path)
    if name == "experiment":
        record[name] = value
    else:
        record["config"][name] = value
    (run / "config.json").write_text(json.dumps(record))
    said = f"would import {value.replace('dcgan:4/', '').partition(':')[0]}"
    for way in (bpgan.load, cli.restore, lambda path: samples.of_run(path, "newest", 10, 0)):
        with pytest.raises(UserError) as error:
            way(run)
        assert said in str(error.value) and "`trust=True` allows it" in str(error.value)
        assert not marker.exists() and "harmful" not in sys.modules


@pytest.mark.medium
@pytest.mark.parametrize("command", [evaluate, export, sample], ids=lambda module: module.__name__)
def test_every_command_that_opens_a_run_asks_for_trust(command, digits, tmp_path, capsys):
    """By one flag, which is no part of the name of what it writes."""
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')")
    run = shutil.copytree(digits, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    record["experiment"] = str(tmp_path / "mine.py")
    (run / "config.json").write_text(json.dumps(record))
    flags = [f"--run={run}", f"--workdir={tmp_path / 'out'}"]
    for more, said in (
        ([], f"would import {tmp_path / 'mine.py'}, which the run names, and run its code;"
         " --trust=True allows it\n"),
        (["--trust"], "it ran when it was imported"),
    ):  # fmt: skip
        assert cli.run(command.Config, command.run, command.PRESETS, flags + more) == 2
        assert said in capsys.readouterr().err
    assert cli.flags_of(command.Config)["trust"].restart_safe


@pytest.mark.medium
def test_an_experiment_of_ones_own_is_loaded_if_it_is_trusted(tmp_path):
    """In another process, from which no pickle is read."""
    script = tmp_path / "my_gan.py"
    script.write_text(
        '"""Mine."""\nimport dataclasses\nfrom bpgan import cli\n'
        "from experiments.mnist_gan import PRESETS, Config as Base, build\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Config(Base):\n"
        '    g_lr: float = cli.field(1e-4, "mine")\n'
    )
    module = cli.experiments.find(str(script)).module
    run = train(module, tmp_path / "run", "--net=mlp")
    refused(lambda: bpgan.load(run), f"would import {script}")
    code = (
        "import sys\n"
        "sys.addaudithook(lambda event, args: event == 'pickle.find_class' and sys.exit(event))\n"
        f"import bpgan\nrun = bpgan.load({str(run)!r}, trust=True)\n"
        "print(run.experiment, run.config.g_lr, run.sample(2).shape)\n"
    )
    root = pathlib.Path(bpgan.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == f"{script} 0.0001 (2, 28, 28, 1)\n", done.stderr


# Without images -----------------------------------------------------------------------------------------------------


def test_a_dataset_without_images_is_described_and_not_read():
    whole = data.load("mnist10k")
    with data.without_images(json.loads(json.dumps(whole.facts))):
        found, held = data.load_for_training("mnist10k", held_out=True)
        assert held is None and found.is_absent and found.facts == whole.facts
        assert (found.length, found.classes, found.shape) == (9000, 10, (28, 28, 1))
        options = {"seed": 1, "batch_size": 7, "flip": True}
        batches = data.source(found, **options)
    real = data.source(whole, **options)
    shapes = [jax.eval_shape(s.batch_at, s.data, 0) for s in (batches, real)]
    assert shapes[0] == shapes[1] and batches.fingerprint == real.fingerprint
    refused(lambda: found.read(np.arange(2)), "loaded without them")
    refused(found.arrays, "loaded without them")
    assert not data.load("mnist10k").is_absent


# The page -----------------------------------------------------------------------------------------------------------

PAGE = pathlib.Path(bpgan.__file__).parent.parent / "docs" / "using.md"


@pytest.mark.medium
def test_the_page_runs_as_written(digits, labeled, tmp_path, monkeypatch):
    shutil.copytree(digits, tmp_path / "runs" / "mnist_gan" / "default")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "using"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["slope"].shape == (4, 28, 28, 1)


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_written(labeled, tmp_path, monkeypatch):
    train(mnist_gan, tmp_path / "runs" / "mnist_gan" / "default")
    shutil.copytree(labeled, tmp_path / "runs" / "image_gan" / "cgan28")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    lines = [shlex.split(line, comments=True) for block in commands for line in block.splitlines()]
    assert len(lines) >= 4
    for python, dash, module, *flags in lines:
        assert (python, dash) == ("python", "-m")
        script = cli.experiments.find(module.removeprefix("experiments."))
        if "onnx" in " ".join(flags) and not find_spec("jax2onnx"):
            continue
        argv = [*flags, "--preset=smoke"]
        assert cli.run(script.config, script.action, script.presets, argv) == 0, flags
