"""What is said of the project in several files is said alike: version, address, Pythons, authors, workflows."""

import pathlib
import re
import tomllib

import yaml

from bpgan.version import __version__

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
DEVELOPERS = "the bpgan developers"


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def test_citation_and_package_agree():
    assert CITATION["version"] == __version__
    assert CITATION["license"] == PROJECT["license"]["text"]
    assert PROJECT["authors"] == CITATION["authors"] == [{"name": DEVELOPERS}]
    home = CITATION["repository-code"]
    assert all(url.startswith(home) for url in PROJECT["urls"].values())
    paths = [url.split("/main/")[1] for url in PROJECT["urls"].values() if "/main/" in url]
    assert len(paths) == 2 and all((ROOT / path).exists() for path in paths)


def test_every_supported_python_is_tested():
    low, high = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups())
    supported = [f"3.{minor}" for minor in range(low, high)]
    prefix = "Programming Language :: Python :: "
    assert [c.removeprefix(prefix) for c in PROJECT["classifiers"] if prefix in c] == supported
    assert workflow("ci.yml")["jobs"]["all"]["strategy"]["matrix"]["python"] == supported
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"python{version}" in script for version in supported)


def test_workflows_call_what_anyone_can_call():
    steps = workflow("ci.yml")["jobs"]["all"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    steps = workflow("docs.yml")["jobs"]["site"]["steps"]
    assert [step["run"].split()[:2] for step in steps if "run" in step] == [["make", "docs"]]
    assert re.search(r"^docs:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
