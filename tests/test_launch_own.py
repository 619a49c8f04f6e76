"""An experiment of a user's own, in a file or package outside the project: launched in every way.

What it trains has a closed form: one number goes to its target by gradient descent, ``w_n = b + (a - b) (1 - lr)^n``.
"""

import csv
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from bpgan import cli
from bpgan.launcher import main as launch
from bpgan.types import UserError

ROOT = pathlib.Path(__file__).parent.parent

OWN = '''
"""A number that goes to its target."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bpgan import cli, data
from bpgan.types import Algorithm
from helping import middle


class State(NamedTuple):
    step: Any
    w: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    lr: float = cli.field(0.1, "step size", low=0, exclusive_low=True, sweepable=True)
    ends: str = cli.field("0,1", "where it begins, and its target")
    batch_size: int = 4
    steps: int = 8


PRESETS = {"far": dict(ends="0,100")}


def build(cfg, axis_name=None):
    first, target = map(float, cfg.ends.split(","))

    def init(key):
        return State(jnp.int32(0), jnp.float32(first))

    def step(state, batch, key):
        gradient = state.w - middle(batch["x"])
        return State(state.step + 1, state.w - cfg.lr * gradient), {"loss": gradient**2 / 2}

    x = np.full((16, 1), target, np.float32)
    source = data.in_memory(
        x, np.zeros(16, np.int32), seed=cfg.seed, batch_size=cfg.batch_size, dtype=jnp.float32,
        fingerprint=data.fingerprint_of("own", x),
    )
    return cli.Experiment(Algorithm(init, step), source, lambda state: {"w": float(state.w)})


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
'''
HELPING = "import jax.numpy as jnp\n\ndef middle(x):\n    return jnp.mean(x)\n"
FLAGS = ["--log_every=2", "--tensorboard=false", "--checkpoint_every=0"]


def expected(lr, first, target, steps):
    return target + (first - target) * (1 - lr) ** steps


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A folder with the same experiment as a file and in a package, and with modules whose names are ours."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "my_gan.py").write_text(OWN)
    (folder / "helping.py").write_text(HELPING)
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "my_gan.py").write_text(OWN.replace("from helping", "from .helping"))
    (folder / "my_package" / "helping.py").write_text(HELPING)
    for name in ("experiments", "launch", "runs", "flags"):
        (folder / f"{name}.py").write_text("raise ImportError('not this one')")
    return folder


def launched(folder, *argv, code=0, **environment):
    """What the launcher prints, as it is started in a folder."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *argv], cwd=folder, env=kept | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def table(root):
    (file,) = (root / "my_gan").glob("sweep_*.csv")
    return list(csv.DictReader(file.read_text().splitlines()))


def check_table(root, steps):
    for row in table(root):
        assert (row["status"], row["step"]) == ("done", str(steps))
        wanted = expected(float(row["lr"]), *map(float, row["ends"].split(",")), steps)
        assert float(row["w"]) == pytest.approx(wanted, rel=1e-5)


WAYS = pytest.mark.parametrize("way", ["file", pytest.param("module", marks=pytest.mark.slow)])


def named(way, code):
    """The flag, and the name that is the same from everywhere."""
    if way == "module":
        return "--experiment=my_package.my_gan", "my_package.my_gan"
    return "--experiment=my_gan.py", str(code / "my_gan.py")


@pytest.mark.medium
@WAYS
def test_it_is_swept_as_groups_resumed_compared_and_restored(code, tmp_path, way):
    flag, name = named(way, code)
    argv = [flag, *FLAGS, "--sweep=lr=0.1,0.2", "--sweep=ends='0,1','3,2.5'", f"--root={tmp_path}",
            "--jobs=1"]  # fmt: skip
    said = launched(code, *argv)
    assert said.count("2 runs, lr=0.1 ends=") == 4  # two groups start and end
    check_table(tmp_path, 8)
    assert len(table(tmp_path)) == 4
    # Longer: each resumes where it was, in the groups it was in; and again: nothing is left to do.
    launched(code, *argv, "--steps=20")
    check_table(tmp_path, 20)
    logs = [log.read_text() for log in (tmp_path / "my_gan").glob("group_*.log")]
    assert len(logs) == 2 and all("resuming at step 8" in log for log in logs)
    assert "all 4 runs are done" in launched(code, *argv, "--steps=20")
    said = launched(tmp_path, f"--report={tmp_path}", "--report_metric=loss")
    assert "4 settings" in said and (tmp_path / "comparison.html").exists()
    for workdir in (tmp_path / "my_gan").glob("lr=*/"):
        assert json.loads((workdir / "config.json").read_text())["experiment"] == name
        where = code if way == "module" else tmp_path  # a module is looked for, a file is known
        restore = f"from bpgan import cli; print(cli.restore({str(workdir)!r}, trust=True).step)"
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{where}"}
        done = subprocess.run(
            [sys.executable, "-c", restore], cwd=tmp_path, env=environment, text=True, capture_output=True
        )  # fmt: skip
        assert done.stdout == "20\n", done.stderr


@pytest.mark.slow
def test_it_is_searched(code, tmp_path):
    argv = ["--experiment=my_gan.py", *FLAGS, "--steps=9", f"--root={tmp_path}", "--vectorize=off"]
    halving = ["--sweep=lr=0.1,0.2,0.5", "--search=halving", "--aim=min:loss"]
    assert "best: lr=0.5, loss" in launched(code, *argv, *halving)
    pytest.importorskip("optuna")
    tpe = ["--sweep=ends=choice:'0,1','0,5'", "--samples=3", "--search=tpe", "--aim=max:loss"]
    assert "best so far: ends=0,5, loss" in launched(code, *argv, *tpe)
    before = {path for path in tmp_path.rglob("result.json")}
    assert "best so far: ends=0,5, loss" in launched(code, *argv, *tpe)
    assert before == {path for path in tmp_path.rglob("result.json")}


@pytest.mark.slow
@WAYS
def test_several_processes_train_it(code, tmp_path, way):
    flag, _ = named(way, code)
    argv = [flag, *FLAGS, "--processes=2", f"--workdir={tmp_path / 'run'}"]
    assert "on 2 cpu devices" in launched(code, *argv)
    assert "resuming at step 8" in launched(code, *argv, "--steps=12")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["step"] == 12
    assert result["metrics"]["w"] == pytest.approx(expected(0.1, 0, 1, 12), rel=1e-5)
    # The command that the run's directory names repeats it.
    command = shlex.split(json.loads((tmp_path / "run" / "config.json").read_text())["command"])
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{code}"}
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=tmp_path, env=environment, text=True, capture_output=True
    )  # fmt: skip
    assert done.returncode == 0 and "step 12" in done.stdout, done.stdout + done.stderr


@pytest.mark.medium
def test_jobs_of_a_cluster_train_it(code, tmp_path):
    argv = ["--experiment=my_gan.py", *FLAGS, "--sweep=lr=0.1,0.2", "--sweep=ends='0,1'"]
    launched(code, *argv, f"--root={tmp_path}", "--slurm=local", "--jobs=2")
    check_table(tmp_path, 8)
    for record in (tmp_path / "my_gan").glob("*.job"):
        assert json.loads(record.read_text())["cluster"] == "local"
        assert str(code / "my_gan.py") in json.loads(record.read_text())["command"]


@WAYS
def test_every_command_names_it_as_it_is_found_from_everywhere(code, tmp_path, monkeypatch, capsys, way):  # fmt: skip
    monkeypatch.chdir(code)
    monkeypatch.syspath_prepend(str(code))
    flag, name = named(way, code)
    argv = [flag, "--dry_run", "--preset=far", f"--root={tmp_path}"]
    for more, program, count in (
        ([], ["bpgan.cli", name], 1),
        (["--processes=2"], ["bpgan.cli", name], 2),
        (["--sweep=seed=0"], ["bpgan.cli", name], 1),
        (["--sweep=seed=0:2", "--jobs=1"], ["bpgan.launcher.group", name], 1),
    ):
        assert launch.run([*argv, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == count
        for line in lines:
            words = shlex.split(line)
            assert words[words.index("-m") + 1 :][:2] == program
            assert f"{tmp_path}/my_gan/" in line and re.search(r"-P", line)


@WAYS
def test_its_flags_are_checked_before_anything_starts(code, tmp_path, monkeypatch, way):
    monkeypatch.chdir(code)
    monkeypatch.syspath_prepend(str(code))
    flag, _ = named(way, code)
    for argv, said in (
        (["--lr=0"], "--lr=0: must be a number > 0"),
        (["--sweep=lr=0.1,0"], "--lr=0: must be a number > 0"),
        (["--sweep=end=1"], "--sweep=end=1: the experiment has no flag --end; did you mean ends?"),
        (["--preset=fa"], "--preset=fa: must be one of far"),
    ):
        with pytest.raises(UserError) as caught:
            launch.run([flag, f"--root={tmp_path}", "--dry_run", *argv])
        assert cli.message_of(caught.value).startswith(said)
