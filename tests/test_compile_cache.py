"""JAX's cache of compiled programs: what is not what was put there is not run."""

import os
import pathlib
import subprocess
import sys

import pytest
from jax._src.lru_cache import LRUCache

from bpgan.runtime import compile_cache

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def cache(tmp_path):
    return compile_cache._Checked(LRUCache(str(tmp_path), max_size=-1), str(tmp_path))


def file_of(folder, key):
    (file,) = folder.glob(f"bpgan-{key}-*")
    return file


DAMAGE = {
    "flipped": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "swapped": lambda file: file.write_bytes(file_of(file.parent, "g").read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_whole_is_made_anew(cache, tmp_path, damage):
    cache.put("f", b"program f")
    cache.put("g", b"program g")
    assert cache.get("f") == b"program f" and cache.get("h") is None
    DAMAGE[damage](file_of(tmp_path, "f"))
    assert cache.get("f") is None
    cache.put("f", b"program f")
    assert cache.get("f") == b"program f" and cache.get("g") == b"program g"


def test_entries_of_others_are_neither_used_nor_removed(cache, tmp_path):
    (tmp_path / "f-cache").write_bytes(b"by JAX itself")
    assert cache.get("f") is None
    cache.put("f", b"program")
    assert cache.get("f") == b"program" and (tmp_path / "f-cache").exists()


def test_a_directory_in_the_place_of_an_entry_costs_time_only(cache, tmp_path):
    (tmp_path / "bpgan-f-cache").mkdir()
    assert cache.get("f") is None
    cache.put("f", b"program")
    assert cache.get("f") is None


def test_a_full_disk_is_said_once(cache, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache._cache, "put", full)
    for key in "fg":
        cache.put(key, b"program")
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"not kept in {tmp_path} (No space left on device)" in said


PROGRAM = """
import jax
from bpgan.runtime import distributed
distributed.setup()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
plus, times = jax.jit(lambda x: x + 5), jax.jit(lambda x: x * 5)
print(plus(1), times(1))
"""


@pytest.mark.medium
def test_programs_that_changed_places_are_not_run(tmp_path):
    """JAX alone answers 5 6. A folder that is a file, or is not there and cannot be made, is no cache."""

    def run(folder):
        environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True
        )
        return done.stdout, done.stderr

    assert run(tmp_path / "cache") == ("6 5\n", "")
    files = sorted((tmp_path / "cache").glob("bpgan-jit__lambda*-cache"))
    assert len(files) == 2
    for file, content in zip(files, [f.read_bytes() for f in files[::-1]], strict=True):
        file.write_bytes(content)
    assert run(tmp_path / "cache") == ("6 5\n", "")
    (tmp_path / "file").touch()
    assert run(tmp_path / "file") == run(tmp_path / "file/x") == ("6 5\n", "")
