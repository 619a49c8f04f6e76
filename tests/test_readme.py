"""The commands and the Python of README.md and docs/ run as written, made short; links lead somewhere."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from checks.fusions import SHORT_FUSIONS

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
OWN = {"start.md", "using.md"}
"""Pages whose blocks need runs that are there: test_install.py and test_use.py run them."""
BLOCKS = [
    block
    for page in PAGES
    if page.name not in OWN
    for block in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.S)
]
COMMANDS = [
    list(command)
    for command in dict.fromkeys(
        tuple(shlex.split(line, comments=True))
        for kind, block in BLOCKS
        if kind == "bash"
        for line in block.splitlines()
    )
]
SHORT = ["--steps=4", "--log_every=2", "--sample_every=0", "--checkpoint_every=2"]


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 8 and sum(kind == "python" for kind, _ in BLOCKS) >= 3


# An object store is no part of the machine: such commands are run in test_remote.py, against servers of this machine.
HERE = [c for c in COMMANDS if c[0] == "python" and "://" not in " ".join(c)]


# What trains a classifier of its own, many programs or large networks, or is called with these flags by other tests.
DEAR = re.compile(
    r"--eval_every|--experiment=private_gan|seed=0:8|--samples=|--processes|evaluate --run=runs/private_gan"
    r"|--preset=(match|adversarial|continuous|vit|afm|lite)\d+|--net=vit|--study=|--ema=power"
    r"|experiments\.(translate|audit|evaluate_text)\b"
)


def priced(commands):
    """Commands as cases: the first one of each program that is not dear, and the others for the slow tier."""
    seen = set()
    for command in commands:
        words, program = (
            " ".join(command),
            tuple(command[:3] if command[1] == "-m" else command[:2]),
        )
        late = program in seen or DEAR.search(words) or "--help" in command
        if not late:
            seen.add(program)
        yield pytest.param(command, marks=pytest.mark.slow if late else (), id=words)


def test_every_experiment_is_run_by_a_page():
    """So that its smoke preset, or a few steps of another one, is run here. The runs of a study are test_lucic's."""
    named = {word.rpartition(".")[2] for command in HERE for word in command[2:3]}
    assert {path.stem for path in ROOT.glob("experiments/[a-z]*.py")} <= named | {"lucic"}


def run(argv, folder):
    """A command in a folder, which must succeed."""
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | SHORT_FUSIONS,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "Error" not in done.stderr, done.stderr


def runs_of(word):
    """The run directories that ``--run=runs/NAME/RUN`` or ``--report=runs/NAME`` reads, each with its experiment.

    ``--report=runs`` reads all that there are.
    """
    if word.endswith("=runs"):
        return [("runs/mnist_gan", "mnist_gan"), ("runs/vae", "vae")]
    return re.findall(r"(?<=[=,])(runs/(\w+)(?:/[\w=.-]+)?)", word)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``trained(experiment)``: the folder of a short run of it."""
    folder = tmp_path_factory.mktemp("trained")

    def path(name):
        if not (folder / name).exists():
            run(["-m", f"experiments.{name}", "--preset=smoke", f"--workdir={name}"], folder)
        return folder / name

    return path


@pytest.mark.medium
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("command", list(priced(HERE)))
def test_command(command, trained, tmp_path):
    for path, name in (found for word in command for found in runs_of(word)):
        path = path if path.count("/") > 1 else f"{path}/default"
        shutil.copytree(trained(name), tmp_path / path)
    flags = {word.partition("=")[0] for word in command}
    if "--run" in flags:
        few = {
            "experiments.audit": ["--n=100"],
            "experiments.export": [],
            "experiments.interpret": ["--preset=smoke", "--what=inversion"],
            "experiments.sample": [],
            "experiments.evaluate_text": ["--preset=smoke"],
        }
        command = [*command, *few.get(command[2], ["--n=100", "--features=pixels"])]
    elif "--study" in flags:  # of which a whole one takes hours
        command = [*command[:3], "--preset=smoke"]
    elif not {"--help", "--list", "--report"} & flags:
        short = {"--preset", "--epochs"} & flags
        command = [*command, *(SHORT if short else ["--preset=smoke"])]
        if command[2] == "experiments.translate":  # no classifiers
            command = [*command, "--measure=errors"]
    if any(word.startswith("--samples=") and word[10:].isdecimal() for word in command):
        command = [*command, "--samples=3"]
    if command[1] == "launch.py":
        command = ["python", str(ROOT / "launch.py"), *command[2:]]
    run(command[1:], tmp_path)


WRITTEN = re.compile(
    r"python (launch\.py|-m experiments\.\w+)((?: +--[\w-]+(?:=(?:\"[^\"]*\"|[^\s`\"]+))?)*)"
)


def written():
    """Every command of the project, wherever it stands in a page: those in sentences and tables are not run."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        # Where bpgan is installed they have names of their own.
        text = re.sub(r"\bbpgan-run (?=\w)", "python -m experiments.", text)
        text = re.sub(r"\bbpgan (?=--)", "python launch.py ", text)
        for program, flags in WRITTEN.findall(re.sub(r" +", " ", text)):
            # Those of object stores are run in test_remote.py, and those of files on a page in the tests of extension.
            if not re.search(r"://|sharpness:|\.\.\.", flags):
                yield f"python {program}{flags}".replace("=NAME", "=mnist10k")


@pytest.mark.parametrize("command", sorted(set(written())))
def test_flags_that_are_written_down_exist(command):
    from bpgan import cli
    from bpgan.launcher import flags

    argv = shlex.split(command)[1:]
    if argv[0] == "launch.py":
        given = flags.parse(argv[1:])
        name, argv = given.values["experiment"], given.rest
    else:
        name, argv = argv[1].rpartition(".")[2], argv[2:]
    if name.endswith(".py") or not name or name == "NAME" or cli.is_help(argv):
        return
    script = cli.experiments.find(name)
    cli.resolve(script.config, script.presets, argv)


@pytest.mark.parametrize("target", sorted({c[1] for c in COMMANDS if c[0] == "make"}))
def test_make_target_exists(target):
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr


WITH_PYTHON = [
    pytest.param(page, marks=pytest.mark.medium)
    if page.parent.name == "tutorial" or page.name in ("games.md", "library.md")
    else page
    for page in PAGES
    if "```python" in page.read_text() and page.name not in OWN
]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_blocks_run(page):
    from bpgan.losses import LOSSES

    before = dict(LOSSES)
    try:
        names = {"__name__": "readme"}  # a page is read from its top
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            exec(compile(block, str(page), "exec"), names)
        assert page.name != "extending.md" or "softer" in LOSSES
    finally:
        LOSSES.clear()
        LOSSES.update(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
