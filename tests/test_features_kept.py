"""What is kept to save time: whole, or made again; never a traceback, and never what is of something else."""

import errno
import fcntl
import os
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpgan.metrics.features import classifier, kept
from bpgan.nets import dcgan

ARRAYS = {"features": np.arange(12, dtype=np.float32).reshape(4, 3), "logits": np.zeros((4, 0))}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "name.npz"
    assert kept.save(path, ARRAYS) == ""
    return path


def same(found):
    return found is not None and all(np.array_equal(found[k], v) for k, v in ARRAYS.items())


def test_arrays_are_kept(path):
    found = kept.load(path)
    assert same(found) and list(found) == list(ARRAYS)
    assert [p.name for p in path.parent.iterdir()] == ["name.npz"]


def test_any_damage_is_seen(path):
    """Every byte of the file in turn, every length, and random ones."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in range(0, len(whole), 11):
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        found = kept.load(path)
        assert found is None or same(found), place
        path.write_bytes(whole[:place])
        assert kept.load(path) is None
    path.write_bytes(whole)
    assert same(kept.load(path))


def test_the_file_of_something_else_is_none(path):
    other = path.with_name("other.npz")
    os.rename(path, other)
    assert kept.load(path) is None and kept.load(other) is None


@pytest.mark.parametrize("shape", ["(100000000000,)", "(4000000000, 4)", "(-1,)", "(" * 90])
def test_sizes_are_looked_at_first(path, shape, monkeypatch):
    """A header of 10 ** 11 numbers in a file of a few."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
        archive.writestr("features.npy", data + bytes(80))
    monkeypatch.setattr(np, "load", lambda *_: pytest.fail("was read"))
    assert kept.load(path) is None


def test_what_is_no_file_is_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    os.symlink("nowhere", tmp_path / "link.npz")
    for name in ("pipe", "folder", "link", "missing"):
        assert kept.load(tmp_path / f"{name}.npz") is None
    assert kept.save(tmp_path / "folder.npz", ARRAYS) == "Is a directory"
    assert {p.name for p in tmp_path.iterdir()} == {"pipe.npz", "folder.npz", "link.npz"}
    assert kept.save(tmp_path / "link.npz", ARRAYS) == "" and same(kept.load(tmp_path / "link.npz"))


def test_a_disk_that_takes_nothing(tmp_path, monkeypatch):
    assert kept.save(tmp_path / "a" / "b.npz" / "c.npz", ARRAYS) == ""
    assert kept.save(tmp_path / "a" / "b.npz" / "c.npz" / "d.npz", ARRAYS)
    with kept.turn(tmp_path / "a" / "b.npz" / "c.npz" / "d.lock"):  # no such directory
        pass

    def full(file, **_):
        file.write(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert kept.save(tmp_path / "x.npz", ARRAYS) == "No space left on device"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]  # and nothing half-written


@pytest.mark.parametrize("what", ["file.lock", "."])
def test_one_at_a_time(tmp_path, what):
    """By a file that is made, or by a directory that is there; a second process waits for its turn."""
    code = f"""
import fcntl, os
file = os.open({str(tmp_path / what)!r}, os.O_RDONLY)
try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print("free")
except BlockingIOError: print("taken")"""
    with kept.turn(tmp_path / what):
        assert subprocess.check_output([sys.executable, "-c", code]) == b"taken\n"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"free\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EROFS])
def test_a_disk_without_locks(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    entered = []
    with kept.turn(tmp_path / "a.lock"):
        entered.append(1)
    (tmp_path / "b.lock").mkdir()  # a directory where the file should be
    with kept.turn(tmp_path / "b.lock"), pytest.raises(ZeroDivisionError):
        entered.append(1 / 0)
    assert entered == [1]


def test_a_net_is_kept_and_of_its_data(tmp_path):
    path = tmp_path / "net.npz"
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    shapes = jax.eval_shape(dcgan.Classifier(3).init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    assert classifier.save(path, params) == ""
    found = classifier.load(path, (8, 8, 1), classes=3)
    nets = [classifier.extractor(p, classes=3, name="n") for p in (params, found)]
    assert nets[0].sha256 == nets[1].sha256
    assert classifier.load(path, (8, 8, 1), classes=4) is None
    assert classifier.load(path, (8, 8, 3), classes=3) is None
