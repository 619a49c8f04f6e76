"""Weights of published networks: PyTorch's files read without PyTorch, and downloads.

References: ``tests/references/state_*.pth``, written by PyTorch (``make_features.py`` there).
"""

import hashlib
import os
import pathlib
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from checks.loopback import HALF, Server

from bpgan import download
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


def tensor(size, stride):
    """What PyTorch writes of a tensor of one number in all, as instructions of a pickle."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + size + stride + b"\x89)tR"


def bomb(levels):
    """A tuple of twice a tuple of twice a tuple ...: in full 2 ** levels, to be hashed, printed or compared."""
    return b")q\0" + levels * b"h\0\x86q\0"


BOMBS = {
    "a memo of 2 ** 31 entries": b"Nr\xff\xff\xff\x7f.",
    "a text of 2 ** 40 bytes": b"\x8d" + (1 << 40).to_bytes(8, "little") + b"x",
    "bytes of 2 ** 40": b"\x8e" + (1 << 40).to_bytes(8, "little") + b"x",
    "a whole number of 2 ** 30 bytes": b"\x8b" + (1 << 30).to_bytes(4, "little") + b"x",
    "a tuple for a key": b"}" + bomb(64) + b"Ns.",
    "a tuple for a name": bomb(64) + b"X\x01\0\0\0a\x93.",
    "a tuple for a shape": b"}X\x01\0\0\0a" + tensor(bomb(64), b"K\x00\x85") + b"s.",
    "one number 2 ** 62 times": b"}X\x01\0\0\0a"
    + tensor(2 * (b"\x8a\x05" + (1 << 31).to_bytes(5, "little")) + b"\x86", b"K\0K\0\x86")
    + b"s.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_small_file_takes_no_great_memory_and_time(tmp_path, name, zipped):
    path = tmp_path / "bomb.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", BOMBS[name])
            archive.writestr("x/data/0", bytes(4))
    else:
        parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        head = b"".join(pickle.dumps(part, protocol=2) for part in parts)
        path.write_bytes(head + BOMBS[name] + pickle.dumps(["0"]) + (1).to_bytes(8, "little"))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="is no file of PyTorch weights") as error:
            weights.read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_parts_that_are_larger_than_the_file_are_refused(tmp_path):
    """Which only compressed ones can be; and counts that are no counts, in the older format."""
    with (
        zipfile.ZipFile(FORMATS[0]) as source,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(UserError, match="is compressed, which PyTorch does not do"):
        weights.read(tmp_path / "a.pth")
    whole = FORMATS[1].read_bytes()
    at = whole.rindex((24).to_bytes(8, "little"))
    for count in (-1, 1 << 60):
        number = count.to_bytes(8, "little", signed=True)
        (tmp_path / "b.pth").write_bytes(whole[:at] + number + whole[at + 8 :])
        with pytest.raises(UserError, match=f"{count:,} numbers in a file of"):
            weights.read(tmp_path / "b.pth")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "pipe", pathlib.Path("/dev/zero")):
        for read in (weights.read, weights.sha256):
            with pytest.raises(UserError, match=f"{path}: is no regular file"):
                read(path)
    with pytest.raises(UserError, match="empty: is no file of PyTorch weights"):
        weights.read(tmp_path / "empty")


@pytest.mark.parametrize("path", FORMATS, ids=lambda p: p.stem)
def test_any_damage_is_one_line(tmp_path, path):
    """Copies with a few bytes changed at random: read, or refused."""
    rng, whole, refused = np.random.default_rng(0), path.read_bytes(), 0
    for _ in range(100):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        (tmp_path / "a.pth").write_bytes(data)
        try:
            weights.read(tmp_path / "a.pth")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20


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
        ("w.pth", None, "w.pth is not the file it should be: SHA-256 must begin with 00000000, is [0-9a-f]{64};"),
        ("w.pth", HALF, "cannot download .*/w.pth .the connection was closed before the end of the file"),
        ("w.pth", 500, "cannot download .*/w.pth .HTTP status 500"),
        ("other.pth", None, "cannot download .*/other.pth .HTTP status 404"),
    ],
)  # fmt: skip
def test_a_bad_download_leaves_nothing_of_that_name(
    server, tmp_path, monkeypatch, name, fault, message
):
    monkeypatch.setattr(download, "_PAUSE", 0)
    server.files["w.pth"] = DATA
    server.faults["w.pth"] = fault
    with pytest.raises(UserError, match=message):
        weights.download(f"{server.url}/{name}", tmp_path / "w.pth", "00000000")
    left = {".w.pth.lock", ".w.pth.partial"} if fault == HALF else {".w.pth.lock"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_no_server(tmp_path):
    with pytest.raises(UserError, match="cannot download http://127.0.0.1:9/w.pth .*refused"):
        weights.download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth", PREFIX)


def test_folding_a_batch_norm():
    """Against the two layers one after the other, in float64."""
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(4, 3, 1, 1)), rng.normal(size=(10, 3))
    gamma, beta, mean, var = rng.uniform(0.5, 2, (4, 4))
    names = ("weight", "bias", "running_mean", "running_var")
    state = {f"b.{n}": v for n, v in zip(names, (gamma, beta, mean, var), strict=True)}
    found = weights.fold_batch_norm(state | {"c.weight": kernel}, "c", "b", eps=1e-3)
    wanted = gamma * (x @ kernel[:, :, 0, 0].T - mean) / np.sqrt(var + 1e-3) + beta
    np.testing.assert_allclose(x @ found["kernel"][0, 0] + found["bias"], wanted, rtol=1e-5)


def test_a_state_of_another_network_is_named():
    state = {"a": np.zeros((2, 3))}
    weights.expect(state, {"a": (2, 3)}, "f")
    with pytest.raises(UserError, match=r"f: is of another network \(b is missing, must be \(4,\)"):
        weights.expect(state, {"b": (4,)}, "f")
    with pytest.raises(UserError, match=r"\(a is \(2, 3\), must be \(3, 2\)\)"):
        weights.expect(state, {"a": (3, 2)}, "f")
