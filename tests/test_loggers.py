"""What else a run is logged to: loggers are told what the log says, also of a run that goes on; none is needed."""

import csv
import importlib.machinery
import json
import math
import os
import sys
import types

import pytest
from absl import logging

from bpgan import cli
from bpgan.runtime import loggers, records
from experiments import linear_regression

STEPS = 40


def fit(path, *flags):
    argv = ["--preset=smoke", "--notensorboard", f"--epochs={STEPS}", f"--workdir={path}", *flags]
    code = cli.run(
        linear_regression.Config, linear_regression.build, linear_regression.PRESETS, argv
    )
    assert code == 0


def log_of(path):
    """The numbers of the log, NaN left out: name and step to value."""
    lines = records.read_log(path / "metrics.jsonl")
    return {
        (name, line["step"]): value
        for line in lines
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


class Told:
    """A logger that remembers what it is told, of all runs."""

    runs: dict = {}

    def __init__(self, opened):
        self.opened, self.ended = opened, 0
        self.values, self.final, self.images = {}, {}, []
        self.runs[opened.path.name] = self

    def write(self, step, values):
        self.values |= {(name, step): value for name, value in values.items()}

    def image(self, step, png):
        self.images.append((step, png.read_bytes()[:4]))

    def finish(self, values):
        self.final = dict(values)

    def close(self):
        self.ended += 1


class Fails(Told):
    def write(self, step, values):
        raise ConnectionError("no\nroute")


def test_a_logger_is_told_what_the_log_says(tmp_path, monkeypatch):
    monkeypatch.setitem(loggers.LOGGERS, "told", Told)
    fit(tmp_path / "a", "--log_to=told")
    told = Told.runs["a"]
    assert told.values == log_of(tmp_path / "a") and told.ended == 1
    assert told.opened.config["epochs"] == STEPS and not told.opened.lines
    result = records.read_result(tmp_path / "a/result.json")
    assert told.final == result.metrics and "distance" in told.final
    assert told.opened.run == result.run


def test_a_run_that_goes_on_tells_what_it_said_before(tmp_path, monkeypatch):
    """Its log is cut back to its checkpoint; the rest is said again."""
    monkeypatch.setitem(loggers.LOGGERS, "told", Told)
    fit(tmp_path / "a", "--pause_at=0.5")
    fit(tmp_path / "a", "--log_to=told")
    told = Told.runs["a"]
    steps = [line["step"] for line in told.opened.lines]
    assert steps == [10, 20] and {step for _, step in told.values} == {30, 40}
    before = {
        (k, line["step"]): v for line in told.opened.lines for k, v in line.items() if k != "step"
    }
    assert told.values | before == log_of(tmp_path / "a")


def test_a_logger_that_fails_is_given_up_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(loggers.LOGGERS, "fails", Fails)
    monkeypatch.setitem(loggers.LOGGERS, "told", Told)
    fit(tmp_path / "b", "--log_to=fails,told")
    said = capsys.readouterr().err
    assert said == (
        "warning: the logger fails is given up (ConnectionError: no route); the run goes on without it\n"
    )
    assert Told.runs["b"].final and records.read_result(tmp_path / "b/result.json").status == "done"


def test_a_table_of_the_log(tmp_path):
    """A row to a line, whole after a resume, also where columns come later."""
    fit(tmp_path / "a", "--pause_at=0.5", "--log_to=csv")
    fit(tmp_path / "a", "--log_to=csv")
    with (tmp_path / "a/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(k, int(r["step"])): float(v) for r in rows for k, v in r.items() if k != "step" and v}
    assert found == log_of(tmp_path / "a") and len(rows) == 4
    opened = loggers.Opened(tmp_path, "", "x", {}, [{"step": 1, "a": 0.5}])
    table = loggers.Csv(opened)
    table.write(2, {"a": 1.0, "=b": 2.0})
    table.write(3, {"a": 1.5})
    assert (tmp_path / "metrics.csv").read_text() == "step,a,'=b\n1,0.5,\n2,1.0,2.0\n3,1.5,\n"


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--log_to=csv,tb"],
            "--log_to=csv,tb: 'tb' is not a logger; must be some of csv, wandb, mlflow",
        ),
        (
            ["--log_to=none_such"],
            "--log_to=none_such: needs the package bpgan_none_such: pip install",
        ),
    ],
)
def test_what_cannot_be_logged_to_is_refused_first(tmp_path, monkeypatch, capsys, flags, message):
    if "none_such" in flags[0]:
        monkeypatch.setitem(loggers.LOGGERS, "none_such", Told)
        monkeypatch.setitem(loggers.PACKAGES, "none_such", "bpgan_none_such")
    argv = ["--preset=smoke", f"--workdir={tmp_path / 'run'}", *flags]
    assert (
        cli.run(linear_regression.Config, linear_regression.build, linear_regression.PRESETS, argv)
        == 2
    )
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_nothing_of_a_service_is_imported_without_need(tmp_path, monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # whose import is an error
    fit(tmp_path / "a", "--log_to=csv")


def test_what_wandb_is_asked_for(tmp_path, monkeypatch):
    """One run of the service to a run, which goes on under its name; the package itself is not needed for this."""
    begun = []

    class Run:
        def __init__(self, **asked):
            self.asked, self.logged, self.summary, self.finished = asked, {}, {}, False
            begun.append(self)

        def log(self, values, step):
            self.logged |= {(name, step): value for name, value in values.items()}

        def finish(self):
            self.finished = True

    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.init, fake.Settings = Run, dict
    monkeypatch.setitem(sys.modules, "wandb", fake)
    fit(tmp_path / "a", "--pause_at=0.5", "--log_to=wandb")
    fit(tmp_path / "a", "--log_to=wandb")
    first, second = begun
    identity = json.loads((tmp_path / "a/config.json").read_text())["run"]
    assert first.asked["id"] == second.asked["id"] == identity and second.asked["resume"] == "allow"
    assert first.logged | second.logged == log_of(tmp_path / "a")
    assert first.finished and second.finished and not first.summary
    assert second.summary["final/distance"] > 0


def records_of(raw):
    """The records of a W&B file: in blocks of 32 KiB, whose pieces say their length and whether they go on."""
    at, parts = 7, []
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        parts.append(raw[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


@pytest.mark.medium
def test_wandb_offline(tmp_path, monkeypatch):
    """What is on the disk is what the log says."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(tmp_path / "a", "--log_to=wandb")
    (file,) = (tmp_path / "a").glob("wandb/offline-run-*/*.wandb")
    found = {}
    for raw in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            items = {
                i.key or "/".join(i.nested_key): json.loads(i.value_json)
                for i in record.history.item
            }
            step = items.pop("_step", record.history.step.num)
            found |= {(k, step): v for k, v in items.items() if not k.startswith("_")}
    assert found == log_of(tmp_path / "a")


@pytest.mark.medium
@pytest.mark.filterwarnings("default")  # of its own packages
def test_mlflow_offline(tmp_path, monkeypatch):
    """A run that goes on is one run of the service, of which no step is said twice."""
    pytest.importorskip("mlflow")
    from mlflow import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'ml.db'}")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "a", "--pause_at=0.5", "--log_to=mlflow")
    fit(tmp_path / "a", "--log_to=mlflow")
    client = tracking.MlflowClient()
    experiment = client.get_experiment_by_name("linear_regression")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["epochs"] == str(float(STEPS)) and run.info.status == "FINISHED"
    assert run.data.metrics["final/distance"] > 0
    names = {name for name, _ in log_of(tmp_path / "a")}
    history = [
        (name, m) for name in names for m in client.get_metric_history(run.info.run_id, name)
    ]
    assert {(name, m.step): m.value for name, m in history} == log_of(tmp_path / "a")
    assert len(history) == len(log_of(tmp_path / "a"))
    assert os.listdir(tmp_path / "a")


def test_a_new_configuration_of_logging_leaves_the_tests_streams_open(capsys):
    handler = logging.get_absl_handler().python_handler
    handler.close()  # as `logging.config` does, here beside a replaced `sys.stderr`
    assert not handler.stream.closed
