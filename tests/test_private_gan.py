"""The private experiment: what it refuses, what it keeps secret, and that a killed run goes on to the bit."""

import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from bpgan import cli
from bpgan.data import poisson
from bpgan.privacy import accounting, mechanism
from bpgan.runtime import records, secret
from bpgan.runtime.checkpoint import Checkpoints, Keep
from bpgan.runtime.program import abstract_carry
from bpgan.types import UserError
from experiments import private_gan

pytestmark = pytest.mark.usefixtures("no_curves")


def config(*flags):
    return cli.resolve(private_gan.Config, private_gan.PRESETS, ["--preset=smoke", *flags])


@pytest.mark.parametrize(
    "flags,reason",
    [
        (["--loss=relativistic"], "--loss=relativistic: G's loss looks at D's logits of reals"),
        (["--loss=relativistic_average"], "D's loss of one record depends on other records"),
        (["--loss=began"], "D's loss of one record depends on other records"),
        (["--net=mlp/cnn"], "--net=mlp/cnn: batch norm in D mixes the records"),
        (["--net=dcgan:4/mlp"], "batch norm in G would bring the label of one record"),
        (["--net=mlp/cnn,spectral"], "D keeps .* beside its parameters"),
        (["--condition=d2d"], "--condition=d2d: compares the records of a batch"),
        (["--augment=bgc@ada"], "ada follows D's logits of reals"),
        (["--penalty=lecam=0.1"], "--penalty=lecam: depends on several records at once"),
        (["--penalty=dragan=1"], "--penalty=dragan: depends on several records at once"),
        (["--penalty=r1=1/4"], "--penalty=r1: must enter every update"),
        (["--adaptive=0.6", "--loss=wasserstein"], "--adaptive=0.6: needs a loss with logits about"),
        (["--rule=simultaneous"], "--rule=simultaneous: moves both players"),
        (["--accumulate=2"], "--accumulate=2: must be 1"),
        (["--eval_every=4"], "--eval_every=4: the log would tell"),
        (["--init_from=runs/a"], "--init_from=runs/a: what the other run has learned"),
        (["--epsilon=0"], "--noise_multiplier=auto: auto takes the noise"),
        (["--batch_size=9001"], "--batch_size=9001: must be at least 1 and at most 9,000 records"),
    ],
)  # fmt: skip
def test_what_would_break_the_guarantee_is_refused(flags, reason):
    with pytest.raises(UserError) as error:
        private_gan.build(config(*flags))
    assert re.search(reason, cli.message_of(error.value)), cli.message_of(error.value)


@pytest.mark.parametrize(
    "flags", [["--clip=0"], ["--delta=0"], ["--noise_multiplier=-1"], ["--views=0"]]
)
def test_numbers_out_of_bounds_are_refused(flags):
    with pytest.raises(UserError, match=flags[0].strip("-").partition("=")[0]):
        config(*flags)


@pytest.mark.medium
@pytest.mark.parametrize("preset", private_gan.PRESETS)
def test_presets_are_sound(preset):
    cfg = cli.resolve(private_gan.Config, private_gan.PRESETS, [f"--preset={preset}"])
    built = private_gan.build(cfg)
    state = jax.eval_shape(built.algorithm.init, jax.random.key(0))
    batch = jax.eval_shape(built.source.batch_at, built.source.data, np.int32(0))
    jax.eval_shape(built.algorithm.step, state, batch, jax.random.key(0))


@pytest.mark.medium
@pytest.mark.parametrize(
    "flags",
    [
        ["--condition=none", "--net=dcgan:4/mlp"],
        ["--penalty=r1=0.1+wgan_gp=1", "--condition=projection"],
        ["--views=2", "--augment=diffaugment", "--flip"],
        ["--condition=acgan", "--adaptive=0.6", "--loss=hinge"],
    ],
)
def test_what_keeps_it_is_built(flags):
    built = private_gan.build(config(*flags))
    state = jax.eval_shape(built.algorithm.init, jax.random.key(0))
    batch = jax.eval_shape(built.source.batch_at, built.source.data, np.int32(0))
    jax.eval_shape(built.algorithm.step, state, batch, jax.random.key(0))


def test_seeds_are_runs_of_their_own():
    """Each has a key of its own, so they cannot be one program."""
    assert not cli.flags_of(private_gan.Config)["seed"].sweepable
    assert cli.flags_of(cli.RunConfig)["seed"].sweepable


# The directory ------------------------------------------------------------------------------------------------------


def settled(path, *flags):
    path.mkdir(exist_ok=True)
    return private_gan.build(config("--noise_multiplier=2", "--epsilon=0", *flags)).settle(path)


def test_the_key_is_secret_and_kept(tmp_path, capsys):
    _, source = settled(tmp_path)
    file = tmp_path / secret.FILE
    raw = file.read_bytes()
    assert len(raw) == 32 and stat.S_IMODE(file.stat().st_mode) == 0o600
    again = settled(tmp_path)[1]
    np.testing.assert_array_equal(source.data["secret"], again.data["secret"])
    np.testing.assert_array_equal(source.data["secret"], secret.words(raw))
    terms = (tmp_path / secret.TERMS).read_text()
    said = capsys.readouterr().out + terms
    for word in (raw.hex(), *map(str, secret.words(raw))):
        assert word not in said
    assert records.read_terms(tmp_path / secret.TERMS).guarantee
    other = settled(tmp_path / "other")[1]
    assert not np.array_equal(source.data["secret"], other.data["secret"])


def test_a_known_key_guarantees_nothing(tmp_path, capsys):
    settled(tmp_path, "--secret_seed=3")
    assert not (tmp_path / secret.FILE).exists()
    assert not records.read_terms(tmp_path / secret.TERMS).guarantee
    assert "guarantees no privacy: its key is known" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags,reason",
    [
        (["--noise_multiplier=1"], "noise multiplier 2.0, not 1.0"),
        (["--clip=2"], "clip 1.0, not 2.0"),
        (["--batch_size=17"], "q 0.00177"),
        (["--delta=1e-6"], "delta 1e-05, not 1e-06"),
        (["--secret_seed=1"], "guarantee True, not False"),
    ],
)
def test_a_run_keeps_the_terms_of_its_first_start(tmp_path, flags, reason):
    settled(tmp_path)
    with pytest.raises(UserError, match=reason):
        settled(tmp_path, *flags)


def test_other_data_are_refused(tmp_path):
    settled(tmp_path)
    file = tmp_path / secret.TERMS
    terms = json.loads(file.read_text())
    file.write_text(json.dumps(terms | {"data": "0" * 64}))
    with pytest.raises(UserError, match="begun with data 0000"):
        settled(tmp_path)


@pytest.mark.parametrize("gone", [secret.FILE, secret.TERMS])
def test_a_saved_run_does_not_go_on_without(tmp_path, gone):
    settled(tmp_path)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match="is gone"):
        settled(tmp_path)


def test_a_damaged_key_is_refused(tmp_path):
    settled(tmp_path)
    (tmp_path / secret.FILE).write_bytes(b"short")
    with pytest.raises(UserError, match="is damaged"):
        settled(tmp_path)


def test_a_run_is_not_longer_than_its_epsilon_allows(tmp_path, monkeypatch):
    """The noise is that of the first start, however many steps are asked for later."""
    asked = []

    def most(of, epsilon):
        asked.append((of.noise_multiplier, of.q, epsilon))
        return 4321

    monkeypatch.setattr(accounting, "most_updates", most)
    flags = ["--noise_multiplier=0.6", "--epsilon=8", "--batch_size=90"]

    def settle(steps):
        return private_gan.build(config(*flags, f"--steps={steps}")).settle(tmp_path)

    settle(20)
    assert not asked
    with pytest.raises(UserError, match=r"is spent after 4,321 steps; must be at most 4321"):
        settle(10**6)
    assert asked == [(0.6, 0.01, 8.0)]


@pytest.mark.parametrize("delta", ["1.2e-4"])
def test_a_delta_of_one_record_is_refused(tmp_path, delta):
    with pytest.raises(UserError, match="1/9000"):
        settled(tmp_path, f"--delta={delta}")


# Whole runs ---------------------------------------------------------------------------------------------------------

FLAGS = [
    "--noise_multiplier=1.5", "--steps=60", "--log_every=5", "--checkpoint_every=5", "--sample_every=0",
    "--tensorboard=false",
]  # fmt: skip


def command(workdir, *flags):
    program = [sys.executable, "-m", "experiments.private_gan", "--preset=smoke"]
    return [*program, *FLAGS, f"--workdir={workdir}", *flags]


def state_of(workdir):
    built = private_gan.build(config(*FLAGS))
    abstract = abstract_carry(built.algorithm, built.source)
    run = records.read_run(workdir / "config.json")
    checkpoints = Checkpoints(workdir / "checkpoints", run=run.run, keep=Keep(1), read_only=True)
    return checkpoints.restore(abstract)[1].state


@pytest.mark.medium
def test_a_killed_run_goes_on_to_the_bit(tmp_path, trees_equal):
    """Noise, inclusion and epsilon after kill -9 are those of the run that was left alone; also read from disk."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)
    killed.mkdir()
    for name in (secret.FILE, secret.TERMS):  # the same secret, which is drawn anew elsewhere
        shutil.copy2(whole / name, killed / name)
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL)
    while not records.has_checkpoint(killed) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command(killed, "--feed=stream"), check=True, capture_output=True)
    trees_equal(*map(state_of, (whole, killed)))
    a, b = (records.read_result(path / "result.json") for path in (whole, killed))
    assert a.privacy == b.privacy and a.privacy["updates"] == 60
    logs = [records.read_log(path / "metrics.jsonl") for path in (whole, killed)]
    alike = [[{k: v for k, v in x.items() if "time/" not in k} for x in log] for log in logs]
    assert alike[0] == alike[1]
    check_a_whole_run(whole)


def check_a_whole_run(path: pathlib.Path) -> None:
    """What it says of its privacy, and of nothing private."""
    state, result = state_of(path), records.read_result(path / "result.json")
    assert mechanism.updates_of(state) == 60
    spent, updates = accounting.from_record(result.privacy)
    assert updates == 60 and spent.q == 16 / 9000 and spent.noise_multiplier == 1.5
    found = accounting.epsilon(spent, 60)
    assert result.privacy["epsilon_rdp"] == found.rdp and result.privacy["epsilon"] == found.epsilon
    assert result.privacy["guarantee"] and 0 < result.privacy["failure"] <= poisson.FAILURE
    lines = records.read_log(path / "metrics.jsonl")
    for line in lines:
        assert line["epsilon_rdp"] == accounting.epsilon_rdp(spent, line["step"])
        of_d = {name for name in line if name.startswith("d/")}
        assert of_d == {"d/grad_norm"}
    raw = (path / secret.FILE).read_bytes()
    for file in path.rglob("*"):
        if file.is_file() and file.name != secret.FILE:
            content = file.read_bytes()
            assert raw not in content and secret.words(raw).tobytes() not in content
            assert raw.hex().encode() not in content


@pytest.mark.medium
def test_an_overflow_ends_the_run(tmp_path, monkeypatch, capsys):
    """In words, before anything more is saved."""
    monkeypatch.setattr(poisson, "capacity", lambda *_: 8)
    monkeypatch.setattr(poisson, "buffer_failure", lambda *_: 1e-9)
    flags = ["--preset=smoke", "--noise_multiplier=2", "--batch_size=64", "--tensorboard=false"]
    flags += ["--sample_every=0", f"--workdir={tmp_path / 'run'}"]
    code = cli.run(private_gan.Config, private_gan.build, private_gan.PRESETS, flags)
    assert code == cli.ANOMALY
    assert "more records than a batch has rows for were drawn at once" in capsys.readouterr().err
    assert not records.has_checkpoint(tmp_path / "run")
