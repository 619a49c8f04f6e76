"""Event files: TensorBoard says what the log says, whatever happened to either."""

import contextlib
import errno
import math
import pathlib
import threading
import time

import numpy as np
import pytest
from checks.tensorboard_points import assert_says_the_log, logged_points, points_of, reader

from bpgan import data
from bpgan.runtime import events, images
from bpgan.runtime.log import Log

GRID = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def source():
    return data.in_memory(
        np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, np.int32), seed=0, batch_size=2
    )


@pytest.fixture
def write():
    """``write(path, begin, end)`` logs those steps as a run does that is killed then: nothing is closed."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: _write(stack, *args, **options)


def _write(stack, path, begin, end, **options):
    lines = Log(path, begin, 40, source(), every=4, speak=False, **options)
    stack.callback(lines.close)
    for step in range(begin + 1, end + 1):
        if step % 5 == 0:
            file = path / "samples" / f"step_{step:08d}.png"
            images.save_png(file, GRID)
            lines.image(step, file)
        window = {"d/loss": 1 / step, "g/loss": math.nan} if step % 4 == 0 else {}
        samples = (
            {"samples/variance": 0.5 + step, "samples/duplicates": 0.0} if step % 5 == 0 else {}
        )
        evaluated = {"eval/FD": 1e308 if step == 6 else 10.0 * step} if step % 3 == 0 else {}
        if window or samples or evaluated:
            lines.write(step, window, samples, evaluated)
    return lines


def files(path):
    return sorted(p for p in path.iterdir() if "tfevents" in p.name)


def test_a_line_is_in_the_files_once_it_is_logged_and_after_whatever_happens(
    write, tmp_path, monkeypatch
):
    path = tmp_path / "run"
    path.mkdir()
    write(path, 0, 22)
    assert_says_the_log(path, grids=(5, 10, 15, 20))  # before anything is closed
    assert len(points_of(reader(path))["d/loss"]) == 5

    monkeypatch.setattr(time, "time", lambda: 1e9)  # the clock goes back to 2001
    write(path, 22, 24)
    assert_says_the_log(path, grids=(5, 10, 15, 20))
    write(path, 13, 24)  # from an earlier checkpoint
    assert_says_the_log(path, grids=(5, 10, 15, 20))
    write(path, 13, 14)  # what was drawn later is a thing of the past, too
    assert_says_the_log(path, grids=(5, 10))
    assert not (path / "samples/step_00000015.png").exists()  # nor has the report it

    *_, events_file = files(path)
    events_file.write_bytes(events_file.read_bytes()[:-7])  # torn
    write(path, 12, 22)
    assert_says_the_log(path, grids=(5, 10, 15, 20))
    *_, events_file = files(path)
    content = bytearray(events_file.read_bytes())
    content[len(content) // 2] ^= 1
    events_file.write_bytes(content)
    write(path, 20, 26, tensorboard=False)  # these are told later
    write(path, 26, 28)
    assert_says_the_log(path, grids=(5, 10, 15, 20, 25))
    for file in files(path):
        file.unlink()
    (path / "samples/step_00000010.png").write_text("no picture")
    (path / "samples/step_00000015.png").unlink()  # nor is this one
    (path / "samples/step_00000015.png").mkdir()
    write(path, 28, 29)
    assert_says_the_log(path, grids=(5, 20, 25))


def test_files_of_earlier_versions_are_replaced(write, tmp_path):
    from tensorboardX import SummaryWriter

    write(tmp_path, 0, 12)
    with SummaryWriter(str(tmp_path)) as old:
        for step in range(20):
            old.add_scalar("d/loss", -1.0, step)
    write(tmp_path, 12, 13)
    assert_says_the_log(tmp_path, grids=(5, 10))
    assert [file.stat().st_size > 0 for file in files(tmp_path)] == [False, True]


def test_who_is_killed_between_two_files_leaves_one_that_counts(write, tmp_path):
    write(tmp_path, 0, 12)
    *_, old = files(tmp_path)
    content = old.read_bytes()
    write(tmp_path, 8, 13)
    old.write_bytes(content)  # not removed yet
    assert_says_the_log(tmp_path, grids=(5, 10))


def test_a_tensorboard_that_is_watching_follows(write, tmp_path):
    write(tmp_path, 0, 12)
    watching = reader(tmp_path)
    assert points_of(watching) == logged_points(tmp_path)
    write(tmp_path, 6, 18)
    assert points_of(watching) == logged_points(tmp_path)
    write(tmp_path, 18, 22)
    assert points_of(watching) == logged_points(tmp_path)


def test_times_are_those_of_training_whatever_the_clock_does(write, tmp_path, monkeypatch):
    """A curve over time has neither loops nor the gap of an interruption."""
    now = iter(np.arange(2e9, 0, -1e6))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    write(tmp_path, 0, 12)
    write(tmp_path, 12, 24)
    events = reader(tmp_path).Reload().Scalars("d/loss")
    assert (np.diff([event.wall_time for event in events]) >= 0).all()
    assert events[-1].wall_time - events[0].wall_time < 60


@pytest.mark.parametrize("when", ["opened", "written"])
def test_a_full_disk_is_seen_by_who_logs(write, tmp_path, monkeypatch, when):
    """In the thread that logs, and at once; there is no other."""
    threads = threading.active_count()
    if when == "opened":
        monkeypatch.setattr(pathlib.Path, "open", lambda *_: open("/dev/full", "wb"))
        with pytest.raises(OSError) as caught:
            write(tmp_path, 0, 12)
    else:
        lines = write(tmp_path, 0, 12)
        lines._events.close()
        lines._events._file = open("/dev/full", "wb")
        with pytest.raises(OSError) as caught:
            lines.write(13, {"d/loss": 1.0}, {}, {})
        with pytest.raises(OSError):
            lines.close()
        assert lines._file.closed and lines._events._file.closed
    assert caught.value.errno == errno.ENOSPC
    assert threading.active_count() == threads


def test_hyperparameters_are_one_row_however_often_a_run_is_finished(write, tmp_path):
    config = {"lr": 0.1, "net": "mlp", "flag": True, "none": None}
    for step, loss in ((8, 3.0), (8, 3.0), (12, 2.0)):
        lines = write(tmp_path, 0, step)
        lines.hyperparameters(config, {"d/loss": loss})
        lines.close()
        row = reader(tmp_path / "hparams")
        assert points_of(row) == {"final/d/loss": [(0, np.float32(loss).tobytes())]}
        assert set(row.PluginTagToContent("hparams")) == {
            "_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info",
        }  # fmt: skip
    assert len(files(tmp_path / "hparams")) == 2


def test_what_is_no_number_is_no_point():
    event = events.scalars(3, {"a": 1, "b": True, "c": "x", "d": None, "e": np.float64(2)}, 0.0)
    assert [(v.tag, v.simple_value) for v in event.summary.value] == [("a", 1.0), ("e", 2.0)]
