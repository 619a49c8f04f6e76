"""The experiment ``translate``: what it refuses, and short runs of every system."""

import json

import jax
import numpy as np
import pytest

import bpgan
from bpgan import cli
from bpgan.types import UserError
from experiments import translate

SMOKE = ["--preset=smoke", "--notensorboard"]


def train(*flags):
    return cli.run(translate.Config, translate.build, translate.PRESETS, [*SMOKE, *flags])


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--dataset_a=mnist10k"], "--dataset_b=: is needed beside --dataset_a"),
        (["--dataset_a=mnist10k", "--dataset_b=mnist10k"], "--dataset_a=mnist10k: --system=pix2pix learns from pairs"),
        (["--task="], "--dataset=mnist10k: has no pairs; with a --task they are made of it"),
        (
            ["--task=", "--system=cyclegan"],
            "--task=: must be a task, unless --dataset_a and --dataset_b are the two domains",
        ),
        (["--task=paint"], "--task=paint: must be one of edges"),
        (["--task=downscale:5"], "--task=downscale:5: 5 does not divide"),
        (["--system=cyclegan", "--loss=none"], "--loss=none: --system=cyclegan learns by it"),
        (["--system=cut", "--task=invert"], "--net=unet:4/patch:4: cut looks into a translator of residual blocks"),
        (["--net=unet:4,levels=3/patch:4"], "which must divide the image size 28x28"),
        (["--net=unet:4/patch:4,strided=5"], "exceeds the image"),
        (["--net=unet:4"], "--net=unet:4: must be G/D"),
        (["--net=vit:4/patch:4"], "vit:4: must be unet:SIZE or resnet:SIZE"),
        (["--net=unet:4,blocks=3/patch:4"], "blocks=3: must be one of levels=, dropout=, norm="),
        (["--net=unet:4,dropout=1/patch:4"], "dropout=1: must be in [0, 1)"),
        (["--net=unet:4/patch:4,norm=layer"], "norm=layer: must be one of instance, batch, none"),
        (["--penalty=g.path_length=1"], "--penalty=g.path_length=1: g.path_length: must be of D"),
        (["--loss=began"], "--loss=began: needs a D that is an autoencoder"),
        (["--penalty=zcr=1"], "--penalty=zcr=1: "),
        (["--penalty=r1=1", "--net=unet:4/patch:4,norm=batch"], "--penalty=r1=1: r1 needs a D that takes each example"),
        (["--dataset=pairs:/nowhere,/nothing", "--task="], "/nowhere"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, capsys, flags, reason):
    assert train(*flags, f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1 and error.startswith("error: ")


@pytest.mark.medium
def test_pairs_are_translated_and_measured(tmp_path, short_fusions):
    """A run that is resumed ends as one that is not, with the same numbers; its translator takes any images."""
    assert train("--task=half", f"--workdir={tmp_path / 'whole'}") == 0
    assert train("--task=half", "--steps=2", f"--workdir={tmp_path / 'run'}") == 0
    assert train("--task=half", f"--workdir={tmp_path / 'run'}") == 0
    whole, run = (bpgan.load(tmp_path / name) for name in ("whole", "run"))
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(run.state), strict=True):
        np.testing.assert_array_equal(a, b)
    metrics = [json.loads((tmp_path / n / "result.json").read_text())["metrics"] for n in ("whole", "run")]  # fmt: skip
    tested = {name: value for name, value in metrics[0].items() if name.startswith("test/")}
    assert tested.items() <= metrics[1].items()
    assert {"test/l1", "test/l1/ridge", "test/ssim/identity"} <= set(tested)
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 1
    a, seeds = np.zeros((3, 28, 28, 1), np.float32), jax.random.bits(jax.random.key(0), (3, 2), "uint32")  # fmt: skip
    b = run.networks["translator"](a, seeds)
    assert b.shape == (3, 28, 28, 1) and np.ptp(np.asarray(b), axis=0).max() > 0  # by noise alone
    with pytest.raises(
        UserError, match="made of test images, and the run is loaded without its data"
    ):
        run.sample(5, seed=1)


@pytest.mark.medium
@pytest.mark.parametrize(
    "system, net",
    [
        ("cyclegan", "unet:4/patch:4"),
        pytest.param("cut", "resnet:4,blocks=2/patch:4", marks=pytest.mark.slow),
    ],
)
def test_domains_are_translated_and_measured(tmp_path, short_fusions, system, net):
    flags = [f"--system={system}", "--task=invert", f"--net={net}", "--steps=2"]
    assert train(*flags, f"--workdir={tmp_path / 'run'}") == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert {"test/l1", "test/moved"} <= set(metrics)
    assert ("test/cycle_a" in metrics) == (system == "cyclegan")
    run = bpgan.load(tmp_path / "run")
    assert set(run.networks) == {"translator", "back"} - ({"back"} if system == "cut" else set())
    pictures = len(list((tmp_path / "run" / "pictures").glob("*.png")))
    assert pictures == (3 if system == "cyclegan" else 1)


@pytest.mark.slow
def test_sides_differ_in_size_and_channels(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (40, 8, 12, 3), np.uint8)
    np.savez(tmp_path / "small.npz", x=small)
    domains = ["--dataset_a=mnist10k", f"--dataset_b=npz:{tmp_path / 'small.npz'}"]
    flags = ["--system=cyclegan", "--task=", *domains, "--steps=2"]
    assert train(*flags, f"--workdir={tmp_path / 'domains'}") == 0
    for i, flags in enumerate(
        (["--task=downscale:4", "--loss=none"], ["--task=gray", "--distance=l2"])
    ):
        assert train(*flags, "--steps=2", f"--workdir={tmp_path / str(i)}") == 0
