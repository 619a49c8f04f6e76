"""Disks that fail and memory that is spent: one line each, and nothing else is taken for one of them."""

import errno
import os

import jax
import jax.numpy as jnp
import pytest

from bpgan.runtime import directory, limits, peers
from bpgan.types import UserError

GONE = ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE", "ENOTCONN", "EMFILE"]


def failing(number, *files):
    return OSError(number, os.strerror(number), *files)


@pytest.mark.parametrize("name", [*GONE, "ENOENT", "EACCES", "EISDIR", "ENOTDIR", "ENAMETOOLONG"])
def test_whatever_goes_wrong_in_a_run_directory_is_one_line(tmp_path, name):
    number = getattr(errno, name)
    for folder, file in ((tmp_path, tmp_path / "a/b"), (str(tmp_path), os.fsencode(tmp_path))):
        with pytest.raises(UserError) as caught, limits.disk_errors("elsewhere", folder, kept="K"):
            raise failing(number, file)
        said = str(caught.value)
        assert said.startswith(f"workdir={tmp_path}: cannot be written ({os.strerror(number)}: ")
        assert "; K. " in said and "\n" not in said and caught.value.value == str(tmp_path)


@pytest.mark.parametrize("name", GONE)
def test_a_disk_that_fails_is_one_line_wherever_it_is(tmp_path, name):
    """A file that is open has no name in the error; one without a folder is named itself."""
    number = getattr(errno, name)
    with pytest.raises(UserError, match=f"workdir=run: cannot be written .{os.strerror(number)}"):
        with limits.disk_errors("run"):
            raise failing(number)
    for folders in ((), ("run",)):
        with pytest.raises(UserError, match=f"a file cannot be used .{os.strerror(number)}: /x/y"):
            with limits.disk_errors(*folders):
                raise failing(number, "/x/y")


@pytest.mark.parametrize(
    "error",
    [
        failing(errno.ENOENT, "/x/y"),
        failing(errno.EPIPE),
        OSError("?"),
    ],
)
def test_what_is_no_disk_stays_what_it_is(error):
    """A file that the user's own code did not find, or nobody who reads on."""
    with pytest.raises(OSError) as caught, limits.disk_errors("run"):
        raise error
    assert caught.value is error


def test_the_directory_that_a_file_moved_into_counts(tmp_path):
    with pytest.raises(UserError, match=f"workdir={tmp_path}: .*Is a directory: .*result.json"):
        with limits.disk_errors(tmp_path):
            (tmp_path / "result.json").mkdir()
            (tmp_path / "new").touch()
            os.replace(tmp_path / "new", tmp_path / "result.json")


class Exhausted(jax.errors.JaxRuntimeError):
    """As XLA raises it; of an error that is made in Python the status is unknown."""

    error_code_string = "RESOURCE_EXHAUSTED"


def test_memory_of_the_device_is_seen_by_the_status_of_the_error():
    with pytest.raises(UserError, match="^the device's memory is spent"), limits.memory_errors():
        jax.jit(lambda: jnp.zeros(1 << 50))()


@pytest.mark.parametrize(
    "error, whose",
    [
        (Exhausted("RESOURCE_EXHAUSTED: Out of memory\nmany\nlines"), "device"),
        (MemoryError("Unable to allocate 4 GiB"), "machine"),
        (MemoryError(), "machine"),
    ],
)
def test_memory_that_is_spent_says_what_to_lower(error, whose):
    with pytest.raises(UserError) as caught, limits.memory_errors(64):
        raise error
    said = str(caught.value)
    assert said.startswith(f"batch_size=64: the {whose}'s memory is spent") and "\n" not in said
    assert "must be lower" in said and ("feed=stream" in said) == (whose == "machine")
    with pytest.raises(UserError, match=f"^the {whose}'s memory is spent"), limits.memory_errors():
        raise error


TEXTS = {
    "a GPU, when an array is made": "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.\n"
    "BufferAssignment OOM Debugging.\nBufferAssignment stats:\n             parameter allocation:  372.76MiB",
    "a GPU, by its allocator": "RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB (3206250496B) on device"
    " ordinal 0",
    "a TPU v5e, when a program is compiled": "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM,"
    " the total memory required for HLO temporaries (40.00G) exceeds available HBM (15.75G). HLO module: jit__lambda.\n"
    "See https://openxla.org/xla/errors/error_1000 for more details.",
    "a TPU of earlier versions": "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory"
    " space hbm. Used 19.38G of 15.48G hbm. Exceeded hbm capacity by 3.90G.\n\nTotal hbm usage >= 19.90G:",
}  # fmt: skip
"""First lines of messages as users were given them."""

_BYTES = {"a GPU, when an array is made": "4770354232", "a GPU, by its allocator": "3206250496B"}


@pytest.mark.parametrize("where", TEXTS)
@pytest.mark.parametrize("accumulate", [None, 2])
def test_the_line_has_the_bytes_and_every_flag_that_helps(monkeypatch, where, accumulate):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 80 * 10**9, "bytes_in_use": 79 * 10**9}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(UserError) as caught, limits.memory_errors(512, accumulate):
        raise Exhausted(TEXTS[where])
    said = str(caught.value)
    assert "\n" not in said and said.startswith("batch_size=512: the device's memory is spent (")
    assert _BYTES.get(where, "15.") in said and "1 of 80 GB are free" in said
    assert ("`accumulate=2` higher" in said) == (accumulate is not None)


def test_other_errors_of_the_device_stay_what_they_are():
    error = jax.errors.JaxRuntimeError("UNAVAILABLE: RESOURCE_EXHAUSTED is not the status here")
    with pytest.raises(jax.errors.JaxRuntimeError), limits.memory_errors(64):
        raise error


def test_new_folders_that_stay_empty_are_removed(tmp_path):
    make_in_vain(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c", "file", "old"]


def test_only_the_lead_makes_and_removes_the_folders_of_several_processes(tmp_path, monkeypatch):
    """The others may fail between the lead's making of the folder and its lock there."""
    monkeypatch.setattr(peers, "is_joined", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    make_in_vain(tmp_path)
    assert (tmp_path / "old/a/b").is_dir()
    same = {"config": {}, "restart_safe": frozenset(), "fingerprint": "1", "name": "toy"}
    assert not directory.open_run(tmp_path / "run", **same).exists()


def make_in_vain(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(KeyError), directory.tidied(tmp_path / "old/a/b", tmp_path / "c", tmp_path):
        (tmp_path / "old/a/b").mkdir(parents=True)
        (tmp_path / "c").mkdir()
        (tmp_path / "c/file").touch()
        raise KeyError
