"""The documentation: every page is in the navigation, and the site is built without a warning, with the whole API."""

import ast
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from checks import rooms

ROOT = pathlib.Path(__file__).parent.parent


def listed(entries):
    """The pages of a navigation, at any depth."""
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else listed(value)


def test_every_page_is_in_the_navigation_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    found = list(listed(config["nav"]))
    assert len(found) == len(set(found))
    pages = {str(p.relative_to(ROOT / "docs")) for p in ROOT.glob("docs/**/*.md")}
    mirrored = {"CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/RESULTS.md"}
    assert set(found) - mirrored == pages, "mkdocs.yml: nav"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built in another process by the Python that has mkdocs."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip(f"{package} is not installed: pip install -r requirements-docs.txt")
    folder = tmp_path_factory.mktemp("site")
    environ = os.environ | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        encoding="utf-8",
        timeout=1000,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def public(path):
    """The names of the public functions and classes that a file defines."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{rooms.name_of(path)}.{node.name}", ast.get_docstring(node)


LIBRARY = [
    one
    for path in sorted(ROOT.glob("bpgan/**/*.py"))
    if path.name != "__main__.py"
    for one in public(path)
]


def test_every_public_function_has_a_docstring():
    assert len(LIBRARY) > 700
    assert not [name for name, text in LIBRARY if not text]


@pytest.mark.medium
@pytest.mark.timeout(1200)
def test_every_public_function_is_on_a_page(site):
    pages = "".join(p.read_text(encoding="utf-8") for p in site.glob("reference/api/*.html"))
    there = set(re.findall(r'id="(bpgan[\w.]+)"', pages))
    assert not [name for name, _ in LIBRARY if name not in there]


@pytest.mark.medium
@pytest.mark.timeout(1200)
def test_the_tables_of_flags_are_made_from_the_code(site):
    page = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for word in ("--sweep", "--penalty_every", "--checkpoint_every", "--likelihood", "--preset"):
        assert word in page


@pytest.mark.medium
@pytest.mark.timeout(1200)
def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loads = re.findall(
            r"<(?:script|img|link|iframe)[^>]*(?:src|href)=[\"']?(https?:[^\"' >]+)", text
        )
        assert not loads, path
