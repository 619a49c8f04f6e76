"""Weights of published networks: PyTorch's files read without PyTorch, and downloads.

References: ``tests/references/state_*.pth``, written by PyTorch (``make_features.py`` there).
"""

import hashlib
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from loopback import HALF, Server

from bpgan.metrics.features import weights
from bpgan.types import UserError

HERE = pathlib.Path(__file__).parent / "references"
FORMATS = [HERE / "state_zip.pth", HERE / "state_legacy.pth"]


@pytest.mark.parametrize("path", FORMATS, ids=lambda p: p.stem)
def test_tensors_are_what_pytorch_wrote(path):
    state, base = weights.read(path), np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    wanted = {
        "plain": base,
        "permuted": base.transpose(2, 0, 1),
        "part": base[:, 1:, ::2],
        "double": np.linspace(0, 1, 5),
        "half": np.array([1.5, -2], np.float16),
        "count": np.array(7),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    brain = state.pop("brain")
    assert brain.dtype.name == "bfloat16" and brain.astype(np.float32).tolist() == [1.5, -2]
    assert list(state) == list(wanted)
    for name, value in wanted.items():
        found = state[name]
        assert (found.shape, found.dtype) == (value.shape, value.dtype), name
        np.testing.assert_array_equal(found, value, err_msg=name)
        assert found.flags.c_contiguous


class Runs:
    """An object whose unpickling runs code."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("was_run"),)


def zipped(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(contents))
    return path


def legacy(path, contents):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, contents, []]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in head))
    return path


@pytest.mark.parametrize("make", [zipped, legacy])
@pytest.mark.parametrize(
    "contents, message",
    [
        ({"a": Runs()}, "which is no part of a tensor"),
        ([1, 2], "it holds a list, no state dict"),
        ({"epoch": 3}, "'epoch' is no tensor"),
        ({"a": np.zeros(3)}, "which is no part of a tensor"),
    ],
)
def test_anything_but_tensors_is_refused_and_no_code_runs(
    tmp_path, monkeypatch, make, contents, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no file of PyTorch weights") as error:
        weights.read(make(tmp_path / "a.pth", contents))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("path", FORMATS, ids=lambda p: p.stem)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_off_is_refused(tmp_path, path, share):
    whole, cut = path.read_bytes(), tmp_path / "cut.pth"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=f"{cut}: is no file of PyTorch weights"):
        weights.read(cut)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.pth: cannot be read \\(No such file"):
        weights.read(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "offset, shape, strides",
    [(0, (25,), (1,)), (20, (2, 3), (3, 1)), (0, (3,), (-1,)), (-1, (2,), (1,))],
)
def test_a_tensor_cannot_reach_beyond_its_storage(offset, shape, strides):
    """What would read memory of the process that is not the file's."""
    storage = weights._Storage("0", np.dtype(np.float32))
    tensor = weights._Tensor(storage, offset, shape, strides)
    with pytest.raises(ValueError, match="beyond its storage"):
        weights._array(tensor, lambda _: np.zeros(24, np.float32))


def test_the_byte_order_that_a_file_states_is_kept(tmp_path):
    path, source = tmp_path / "big.pth", zipfile.ZipFile(FORMATS[0])
    with zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("/byteorder"):
                data = b"big"
            elif len(data) == 96:  # the storage of "plain"
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            target.writestr(name, data)
    plain = weights.read(path)["plain"]
    assert plain.dtype.isnative
    np.testing.assert_array_equal(plain.ravel(), np.arange(24))


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


DATA = bytes(range(256)) * 100
PREFIX = hashlib.sha256(DATA).hexdigest()[:8]


def test_a_download_is_kept(server, tmp_path):
    server.files["w.pth"] = DATA
    for _ in range(2):
        path = weights.download(f"{server.url}/w.pth", tmp_path / "new" / "w.pth", PREFIX)
        assert path.read_bytes() == DATA
    assert server.asked == ["w.pth"]
    path.write_bytes(DATA[:-1])  # damaged: fetched again
    assert weights.download(f"{server.url}/w.pth", path, PREFIX).read_bytes() == DATA


@pytest.mark.parametrize(
    "name, fault, message",
    [
        ("w.pth", None, "sha256 is [0-9a-f]{12}..., must begin with 00000000"),
        ("w.pth", HALF, "broke off after 12800 of 25600 bytes"),
        ("w.pth", 500, "cannot be downloaded to .* \\(Internal Server Error\\)"),
        ("other.pth", None, "cannot be downloaded to .* \\(Not Found\\)"),
    ],
)
def test_a_bad_download_leaves_nothing(server, tmp_path, name, fault, message):
    server.files["w.pth"] = DATA
    server.faults["w.pth"] = fault
    with pytest.raises(UserError, match=message):
        weights.download(f"{server.url}/{name}", tmp_path / "w.pth", "00000000")
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path):
    with pytest.raises(UserError, match="cannot be downloaded to .*refused"):
        weights.download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth", PREFIX)


def test_folding_a_batch_norm():
    """Against the two layers one after the other, in float64."""
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(4, 3, 1, 1)), rng.normal(size=(10, 3))
    gamma, beta, mean, var = rng.uniform(0.5, 2, (4, 4))
    names = ("weight", "bias", "running_mean", "running_var")
    state = {f"b.{n}": v for n, v in zip(names, (gamma, beta, mean, var), strict=True)}
    found = weights.folded(state | {"c.weight": kernel}, "c", "b", eps=1e-3)
    wanted = gamma * (x @ kernel[:, :, 0, 0].T - mean) / np.sqrt(var + 1e-3) + beta
    np.testing.assert_allclose(x @ found["kernel"][0, 0] + found["bias"], wanted, rtol=1e-5)


def test_a_state_of_another_network_is_named():
    state = {"a": np.zeros((2, 3))}
    weights.expect(state, {"a": (2, 3)}, "f")
    with pytest.raises(UserError, match=r"f: is of another network \(b is missing, must be \(4,\)"):
        weights.expect(state, {"b": (4,)}, "f")
    with pytest.raises(UserError, match=r"\(a is \(2, 3\), must be \(3, 2\)\)"):
        weights.expect(state, {"a": (3, 2)}, "f")
