"""Disks that fill up, cannot be written, or change what they hold."""

import contextlib
import gc
import os
import pathlib
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest
from checks.harness import assert_same, finish, start, wait_for_step
from checks.training import small_gan, source

from bpgan.runtime.checkpoint import Checkpoints, Keep
from bpgan.runtime.program import compile_program

pytestmark = [pytest.mark.usefixtures("optimized"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def garbage():
    """Orbax leaves unfinished reads of damaged files to the garbage collector, which says so wherever it runs."""
    yield
    gc.collect()


@pytest.fixture
def disk(tmp_path):
    """A disk of its own: ``disk(option)`` mounts or remounts it, ``size=4m`` or ``ro`` for example."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(options):
        remount = "remount," * path.is_mount()
        argv = ["mount", "-t", "tmpfs", "-o", f"{remount}{options}", "tmpfs", str(path)]
        if subprocess.run(argv, capture_output=True).returncode:
            pytest.skip("may not mount a tmpfs here")
        return path

    yield mount
    if path.is_mount():
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["2m", "5m"])
def test_full_disk(undisturbed, disk, size):
    """Ends with one line; with more room the same command goes on to the same bits."""
    run = disk(f"size={size}") / "run"
    said = finish(start(run), code=2)
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "--workdir" in errors[0] and "Traceback" not in said, said
    assert "No space left" in errors[0]
    disk("size=200m")
    finish(start(run))
    assert_same(undisturbed, run)


@pytest.mark.slow
def test_disk_that_fills_up_while_a_run_trains(undisturbed, disk):
    """Whatever is written next says so, in one line and at once; no thread waits, and none says more."""
    run, flags = disk("size=40m") / "run", ["--checkpoint_every=1000"]  # log and events are next
    process = start(run, *flags)
    wait_for_step(process, 20)
    process.send_signal(signal.SIGSTOP)
    with contextlib.suppress(OSError), (run.parent / "rest").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    process.send_signal(signal.SIGCONT)
    said = finish(process, code=2)
    errors = [line for line in said.splitlines() if not line.startswith("step ")]
    assert len(errors) == 1 and errors[0].startswith("error: --workdir"), said
    assert "No space left" in errors[0]
    (run.parent / "rest").unlink()
    finish(start(run, *flags))
    assert_same(undisturbed, run)


@pytest.mark.slow
def test_disk_that_becomes_read_only(undisturbed, disk):
    run = disk("size=100m") / "run"
    finish(start(run, "--steps=350"))
    disk("ro")
    said = finish(start(run), code=2)
    assert "error: --workdir" in said and "Traceback" not in said, said
    disk("rw")
    finish(start(run))
    assert_same(undisturbed, run)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    assert "is not writable" in finish(start(tmp_path), code=2)


@pytest.fixture(scope="module")
def saved(optimized, tmp_path_factory):
    """Two checkpoints, and what is in them."""
    path = tmp_path_factory.mktemp("saved")
    program = compile_program(small_gan(), source(), seed=0)
    checkpoints = Checkpoints(path, keep=Keep(2))
    carry, values = program.init(), {}
    for step in (2, 4):
        carry, _ = program.run(carry, 2)
        values[step] = [np.array(leaf).tobytes() for leaf in jax.tree.leaves(carry)]
        checkpoints.save(step, carry)
    checkpoints.close()
    return path, program, values


def flip(file: pathlib.Path, where: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(where * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


DAMAGE = {
    "flipped at the start": lambda file: flip(file, 0.02),
    "flipped in the middle": lambda file: flip(file, 0.5),
    "flipped at the end": lambda file: flip(file, 0.97),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.medium
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_noticed(saved, tmp_path, capsys, damage):
    """Whatever happens to whichever file: sound values or the checkpoint before, never wrong values."""
    path, program, values = saved
    files = [p.relative_to(path) for p in sorted((path / "4").rglob("*")) if p.is_file()]
    assert len(files) >= 8
    fell_back = 0
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(path, copy)
        if (copy / file).stat().st_size == 0:
            continue
        DAMAGE[damage](copy / file)
        checkpoints = Checkpoints(copy, keep=Keep(2))
        found = checkpoints.restore(program.abstract)
        checkpoints.close()
        said, complained = capsys.readouterr()
        assert found is not None and "Traceback" not in complained
        step, carry = found
        assert [np.asarray(x).tobytes() for x in jax.tree.leaves(carry)] == values[step], file
        if step == 2:
            fell_back += 1
            assert f"{copy / '4'} is damaged" in said
            assert (copy / "4.damaged").exists() and not (copy / "4").exists()
        else:
            assert said == ""
    assert fell_back >= 2


@pytest.mark.medium
def test_one_flipped_bit_of_a_parameter_is_named(saved, tmp_path, capsys, monkeypatch):
    """The case that orbax restores silently: the file is whole and readable, one value is another."""
    path, program, values = saved
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    checkpoints = Checkpoints(copy, keep=Keep(2))
    restore = checkpoints._manager.restore

    def flipped(step, args):
        read = restore(step, args=args)
        if step == 4:
            leaves, tree = jax.tree.flatten(read["carry"])
            large = max(range(len(leaves)), key=lambda i: leaves[i].size)
            bits = np.array(leaves[large])
            bits.view(np.uint8).reshape(-1)[3] ^= 1
            leaves[large] = bits
            return {"carry": jax.tree.unflatten(tree, leaves)}
        return read

    monkeypatch.setattr(checkpoints._manager, "restore", flipped)
    found = checkpoints.restore(program.abstract)
    checkpoints.close()
    assert found is not None and found[0] == 2
    assert "checksum mismatch in state/" in capsys.readouterr().out


@pytest.mark.medium
def test_damaged_twice(saved, tmp_path):
    """The name that a damaged checkpoint is set aside under may be taken already."""
    path, program, _ = saved
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    for _ in range(2):
        shutil.rmtree(copy / "4/carry")
        checkpoints = Checkpoints(copy, keep=Keep(2))
        step, carry = checkpoints.restore(program.abstract)
        assert step == 2
        checkpoints.save(4, carry)
        checkpoints.close()
    assert {p.name for p in copy.iterdir()} == {"2", "4", "4.damaged", "4.damaged.1"}
