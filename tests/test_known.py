"""Datasets by name: what is downloaded, in which form and order, what is refused; and rows of one's own."""

import contextlib
import gzip
import importlib
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from checks.loopback import HALF, STALL, Server
from checks.rows import FILES, ROWS, made_digits, row_of, sha

from bpgan import data, download
from bpgan.data import known, readers, tfds
from bpgan.types import UserError

ROOT = pathlib.Path(__file__).parent.parent
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Nothing prepared, nothing converted, and no patience."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_STALL", 0.4)
    monkeypatch.setattr(download, "_PAUSE", 0.01)
    return tmp_path


@pytest.fixture
def digits(server, monkeypatch):
    """``mnist`` made small, on the server; its arrays."""
    server.files, arrays = made_digits()
    monkeypatch.setitem(known.DATASETS, "mnist", row_of(server.files))
    return arrays


def pairs(x, y) -> list:
    return sorted(zip((image.tobytes() for image in x), np.asarray(y).tolist(), strict=True))


def check(name: str, arrays: dict, **options) -> None:
    for split, (x, y) in arrays.items():
        assert pairs(*data.load(name, split, **options).arrays()) == pairs(x, y)


def refused(name: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        data.load(name, **options)
    message = str(caught.value)
    assert "\n" not in message and (caught.value.argument, caught.value.value) == ("dataset", name)
    return message


def kept(folder) -> set[str]:
    """Names of whole downloads."""
    return {p.name for p in folder.glob("cache/downloads/*/*") if not p.name.startswith(".")}


# The five ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "tfds:mnist", "tfds:mnist:3.0.1"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_dataset_is_downloaded_converted_and_read(server, digits, folders, capfd, name, slash):
    check(name, digits, mirror=server.url + slash)
    said = capfd.readouterr()
    assert said.err == "" and said.out.startswith(f"downloading mnist to {folders}/cache/downloads")
    assert said.out.count("\n") == 1 and sorted(server.asked) == sorted(server.files)
    train, test = (data.load(name, split) for split in ("train", "test"))  # no mirror is needed
    assert train.class_names == test.class_names == tuple("0123456789")
    assert (train.shape, train.length, test.length) == ((28, 28, 1), 40, 24)
    assert len(pickle.dumps(train.read)) < 10_000
    for path in folders.glob("cache/downloads/*/*"):
        path.unlink()
    check("mnist", digits)  # nor are the files, and the names of the forms mean one dataset
    assert len(server.asked) == 4 and capfd.readouterr() == ("", "")
    assert data.load(f"{name},size=14", mirror=server.url).shape == (14, 14, 1)  # another cache


def test_the_row_is_what_tfds_prepares(server, digits, folders, monkeypatch):
    """The same examples in the same order, so that a run of the one goes on with the other."""
    import tensorflow_datasets

    features = tensorflow_datasets.features

    class Mnist(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        name = "mnist"
        VERSION = tensorflow_datasets.core.Version("3.0.1")

        def _info(self):
            label = features.ClassLabel(num_classes=10)
            image = features.Tensor(shape=(28, 28, 1), dtype=np.uint8)
            both = features.FeaturesDict({"image": image, "label": label})
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=both)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(*digits[split]) for split in digits}

        def _generate_examples(self, x, y):
            for i in range(len(x)):
                yield i, {"image": x[i], "label": int(y[i])}

    ours = [data.load("tfds:mnist", split, mirror=server.url) for split in digits]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Mnist(data_dir=folders / "tfds", file_format="array_record").download_and_prepare()
    theirs = [data.load("tfds:mnist", split) for split in digits]
    assert ours[0].read is not theirs[0].read
    for a, b in zip(ours, theirs, strict=True):
        assert (a.sha256, a.class_names, a.counts) == (b.sha256, b.class_names, b.counts)
        np.testing.assert_array_equal(a.arrays()[0], b.arrays()[0])
        assert a.arrays()[1].tolist() != digits[a.split][1].tolist()  # it is not that of the files


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_those_of_tfds(name, tmp_path):
    """Versions, shapes, class names, addresses, and the digests and sizes TFDS registers for the files there."""
    import tensorflow_datasets
    from tensorflow_datasets.core.download import checksums

    row, own = ROWS[name], tensorflow_datasets.builder_cls(name)(data_dir=tmp_path)
    assert own.version == row.version and own.info.features["image"].shape == row.shape
    label = own.info.features["label"]
    if row.class_names:
        assert tuple(label.names) == row.class_names
    else:  # they are in the archive
        assert label.num_classes == {"cifar10": 10, "cifar100": 100}[name]
    registered = checksums.get_all_url_infos()
    for file, facts in row.files.items():
        info = registered[row.urls[0] + file]
        assert (info.checksum, info.size) == (facts.sha256, facts.size)
    digests = [d for file in row.files.values() for d in (file.sha256, *file.contents.values())]
    assert len(set(digests)) == len(digests) and all(len(bytes.fromhex(d)) == 32 for d in digests)
    assert row.about and row.in_tfds


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_the_digests_of_fashion_mnist_are_of_one_content():
    """With the file name and the time that Debian dropped from the header, its files are those TFDS registers."""
    for name, file in ROWS["fashion_mnist"].files.items():
        packed = (DEBIAN / name).read_bytes()
        time = 1504176606 if name.startswith("train") else 1504176627
        header = (
            b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + b"\x00\x03" + name[:-3].encode() + b"\0"
        )
        assert sha(header + packed[10:]) == file.sha256 != sha(packed)
        assert file.contents == {name[:-3]: sha(gzip.decompress(packed))}


@pytest.mark.medium
@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_all_of_fashion_mnist(server):
    """The digests are those of the dataset as TFDS prepares it, of before bpgan read the files itself."""
    server.files = {path.name: path.read_bytes() for path in DEBIAN.glob("*.gz")}
    for split, part, n, digest in (
        ("train", "train", 60_000, "be6e7bb7fd57b7111f1339f5f5c0973e801af05699c73d329a6bd982e94dcefd"),
        ("test", "t10k", 10_000, "2e7f4f8ba8161ccf1844bc0a6271fdd24475904b1684077583747a291e0c2521"),
    ):  # fmt: skip
        found = data.load("tfds:fashion_mnist", split, mirror=server.url)
        assert found.sha256 == digest and found.counts == (n // 10,) * 10
        assert found.class_names[0] == "T-shirt/top" and found.class_names[9] == "Ankle boot"
        x = gzip.decompress(server.files[f"{part}-images-idx3-ubyte.gz"])[16:]
        y = gzip.decompress(server.files[f"{part}-labels-idx1-ubyte.gz"])[8:]
        images = np.frombuffer(x, np.uint8).reshape(n, 28, 28, 1)
        assert pairs(*found.arrays()) == pairs(images, np.frombuffer(y, np.uint8))
    assert data.load("fashion_mnist", "test").sha256 == digest and len(server.asked) == 4


def made_cifar(labels: int, members: dict[str, int], names: dict[str, int]):
    """An archive like CIFAR's in which paths and links lead elsewhere; its members by name."""
    rng = np.random.default_rng(5)
    contents = {}
    for name, n in members.items():
        records = rng.integers(0, 256, (n, labels + 3072), dtype=np.uint8)
        records[:, :labels] = rng.integers(0, 10, (n, labels))
        contents[name] = records.tobytes()
    contents |= {
        name: "".join(f"{name[0]}{i}\n" for i in range(n)).encode() for name, n in names.items()
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for i, (name, raw) in enumerate(contents.items()):
            info = tarfile.TarInfo(("cifar/", "../../", "/tmp/bpgan-never/")[i % 3] + name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
        link = tarfile.TarInfo("cifar/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue(), contents


def pixels(record: bytes, labels: int) -> bytes:
    """The image of a record with the channels last, byte by byte."""
    return bytes(
        record[labels + 1024 * c + 32 * y + x]
        for y in range(32)
        for x in range(32)
        for c in range(3)
    )


@pytest.mark.parametrize("packed", ["as registered", "anew", "unpacked"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(server, folders, monkeypatch, name, packed):
    row = ROWS[name]
    ((file, registered),) = row.files.items()
    *train, test = registered.contents
    labels = {"cifar10": 1, "cifar100": 2}[name]
    listed = {
        "cifar10": {"batches.meta.txt": 10},
        "cifar100": {"coarse_label_names.txt": 20, "fine_label_names.txt": 100},
    }[name]
    archive, contents = made_cifar(labels, {**dict.fromkeys(train, 3), test: 12}, listed)
    digests = {part: sha(contents[part]) for part in registered.contents}
    server.files = {file: gzip.decompress(archive) if packed == "unpacked" else archive}
    made = known.File(sha(archive) if packed == "as registered" else "0" * 64, 0, digests)
    counts = {"train": 3 * len(train), "test": 12}
    monkeypatch.setitem(known.DATASETS, name, row._replace(files={file: made}, examples=counts))
    names, n = list(listed.items())[-1]
    size = labels + 3072
    for split, parts in (("train", train), ("test", [test])):
        found = data.load(name, split, mirror=server.url)
        assert found.class_names == tuple(f"{names[0]}{i}" for i in range(n))
        raw = b"".join(contents[part] for part in parts)
        records = [raw[i : i + size] for i in range(0, len(raw), size)]
        x, y = found.arrays()
        for place, i in enumerate(tfds.order(split, len(records))):  # of the archive
            assert x[place].tobytes() == pixels(records[i], labels)
            assert y[place] == records[i][labels - 1]
    assert {p.name for p in folders.iterdir()} == {"cache"}
    assert not list(folders.parent.glob("*.bin")) and not os.path.exists("/tmp/bpgan-never")


def test_a_member_of_an_archive_that_is_not_right_is_named(server, monkeypatch):
    archive, contents = made_cifar(1, {"train.bin": 3, "test.bin": 2}, {"batches.meta.txt": 10})
    server.files = {"a.tar.gz": archive}

    def given(**digests):
        file = known.File("0" * 64, 0, {name.replace("_", "."): d for name, d in digests.items()})
        row = ROWS["cifar10"]._replace(files={"a.tar.gz": file}, examples={})
        monkeypatch.setitem(known.DATASETS, "cifar10", row)

    given(train_bin=sha(contents["train.bin"]), test_bin="1" * 64)
    message = refused("cifar10", mirror=server.url)
    assert f"of test.bin in it must be {'1' * 64}, is {sha(contents['test.bin'])}" in message
    assert "idx:" not in message and "`mirror=URL`" in message  # the former is no help here
    given(train_bin=sha(contents["train.bin"]), more_bin="1" * 64)
    assert "no more.bin in it" in refused("cifar10", mirror=server.url)


# What arrives --------------------------------------------------------------------------------------------------------


def test_the_same_content_may_be_packed_in_other_ways(server, digits):
    names = [f"{name}.gz" for name in FILES]
    plain = [gzip.decompress(server.files[name]) for name in names]
    server.files = dict(zip(names, [gzip.compress(plain[0], 1, mtime=5), *plain[1:]], strict=True))
    row = known.DATASETS["mnist"]
    assert all(sha(server.files[name]) != row.files[name].sha256 for name in names)
    check("mnist", digits, mirror=server.url)


def test_without_a_digest_of_the_content_the_file_must_be_the_registered_one(server, monkeypatch):
    server.files, arrays = made_digits()
    monkeypatch.setitem(known.DATASETS, "mnist", row_of(server.files, contents=False))
    right = server.files[f"{FILES[0]}.gz"]
    other = gzip.compress(gzip.decompress(right), 1, mtime=5)
    server.files[f"{FILES[0]}.gz"] = other
    message = refused("mnist", mirror=server.url)
    assert f"SHA-256 must be {sha(right)}, is {sha(other)}" in message
    server.files[f"{FILES[0]}.gz"] = right
    check("mnist", arrays, mirror=server.url)


def flipped(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


DAMAGES = {
    "truncated": lambda raw: raw[: len(raw) // 2],
    "flipped": flipped,
    "empty": lambda raw: b"",
    "a page": lambda raw: b"<html>log in to the network</html>",
    "another file": lambda raw: gzip.compress(b"another"),
    "more": lambda raw: raw + b"more",
}


@pytest.mark.parametrize("file", [FILES[0], FILES[3]])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_right_is_refused_and_asked_for_again(
    server, digits, folders, damage, file
):
    file, right = f"{file}.gz", dict(server.files)
    server.files[file] = DAMAGES[damage](right[file])
    for _ in range(2):  # the second time too: nothing of the first was kept
        message = refused("mnist", mirror=server.url)
        assert f"{server.url}/{file} is not the file it should be" in message
        expected = known.DATASETS["mnist"].files[file]
        assert expected.sha256 in message or expected.contents[file[:-3]] in message
        found = {"a page": server.files[file], "another file": b"another", "empty": b""}
        assert sha(found.get(damage, server.files[file])) in message
        assert "`mirror=URL`" in message and "`dataset=idx:FOLDER`" in message
        assert file not in kept(folders)
    assert server.asked.count(file) == 2
    others = [name for name in server.asked if name != file]
    server.files = right
    check("mnist", digits, mirror=server.url)
    assert len(set(others)) == len(others)  # what was right is not downloaded again


def test_a_download_that_was_damaged_on_disk_is_not_used(server, digits, folders):
    data.load("mnist", mirror=server.url)
    (path,) = folders.glob("cache/downloads/*/train-images*")
    path.write_bytes(flipped(path.read_bytes()))
    for split, (x, y) in digits.items():  # of another form, and so converted anew
        found = data.load("mnist,channels=3", split, mirror=server.url).arrays()
        assert pairs(found[0][..., :1], found[1]) == pairs(x, y)
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(examples={"train": 41, "test": 24}), "must be {'train': 41, 'test': 24}"),
        (dict(shape=(28, 27, 1)), "has images of (28, 28, 1), must be (28, 27, 1)"),
        (dict(class_names=tuple("012345678")), "has labels up to 9, must be less than 9"),
        (dict(reader=readers.npz), "not a readable .npz file"),
    ],
)
def test_the_structure_is_checked_as_well(server, digits, folders, monkeypatch, change, message):
    row = known.DATASETS["mnist"]._replace(**change)
    if "reader" in change:
        (name, facts), *_ = row.files.items()
        row = row._replace(files={name: facts})
    monkeypatch.setitem(known.DATASETS, "mnist", row)
    assert message in refused("mnist", mirror=server.url)
    assert not list(folders.glob("cache/download-*/*"))


def test_cifar_files_of_the_wrong_length(folders):
    with tarfile.open(folders / "a.tar", "w") as archive:
        info = tarfile.TarInfo("data_batch_1.bin")
        info.size = 3072
        archive.addfile(info, io.BytesIO(bytes(3072)))
    with pytest.raises(UserError, match="3072 bytes, which is no multiple of 3073"):
        readers.cifar10(str(folders / "a.tar")).examples()


def test_what_unpacks_to_too_much_is_not_unpacked(monkeypatch, folders):
    path = folders / "a"
    monkeypatch.setattr(readers, "LARGEST", 1000)
    path.write_bytes(gzip.compress(bytes(1000)))
    assert b"".join(readers.content(path)) == bytes(1000)
    path.write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(UserError, match="more than 1000 bytes"):
        list(readers.content(path))
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as archive:
        sparse = tarfile.TarInfo("a.bin")  # a hole of any size
        sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**13)}
        archive.addfile(sparse)
    monkeypatch.setattr(readers, "LARGEST", 1 << 20)
    path.write_bytes(gzip.compress(body.getvalue()))
    with pytest.raises(UserError, match="'a.bin' unpacks to more than 1048576 bytes"):
        list(readers.members(path))


# The network ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [404, HALF, STALL], ids=str)
def test_a_bad_server_is_given_up_and_forgotten(server, digits, folders, capfd, fault):
    file = f"{FILES[1]}.gz"
    server.faults = {file: fault}
    message = refused("mnist", mirror=server.url)
    assert f"cannot download {server.url}/{file} (" in message
    assert "`mirror=URL`" in message and "`dataset=idx:FOLDER`" in message
    assert not list(folders.glob("cache/download-*")) and file not in kept(folders)
    assert capfd.readouterr().err == ""
    server.faults = {}
    check("mnist", digits, mirror=server.url)


@pytest.mark.medium
def test_nothing_but_the_error_is_said(folders):
    code = "from bpgan import data; data.load('mnist', mirror='http://127.0.0.1:1')"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert output.stdout.startswith("downloading mnist to ") and output.stdout.count("\n") == 1
    lines = output.stderr.splitlines()
    assert lines[0].startswith("Traceback") and "(connection refused)" in lines[-1]


@pytest.mark.parametrize("name", ["mnist", "tfds:mnist", "mnist10k"])
@pytest.mark.parametrize("mirror", ["ftp://host/x", "http://host/a b", "http://host/\n"])
def test_mirrors_that_are_no_addresses(name, mirror):
    with pytest.raises(UserError) as caught:
        data.load(name, mirror=mirror)
    assert str(caught.value) == f"mirror={mirror.strip()}: must be an http or https URL"


CHILD = """
import sys
sys.path[:0] = [{tests!r}]
from checks import rows as t
from bpgan import data
from bpgan.data import known
known.DATASETS["mnist"] = t.row_of(t.made_digits()[0])
print("done", data.load("mnist", mirror={url!r}).length, flush=True)
"""


def child(server):
    code = CHILD.format(tests=str(pathlib.Path(__file__).parent), url=server.url)
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=ROOT,
    )  # fmt: skip


@pytest.mark.medium
def test_a_killed_download_leaves_nothing_that_looks_whole(server, digits, folders):
    server.faults = {f"{FILES[2]}.gz": [STALL]}
    with child(server) as process:
        assert server.reached.wait(60)
        process.kill()
    assert kept(folders) == {f"{name}.gz" for name in FILES[:2]}
    assert not list(folders.glob("cache/download-*/manifest.json"))
    check("mnist", digits, mirror=server.url)
    assert server.asked.count(f"{FILES[0]}.gz") == 1  # whole downloads are kept


@pytest.mark.medium
def test_of_two_processes_one_downloads_and_converts(server, digits):
    with child(server) as first, child(server) as second:
        outputs = [p.communicate(timeout=120)[0].splitlines() for p in (first, second)]
    assert [lines[-1] for lines in outputs] == ["done 40", "done 40"]
    assert sum(line.startswith("downloading") for lines in outputs for line in lines) == 1
    assert sorted(server.asked) == sorted(f"{name}.gz" for name in FILES)


def test_folders_that_cannot_be(folders, monkeypatch):
    (folders / "file").write_text("")
    monkeypatch.setenv("BPGAN_DATA_DIR", str(folders / "file" / "data"))
    message = refused("mnist")
    assert f"{folders}/file/data: cannot write converted data there (not a directory)" in message


# One's own -----------------------------------------------------------------------------------------------------------

OWN = '''
"""A dataset of a user's own."""
import numpy as np
from bpgan import data
from bpgan.data import readers

ROW = data.Row(
    urls=({url!r},),
    files={{"digits.npz": data.File({sha!r}, {size})}},
    reader=readers.npz,
    class_names=("no", "yes"),
    about="drawn at random",
)


def load(split):
    rng = np.random.default_rng(split == "test")
    n = 40 if split == "train" else 12
    return rng.integers(0, 256, (n, 8, 8), dtype=np.uint8), np.arange(n) % 2


def bad(split):
    return load(split)[0] / 255, load(split)[1]


def whole(split):
    x, y = load(split)
    return data.of_arrays("whole", split, x[..., None], y, 3)


def fails(split):
    raise KeyError("oh")


def ragged(split):
    return [[1, 2], [3]], [0, 1]


def deaf():
    return load("train")


def features(images):
    return images.reshape(len(images), -1)[:, ::16].astype(np.float32)


number = 7
'''


@pytest.fixture
def own(server, folders, monkeypatch):
    """The name of a module of the user's, in a directory outside the package; its arrays."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 2
    buffer = io.BytesIO()
    np.savez(buffer, x=x, y=y)
    server.files = {"digits.npz": buffer.getvalue()}
    code = OWN.format(url=server.url, sha=sha(buffer.getvalue()), size=len(buffer.getvalue()))
    (folders / "my_data.py").write_text(code)
    monkeypatch.syspath_prepend(folders)
    sys.modules.pop("my_data", None)
    importlib.invalidate_caches()
    yield x, y
    sys.modules.pop("my_data", None)


def test_a_row_of_ones_own(server, own):
    x, y = own
    train, test = (data.load("my_data:ROW", split) for split in ("train", "test"))
    assert (train.length, test.length, train.class_names) == (54, 6, ("no", "yes"))
    assert train.name == "my_data:ROW" and server.asked == ["digits.npz"]
    expected = np.argsort(y, kind="stable")[9::10]
    np.testing.assert_array_equal(test.arrays()[0][..., 0], x[np.sort(expected)])
    assert data.load("my_data:ROW,size=4").shape == (4, 4, 1)


def test_a_function_of_ones_own(own):
    train, test = (data.load("my_data:load", split) for split in ("train", "test"))
    assert (train.counts, test.counts, train.shape) == ((20, 20), (6, 6), (8, 8, 1))
    read = pickle.loads(pickle.dumps(train.read))
    np.testing.assert_array_equal(read(np.array([3, 0]))[0], train.arrays()[0][[3, 0]])
    assert len(pickle.dumps(train.read)) < 1000
    whole = data.load("my_data:whole", "test")
    assert (whole.name, whole.counts) == ("my_data:whole", (6, 6, 0))


def test_what_is_no_dataset_is_said(own):
    for name, message in {
        "my_data:bad": "'x of train' is float64[40, 8, 8], must be uint8 [n, h, w]",
        "my_data:number": "is a int, must be a data.Row or a function",
        "my_data:none": "has no attribute 'none'",
        "my_date:ROW": "No module named 'my_date'",
        "my_data:load,size=4": "my_data:load takes no options",
        "my_data:fails": "failed (KeyError: 'oh', /",
        "my_data:ragged": "failed (ValueError: setting an array element",
        "my_data:deaf": "failed (TypeError: deaf() takes 0 positional arguments but 1 was given)",
        "my_data:ROW,bits=12": "bits: only for folder and zip",
    }.items():
        assert message in refused(name)


def test_entries_that_are_added_are_seen(own, monkeypatch):
    import my_data

    assert "must be" in refused("mine") and "mine" not in data.forms()
    monkeypatch.setitem(data.DATASETS, "mine", my_data.ROW)
    monkeypatch.setitem(data.DATASETS, "drawn", my_data.load)
    assert data.load("mine").sha256 == data.load("my_data:ROW").sha256
    assert data.load("drawn").length == 40
    assert ", mine, drawn, npz:FILE" in data.forms() and ", mine, drawn, " in refused("mime")


def command(folders, *arguments):
    environment = {**os.environ, "PYTHONPATH": f"{folders}:{ROOT}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folders, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ROW", "load"])
def test_one_trains_sweeps_resumes_and_evaluates_with_it(own, folders, name):
    flags = (f"--dataset=my_data:{name}", "--batch_size=8", "--tensorboard=false")
    command(folders, "-m", "experiments.classifier", *flags, "--steps=4", "--workdir=run")
    command(folders, "-m", "experiments.classifier", *flags, "--steps=8", "--workdir=run")
    assert json.loads((folders / "run/result.json").read_text())["step"] == 8
    sweep = (*flags, "--steps=4", "--sweep=lr=0.001,0.01", "--root=sweep")
    command(folders, str(ROOT / "launch.py"), "--experiment=classifier", *sweep)
    assert len(list(folders.glob("sweep/**/result.json"))) >= 2
    np.savez(folders / "a.npz", x=own[0])
    command(
        folders, "-m", "experiments.evaluate", f"--samples=npz:{folders}/a.npz", "--n=60",
        f"--dataset=my_data:{name}", "--metrics=fd", "--features=my_data:features", "--workdir=out",
    )  # fmt: skip
    for row in json.loads((folders / "out/metrics.json").read_text()):
        assert row["train_sha256"] == data.load(f"my_data:{name}").sha256
