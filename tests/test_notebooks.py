"""The notebooks run as they are stored, made short by their cell of settings, and are stored without results."""

import ast
import json
import pathlib
import re
import sys

import pytest
from checks.fusions import SHORT_FUSIONS

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
SHORT = {
    "01_article": "epochs = 1\nbetter_epochs = 0.05\ngame_steps = 50",
    "02_own_images": 'pictures = "pictures"\nsize = 16\nsettings = dict(preset="smoke")\nfeatures = "pixels"',
    "03_own_method": "steps = 20",
}
"""What takes the place of the cell of settings, which has the tag ``parameters``."""
PACKAGES = {"bpgan", "jax", "numpy", "optax", "flax", "PIL", "IPython"}
"""Those that bpgan and Jupyter bring."""

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(notebook):
    """The text of its cells with code, without what is written to files."""
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return [text for text in cells if not text.startswith("%%")]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == list(SHORT)


@by_name
def test_a_notebook_is_stored_without_results(path):
    """No outputs, no counts, nothing of the machine it was last opened on."""
    notebook = read(path)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        assert set(cell["metadata"]) <= {"tags"}
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not re.search(r"/(home|root|work|tmp|Users)/", path.read_text(encoding="utf-8"))


@by_name
def test_a_notebook_needs_bpgan_and_jupyter_only(path):
    notebook = read(path)
    assert "pip install bpgan jupyter" in "".join(notebook["cells"][0]["source"])
    for node in ast.walk(ast.parse("\n".join(code_of(notebook)))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            package = name.split(".")[0]
            assert package in PACKAGES or package in sys.stdlib_module_names, name
        if isinstance(node, ast.Attribute | ast.alias):
            name = node.attr if isinstance(node, ast.Attribute) else node.name
            assert not name.startswith("_"), f"{name} is private"


@by_name
def test_a_notebook_says_where_to_read_on(path):
    """The files that its text names are there."""
    text = "".join("".join(c["source"]) for c in read(path)["cells"] if c["cell_type"] != "code")
    for name in re.findall(r"(?:main/|`)(docs/[\w./-]+)", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(\w+\.ipynb)`", text):
        assert (path.parent / name).exists(), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("default")  # those of Jupyter are not of bpgan
@by_name
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """From its first cell to its last, in another process, and shows a picture at least."""
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    for name, value in ({"PYTHONPATH": str(ROOT)} | SHORT_FUSIONS).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "data"))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    (settings,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))

    def names(code):
        return [node.targets[0].id for node in ast.parse(code).body]

    assert names(settings.source) == names(SHORT[path.stem])
    settings.source = SHORT[path.stem]
    (tmp_path / "here").mkdir()
    resources = {"metadata": {"path": str(tmp_path / "here")}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    kinds = {kind for out in outputs for kind in out.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml", "image/gif"}
    said = "".join(out.text for out in outputs if out.output_type == "stream")
    assert "Traceback" not in said and "Warning" not in said, said
