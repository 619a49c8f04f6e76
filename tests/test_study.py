"""Studies: what is missing is trained and evaluated, and what is there makes the table."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from bpgan import cli
from experiments import study

ROOT = pathlib.Path(__file__).parent.parent

MINE = """
from bpgan.launcher.studies import Arm, Study

ONE = Study("Does it work?", (Arm("GAN", "image_gan", {"preset": "smoke", "net": "mlp"}),), seeds=(3, 4))
BAD = Study("Is it checked first?", (*ONE.arms, Arm("no lr", "image_gan", {"lr": "-1"})))
OTHER = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module with studies of a user's own."""
    (tmp_path / "my_studies.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_studies"


def start(tmp_path, *flags):
    argv = [f"--workdir={tmp_path / 'study'}", "--metrics=fd", "--features=pixels", "--n=20", *flags]  # fmt: skip
    return cli.run(study.Config, study.run, study.PRESETS, argv)


@pytest.mark.parametrize(
    "flags, says",
    [
        (
            ["--study=privat"],
            "--study=privat: must be one of private, pairs, domains, transport, flows, smoke, or module:name",
        ),
        (["--study={mine}:OTHER"], "is int, must be a Study"),
        (["--study={mine}:BAD"], "error: no lr: --lr=-1: "),
        (["--seeds=0,0"], "--seeds=0,0: must be different whole numbers"),
        (["--seeds=-1"], "--seeds=-1: must be different whole numbers"),
    ],
)
def test_bad_input_is_one_line_before_anything_trains(tmp_path, mine, capsys, flags, says):
    assert start(tmp_path, *(flag.format(mine=mine) for flag in flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not list(tmp_path.glob("study/*/*"))


@pytest.mark.medium
def test_the_command_reads_a_study_of_ones_own(tmp_path, mine):
    """As a process, in which the experiment is the program and not a module that a study could import from."""
    command = [sys.executable, "-m", "experiments.study", f"--study={mine}:BAD"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("error: no lr: --lr=-1: ")


def known(arm, seed, values, **more):
    """What ``study.json`` says of a run with these numbers, of which real images have 1."""
    numbers = [dict(metric=m, value=v, real=1.0, reference="test") for m, v in values.items()]
    return dict(arm=arm, seed=seed, minutes=2.0, epsilon=None, broken=False, numbers=numbers) | more


def test_the_table_has_means_over_seeds_and_what_is_known_so_far(tmp_path, mine):
    cfg = cli.resolve(study.Config, study.PRESETS, [f"--study={mine}:ONE"])
    kept = study.Evaluations(cfg, tmp_path)
    first = known("GAN", 3, {"FD": 4.0, "CAS": 0.5})
    kept.by_arm["GAN"] = [first, known("GAN", 4, {"FD": 6.0}, epsilon=9.99)]
    head, _, row, real = kept.table().splitlines()[2:]
    assert head == "| method | FD | CAS | epsilon | minutes | seeds |"
    assert row == f"| GAN | 5 ± {np.std([4, 6], ddof=1):.2g} | 0.5 | 9.99 | 2 ± 0 | 3, 4 |"
    assert real.startswith("| real images | 1 | 1 |")
    kept.by_arm["GAN"].append(known("GAN", 5, {}, broken=True))
    assert kept.table().splitlines()[4] == row.replace("3, 4 |", "3, 4, 5 (broken) |")


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": 3}', '{"other": {}}'])
def test_a_damaged_record_is_named(tmp_path, capsys, text):
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study.json").write_text(text)
    assert start(tmp_path, "--study=smoke") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "study.json cannot be read" in line and "remove it" in line


@pytest.mark.medium
def test_a_study_goes_on_where_it_stopped(tmp_path, mine, capfd, monkeypatch):
    """One seed first, then both: only the other is trained; then nothing is."""
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder, trained = tmp_path / "study", []
    for flags in (["--seeds=3"], [], []):
        assert start(tmp_path, f"--study={mine}:ONE", *flags) == 0
        trained.append(capfd.readouterr().out.count(": started"))
    assert trained == [1, 1, 0]
    record = json.loads((folder / "study.json").read_text())
    assert [run["seed"] for run in record["runs"].values()] == [3, 4]
    own = [json.loads((folder / name / "metrics.json").read_text()) for name in record["runs"]]
    assert [rows[0]["value"] for rows in own] == [
        run["numbers"][0]["value"] for run in record["runs"].values()
    ]
    (row,) = [line for line in (folder / "table.md").read_text().splitlines() if "| GAN |" in line]
    assert row.endswith("| 3, 4 |")


def test_the_runs_of_all_methods_are_told_apart(tmp_path):
    for name in study.STUDIES:
        cfg = cli.resolve(study.Config, study.PRESETS, [f"--study={name}"])
        planned = study.plan(cfg, tmp_path)
        trained = {(a.experiment, *a.flags.items()): a for a in cfg.study.value.arms}.values()
        places = [run.workdir for arm in trained for run in planned[arm.name]]
        seeds = [arm.seeds or cfg.study.value.seeds for arm in trained]
        assert len(set(places)) == len(places) == sum(map(len, seeds))
