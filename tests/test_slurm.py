"""launch.py --slurm: what is submitted, what is not submitted twice, and runs that Slurm interrupts.

The fast tests run the jobs as processes of this machine, or have a stand-in for sbatch; the slow ones start a real
Slurm (Debian: ``apt-get install --no-install-recommends slurm-wlm munge``) in a temporary folder.
"""

import csv
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
from checks import slurm_cluster
from checks.harness import assert_same
from checks.jobs import LOCAL, make_jobs, options

from bpgan import cli
from bpgan.launcher import main as launch
from bpgan.launcher import slurm
from bpgan.types import UserError

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
    "text,expected",
    [("90", 90), ("4:00:00", 240), ("0:05:00", 5), ("0:05:01", 6), ("2-01:30:00", 2970)],
)
def test_time_limits_in_minutes(text, expected):
    assert slurm.parse_minutes(text) == expected


@pytest.mark.parametrize(
    "argv,said",
    [
        (["--slurm=yes"], "--slurm=yes: must be one of true, local"),
        (["--slurm", "--slurm_time=4h"], "--slurm_time=4h: must be minutes (90), H:MM:SS or D-HH:MM:SS"),
        (["--slurm", "--slurm_time=1:60:00"], "--slurm_time=1:60:00: must be minutes"),
        (["--slurm", "--slurm_time=4"], "--slurm_time=4: must be at least 5 minutes"),
        (["--slurm", "--slurm_gpus=-1"], "--slurm_gpus=-1: must be a whole number >= 0"),
        (["--slurm", "--slurm_memory=16"], "--slurm_memory=16: must be a size with its unit: 16G"),
        (["--slurm", "--slurm_option=Account=x"], "--slurm_option=Account=x: must be NAME or NAME=VALUE"),
        (["--slurm", "--slurm_option=qos="], "--slurm_option=qos=: must be NAME or NAME=VALUE"),
        (["--slurm", "--slurm_option=signal=INT"], "--slurm_option=signal=INT: the launcher itself sets --signal"),
        (["--slurm", "--slurm_partition=a\n#SBATCH --uid=0"], "--slurm_partition=a #SBATCH --uid=0: must be one line"),
        (["--slurm", "--slurm_partition=a\rb"], "--slurm_partition=a b: must be one line, without control"),
        (["--slurm", "--slurm_partition=a\x00b"], "--slurm_partition=a\x00b: must be one line"),
        (["--slurm", "--slurm_partition=a\u2028b"], "--slurm_partition=a b: must be one line"),
        (["--slurm", "--slurm_option=comment=a\nrm -r x"], "--slurm_option=comment=a rm -r x: must be one line"),
        (["--slurm", "--slurm_option=a\nb"], "--slurm_option=a b: must be NAME or NAME=VALUE"),
        (["--slurm", "--slurm_memory=1G\n"], "--slurm_memory=1G : must be a size"),
        (["--slurm", "--slurm_time=90\n"], "--slurm_time=90 : must be minutes"),
        (["--slurm_partition=gpu"], "--slurm_partition: has no effect without --slurm"),
        (["--slurm", "--slurm_partitoin=x"], "--slurm_partitoin: unknown flag; did you mean --slurm_partition?"),
        (["--slurm", "--processes=3", "--slurm_nodes=2"], "--processes=3: must be a multiple of --slurm_nodes=2"),
        (["--slurm", "--processes=4", "--slurm_gpus=2"], "--slurm_gpus=2: must be 4, one for each process"),
        (["--slurm", "--processes=2", "--slurm_nodes=2", "--slurm_gpus=4"], "--slurm_gpus=4: must be 1, one for each"),
        (["--slurm=local", "--processes=2"], "--processes=2: cannot be combined with --slurm=local"),
        (["--slurm=local", "--lr=-1"], "--lr=-1: must be a number > 0"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(argv, said):
    with pytest.raises(UserError) as caught:
        launch.run(["--experiment=linear_regression", "--sweep=seed=0:2", "--dry_run", *argv])
    message = cli.message_of(caught.value)
    assert " ".join(message.splitlines()).startswith(said)  # as ``cli.fail`` prints it
    assert len(message.splitlines()) == 1 or not all(map(str.isprintable, argv))


def test_a_single_run_is_a_sweep_of_one():
    with pytest.raises(UserError, match=r"slurm: submits a sweep; a single run is `sweep=seed=0`"):
        launch.run(["--experiment=linear_regression", "--slurm"])


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    todo = make_jobs(tmp_path, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match="sbatch is not found; `slurm=local` runs the same jobs here"
    ):
        slurm.submit(todo, options(), 1, {})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="needs the package submitit: pip install submitit"):
        slurm.submit(todo, LOCAL, 1, {})
    assert not (tmp_path / "slurm").exists()


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """A stand-in for Slurm's commands: keeps what is submitted, as jobs 12, 13, ..., and shows ``queue``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "queue").write_text("")
    scripts = {
        "sbatch": 'n=$(($(ls "$0".* 2>/dev/null | wc -l) + 12)); cp "$1" "$0.$n"; echo "Submitted batch job $n"',
        "squeue": f"cat {folder}/queue",
        "srun": "",
    }  # fmt: skip
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def directives(file):
    return set(re.findall(r"^#SBATCH --(.*)$", file.read_text(), re.M))


def test_the_flags_become_options_of_one_array(tmp_path, scheduler):
    chosen = options(
        jobs=2, processes=4, slurm_nodes=2, slurm_gpus=2, slurm_cpus=3, slurm_memory="16G",
        slurm_partition="gpu", slurm_time="4:00:00", slurm_option=["account=vision", "exclusive"],
    )  # fmt: skip
    assert slurm.submit(make_jobs(tmp_path, "", "", ""), chosen, 2, {}) is None
    (script,) = scheduler.glob("sbatch.*")
    assert directives(script) >= {
        "array=0-2%2", "nodes=2", "ntasks-per-node=2", "gpus-per-node=2", "cpus-per-task=3", "mem=16G",
        "partition=gpu", "time=240", "account=vision", "exclusive", "requeue", "signal=USR2@90", "job-name=fake",
    }  # fmt: skip
    assert "--cpus-per-task=3" in re.findall(r"^srun .*", script.read_text(), re.M)[0]


def test_what_is_not_said_is_left_to_the_cluster(tmp_path, scheduler):
    assert slurm.submit(make_jobs(tmp_path, "", ""), options(), 1, {}) is None
    said = {line.partition("=")[0] for line in directives(scheduler / "sbatch.12")}
    assert said == {
        "array", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time",
    }  # fmt: skip
    assert "array=0-1%2" in directives(
        scheduler / "sbatch.12"
    )  # --jobs was not given: all at a time


def test_no_run_is_submitted_twice(tmp_path, scheduler, capsys):
    todo = make_jobs(tmp_path, "", "", "", "")
    slurm.submit(todo, options(), 1, {})
    said = capsys.readouterr().out
    assert "[2/4] x=1: job 12_1, output in" in said and "squeue --job=12" in said
    (scheduler / "queue").write_text("12_0 RUNNING\n12_2 PENDING\n7 RUNNING\n")
    slurm.submit(todo, options(), 1, {})
    said = capsys.readouterr().out
    assert "[1/4] x=0: job 12_0 is running" in said and "[3/4] x=2: job 12_2 is pending" in said
    assert "[2/4] x=1: job 13_0" in said and "[4/4] x=3: job 13_1" in said
    (scheduler / "queue").write_text("12_0 RUNNING\n12_2 PENDING\n13_0 PENDING\n13_1 PENDING\n")
    assert slurm.submit(todo, options(), 1, {}) is None
    assert len(list(scheduler.glob("sbatch.*"))) == 2


def test_a_run_that_waits_in_a_group_is_known_by_itself(tmp_path, scheduler, capsys):
    first, second, third = make_jobs(tmp_path, "", "", "")
    group = first._replace(workdirs=[*first.workdirs, *second.workdirs], log=tmp_path / "group.log")
    slurm.submit([group], options(), 1, {})
    everyone = [path for run in (first, second, third) for path in run.workdirs]
    assert slurm.find_queued(everyone) == {}
    (scheduler / "queue").write_text("12 RUNNING\n")
    assert slurm.find_queued(everyone) == {path: "12" for path in group.workdirs}
    # By itself, too, it is not submitted again.
    slurm.submit([second, third], options(), 1, {})
    said = capsys.readouterr().out
    assert "[1/2] x=1: job 12 is running" in said and "[2/2] x=2: job 13, output" in said


def test_what_slurm_refuses_is_one_line_and_leaves_nothing(tmp_path, scheduler, capfd):
    (scheduler / "sbatch").write_text(
        "#!/bin/sh\necho 'error: invalid partition\nsbatch: no' >&2; exit 1\n"
    )
    with pytest.raises(UserError) as caught:
        slurm.submit(make_jobs(tmp_path, ""), options(), 1, {})
    assert str(caught.value) == "slurm: error: invalid partition sbatch: no"
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "slurm").exists() and not (tmp_path / "run0.job").exists()


def test_no_folder_has_control_characters_in_a_script(tmp_path, scheduler):
    folder = tmp_path / "a\n#SBATCH --uid=0"
    with pytest.raises(
        UserError, match="root: .*has control characters, which `slurm` cannot have"
    ):
        slurm.submit(make_jobs(folder, ""), options(), 1, {})
    assert not list(scheduler.glob("sbatch.*")) and not (folder / "slurm").exists()


def test_what_waits_in_the_queue_is_not_trained_here(tmp_path, scheduler):
    todo = make_jobs(tmp_path, "", "")
    slurm.submit(todo, options(), 1, {})
    (scheduler / "queue").write_text("12_1 PENDING\n")
    with pytest.raises(UserError, match="slurm=local: job 12_1 of x=1 is in the queue"):
        slurm.submit(todo, LOCAL, 1, {})


def test_an_experiment_of_the_users_own_is_submitted_by_its_path(tmp_path, scheduler, monkeypatch):
    """However its file is called."""
    source = "from bpgan import cli\nclass Config(cli.RunConfig): ...\ndef build(cfg): ..."
    (tmp_path / "my gan.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    argv = ["--experiment=my gan.py", "--sweep=keep='3,best=1,min:loss',5", "--vectorize=off"]
    assert launch.run([*argv, "--slurm", "--root=out"]) == 0
    records = [json.loads(file.read_text()) for file in tmp_path.glob("out/my gan/*.job")]
    keeps = set()
    for record in records:
        program = record["command"][record["command"].index("-m") + 1 :]
        assert program[:2] == ["bpgan.cli", str(tmp_path / "my gan.py")]
        keeps |= {word for word in program if word.startswith("--keep=")}
    assert keeps == {"--keep=3,best=1,min:loss", "--keep=5"}
    (name,) = [d for d in directives(scheduler / "sbatch.12") if d.startswith("job-name=")]
    assert name == "job-name='my gan'"
    (tmp_path / "a\nb.py").write_text(source)
    with pytest.raises(UserError, match="experiment: .* has control characters"):
        launch.run(["--experiment=a\nb.py", "--sweep=seed=0", "--slurm"])


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("code", ["", "0", "[", '"0"', "3"])
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_what_a_folder_holds_that_a_file_names_is_not_run(tmp_path, scheduler, cluster, code):
    """Whoever may write beside a run could have had a pickle of his loaded."""
    (run,), trap = make_jobs(tmp_path, ""), tmp_path / "trapped"
    folder = tmp_path / "of somebody"
    folder.mkdir()
    (folder / "7_0_result.pkl").write_bytes(pickle.dumps(Trap(str(trap))))
    (folder / "7_code.json").write_text(code)
    record = {"cluster": cluster, "folder": str(folder), "id": "7", "command": run.command}
    (tmp_path / "run0.job").write_text(json.dumps(record))
    said = slurm.submit([run], options(), 1, {})
    assert said == (({0: 0}, False) if code == "0" else None) and not trap.exists()
    assert len(list(scheduler.glob("sbatch.*"))) == (code != "0")


@pytest.mark.medium
def test_a_local_job_does_not_outlive_its_launcher(tmp_path):
    """Neither does a run its job."""
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w'), sys.exit(75)))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    driver = (
        "import pathlib, sys; sys.path.insert(0, 'tests')\n"
        "from checks.jobs import LOCAL, make_jobs, slurm\n"
        f"todo = make_jobs(pathlib.Path({str(tmp_path)!r}), {script!r})\n"
        f"import os; os.chdir({str(tmp_path)!r})\n"
        "slurm.submit(todo, LOCAL, 1, {})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", driver], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    deadline, log = time.monotonic() + 60, tmp_path / "run0.log"
    while not (log.exists() and "\nready\n" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


COUNT = """
import os, pathlib, signal, sys, time
tries = pathlib.Path("tries{i}")
before = len(tries.read_text()) if tries.exists() else 0
tries.write_text("x" * (before + 1))
print("try", before)
"""


@pytest.mark.medium
def test_local_jobs_end_with_their_codes_and_are_not_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ends = ["print(os.environ['COLOR'])", "sys.exit(3)", "os.kill(os.getppid(), signal.SIGKILL)"]
    todo = make_jobs(tmp_path / "out", *(COUNT.format(i=i) + end for i, end in enumerate(ends)))
    expected = ({0: 0, 1: 3, 2: -signal.SIGKILL}, False)
    assert slurm.submit(todo, LOCAL, 2, {"COLOR": "green"}) == expected
    assert todo[0].log.read_text().splitlines()[-2:] == ["try 0", "green"]
    said = capsys.readouterr().out
    assert "[1/3] x=0: done\n" in said and "[2/3] x=1: failed (exit 3)\n" in said
    # Only what is not done; and nothing counts as done by another command, or if it was removed.
    assert slurm.submit(todo, LOCAL, 1, {"COLOR": "green"}) == expected
    tries = [(tmp_path / f"tries{i}").read_text() for i in range(3)]
    assert tries == ["x", "xx", "xx"]
    longer = todo[0]._replace(command=[*todo[0].command, "--epochs=9"])
    assert slurm.submit([longer], LOCAL, 1, {"COLOR": "red"}) == ({0: 0}, False)
    todo[0].workdirs[0].rmdir()
    assert slurm.submit([longer], LOCAL, 1, {"COLOR": "red"}) == ({0: 0}, False)
    assert (tmp_path / "tries0").read_text() == "xxx"


def test_local_jobs_stop_when_the_budget_is_spent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wait = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nopen('on', 'w')\ntime.sleep(30)"
    todo = make_jobs(tmp_path / "out", COUNT.format(i=0) + wait, COUNT.format(i=1))
    start = time.monotonic()
    spent = tmp_path / "on"
    assert slurm.submit(todo, LOCAL, 1, {}, lambda: not spent.exists()) == ({0: 75}, False)
    assert time.monotonic() - start < 25 and not (tmp_path / "tries1").exists()


@pytest.mark.parametrize(
    "number,code,tries",
    [(signal.SIGUSR2, 0, "xx"), (signal.SIGTERM, 75, "x")],
    ids=["notice of the time limit", "preemption or cancellation"],
)
def test_a_signal_makes_the_run_save_and_a_notice_requeues_the_job(
    tmp_path, monkeypatch, number, code, tries
):
    """The notice goes to the run, too, which does not know SIGUSR2."""
    monkeypatch.chdir(tmp_path)
    script = COUNT.format(i=0) + (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"for pid in (os.getpid(), os.getppid()):\n"
        f"    if before == 0 and (pid == os.getppid() or {int(number)} == signal.SIGUSR2):\n"
        f"        os.kill(pid, {int(number)})\n"
        "if before == 0: time.sleep(30)\n"
    )
    todo = make_jobs(tmp_path / "out", script)
    start = time.monotonic()
    assert slurm.submit(todo, LOCAL, 1, {}) == ({0: code}, False)
    assert (tmp_path / "tries0").read_text() == tries and time.monotonic() - start < 25


@pytest.mark.parametrize(
    "number,state,process,requeued",
    [
        (signal.SIGUSR2, "COMPLETING", 0, True),
        (
            signal.SIGTERM,
            "RUNNING",
            0,
            True,
        ),  # a notice: by itself, Slurm would count the job as completed
        (signal.SIGTERM, "COMPLETING", 0, False),  # canceled
        (signal.SIGTERM, "PENDING", 0, False),  # Slurm has requeued it
        (signal.SIGTERM, "RUNNING", 1, False),  # the first process of the run does that
    ],
)
def test_when_a_job_is_requeued(tmp_path, scheduler, monkeypatch, number, state, process, requeued):
    monkeypatch.chdir(tmp_path)
    job = {"ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "3", "JOB_ID": "16", "PROCID": str(process)}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    (scheduler / "queue").write_text(state + "\n")
    (scheduler / "scontrol").write_text('#!/bin/sh\necho "$@" > "$0.said"\n')
    (scheduler / "scontrol").chmod(0o755)
    script = COUNT.format(i=0) + (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"os.kill(os.getppid(), {int(number)})\ntime.sleep(30)\n"
    )
    (run,) = make_jobs(tmp_path / "out", script)
    task = slurm.Task(run.command, run.log, {}, str(tmp_path))
    if requeued:
        with pytest.raises(SystemExit) as caught:
            task()
        assert caught.value.code == 75
        assert (scheduler / "scontrol.said").read_text() == "requeue 12_3\n"
    else:
        assert task() == 75 and not (scheduler / "scontrol.said").exists()
    assert run.log.exists() == (process == 0)


def test_a_run_that_ends_by_itself_is_not_requeued(tmp_path, monkeypatch):
    """Also with 75, without a notice: whatever made it stop might do so forever."""
    monkeypatch.chdir(tmp_path)
    todo = make_jobs(tmp_path / "out", COUNT.format(i=0) + "sys.exit(75)")
    assert slurm.submit(todo, LOCAL, 1, {}) == ({0: 75}, False)
    assert (tmp_path / "tries0").read_text() == "x"


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_lets_local_jobs_save(tmp_path, number):
    """Ctrl-C, which the terminal sends to all processes at once."""
    wait = [
        f"signal.signal(signal.SIGTERM, lambda *_: (time.sleep({i}), print('saved'), sys.exit(75)))\n"
        "print('ready', flush=True)\ntime.sleep(30)"
        for i in range(2)
    ]
    scripts = ["import signal, sys, time\n" + text for text in [*wait, ""]]
    driver = (
        "import pathlib, sys; sys.path.insert(0, 'tests')\n"
        "from checks.jobs import LOCAL, make_jobs, slurm\n"
        f"todo = make_jobs(pathlib.Path({str(tmp_path)!r}), *{scripts!r})\n"
        f"import os; os.chdir({str(tmp_path)!r})\n"
        "print(slurm.submit(todo, LOCAL, 2, {}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", driver], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 40
        logs = [tmp_path / "run0.log", tmp_path / "run1.log"]
        # The log begins with the command, which says "ready" too.
        while not all(log.exists() and "\nready\n" in log.read_text() for log in logs):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert output.splitlines()[-1] == "({0: 75, 1: 75}, True)"
    assert all(log.read_text().endswith("saved\n") for log in logs)
    assert not (tmp_path / "run2.log").exists()


def launched(folder, *argv, code=0, **environment):
    """What the launcher prints, given from another directory."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *argv], cwd=folder, env=os.environ | environment,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def table(folder):
    """The rows of a sweep's CSV without clocks and places."""
    (file,) = folder.glob("*/sweep_*.csv")
    rows = csv.DictReader(file.read_text().splitlines())
    return [
        {k: v for k, v in row.items() if k != "workdir" and not k.startswith("time/")}
        for row in rows
    ]


REGRESSION = ["--experiment=linear_regression", "--preset=smoke"]


@pytest.mark.slow
def test_local_jobs_give_the_numbers_of_a_plain_sweep(tmp_path):
    argv = [*REGRESSION, "--sweep=seed=0,1", "--jobs=2"]
    (tmp_path / "experiments.py").write_text("raise ImportError('not this one')")
    said = launched(tmp_path, *argv, "--slurm=local", "--root=jobs")
    launched(tmp_path, *argv, "--root=plain")
    assert (
        table(tmp_path / "jobs") == table(tmp_path / "plain")
        and len(table(tmp_path / "plain")) == 2
    )
    assert "mean ± standard deviation over seeds" in said
    (record,) = (tmp_path / "jobs").glob("*/seed=1_*.job")
    assert json.loads(record.read_text())["cluster"] == "local"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.mark.slow
def test_an_array_on_a_real_slurm(tmp_path, cluster):
    argv = [*REGRESSION, "--sweep=seed=0:4", "--vectorize=off"]
    jobs = [*argv, "--root=jobs", "--slurm", "--slurm_partition=main", "--slurm_gpus=1", "--slurm_cpus=1",
             "--slurm_memory=500M", "--slurm_option=comment=test", "--jobs=3"]  # fmt: skip
    cluster.run(
        "scontrol", "update", "partitionname=main", "state=down"
    )  # none ends before we look
    said = launched(tmp_path, *jobs, **cluster.environment)
    job = re.search(r"submitted as job (\d+)", said)[1]
    details = cluster.run("scontrol", "show", "job", job)
    for expected in (
        "ArrayTaskThrottle=3",
        "Requeue=1",
        "gres:gpu:1",
        "MinMemoryNode=500M",
        "Comment=test",
    ):
        assert expected in details
    said = launched(tmp_path, *jobs, **cluster.environment)
    assert len(re.findall(rf"job {job}_\d is (?:pending|running)", said)) == 4
    assert set(cluster.jobs()) <= {f"{job}_{i}" for i in range(4)}
    cluster.run("scontrol", "update", "partitionname=main", "state=up")
    cluster.wait(lambda: not cluster.jobs())
    said = launched(tmp_path, *jobs, **cluster.environment)
    assert "all 4 runs are done" in said and "mean ± standard deviation over seeds" in said
    launched(tmp_path, *argv, "--root=plain")
    assert (
        table(tmp_path / "jobs") == table(tmp_path / "plain")
        and len(table(tmp_path / "plain")) == 4
    )
    refused = launched(
        tmp_path, *argv, "--root=x", "--slurm", "--slurm_partition=y", code=2, **cluster.environment
    )
    assert refused == ""


STEPS = 800
GAN = [
    "--experiment=mnist_gan", "--preset=smoke", "--net=mlp", "--log_every=7", "--sample_every=50",
    "--checkpoint_every=20", f"--steps={STEPS}", "--sweep=seed=0:2",
    "--vectorize=off",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(optimized, tmp_path_factory):
    """With all cores, as jobs have them here: rounding depends on how many threads share a sum."""
    folder = tmp_path_factory.mktemp("undisturbed")
    launched(folder, *GAN, "--root=.", "--jobs=1")
    return sorted(folder.glob("mnist_gan/seed=*/"))


def wait_for_step(cluster, log, step):
    """Until the run has logged it."""

    def reached():
        steps = re.findall(r"^step (\d+)/", log.read_text() if log.exists() else "", re.M)
        return steps and int(steps[-1]) >= step

    cluster.wait(reached)


def notice(cluster, job):
    cluster.run("scancel", "--signal=USR2", job)


def requeue(cluster, job):
    cluster.run("scontrol", "requeue", job)


def preempt(cluster, job):
    """In `main` at once, in `grace` with a minute to go."""
    cluster.run("srun", "--partition=urgent", "--exclusive", "true")


def cancel(cluster, job):
    cluster.run("scancel", job)


@pytest.mark.slow
@pytest.mark.parametrize(
    "disturb,partition",
    [(notice, "main"), (requeue, "main"), (preempt, "main"), (preempt, "grace"), (cancel, "main")],
)
def test_an_interrupted_job_ends_in_the_same_bits(
    tmp_path, cluster, undisturbed, disturb, partition
):
    """By notice of the time limit, an administrator, a more important job, or canceled and submitted again."""
    argv = [*GAN, "--root=.", "--slurm", "--slurm_cpus=1", f"--slurm_partition={partition}"]
    job = re.search(r"submitted as job (\d+)", launched(tmp_path, *argv, **cluster.environment))[1]
    folder = tmp_path / "mnist_gan"
    (log,) = (folder / path.with_suffix(".log").name for path in undisturbed[:1])
    wait_for_step(cluster, log, 20)
    disturb(cluster, f"{job}_0")
    if disturb is cancel:
        cluster.wait(lambda: not cluster.jobs())
        said = launched(tmp_path, *argv, **cluster.environment)
        assert "[1/1] seed=0: job" in said
    cluster.wait(lambda: not cluster.jobs())
    said = log.read_text()
    assert "saved at step" in said and said.count("resuming at step") == 1, said
    assert "all 2 runs are done" in launched(tmp_path, *argv, **cluster.environment)
    for path in undisturbed:
        assert_same(path, folder / path.name, STEPS)


@pytest.mark.slow
def test_a_group_is_one_job_that_more_runs_do_not_submit_again(tmp_path, cluster, optimized):
    argv = [flag for flag in GAN if "seed" not in flag and "vectorize" not in flag]
    jobs = [*argv, "--root=.", "--slurm", "--slurm_cpus=1", "--slurm_partition=main"]
    said = launched(tmp_path, *jobs, "--sweep=seed=0:2", **cluster.environment)
    job = re.search(r"submitted as job (\d+)", said)[1]
    assert "[1/1] 2 runs, seed=0 ... seed=1: job" in said
    cluster.wait(lambda: list(tmp_path.glob("mnist_gan/group_*.log")))
    (log,) = tmp_path.glob("mnist_gan/group_*.log")
    wait_for_step(cluster, log, 20)
    said = launched(tmp_path, *jobs, "--sweep=seed=0:3", "--jobs=2", **cluster.environment)
    assert f"2 runs, seed=0 ... seed=1: job {job} is running" in said
    assert "seed=2: job" in said
    notice(cluster, job)
    cluster.wait(lambda: not cluster.jobs())
    assert log.read_text().count("resuming at step") == 1
    said = launched(tmp_path, *jobs, "--sweep=seed=0:3", **cluster.environment)
    assert "all 3 runs are done" in said
    launched(tmp_path, *argv, "--root=plain", "--sweep=seed=0:2", "--jobs=1")
    for path in tmp_path.glob("plain/mnist_gan/seed=*/"):
        assert_same(path, tmp_path / "mnist_gan" / path.name, STEPS)


@pytest.mark.slow
def test_several_processes_of_a_real_slurm(tmp_path, cluster, optimized):
    """srun, and a job of two processes that is told to save, end in the same bits."""
    flags = [
        "--preset=smoke", "--net=mlp", "--log_every=7", "--sample_every=50", "--checkpoint_every=20", "--steps=60",
    ]  # fmt: skip
    srun = subprocess.run(
        ["srun", "-n2", sys.executable, "-m", "experiments.mnist_gan", *flags, "--workdir=srun"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)} | cluster.environment,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert srun.returncode == 0, srun.stdout + srun.stderr
    assert "60 steps (0.1067 epochs) on 2 cpu devices" in srun.stdout
    assert srun.stdout.count("step 56/60") == 1  # only one of them speaks
    argv = [
        "--experiment=mnist_gan", *flags, "--sweep=seed=0", "--slurm", "--processes=2", "--root=.",
    ]  # fmt: skip
    job = re.search(r"submitted as job (\d+)", launched(tmp_path, *argv, **cluster.environment))[1]
    cluster.wait(lambda: list(tmp_path.glob("mnist_gan/seed=0_*.log")))
    (log,) = tmp_path.glob("mnist_gan/seed=0_*.log")
    wait_for_step(cluster, log, 7)
    notice(cluster, job)
    cluster.wait(lambda: not cluster.jobs())
    assert "on 2 cpu devices" in log.read_text() and "resuming at step" in log.read_text()
    assert_same(tmp_path / "srun", log.with_suffix(""), 60)
