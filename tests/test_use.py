"""A trained run as an object: `bpgan.load`, without its data and its flags."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import bpgan
from bpgan import cli, data
from bpgan.types import UserError
from experiments import classifier, image_gan, mnist_gan, toy_gan, vae

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
@pytest.mark.parametrize("problem", ["gaussian1d", "dirac", "lqg", "ring8"])
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
    refused(lambda: run.sample(2, truncation=0.5), "toy_gan has no such flag")


@pytest.mark.medium
def test_what_does_not_draw_is_loaded_all_the_same(own, tmp_path):
    run = bpgan.load(train(classifier, tmp_path / "run", "--eval_every=4"))
    refused(lambda: run.sample(2), "a run of classifier draws no samples")
    assert run.networks["classifier"](np.zeros((2, 28, 28, 1), np.float32)).shape == (2, 10)
    assert bpgan.load(tmp_path / "run", "best").step in (4, 8)  # of eval/accuracy


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
    with pytest.raises(UserError) as error:
        bpgan.load(run)
    said = f"would import {value.replace('dcgan:4/', '').partition(':')[0]}"
    assert said in str(error.value) and "`trust=True` allows it" in str(error.value)
    assert not marker.exists() and "harmful" not in sys.modules


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
