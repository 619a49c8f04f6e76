"""The experiment ``flow_gan``: what it refuses, short runs of every method, and samples in few or many evaluations."""

import json

import jax
import numpy as np
import pytest

import bpgan
from bpgan import cli
from bpgan.types import UserError
from experiments import evaluate, flow_gan, sample

SMOKE = ["--preset=smoke", "--notensorboard"]
ADVERSARIAL, CONTINUOUS = "--method=adversarial", "--method=continuous"


def train(*flags):
    return cli.run(flow_gan.Config, flow_gan.build, flow_gan.PRESETS, [*SMOKE, *flags])


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--net=lite:4"], "--net=lite:4: lite takes no times; G must be one of silu, unet, vit"),
        ([ADVERSARIAL, "--net=unet:4/r3gan"], "--net=unet:4/r3gan: r3gan takes no times; D must be one of silu,"),
        (["--net=unet:4,patch=3"], "--net=unet:4,patch=3: patch=3: must divide the image size 28x28 (samples are"),
        (["--method=flow"], "--method=flow: must be one of match, adversarial, continuous"),
        (["--sampler=heun:3"], "--sampler=heun:3: must be euler:N, or heun:N with an even N"),
        ([ADVERSARIAL, "--sampler=heun:4"], "--sampler=heun:4: goes by velocities, and G of --method=adversarial"),
        ([ADVERSARIAL, "--jumps=4"], "--sampler=euler:2: must be euler:4, as many as --jumps=4"),
        ([ADVERSARIAL, "--jumps=0"], "--jumps=0: must be any, or a number of steps"),
        ([CONTINUOUS, "--jumps=any,paired"], "--jumps=any,paired: --method=continuous needs noise and data"),
        ([CONTINUOUS, "--net=unet:4/vit:8"], "which must be smooth; D must be one of silu, unet, vit,rms"),
        ([CONTINUOUS, "--penalty=r1=1"], "--penalty=r1=1: r1: --method=continuous has centering and g.transport"),
        ([CONTINUOUS, "--penalty=centering=1/2"], "centering: --method=continuous has centering and g.transport"),
        ([ADVERSARIAL, "--penalty=clip=1"], "--penalty=clip=1: clip: has no part in a flow"),
        ([ADVERSARIAL, "--penalty=orthogonal=1"], "orthogonal: must have a value for each example"),
        ([ADVERSARIAL, "--penalty=r1_fd=1", "--precision=bfloat16"], "steps of 0.01 are rounded away by"),
        (["--times=normal:0"], "--times=normal:0: must be uniform, or normal:MEAN:STD"),
        (["--accumulate=3"], "--batch_size=16: must be a multiple of --accumulate=3"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, capsys, flags, reason):
    assert train(*flags, f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1 and error.startswith("error: ")


def test_flags_without_a_part_are_named():
    found = {}
    for method in flow_gan.PENALTIES:
        cfg = cli.resolve(flow_gan.Config, flow_gan.PRESETS, [*SMOKE, f"--method={method}"])
        found[method] = set(cfg.idle())
    assert found["match"] >= {"loss", "penalty", "jumps", "d_steps", "warmup"}
    assert found["adversarial"] == {"times", "warmup"} and found["continuous"] == {"loss", "jumps"}


def drawn(path, **flags):
    given = [f"{name}={value}" for name, value in flags.items()]
    return bpgan.load(path, flags=given).sample(3, floats=True)


@pytest.mark.medium
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("--net=unet:4,patch=2",), marks=pytest.mark.slow),
        (ADVERSARIAL, "--labels", "--loss=relativistic,normalized", "--d_steps=2"),
        (CONTINUOUS, "--warmup=0.5", "--d_steps=2", "--penalty=centering=0.01+g.transport=0.1"),
    ],
    ids=" ".join,
)
def test_a_resumed_run_is_the_same_and_draws_in_any_number_of_steps(tmp_path, short_fusions, flags):
    assert train(*flags, f"--workdir={tmp_path / 'whole'}") == 0
    assert train(*flags, "--pause_at=0.5", f"--workdir={tmp_path / 'run'}") == 0
    assert train(*flags, f"--workdir={tmp_path / 'run'}") == 0
    whole, run = (bpgan.load(tmp_path / name) for name in ("whole", "run"))
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(run.state), strict=True):
        np.testing.assert_array_equal(a, b)
    found = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert found["transport"] > 0.99 * found["transport/known"] > 0
    samples = [drawn(tmp_path / "run", sampler=f"euler:{n}") for n in (1, 2)]
    np.testing.assert_array_equal(samples[1], drawn(tmp_path / "run"))
    assert np.any(samples[0] != samples[1]) and samples[0].shape == (3, 28, 28, 1)
    with pytest.raises(UserError, match="sampler=heun"):
        drawn(tmp_path / "run", sampler="heun:3")


@pytest.mark.medium
def test_samples_and_numbers_say_in_how_many_evaluations(tmp_path, short_fusions):
    run = tmp_path / "run"
    assert train(f"--workdir={run}") == 0
    flags = [f"--run={run}", "--flags=sampler=euler:3", f"--workdir={tmp_path / 'out'}"]
    few = ["--seeds=0:4", "--nofiles"]
    assert cli.run(sample.Config, sample.run, sample.PRESETS, [*flags, *few]) == 0
    (grid,) = (tmp_path / "out").glob("*.png")
    assert "sampler=euler-3" in grid.name
    measured = ["--metrics=fd", "--features=pixels", "--n=20"]
    assert cli.run(evaluate.Config, evaluate.run, evaluate.PRESETS, [*flags, *measured]) == 0
    rows = json.loads((run / "metrics.json").read_text())
    assert rows[0]["flags"] == "sampler=euler:3"


@pytest.mark.medium
def test_what_is_no_image_is_not_evaluated(tmp_path, capsys, short_fusions):
    small = ["--net=silu:4", "--batch_size=8", "--sampler=heun:2"]
    assert train("--problem=gauss1d", *small, f"--workdir={tmp_path / 'run'}") == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert found["std/known"] == 0.5 and found["map_error"] > 0
    assert (tmp_path / "run" / "report.html").exists()
    capsys.readouterr()
    argv = [f"--run={tmp_path / 'run'}", "--metrics=fd", f"--workdir={tmp_path / 'out'}"]
    assert cli.run(evaluate.Config, evaluate.run, evaluate.PRESETS, argv) == 2
    assert "must be of a model of images, and is of flow_gan" in capsys.readouterr().err
