"""The package as users install it, away from its sources: what it holds, and that a run goes from one to the other."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from bpgan.cli import experiments

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = ["--preset=smoke", "--tensorboard=false"]

OWN = """
import dataclasses
from bpgan import cli
from bpgan.experiments import linear_regression

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(linear_regression.Config):
    own: int = cli.field(3, "own flag")

build = linear_regression.build
"""

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that bpgan is installed into, from a copy of its sources, for a build writes beside them."""
    folder = tmp_path_factory.mktemp("install")
    for name in ("bpgan", "experiments"):
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, folder / "source")
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    argv += ["--no-deps", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(argv, capture_output=True, encoding="utf-8")
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("builds need setuptools, which cannot be downloaded")
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def elsewhere(tmp_path):
    """Another directory, with an ``experiments`` of its own."""
    (tmp_path / "experiments.py").write_text("raise ImportError('not this one')")
    return tmp_path


def call(argv, site, folder):
    environ = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(*argv):
    return [sys.executable, *argv]


def test_what_is_installed(site):
    """One name, with everything in it."""
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"bpgan", "bin"}
    assert {path.name for path in (site / "bin").iterdir()} == {"bpgan", "bpgan-run"}

    def files(folder):
        found = (path for path in folder.rglob("*") if path.is_file())
        return {str(p.relative_to(folder)) for p in found if "__pycache__" not in p.parts}

    ours = {f"experiments/{name}" for name in files(ROOT / "experiments")}
    assert files(site / "bpgan") == files(ROOT / "bpgan") | ours
    assert "py.typed" in files(site / "bpgan")


def test_a_run_begun_in_the_checkout_goes_on_where_bpgan_is_installed(site, elsewhere):
    """And back; the first by a program, the second by the console command, the third by its module."""
    run = f"--workdir={elsewhere / 'run'}"
    installed = python("-m", "bpgan.experiments.linear_regression")
    commands = (
        (python("-m", "experiments.linear_regression"), ROOT, ROOT),
        ([str(site / "bin" / "bpgan-run"), "linear_regression"], site, elsewhere),
        (installed, site, elsewhere),
        (python("launch.py", "--experiment=linear_regression"), ROOT, ROOT),
    )
    for epochs, (argv, path, folder) in enumerate(commands, start=21):
        said = call([*argv, *FLAGS, run, f"--epochs={epochs}"], path, folder)
        assert f"done at step {epochs}" in said
        if argv is installed:
            assert "python -m bpgan.experiments.linear_regression" in (
                elsewhere / "run" / "config.json"
            ).read_text(encoding="utf-8")


def test_the_console_commands_describe_all_experiments(site, elsewhere):
    for command in (["bpgan", "--list"], ["bpgan-run", "--help"]):
        said = call([str(site / "bin" / command[0]), command[1]], site, elsewhere)
        assert all(f"  {name}  " in said for name in experiments.names())


def test_the_launcher_trains_one_of_the_project_and_one_of_the_user(site, elsewhere):
    (elsewhere / "mine.py").write_text(OWN)
    launch = [str(site / "bin" / "bpgan"), "--sweep=seed=0:2", "--jobs=2", "--tensorboard=false"]
    for name in ("linear_regression", "mine.py"):
        said = call([*launch, f"--experiment={name}", "--epochs=2"], site, elsewhere)
        label = name.removesuffix(".py")
        assert len(list((elsewhere / "runs" / label).glob("*/report.html"))) == 2, said
