"""launch.py: sweeps, names, messages, and the processes it starts."""

import csv
import dataclasses
import errno
import fcntl
import importlib
import importlib.util
import json
import math
import os
import pathlib
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from bpgan import cli, memory
from bpgan.cli import ended, experiments
from bpgan.launcher import flags as launcher_flags
from bpgan.launcher import main as launch
from bpgan.launcher import outcomes, processes, search
from bpgan.launcher.jobs import make_jobs
from bpgan.launcher.runs import parse_axes
from bpgan.launcher.runs import plan as plan_runs
from bpgan.types import UserError
from experiments import mnist_gan

ROOT = pathlib.Path(__file__).parent.parent

FAKE = '''
"""A stand-in that pretends to train."""

import dataclasses, fcntl, json, os, pathlib, signal, sys, time
from dataclasses import dataclass

from bpgan import cli


@dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    lr: float = cli.field(0.1, "learning rate", low=0, exclusive_low=True)
    loss: str = cli.field("hinge", "a loss", choices=("hinge", "logistic"))
    betas: str = cli.field("0.9", "numbers, separated by commas")
    pause: float = cli.field(0.0, "seconds of work", low=0, restart_safe=True)


PRESETS = {"smoke": dict(steps=1), "slow": dict(pause=60)}


def build(cfg, axis_name=None):
    workdir = pathlib.Path(cfg.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (workdir / "result.json").unlink(missing_ok=True)
    record = {"experiment": __file__, "config": dataclasses.asdict(cfg), "images_per_step": cfg.batch_size}
    (workdir / "config.json").write_text(json.dumps(record))
    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: stopped.append(n))
    print("training", flush=True)
    log = (workdir / "metrics.jsonl").open("w")
    print(json.dumps({"step": 5, "loss": 1.0}), file=log, flush=True)
    (workdir / "ready").touch()
    end = time.monotonic() + cfg.pause
    while time.monotonic() < end and not stopped:
        time.sleep(0.02)
    if cfg.lr == 13:
        raise cli.Anomaly("not finite at step 7")
    if cfg.lr == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    metrics = {"loss": cfg.lr + cfg.seed, "g/grad_norm": 1.0, "time/elapsed": 2.0}
    metrics["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    result = {"status": "interrupted" if stopped else "done", "step": 5, "metrics": metrics}
    (workdir / "result.json").write_text(json.dumps(result))
    print(*stopped, flush=True)
    sys.exit(75 if stopped else 0)


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
'''
"""An experiment of a user's own, in a file of his."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    lr: float = cli.field(0.1, "learning rate", low=0, exclusive_low=True)
    loss: str = cli.field("hinge", "a loss", choices=("hinge", "logistic"))
    csv: str = cli.field("", "a file")


MODULE = types.ModuleType("fake")
MODULE.Config, MODULE.PRESETS = Config, {"smoke": dict(steps=1), "fast": dict(lr=1.0)}  # type: ignore
SCRIPT = experiments.Script("fake", MODULE)


def plan(*sweeps, argv=(), root="runs"):
    axes = parse_axes(SCRIPT, argv, sweeps)
    return plan_runs(SCRIPT, argv, search.combine(axes, 0, 0), root)


def refused(*sweeps, argv=()):
    with pytest.raises(UserError) as caught:
        plan(*sweeps, argv=argv)
    assert "\n" not in str(caught.value)
    return cli.message_of(caught.value)


def test_a_sweep_is_every_combination_in_order():
    runs = plan("lr=1e-4,2", "seed=0:3", argv=["--epochs=2"])
    assert [(r.values["lr"], r.values["seed"]) for r in runs] == [
        (lr, seed) for lr in (1e-4, 2.0) for seed in (0, 1, 2)
    ]
    first = runs[0]
    assert first.title == "lr=0.0001 seed=0"
    assert re.fullmatch(r"runs/fake/lr=0\.0001_seed=0_[0-9a-f]{6}", str(first.workdir))
    given = ["--epochs=2", "--lr=1e-4", "--seed=0", f"--workdir={first.workdir}"]
    assert first.command[-6:] == ["bpgan.cli", "fake", *given]
    assert len({r.workdir for r in runs}) == 6


def test_names_survive_what_may_change_on_resume_and_nothing_else():
    def name(*argv, sweep="seed=0,1"):
        return plan(sweep, argv=argv)[0].workdir.name

    assert name() == name("--epochs=99", "--steps=7", "--log_every=5", "--notensorboard")
    assert name() == name("--lr=0.10") == name(sweep="seed=0:1")
    others = [
        name("--lr=0.2"), name("--loss=logistic"), name("--batch_size=7"), name("--preset=fast"),
        name("--precision=float64"),
    ]  # fmt: skip
    assert len({name(), *others}) == 6


def test_any_text_makes_a_file_name_and_different_texts_different_ones():
    runs = plan("csv=a/b,a%2Fb,../x,a b")
    assert len({r.workdir for r in runs}) == 4
    assert all(r.workdir.parent == pathlib.Path("runs/fake") for r in runs)


def test_ranges_are_of_whole_number_flags_only():
    assert [r.values["seed"] for r in plan("seed=2:5")] == [2, 3, 4]
    assert [r.values["csv"] for r in plan("csv=0:3")] == ["0:3"]
    assert [r.values["preset"] for r in plan("preset=smoke,fast")] == ["smoke", "fast"]
    assert refused("lr=0:3") == "--lr=0:3: must be a number > 0"


@pytest.mark.parametrize(
    "sweeps, argv, expected",
    [
        (["lr=1,-1"], [], "--lr=-1: must be a number > 0"),
        (["lr=1,"], [], "--lr=: must be a number > 0"),
        (
            ["seed=0:2", "loss=hinge,hing"],
            [],
            "--loss=hing: must be one of hinge, logistic; did you",
        ),
        (["preset=smok"], [], "--preset=smok: must be one of smoke, fast"),
        (["sed=1"], [], "--sweep=sed=1: the experiment has no flag --sed; did you mean seed?"),
        (["seed"], [], "--sweep=seed: must be NAME=V1,V2,..., NAME=LOW:HIGH or"),
        (["seed="], [], "--sweep=seed=: must be"),
        (["seed=3:3"], [], "--sweep=seed=3:3: is an empty range"),
        (["seed=1", "seed=2"], [], "--sweep=seed=2: seed is swept twice"),
        (["lr=0.1,1e-1"], [], "--sweep: lr=0.1 occurs twice"),
        (["seed=1,2"], ["--seed=3"], "--sweep=seed=1,2: --seed is also given as a flag"),
        (["seed=1,2"], ["--seed", "3"], "--sweep=seed=1,2: --seed is also given as a flag"),
        (["tensorboard=true"], ["--notensorboard"], "--sweep=tensorboard=true: --tensorboard is"),
        (["workdir=a,b"], [], "--sweep=workdir=a,b: the launcher names"),
        (["seed=1,2"], ["--workdir=a"], "--workdir: cannot be combined with --sweep; use --root"),
        (["seed=1,2"], ["--dryrun"], "--dryrun: unknown flag; did you mean --dry_run?"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_as_a_whole(sweeps, argv, expected):
    assert refused(*sweeps, argv=argv).startswith(expected)


@pytest.mark.parametrize(
    "flags, warned",
    [
        (["--sweep=penalty=none,r1", "--gamma=1"], False),
        (["--sweep=penalty=none,r1", "--sweep=gamma=1,2"], False),
        (["--penalty=none", "--sweep=gamma=1,2"], True),
        (["--sweep=penalty=none", "--sweep=seed=0:2", "--gamma=1"], True),
    ],
)
def test_what_no_run_of_a_sweep_has_a_use_for_is_named(flags, warned, capsys, tmp_path):
    argv = ["--experiment=mnist_gan", *flags, "--dry_run", f"--root={tmp_path}"]
    assert launch.run(argv) == 0
    warning = "warning: --gamma has no effect with --penalty=none\n"
    assert (warning in capsys.readouterr().out) == warned


def test_runs_that_differ_in_numbers_become_groups(monkeypatch):
    runs = plan("loss=hinge,logistic", "seed=0:5")
    off = make_jobs(SCRIPT, runs, "off", 2)
    assert [job.command for job in off] == [run.command for run in runs]
    on = make_jobs(SCRIPT, runs, "on", 2)
    assert [job.runs for job in on] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    flags = [f"--member=--loss=hinge --seed={i} --workdir={runs[i].workdir}" for i in range(5)]
    assert on[0].command[-7:] == ["bpgan.launcher.group", "fake", *flags]
    four = make_jobs(SCRIPT, runs, "auto", 4)  # no slot is idle
    assert [len(job.runs) for job in four] == [3, 2, 3, 2]
    # lr is not marked sweepable.
    assert len(make_jobs(SCRIPT, plan("lr=1,2", "seed=0:2"), "auto", 1)) == 2
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert processes.count_slots(3) == 3 and 1 <= processes.count_slots(0) <= len(
        os.sched_getaffinity(0)
    )
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert processes.count_slots(0) == 1


@pytest.mark.parametrize("plugin", ["jax_cuda12_plugin", "jax_cuda13_plugin", None])
def test_gpus_count_if_jax_can_use_them(monkeypatch, plugin):
    """That of the default install cannot, whatever the machine has."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == plugin else None)
    if plugin:
        with pytest.raises(UserError, match="processes=2: 3 GPUs cannot be shared out evenly"):
            processes.train_one(["true"], 2)
    else:
        assert processes.train_one(["true"], 2) == 0
    monkeypatch.setattr(memory, "available", lambda: 2**40)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert processes.count_slots(0) == (3 if plugin else 2)


def leave(run, group=(), trained=False, **result):
    """What a run leaves on the disk."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    record = {"experiment": run.experiment, "config": dict(run.config), "run": run.workdir.name}
    if group:
        record["group"] = {"lowering": "map", "members": [each.workdir.name for each in group]}
    (run.workdir / "config.json").write_text(json.dumps(record))
    if trained:
        (run.workdir / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
    if result:
        result = {"run": run.workdir.name} | result
        (run.workdir / "result.json").write_text(json.dumps(result))


def test_runs_stay_with_those_they_were_with(tmp_path):
    runs = plan("seed=0:8", root=tmp_path)
    for run in runs[:3]:
        leave(run, runs[:3])
    leave(runs[3])

    def jobs(vectorize, slots, queued=types.MappingProxyType({})):
        return [job.runs for job in make_jobs(SCRIPT, runs, vectorize, slots, queued)]

    # Killed before their first save: they start over, as new ones.
    assert jobs("auto", 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for run in (runs[1], runs[3]):
        leave(run, runs[:3] if run is runs[1] else (), trained=True)
    assert jobs("auto", 1) == [[0, 1, 2], [3], [4, 5, 6, 7]]
    assert jobs("auto", 4) == [[0, 1, 2], [3], [4], [5], [6], [7]]
    assert jobs("auto", 0) == [[0, 1, 2], [3], [4], [5], [6], [7]]  # under a budget
    assert jobs("off", 1) == [[i] for i in range(8)]
    waiting = {runs[i].workdir: "12_1" for i in (5, 6)}
    assert jobs("auto", 1, waiting) == [[0, 1, 2], [3], [4, 7], [5, 6]]
    # Survivors of a halving are not bitwise what they were, whoever they are with.
    some = [*runs[:2], *runs[4:]]
    assert [job.runs for job in make_jobs(SCRIPT, some, "auto", 2)] == [[0, 1, 2], [3, 4, 5]]


def test_pmap_is_not_for_groups():
    runs = plan("seed=0:4", argv=["--parallel=pmap"])
    assert [job.runs for job in make_jobs(SCRIPT, runs, "auto", 1)] == [[0], [1], [2], [3]]


def test_only_a_result_of_the_same_flags_counts(tmp_path):
    """A longer run that was killed has the record of its flags, and no result yet."""
    (run,), (longer,) = (plan("seed=0", argv=[f"--steps={n}"], root=tmp_path) for n in (10, 20))
    assert run.workdir == longer.workdir
    leave(run)
    (run.workdir / "result.json").write_text('{"run": "of another", "status": "done", "step": 10}')
    assert not outcomes.is_finished(run)
    leave(run, status="done", step=10)
    assert outcomes.is_finished(run) and outcomes.infer_code(run, 1) == 0
    assert not outcomes.is_finished(longer)
    assert [outcomes.infer_code(longer, code) for code in (0, 3, 75)] == [75] * 3
    assert [outcomes.infer_code(longer, code) for code in (1, 2, -9, 130)] == [1, 2, -9, 130]


def test_a_result_of_another_file_of_the_same_name_does_not_count(tmp_path):
    """But that of one that has moved does."""

    def planned(folder):
        script = SCRIPT._replace(name=str(tmp_path / folder / "fake.py"))
        return plan_runs(script, (), [{"seed": "0"}], tmp_path / "runs")[0]

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "fake.py").touch()
    a, b = map(planned, "ab")
    assert a.workdir == b.workdir
    leave(a, status="done", step=10)
    assert outcomes.is_finished(a) and not outcomes.is_finished(b)
    (tmp_path / "a" / "fake.py").unlink()
    assert outcomes.is_finished(b)


@pytest.fixture
def pretend(monkeypatch):
    """In place of processes: each run leaves what ``result`` of its config says, nothing for None."""
    started = []

    def result(cfg):
        return {"status": "done", "step": 9, "metrics": {"d/loss": cfg.g_lr + cfg.seed / 1e6}}

    def execute(jobs, slots, affordable=lambda: True, attempt=""):
        codes = {}
        os.environ[ended.ATTEMPT] = attempt
        execute.record = ended.recorder()
        for index, job in enumerate(jobs):
            started.append(job)
            flags = [arg for arg in job.command if arg.startswith("--")]
            common = [arg for arg in flags if not arg.startswith(("--member=", "--or_alone"))]
            members = [shlex.split(arg[9:]) for arg in flags if arg.startswith("--member=")]
            for own in members or [[]]:
                cfg = cli.resolve(mnist_gan.Config, mnist_gan.PRESETS, [*common, *own])
                if (left := execute.result(cfg)) is None:
                    continue
                folder = pathlib.Path(cfg.workdir)
                folder.mkdir(parents=True, exist_ok=True)
                record = {"experiment": "mnist_gan", "config": dataclasses.asdict(cfg)}
                (folder / "config.json").write_text(json.dumps(record))
                (folder / "result.json").write_text(json.dumps(left))
            codes[index] = execute.code(cfg) if callable(execute.code) else execute.code
        return codes, False

    execute.started, execute.result, execute.code = started, result, 0
    monkeypatch.setattr(processes, "execute", execute)
    return execute


def launched(root, *argv):
    return launch.run(["--experiment=mnist_gan", f"--root={root}", "--jobs=1", *argv])


def table(root):
    (file,) = (root / "mnist_gan").glob("sweep_*.csv")
    return list(csv.DictReader(file.read_text().splitlines()))


def test_a_search_by_tpe_repeated_extended_and_with_another_aim(tmp_path, pretend, capsys):
    pytest.importorskip("optuna")
    argv = ["--search=tpe", "--sweep=g_lr=log:1e-5:1e-2", "--sweep=seed=0:2"]
    first = [*argv, "--aim=min:d/loss", "--samples=10"]
    assert launched(tmp_path, *first) == 0
    (file,) = (tmp_path / "mnist_gan").glob("sweep_*.csv")
    before, rows = file.read_text(), table(tmp_path)
    assert len(rows) == 20 and {row["status"] for row in rows} == {"done"}
    trained = len(pretend.started)
    best = min(float(row["d/loss"]) for row in rows)
    capsys.readouterr()
    assert launched(tmp_path, *first) == 0
    said = capsys.readouterr().out
    assert len(pretend.started) == trained and file.read_text() == before
    assert f"best so far: g_lr={best}" in said
    # More samples keep the first ones; the table is of all.
    assert launched(tmp_path, *argv, "--aim=min:d/loss", "--samples=12") == 0
    (more,) = set((tmp_path / "mnist_gan").glob("sweep_*.csv")) - {file}
    assert more.read_text().splitlines()[:1] == before.splitlines()[:1]
    assert set(before.splitlines()) < set(more.read_text().splitlines())
    assert len(more.read_text().splitlines()) == 1 + 24
    # Another aim, other ranges, longer runs are other studies.
    assert len(list(tmp_path.glob("mnist_gan/tpe_*.log"))) == 1
    for other in (
        [*argv, "--aim=max:d/loss"],
        [argv[0], "--sweep=g_lr=log:1e-5:1e-3", argv[2], "--aim=min:d/loss"],
        [*argv, "--aim=min:d/loss", "--epochs=77"],
    ):
        assert launched(tmp_path, *other, "--samples=1") == 0
    assert len(list(tmp_path.glob("mnist_gan/tpe_*.log"))) == 4


def test_trials_that_came_to_nothing_are_not_said_to_be_resumable(tmp_path, pretend, capsys):
    pytest.importorskip("optuna")
    argv = ["--search=tpe", "--sweep=g_lr=log:1e-5:1e-2", "--aim=min:d/loss", "--samples=2"]
    pretend.result = lambda cfg: {"status": "interrupted", "step": 1}
    pretend.code = 1
    assert launched(tmp_path, *argv) == 1
    assert launched(tmp_path, *argv) == 1
    assert len(pretend.started) == 1


def test_a_run_that_diverged_is_reported_and_not_trained_again(tmp_path, pretend, capsys):
    def result(cfg):
        if cfg.seed != 1:
            return {"status": "done", "step": 9, "metrics": {"d/loss": 1.0}}
        return {"status": "non-finite", "step": 4, "metrics": {}, "anomalies": ["not finite by 4"]}

    pretend.result, pretend.code = result, 3
    assert launched(tmp_path, "--sweep=seed=0:3") == 3
    for _ in range(2):
        said = capsys.readouterr().out
        assert "seed=1: failed (exit 3): not finite by 4\n" in said
        assert [row["status"] for row in table(tmp_path)] == ["done", "failed (exit 3)", "done"]
        assert launched(tmp_path, "--sweep=seed=0:3") == 3
    assert len(pretend.started) == 1
    assert "all 3 runs are done, 1 by an anomaly" in capsys.readouterr().out


def test_sweeps_of_other_values_have_tables_of_their_own(tmp_path, pretend):
    for argv in (["--sweep=seed=0:2"], ["--sweep=seed=0:3"], ["--sweep=seed=uniform:0:9", "--samples=2"],
                 ["--sweep=seed=uniform:0:9", "--samples=2", "--search_seed=1"]):  # fmt: skip
        assert launched(tmp_path, *argv) == 0
    assert len(list(tmp_path.glob("mnist_gan/sweep_*.csv"))) == 4
    assert len(list(tmp_path.glob("mnist_gan/sweep_*.json"))) == 4
    assert not list(tmp_path.glob("mnist_gan/*.tmp"))


def test_draws_of_few_values_are_said_to_be_fewer(tmp_path, pretend, capsys):
    assert launched(tmp_path, "--sweep=d_steps=uniform:1:2", "--samples=9") == 0
    said = capsys.readouterr().out
    assert "--samples=9: 2 different settings, the others were drawn twice" in said
    assert len(table(tmp_path)) == 2


def test_a_budget_that_is_spent_is_no_error(tmp_path, pretend):
    pytest.importorskip("optuna")
    argv = ["--search=tpe", "--sweep=g_lr=log:1e-5:1e-2", "--aim=min:d/loss", "--samples=2"]
    assert launched(tmp_path, *argv, "--budget=0img") == 0
    assert not pretend.started
    assert launched(tmp_path, *argv, "--budget=1e9img") == 0
    assert [len(job.runs) for job in pretend.started] == [1, 1]


def test_a_halving_scores_what_crashed_as_nothing(tmp_path, pretend, capsys):
    """In its second rung, though it has a result of the first."""
    argv = ["--search=halving", "--sweep=g_lr=1e-5,1e-4,1e-3,1e-2", "--aim=min:d/loss"]
    whole, paused = pretend.result, []

    def result(cfg):
        paused.append(cfg.pause_at)
        return whole(cfg) | {"status": "paused"} if cfg.pause_at < 1 else None

    pretend.result, pretend.code = result, 1
    assert launched(tmp_path, *argv) == 1
    assert paused == [0.333333] * 4 + [1.0]
    assert (
        "rung 2 of 2: 1 setting at 1 of a run; best: g_lr=1e-05, d/loss inf"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("code", [75, 2])
@pytest.mark.parametrize("kind", ["halving", "tpe"])
def test_a_setting_that_could_not_train_has_no_score_and_is_trained_later(
    tmp_path, pretend, capsys, code, kind
):
    """Interrupted by itself, or refused, as by a disk that is full."""
    if kind == "tpe":
        pytest.importorskip("optuna")
        axis = ["--sweep=g_lr=log:1e-5:1e-2", "--samples=4"]
    else:
        axis = ["--sweep=g_lr=1e-5,1e-4,1e-3,1e-2"]
    argv = [f"--search={kind}", *axis, "--aim=min:d/loss", "--vectorize=off"]
    whole, seen = pretend.result, []

    def result(cfg):
        seen.append(cfg.g_lr)
        if len(seen) > 1 and cfg.g_lr == seen[1]:
            return {"status": "interrupted", "step": 1, "metrics": {}} if code == 75 else None
        return whole(cfg)

    pretend.result, pretend.code = result, lambda cfg: code * (cfg.g_lr in seen[1:2])
    assert launched(tmp_path, *argv) == code
    assert len(pretend.started) == 4
    waits = f"the search waits for g_lr={cli.show(seen[1])}, which was refused\n"
    assert (waits in capsys.readouterr().out) == (code == 2)
    del pretend.started[:]
    pretend.result, pretend.code = whole, 0
    assert launched(tmp_path, *argv) == 0
    again = [job.title for job in pretend.started]
    assert again[0] == f"g_lr={cli.show(seen[1])}" and len(again) == 1 + (kind == "halving")


@pytest.mark.parametrize("kind", ["halving", "tpe"])
@pytest.mark.parametrize("argument, beside", [("g_lr", []), ("batch_size", ["g_lr"])])
def test_a_setting_that_is_refused_for_its_value_has_the_worst_score(
    tmp_path, pretend, kind, argument, beside
):
    """Alone, or together with a flag that is not swept. What its log says last is another's."""
    if kind == "tpe":
        pytest.importorskip("optuna")
    axis = ["--sweep=g_lr=log:1e-5:1e-2", "--samples=4"]
    argv = [f"--search={kind}", *axis, "--aim=min:d/loss", "--vectorize=off"]
    whole, refused = pretend.result, []

    def result(cfg):
        if not refused:
            refused.append(cfg.g_lr)  # the first
        if cfg.g_lr != refused[0]:
            return whole(cfg)
        log = pathlib.Path(f"{cfg.workdir}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("error: --b1=0.5: is what another one was refused for\n")
        error = UserError("is too large for this", argument=argument, beside=beside)
        pretend.record(cfg.workdir, 2, error)
        return None

    pretend.result, pretend.code = result, lambda cfg: 2 * (cfg.g_lr == refused[0])
    for _ in range(2):
        assert launched(tmp_path, *argv) == 2
        assert len(pretend.started) == 4 + (kind == "halving")


@pytest.mark.parametrize("kind", ["all", "halving", "tpe"])
def test_a_run_that_is_killed_is_trained_again_but_not_for_ever(tmp_path, pretend, capsys, kind):
    """By the system for want of memory, say. That it was saved in between makes it no other's fault than theirs."""
    axis = ["--sweep=g_lr=1e-5,1e-4,1e-3,1e-2"]
    if kind == "tpe":
        pytest.importorskip("optuna")
        axis = ["--sweep=g_lr=log:1e-5:1e-2", "--samples=4"]
    search_for = [] if kind == "all" else [f"--search={kind}", "--aim=min:d/loss"]
    argv = [*search_for, *axis, "--vectorize=off"]
    whole, unlucky, steps = pretend.result, [], iter((5, 5, 6, 6, 6, 6))

    def result(cfg):
        if not unlucky:
            unlucky.append(cfg.g_lr)
        if cfg.g_lr != unlucky[0]:
            return whole(cfg) | ({"status": "paused"} if cfg.pause_at < 1 else {})
        saved = pathlib.Path(cfg.workdir, "checkpoints", str(next(steps)))
        saved.mkdir(parents=True, exist_ok=True)

    pretend.result, pretend.code = result, lambda cfg: -9 * (cfg.g_lr == unlucky[0])
    for times in (1, 2, 1, 2):
        assert launched(tmp_path, *argv) == 75
        assert f"killed by SIGKILL, {times} of at most 3 times" in capsys.readouterr().out
    assert launched(tmp_path, *argv) == 1  # the third time, without a checkpoint in between
    said = capsys.readouterr().out
    assert "killed by SIGKILL, 3 of at most 3 times without a checkpoint in between\n" in said
    trained = len(pretend.started)
    assert trained == 4 + 4 + (kind == "halving")
    assert launched(tmp_path, *argv) == 1
    assert len(pretend.started) == trained + (kind == "all")


def test_a_search_of_which_every_run_is_refused_says_so_and_ends(tmp_path, pretend, capsys):
    def result(cfg):
        pretend.record(cfg.workdir, 2, UserError("is not there", argument="dataset", value="x"))

    pretend.result, pretend.code = result, 2
    axis = ["--sweep=g_lr=1e-5,1e-4,1e-3", "--search=halving", "--aim=min:d/loss"]
    assert launched(tmp_path, *axis, "--vectorize=off") == 2
    said = capsys.readouterr().out
    assert said.count("the search ends: every run was refused: --dataset=x: is not there\n") == 1
    assert "the search waits" not in said


def test_what_a_swept_preset_sets_is_of_the_sweep(tmp_path):
    runs = plan("preset=smoke,fast", root=tmp_path)
    for run in runs:
        ended.write(run.workdir, ended.Ended(attempt="1", code=2, argument="lr"))
    assert list(map(outcomes.is_at_fault, runs)) == [False, True]  # only one of them sets it


def test_who_is_refused_for_its_value_does_not_keep_a_group_waiting(tmp_path):
    runs = plan("seed=0:4", root=tmp_path)
    ended.write(runs[2].workdir, ended.Ended(attempt="1", code=2, argument="seed", value="2"))
    assert [job.runs for job in make_jobs(SCRIPT, runs, "auto", 1)] == [[0, 1, 3], [2]]


@pytest.mark.medium
def test_a_group_is_no_longer_than_a_command_line(tmp_path):
    runs = plan("seed=0:2500", root=tmp_path)
    assert [len(job.runs) for job in make_jobs(SCRIPT, runs, "on", 1)] == [1000, 1000, 500]


@pytest.mark.parametrize(
    "argv", [["--sweep=seed=0:2"], ["--search=tpe", "--sweep=g_lr=log:1e-5:1e-2", "--samples=2", "--aim=min:d/loss"]]
)  # fmt: skip
def test_a_second_launcher_of_the_same_sweep_is_refused(tmp_path, pretend, monkeypatch, argv):
    def execute(jobs, slots, *rest):
        with pytest.raises(UserError, match="sweep: another launcher is at work on it, and holds"):
            launched(tmp_path, *argv)
        if "--search=tpe" in argv:  # one journal, however many samples are asked for
            with pytest.raises(
                UserError, match="sweep: another launcher is at work on it, and holds"
            ):
                launched(tmp_path, *argv, "--samples=3")
        return pretend(jobs, slots, *rest)

    monkeypatch.setattr(processes, "execute", execute)
    assert launched(tmp_path, *argv) == 0
    assert launched(tmp_path, *argv) == 0
    assert not list(tmp_path.glob("mnist_gan/*.lock"))


def test_a_sweep_that_is_refused_leaves_no_directory(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    axis = ["--sweep=g_lr=log:1e-5:1e-2", "--samples=2"]
    for argv in (["--search=tpe", "--aim=min:d/loss"], ["--slurm=local"]):
        with pytest.raises(UserError, match="needs"):
            launched(tmp_path, *axis, *argv)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_one_line_and_costs_nothing(tmp_path, pretend, monkeypatch):
    pytest.importorskip("optuna")
    argv = ["--search=tpe", "--sweep=g_lr=log:1e-5:1e-2", "--samples=4", "--aim=min:d/loss"]

    def tell(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(search.Study, "tell", tell)
        with pytest.raises(UserError, match="No space left on device; the same command goes on"):
            launched(tmp_path, *argv)
    trained = len(pretend.started)
    assert launched(tmp_path, *argv) == 0 and len(pretend.started) == trained


def test_a_search_that_has_gone_on_since_is_done(tmp_path, pretend):
    """It answered 75, and a scheduler put it into the queue for ever."""

    def result(cfg):
        paused = {"status": "paused"} if cfg.pause_at < 1 else {}
        return {"status": "done", "step": 9, "metrics": {"d/loss": cfg.g_lr}} | paused

    pretend.result = result
    argv = ["--search=halving", "--sweep=g_lr=log:1e-5:1e-2", "--aim=min:d/loss"]
    assert launched(tmp_path, *argv, "--samples=9") == 0
    assert launched(tmp_path, *argv, "--samples=27") == 0
    started = len(pretend.started)
    for _ in range(2):
        assert launched(tmp_path, *argv, "--samples=9") == 0
        assert launched(tmp_path, *argv, "--samples=9", "--log_every=7") == 0
    assert len(pretend.started) == started


def test_seconds_of_a_budget_are_written_down_as_they_pass(tmp_path, pretend, monkeypatch):
    """A launcher that is killed has spent them, too."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def killed(jobs, slots, affordable, attempt):
        while affordable():
            now[0] += 2
            if now[0] % 100 == 0:
                raise SystemExit
        return {}, False

    monkeypatch.setattr(processes, "execute", killed)
    for _ in range(2):
        with pytest.raises(SystemExit):
            launched(tmp_path, "--sweep=seed=0:2", "--budget=250s")
    now[0] += 2
    launched(tmp_path, "--sweep=seed=0:2", "--budget=250s")
    assert 240 <= now[0] <= 260


def test_the_best_of_tpe_is_named_by_what_was_drawn(tmp_path, pretend, capsys):
    """Its score is the mean over the values of the other axes."""
    pytest.importorskip("optuna")
    argv = [
        "--search=tpe",
        "--sweep=g_lr=log:1e-5:1e-2",
        "--sweep=net=mlp,dcgan:8",
        "--sweep=seed=0:2",
    ]
    assert launched(tmp_path, *argv, "--aim=min:d/loss", "--samples=2") == 0
    best = [line for line in capsys.readouterr().out.splitlines() if line.startswith("best so far")]
    assert best and all(re.match(r"best so far: g_lr=\S+, d/loss", line) for line in best)


def test_what_the_next_rung_did_not_reach_is_as_the_last_one_left_it(
    tmp_path, pretend, monkeypatch
):
    """It was shown as done, without a number."""
    whole, calls = pretend.result, []
    pretend.result = lambda cfg: whole(cfg) | {"status": "paused" if cfg.pause_at < 1 else "done"}

    def execute(jobs, slots, *rest):
        calls.append(jobs)
        return pretend(jobs[:1] if len(calls) == 2 else jobs, slots, *rest)

    monkeypatch.setattr(processes, "execute", execute)
    argv = ["--search=halving", "--sweep=g_lr=1e-5,1e-4,1e-3", "--sweep=seed=0:2"]
    launched(tmp_path, *argv, "--aim=min:d/loss", "--vectorize=off")
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["done", *["paused"] * 5]
    assert all(row["d/loss"] for row in rows)


def test_numbers_that_are_lost_are_no_traceback(tmp_path, pretend, capsys):
    pretend.result = lambda cfg: {"status": "done", "step": 9, "metrics": {"d/loss": math.nan}}
    assert launched(tmp_path, "--sweep=seed=0:2") == 0
    assert capsys.readouterr().out.splitlines()[-3].split() == ["2", "nan"]


def test_the_names_of_directories_fit():
    paths = [f"npz:/{'x' * 150}/{i}.npz" for i in range(2)]
    names = {run.workdir.name for run in plan(f"csv={','.join(paths)}", "loss=hinge,logistic")}
    assert len(names) == 4 and all(len(name) < 220 for name in names)


def test_the_table_says_of_runs_of_a_halving_that_they_are_paused(tmp_path, pretend):
    whole = pretend.result
    pretend.result = lambda cfg: whole(cfg) | {"status": "paused" if cfg.pause_at < 1 else "done"}
    argv = ["--search=halving", "--sweep=g_lr=1e-5,1e-4,1e-3,1e-2", "--aim=min:d/loss"]
    for _ in range(2):
        assert launched(tmp_path, *argv) == 0
        assert [row["status"] for row in table(tmp_path)] == ["done", *["paused"] * 3]


@pytest.mark.parametrize(
    "argv, said",
    [
        (
            ["--search=halving", "--sweep=seed=0:9", "--aim=min:eval/FD"],
            "--aim=min:eval/FD: nothing is evaluated with --eval_every=0",
        ),
        (
            ["--search=tpe", "--sweep=g_lr=1,2", "--aim=min:d/loss"],
            "--search=tpe: needs axes to draw and --samples=N",
        ),
        (["--sweep=g_lr=1e-3,0.001"], "--sweep: g_lr=0.001 occurs twice"),
    ],
)
def test_searches_that_cannot_work_are_refused(tmp_path, pretend, argv, said):
    with pytest.raises(UserError) as caught:
        launched(tmp_path, *argv)
    assert cli.message_of(caught.value) == said and not pretend.started


def test_the_home_folder_is_that_of_every_file(tmp_path, pretend, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert launched("~/r", "--sweep=seed=0:2", "--vectorize=off") == 0
    folder = tmp_path / "home/r/mnist_gan"
    assert len(list(folder.glob("*/result.json"))) == 2 and len(table(tmp_path / "home/r")) == 2
    assert str(folder) in capsys.readouterr().out
    assert launched("~/r", "--seed=3", "--dry_run") == 0
    assert f"--workdir={folder}/" in capsys.readouterr().out
    (folder / "one").mkdir()
    (folder / "one/config.json").write_text('{"experiment": "x", "config": {"seed": 0}}')
    assert launch.run(["--report=~/r"]) == 0
    assert launch.run(["--report=~/r", "--report_to=~/to"]) == 0
    assert all((tmp_path / f"home/{at}/comparison.html").exists() for at in ("r", "to"))
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6, 7, 9}, raising=False)
    assert processes.share_cores(1) == [[]]
    assert processes.share_cores(2) == [[4, 5], [6, 7, 9]]
    assert processes.share_cores(5) == [[4], [5], [6], [7], [9]]
    assert processes.share_cores(7) == [[4], [5], [6], [7], [9], [4], [5]]


# From here on with real processes.


@pytest.fixture
def fake(tmp_path):
    """The flag that asks for a user's experiment, whose file is in another place than his runs."""
    file = tmp_path / "code" / "fake.py"
    file.parent.mkdir()
    file.write_text(FAKE)
    return f"--experiment={file}"


def environment(**extra):
    """Ours, without the virtual devices, and with bpgan on the path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    return kept | {"PYTHONPATH": str(ROOT)} | extra


def command(*argv):
    return [sys.executable, str(ROOT / "launch.py"), *argv]


def start(*argv, cwd):
    return subprocess.run(
        command(*argv), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.mark.medium
@pytest.mark.parametrize(
    "argv", [["launch.py", "--help"], ["-m", "experiments.linear_regression", "--help"]]
)
def test_output_that_nobody_reads_is_no_traceback(argv):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=environment(), stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.medium
def test_a_sweep_runs_reports_and_goes_on(fake, tmp_path):
    """From another directory, which has an ``experiments`` package of its own."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise ImportError('not this one')")
    argv = [
        fake,
        "--sweep=lr=0.5,13",
        "--sweep=seed=0:2",
        "--jobs=2",
        "--root=out",
        "--vectorize=off",
    ]
    done = start(*argv, "--epochs=3", cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stderr == ""
    folder = tmp_path / "out" / "fake"
    assert re.search(r"^\[1/4\] lr=0\.5 seed=0: started", done.stdout, re.M)
    assert re.search(r"^\[2/4\] lr=0\.5 seed=1: done in 0:\d\d$", done.stdout, re.M)
    failure = r"^\[3/4\] lr=13\.0 seed=0: failed \(exit 3\) in 0:\d\d: not finite at step 7$"
    assert re.search(failure, done.stdout, re.M)
    assert re.search(r"^lr=13\.0 seed=1: failed \(exit 3\): not finite", done.stdout, re.M)

    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["lr", "seed", "status", "step", "loss", "cores"] in lines
    cores = str(len(os.sched_getaffinity(0)) // 2 or 1)
    assert ["0.5", "1", "done", "5", "1.5", cores] in lines
    mean = f"{0.5 + statistics.mean([0, 1]):.4g} ± {statistics.stdev([0, 1]):.2g}".split()
    assert ["0.5", "2", *mean] == next(x for x in lines if x[:2] == ["0.5", "2"])[:5]

    (table,) = folder.glob("*.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(r["lr"], r["seed"], r["status"], r["loss"]) for r in rows[:3]] == [
        ("0.5", "0", "done", "0.5"),
        ("0.5", "1", "done", "1.5"),
        ("13.0", "0", "failed (exit 3)", ""),
    ]
    assert rows[0]["g/grad_norm"] == "1.0"
    workdir = tmp_path / rows[0]["workdir"]
    assert json.loads((workdir / "result.json").read_text())["status"] == "done"
    names = {p.name for p in workdir.iterdir()}
    assert names == {".lock", "ready", "config.json", "metrics.jsonl", "result.json"}
    log = workdir.with_name(workdir.name + ".log")
    assert log.read_text().splitlines()[2] == "training"

    # The same again, longer: the same directories, and the log is continued.
    start(*argv, "--epochs=5", cwd=tmp_path)
    assert len([p for p in folder.iterdir() if p.is_dir()]) == 4
    assert log.read_text().count("\ntraining\n") == 2


@pytest.mark.medium
def test_a_budget_stops_a_sweep_and_a_greater_one_goes_on(fake, tmp_path):
    argv = [fake, "--sweep=seed=0:4", "--jobs=1", "--vectorize=off"]
    begin = time.monotonic()
    done = start(*argv, "--budget=8s", "--pause=90", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 60
    assert "the budget is spent; the same command with a greater --budget goes on" in done.stdout
    started = len(list(tmp_path.glob("runs/fake/seed=*/")))
    assert 1 <= started < 4 and "not started" in done.stdout
    done = start(*argv, "--budget=1h", cwd=tmp_path)
    assert done.returncode == 0 and "budget" not in done.stdout
    assert len(list(tmp_path.glob("runs/fake/seed=*/result.json"))) == 4


@pytest.mark.slow
def test_a_budget_of_images_is_counted_while_runs_train(fake, tmp_path):
    """Five steps of 128 images each; without --vectorize, for under a budget each run is a process."""
    argv = [fake, "--sweep=seed=0:4", "--jobs=1", "--pause=2.5"]
    done = start(*argv, "--budget=1200img", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/4] seed=0: done" in done.stdout and "[2/4] seed=1: interrupted" in done.stdout
    assert len(list(tmp_path.glob("runs/fake/seed=*/"))) == 2
    done = start(*argv, "--budget=1e9img", "--pause=0.1", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count(": done in") == 4


@pytest.mark.medium
def test_what_a_group_refuses_ends_the_sweep_with_2(tmp_path):
    argv = ["--experiment=mnist_gan", "--dataset=idx:/nope", "--sweep=seed=0:2", "--jobs=1"]
    done = start(*argv, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.count("failed (exit 2): --dataset=idx:/nope") == 2


@pytest.mark.slow
def test_a_longer_sweep_that_is_killed_is_not_done(tmp_path):
    argv = ["--experiment=mnist_gan", "--preset=smoke", "--net=mlp", "--notensorboard",
            "--sweep=seed=0:2", "--jobs=1", "--log_every=1"]  # fmt: skip
    assert start(*argv, "--steps=2", cwd=tmp_path).returncode == 0
    longer = [*argv, "--steps=1000000"]
    process = subprocess.Popen(
        command(*longer), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 200
        (log,) = tmp_path.glob("runs/mnist_gan/group_*.log")
        while "step 3/1000000" not in log.read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGKILL)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75
    assert all(f"seed={i}: killed by SIGKILL, 1 of at most" in output for i in range(2))
    assert not list(tmp_path.glob("runs/mnist_gan/*/result.json"))
    # The same command does not take it for done.
    done = start(*argv, "--steps=6", cwd=tmp_path)
    assert done.returncode == 2 or "resuming at step 2" in log.read_text()


@pytest.mark.medium
def test_dry_run_prints_commands_that_work_here(fake, tmp_path):
    argv = [
        fake,
        "--dry_run",
        "--sweep=seed=4,5",
        "--batch_size=7",
        "--vectorize=off",
    ]
    printed = start(*argv, cwd=tmp_path)
    assert printed.returncode == 0 and not (tmp_path / "runs").exists()
    first, second = printed.stdout.splitlines()
    assert {"--seed=4", "--batch_size=7"} <= set(shlex.split(first))
    subprocess.run(second, shell=True, cwd=tmp_path, env=environment(), check=True, timeout=60)
    (workdir,) = (tmp_path / "runs" / "fake").iterdir()
    assert workdir.name.startswith("seed=5_")
    program = [*first.split(" -m ")[0].split()[-2:], *shlex.split(first.split(" -m ")[1])[:2]]
    assert program == [sys.executable, "-P", "bpgan.cli", str(tmp_path / "code" / "fake.py")]
    here = start("--experiment=mnist_gan", *argv[1:], cwd=ROOT).stdout.splitlines()[0]
    assert here.startswith(f"{shlex.quote(sys.executable)} -m experiments.mnist_gan ")


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_runs_once_and_are_waited_for(fake, tmp_path, number):
    argv = [fake, "--sweep=seed=0:2", "--jobs=1", "--preset=slow", "--vectorize=off"]
    process = subprocess.Popen(
        command(*argv), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 40
        while not list(tmp_path.glob("runs/fake/*/ready")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75
    assert re.search(r"\[1/2\] seed=0: interrupted in", output)
    assert "[2/2]" not in output and "not started" in output
    assert output.endswith("the same command continues\n")
    (log,) = tmp_path.glob("runs/fake/*.log")
    assert log.read_text().splitlines()[-1] == str(int(number))


def test_signals_after_the_budget_are_passed_on_as_they_come(tmp_path):
    """A run saves when the budget is spent, and ends at once on the second Ctrl-C after that."""
    script = (
        "import os, pathlib, signal, sys, time\n"
        "def told(number, frame):\n"
        "    print(int(number), flush=True)\n"
        "    heard.append(number)\n"
        "    sys.exit(75) if len(heard) == 3 else os.kill(os.getppid(), signal.SIGINT)\n"
        "heard = []\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, told)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "for _ in range(600): time.sleep(0.05)"
    )
    on, log = tmp_path / "on", tmp_path / "log"
    job = processes.Job("x", [sys.executable, "-c", script, str(on)], log, [0], [tmp_path])
    assert processes.execute([job], 1, lambda: not on.exists()) == ({0: cli.INTERRUPTED}, True)
    sent = [signal.SIGTERM, signal.SIGINT, signal.SIGINT]
    assert log.read_text().split()[-3:] == [str(int(number)) for number in sent]


def test_a_sweep_that_nobody_reads_on_is_told_to_save(tmp_path, monkeypatch):
    """As ``launch.py --sweep=... | head -1``; output on a full disk is an error of its own, of no run directory."""
    read, write = os.pipe()
    os.close(read)
    job = processes.Job("x", ["sleep", "60"], tmp_path / "log", [0], [tmp_path / "run"])
    with open(write, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert processes.execute([job], 1) == ({0: cli.INTERRUPTED}, True)
    with open("/dev/full", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(UserError, match=r"^the output cannot be written \(No space left"):
            processes.announce([job], 0, "done")


def test_a_killed_run_is_resumable(fake, tmp_path):
    done = start(fake, "--sweep=lr=14", cwd=tmp_path)
    assert done.returncode == 75
    assert "lr=14.0: failed (SIGKILL) in 0:0" in done.stdout
    assert "lr=14.0: killed by SIGKILL, 1 of at most 3 times" in done.stdout


@pytest.mark.medium
def test_no_run_outlives_its_launcher_and_the_next_one_waits_for_it(fake, tmp_path):
    argv = [fake, "--sweep=seed=0", "--pause=60"]
    process = subprocess.Popen(
        command(*argv), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (ready := list(tmp_path.glob("runs/fake/*/ready"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    while processes.is_trained(ready[0].parent):  # it saves, and is gone
        assert time.monotonic() < deadline
        time.sleep(0.05)
    result = json.loads(ready[0].with_name("result.json").read_text())
    assert result["status"] == "interrupted"
    # One that does not go: it is waited for, and said.
    with ready[0].with_name(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            command(*argv[:2]),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "seed=0: another process still trains it; waiting for it to save\n"
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "seed=0: done" in output


@pytest.mark.medium
def test_a_process_whose_launcher_is_gone_does_not_begin(tmp_path):
    argv = [sys.executable, "-m", "experiments.linear_regression", f"--workdir={tmp_path / 'a'}"]
    gone = environment(**{ended.PARENT: "1"} if os.getpid() != 1 else {ended.PARENT: "2"})
    done = subprocess.run(argv, cwd=ROOT, env=gone, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--experiment=mnist_gn"], "--experiment=mnist_gn: must be one of audit, classifier, "),
        (["--experiment=_cli"], "--experiment=_cli: must be one of audit, classifier, "),
        (["--experiment=nowhere.py"], "--experiment=nowhere.py: "),
        (["--experiment=os.path"], "--experiment=os.path: is no experiment"),
        (["mnist_gan"], "unexpected argument 'mnist_gan'; did you mean --experiment=mnist_gan?"),
        ([], "--experiment=NAME is needed; --list describes them"),
        (
            ["--experimnt=vae"],
            "--experiment=NAME is needed before '--experimnt=vae'; did you mean",
        ),
        (["--experiment=vae", "--lr=-1"], "--lr=-1: must be a number > 0"),
        (["--experiment=vae", "--sweeep=lr=1"], "--sweeep: unknown flag; did you mean --sweep?"),
        (["--experiment=vae", "--jobs=-1"], "--jobs=-1: must be a whole number >= 0"),
        (["--experiment=vae", "--sweep=lr=1", "--budget=2d"], "--budget=2d: must be like 90s"),
        (["--experiment=vae", "--sweep=lr=1", "--budget=1.2.3s"], "--budget=1.2.3s: must be like"),
        (
            ["--experiment=vae", "--sweep=lr=1", "--aim=FD"],
            "--aim=FD: must be min:METRIC or max:METRIC",
        ),
        (
            ["--experiment=vae", "--sweep=lr=1", "--search=best"],
            "--search=best: must be one of all, halving, tpe",
        ),
        (["--experiment=vae", "--sweep=lr=log:1:2"], "--sweep=lr=...: --samples=N must say"),
        (
            ["--experiment=vae", "--sweep=lr=1", "--search=tpe"],
            "--search=tpe: --aim=min:METRIC must",
        ),
        (
            ["--experiment=vae", "--sweep=lr=1", "--aim=min:x"],
            "--search=all: --aim=min:METRIC cannot",
        ),
        (["--experiment=vae", "--samples=3"], "--samples: has no effect without --sweep"),
        (["--experiment=vae", "--aim", "min:x"], "--aim: has no effect without --sweep"),
        (["--experiment=vae", "--list=x"], "--list=x: must be true or false"),
        (["--experiment=vae", "stray"], "unexpected argument 'stray'"),
        (
            ["--report=nowhere", "--report_metirc=x", "stray"],
            "--report_metirc=x: has no part in --report; did you mean --report_metric?",
        ),
        (["--report=nowhere", "--report-to=x"], "--report-to=x: has no part in --report; did you"),
        (["--report=nowhere", "--samples=3"], "--samples=3: has no part in --report; --help lists"),
        (["--report=nowhere", "stray"], "stray: has no part in --report; --help lists the flags"),
        (["--list", "--nonsense=1"], "--nonsense=1: has no part in --list; --help lists"),
    ],
)
def test_messages(monkeypatch, capsys, argv, said):
    monkeypatch.setattr(sys, "argv", ["launch.py", *argv])
    with pytest.raises(SystemExit) as caught:
        launch.main()
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1


def test_an_unusable_root_is_one_line(fake, tmp_path):
    (tmp_path / "file").touch()
    done = start(fake, "--sweep=seed=1", "--root=file/x", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: --root: .*: cannot be written \(.*\)\n", done.stderr)


@pytest.mark.medium
def test_help_and_list(fake, tmp_path):
    listed = start("--list", cwd=tmp_path)
    assert "fake" not in listed.stdout
    said = " ".join(listed.stdout.split())
    for name in experiments.names():
        summary, presets = experiments.describe(name)
        assert f"{name} {summary} presets: {', '.join(presets)}" in said
    overview = start("--help", cwd=tmp_path).stdout
    assert all(f"  --{name}" in overview for name in launcher_flags.NAMES)
    assert listed.stdout in overview
    assert start("--report=nowhere", "--help", cwd=tmp_path).stdout == overview
    own = start(fake, "--help", cwd=tmp_path)
    assert own.returncode == 0 and own.stderr == ""
    assert own.stdout.startswith("A stand-in that pretends") and "--lr=0.1" in own.stdout


def test_no_experiment_has_a_flag_of_the_launcher():
    def having(base, name):
        own = dataclasses.make_dataclass(
            "Own", [(name, int, 1)], bases=(base,), frozen=True, kw_only=True
        )
        return experiments.Script("own", types.SimpleNamespace(Config=own))  # type: ignore

    for name in experiments.names():
        launcher_flags.check_names(experiments.find(name))
    launcher_flags.check_names(having(cli.Config, "samples"))
    for base, name in ((cli.RunConfig, "samples"), (cli.RunConfig, "root"), (cli.Config, "sweep")):
        with pytest.raises(UserError, match=f"experiment=own: `{name}` is a flag of the launcher"):
            launcher_flags.check_names(having(base, name))


# Values with commas.


@pytest.mark.parametrize(
    "text, values",
    [
        ("a,b", ["a", "b"]),
        ("a", ["a"]),
        (",", ["", ""]),
        ("'a,b','c,d',e", ["a,b", "c,d", "e"]),
        ('"a,b","c"', ["a,b", "c"]),
        ("''", [""]),
        ("'it''s, say',\"2\"\"\"", ["it's, say", '2"']),
        ("it's,5\"", ["it's", '5"']),
        ("net:a=1,'keep=3,best=1'", ["net:a=1", "keep=3,best=1"]),
    ],
)
def test_a_value_with_commas_stands_in_quotes(text, values):
    assert list(search.split_values(text)) == values
    one = search.parse_axis(f"csv=choice:{text}", cli.flags_of(Config))
    assert (one.kind, list(one.values)) == ("choice", values)


@pytest.mark.parametrize("text", ["'a", "'a'b", "a,'b,c", "'a''", "\"a,b',c", "'a' ,b"])
def test_quotes_that_do_not_end_with_a_value_are_refused(text):
    expected = f"--sweep=csv={text}: must have quotes around whole values: 'a,b','c,d'"
    assert refused(f"csv={text}") == expected


def test_swept_values_with_commas_have_names_members_and_tables(tmp_path):
    runs = plan("csv='a,b','a','b'", "seed=0:2", root=tmp_path)
    assert [run.values["csv"] for run in runs] == ["a,b", "a,b", "a", "a", "b", "b"]
    assert len({run.workdir for run in runs}) == 6
    (job,) = make_jobs(SCRIPT, runs[:2], "on", 1)
    members = [shlex.split(arg[9:]) for arg in job.command if arg.startswith("--member=")]
    assert [own[:2] for own in members] == [["--csv=a,b", f"--seed={i}"] for i in range(2)]
    # Quotes are of the command line only: they are in no name, and no hash.
    plain, quoted = (plan(f"csv={text}", root=tmp_path) for text in ("a,b", "'a',\"b\""))
    assert plain == quoted
    alone = plan("csv=a", argv=["--loss=hinge"], root=tmp_path)[0].workdir
    assert plan("csv='a'", root=tmp_path)[0].workdir == alone


@pytest.mark.medium
def test_a_sweep_of_values_with_commas_is_done_once(fake, tmp_path):
    argv = [fake, "--sweep=betas='0.5,0.99','0,0.9'", "--sweep=seed=0:2", "--vectorize=off"]
    for times in (1, 2):
        done = start(*argv, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("all 4 runs are done" in done.stdout) == (times == 2)
        rows = [line.split() for line in done.stdout.splitlines()]
        assert ["0.5,0.99", "1", "done"] in [row[:3] for row in rows]
    (file,) = (tmp_path / "runs" / "fake").glob("sweep_*.csv")
    table = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["betas"] for row in table] == ["0.5,0.99"] * 2 + ["0,0.9"] * 2
    assert all(row["status"] == "done" and (tmp_path / row["workdir"]).is_dir() for row in table)
    drawn = start(fake, "--sweep=betas=choice:'0.5,0.99','0,0.9'", "--samples=9", cwd=tmp_path)
    assert drawn.returncode == 0 and "betas=0,0.9: done" in drawn.stdout


# The real experiments.


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_described_and_has_presets_that_resolve(name):
    found = experiments.find(name)
    summary, presets = experiments.describe(name)
    assert summary and len(summary) <= 100
    assert presets == list(found.presets) and "smoke" in presets
    for preset in presets:
        cfg = cli.resolve(found.config, found.presets, [f"--preset={preset}"])
        for field, value in found.presets[preset].items():
            assert getattr(cfg, field) == value
    help = cli.help_text(found.config, found.presets, found.module)
    assert help.startswith(summary)
    specs = cli.flags_of(found.config)
    # What an experiment adds to that on which it is built: to the flags of every run, or to another experiment.
    base = found.config.__mro__[1].__dataclass_fields__
    own = [name for name in specs if name not in base]
    assert len(own) <= 17, "a command line nobody can survey; split the experiment"
    for spec in specs.values():
        assert spec.help, f"--{spec.name} has no help"


@pytest.mark.slow
def test_groups_of_real_runs_halve_and_are_not_trained_twice(tmp_path):
    argv = ["--experiment=mnist_gan", "--preset=smoke", "--net=mlp", "--steps=9", "--notensorboard",
            "--sweep=g_lr=log:1e-4:1e-2", "--samples=4", "--sweep=seed=0:2", "--search=halving",
            "--aim=min:d/loss"]  # fmt: skip
    done = start(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rung 1 of 2: 4 settings at 0.333 of a run" in done.stdout
    assert "rung 2 of 2: 1 setting at 1 of a run" in done.stdout
    results = [json.loads(f.read_text()) for f in tmp_path.glob("runs/mnist_gan/*/result.json")]
    assert (
        sorted((r["status"], r["step"]) for r in results) == [("done", 9)] * 2 + [("paused", 3)] * 6
    )
    losses = [r["metrics"]["d/loss"] for r in results]
    again = start(*argv, cwd=tmp_path)
    assert again.returncode == 0 and "started" not in again.stdout
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    results = [json.loads(f.read_text()) for f in tmp_path.glob("runs/mnist_gan/*/result.json")]
    assert [r["metrics"]["d/loss"] for r in results] == losses
    # More samples keep the first ones, that past its pause, too: scored as it was there.
    more = start(*argv, "--samples=5", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    first, second = (re.search(r"rung 1 of 2: .*; best: (.*)", x.stdout) for x in (done, more))
    scores = [float(found[1].split()[-1]) for found in (first, second)]
    assert scores[1] <= scores[0] and "inf" not in more.stdout
    assert len(list(tmp_path.glob("runs/mnist_gan/*/checkpoints/9"))) >= 2


@pytest.mark.slow
def test_a_sweep_of_real_runs_is_extended_by_a_longer_one(tmp_path):
    def results(*argv, code=0):
        argv = ["--experiment=linear_regression", "--preset=smoke", "--notensorboard", *argv]
        done = start(*argv, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        files = tmp_path.glob("runs/linear_regression/*/result.json")
        return {f.parent.name: json.loads(f.read_text()) for f in files}, done.stdout

    def descent(lr, steps):  # the article's problem in NumPy
        x, w, b = np.arange(1.0, 6.0), 0.0, 0.0
        for _ in range(steps):
            error = w * x + b - x
            w, b = w - lr * 2 * np.mean(error * x), b - lr * 2 * np.mean(error)
        return [w, b]

    def check(runs, steps):
        for name, result in runs.items():
            lr = float(re.match(r"lr=([0-9.]+)_", name)[1])  # type: ignore[index]
            assert (result["status"], result["step"]) == ("done", steps)
            found = [result["metrics"]["w[x]"], result["metrics"]["b"]]
            np.testing.assert_allclose(found, descent(lr, steps), rtol=1e-5, atol=1e-6)

    short, _ = results("--sweep=lr=0.01,0.02", "--jobs=2")
    assert len(short) == 2
    check(short, 20)
    # One more value, which this experiment's build refuses, and ten epochs more for the others.
    longer, output = results("--sweep=lr=0.01,0.02,0.5", "--jobs=2", "--epochs=30", code=2)
    assert longer.keys() == short.keys()
    check(longer, 30)
    assert (
        "resuming at step 20"
        in (tmp_path / "runs/linear_regression").joinpath(f"{min(short)}.log").read_text()
    )
    assert re.search(r"lr=0\.5: failed \(exit 2\).*: --lr=0\.5: diverges", output)
