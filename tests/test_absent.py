"""What runs without packages that a machine may lack: TensorBoard's, Grain, array_record, TFDS and msgspec."""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import pickle
import re
import subprocess
import sys
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from checks.fusions import SHORT_FUSIONS

from bpgan.data import datasets, flat, sources
from bpgan.runtime import events
from bpgan.types import UserError

ROOT = pathlib.Path(__file__).parent.parent
ABSENT = ("array_record", "grain", "tensorflow_datasets", "tensorboardX", "msgspec")


def standin():
    spec = importlib.util.spec_from_file_location(
        "standin", ROOT / "benchmarks/standins/msgspec.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bare(tmp_path):
    """``bare(module, *flags)``: a program where the packages are not installed; its exit code and what it says."""
    block = f"import sys\nsys.modules |= dict.fromkeys({ABSENT[:-1]!r})\n"
    # An installed msgspec is hidden by the stand-in, which comes first on the path.
    (tmp_path / "sitecustomize.py").write_text(block)
    path = [str(tmp_path), str(ROOT / "benchmarks" / "standins"), str(ROOT)]
    environment = {**os.environ, **SHORT_FUSIONS, "PYTHONPATH": os.pathsep.join(path)}
    environment["BPGAN_DATA_DIR"] = str(tmp_path / "data")

    def run(module, *flags):
        command = [sys.executable, "-m", f"experiments.{module}", *flags]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def digits(tmp_path):
    """A file of 300 images of 28x28 with labels."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (300, 28, 28), np.uint8), np.arange(300) % 10
    np.savez(tmp_path / "digits.npz", x=x, y=y)
    return tmp_path / "digits.npz"


@pytest.mark.medium
def test_runs_resume_report_and_evaluate_without_them(bare, digits, tmp_path):
    npz, smoke = f"--dataset=npz:{digits}", ["--preset=smoke", "--net=mlp"]
    code, said = bare("mnist_gan", *smoke, "--workdir=mnist")
    assert code == 0 and said.count("tensorboardX") == 2, said  # one warning, which names it twice
    assert "Traceback" not in said
    for steps in (4, 8):
        code, said = bare("image_gan", *smoke, npz, f"--steps={steps}", "--workdir=image")
        assert code == 0, said
    assert (tmp_path / "image" / "report.html").is_file()
    assert json.loads((tmp_path / "image" / "result.json").read_text())["step"] == 8
    code, said = bare("evaluate", "--run=image", "--n=30", "--metrics=fd,prdc")
    assert code == 0, said
    found = json.loads(next(tmp_path.glob("runs/evaluate/*/metrics.json")).read_text())
    assert all(math.isfinite(row["value"]) for row in found)


@pytest.mark.medium
@pytest.mark.parametrize(
    "flags, package",
    [
        (["--feed=stream"], "pip install grain"),
        (["--dataset=tfds:oxford_flowers102"], "pip install tensorflow-datasets"),
    ],
)
def test_what_needs_one_is_refused_in_a_line(bare, flags, package):
    code, said = bare("image_gan", "--preset=smoke", *flags)
    assert code == 2 and package in said.splitlines()[-1] and "Traceback" not in said


# --- TensorBoard and Grain ----------------------------------------------------------------------------------------


def test_without_tensorboardx_it_is_said_why_there_are_no_event_files(monkeypatch):
    assert events.missing() == ""
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert "pip install tensorboardX" in events.missing()


def test_a_stream_without_grain_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    images = datasets.of_arrays("x", "train", np.zeros((20, 4, 4, 1), np.uint8), np.zeros(20), 1)
    with pytest.raises(UserError, match="pip install grain") as error:
        sources.source(images, seed=0, batch_size=4, feed="stream")
    assert error.value.argument == "feed"


# --- Record files -------------------------------------------------------------------------------------------------


def hide_array_record(patch):
    # What was imported before is found by its whole name, without a look at its parents.
    for name in ("", ".python", ".python.array_record_module"):
        patch.setitem(sys.modules, f"array_record{name}", None)


@pytest.fixture
def no_array_record(monkeypatch):
    hide_array_record(monkeypatch)


def written(path, records):
    writer = flat.ArrayRecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_flat_records_are_read_in_any_order_and_with_repetitions(tmp_path):
    given = [bytes([i]) * 5 for i in range(7)]
    reader = flat.ArrayRecordReader(str(written(tmp_path / "r", given)))
    assert reader.num_records() == 7
    assert reader.read([6, 0, 0, 3]) == [given[6], given[0], given[0], given[3]]
    assert flat.ArrayRecordReader(str(written(tmp_path / "none", []))).num_records() == 0


def test_flat_records_have_one_length(tmp_path):
    with contextlib.closing(flat.ArrayRecordWriter(str(tmp_path / "r"))) as writer:
        writer.write(b"12345")
        with pytest.raises(RuntimeError, match="must have 5"):
            writer.write(b"1234")


def test_any_damage_to_flat_records_is_noticed(tmp_path):
    path = written(tmp_path / "r", [b"abc", b"def"])
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises((RuntimeError, AssertionError)):
            reader = flat.ArrayRecordReader(str(path))
            assert reader.num_records() == 2
            reader.read([0, 1])
    for end in range(len(raw)):
        path.write_bytes(raw[:end])
        with pytest.raises((RuntimeError, AssertionError)):
            assert flat.ArrayRecordReader(str(path)).num_records() == 2


def test_a_dataset_is_the_same_without_array_record(digits, tmp_path, monkeypatch, request):
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "with"))
    ours = datasets.load(f"npz:{digits}")
    request.getfixturevalue("no_array_record")
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "without"))
    theirs = datasets.load(f"npz:{digits}")
    assert theirs.sha256 == ours.sha256 and theirs.counts == ours.counts
    rows = np.array([5, 0, 269, 5])
    for a, b in zip(pickle.loads(pickle.dumps(theirs.read))(rows), theirs.read(rows), strict=True):
        np.testing.assert_array_equal(a, b)
    x, y = theirs.arrays()
    monkeypatch.undo()
    np.testing.assert_array_equal(x, ours.arrays()[0])
    np.testing.assert_array_equal(y, ours.arrays()[1])


@pytest.mark.parametrize("first", ("with", "without"))
def test_a_cache_of_the_other_library_is_made_again(digits, tmp_path, monkeypatch, capsys, first):
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "data"))

    def load(installed):
        with pytest.MonkeyPatch.context() as patch:
            if not installed:
                hide_array_record(patch)
            return datasets.load(f"npz:{digits}").arrays()

    before, after = load(first == "with"), load(first == "without")
    np.testing.assert_array_equal(before[0], after[0])
    assert "making it again" in capsys.readouterr().err


# --- The stand-in for msgspec -------------------------------------------------------------------------------------


def kinds(library):
    class Inner(library.Struct, frozen=True, kw_only=True):
        name: str
        sizes: list[int] = []
        label: int | None | library.UnsetType = library.UNSET

    class Outer(library.Struct, frozen=True, kw_only=True, omit_defaults=True):
        step: Annotated[int, library.Meta(ge=0)]
        inner: Inner | None = None
        digest: Annotated[str, library.Meta(pattern="^[0-9a-f]{4}$")] = "00ff"
        config: dict[str, str | bool | int | float | None] = {}
        pair: tuple[str, Any] | None = None
        metrics: dict[str, float] = {}

    return {"outer": Outer, "list": list[Outer], "int": int, "floats": dict[str, float], "any": Any}


DOCUMENTS = [
    ("outer", {"step": 3}),
    ("outer", {"step": 3, "unknown": [1]}),
    ("outer", {"step": 0, "inner": {"name": "a", "sizes": [1, 2]}, "pair": ["a", {}]}),
    ("outer", {"step": 1, "config": {"a": True, "b": 1, "c": 1.5, "d": None, "e": "x"}}),
    ("outer", {"step": 1, "metrics": {"a": 1, "b": 2.5}}),
    ("outer", {"step": -1}),
    ("outer", {"step": True}),
    ("outer", {"step": "1"}),
    ("outer", {}),
    ("outer", [1]),
    ("outer", {"step": 1, "inner": {"sizes": []}}),
    ("outer", {"step": 1, "inner": {"name": "a", "sizes": ["x"]}}),
    ("outer", {"step": 1, "digest": "00fg"}),
    ("outer", {"step": 1, "config": {"a": []}}),
    ("outer", {"step": 1, "metrics": {"a": "x"}}),
    ("outer", {"step": 1, "pair": ["a"]}),
    ("outer", {"step": 1, "inner": {"name": "a", "label": None}}),
    ("outer", {"step": 1, "inner": {"name": "a", "label": 3}}),
    ("outer", {"step": 1, "inner": {"name": "a", "label": "x"}}),
    ("list", [{"step": 3}, {"step": 4}]),
    ("list", [{"step": 3}, {"stop": 4}]),
    ("int", 3),
    ("int", 3.5),
    ("floats", {"a": 1}),
    ("floats", [1]),
    ("any", {"a": [1, None]}),
]


@pytest.mark.parametrize("kind, document", DOCUMENTS)
def test_the_standin_reads_as_msgspec(kind, document):
    def read(library):
        try:
            return library.to_builtins(library.convert(document, kinds(library)[kind]))
        except library.ValidationError as error:
            return "refused" + str(error).partition(" - at ")[2]

    assert read(standin()) == read(msgspec)


def test_the_standin_has_what_the_project_uses():
    sources = (path.read_text(encoding="utf-8") for path in ROOT.glob("bpgan/**/*.py"))
    used = {name for text in sources for name in re.findall(r"\bmsgspec\.(\w+)", text)}
    assert {"Struct", "UNSET"} <= used and not [n for n in used if not hasattr(standin(), n)]


def test_the_standin_makes_copies_with_other_values():
    library = standin()
    outer = kinds(library)["outer"](step=1)
    assert library.structs.replace(outer, step=2).step == 2 and outer.step == 1
    with pytest.raises(AttributeError):
        outer.step = 3
