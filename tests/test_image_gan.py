"""The flagship experiment: every preset, every option of the networks, what is refused, and resume with memory."""

import contextlib
import dataclasses
import importlib
import json
import math
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks.losses import is_invariant

from bpgan import cli, data
from bpgan.evaluation import samples
from bpgan.losses import LOSSES
from bpgan.runtime import program
from bpgan.types import UserError
from experiments import evaluate, image_gan

pytestmark = pytest.mark.usefixtures("no_curves", "short_fusions")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """``files(size, channels)``: a dataset of 60 random images of three classes, two of them rarer."""
    folder = tmp_path_factory.mktemp("data")

    def name(size: int, channels: int) -> str:
        path = folder / f"{size}x{channels}.npz"
        if not path.exists():
            rng = np.random.default_rng(0)
            x = rng.integers(0, 256, (60, size, size, channels), np.uint8)
            np.savez(path, x=x, y=np.repeat([0, 1, 2], (30, 20, 10)))
        return f"npz:{path}"

    return name


def config(*flags):
    return cli.resolve(image_gan.Config, image_gan.PRESETS, list(flags))


def shapes_of_a_step(cfg):
    """The state's and the metrics' shapes; nothing is computed."""
    built = image_gan.build(cfg)
    state = jax.eval_shape(built.algorithm.init, jax.random.key(0))
    batch = jax.eval_shape(lambda: built.source.batch_at(built.source.data, jnp.int32(0)))
    after, metrics = jax.eval_shape(built.algorithm.step, state, batch, jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
        lambda a: (a.shape, a.dtype), state
    )
    return state, metrics


SIZES = {name: (64, 3) for name in image_gan.PRESETS if "64" in name} | {
    name: (28, 1) for name in image_gan.PRESETS if "28" in name or name == "smoke"
}
SIZES["afm14"] = (14, 1)


@pytest.mark.medium
@pytest.mark.parametrize("preset", image_gan.PRESETS)
def test_presets(files, preset):
    size, channels = SIZES.get(preset, (32, 3))
    cfg = config(f"--preset={preset}", f"--dataset={files(size, channels)}", "--batch_size=8")
    algorithm = image_gan.build(cfg).algorithm
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    drawn = jax.eval_shape(lambda s: algorithm.sample(s, jax.random.key(0), 6), state)
    assert drawn.shape == (6, size, size, channels)
    assert algorithm.classes == (3 if cfg.condition != "none" else 0)
    parts = {"mapping", "synthesis"} if "stylegan2" in cfg.net else set()
    assert set(algorithm.networks) == {"generator", "discriminator"} | parts


@pytest.mark.parametrize("preset", [name for name in image_gan.PRESETS if name != "smoke"])
def test_the_help_says_of_every_preset_what_is_known(preset):
    lines = image_gan.__doc__.split("Presets:")[1].split("Papers:")[0].splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == [preset])
    rest = [line for line in lines[start + 1 :] if line.split()[0] in image_gan.PRESETS]
    text = " ".join(" ".join(lines[start : lines.index(rest[0]) if rest else None]).split())
    assert ("Measured: " in text) != ("not measured" in text)


@pytest.mark.slow
@pytest.mark.parametrize("preset", image_gan.PRESETS)
def test_steps_of_presets(files, preset):
    size, channels = SIZES.get(preset, (32, 3))
    shapes_of_a_step(
        config(f"--preset={preset}", f"--dataset={files(size, channels)}", "--batch_size=8")
    )


@pytest.mark.medium
@pytest.mark.parametrize("size,channels", [(28, 3), (32, 1), (48, 4), (128, 3)])
@pytest.mark.parametrize("net", ["mlp", "dcgan:4", "lite:4"])
def test_networks_take_images_of_any_size(files, net, size, channels):
    """The other architectures' own tests say so of them."""
    cfg = config(f"--net={net}", f"--dataset={files(size, channels)}", "--condition=projection")
    algorithm = image_gan.build(cfg).algorithm
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    drawn = jax.eval_shape(lambda s: algorithm.sample(s, jax.random.key(0), 6), state)
    assert drawn.shape == (6, size, size, channels)


@pytest.mark.medium
@pytest.mark.parametrize(
    "flags",
    [
        ["--condition=acgan=linear:0:1"],
        ["--condition=d2d", "--loss=hinge", "--net=dcgan:4"],
        ["--penalty=r1+lecam=0.3+cr=10+bcr=1+zcr=5+dragan=1/2+g.zcr=0.5+orthogonal+g.orthogonal"],
        ["--penalty=orthogonal=1e-4+g.path_length=2/4", "--net=mlp/lite:4"],
        ["--penalty=wgan_gp=10", "--loss=wasserstein", "--d_steps=3", "--accumulate=2"],
        ["--penalty=clip=0.01", "--loss=wasserstein", "--lr=1e-4/4e-4"],
        ["--loss=began", "--net=dcgan:4/autoencoder:8", "--penalty=none"],
        ["--rule=optimistic", "--augment=color,cutout@warmup:0.5:0.8"],
        ["--condition=concat", "--penalty=r1=0.1", "--net=lite:4,norm/dcgan:4"],
        ["--condition=concat", "--net=mlp"],
        ["--net=cnn/cnn,spectral", "--condition=projection"],
        ["--net=cnn,spectral", "--penalty=r1"],
        ["--net=cnn,spectral", "--one_pass", "--condition=d2d"],
        ["--net=lite:4,norm", "--condition=acgan"],
        ["--net=lite:4", "--condition=ucd=0.3"],
        [
            "--net=vit:16,depth=1,heads=2,rope,qknorm",
            "--condition=modulation",
            "--precision=bfloat16",
        ],
        ["--net=vit:16,depth=1,residual/lite:4", "--latents=normal:784", "--condition=acgan"],
        ["--net=lite:4/vit:16,depth=1,rms,patch=7", "--condition=modulation"],
        ["--net=r3gan:1", "--precision=bfloat16", "--truncation=1"],
        ["--ema=0", "--betas=0.5,cosine:0.9:0.99:0.5", "--lr=warmup:0.1:cosine:1e-3:1e-4"],
    ],
)
def test_options(files, flags):
    cfg = config(f"--dataset={files(28, 1)}", "--batch_size=8", *flags)
    state, metrics = shapes_of_a_step(cfg)
    assert {"d/loss", "g/loss"} <= set(metrics)
    for player in (state.players["g"], state.players["d"]):
        assert {a.dtype for a in jax.tree.leaves(player.params)} == {jnp.dtype("float32")}


@pytest.mark.medium
@pytest.mark.parametrize(
    "net", ["lite:4", "mlp", pytest.param("stylegan2", marks=pytest.mark.medium)]
)
def test_penalties_of_narrow_networks_are_not_narrow(files, net):
    """With bfloat16, every loss and penalty is float32, of fakes as of reals, of D as of G."""
    lengths = {"mlp": "+g.path_length=2", "stylegan2": "+g.path_length=2+g.path_length_w=2"}
    penalty = "r2=1+wgan_gp=1+bcr=1+g.zcr=1" + lengths.get(net, "")
    flags = [f"--net={net}", f"--penalty={penalty}", "--precision=bfloat16", "--batch_size=8"]
    _, metrics = shapes_of_a_step(config(f"--dataset={files(28, 1)}", *flags))
    assert {"d/penalty", "g/penalty"} <= set(metrics)
    assert {name: m.dtype for name, m in metrics.items()} == dict.fromkeys(metrics, jnp.float32)


@pytest.mark.parametrize(
    "flags,said",
    [
        (["--net=vgg"], "--net=vgg: must be one of biggan:N, "),
        (["--net=vgg:Net"], "an architecture cannot be imported (ModuleNotFoundError"),
        (["--net=lite:0"], "'lite:0': must be lite:N, N the channels"),
        (["--net=sngan:3"], "--net=sngan:3"),
        (["--net=lite/dcgan,spectral"], "the options are attention=SIZE"),
        (["--net=sngan,attention"], "the options are attention=SIZE"),
        (["--net=lite,norm=1"], "the options are attention=SIZE"),
        (["--net=vit:16,depth=0"], "'depth=0': must be a whole number from 1 to 4,096"),
        (["--net=vit:16,depth=1,depth=2"], "depth occurs twice"),
        (["--augment=bgc@"], "--augment=bgc@: '': must be a number A"),
        (["--condition=ucd="], "--condition=ucd=: '': must be a number A"),
        (["--lr=width:1e300:1e-3"], "W a width from 1 to 1e6"),
        (["--net=lite,kind"], "the options are attention=SIZE"),
        (["--net=lite:4,norm"], "--net=lite:4,norm: norm has no part in --condition=none"),
        (["--net=mlp/lite:4,norm", "--condition=acgan"], "norm has no part in lite as D"),
        (["--net=cnn,spectral/mlp"], "spectral has no part in cnn as G"),
        (["--net=mlp/sngan,spectral"], "spectral has no part in sngan as D"),
        (["--penalty=r3"], "'r3' is not a penalty"),
        (["--penalty=g.r1"], "'g.r1' is not a penalty"),
        (["--penalty=r1/0"], "the interval after / must be a whole number from 1 to 2147483647"),
        (["--penalty=r1=fast"], "--penalty=r1=fast"),
        (["--lr=cosine:1"], "--lr=cosine:1"),
        (["--lr=1e-3/x"], "--lr=1e-3/x"),
        (["--betas=0.5"], "--betas=0.5: must be two decays in [0, 0.99999]"),
        (["--betas=0.5,0.9,2"], "--betas=0.5,0.9,2: must be two decays"),
        (["--condition=acgan=x"], "--condition=acgan=x"),
        (
            ["--condition=projection=2"],
            "--condition=projection=2: must be none, concat, projection",
        ),
        (["--augment=blur"], "'blur' is not an augmentation"),
        (["--augment=bgc@ada:x"], "the TARGET of ada:TARGET must be a number in [-1, 1]"),
        (["--augment=bgc@ada:2"], "the TARGET of ada:TARGET must be a number in [-1, 1]"),
        (["--augment=bgc@2"], "A and B in [0.0, 1.0]"),
        (["--lr=1e-3/-1"], "A and B >= 0.0"),
        (["--betas=0,2"], "must be two decays in [0, 0.99999]"),
        (["--ema=linear:-1:0"], "A and B >= 0.0"),
        (["--penalty=clip=0"], "must be clip=BOUND, a number > 0"),
        (["--penalty=clip=linear:1:0"], "must be clip=BOUND, a number > 0"),
        (["--penalty=clip=0.01/5"], "every update is clipped"),
        (["--penalty=clip", "--rule=optimistic"], "--penalty=clip: the steps of --rule=optimistic"),
        (["--penalty=g.path_length_w=2"], "--net=lite has no mapping, stylegan2 has"),
        (["--penalty=wgan_gp=10", "--net=cnn"], "--penalty=wgan_gp: needs a D that takes each"),
        *(
            (
                ["--penalty=g.path_length=2/4", f"--net={net}/mlp"],
                f"a G that takes each example by itself; --net={net} has",
            )
            for net in ("lite", "dcgan", "cnn", "sngan", "biggan")
        ),
        (["--penalty=g.path_length", "--net=cnn,spectral"], "--penalty=g.path_length: needs a G"),
        (
            ["--one_pass", "--net=cnn"],
            "--one_pass=true: needs a D that takes each example by itself",
        ),
        (["--penalty=orthogonal", "--net=mlp/r3gan"], "--penalty=orthogonal: needs kernels that"),
        (["--penalty=g.orthogonal", "--net=r3gan/mlp"], "--net=r3gan are grouped"),
        (["--penalty=orthogonal", "--net=stylegan2"], "those of --net=stylegan2 are scaled"),
        (["--penalty=g.orthogonal", "--net=stylegan2"], "--penalty=g.orthogonal: needs kernels"),
        (["--accumulate=3"], "--accumulate=3: must divide --batch_size=64"),
        (["--rule=consensus", "--d_steps=2"], "--d_steps=2: must be 1 with --rule=consensus"),
        (["--preset=sngan-32", "--rule=consensus"], "--d_steps=5: must be 1 with"),
        (["--rule=consensus", "--accumulate=2"], "--accumulate=2: must be 1 with"),
        (["--penalty=r1=-1"], "A and B >= 0.0"),
        (["--condition=acgan=-1"], "A and B >= 0.0"),
        (["--loss=began"], "--loss=began"),
        (["--net=dcgan/autoencoder:4"], "an autoencoder as D"),
        (["--net=autoencoder", "--loss=began"], "autoencoder can be D only"),
        (["--net=biggan", "--dataset={30}"], "which must divide the image size 30x30"),
        (["--net=dcgan:4", "--dataset={30}"], "--net=dcgan:4: widths"),
        (["--net=sngan,attention=5"], "--net=sngan,attention=5: "),
        (["--net=vit,patch=5"], "patch=5: must divide the image size 28x28"),
        (["--net=vit,residual/mlp"], "needs latents of the 784 numbers of x, got 64"),
        (["--net=mlp/vit,residual"], "residual has no part in vit as D"),
        (["--condition=modulation"], "--condition=modulation: lite as D does not take labels so"),
        (["--truncation=1", "--latents=uniform:8"], "--truncation=1.0: --latents=uniform:8"),
    ],
)
def test_mistakes_are_named(files, flags, said):
    flags = [flag.replace("{30}", files(30, 1)) for flag in flags]
    with pytest.raises(UserError) as error:
        image_gan.build(config(f"--dataset={files(28, 1)}", *flags))
    message = cli.message_of(error.value)
    assert said in message and "\n" not in message


def test_the_default_is_the_recipe_for_a_cpu():
    """As the first line of its help says."""
    lite28, default = config("--preset=lite28"), config()
    differing = {f for f in vars(default) if getattr(default, f) != getattr(lite28, f)}
    assert differing == {"epochs", "log_every", "sample_every", "checkpoint_every"}


@pytest.mark.medium
def test_biggan_has_the_widths_of_studiogan(files):
    """Kang et al. 2023, ``big_resnet.py`` at 32 pixels: 4 x 96 channels in G's blocks, 2 x 96 in D's."""
    cfg = config("--preset=biggan-32", f"--dataset={files(32, 3)}")
    state = jax.eval_shape(image_gan.build(cfg).algorithm.init, jax.random.key(0))
    for params, width in ((state.players["g"].params, 384), (state.players["d"].params, 192)):
        blocks = [params[name] for name in params if name.startswith("block")]
        kernels = [leaf for leaf in jax.tree.leaves(blocks) if leaf.ndim == 4]
        assert {kernel.shape[3] for kernel in kernels} == {width}


@pytest.mark.medium
@pytest.mark.parametrize(
    "preset,images,share",
    [("r3-32", 20e6, 1.0), ("r3-28", 1.2e6, 1.0), ("biggan-32", 64_000, 1.0), ("lite28", 2e5, 0.5)],
)
def test_the_average_is_as_long_as_the_recipe_says(files, preset, images, share, monkeypatch):
    """Schedules of the half-life are their own ramp; a number is bounded by 5 % of the images seen."""
    lives = {
        "r3-32": 5e6,
        "r3-28": 5e5,
        "biggan-32": 64 * math.log(0.5) / math.log(0.9999),
        "lite28": 2e4,
    }
    found = []
    monkeypatch.setattr(
        image_gan.gan, "make", lambda *args, **options: found.append(options["ema_decay"])
    )
    size, channels = SIZES.get(preset, (32, 3))
    cfg = config(f"--preset={preset}", f"--dataset={files(size, channels)}")
    full = {"r3-28": 12e6, "r3-32": 200e6}.get(
        preset
    )  # of a dataset of 60 images, as of the real one
    cfg = dataclasses.replace(cfg, steps=round(full / cfg.batch_size) if full else cfg.steps)
    image_gan.build(cfg)
    decay = float(found[0](jnp.float32(images / cfg.batch_size)))
    np.testing.assert_allclose(
        cfg.batch_size * math.log(0.5) / math.log(decay), share * lives[preset], rtol=0.02
    )


def test_schedules_end_with_the_run_whatever_the_rule(files, monkeypatch):
    """An extragradient update counts twice in the optimizers' states."""
    found = []
    monkeypatch.setattr(
        image_gan.optim, "adam", lambda lr, *rest, **more: found.append(lr) or optax.sgd(lr)
    )
    flags = [f"--dataset={files(28, 1)}", "--net=mlp", "--steps=10", "--lr=linear:1:0"]
    for rule, count in (("none", 10), ("extragradient", 20)):
        image_gan.build(config(*flags, f"--rule={rule}"))
        for lr in found[-2:]:
            assert float(lr(count - 1)) == pytest.approx(1 / count) and float(lr(count)) == 0


def test_unlabeled_images_have_no_conditions(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((40, 28, 28, 1), np.uint8))
    with pytest.raises(UserError, match="condition=acgan: `dataset=.*` has no labels"):
        image_gan.build(config(f"--dataset=npz:{tmp_path / 'x.npz'}", "--condition=acgan"))


def run(*flags):
    return cli.run(
        image_gan.Config, image_gan.build, image_gan.PRESETS, [*flags, "--notensorboard"]
    )


def cut_short(whole, cut):
    """A copy of a run of eight steps, as it was after four."""
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "8")
    (cut / "result.json").unlink()


REMEMBERING = [
    "--preset=smoke", "--net=mlp", "--loss=hinge", "--condition=acgan", "--penalty=lecam=0.3+g.path_length=1/2",
    "--augment=blit@ada", "--ema=100+power:0.1,reload=3", "--steps=8", "--checkpoint_every=4",
]  # fmt: skip


@pytest.mark.medium
def test_what_is_remembered_survives_a_resume(tmp_path):
    """Four steps and four more are eight, bit for bit: LeCam, path length, the adaptive p, average and schedules."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # Schedules go by the end of the run, so the second run is as long and loses its last checkpoint.
    assert run(*REMEMBERING, f"--workdir={whole}") == 0
    cut_short(whole, cut)
    assert run(*REMEMBERING, f"--workdir={cut}") == 0
    a, b = (cli.restore(str(path), "newest") for path in (whole, cut))
    assert a.step == b.step == 8
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert set(a.state.memory) == {"penalty0", "g_penalty0", "augment"}
    assert a.state.memory["penalty0"]["count"] == 8


@pytest.mark.slow
def test_conditional_samples_are_evaluated_with_their_labels(files, tmp_path, monkeypatch):
    """In the proportions of the training data; class-FD and the accuracy of labels are there."""
    path = tmp_path / "run"
    flags = ["--preset=smoke", "--net=mlp", "--condition=projection", f"--workdir={path}"]
    assert run(*flags, f"--dataset={files(28, 1)}") == 0
    algorithm = cli.restore(str(path), "newest").experiment.algorithm
    labels = samples.draw_labels(algorithm, files(28, 1), 60, 0)
    counts = np.asarray(data.load(files(28, 1)).counts)
    np.testing.assert_allclose(np.bincount(labels) / 60, counts / counts.sum(), atol=1 / 60)
    plain, _ = samples.of_run(str(path), "newest", 300, 0)
    assert plain.turned.shape == (2000 // 3, 3, 28, 28, 1)  # the same latents under each label
    a, b = plain.turned[:, 0].astype(float), plain.turned[:, 1].astype(float)
    assert 0 < np.abs(a - b).mean() < np.abs(a - np.roll(b, 1, axis=0)).mean()
    batches, drawn = [], program._draw_batch
    monkeypatch.setattr(
        program,
        "_draw_batch",
        lambda sample, n, *rest: batches.append(n) or drawn(sample, n, *rest),
    )
    monkeypatch.setattr(samples, "TURNED", 30)
    cut, _ = samples.of_run(str(path), "newest", 300, 0, ["truncation=0.2"])
    assert batches == [500, 500, 10, 10, 10]  # no more under a label than are kept
    assert cut.x.std(0).mean() < 0.8 * plain.x.std(0).mean()
    assert cut.facts["flags"] == "truncation=0.2"
    for text, said in (
        ("net=lite", "flags=net=lite: cannot be changed in a run of image_gan; only "),
        ("truncation=-1", ">= 0"),
    ):
        with pytest.raises(UserError, match=said):
            samples.of_run(str(path), "newest", 300, 0, [text])
    out = tmp_path / "out"
    flags = [
        f"--run={path}",
        "--n=50",
        "--features=pixels",
        "--metrics=fd,class_fd",
        f"--workdir={out}",
    ]
    assert cli.run(evaluate.Config, evaluate.run, evaluate.PRESETS, flags) == 0
    rows = {
        row["metric"].partition("-pix")[0] for row in json.loads((out / "metrics.json").read_text())
    }
    assert {"FD", "class-FD"} <= rows


FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_recipe_for_a_cpu_learns(optimized, tmp_path):
    """T9: 400 steps of lite28 on Fashion-MNIST, FD in classifier features below 130; untrained it is near 400."""
    flags = ["--preset=lite28", f"--dataset=idx:{FASHION}", "--steps=400", "--eval_every=400"]
    assert run(*flags, "--sample_every=0", f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert 0 < found["test/FD"] < 130 and found["test/recall-k3"] > 0.1


MULTIPLE = "^batch_size=1[26]: must be a multiple of `accumulate=1?[16]` times the 8 devices"


@pytest.mark.parametrize(
    "flags,fits",
    [
        (["--batch_size=16", "--accumulate=16"], False),
        (["--batch_size=16", "--accumulate=2"], True),
        (["--batch_size=12", "--d_steps=2"], False),  # of the 24 rows of a step each device has 3
        (["--batch_size=4", "--accumulate=4"], True),  # on one device
    ],
)
def test_each_device_cuts_its_rows_into_micro_batches(files, flags, fits):
    cfg = config(f"--dataset={files(28, 1)}", "--net=mlp", *flags)
    assert jax.device_count() == 8
    expected = contextlib.nullcontext() if fits else pytest.raises(UserError, match=MULTIPLE)
    with expected:
        image_gan.build(cfg, axis_name="batch")


@pytest.mark.parametrize("loss", [name for name in LOSSES if not LOSSES[name].energy])
def test_adaptive_augmentation_needs_a_zero_that_the_loss_fixes(files, loss):
    """Refused wherever the loss does not balance at 0, and so wherever it does not feel a constant added to logits."""
    flags = [f"--dataset={files(28, 1)}", "--net=mlp", f"--loss={loss}"]
    if LOSSES[loss].balances_at_zero:
        assert not is_invariant(LOSSES[loss].d)
        image_gan.build(config(*flags, "--augment=bgc@ada"))
    else:
        with pytest.raises(UserError, match="augment=bgc@ada: .* must be one of minimax, "):
            image_gan.build(config(*flags, "--augment=bgc@ada"))
    image_gan.build(config(*flags, "--augment=bgc@0.5"))


def test_every_loss_is_offered():
    for name, loss in LOSSES.items():
        extra = ["--net=dcgan/autoencoder:4"] if loss.energy else []
        assert config("--preset=smoke", f"--loss={name}", *extra).loss.value is loss


# One file outside the package adds a network, a loss, and a penalty with memory.
MINE = '''
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bpgan.nets import Architecture, Network, Option, mlp
from bpgan.penalties import Regularizer
from bpgan.types import AdversarialLoss


class Critic(nn.Module):
    """x[b, ...] -> logits[b]"""

    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, labels=None, *, train=False):
        return nn.Dense(1, name="dense0")(jnp.tanh(x.reshape(x.shape[0], -1)))[:, 0]


class Painter(nn.Module):
    """z[b, z] -> x[b, h, w, c]"""

    shape: tuple
    axis_name: object = None

    @nn.compact
    def __call__(self, z, *, train=False):
        x = nn.Dense(int(np.prod(self.shape)), name="dense0")(z)
        return jnp.tanh(x).reshape(z.shape[0], *self.shape)


both = Architecture(
    Network(lambda shape, size, deep, **given: mlp.Generator(shape, (size,) * (1 + deep), **given),
            options={"deep": Option("LAYERS")}),
    Network(lambda shape, size, **given: mlp.Discriminator((size,), **given)),
    size=16,
)
quartic = AdversarialLoss(lambda r, f: (r - 1) ** 4 + f**4, lambda r, f: (f - 1) ** 2)


def remember(scene, memory):
    mean = 0.5 * memory + 0.5 * jnp.mean(jax.lax.stop_gradient(scene.logits[0]))
    return jnp.square(scene.critic(scene.real) - mean), mean


settle = Regularizer(remember, np.zeros((), np.float32))


def small(critic, real, fake, key):
    return jnp.square(critic(fake))
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "mine"
    sys.modules.pop("mine", None)


WRONG = """
import flax.linen as nn
from bpgan.nets.architecture import Architecture, Network


class Flat(nn.Module):
    shape: tuple

    @nn.compact
    def __call__(self, z, train=False):
        return nn.Dense(5)(z)


class Column(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(1)(x.reshape(len(x), -1))


class Deaf(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x


class Wide(nn.Module):
    width: int


nothing = Architecture(Network(lambda *args, **given: None))
"""


@pytest.mark.parametrize(
    "net,said",
    [
        (
            "wrong:Flat/lite:4",
            r"wrong:Flat: returned \[8, 5\], must return images, \[8, 28, 28, 1\]",
        ),
        (
            "lite:4/wrong:Column",
            r"returned \[8, 1\], must return one logit for each example, \[8\]",
        ),
        ("lite:4/wrong:Deaf", "wrong:Deaf: failed .TypeError: .* keyword argument 'train'"),
        ("lite:4/wrong:Wide", "wrong:Wide: failed .TypeError: .* argument: 'width'"),
        ("wrong:nothing/mlp", "wrong:nothing: built a NoneType, must build a Linen module or a"),
    ],
)
def test_mistakes_of_one_s_own_net_are_told_by_its_name(files, tmp_path, monkeypatch, net, said):
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(UserError, match=said):
            shapes_of_a_step(config(f"--dataset={files(28, 1)}", "--batch_size=8", f"--net={net}"))
    finally:
        sys.modules.pop("wrong", None)


@pytest.mark.medium
def test_one_s_own_code_needs_no_entry(files, mine):
    flags = [f"--dataset={files(28, 1)}", "--batch_size=8", "--loss=mine:quartic"]
    flags.append("--penalty=mine:settle=0.3/4+g.mine:small+mine:small=linear:1:0")
    cfg = config(*flags, "--net=mine:both:12,deep=2", "--condition=acgan")
    state, metrics = shapes_of_a_step(cfg)
    assert state.players["g"].params["dense2"]["kernel"].shape == (12, 12)
    assert {"d/penalty", "g/penalty"} <= set(metrics)
    state, _ = shapes_of_a_step(config(*flags, "--net=mine:Painter/mine:Critic"))
    assert jax.tree.leaves(state.memory)[0].shape == ()
    # Labels reach a D that knows nothing of them as channels.
    concat = config(*flags, "--net=lite:4/mine:Critic", "--condition=concat")
    state, _ = shapes_of_a_step(concat)
    assert state.players["d"].params["dense0"]["kernel"].shape == (28 * 28 * 4, 1)
    for more, said in (
        (["--net=lite:4/mine:Critic", "--condition=acgan"], "must be one of none, concat"),
        (["--net=mine:Painter/mlp", "--condition=acgan"], "mine:Painter as G .* must be none"),
        (["--net=mine:Painter"], "mine:Painter can be G only, as in mine:Painter/OTHER"),
        (["--net=mine:Critic/mlp"], "mine:Critic can be D only"),
        (["--net=mine:quartic/mlp"], "must be an Architecture or a class of Linen modules"),
        (["--net=mine:Painter/mlp", "--penalty=g.path_length"], "needs a G that takes each"),
        (["--augment=bgc@ada"], "which means nothing with `loss=mine:quartic`"),
    ):
        with pytest.raises(UserError, match=said):
            image_gan.build(config(*flags, *more))


def test_entries_that_are_added_while_it_runs_are_seen(mine, monkeypatch):
    from bpgan.nets import ARCHITECTURES
    from bpgan.penalties import PENALTIES

    module = importlib.import_module(mine)
    for table, entry in (
        (LOSSES, module.quartic), (PENALTIES, module.settle), (ARCHITECTURES, module.both)
    ):  # fmt: skip
        monkeypatch.setitem(table, "added", entry)
    cfg = config("--net=added:8", "--loss=added", "--penalty=added=2")
    assert cfg.net.value.g.size == 8 and cfg.loss.value is module.quartic
    text = cli.help_text(image_gan.Config, image_gan.PRESETS, image_gan)
    text = " ".join(text.partition("Flags of this experiment:")[2].split())
    for flag, name in (
        ("loss", "began, added"),
        ("penalty", "orthogonal, added"),
        ("net", "added:N"),
    ):
        start = text.index(f"--{flag}=")
        assert name in text[start : start + 800]
    for flag in ("--loss=adde", "--net=adde"):
        with pytest.raises(UserError, match="must be one of .*did you mean added"):
            config(flag)


@pytest.mark.medium
def test_one_s_own_penalty_with_memory_survives_a_resume(mine, tmp_path):
    flags = [
        "--preset=smoke",
        "--net=mine:Painter/mine:Critic",
        "--loss=mine:quartic",
        "--penalty=mine:settle=0.1",
    ]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(*flags, f"--workdir={whole}") == 0
    cut_short(whole, cut)
    assert run(*flags, f"--workdir={cut}") == 0
    a, b = (cli.restore(str(path), "newest", trust=True) for path in (whole, cut))
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
