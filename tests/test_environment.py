"""What surrounds a process: variables, streams, locale, directories. None of it is worth a traceback."""

import ast
import errno
import os
import pathlib
import pty
import signal
import subprocess
import sys
import types

import jax
import pytest

from bpgan import cli
from bpgan.data import cache
from bpgan.launcher import main as launch
from bpgan.launcher import processes
from bpgan.runtime import distributed, environment, peers, signals
from bpgan.types import UserError

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("bpgan/**/*.py"), *ROOT.glob("experiments/*.py"), ROOT / "launch.py"])


def leaves_encoding_open(node):
    """Whether a call opens a text, or runs a command whose output is text, in whatever encoding the locale has."""
    if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in ("read_text", "write_text"):
        return True
    modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
    if name == "open" and isinstance(node.func, ast.Name):
        return not any("b" in str(mode) for mode in modes)
    if name == "open":  # of a path, if a mode of text is given
        return any(isinstance(m, str) and m and set(m) <= set("rwaxt+") for m in modes)
    return any(k.arg in ("text", "universal_newlines") for k in node.keywords)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_text_names_its_encoding(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node.lineno for node in ast.walk(tree) if leaves_encoding_open(node)]
    assert not found, f"lines {found}"


@pytest.mark.parametrize(
    "text", ["gs://bucket/run", "s3://bucket", "hdfs://host:1/run", "FILE:///run", "run_\udcc3"]
)
def test_what_is_no_path_of_this_machine_is_refused(text):
    with pytest.raises(ValueError, match="^must be "):
        environment.check_path(text)


@pytest.mark.parametrize("text", ["", "runs/a", "~/runs", "/mnt/gs:/run", "a:b", "é"])
def test_paths(text):
    environment.check_path(text)


@pytest.mark.parametrize(
    "argv",
    [["--experiment=toy_gan", "--workdir=hdfs://b/r"],
     ["--experiment=toy_gan", "--root=hdfs://b", "--sweep=seed=0:2"],
     ["--report=runs", "--report_to=hdfs://b"]],
)  # fmt: skip
def test_flags_for_folders_take_no_url(argv):
    with pytest.raises(UserError, match="hdfs://b.*must be a folder of this machine"):
        launch.run(argv) if "--workdir" not in argv[1] else cli.resolve(cli.RunConfig, {}, argv[1:])


def test_characters_that_a_terminal_does_not_have(monkeypatch, tmp_path):
    file = tmp_path / "out"
    with file.open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        environment.open_streams()
        print("caf\u00e9")
    assert file.read_text(encoding="ascii") == "caf\\xe9\n"


def test_streams_that_are_closed_are_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    environment.open_streams()
    print("into the void", flush=True)
    environment.complain("as well")
    sys.stdout.close(), sys.stderr.close()


def test_platforms_that_are_not_there(monkeypatch):
    def devices():
        if jax.config.values["jax_platforms"]:
            raise AssertionError
        return [types.SimpleNamespace(platform="gpu")]

    before = jax.config.values["jax_platforms"]
    monkeypatch.setattr(jax, "devices", devices)
    try:
        jax.config.update("jax_platforms", "tpu")
        with pytest.raises(
            UserError, match="^JAX_PLATFORMS=tpu: is not there; must be empty .* of cpu, gpu$"
        ):
            distributed.find_devices()
    finally:
        jax.config.update("jax_platforms", before)


def test_flags_of_the_compiler(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such=1")
    with pytest.raises(UserError, match="^XLA_FLAGS=--xla_no_such=1: Unknown flag"):
        environment.check_compiler_flags()
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    environment.check_compiler_flags()


@pytest.mark.parametrize(
    "error,code,said",
    [(OSError(errno.ENOSPC, "No space left on device"), 2, "error: a file cannot be used (No space left on device)"),
     (OSError(errno.EMFILE, "Too many open files", "x.npz"), 2, "error: a file cannot be used (Too many open files: "),
     (FloatingPointError("invalid value (nan)"), 3, "Traceback"),
     (OSError(errno.EBADF, "Bad file descriptor"), 1, "Traceback"),
     (TypeError("a bug"), 1, "Traceback")],
)  # fmt: skip
def test_what_nobody_catches(monkeypatch, capsys, error, code, said):
    def program():
        raise error

    monkeypatch.setattr(environment, "open_streams", lambda: None)
    monkeypatch.setattr(environment, "collect_seldom", lambda: None)
    with pytest.raises(SystemExit) as left:
        cli.leave(program)
    assert left.value.code == code
    assert capsys.readouterr().err.startswith(said)


def test_cycles_are_looked_for_less_often_and_found_all_the_same():
    """In a process of its own, whose settings it changes."""
    code = """
import gc, weakref
from bpgan.runtime import environment
before = gc.get_threshold()
environment.collect_seldom()
assert all(new > old for new, old in zip(gc.get_threshold()[:2], before)), gc.get_threshold()
class Cycle: pass
def make():
    cycle = Cycle()
    cycle.itself = cycle
    return weakref.ref(cycle)
found, kept = make(), [[] for _ in range(60_000)]
assert found() is None
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_in_one_process_is_an_interruption_for_the_others(monkeypatch):
    told = []
    monkeypatch.setattr(environment, "open_streams", lambda: None)
    monkeypatch.setattr(environment, "collect_seldom", lambda: None)
    monkeypatch.setattr(peers, "end", lambda *word: told.append(word) or word[0])
    monkeypatch.setattr(peers, "leave_at_once", sys.exit)
    with pytest.raises(SystemExit) as left:
        cli.leave(lambda: cli.CANCELLED)  # what ``run`` makes of KeyboardInterrupt
    assert left.value.code == 130 and told == [(75, "was interrupted")]


def test_a_user_without_a_home(monkeypatch):
    for name in ("XDG_CACHE_HOME", "BPGAN_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # as without $HOME and an entry in passwd
    with pytest.raises(UserError, match="no such home directory; BPGAN_DATA_DIR names another"):
        cache.directory()


def test_a_directory_that_has_been_removed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert processes.python() == [sys.executable, "-P", "-m"]
    assert processes.child_environment()["PYTHONPATH"].startswith(str(ROOT))


def test_signals_that_are_ignored_stay_so():
    """As SIGHUP under nohup, and SIGINT in the background of a script."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.listen() as stopped, processes.collect_signals() as received:
            signal.raise_signal(signal.SIGHUP)
            assert not stopped() and not received
        with signals.listen() as stopped:
            signal.raise_signal(signal.SIGTERM)
            assert stopped() == "SIGTERM"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_width_of_numbers_is_the_flags_whatever_the_environment(monkeypatch, precision):
    """JAX_ENABLE_X64 and JAX_DEFAULT_MATMUL_PRECISION would make other numbers of the same config."""
    monkeypatch.setattr(distributed, "join", lambda: None)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    distributed.setup(precision)
    assert jax.config.values["jax_enable_x64"] == (precision == "float64")
    assert jax.config.values["jax_default_matmul_precision"] == "default"


TRAIN = "-m experiments.linear_regression --preset=smoke --tensorboard=false --workdir={run}"
HELP = "{python} -OO -m experiments.linear_regression --help; {python} -OO launch.py --help"
ASCII = "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0"
CASES = {
    "a platform that is not there": (2, "JAX_PLATFORMS=cuda {python} {train}", "JAX_PLATFORMS=cuda: is not there"),
    "a value that JAX refuses": (2, "JAX_ENABLE_X64=maybe {python} {train}", "'maybe' for environment"),
    "the launcher with such a value": (2, "JAX_ENABLE_X64=maybe {python} launch.py --list", "'maybe' for environment"),
    "any program with such a value": (2, "JAX_ENABLE_X64=maybe {python} -m bpgan.cli vae", "'maybe' for environment"),
    "a flag that XLA does not know": (2, "XLA_FLAGS=--xla_no=1 {python} {train}", "XLA_FLAGS=--xla_no=1: Unknown flag"),
    "no standard output": (0, "{python} {train} >&-", ""),
    "no stream at all": (0, "{python} {train} >&- 2>&- <&-", ""),
    "output on a full disk": (2, "{python} {train} > /dev/full", "No space left on device"),
    "errors that nobody reads": (2, "{python} {train} --lr=-1 2> >(true)", ""),
    "an ASCII terminal": (0, "PYTHONIOENCODING=ascii {python} {train}_\u00e9", "run_\\xe9"),
    "a locale that is not UTF-8": (2, ASCII + " {python} {train}_\u00e9", "must be text in ascii"),
    "neither home nor passwd": (0, "env -u HOME -u XDG_CACHE_HOME {python} {train}", "done at step"),
    "no docstrings": (0, HELP, "Runs one experiment"),
    "warnings that are errors": (0, "{python} -W error {train}", "done at step"),
    "no directory": (0, "mkdir {run}_; cd {run}_; rmdir {run}_; PYTHONPATH={root} {python} {train}", "done at step"),
    "a narrow terminal": (0, "COLUMNS=1 {python} {train}", "done at step"),
}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("case", CASES)
def test_surroundings(tmp_path, case):
    code, line, said = CASES[case]
    run = tmp_path / "run"
    command = TRAIN.format(run=run)
    line = line.format(python=sys.executable, train=command, run=run, root=ROOT)
    argv = ["bash", "-c", line]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=250)
    output = done.stdout + done.stderr
    assert done.returncode == code and said in output and "Traceback" not in output, output
    if code == 0 and "train" in CASES[case][1]:
        assert list(tmp_path.glob("run*/report.html"))


@pytest.mark.medium
def test_a_terminal_that_is_closed(tmp_path):
    """The run saves, as on SIGHUP; what it then says can no longer be written."""
    flags = "--preset=dirac --steps=10000000 --log_every=1000 --sample_every=0 --checkpoint_every=0"
    argv = [sys.executable, "-m", "experiments.toy_gan", *flags.split(), "--tensorboard=false"]
    argv.append(f"--workdir={tmp_path / 'run'}")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        argv, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    said = b""
    while b"step 2000/" not in said:
        said += os.read(ours, 10_000)
    os.close(ours)
    assert process.wait(120) == 75
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
