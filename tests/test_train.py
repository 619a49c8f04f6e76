"""The loop and the checkpoints: exact resume, clean stops, refused directories."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pathlib
import shutil
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks.tensorboard_points import assert_says_the_log, points_of, reader
from checks.training import fit, logged, small_gan, source

from bpgan.penalties import lecam, weighted
from bpgan.report.page import update_report
from bpgan.runtime import directory, program, records, signals, train
from bpgan.runtime.checkpoint import Checkpoints, Keep
from bpgan.runtime.log import Log
from bpgan.runtime.program import Window, compile_program
from bpgan.types import Algorithm, UserError


def final_state(workdir, step=None):
    """Everything in the newest checkpoint."""
    program = compile_program(small_gan(), source(), seed=3)
    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints", keep=Keep(100))
    found, carry = checkpoints.restore(program.abstract)
    checkpoints.close()
    assert step is None or found == step
    return jax.device_get(carry)


pytestmark = pytest.mark.usefixtures("optimized", "no_curves")


@pytest.fixture(scope="module")
def straight(optimized, tmp_path_factory):
    path = tmp_path_factory.mktemp("straight")
    result = fit(path, 13, sample_every=5)
    assert result.status == "done" and result.step == 13
    return path


def test_resume_from_every_checkpoint_is_bitwise(straight, tmp_path, trees_equal):
    """Steps 3, 6, 9 and 12 are not log points, so the half-full metric window must survive too."""
    expected, log = final_state(straight, 13), logged(straight)
    grid = (straight / "samples/step_00000013.png").read_bytes()
    assert [line["step"] for line in log if "d/loss" in line] == [4, 8, 12, 13]
    assert [line["step"] for line in log if "samples/variance" in line] == [5, 10, 13]
    for step in (3, 6, 9, 12):
        run = tmp_path / str(step)
        shutil.copytree(straight, run)
        for other in (run / "checkpoints").iterdir():
            if other.name != str(step):
                shutil.rmtree(other)
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 14, "torn')
        fit(run, 13, sample_every=5)
        trees_equal(expected, final_state(run, 13))
        assert logged(run) == log
        assert (run / "samples/step_00000013.png").read_bytes() == grid


@pytest.mark.medium
def test_a_run_that_goes_on_under_other_circumstances_says_so(straight, tmp_path, capsys):
    """In one line with both values, and goes on; the record is then of what it goes on with."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for other in (9, 12, 13):
        shutil.rmtree(run / "checkpoints" / str(other), ignore_errors=True)
    record = json.loads((run / "config.json").read_text())
    assert set(record["compiler"]) == {"xla_flags", "options", "runtime", "cache"}
    assert record["compiler"]["options"] == "xla_cpu_prefer_vector_width=512"
    record["versions"]["jaxlib"], record["compiler"]["xla_flags"] = "0.1.2", "xla_other=1"
    (run / "config.json").write_text(json.dumps(record))
    capsys.readouterr()
    fit(run, 13, sample_every=5)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert f"jaxlib was 0.1.2, now {jax.lib.__version__}" in said
    assert "XLA_FLAGS was xla_other=1, now " in said
    for other in (9, 12, 13):
        shutil.rmtree(run / "checkpoints" / str(other), ignore_errors=True)
    fit(run, 13, sample_every=5)
    assert "warning" not in capsys.readouterr().err


class Counted(NamedTuple):
    step: jax.Array


def counting():
    """The metric of a step is its number, so every mean is known."""

    def step(state, batch, key):
        now = Counted(state.step + 1)
        return now, {"at": now.step.astype(jnp.float32), "squared": 1.0 * now.step**2}

    return Algorithm(init=lambda key: Counted(jnp.int32(0)), step=step)


def count(workdir, steps, **options):
    return fit(workdir, steps, algorithm=counting(), checkpoint_every=0, **options)


def mean_steps(workdir):
    """Of each log line, its step and the first and last step that its means are over."""
    found = []
    for line in logged(workdir):
        first, last = 2 * line["at"] - line["step"], line["step"]
        squares = [n**2 for n in range(round(first), last + 1)]
        assert line["squared"] == pytest.approx(sum(squares) / len(squares), rel=1e-6)
        found.append((last, round(first), last))
    return found


@pytest.mark.medium
def test_means_are_over_whole_windows(tmp_path):
    """What is left of one at the end or at a pause is joined to the one before, and nothing remembers it."""
    whole = [(4, 1, 4), (8, 5, 8), (12, 9, 12)]
    result = count(tmp_path / "a", 13)
    assert mean_steps(tmp_path / "a") == [*whole, (13, 9, 13)]
    assert result.metrics["at"] == 11 and result.metrics["squared"] == pytest.approx(123)
    count(tmp_path / "a", 15)  # longer, after all
    count(tmp_path / "a", 21)
    longer = [*whole, (13, 9, 13), (15, 9, 15), (16, 13, 16), (20, 17, 20), (21, 17, 21)]
    assert mean_steps(tmp_path / "a") == longer
    paused = [count(tmp_path / "b", 12, pause=at).metrics["at"] for at in (2, 3, 4, 7, 9)]
    assert paused == [1.5, 2, 2.5, 4, 7]
    count(tmp_path / "b", 12)
    pauses = [(2, 1, 2), (3, 1, 3), whole[0], (7, 1, 7), whole[1], (9, 5, 9), whole[2]]
    assert mean_steps(tmp_path / "b") == pauses
    assert mean_steps(tmp_path / "a")[:3] == whole


@pytest.mark.medium
@pytest.mark.parametrize("every", [0, 100])
def test_a_run_shorter_than_a_window_is_averaged_as_a_whole(tmp_path, every):
    assert count(tmp_path, 6, log_every=every, pause=3).metrics["at"] == 2
    assert count(tmp_path, 6, log_every=every).metrics["at"] == 3.5
    assert count(tmp_path, 9, log_every=every).metrics["at"] == 5


def test_what_is_left_of_a_window_is_averaged_with_the_one_before(tmp_path):
    def means(log, count, total):
        return log.means(Window(np.int32(count), {"at": np.float32(total)}))

    log = Log(tmp_path, 0, 30, source(), every=4, speak=False, tensorboard=False)
    assert means(log, 2, 6.0) == {"at": 3.0}  # there is none before
    log.write(2, {"at": 3.0}, {}, {})  # a pause
    assert means(log, 4, 20.0) == {"at": 5.0}
    log.write(4, {"at": 5.0}, {}, {})
    log.write(5, {}, {"samples/variance": 1.0, "samples/duplicates": 0.0}, {})
    log.write(7, {"at": 100.0}, {}, {})
    for _ in range(2):  # now, and read back from the file
        assert means(log, 1, 10.0) == {"at": (4 * 5 + 10) / 5}
        log.close()
        log = Log(tmp_path, 7, 30, source(), every=4, speak=False, tensorboard=False)
    log.close()


def test_seconds_add_up_to_those_of_the_process(tmp_path):
    """With the evaluation, of a process that begins and of one that goes on."""

    def slow(_):
        time.sleep(0.3)
        return {"slow": 1.0}

    for steps in (6, 9):
        begin = time.perf_counter()
        count(tmp_path, steps, evaluate=slow)
        took = time.perf_counter() - begin
        seconds = json.loads((tmp_path / "result.json").read_text())["timings"]
        total = seconds.pop("total_s")
        assert seconds["evaluate_s"] >= 0.3
        assert sum(seconds.values()) == pytest.approx(total, abs=0.01) and total < took


def test_the_speed_leaves_out_compilation_and_elapsed_time_no_step(tmp_path, monkeypatch):
    """Also not the steps between the last line and the checkpoint that the run goes on from."""
    seconds = iter(range(0, 10**6, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    log = Log(tmp_path, 0, 30, source(), every=4, speak=False, tensorboard=False)
    log.compiled(1)
    log.write(1, {"at": 1.0}, {}, {})
    assert "time/steps_per_s" not in log.values  # it was all compilation
    for step in (4, 8, 12, 13):
        log.write(step, {"at": 1.0}, {}, {})
    log.close()
    lines = records.read_log(tmp_path / "metrics.jsonl")
    times = {line["step"]: line["time/elapsed"] for line in lines}
    speeds = {line["step"]: line.get("time/steps_per_s") for line in lines}
    # Every reading of the clock takes ten seconds here, two to a line.
    assert speeds == {1: None, 4: 0.1, 8: 0.2, 12: 0.2, 13: round(5 / 40, 3)}
    log = Log(tmp_path, 11, 30, source(), every=4, speak=False, tensorboard=False)
    log.close()
    assert log._before == times[8] + 3 / 0.2


class Terminal(io.StringIO):
    """Of 40 columns; ``lines()`` are what stands there in the end."""

    def isatty(self):
        return True

    def lines(self):
        return [line.rpartition("\r")[2] for line in self.getvalue().split("\n")]


def test_a_terminal_gets_whole_words_and_a_bar_of_its_own(tmp_path, monkeypatch):
    """The bar begins after the first call, so that the time left does not count the compilation, and ends in time."""
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    calls = []
    advance = Log.compiled
    monkeypatch.setattr(Log, "compiled", lambda *args: calls.append(args) or advance(*args))
    count(tmp_path, 8)
    assert [step for _, step in calls] == [1]
    lines = terminal.lines()
    text = [line for line in lines if "%|" not in line and str(tmp_path) not in line]
    assert max(map(len, text)) <= 40, lines
    words = " ".join(lines).split()
    pairs = zip(words, words[1:], strict=False)
    assert {"at", "squared", "epoch"} <= {name for name, value in pairs if value[0].isdigit()}
    for name in ("at ", "squared ", "epoch "):
        assert not any(line.endswith(name) or line.endswith(name.strip()) for line in lines)
    (bar,) = [line for line in lines if "100%" in line]
    assert "8/8" in bar and bar.rstrip().endswith("]")
    assert lines[lines.index(bar) + 1].startswith("done at step 8")


def test_what_is_no_terminal_gets_one_line(tmp_path, capsys):
    count(tmp_path, 4)
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("step ")]
    assert line.isascii() and line.startswith("step 4/4  epoch 1.28  at 2.5  squared 7.5  ")


@pytest.mark.medium
def test_longer_run_continues_a_finished_one(straight, tmp_path, trees_equal):
    run = tmp_path / "run"
    fit(run, 6)
    assert fit(run, 13).step == 13
    trees_equal(final_state(straight).state, final_state(run).state)


@pytest.mark.medium
def test_length_of_calls_does_not_change_the_run(straight, tmp_path, trees_equal, monkeypatch):
    """How many steps a call takes depends on the machine's speed; the result must not."""
    monkeypatch.setattr(train, "_CALL_SECONDS", 0.0)  # one step per call
    fit(tmp_path / "run", 13, sample_every=5)
    trees_equal(final_state(straight), final_state(tmp_path / "run"))
    assert logged(tmp_path / "run") == logged(straight)


def test_finished_run_is_left_as_it_is(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    before = (run / "metrics.jsonl").read_bytes()
    assert fit(run, 13, sample_every=5).status == "done"
    assert (run / "metrics.jsonl").read_bytes() == before


def test_damaged_checkpoint_is_reported_and_the_one_before_used(
    straight, tmp_path, trees_equal, capsys
):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for file in (run / "checkpoints/13").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    (run / "checkpoints/99").mkdir()
    fit(run, 13)
    said = capsys.readouterr().out
    assert "99 is damaged" in said and "13 is damaged" in said and "resuming at step 12" in said
    trees_equal(final_state(straight, 13), final_state(run, 13))


def test_no_readable_checkpoint_is_an_error_not_a_fresh_start(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for file in (run / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="its 5 checkpoints cannot be read"):
        fit(run, 13)


def test_neither_are_checkpoints_that_are_gone(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="came to step 13, and its checkpoints are gone") as caught:
        fit(run, 20)
    assert "\n" not in str(caught.value)
    assert logged(run) == logged(straight) and (run / "result.json").exists()


def test_nor_those_of_a_run_that_was_killed(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="the run has been saved, and its checkpoints are gone"):
        fit(run, 20)
    assert logged(run) == logged(straight)


@pytest.mark.medium
def test_nor_that_of_a_run_that_was_saved_once(tmp_path, monkeypatch):
    write = Log.write

    def killed(log, step, *line):
        while step == 7 and not (tmp_path / "run/checkpoints/6").exists():
            time.sleep(0.01)
        if step == 8:
            raise RuntimeError("killed")
        return write(log, step, *line)

    monkeypatch.setattr(Log, "write", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "run", 9, log_every=1, checkpoint_every=6)
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["6"]
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(UserError, match="the run has been saved, and its checkpoints are gone"):
        fit(tmp_path / "run", 9)


@pytest.mark.medium
def test_non_finite_stops_and_keeps_the_last_sound_checkpoint(tmp_path):
    def exploding(step):
        return jnp.where(step < 7, 1e-2, jnp.inf)

    with pytest.raises(train.Anomaly) as caught:
        fit(tmp_path / "run", 20, algorithm=small_gan(tx=optax.sgd(exploding)))
    message = str(caught.value)
    assert (
        "checkpoint of step 6 is kept" in message and "params/" in message and "\n" not in message
    )
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "non-finite" and (tmp_path / "run/report.html").exists()
    steps = sorted(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir())
    assert steps == [3, 6]


@pytest.mark.medium
@pytest.mark.parametrize("devices", [1, 8])
def test_state_is_donated_and_traced_once(devices):
    """For the shapes of the metrics and for calls of every length."""
    traces = []
    algorithm = small_gan()

    def step(*args):
        traces.append(1)
        return algorithm.step(*args)

    program = compile_program(algorithm._replace(step=step), source(), seed=0, devices=devices)
    carry = first = program.init()
    for k in (1, 2, 5, 3):
        carry, finite = program.run(carry, k)
        assert bool(finite)
    assert len(traces) == 1
    assert all(x.is_deleted() for x in jax.tree.leaves(first))
    assert int(carry.state.step) == 11 == int(carry.window.count)


@pytest.mark.medium
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict(), marks=pytest.mark.slow),
        dict(loss="relativistic_average", more=[weighted(0.3, lecam(start=1))]),
    ],
    ids=["pairs", "means of the whole batch"],
)
def test_devices_and_modes_agree(trees_close, options):
    """One device, eight devices and pmap; SGD, because Adam would hide a gradient that is too large by a factor."""
    results = {}
    for mode, devices in (("jit", 1), ("jit", 8), ("pmap", 4)):
        program = compile_program(
            small_gan(mode, tx=optax.sgd(0.05), **options),
            source(),
            seed=0,
            mode=mode,
            devices=devices,
        )
        carry, finite = program.run(program.init(), 4)
        assert bool(finite)
        results[mode, devices] = (carry.state, carry.window.means())
    for other in list(results)[1:]:
        trees_close(results["jit", 1], results[other], rtol=2e-4, atol=2e-5)


def test_uneven_batch_is_refused():
    with pytest.raises(UserError, match="batch_size: 20 rows cannot be split over 8 devices"):
        compile_program(small_gan(), source(20), seed=0)


@pytest.mark.medium
@pytest.mark.parametrize(
    "modes",
    [("jit", "jit", "jit"), pytest.param(("pmap", "jit", "pmap"), marks=pytest.mark.slow)],
)
def test_restart_on_other_devices(tmp_path, trees_close, trees_equal, modes):
    """1, 8, then 2 devices, and from one mode to the other: the restored bits, and an end within float tolerance."""

    def program(devices, mode="jit"):
        algorithm = small_gan(mode, tx=optax.sgd(1e-2))
        return compile_program(algorithm, source(), seed=0, devices=devices, mode=mode)

    alone = program(1)
    expected, _ = alone.run(alone.init(), 6)
    carry, step = None, 0
    for devices, mode in zip((1, 8, 2), modes, strict=True):
        part = program(devices, mode)
        checkpoints = Checkpoints(tmp_path, keep=Keep(1))
        found = checkpoints.restore(part.abstract)
        assert (found is None) == (carry is None)
        if found:
            assert found[0] == step
            trees_equal(jax.device_get(carry), jax.device_get(found[1]))
        carry, finite = part.run(found[1] if found else part.init(), 2)
        step += 2
        assert bool(finite)
        checkpoints.save(step, carry)
        checkpoints.close()
    trees_close(expected, carry, rtol=2e-4, atol=2e-5)


@pytest.mark.medium
def test_later_changes_do_not_reach_a_checkpoint(tmp_path, trees_equal):
    """The state is donated to the next call while the checkpoint is still being written."""
    program = compile_program(small_gan(), source(), seed=0)
    checkpoints = Checkpoints(tmp_path, keep=Keep(100))
    carry, copies = program.init(), {}
    for _ in range(6):
        carry, _ = program.run(carry, 1)
        step = int(carry.state.step)
        copies[step] = jax.tree.map(np.array, carry)
        checkpoints.save(step, carry)
    checkpoints._manager.wait_until_finished()
    for step in sorted(copies, reverse=True):
        found, restored = checkpoints.restore(program.abstract)
        assert found == step
        trees_equal(copies[step], jax.device_get(restored))
        checkpoints._manager.delete(step)
    checkpoints.close()


@pytest.mark.medium
def test_a_report_that_cannot_be_made_costs_no_result(tmp_path, capsys):
    """A sample grid with a flipped bit, and directories in the place of what a report consists of."""
    fit(tmp_path, 4, sample_every=2)
    grid = tmp_path / "samples/step_00000002.png"
    raw = bytearray(grid.read_bytes())
    raw[len(raw) // 2] ^= 1
    grid.write_bytes(raw)
    for name in ("report.html", "samples.gif", "curves.svg"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name / "kept").mkdir(parents=True)
    capsys.readouterr()
    result = fit(tmp_path, 6, sample_every=2)
    assert result.status == "done" and result.step == 6
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 6
    said = capsys.readouterr()
    assert f"warning: {grid}: is damaged" in said.err
    assert f"warning: {tmp_path / 'report.html'}: cannot be written" in said.err
    assert said.out.splitlines()[-1] == "done at step 6"


@pytest.mark.parametrize(
    "prepare,message",
    [
        (lambda p: (p / "thesis.tex").write_text("x"), "is not empty and holds no bpgan run"),
        (lambda p: (p / "config.json").write_text("{}"), r"config\.json: is damaged"),
        (lambda p: (p / "config.json").write_text("not json"), r"config\.json: is damaged"),
        (
            lambda p: (p / "config.json").write_text('{"experiment": "other", "config": {}}'),
            "holds a run of other, not of test",
        ),
        (
            lambda p: [
                (p / "config.json").write_text(
                    '{"experiment": "test", "config": {"lr": 0.01, "steps": 1}}'
                ),
                (p / "metrics.jsonl").write_text('{"step": 2}\n{"step": 1}\n'),
            ],
            r"metrics\.jsonl: line 2 is not a log line \(step 1 after step 2\)",
        ),
    ],
)
def test_foreign_workdir_is_refused_and_untouched(tmp_path, prepare, message):
    prepare(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=message):
        fit(tmp_path, 1)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_changed_configuration_is_refused_by_name(straight):
    before = (straight / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"`lr` was 0.01, now 0.02"):
        fit(straight, 13, config={"lr": 0.02, "steps": 13})
    assert (straight / "config.json").read_bytes() == before


def test_a_run_follows_its_data_to_another_path(tmp_path):
    """``dataset`` may differ if the content of the data is known to be the same, and only then."""

    def open_run(path, dataset, lr, fingerprint):
        config = {"dataset": dataset, "lr": lr}
        return directory.open_run(
            path,
            name="test",
            config=config,
            restart_safe=frozenset(),
            locates_data=frozenset({"dataset"}),
            fingerprint=fingerprint,
        )

    for data_of_run, now, refused in (
        ("abc", "abc", False), ("abc", "abd", True), ("", "abc", True),
    ):  # fmt: skip
        path = open_run(tmp_path / f"{data_of_run}-{now}", "folder:a", 1, data_of_run or "unknown")
        config = {"dataset": "folder:a", "lr": 1}
        record = {"experiment": "test", "format": records.FORMAT, "config": config}
        (path / "config.json").write_text(json.dumps(record | {"data": data_of_run}))
        (path / "metrics.jsonl").write_text('{"step": 1}\n')
        if refused:
            with pytest.raises(UserError, match="`dataset` was 'folder:a', now 'folder:b'"):
                open_run(path, "folder:b", 1, now)
        else:
            assert open_run(path, "folder:b", 1, now) == path
            with pytest.raises(UserError, match="`lr` was 1, now 2"):
                open_run(path, "folder:b", 2, now)
    with pytest.raises(ValueError, match="fingerprint must not be empty"):
        open_run(tmp_path / "none", "folder:a", 1, "")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("form, whose", [(None, "an earlier"), (records.FORMAT + 1, "a later")])
def test_a_run_of_another_version_is_refused_in_one_line(short, tmp_path, form, whose):
    run = shutil.copytree(short, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    assert record.pop("format") == records.FORMAT and record["restart_safe"] == ["steps"]
    (run / "config.json").write_text(json.dumps(record | ({"format": form} if form else {})))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=f"holds a run of {whose} version .* .CHANGELOG") as caught:
        fit_tiny(run, 12)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    page = update_report(run)  # its log and its result can still be read
    assert page is not None and "done" in page.read_text()


def test_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot be used"):
            fit(path, 1)


def test_run_directory(straight):
    """What a run leaves behind for others to read."""
    record = json.loads((straight / "config.json").read_text())
    assert record["experiment"] == "test" and record["versions"]["jax"] == jax.__version__
    assert record["images_per_step"] == source().batch_size
    result = json.loads((straight / "result.json").read_text())
    assert result["status"] == "done" and result["step"] == 13
    assert {"compile_s", "first_call_s", "train_s", "checkpoint_s", "total_s"} <= set(
        result["timings"]
    )
    grids = sorted(p.name for p in (straight / "samples").iterdir())
    assert grids == [f"step_{s:08d}.png" for s in (0, 5, 10, 13)]
    assert (straight / "report.html").stat().st_size > 1000


@pytest.mark.medium
def test_tensorboard_reads_scalars_grids_and_hyperparameters(tmp_path):
    """By TensorBoard's own reader, after a resume and after one from an earlier checkpoint: every step once."""
    path = tmp_path / "run"
    fit(path, 6, tensorboard=True, sample_every=4, evaluate=lambda _: {"test": 1.0})
    fit(path, 12, tensorboard=True, sample_every=4)
    assert_says_the_log(path, grids=(0, 4, 6, 8, 12))
    (path / "result.json").unlink()
    for step in ("9", "12"):
        shutil.rmtree(path / "checkpoints" / step)
    fit(path, 13, tensorboard=True, sample_every=4, evaluate=lambda _: {"test": 2.0})
    assert_says_the_log(path, grids=(0, 4, 6, 8, 12, 13))
    row = points_of(reader(path / "hparams"))
    assert row["final/test"] == [(0, np.float32(2).tobytes())] and "final/d/loss" in row


def test_shorter_run_than_the_one_there_is_refused(straight):
    result = (straight / "result.json").read_bytes()
    with pytest.raises(UserError, match="at step 13 already, past 5"):
        fit(straight, 5)
    assert (straight / "result.json").read_bytes() == result


def test_a_start_that_fails_leaves_the_directory_usable(tmp_path):
    """A batch that cannot be split is mended in place; so is a record half written when the process was killed."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json.tmp").write_text('{"exp')
    with pytest.raises(UserError, match="cannot be split"):
        train.fit(
            small_gan(),
            source(20),
            train.RunSpec(config={"batch": 20}, workdir=run, seed=0),
            train.Plan(name="test", restart_safe=frozenset(), steps=1, log_every=1),
        )
    assert fit(run, 1, config={"batch": 16}).status == "done"


def scores_of(state):
    """A number that is least at step 6, whatever the interruptions."""
    return {"distance": abs(float(state.step) - 6.4)}


EVALUATED = {
    "eval_every": 2,
    "keep": Keep.parse("2,best=1,min:eval/distance"),
    "validate": scores_of,
    "evaluate": lambda state: {"test": float(state.step)},
}


@pytest.mark.medium
def test_the_best_checkpoint_by_validation_is_kept_and_reported_with_the_final_one(tmp_path):
    result = fit(tmp_path / "run", 13, **EVALUATED)
    assert result.evaluated == {"test": 13, "best/test": 6, "best/step": 6}
    assert {int(p.name) for p in (tmp_path / "run/checkpoints").iterdir()} == {6, 12, 13}
    seen = {x["step"]: x["eval/distance"] for x in logged(tmp_path / "run") if "eval/distance" in x}
    assert list(seen) == [2, 4, 6, 8, 10, 12, 13] and seen[8] == pytest.approx(1.6)
    written = json.loads((tmp_path / "run/result.json").read_text())["metrics"]
    assert written["best/step"] == 6 and written["eval/distance"] == pytest.approx(6.6)


@pytest.mark.medium
def test_a_best_checkpoint_that_is_damaged_costs_its_own_numbers_only(tmp_path, capsys):
    fit(tmp_path / "run", 12, **EVALUATED)
    (tmp_path / "run/result.json").unlink()
    for file in (tmp_path / "run/checkpoints/6").rglob("*"):
        if file.is_file() and file.parent.name != "manifest":  # else it is not ranked
            file.write_bytes(b"")
    result = fit(tmp_path / "run", 12, **EVALUATED)
    assert result.status == "done" and result.evaluated == {"test": 12}
    assert "checkpoints/6 is damaged" in capsys.readouterr().out


@pytest.mark.medium
def test_checkpoints_may_be_ranked_by_another_metric_from_now_on(tmp_path):
    fit(tmp_path / "run", 4, checkpoint_every=2, keep=Keep.parse("2,min:d/loss"))
    keep = Keep.parse("2,min:eval/distance")
    result = fit(tmp_path / "run", 4, **EVALUATED | {"keep": keep})
    assert "best/step" not in result.evaluated  # none is ranked by it yet
    result = fit(tmp_path / "run", 9, **EVALUATED | {"keep": keep})
    assert result.evaluated["best/step"] == 6


@pytest.mark.medium
def test_checkpoints_before_the_first_line_of_the_log_are_not_ranked(tmp_path):
    """What is known of their samples does not stand for what is not known yet."""
    every = {"log_every": 6, "checkpoint_every": 2, "sample_every": 2}
    assert fit(tmp_path / "run", 6, keep=Keep.parse("1,min:d/loss"), **every).status == "done"


@pytest.mark.medium
def test_evaluation_changes_nothing_and_survives_interruptions(tmp_path, trees_equal, monkeypatch):
    """The checkpoint that a signal asks for at step 7 is not the best for what was evaluated at 6."""
    fit(tmp_path / "plain", 13)
    fit(tmp_path / "run", 7, **EVALUATED)
    result = fit(tmp_path / "run", 13, **EVALUATED)
    assert result.evaluated["best/step"] in (6, 7)
    trees_equal(final_state(tmp_path / "plain"), final_state(tmp_path / "run"))


@pytest.mark.medium
def test_a_checkpoint_is_not_ranked_by_the_evaluation_of_another_step(tmp_path):
    options = EVALUATED | {"eval_every": 6, "checkpoint_every": 1}
    result = fit(tmp_path / "run", 9, **options)
    assert result.evaluated["best/step"] == 6
    kept = {int(p.name) for p in (tmp_path / "run/checkpoints").iterdir()}
    assert kept == {6, 8, 9}


def test_a_signal_before_the_first_step_interrupts_a_run(tmp_path, monkeypatch):
    """It is not paused, so its exit code asks to go on with it."""
    with monkeypatch.context() as patch:
        patch.setattr(signals, "listen", lambda: contextlib.nullcontext(lambda: "SIGTERM"))
        result = fit(tmp_path / "run", 5)
    assert (result.status, result.step) == ("interrupted", 0)
    assert fit(tmp_path / "run", 5).status == "done"


def test_keep_by_what_is_not_logged_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(
        UserError, match="keep: accuracy is not logged by this run; known: d/fake, .*d/loss"
    ):
        fit(tmp_path / "run", 4, keep=Keep.parse("3,best=1,max:accuracy"))
    assert not records.read_log(tmp_path / "run/metrics.jsonl")


@pytest.mark.medium
@pytest.mark.parametrize(
    "metric, every", [("samples/variance", 0), ("samples/color", 2), ("time/left", 2)]
)
def test_so_is_keep_by_samples_that_are_not_drawn(tmp_path, metric, every):
    with pytest.raises(UserError, match=f"keep: {metric} is not logged by this run; known: d/"):
        fit(tmp_path / "run", 4, keep=Keep.parse(f"3,min:{metric}"), sample_every=every)
    assert fit(tmp_path / "run", 4, keep=Keep.parse("3,min:time/elapsed")).status == "done"


def test_keep_by_what_is_not_evaluated_is_refused(tmp_path):
    options = EVALUATED | {"keep": Keep.parse("2,best=1,min:eval/distanze")}
    with pytest.raises(
        UserError, match="eval/distanze is not logged by this run; known: eval/dist"
    ):
        fit(tmp_path / "run", 4, **options)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    """As Lustre mounted without them."""

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert fit(tmp_path / "run", 2).status == "done"
    assert "cannot be locked (Function not implemented); see to it that" in capsys.readouterr().out


class Tiny(NamedTuple):
    step: jax.Array
    w: jax.Array


def tiny():
    """A system that compiles in no time and depends on its seed."""

    def step(state, batch, key):
        del batch, key
        return Tiny(state.step + 1, state.w * 0.9), {"loss": jnp.sum(state.w**2)}

    return Algorithm(lambda key: Tiny(jnp.int32(0), jax.random.normal(key, (3,))), step)


def fit_tiny(workdir, steps, **options):
    return fit(workdir, steps, **{"algorithm": tiny(), "log_every": 1} | options)


@pytest.fixture(scope="module")
def short(optimized, no_curves, tmp_path_factory):
    """A run of 9 steps, saved at 3, 6 and 9."""
    path = tmp_path_factory.mktemp("short") / "run"
    fit_tiny(path, 9)
    return path


def bits(workdir, step):
    (file,) = (workdir / f"checkpoints/{step}/manifest").glob("metadata")
    return json.loads(file.read_text())["leaves"]


def test_a_checkpoint_under_another_step_or_of_another_run_is_not_used(short, tmp_path, capsys):
    """Not even of a run with the same flags: it may have trained otherwise. Moved as a whole, a run goes on."""
    run = shutil.copytree(short, tmp_path / "run")
    fit_tiny(tmp_path / "seed", 9, seed=4)
    fit_tiny(tmp_path / "same", 9)
    shutil.copytree(run / "checkpoints/9", run / "checkpoints/12")
    shutil.copytree(tmp_path / "seed/checkpoints/9", run / "checkpoints/10")
    shutil.rmtree(run / "checkpoints/6")
    shutil.copytree(tmp_path / "same/checkpoints/9", run / "checkpoints/11")
    capsys.readouterr()
    result = fit_tiny(run, 12)
    said = capsys.readouterr().out
    assert "checkpoints/12 is not used: it is of step 9" in said
    assert "checkpoints/11 is not used: it is of run " in said
    assert "checkpoints/10 is not used: it is of run " in said
    assert "resuming at step 9" in said and result.step == 12
    assert [line["step"] for line in logged(run)] == list(range(1, 13))
    fit_tiny(tmp_path / "same", 12)
    assert bits(run, 12) == bits(tmp_path / "same", 12)


def test_another_record_makes_the_checkpoints_those_of_another_run(short, tmp_path):
    run = shutil.copytree(short, tmp_path / "run")
    fit_tiny(tmp_path / "other", 3)
    shutil.copy(tmp_path / "other/config.json", run / "config.json")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="its 3 checkpoints cannot be read"):
        fit_tiny(run, 12)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_the_result_of_another_run_is_none(short, tmp_path):
    """Of a run that was stopped: it would stop this one for ever, where runs train together."""
    run = shutil.copytree(short, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"run": "0" * 16}))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="the run has been saved, and its checkpoints are gone"):
        fit_tiny(run, 12)


LOGS = {
    "of another run": lambda log, other: log.write_bytes(other.read_bytes()),
    "edited": lambda log, _: log.write_bytes(log.read_bytes().replace(b'"step": 2', b'"step": 1')),
    "without a line": lambda log, _: log.write_bytes(log.read_bytes().split(b"\n", 1)[1]),
    "truncated": lambda log, _: log.write_bytes(log.read_bytes()[:-300]),
    "emptied": lambda log, _: log.write_bytes(b""),
}


@pytest.mark.parametrize("change", LOGS)
def test_another_log_is_refused_and_nothing_is_changed(short, tmp_path, change):
    run = shutil.copytree(short, tmp_path / "run")
    (tmp_path / "other").write_bytes((run / "metrics.jsonl").read_bytes().replace(b"loss", b"lost"))
    LOGS[change](run / "metrics.jsonl", tmp_path / "other")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(UserError, match="metrics.jsonl does not begin with what this run had .* 9"):
        fit_tiny(run, 12)
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before


def test_a_log_that_is_gone_is_said(short, tmp_path, capsys):
    run = shutil.copytree(short, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    fit_tiny(run, 12)
    assert "metrics.jsonl is gone; the run goes on without what was" in capsys.readouterr().out
    assert [line["step"] for line in logged(run)] == [10, 11, 12]
    fit_tiny(run, 15)  # its log is this one now
    assert "warning" not in capsys.readouterr().out
    assert [line["step"] for line in logged(run)] == [10, 11, 12, 13, 14, 15]


def test_lines_that_were_not_there_when_it_was_saved_go(short, tmp_path):
    """Whatever step they claim to be of."""
    run = shutil.copytree(short, tmp_path / "run")
    log = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(log + b'{"step": 2, "loss": 1e9}\n')
    fit_tiny(run, 9)
    assert (run / "metrics.jsonl").read_bytes() == log


IN_THE_WAY = {
    ".lock is a directory": (lambda p: (p / ".lock").mkdir(), ".lock must be a file"),
    ".lock is a link": (
        lambda p: (p / ".lock").symlink_to(p.parent / "precious"), ".lock must not be a link",
    ),
    ".saved is a link": (
        lambda p: (p / ".saved").symlink_to(p.parent / "new"), ".saved must not be a link",
    ),
    ".lock is a pipe": (lambda p: os.mkfifo(p / ".lock"), ".lock must be a file"),
    "config.json.tmp is a directory": (
        lambda p: (p / "config.json.tmp").mkdir(), "config.json.tmp must be a file",
    ),
    "config.json.tmp is a link": (
        lambda p: (p / "config.json.tmp").symlink_to(p.parent / "precious"), "must not be a link",
    ),
    "checkpoints is a file": (lambda p: (p / "checkpoints").touch(), "checkpoints must be a folder"),
    "checkpoints is a dangling link": (
        lambda p: (p / "checkpoints").symlink_to("nowhere"), "checkpoints must be a folder",
    ),
    "samples is a file": (lambda p: (p / "samples").touch(), "samples must be a folder"),
    "result.json is a directory": (lambda p: (p / "result.json").mkdir(), "result.json must be a file"),
    "metrics.jsonl is a directory": (lambda p: (p / "metrics.jsonl").mkdir(), "must be a file"),
}  # fmt: skip


@pytest.mark.parametrize("what", IN_THE_WAY)
@pytest.mark.parametrize("trained", [False, True])
def test_what_is_in_the_way_is_named_and_stays(short, tmp_path, what, trained):
    (tmp_path / "precious").write_text("precious")
    path = tmp_path / "run"
    if trained:
        shutil.copytree(short, path, ignore=lambda *_: {what.split()[0]})
    else:
        path.mkdir()
    put, message = IN_THE_WAY[what]
    put(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(UserError, match=f"workdir={path}: .*{message}"):
        fit_tiny(path, 12)
    assert sorted(path.rglob("*")) == before
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_lock_that_is_somebodys_file_is_not_emptied(tmp_path):
    (tmp_path / ".lock").write_text("precious")
    fit_tiny(tmp_path, 1)
    assert (tmp_path / ".lock").read_text() == "precious"


def test_a_lock_that_was_removed_by_its_owner_is_none(tmp_path):
    """The next process would make a new one, and train beside this one."""
    flock = fcntl.flock

    def removed(*args):
        flock(*args)
        (tmp_path / ".lock").unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", removed)
        with pytest.raises(UserError, match="another process is training here"):
            fit_tiny(tmp_path, 1)


@pytest.mark.parametrize(
    "workdir, message",
    [("link", "a link to nowhere, which is not there"), ("x" * 300, "File name too long")],
)
def test_a_workdir_that_cannot_be_is_one_line(tmp_path, workdir, message):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match=f"cannot be used .*{message}"):
        fit_tiny(tmp_path / workdir, 1)


@pytest.mark.parametrize("made", ["", "a", "a/b"])
def test_a_refused_command_leaves_no_directory(tmp_path, made):
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="not logged by this run"):
        fit_tiny(tmp_path / "a/b", 4, keep=Keep.parse("3,min:nothing"))
    assert [p.relative_to(tmp_path) for p in sorted(tmp_path.rglob("*"))] == [
        pathlib.Path(p) for p in ("a", "a/b") if made.startswith(p)
    ]


@pytest.mark.medium
@pytest.mark.parametrize("name", ["EFBIG", "ESTALE", "EDQUOT", "EROFS", "ENOTCONN"])
def test_a_log_that_cannot_be_written_is_one_line(short, tmp_path, monkeypatch, name):
    """What was saved is kept, and the same command goes on to the same bits."""
    run = shutil.copytree(short, tmp_path / "run")
    number = getattr(errno, name)

    def write(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", write)
        with pytest.raises(UserError) as caught:
            fit_tiny(run, 12)
    said = str(caught.value)
    assert said.startswith(f"workdir={run}: cannot be written ({os.strerror(number)})")
    assert "the checkpoints there are kept" in said
    assert fit_tiny(run, 12).status == "done"
    assert [line["step"] for line in logged(run)] == list(range(1, 13))


def test_a_directory_that_is_removed_under_a_run_is_one_line(tmp_path, monkeypatch):
    write = Log.write

    def removed(log, step, *line):
        if step == 2:
            shutil.rmtree(tmp_path / "run")
        return write(log, step, *line)

    monkeypatch.setattr(Log, "write", removed)
    with pytest.raises(UserError, match=f"workdir={tmp_path / 'run'}: .*No such file or directory"):
        fit_tiny(tmp_path / "run", 9)


def test_memory_that_is_spent_is_one_line(tmp_path, monkeypatch):
    class Exhausted(jax.errors.JaxRuntimeError):
        error_code_string = "RESOURCE_EXHAUSTED"  # as XLA's

    def compiled(*_, **__):
        raise Exhausted("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(program, "compile_program", compiled)
    with pytest.raises(UserError, match="^batch_size=16: the device's memory is spent .*9 bytes"):
        fit_tiny(tmp_path / "run", 9)
    assert not (tmp_path / "run").exists()
