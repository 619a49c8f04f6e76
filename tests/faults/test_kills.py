"""A training process that is killed again and again, and repeated by the same command, ends in the same bits."""

import json
import re
import shlex
import signal
import sys
import time

import numpy as np
import pytest
from checks import harness
from checks.harness import assert_same, finish, kill, start, wait_for_step

pytestmark = [pytest.mark.usefixtures("optimized"), pytest.mark.filterwarnings("ignore")]


@pytest.mark.medium
def test_every_signal_in_turn(undisturbed, tmp_path):
    """SIGKILL loses the steps since the last save; SIGTERM, SIGINT and SIGHUP save and say so with code 75.

    So does a process whose output nobody reads any more, as after ``| head``. Meanwhile a second process is refused and
    changes nothing, and a line of the log is torn.
    """
    rng = np.random.default_rng(0)
    for number, step, code in (
        (signal.SIGKILL, 50, -signal.SIGKILL),
        (signal.SIGTERM, 120, 75),
        (signal.SIGINT, 200, 75),
        (signal.SIGHUP, 300, 75),
    ):
        process = start(tmp_path / "run")
        wait_for_step(process, step)
        if number == signal.SIGKILL:
            process.send_signal(
                signal.SIGSTOP
            )  # it would be done before the second one has started
            record = (tmp_path / "run/config.json").read_bytes()
            said = finish(start(tmp_path / "run"), code=2)
            assert "another process is training here" in said and "Traceback" not in said
            assert (tmp_path / "run/config.json").read_bytes() == record
        time.sleep(rng.uniform(0, 0.02))
        said = kill(process, number)
        assert process.returncode == code, said
        if number == signal.SIGKILL:
            with (tmp_path / "run/metrics.jsonl").open("a") as file:
                file.write('{"step": 77, "d/lo')
        if code == 75:
            assert f"{number.name}: saved at step" in said and "the same command continues" in said
    process = start(tmp_path / "run")
    wait_for_step(process, 350)
    process.stdout.close()
    assert process.wait(harness.LIMIT) == 75
    recorded = json.loads((tmp_path / "run/config.json").read_text())["command"]
    python, *words = shlex.split(recorded)  # it is the same command
    assert python == "python"
    said = finish(start(tmp_path, argv=[sys.executable, *words]))
    assert "resuming at step" in said
    assert assert_same(undisturbed, tmp_path / "run") > 10**6


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once(undisturbed, tmp_path):
    """Without saving, if it comes before the save; the run goes on from the newest checkpoint all the same."""
    process = start(tmp_path / "run")
    wait_for_step(process, 60)
    process.send_signal(signal.SIGINT)
    said = kill(process, signal.SIGINT)
    assert process.returncode in (130, 75), said
    assert "Traceback" not in said, said
    finish(start(tmp_path / "run"))
    assert_same(undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_streamed_run_survives_a_kill(tmp_path):
    """The order of the data needs no replay: the resumed process opens the stream at its step."""
    flags = ["--feed=stream", "--steps=200"]
    finish(start(tmp_path / "a", *flags))
    for step in (50, 120):
        process = start(tmp_path / "b", *flags)
        wait_for_step(process, step)
        kill(process)
    finish(start(tmp_path / "b", *flags))
    assert_same(tmp_path / "a", tmp_path / "b", 200)


def appears(path, pattern):
    """A condition: a file of that pattern exists now, as it does while something is being written."""
    return lambda: next(path.glob(pattern), None) is not None


def never():
    return False


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_hundred_kills(tmp_path, capsys):
    """Kills during start-up, at any moment, inside checkpoint writes and while report and pictures are written."""
    run, rng = tmp_path / "run", np.random.default_rng(1)
    steps = 1500  # enough to be still training when the last of the first eighty strikes
    begin = time.monotonic()
    flags = [f"--steps={steps}", "--checkpoint_every=5"]
    finish(start(tmp_path / "alone", *flags))
    alone = time.monotonic() - begin
    moments = ["start-up"] * 20 + ["anywhere"] * 20 + ["checkpoint"] * 40
    rng.shuffle(moments)
    moments += ["report"] * 25  # these need a run that comes to its end
    struck = dict.fromkeys(moments, 0)
    lives, lost = 0, []
    begin = time.monotonic()
    for moment in moments:
        born = time.monotonic()
        process = start(run, *flags)
        lives += 1
        delay = {"start-up": rng.uniform(0, 2), "anywhere": rng.uniform(1, 6)}.get(moment, 60)
        now = {
            "checkpoint": appears(run, "checkpoints/*.orbax-checkpoint-tmp*"),
            "report": appears(run, "*.tmp"),
        }.get(moment, never)
        wanted = rng.integers(1, 4) if moment == "checkpoint" else 1
        seen, before = 0, False
        while process.poll() is None and time.monotonic() - born < delay and seen < wanted:
            there = now()
            # config.json.tmp is written at the start of each life
            if moment == "report" and (run / "config.json.tmp").exists():
                there = False
            seen += there and not before
            before = there
        alive = process.poll() is None
        said = kill(process)
        if alive:
            struck[moment] += 1
            lost.append(time.monotonic() - born)
        else:
            assert process.returncode == 0, said
    finish(start(run, *flags))
    total = time.monotonic() - begin
    compared = assert_same(tmp_path / "alone", run, steps)
    kills = sum(struck.values())
    with capsys.disabled():
        print(
            f"\n{kills} kills survived ({struck}); {compared:,} bytes equal; undisturbed {alone:.1f} s,"
            f" disturbed {total:.1f} s in {lives + 1} lives: {(total - alone) / kills:.1f} s lost per kill"
        )
    assert kills >= 100 and struck["checkpoint"] >= 30 and struck["report"] >= 15


CLOCK = """
import time
_now = time.time
_start = _now()
time.time = lambda: _start - 3600 * (_now() - _start)  # an hour back for every second
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.mark.slow
def test_clock_that_goes_backwards(undisturbed, tmp_path):
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    path = f"{tmp_path / 'clock'}:{harness.ROOT}"
    process = start(tmp_path / "run", PYTHONPATH=path)
    wait_for_step(process, 100)
    kill(process, signal.SIGTERM)
    assert process.returncode == 75
    finish(start(tmp_path / "run", PYTHONPATH=path))
    assert_same(undisturbed, tmp_path / "run")
    times = re.findall(r'"time/elapsed": ([-\d.]+)', (tmp_path / "run/metrics.jsonl").read_text())
    assert (np.diff(np.array(times, float)) > 0).all()
    check = [
        sys.executable,
        "-c",
        "import time; a = time.time(); time.sleep(.1); print(time.time() < a)",
    ]
    assert finish(start(tmp_path, argv=check, PYTHONPATH=path)) == "True\n"  # the clock did go back
