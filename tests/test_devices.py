"""Which accelerators there are, and that every process of a sweep sees its own only."""

import importlib.util
import json
import sys

import pytest
from jax._src import hardware_utils

from bpgan.launcher import devices, processes, slurm
from bpgan.launcher.devices import Devices
from bpgan.types import UserError

SHOWN = """import json, os, pathlib, sys, time
names = ("CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_PROCESS_ID",
         "TPU_VISIBLE_CHIPS", "TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS")
path = pathlib.Path(sys.argv[1]) / (sys.argv[2] if len(sys.argv) > 2 else os.environ["JAX_PROCESS_ID"])
began = time.monotonic()
time.sleep(0.3)
seen = {name: os.environ[name] for name in names if name in os.environ}
path.write_text(json.dumps([began, time.monotonic(), seen]))
"""


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """A machine of which no variable says anything, with every plugin installed."""
    mine = [name for names in devices.VISIBLE.values() for name in names]
    for name in (
        *mine,
        *devices.MEMORY,
        "ROCR_VISIBLE_DEVICES",
        "JAX_PLATFORMS",
        "TPU_LIBRARY_PATH",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def machine(root, nvidia=0, pci=(), amd=(), wsl=False):
    """A file system with devices as Linux shows them."""
    (root / "dev/vfio").mkdir(parents=True)
    for i in range(nvidia):
        (root / f"dev/nvidia{i}").touch()
    for name in ("nvidiactl", "nvidia-uvm", *["dxg"] * wsl):
        (root / "dev" / name).touch()
    for i, (vendor, device) in enumerate(pci):
        folder = root / f"sys/bus/pci/devices/0000:00:0{i}.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "device").write_text(f"{device}\n")
    for i, units in enumerate(amd):
        folder = root / f"sys/class/kfd/kfd/topology/nodes/{i}"
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"cpu_cores_count 0\nsimd_count {units}\n")
    return root


def test_the_tpus_are_those_that_jax_knows():
    assert devices.TPUS == set(hardware_utils._TPU_PCI_DEVICE_IDS)
    assert hardware_utils._GOOGLE_PCI_VENDOR_ID == devices.GOOGLE


V5E, NETWORK = ("0x1ae0", "0x0063"), ("0x1ae0", "0x0042")


@pytest.mark.parametrize(
    "there,environ,expected",
    [
        (dict(), {}, ("", ())),
        (dict(pci=[NETWORK, V5E, V5E, V5E, V5E]), {}, ("tpu", "0123")),  # and no /dev/accel*
        (dict(pci=[("0x1ae0", "0x006f")]), {}, ("tpu", "0")),
        (dict(pci=[NETWORK, ("0x8086", "0x0063")]), {}, ("", ())),
        (dict(pci=[V5E] * 4), dict(TPU_VISIBLE_CHIPS="1,3"), ("tpu", "13")),
        (dict(pci=[V5E] * 4), dict(JAX_PLATFORMS="cpu"), ("", ())),
        (dict(nvidia=3), {}, ("cuda", "012")),
        (dict(nvidia=3), dict(JAX_PLATFORMS="gpu,cpu"), ("cuda", "012")),
        (dict(nvidia=3), dict(JAX_PLATFORMS="tpu"), ("", ())),
        (dict(nvidia=4), dict(CUDA_VISIBLE_DEVICES="3,1"), ("cuda", "31")),
        (dict(nvidia=4), dict(CUDA_VISIBLE_DEVICES="2,-1,1"), ("cuda", "2")),
        (dict(nvidia=4), dict(CUDA_VISIBLE_DEVICES="2,4,1"), ("cuda", "2")),
        (dict(nvidia=4), dict(CUDA_VISIBLE_DEVICES=""), ("", ())),
        (dict(nvidia=4), dict(CUDA_VISIBLE_DEVICES="NoDevFiles"), ("", ())),
        (dict(nvidia=1), dict(CUDA_VISIBLE_DEVICES="MIG-ab-1, MIG-GPU-c/1/0"), ("cuda", ("MIG-ab-1", "MIG-GPU-c/1/0"))),
        (dict(nvidia=2), dict(CUDA_VISIBLE_DEVICES="GPU-8932f937"), ("cuda", ("GPU-8932f937",))),
        (dict(wsl=True), {}, ("cuda", "0")),
        (dict(amd=[0, 304, 304]), {}, ("rocm", "01")),
        (dict(amd=[0, 304, 304]), dict(HIP_VISIBLE_DEVICES="1"), ("rocm", "1")),
        (dict(amd=[0, 304, 304]), dict(ROCR_VISIBLE_DEVICES="1"), ("rocm", "0")),
    ],
)  # fmt: skip
def test_what_jax_would_use_is_found(tmp_path, there, environ, expected):
    found = devices.find(machine(tmp_path, **there), environ)
    assert (found.kind, found.names) == (expected[0], tuple(expected[1]))
    assert found.accelerated == bool(found.names or environ.get("JAX_PLATFORMS", "cpu") != "cpu")


def test_without_its_plugin_nothing_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    root = machine(tmp_path, nvidia=2, pci=[V5E], amd=[304])
    assert devices.find(root, {}) == Devices("", (), False)
    assert devices.find(root, {"TPU_LIBRARY_PATH": "libtpu.so"}).kind == "tpu"


def gpus(n):
    return Devices("cuda", tuple(map(str, range(n))), True)


@pytest.mark.parametrize(
    "count,slots,expected",
    [
        (4, 1, [None]),
        (4, 4, ["0", "1", "2", "3"]),
        (8, 2, ["0,1,2,3", "4,5,6,7"]),
        (8, 3, ["0,1", "2,3", "4,5"]),
        (2, 3, ["0", "1", "0"]),
    ],
)
def test_gpus_are_shared_out_by_the_flags_alone(count, slots, expected):
    """Not by how many runs are left: on another number of devices the same run would have other bits."""
    for running in (1, 99):
        shares = devices.share(gpus(count), slots, running)
        assert [share.get("CUDA_VISIBLE_DEVICES") for share in shares] == expected


def test_processes_on_one_gpu_share_its_memory(monkeypatch):
    fractions = [s.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for s in devices.share(gpus(2), 6, 99)]
    assert fractions == ["0.250"] * 6
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in devices.share(gpus(2), 6, 2)[0]
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in devices.share(gpus(2), 2, 9)[0]
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    assert devices.share(gpus(1), 2, 9) == [{"CUDA_VISIBLE_DEVICES": "0"}] * 2


def test_a_tpu_chip_serves_one_process():
    found = Devices("tpu", ("0", "1", "2", "3"), True)
    assert [share["TPU_VISIBLE_CHIPS"] for share in devices.share(found, 2, 9)] == ["0", "1"]
    bounds = dict(TPU_CHIPS_PER_PROCESS_BOUNDS="1,1,1", TPU_PROCESS_BOUNDS="1,1,1")
    assert devices.share(found, 4, 9)[3] == {"TPU_VISIBLE_CHIPS": "3"} | bounds
    assert devices.share(found, 1, 9) == [{}]
    with pytest.raises(UserError, match="jobs=5: must be at most 4: each TPU chip"):
        devices.share(found, 5, 9)
    with pytest.raises(UserError, match="processes=2: must be 1: one process uses all 4"):
        devices.places(found, 2)


def jobs_that_print(folder, count):
    command = [sys.executable, "-c", SHOWN, str(folder)]
    return [
        processes.Job(str(i), [*command, str(i)], folder / f"{i}.log", [i], [folder / "run"])
        for i in range(count)
    ]


def seen_by(folder, count):
    return [json.loads((folder / str(i)).read_text()) for i in range(count)]


def check_alone(seen, name, expected):
    """Each job saw one device, and never one that another job had at that time."""
    assert {its[name] for _, _, its in seen} == expected
    for i, (start, end, its) in enumerate(seen):
        for other_start, other_end, other in seen[:i]:
            assert other_start >= end or other_end <= start or other[name] != its[name]


def test_every_job_of_a_sweep_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,GPU-b")
    assert processes.count_slots(0) == 2
    codes, stopped = processes.execute(jobs_that_print(tmp_path, 5), processes.count_slots(0))
    assert codes == dict.fromkeys(range(5), 0) and not stopped
    check_alone(seen_by(tmp_path, 5), "CUDA_VISIBLE_DEVICES", {"MIG-a", "GPU-b"})
    assert (tmp_path / "0.log").read_text().startswith("$ CUDA_VISIBLE_DEVICES=MIG-a ")


def test_every_job_has_a_chip_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "find", lambda: Devices("tpu", ("0", "1"), True))
    processes.execute(jobs_that_print(tmp_path, 3), processes.count_slots(0))
    check_alone(seen_by(tmp_path, 3), "TPU_VISIBLE_CHIPS", {"0", "1"})


@pytest.mark.medium
def test_local_jobs_of_submitit_have_a_gpu_each(tmp_path, monkeypatch):
    """submitit alone would show none of them any."""
    monkeypatch.undo()
    monkeypatch.setattr(devices, "find", lambda: gpus(2))
    options = slurm.Options(True, {})
    codes, _ = slurm.submit(jobs_that_print(tmp_path, 3), options, 2, {}) or ({}, False)
    assert codes == dict.fromkeys(range(3), 0)
    check_alone(seen_by(tmp_path, 3), "CUDA_VISIBLE_DEVICES", {"0", "1"})


def test_every_process_of_a_run_has_its_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-a,2,3")
    assert processes.train_one([sys.executable, "-c", SHOWN, str(tmp_path)], 2) == 0
    shown = [its for _, _, its in seen_by(tmp_path, 2)]
    assert [its["CUDA_VISIBLE_DEVICES"] for its in shown] == ["5,GPU-a", "2,3"]
    assert [its["JAX_LOCAL_DEVICE_IDS"] for its in shown] == ["0,1", "0,1"]


def test_printed_commands_show_what_a_job_would_see(capsys):
    processes.print_commands([["a"], ["b"], ["c"]], devices.share(gpus(2), 2, 3))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("CUDA_VISIBLE_DEVICES=")[1] for line in lines] == ["0 a", "1 b", "0 c"]
