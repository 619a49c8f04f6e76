"""Datasets of TFDS without TensorFlow: what is prepared, what is refused, and what a bad network does."""

import ast
import contextlib
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest
from checks.loopback import HALF, MUTE, STALL, Server

from bpgan.data import builders
from bpgan.types import UserError

ROOT = pathlib.Path(__file__).parent.parent
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of prepared datasets, and no patience."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(builders, "_STALL", 0.4)
    return tmp_path / "tfds"


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def made_digits(shape=(28, 28), counts=(40, 24), classes=10) -> tuple[dict[str, bytes], dict]:
    """Files of the form of MNIST's, and per split the multiset of (pixels, label) in them."""
    rng = np.random.default_rng(3)
    contents, examples = {}, {}
    for split, names, n in (("train", FILES[:2], counts[0]), ("test", FILES[2:], counts[1])):
        x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        y = rng.permutation(np.arange(n) % classes).astype(np.uint8)
        contents |= {names[0]: idx(x), names[1]: idx(y)}
        examples[split] = Counter(
            (image.tobytes(), int(label)) for image, label in zip(x, y, strict=True)
        )
    return {f"{name}.gz": gzip.compress(data) for name, data in contents.items()}, examples


def spec_for(files: dict[str, bytes], *, base="mnist", known=True, **changes) -> builders.Spec:
    """The specification of a dataset, for these files in place of the real ones."""
    table = {
        name: builders.File(sha(data), {name[:-3]: sha(gzip.decompress(data))} if known else {})
        for name, data in files.items()
    }
    return builders.BUILDERS[base]._replace(
        files=table, examples={"train": 40, "test": 24}, **changes
    )


@pytest.fixture
def digits(server, root, monkeypatch):
    """``mnist`` made small, on the server; the examples that it has."""
    server.files, examples = made_digits()
    monkeypatch.setitem(builders.BUILDERS, "mnist", spec_for(server.files))
    return examples


def examples_of(split) -> Counter:
    return Counter((np.asarray(e["image"]).tobytes(), e["label"]) for e in split)


def refused(name: str, mirror: str = "") -> str:
    """The message with which a dataset is refused: one line that names it."""
    with pytest.raises(UserError) as caught:
        builders.open_prepared(name, mirror=mirror)
    message = str(caught.value)
    assert "\n" not in message and (f"tfds:{name}: " in message or "mirror" in message)
    return message


def prepared_files(root):
    return [p for p in root.rglob("*array_record*") if "incomplete" not in str(p)]


# What is prepared ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_dataset_is_downloaded_prepared_and_read(server, digits, root, capfd, slash):
    prepared = builders.open_prepared("mnist", mirror=server.url + slash)
    assert capfd.readouterr() == (f"preparing tfds:mnist in {root / 'mnist'} ...\n", "")
    assert prepared.directory == root / "mnist" / "3.0.1"
    assert prepared.class_names == tuple("0123456789")
    assert prepared.splits.keys() == {"train", "test"}
    assert {split: examples_of(e) for split, e in prepared.splits.items()} == digits
    assert sorted(server.asked) == sorted(f"{name}.gz" for name in FILES)

    again = builders.open_prepared(
        "mnist:3.0.1", mirror="http://127.0.0.1:1"
    )  # not needed any more
    train = pickle.loads(pickle.dumps(again.splits["train"]))
    assert len(train) == 40 and examples_of(train) == digits["train"]
    batch = train.__getitems__([3, 0, 3])
    for one, i in zip(batch, (3, 0, 3), strict=True):
        assert one.keys() == {"image", "label"} and type(one["label"]) is int
        assert one["image"].shape == (28, 28, 1) and one["image"].dtype == np.uint8
        np.testing.assert_array_equal(one["image"], prepared.splits["train"][i]["image"])
    np.testing.assert_array_equal(train[-1]["image"], train[39]["image"])
    with pytest.raises(IndexError):
        train[40]
    assert len(server.asked) == 4 and capfd.readouterr() == ("", "")


def test_tfds_reads_it_with_its_own_class_which_stays_its_own(server, digits, root):
    import tensorflow_datasets as tfds

    directory = builders.open_prepared("mnist", mirror=server.url).directory
    assert tfds.builder_cls("mnist").__module__.startswith("tensorflow_datasets.")
    for split, expected in digits.items():
        own = tfds.data_source("mnist", split=split, data_dir=root, download=False)
        plain = tfds.builder_from_directory(directory).as_data_source(split=split)
        for source in (own, plain):
            assert Counter((e["image"].tobytes(), int(e["label"])) for e in source) == expected
    assert not (tfds.builder("mnist", data_dir=root).info.splits.keys() ^ {"train", "test"})


@pytest.mark.parametrize("name", builders.BUILDERS)
def test_specifications_are_those_of_tfds(name, tmp_path):
    """Versions, features, names, addresses, and the digests TFDS registers for the files there."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    spec, own = builders.BUILDERS[name], tfds.builder_cls(name)(data_dir=tmp_path)
    ours = builders._builder(name, spec, "", tmp_path)
    assert ours.name == own.name and ours.data_dir == own.data_dir
    assert ours.info.features.to_json() == own.info.features.to_json()
    assert ours.info.supervised_keys == own.info.supervised_keys
    for label in spec.labels:
        assert ours.info.features[label].names == own.info.features[label].names
    registered = checksums.get_all_url_infos()
    for file, digests in spec.files.items():
        assert registered[spec.url + file].checksum == digests.sha256
    digests = [d for file in spec.files.values() for d in (file.sha256, *file.contents.values())]
    assert len(set(digests)) == len(digests) and all(len(bytes.fromhex(d)) == 32 for d in digests)


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_the_digests_of_fashion_mnist_are_of_one_content():
    """With the file name and the time that Debian dropped from the header, its files are those TFDS registers."""
    for name, file in builders.BUILDERS["fashion_mnist"].files.items():
        packed = (DEBIAN / name).read_bytes()
        time = 1504176606 if name.startswith("train") else 1504176627
        header = (
            b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + b"\x00\x03" + name[:-3].encode() + b"\0"
        )
        assert sha(header + packed[10:]) == file.sha256 != sha(packed)
        assert file.contents == {name[:-3]: sha(gzip.decompress(packed))}


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_all_of_fashion_mnist(server, root):
    import tensorflow_datasets as tfds

    server.files = {path.name: path.read_bytes() for path in DEBIAN.glob("*.gz")}
    prepared = builders.open_prepared("fashion_mnist", mirror=server.url)
    assert prepared.class_names[0] == "T-shirt/top" and prepared.class_names[9] == "Ankle boot"
    for split, part, n in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        x = gzip.decompress(server.files[f"{part}-images-idx3-ubyte.gz"])[16:]
        y = gzip.decompress(server.files[f"{part}-labels-idx1-ubyte.gz"])[8:]
        expected = Counter((x[i * 784 : i * 784 + 784], y[i]) for i in range(n))
        found = examples_of(prepared.splits[split].__getitems__(range(n)))
        assert found == expected and found.total() == n
        assert Counter(label for _, label in found.elements()) == dict.fromkeys(range(10), n // 10)
    source = tfds.data_source("fashion_mnist", split="test[:9]", data_dir=root, download=False)
    assert examples_of([{**e, "label": int(e["label"])} for e in source]) <= found


def made_cifar(
    labels: int, members: dict[str, int], names: dict[str, int]
) -> tuple[bytes, dict[str, bytes]]:
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
        for i, (name, data) in enumerate(contents.items()):
            info = tarfile.TarInfo(("cifar/", "../../", "/tmp/bpgan-never/")[i % 3] + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
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


@pytest.mark.parametrize("packed", ["as registered", "anew"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(server, root, tmp_path, monkeypatch, name, packed):
    import tensorflow_datasets as tfds

    spec = builders.BUILDERS[name]
    ((file, registered),) = spec.files.items()
    *train, test = registered.contents
    labels = {"cifar10": ["label"], "cifar100": ["coarse_label", "label"]}[name]
    listed = {spec.class_names[label]: spec.labels[label] for label in labels}
    archive, contents = made_cifar(len(labels), {**dict.fromkeys(train, 3), test: 4}, listed)
    digests = {part: sha(contents[part]) for part in registered.contents}
    server.files = {file: archive}
    made = builders.File(sha(archive) if packed == "as registered" else "0" * 64, digests)
    small = spec._replace(files={file: made}, examples={"train": 3 * len(train), "test": 4})
    monkeypatch.setitem(builders.BUILDERS, name, small)
    prepared = builders.open_prepared(name, mirror=server.url)

    assert prepared.class_names == tuple(
        f"{spec.class_names['label'][0]}{i}" for i in range(spec.labels["label"])
    )
    size = len(labels) + 3072
    for split, parts in (("train", train), ("test", [test])):
        data = b"".join(contents[part] for part in parts)
        records = [data[i : i + size] for i in range(0, len(data), size)]
        own = tfds.data_source(name, split=split, data_dir=root, download=False)
        by_id = {e["id"]: e for e in own}
        assert len(by_id) == len(records) == len(prepared.splits[split])
        for i, record in enumerate(records):
            example = by_id[f"{split}_{i:05d}".encode()]
            assert example["image"].tobytes() == pixels(record, len(labels))
            assert [int(example[label]) for label in labels] == list(record[: len(labels)])
        expected = Counter((pixels(r, len(labels)), r[len(labels) - 1]) for r in records)
        assert examples_of(prepared.splits[split]) == expected
    outside = {p.name for p in tmp_path.iterdir()} | {p.name for p in tmp_path.parent.glob("*.bin")}
    assert outside == {"tfds"} and not os.path.exists("/tmp/bpgan-never")


def test_a_member_of_an_archive_that_is_not_right_is_named(server, root, monkeypatch):
    spec = builders.BUILDERS["cifar10"]
    archive, contents = made_cifar(1, {"train.bin": 3, "test.bin": 2}, {"batches.meta.txt": 10})
    file = builders.File("0" * 64, {"train.bin": sha(contents["train.bin"]), "test.bin": "1" * 64})
    splits = {"train": ("train.bin",), "test": ("test.bin",)}
    server.files = {"a.tar.gz": archive}
    monkeypatch.setitem(
        builders.BUILDERS, "cifar10", spec._replace(files={"a.tar.gz": file}, splits=splits)
    )
    message = refused("cifar10", server.url)
    assert f"of test.bin in it must be {'1' * 64}, is {sha(contents['test.bin'])}" in message
    assert "idx:" not in message  # no help here
    file = file._replace(
        contents={**file.contents, "more.bin": "1" * 64, "test.bin": sha(contents["test.bin"])}
    )
    monkeypatch.setitem(
        builders.BUILDERS, "cifar10", spec._replace(files={"a.tar.gz": file}, splits=splits)
    )
    assert "no more.bin in it" in refused("cifar10", server.url)


# What arrives -------------------------------------------------------------------------------------------------------


def test_the_same_content_may_be_packed_in_other_ways(server, digits, root, monkeypatch):
    names = [f"{name}.gz" for name in FILES]
    plain = [gzip.decompress(server.files[name]) for name in names]
    server.files = dict(zip(names, [gzip.compress(plain[0], 1, mtime=5), *plain[1:]], strict=True))
    assert all(sha(server.files[n]) != builders.BUILDERS["mnist"].files[n].sha256 for n in names)
    prepared = builders.open_prepared("mnist", mirror=server.url)
    assert {split: examples_of(e) for split, e in prepared.splits.items()} == digits


def test_without_a_digest_of_the_content_the_file_must_be_the_registered_one(
    server, root, monkeypatch
):
    server.files, examples = made_digits()
    monkeypatch.setitem(builders.BUILDERS, "mnist", spec_for(server.files, known=False))
    right = server.files[f"{FILES[0]}.gz"]
    other = gzip.compress(gzip.decompress(right), 1, mtime=5)
    server.files[f"{FILES[0]}.gz"] = other
    assert f"SHA-256 must be {sha(right)}, is {sha(other)}" in refused("mnist", server.url)
    server.files[f"{FILES[0]}.gz"] = right
    assert (
        examples_of(builders.open_prepared("mnist", mirror=server.url).splits["test"])
        == examples["test"]
    )


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "flipped": flipped,
    "empty": lambda data: b"",
    "a page": lambda data: b"<html>log in to the network</html>",
    "another file": lambda data: gzip.compress(b"another"),
    "more": lambda data: data + b"more",
}


@pytest.mark.parametrize("file", [FILES[0], FILES[3]])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_right_is_refused_and_asked_for_again(
    server, digits, root, damage, file
):
    file, right = f"{file}.gz", dict(server.files)
    server.files[file] = DAMAGES[damage](right[file])
    for _ in range(2):  # the second time too: nothing of the first was kept
        message = refused("mnist", server.url)
        assert f"{server.url}/{file} is not the file it should be" in message
        expected = builders.BUILDERS["mnist"].files[file]
        assert expected.sha256 in message or expected.contents[file[:-3]] in message
        content = {"a page": server.files[file], "another file": b"another", "empty": b""}.get(
            damage
        )
        assert sha(server.files[file] if content is None else content) in message
        assert "--mirror=URL" in message and "--dataset=idx:FOLDER" in message
    assert server.asked.count(file) == 2 and not prepared_files(root)
    others = [name for name in server.asked if name != file]
    server.files = right
    prepared = builders.open_prepared("mnist", mirror=server.url)
    assert {split: examples_of(e) for split, e in prepared.splits.items()} == digits
    assert len(set(others)) == len(others)  # what was right is not downloaded again


def test_a_download_that_was_damaged_on_disk_is_not_used(server, digits, root):
    builders.open_prepared("mnist", mirror=server.url)
    shutil.rmtree(root / "mnist")
    (kept,) = [p for p in root.glob("downloads/mnist/*train-images*") if p.suffix == ".gz"]
    kept.write_bytes(flipped(kept.read_bytes()))
    assert "train-images-idx3-ubyte.gz is not the file it should be" in refused("mnist", server.url)
    assert len(server.asked) == 4
    assert (
        examples_of(builders.open_prepared("mnist", mirror=server.url).splits["train"])
        == digits["train"]
    )
    assert len(server.asked) == 5


def test_what_tfds_itself_refuses_is_said_in_the_same_words(server, digits, monkeypatch):
    """Of addresses it has registered TFDS knows the digests, and checks them."""
    from tensorflow_datasets.core import utils
    from tensorflow_datasets.core.download import checksums

    file = f"{FILES[0]}.gz"
    info = checksums.UrlInfo(size=utils.Size(7), checksum="ab" * 32, filename=file)
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: {f"{server.url}/{file}": info})
    message = refused("mnist", server.url)
    assert f"{server.url}/{file} is not the file it should be" in message
    assert sha(server.files[file]) in message


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(examples={"train": 41, "test": 24}), "must be 41 images of (28, 28, 1) and labels"),
        (dict(shape=(28, 27, 1)), "must be 40 images of (28, 27, 1)"),
        (dict(labels={"label": 9}), "label is up to 9, must be less than 9"),
        (
            dict(splits={"train": FILES[1::-1], "test": FILES[2:]}),
            "not an idx file of bytes of rank 3",
        ),
    ],
)
def test_the_structure_is_checked_as_well(server, digits, root, monkeypatch, change, message):
    monkeypatch.setitem(builders.BUILDERS, "mnist", builders.BUILDERS["mnist"]._replace(**change))
    said = refused("mnist", server.url)
    assert message in said and "train-images-idx3-ubyte" in said and not prepared_files(root)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\x08\x03", idx(np.zeros((2, 3, 3), np.uint8))[:-1], idx(np.zeros((2, 3, 3), np.uint8)) + b"0",
     struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 2**31)],
)  # fmt: skip
def test_idx_files_of_the_wrong_length(data):
    with pytest.raises(ValueError, match="not an idx file|not right for sizes"):
        builders._read_idx([data, idx(np.zeros(2, np.uint8))])


def test_cifar_files_of_the_wrong_length():
    with pytest.raises(ValueError, match="has 3072 bytes, which is no multiple of 3073"):
        builders._read_cifar([bytes(3073), bytes(3072)], ("label",))


def test_what_unpacks_to_too_much_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(builders, "_LARGEST", 1000)
    assert builders._unpack(gzip.compress(bytes(1000)), "a.gz") == {"a": bytes(1000)}
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        builders._unpack(gzip.compress(bytes(1001)), "a.gz")
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as archive:
        sparse = tarfile.TarInfo("a.bin")  # a hole of any size
        sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**13)}
        archive.addfile(sparse)
    monkeypatch.setattr(builders, "_LARGEST", 1 << 20)
    with pytest.raises(ValueError, match="'a.bin' unpacks to more than 1048576 bytes"):
        builders._unpack(gzip.compress(body.getvalue()), "a.tar.gz")


@pytest.mark.parametrize("shape", [(28, 28, 1), (5, 3, 3), (1, 1, 1)])
def test_png(shape):
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(builders._png(image))) as read:
        read.load()
        assert read.format == "PNG" and read.mode == {1: "L", 3: "RGB"}[shape[2]]
        np.testing.assert_array_equal(np.asarray(read).reshape(shape), image)


# The network --------------------------------------------------------------------------------------------------------

FAULTS = {
    404: "HTTP status 404",
    403: "HTTP status 403",
    503: "HTTP status 503",
    HALF: "the connection was closed before the end of the file",
    STALL: "the server sent nothing for 0.4 s",
    MUTE: "the server sent nothing for 0.4 s",
}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_bad_server_is_given_up_and_forgotten(server, digits, root, capfd, fault):
    file = f"{FILES[1]}.gz"
    server.faults = {file: fault}
    message = refused("mnist", server.url)
    assert f"cannot download {server.url}/{file} ({FAULTS[fault]})" in message
    assert "--mirror=URL" in message and "--dataset=idx:FOLDER" in message
    assert server.asked.count(file) == (3 if fault == 503 else 1)
    assert not prepared_files(root) and not list(root.rglob("*.tmp.*"))
    assert capfd.readouterr().err == ""
    server.faults = {}
    prepared = builders.open_prepared("mnist", mirror=server.url)
    assert {split: examples_of(e) for split, e in prepared.splits.items()} == digits


def test_no_server(digits, root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = refused("mnist", f"http://127.0.0.1:{port}/mnist")
    assert (
        f"cannot download http://127.0.0.1:{port}/mnist/{FILES[0]}.gz (connection refused); "
        in message
    )


@pytest.mark.medium
def test_nothing_but_the_error_is_said(digits, root):
    """Not by urllib3, which logs each try: where nothing handles its warnings, Python prints them."""
    code = "from bpgan.data import builders; builders.open_prepared('mnist', mirror='http://127.0.0.1:1')"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert output.stdout == f"preparing tfds:mnist in {root / 'mnist'} ...\n"
    lines = output.stderr.splitlines()
    assert lines[0].startswith("Traceback") and "(connection refused)" in lines[-1]
    assert not any("etrying" in line for line in lines)


def test_no_network(digits, root, monkeypatch):
    asked = []

    def getaddrinfo(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    message = refused("mnist")
    assert "(there is no server of that name, or no network)" in message
    assert builders.BUILDERS["mnist"].url + FILES[0] in message
    assert asked == ["storage.googleapis.com"] * 3


def test_requests_are_left_as_they_were(server, digits):
    import requests.adapters

    before = requests.adapters.HTTPAdapter
    server.faults = {f"{FILES[1]}.gz": 404}
    refused("mnist", server.url)
    assert requests.adapters.HTTPAdapter is before
    server.faults = {}
    builders.open_prepared("mnist", mirror=server.url)
    assert requests.adapters.HTTPAdapter is before


@pytest.mark.parametrize(
    "mirror",
    ["ftp://host/x", "file:///etc", "/srv/mnist", "host/x", "http://", "https:///x", "http://[::1", "http://h:99999",
     "http://host/a b", "http://host/?a=b", "http://host/#a", "javascript:x", "http://host/\n"],
)  # fmt: skip
def test_mirrors_that_are_no_addresses(root, mirror):
    with pytest.raises(UserError) as caught:
        builders.open_prepared("mnist", mirror=mirror)
    assert str(caught.value) == f"mirror={mirror.strip()}: must be an http or https URL"


# Several processes, and killed ones ---------------------------------------------------------------------------------

CHILD = """
import os, sys
sys.path.insert(0, {tests!r})
import test_builders as t
from checks.loopback import HALF, MUTE, STALL, Server

from bpgan.data import builders
if {block!r}:
    encode, made = builders._png, []
    def png(image):
        made.append(image)
        if len(made) == 5:
            print("half-way", file=sys.__stdout__, flush=True)
            __import__("time").sleep(60)
        return encode(image)
    builders._png = png
builders.BUILDERS["mnist"] = t.spec_for(t.made_digits()[0])
prepared = builders.open_prepared("mnist", mirror={url!r})
print("done", len(prepared.splits["train"]), flush=True)
"""


def child(server, block=False):
    code = CHILD.format(tests=str(pathlib.Path(__file__).parent), block=block, url=server.url)
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=ROOT,
    )  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("when", ["downloading", "writing"])
def test_a_killed_preparation_leaves_nothing_that_looks_prepared(server, digits, root, when):
    server.faults = {f"{FILES[2]}.gz": STALL} if when == "downloading" else {}
    with child(server, block=when == "writing") as process:
        assert process.stdout and process.stdout.readline().startswith("preparing tfds:mnist")
        if when == "writing":
            assert process.stdout.readline() == "half-way\n"
        else:
            assert server.reached.wait(60)
        process.send_signal(signal.SIGKILL)
    assert not prepared_files(root) and list(root.rglob("*incomplete*"))
    server.faults = {}
    prepared = builders.open_prepared("mnist", mirror=server.url)
    assert {split: examples_of(e) for split, e in prepared.splits.items()} == digits
    assert server.asked.count(f"{FILES[0]}.gz") == 1  # whole downloads are kept


@pytest.mark.medium
def test_of_two_processes_one_prepares_and_the_other_waits(server, digits, root):
    server.faults = {f"{FILES[0]}.gz": STALL}
    with child(server) as first:
        assert server.reached.wait(60)
        with child(server) as second:
            assert second.stderr and "waiting" in second.stderr.readline()
            assert len(server.asked) == 1
            first.send_signal(signal.SIGKILL)  # whoever holds the lock may vanish
            server.faults = {}
            assert second.communicate(timeout=60)[0].splitlines()[-1] == "done 40"
    assert Counter(server.asked) == {f"{FILES[0]}.gz": 2, **{f"{name}.gz": 1 for name in FILES[1:]}}


def test_the_one_that_waited_uses_what_the_other_prepared(server, digits, root):
    with child(server, block=False) as first, child(server, block=False) as second:
        outputs = [p.communicate(timeout=120)[0].splitlines() for p in (first, second)]
    assert [lines[-1] for lines in outputs] == ["done 40", "done 40"]
    assert sum(line.startswith("preparing") for lines in outputs for line in lines) == 1
    assert sorted(server.asked) == sorted(f"{name}.gz" for name in FILES)


# What cannot be opened ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,near",
    [
        ("fashionmnist", "fashion_mnist"),
        ("CIFAR10", "cifar10"),
        ("minst", "mnist"),
        ("mytiny", "my_tiny"),
    ],
)
def test_an_unknown_name_brings_the_nearest(root, name, near):
    (root / "my_tiny").mkdir(parents=True)
    message = refused(name)
    assert "TFDS knows no dataset of that name" in message
    assert near in message.partition("did you mean ")[2].rstrip("?").split(" or ")
    assert "did you mean" not in refused("xqzxqzxqzxqz")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../up",
        "a b",
        "mnist/",
        "mnist/..",
        "mnist:",
        "huggingface:mnist",
        "/etc",
        "a/b/c",
        "mnist\n",
        "é",
    ],
)
def test_malformed_names(root, name):
    with pytest.raises(
        UserError, match="must be NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION"
    ):
        builders.open_prepared(name)


@pytest.mark.parametrize(
    "name", ["celeb_a", "emnist/letters", "emnist/letters:3.1.0", "coco", "cifar10_1"]
)
def test_what_needs_tensorflow_comes_with_the_command(tmp_path, monkeypatch, name):
    """The command is one that a shell and Python understand, whatever the folder is called."""
    import tensorflow_datasets as tfds

    root = tmp_path / 'a "b" $HOME it\'s'
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    message = refused(name)
    assert "which needs TensorFlow; in an environment with tensorflow run once: " in message
    python, flag, code = shlex.split(message.partition("run once: ")[2])
    assert (python, flag) == ("python", "-c")
    call = (
        ast.parse(code).body[1].value.func.value
    )  # the builder in builder(...).download_and_prepare()
    assert ast.unparse(call.func) == "tfds.builder"
    arguments = [ast.literal_eval(a) for a in call.args]
    options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    assert arguments == [name] and options == {"data_dir": str(root), "file_format": "array_record"}
    assert hasattr(tfds, "builder")


def test_versions_and_configurations_there_are_not(root):
    assert "can be in version 3.0.1 only" in refused("mnist:2.0.0")
    assert "mnist has no configurations" in refused("mnist/big")


def prepare(
    root,
    name: str,
    features: dict,
    examples: list,
    *,
    version="1.0.0",
    config=None,
    splits=("train", "test"),
):
    """A dataset as any user of TFDS may have prepared it."""
    import tensorflow_datasets as tfds

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    namespace = {
        "name": name,
        "VERSION": tfds.core.Version(version),
        "_info": _info,
        "_split_generators": lambda self, _: {split: enumerate(examples) for split in splits},
        "_generate_examples": lambda self: None,
    }
    if config:
        namespace["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config, version=version)]
    bases = (tfds.core.GeneratorBasedBuilder,)
    cls = type(bases[0])("Made", bases, namespace, skip_registration=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder = cls(data_dir=root, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return pathlib.Path(builder.data_dir)


def a_tensor(*shape, dtype=np.uint8):
    import tensorflow_datasets as tfds

    return tfds.features.Tensor(shape=shape, dtype=dtype)


def test_what_others_prepared(root):
    """Other features are left alone, a label that is no class number is none, sizes may differ."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.Text(),
        "boxes": {"box": tfds.features.BBoxFeature()},
    }
    sizes = [(5, 3), (4, 9), (4, 9), (1, 1)]
    made = [
        np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        for i, size in enumerate(sizes)
    ]
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    examples = [{"image": builders._png(x), "label": "a", "boxes": {"box": box}} for x in made]
    prepare(root, "odd", features, examples)
    prepared = builders.open_prepared("odd")
    assert prepared.class_names == ()
    found = list(prepared.splits["train"])
    assert [e.keys() for e in found] == [{"image"}] * 4
    assert Counter((e["image"].shape, e["image"].tobytes()) for e in found) == Counter(
        (x.shape, x.tobytes()) for x in made
    )


def test_videos(root, capfd):
    """TFDS needs TensorFlow to look at the mere description of a video."""
    directory = prepare(
        root, "film", {"image": a_tensor(2, 2, 1)}, [{"image": np.zeros((2, 2, 1), np.uint8)}]
    )
    path = directory / "features.json"
    described = json.loads(path.read_text())
    described["featuresDict"]["features"]["clip"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": {"dimensions": ["-1", "4", "4", "3"]}, "dtype": "uint8"},
    }
    path.write_text(json.dumps(described))
    assert f"{directory} has features that need TensorFlow" in refused("film")
    assert capfd.readouterr() == ("", "")


def test_versions_configurations_and_labels_of_others(root):
    import tensorflow_datasets as tfds

    for version, value in (("1.0.0", 1), ("1.10.0", 10), ("1.9.0", 9)):
        features = {
            "image": a_tensor(2, 2, 1),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
        }
        examples = [{"image": np.full((2, 2, 1), value, np.uint8), "label": 1}]
        prepare(root, "mine", features, examples, version=version)
    for name, value in (("mine", 10), ("mine:1.9.0", 9), ("mine:1.0.*", 1)):
        prepared = builders.open_prepared(name)
        assert prepared.splits["train"][0]["image"].max() == value and prepared.class_names == (
            "no",
            "yes",
        )
        assert prepared.splits["train"][0]["label"] == 1
    assert "no dataset of that name" in refused("mine:2.0.0")

    features = {"image": a_tensor(2, 2, 3), "label": a_tensor(dtype=np.int64)}
    example = {"image": np.zeros((2, 2, 3), np.uint8), "label": -1}
    prepare(root, "many", features, [example], config="one")
    assert builders.open_prepared("many").splits["test"][0]["label"] == -1
    prepare(root, "many", features, [example, example], config="two")
    assert "must name one of its configurations: many/one, many/two" in refused("many")
    prepared = builders.open_prepared("many/two:1.0.0")
    assert len(prepared.splits["train"]) == 2 and prepared.class_names == ()


def test_what_has_no_images(root):
    image = np.zeros((2, 2, 1), np.uint8)
    cases = {
        "nothing": ({"picture": a_tensor(2, 2, 1)}, {"picture": image}, "has no feature 'image', only picture"),
        "deep": ({"image": a_tensor(2, 2, 1, dtype=np.uint16)}, {"image": image.astype(np.uint16)},
                 "'image' is uint16 (2, 2, 1), must be uint8"),
        "real": ({"image": a_tensor(2, 2, 1, dtype=np.float32)}, {"image": image.astype(np.float32)},
                 "'image' is float32"),
        "film": ({"image": a_tensor(5, 2, 2, 1)}, {"image": np.zeros((5, 2, 2, 1), np.uint8)},
                 "'image' is uint8 (5, 2, 2, 1), must be uint8 (h, w, c)"),
        "parts": ({"image": {"left": a_tensor(2, 2, 1)}}, {"image": {"left": image}}, "must be uint8 (h, w, c)"),
    }  # fmt: skip
    for name, (features, example, message) in cases.items():
        prepare(root, name, features, [example])
        assert message in refused(name).replace("<class 'numpy.", "").replace("'>", "")


def test_empty_splits_are_left_out(root):
    directory = prepare(
        root, "few", {"image": a_tensor(2, 2, 1)}, [{"image": np.zeros((2, 2, 1), np.uint8)}]
    )
    info = json.loads((directory / "dataset_info.json").read_text())
    for split in info["splits"]:
        if split["name"] == "test":
            split["shardLengths"], split["numBytes"] = [], "0"
    (directory / "dataset_info.json").write_text(json.dumps(info))
    assert builders.open_prepared("few").splits.keys() == {"train"}
    info["splits"] = []
    (directory / "dataset_info.json").write_text(json.dumps(info))
    assert "has no examples" in refused("few")


def test_other_formats(server, digits, root):
    """What TFDS prepared for TensorFlow: how to get the other form, which ours is for our own."""
    ours = builders.open_prepared("mnist", mirror=server.url).directory
    other = prepare(
        root, "mine", {"image": a_tensor(2, 2, 1)}, [{"image": np.zeros((2, 2, 1), np.uint8)}]
    )
    for directory in (ours, other):
        info = directory / "dataset_info.json"
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    message = refused("mnist", server.url)
    assert f"{ours} is prepared as tfrecord, which cannot be read without TensorFlow; " in message
    assert "set TFDS_DATA_DIR to another folder and bpgan prepares it there" in message
    message = refused("mine")
    code = shlex.split(message.partition("run once: ")[2])[2]
    assert f'"mine:1.0.0", data_dir="{root}_array_record", file_format="array_record"' in code
    assert message.endswith("and set TFDS_DATA_DIR to that folder")


def test_damage(server, digits, root):
    directory = builders.open_prepared("mnist", mirror=server.url).directory
    (records,) = directory.glob("*train.array_record*")
    whole = records.read_bytes()
    records.write_bytes(flipped(whole))
    train = builders.open_prepared("mnist").splits["train"]
    with pytest.raises(
        UserError, match=r"3\.0\.1 is damaged .*; delete it to have it prepared again"
    ):
        list(train)
    records.unlink()
    assert f"{records} is missing; delete {directory}" in refused("mnist")
    (directory / "dataset_info.json").write_text("{")
    assert f"{directory} is damaged" in refused("mnist")
    (directory / "dataset_info.json").unlink()
    assert f"{directory} holds no dataset; delete it" in refused("mnist")


def test_prepared_files_that_contradict_each_other(root):
    """TFDS checks none of what it reads; whatever it makes of it is one line that names the folder."""
    image = np.zeros((2, 2, 1), np.uint8)
    directory = prepare(root, "mine", {"image": a_tensor(2, 2, 1)}, [{"image": image}])
    info, features = directory / "dataset_info.json", directory / "features.json"
    for path, change in {
        info: [('"shardLengths": [', '"shardLengths": ["-7",'), ("{DATASET}", "{DATASED}"),
               ("{DATASET}", "{"), (info.read_text(), "[]"), (info.read_text(), '{"a":' * 100_000)],
        features: [('"2"', '"3"'), ('"2"', '"x"'), (features.read_text(), "3")],
    }.items():  # fmt: skip
        whole = path.read_text()
        for old, new in change:
            assert old in whole
            path.write_text(whole.replace(old, new, 1))
            with pytest.raises(UserError, match=f"{directory}.* is (damaged|missing)") as caught:
                list(builders.open_prepared("mine").splits["train"])
            assert "\n" not in str(caught.value)
        path.write_text(whole)
    assert len(builders.open_prepared("mine").splits["train"]) == 1
    os.mkfifo(directory / "label.labels.txt")  # would be waited for
    assert f"{directory}/label.labels.txt is no regular file" in refused("mine")


def test_folders_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file" / "data"))
    assert f"cannot write {tmp_path / 'file' / 'data'}: Not a directory" in refused("mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", "~nobody-of-that-name/data")
    assert "there is no home directory for ~nobody" in refused("mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
    assert "TFDS_DATA_DIR=gs://bucket/data: must be a folder" in refused("mnist")


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f'data_dir="{tmp_path}/tensorflow_datasets"' in refused("celeb_a")
