"""bpgan/download.py: whole files or none, whatever the network does."""

import hashlib
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest
from checks.loopback import HALF, MUTE, STALL, Server

from bpgan import download
from bpgan.types import UserError

ROOT = pathlib.Path(__file__).parent.parent
DATA = bytes(range(256)) * 100


@pytest.fixture
def server():
    server = Server()
    server.files["a.bin"] = DATA
    yield server
    server.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "_STALL", 0.4)
    monkeypatch.setattr(download, "_PAUSE", 0.01)


def problem(path):
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = hashlib.sha256(DATA).hexdigest()
    return "" if found == expected else f"SHA-256 must be {expected}, is {found}"


def fetch(url, path, **options):
    return download.fetch([f"{url}/a.bin"], path, problem, **options)


def refused(url, path, **options):
    with pytest.raises(UserError) as caught:
        fetch(url, path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(folder):
    """What is in a folder, but for the lock."""
    return {p.name for p in folder.iterdir()} - {".a.bin.lock"}


def test_a_file_is_downloaded_once(server, tmp_path, capfd):
    path = tmp_path / "new" / "a.bin"
    for _ in range(2):
        assert fetch(server.url, path) == path and path.read_bytes() == DATA
    assert server.asked == ["a.bin"] and left(path.parent) == {"a.bin"}
    assert capfd.readouterr() == ("", "")
    path.write_bytes(DATA[:-1])  # damaged on disk
    assert fetch(server.url, path).read_bytes() == DATA and len(server.asked) == 2


FAULTS = {
    404: ("HTTP status 404", 1),
    403: ("HTTP status 403", 1),
    503: ("HTTP status 503", 3),
    HALF: ("the connection was closed before the end of the file", 3),
    STALL: ("the server sent nothing for 0.4 s", 1),
    MUTE: ("the server sent nothing for 0.4 s", 1),
}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_bad_server_is_given_up(server, tmp_path, fault, capfd):
    reason, tries = FAULTS[fault]
    server.faults["a.bin"] = fault
    message = refused(server.url, tmp_path / "a.bin", advice="ask a friend")
    assert message == f"cannot download {server.url}/a.bin ({reason}); ask a friend"
    assert len(server.asked) == tries and capfd.readouterr().err == ""
    assert left(tmp_path) == ({".a.bin.partial"} if fault in (HALF, STALL) else set())
    server.faults = {}
    assert fetch(server.url, tmp_path / "a.bin").read_bytes() == DATA
    assert left(tmp_path) == {"a.bin"}


@pytest.mark.parametrize("parts", [True, False])
def test_what_broke_off_is_gone_on_with(server, tmp_path, parts):
    server.parts, server.faults["a.bin"] = parts, [HALF, HALF]
    assert fetch(server.url, tmp_path / "a.bin").read_bytes() == DATA
    first, second = (12800, 19200) if parts else (12800, 12800)
    assert server.ranges == ["", f"bytes={first}-", f"bytes={second}-"]


def test_a_part_of_another_file_is_not_gone_on_with(server, tmp_path):
    (tmp_path / ".a.bin.partial").write_bytes(b"other" * 10)
    assert fetch(server.url, tmp_path / "a.bin").read_bytes() == DATA
    assert server.ranges == ["bytes=50-", ""]
    (tmp_path / "a.bin").rename(tmp_path / ".a.bin.partial")  # killed just before it was named
    assert fetch(server.url, tmp_path / "a.bin").read_bytes() == DATA
    assert server.ranges[2:] == [f"bytes={len(DATA)}-"]
    (tmp_path / "a.bin").unlink()
    (tmp_path / ".a.bin.partial").write_bytes(DATA + b"more")
    assert fetch(server.url, tmp_path / "a.bin").read_bytes() == DATA


def test_another_file_is_refused(server, tmp_path):
    server.files["a.bin"] = b"<html>log in to the network</html>"
    for _ in range(2):
        message = refused(server.url, tmp_path / "a.bin")
        assert f"{server.url}/a.bin is not the file it should be: SHA-256 must be" in message
        assert left(tmp_path) == set()
    assert len(server.asked) == 2


def test_the_next_server_is_tried(server, tmp_path):
    server.files["b.bin"] = b"other"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/a.bin"
    urls = [closed, f"{server.url}/none.bin", f"{server.url}/b.bin"]
    with pytest.raises(UserError) as caught:
        download.fetch(urls, tmp_path / "a.bin", problem)
    for part in (f"{closed} (connection refused)", "(HTTP status 404)", "b.bin is not the file"):
        assert part in str(caught.value)
    urls.append(f"{server.url}/a.bin")
    assert download.fetch(urls, tmp_path / "a.bin", problem).read_bytes() == DATA


def test_no_network(tmp_path, monkeypatch):
    asked = []

    def getaddrinfo(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    message = refused("http://example.invalid", tmp_path / "a.bin")
    assert "(there is no server of that name, or no network)" in message
    assert asked == ["example.invalid"] * 3


def test_proxies_of_the_environment_are_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch("http://example.invalid/x", tmp_path / "a.bin").read_bytes() == DATA
    assert server.urls == ["http://example.invalid/x/a.bin"]
    (tmp_path / "a.bin").unlink()
    fetch(server.url, tmp_path / "a.bin")
    assert server.urls[1:] == ["/a.bin"]


def test_a_long_download_says_how_far_it_is(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(download, "_SOON", 0)
    monkeypatch.setattr(download, "_BLOCK", 1 << 20)
    server.files["a.bin"] = DATA * 100
    with pytest.raises(UserError):
        fetch(server.url, tmp_path / "a.bin")
    first = capfd.readouterr().err.splitlines()[0]
    name, _, rest = first.partition(": ")
    done, rate, time_left = rest.split(", ")
    assert name == "a.bin" and done.endswith(" of 3 MB") and rate.endswith(" MB/s")
    assert time_left.endswith(" s left")


def test_where_nothing_can_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(server.url, tmp_path / "file" / "a" / "a.bin")
    assert message == f"cannot write {tmp_path / 'file' / 'a'}: Not a directory"
    assert server.asked == []


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "file:///etc", "/srv/mnist", "host/x", "http://", "https:///x", "http://[::1", "http://h:99999",
     "http://host/a b", "http://host/?a=b", "http://host/#a", "javascript:x", "http://host/\n"],
)  # fmt: skip
def test_what_is_no_address_of_a_folder(url):
    with pytest.raises(ValueError, match="must be an http or https URL"):
        download.check_url(url)
    download.check_url("https://host:8/a/")


CHILD = """
import sys
from bpgan import download
path = download.fetch([sys.argv[1]], sys.argv[2], lambda path: "" if path.stat().st_size == 25600 else "short")
print("done", path.stat().st_size)
"""


def child(server, path):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, f"{server.url}/a.bin", str(path)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.medium
def test_of_two_processes_one_downloads_and_the_other_waits(server, tmp_path):
    """Whoever downloads may vanish; the other goes on with what there is."""
    path = tmp_path / "a.bin"
    server.faults["a.bin"] = [STALL]
    with child(server, path) as first:
        assert server.reached.wait(60)
        with child(server, path) as second:
            line = second.stderr.readline()
            assert line == f"{path}: another process is downloading it; waiting\n"
            assert len(server.asked) == 1 and left(tmp_path) == {".a.bin.partial"}
            first.send_signal(signal.SIGKILL)
            assert second.communicate(timeout=60)[0] == "done 25600\n"
    assert server.asked == ["a.bin", "a.bin"] and server.ranges[1].startswith("bytes=")
    assert path.read_bytes() == DATA


def test_threads_download_once(server, tmp_path):
    threads = [
        threading.Thread(target=fetch, args=(server.url, tmp_path / "a.bin")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == DATA
