"""bpgan/cli/experiments.py: an experiment is found by name, module or file, and has one name from wherever."""

import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import types

import pytest

from bpgan import cli
from bpgan.cli import experiments
from bpgan.types import UserError

ROOT = pathlib.Path(__file__).parent.parent

OWN = '''"""A line.

And a fitted one.
"""

import dataclasses

from experiments import linear_regression

from bpgan import cli
{imports}

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(linear_regression.Config):
    own: int = cli.field(3, "own flag")


PRESETS = {{"smoke": dict(epochs=2)}}
build = linear_regression.build

if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with ``alone.py``, that imports its sibling ``beside.py``, and a package ``pack`` with ``inside.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "beside.py").write_text("NUMBER = 7\n")
    (tmp_path / "alone.py").write_text(OWN.format(imports="import beside\n"))
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").touch()
    (tmp_path / "pack" / "near.py").touch()
    (tmp_path / "pack" / "inside.py").write_text(OWN.format(imports="from . import near\n"))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def message(text):
    with pytest.raises(UserError) as caught:
        experiments.find(text)
    said = cli.message_of(caught.value)
    assert said.startswith(f"--experiment={text}: ") and "\n" not in said
    return said.partition(": ")[2]


def test_those_of_the_project_have_short_names():
    assert "mnist_gan" in experiments.names() and "evaluate" in experiments.names()
    for name in experiments.names():
        script = experiments.find(name)
        assert script.name == name == experiments.label_of(name)
        assert script.trains == hasattr(script.module, "build")
        assert experiments.describe(name)[1] == list(script.presets)
        assert experiments.program_of(name) == [f"experiments.{name}"]


def test_where_their_folder_is_out_of_reach_another_program_runs_them(monkeypatch):
    """As where a checkout is installed to be edited: Python finds bpgan from anywhere, and nothing else."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(ROOT)])
    assert experiments.program_of("vae") == ["bpgan.cli", "vae"]


@pytest.mark.parametrize(
    "text",
    ["experiments.vae", "bpgan.experiments.vae", str(ROOT / "experiments/vae.py"), "experiments/vae.py"],
)  # fmt: skip
def test_which_they_have_by_whatever_name_they_are_found(monkeypatch, text):
    monkeypatch.chdir(ROOT)
    script = experiments.find(text)
    assert script.name == "vae" and script.module is experiments.find("vae").module


def test_a_module_of_the_users_package(own):
    script = experiments.find("pack.inside")
    assert script.name == "pack.inside" and script.module.near.__name__ == "pack.near"
    assert experiments.label_of(script.name) == "inside" and script.trains
    assert experiments.program_of(script.name) == ["bpgan.cli", "pack.inside"]


def test_a_file_of_the_user(own):
    path = str(own / "alone.py")
    for text in ("alone.py", "./alone.py", "pack/../alone.py", path):
        script = experiments.find(text)
        assert script.name == path and script.module.beside.NUMBER == 7
        assert script.module is experiments.find(path).module  # imported once
    assert experiments.label_of(path) == "alone" and list(script.presets) == ["smoke"]
    assert experiments.program_of(path) == ["bpgan.cli", path]
    cfg = script.config(own=5)
    assert pickle.loads(pickle.dumps(cfg)) == cfg


def test_files_of_one_name_in_two_folders_are_two_experiments(own):
    (own / "other").mkdir()
    (own / "other" / "alone.py").write_text(OWN.format(imports="NUMBER = 8\n"))
    first, second = experiments.find("alone.py"), experiments.find("other/alone.py")
    assert first.module is not second.module and second.module.NUMBER == 8
    assert {first.name, second.name} == {str(own / "alone.py"), str(own / "other" / "alone.py")}
    for script in (first, second):
        cfg = script.config(own=5)
        assert pickle.loads(pickle.dumps(cfg)) == cfg


def test_a_file_whose_name_is_no_identifier(own):
    (own / "my-gan.v2.py").write_text(OWN.format(imports=""))
    script = experiments.find("my-gan.v2.py")
    assert script.name == str(own / "my-gan.v2.py") == experiments.name_of(script.module)
    assert experiments.label_of(script.name) == "my-gan.v2"


@pytest.mark.parametrize(
    "text, said",
    [
        ("nothing.py", "must be the path of a Python file (*.py) that exists"),
        ("pack/nothing.py", "must be the path of a Python file (*.py) that exists"),
        ("../", "must be the path of a Python file (*.py) that exists"),
        ("pack.nothing", "there is no module pack.nothing"),
        ("nothing.inside", "there is no module nothing"),
        ("nothing", "must be one of "),
        ("", "must be one of "),
        ("beside.py", "is no experiment: it has no Config derived from cli.Config"),
        ("pack.near", "is no experiment: it has no Config derived from cli.Config"),
        ("\0.py", "must be the path of a Python file (*.py) that exists"),
    ],
)
def test_what_is_none(own, text, said):
    assert message(text).startswith(said)


@pytest.mark.parametrize("presets", ["3", "[]", "dict(quick=5)"])
def test_presets_that_are_none(own, presets):
    (own / "preset.py").write_text(OWN.format(imports="") + f"\nPRESETS = {presets}\n")
    assert message("preset.py") == "PRESETS must be a dict from names to dicts of flags"


def test_the_name_that_was_meant_is_said():
    assert message("mnist_gam").endswith("path/to/file.py; did you mean mnist_gan?")


@pytest.mark.parametrize(
    "code, said",
    [
        ("import no_such_module", "No module named 'no_such_module', {file}:1"),
        ("\n1 / 0", "ZeroDivisionError: division by zero, {file}:2"),
        ("def f(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("from beside import absent", "ImportError: cannot import name 'absent'"),
    ],
)
def test_an_error_while_it_is_imported_says_where(own, code, said):
    (own / "broken.py").write_text(code)
    file = own / "broken.py"
    assert said.format(file=file) in message("broken.py")
    (own / "pack" / "broken.py").write_text(code)
    assert said.format(file=own / "pack" / "broken.py") in message("pack.broken")
    assert "broken" not in sys.modules  # once it is mended, it is read again
    file.write_text(OWN.format(imports=""))
    assert experiments.find("broken.py").name == str(file)


def test_an_error_of_a_user_passes(own):
    (own / "broken.py").write_text("from bpgan.types import UserError\nraise UserError('is bad')")
    with pytest.raises(UserError, match="^is bad$"):
        experiments.find("broken.py")


def test_a_file_that_runs_when_it_is_imported(own):
    (own / "bare.py").write_text("raise SystemExit(0)")
    assert message("bare.py").startswith("it ran when it was imported; begin its last lines with")


def test_an_experiment_that_only_says_what_it_is(own):
    (own / "empty.py").write_text(
        "from bpgan import cli\nclass Config(cli.Config): pass\ndef run(cfg): pass\n"
    )
    script = experiments.find("empty.py")
    assert not script.trains and script.presets == {}
    (own / "less.py").write_text("from bpgan import cli\nclass Config(cli.Config): pass\n")
    assert message("less.py").startswith("is no experiment: it has neither build(cfg, axis_name)")


def test_the_config_of_another_experiment_is_none_of_its_own(own):
    """A run knows its experiment by the class of its config."""
    (own / "taken.py").write_text("from experiments.linear_regression import Config, build\n")
    said = "needs a Config of its own, if only derived from that of experiments.linear_regression"
    assert message("taken.py") == said
    code = "\nfrom bpgan import cli\ncli.main(Config, build)"
    (own / "taken.py").write_text((own / "taken.py").read_text() + code)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "taken.py"]
    done = subprocess.run(argv, cwd=own, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and done.stderr == f"error: {own / 'taken.py'}: {said}\n"


def test_what_is_in_no_file_has_no_name():
    assert experiments.name_of(types.ModuleType("__main__")) == ""
    assert experiments.label_of("") == "notebook"


@pytest.mark.medium
def test_it_has_the_same_name_from_wherever_it_is_started(own):
    """And so each goes on with what the one before began, from any directory."""
    path = str(own / "alone.py")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    flags = ["--preset=smoke", f"--workdir={own / 'run'}", "--tensorboard=false"]
    commands = [[path], ["-m", "alone"], ["-m", "bpgan.cli", "alone.py"], ["-m", "bpgan.cli", path]]
    for epochs, command in enumerate(commands, start=1):
        argv = [sys.executable, *command, *flags, f"--epochs={epochs}"]
        done = subprocess.run(argv, cwd=own, env=env, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        assert f"done at step {epochs}" in done.stdout
    saved = cli.restore(own / "run", trust=True)
    assert saved.name == path and saved.step == 4 and saved.config.own == 3
    moved = own / "pack" / "alone.py"
    os.rename(path, moved)
    with pytest.raises(
        UserError,
        match=r"Python file \(\*\.py\) that exists; if it has moved, `flags=experiment=...`",
    ):
        cli.restore(own / "run", trust=True)
    saved = cli.restore(own / "run", changes=[f"experiment={moved}"], trust=True)
    assert saved.name == str(moved) and saved.step == 4
    argv = [sys.executable, str(moved), *flags, "--epochs=5"]
    env["PYTHONPATH"] += os.pathsep + str(own)  # for its sibling
    done = subprocess.run(argv, cwd=own, env=env, capture_output=True, encoding="utf-8")
    assert "done at step 5" in done.stdout, done.stderr
    shutil.copy(moved, path)  # the file of the run is still there: this is another
    argv = [sys.executable, path, *flags, "--epochs=6"]
    done = subprocess.run(argv, cwd=own, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and f"holds a run of {moved}, not of {path}" in done.stderr
