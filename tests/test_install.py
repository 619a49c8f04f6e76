"""The package as users install it, away from its sources: what it holds, and that a run goes from one to the other."""

import email
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from bpgan.cli import experiments
from bpgan.version import __version__

ROOT = pathlib.Path(__file__).parent.parent
SUPPORTED = ("3.11", "3.12", "3.13")
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
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


def copy_sources(folder):
    """What a package is built from, in another folder, for a build writes beside it."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("bpgan", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that bpgan is installed into."""
    folder = tmp_path_factory.mktemp("install")
    copy_sources(folder / "source")
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


def test_help_shows_the_commands_that_are_installed(site, elsewhere):
    said = call([str(site / "bin" / "bpgan-run"), "sample", "--help"], site, elsewhere)
    said += call([str(site / "bin" / "bpgan"), "--help"], site, elsewhere)
    assert "bpgan-run sample --run=runs/mnist_gan/default" in said and "bpgan --list" in said
    assert "experiments.sample" not in said and "launch.py" not in said


def test_the_launcher_trains_one_of_the_project_and_one_of_the_user(site, elsewhere):
    (elsewhere / "mine.py").write_text(OWN)
    launch = [str(site / "bin" / "bpgan"), "--sweep=seed=0:2", "--jobs=2", "--tensorboard=false"]
    for name in ("linear_regression", "mine.py"):
        said = call([*launch, f"--experiment={name}", "--epochs=2"], site, elsewhere)
        label = name.removesuffix(".py")
        assert len(list((elsewhere / "runs" / label).glob("*/report.html"))) == 2, said


# As distributed -----------------------------------------------------------------------------------------------------


def interpreter(version):
    """A Python of this version that can make environments, on the path or of pyenv; None if there is none."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
    if version == THIS:
        found.append(sys.executable)
    for path in filter(None, found):
        test = "import ensurepip, ssl, sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-c", test], capture_output=True, encoding="utf-8")
        if done.returncode == 0 and done.stdout.strip() == version:
            return str(path)
    return None


def environment(python, folder, *packages):
    """A fresh environment with some packages, by the path of its Python; skips where they cannot be downloaded."""
    subprocess.run([python, "-m", "venv", folder], check=True, capture_output=True)
    argv = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    argv += ["--disable-pip-version-check", *packages]
    done = subprocess.run(argv, capture_output=True, encoding="utf-8")
    if re.search("No matching distribution|Max retries|Could not find a version", done.stderr):
        pytest.skip(f"packages cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution, and the wheel that is built from it, not from the sources."""
    folder = tmp_path_factory.mktemp("build")
    copy_sources(folder / "source")
    python = environment(sys.executable, folder / "venv", "build")
    done = subprocess.run(
        [python, "-m", "build", "--outdir", folder / "dist", folder / "source"],
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (source,), (wheel,) = (list((folder / "dist").glob(f"*.{kind}")) for kind in ("tar.gz", "whl"))
    return source, wheel


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_distributions_hold_the_package_and_say_what_it_is(distributions):
    source, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(metadata))
        (scripts,) = (n for n in names if n.endswith("entry_points.txt"))
        assert archive.read(scripts).decode().count("bpgan.") == 2
    ours = {
        str(pathlib.Path(folder, path.relative_to(ROOT / start)))
        for start, folder in (("bpgan", "bpgan"), ("experiments", "bpgan/experiments"))
        for path in (ROOT / start).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == ours
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "requirements.txt", "setup.py"} <= packed
    assert said["Name"] == "bpgan" and said["Version"] == __version__
    assert "bpgan developers" in said["Author"]
    assert len(said.get_all("Project-URL")) == 4
    assert any(line.startswith("jax") for line in said.get_all("Requires-Dist"))


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """``installed(version)``: where the programs are of a fresh environment of this Python with the wheel alone."""
    made = {}

    def make(version):
        if version not in made:
            python = interpreter(version)
            if python is None:
                pytest.skip(f"Python {version} is not installed")
            folder = tmp_path_factory.mktemp(f"python{version}") / "venv"
            made[version] = environment(python, folder, distributions[1]).parent
        return made[version]

    return make


def say(*argv, folder):
    """What a program says that must succeed, with nothing of the checkout on its path."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "version",
    [
        pytest.param(v, marks=pytest.mark.xdist_group(THIS if v == THIS else "others"))
        for v in SUPPORTED
    ],
)
def test_the_wheel_in_a_fresh_environment(installed, elsewhere, version):
    bin = installed(version)
    assert "linear_regression" in say(bin / "bpgan", "--list", folder=elsewhere)
    run = [bin / "bpgan-run", "mnist_gan", "--preset=smoke"]
    assert "done at step 8" in say(*run, folder=elsewhere)
    assert "done at step 8" in say(*run, folder=elsewhere)  # and again, which resumes it
    assert list(elsewhere.glob("runs/mnist_gan/smoke/report.html"))
    version = say(bin / "python", "-c", "import bpgan; print(bpgan.__version__)", folder=elsewhere)
    assert version.strip() == __version__


# A new user ---------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
SMALL = {
    "image_gan": [
        "--net=lite:4,modulated/lite:4", "--latents=normal:8", "--steps=8", "--log_every=2",
        "--sample_every=4", "--checkpoint_every=4",
    ],
    "evaluate": ["--n=100"],
}  # fmt: skip
"""What is added to the commands of the page to make them short."""


def steps_of_the_page():
    """Its commands, as words, and its Python, in order; and whether bpgan is to be known to it."""
    pattern = r"(<!-- without bpgan -->\n)?```(bash|python)\n(.*?)```"
    for alone, kind, block in re.findall(pattern, PAGE, re.DOTALL):
        if kind == "python":
            yield [block], not alone
        else:
            yield from ((shlex.split(line), True) for line in block.splitlines())


def test_the_page_goes_the_whole_way():
    written = [word for words, _ in steps_of_the_page() for word in words]
    for text in ("data", "sample", "export", "evaluate", "--labels=3", "--truncation=0.7"):
        assert text in written
    for start in ("--sweep=betas='0,0.9'", "--report=", "--init_from=", "--features="):
        assert any(word.startswith(start) for word in written)
    assert len({word for word in written if word.startswith("--features=")}) == 2


def write_pictures(folder):
    """What a user has: five classes of small pictures, some of other sizes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for c, name in enumerate(("apple", "boat", "cat", "drum", "egg")):
        (folder / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 60, (40, 36 + i % 3, 3))
            pixels[4 + 3 * c : 12 + 3 * c, 4:28, c % 3] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def walk(bin, folder):
    """Does what the page says, as it says it, with the programs of an environment."""
    write_pictures(folder / "pictures")
    for (first, *others), with_bpgan in steps_of_the_page():
        if first == "pip":
            continue
        if not with_bpgan:
            end = "import sys; assert 'bpgan' not in sys.modules"
            say(sys.executable, "-c", f"{first}\n{end}", folder=folder)
        elif others:
            name = "image_gan" if first == "bpgan" else others[0]
            short = [] if others[0].startswith("--report") else SMALL.get(name, [])
            say(bin / first, *others, *short, folder=folder)
        else:
            say(bin / "python", "-c", first, folder=folder)


@pytest.mark.slow
@pytest.mark.xdist_group(THIS)  # whose environment it uses, too
@pytest.mark.timeout(1800)
def test_a_new_user_in_a_fresh_environment(installed, distributions, tmp_path):
    """From a folder of pictures to all that is made of it, by the page alone."""
    bin = installed(THIS)
    assert 'pip install "bpgan[export]"' in PAGE
    pip = [bin / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    say(*pip, f"{distributions[1]}[export]", folder=tmp_path)
    walk(bin, tmp_path)
    check_what_was_made(tmp_path)


def check_what_was_made(folder):
    runs = folder / "runs"
    drawn = {path.name for path in runs.glob("sample/*/*.png")}
    assert "step00000008_seed0007_class003_truncation0.7.png" in drawn
    assert "step00000008_grid0-8_classesall.png" in drawn and (folder / "class3.png").exists()
    found = json.loads((runs / "image_gan" / "larger" / "config.json").read_text("utf-8"))
    assert found["origin"]["run"] and found["config"]["dataset"] == "folder:pictures,size=64"
    kinds = json.loads((runs / "image_gan" / "first" / "metrics.json").read_text("utf-8"))
    nets = {re.match("[a-z]+", row["features"])[0] for row in kinds}
    assert nets == {"classifier", "pixels"} and len(kinds) >= 10
    assert len(list((runs / "image_gan").glob("betas=*/result.json"))) == 2
    compared = (runs / "comparison.csv").read_text("utf-8")
    assert "0,0.9" in compared and "0,0.99" in compared and "first" in compared
