"""Damages to any file of a run directory or data cache: no tracebacks, and no number changes in silence."""

import collections
import contextlib
import importlib
import shutil
import traceback

import jax
import numpy as np
import pytest
from checks import damage, harness
from PIL import Image

from bpgan import cli, data
from bpgan.launcher import main as launch
from bpgan.types import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.filterwarnings("ignore")]

RUNS = {
    "linear_regression": [
        "--preset=smoke",
        "--epochs=40",
        "--checkpoint_every=10ep",
        "--keep=3,min:loss",
    ],
    "mnist_gan": [
        "--preset=smoke",
        "--net=mlp",
        "--steps=8",
        "--checkpoint_every=2",
        "--keep=3,min:d/loss",
    ],
}


def repeat(name, workdir):
    """The same command again, in this process; its exit code."""
    module = importlib.import_module(f"experiments.{name}")
    argv = [*RUNS[name], f"--workdir={workdir}"]
    return cli.run(module.Config, module.build, module.PRESETS, argv)


def outcome(run):
    """The state of a run at its end, bit for bit, and its log."""
    found = cli.restore(run)
    leaves = map(np.asarray, jax.tree.leaves(found.state))
    return [(x.dtype, x.shape, x.tobytes()) for x in leaves], harness.logged(run)


@pytest.mark.parametrize("name", RUNS)
def test_run_directory(name, tmp_path, capfd, no_curves):
    """The same command, a report, a comparison and the restored state, after each damage."""
    assert repeat(name, tmp_path / "sound") == 0
    total, expected = 400, outcome(tmp_path / "sound")
    ends, faults = collections.Counter(), []
    for seed in range(total):
        rng, run = np.random.default_rng(seed), tmp_path / "runs" / "run"
        shutil.copytree(tmp_path / "sound", run)
        what = damage.strike(run, rng)
        capfd.readouterr()
        try:
            with contextlib.suppress(UserError):
                if rng.random() < 0.5:
                    launch.run([f"--report={run.parent}"])
                elif rng.random() < 0.3:
                    cli.restore(run)
            code = repeat(name, run)
            out, err = capfd.readouterr()
            ends[code] += 1
            if code == 0:
                state, log = outcome(run)
                if state != expected[0]:
                    faults.append(f"{seed} {what}: another state")
                elif log != expected[1] and "warning: " not in out + err:
                    faults.append(f"{seed} {what}: the log changed in silence")
            elif code != 2 or err.count("error: ") != 1:
                faults.append(f"{seed} {what}: code {code}, said {err!r}")
        except (Exception, SystemExit) as error:
            faults.append(f"{seed} {what}: {error!r} {traceback.format_exc().splitlines()[-3:]}")
        shutil.rmtree(tmp_path / "runs")
    capfd.readouterr()
    with capfd.disabled():
        print(f"\n{name}: {total} damages, exit codes {dict(ends)}, {len(faults)} faults")
        for fault in faults:
            print(" ", fault)
    assert not faults


def test_data_cache(tmp_path, monkeypatch, capfd):
    """Rebuilt or refused, and never other pixels."""
    rng = np.random.default_rng(0)
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "cache"))
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    spec = f"folder:{tmp_path / 'images'}"

    def read():
        x, y = data.load(spec).arrays()
        return x.tobytes() + y.tobytes()

    sound = read()
    shutil.copytree(tmp_path / "cache", tmp_path / "kept")
    faults, total = [], 300
    for seed in range(total):
        what = damage.strike(tmp_path / "cache", np.random.default_rng(seed))
        try:
            if read() != sound:
                faults.append(f"{seed} {what}: other pixels")
        except UserError:
            pass
        except Exception as error:
            faults.append(f"{seed} {what}: {error!r} {traceback.format_exc().splitlines()[-3:]}")
        shutil.rmtree(tmp_path / "cache")
        shutil.copytree(tmp_path / "kept", tmp_path / "cache")
    capfd.readouterr()
    with capfd.disabled():
        print(f"\ndata cache: {total} damages, {len(faults)} faults", *faults, sep="\n  ")
    assert not faults
