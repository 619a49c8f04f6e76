"""Which checkpoints stay, what is in them, and what is said when they cannot be written."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpgan.runtime.checkpoint import Checkpoints, Keep
from bpgan.types import UserError


def tree(step):
    return {"w": jnp.full((3, 2), float(step)), "n": jnp.int32(step)}


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree(0)
)


def on_disk(path):
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdecimal())


@pytest.mark.parametrize("text,kept", [("1", [5]), ("2", [4, 5]), ("9", [1, 2, 3, 4, 5])])
def test_newest_are_kept(tmp_path, text, kept):
    checkpoints = Checkpoints(tmp_path, keep=Keep.parse(text))
    for step in range(1, 6):
        checkpoints.save(step, tree(step))
    checkpoints.close()
    assert on_disk(tmp_path) == kept


@pytest.mark.parametrize(
    "text,kept",
    [("1,min:fid", [2, 5]), ("1,max:fid", [1, 5]), ("2,best=2,min:fid", [2, 4, 5]), ("1,best=3,max:fid", [1, 3, 5])],
)  # fmt: skip
@pytest.mark.parametrize("reopened", [False, True])
def test_newest_and_best_are_kept(tmp_path, text, kept, reopened):
    """Also across a restart between every two saves; the newest is what a run resumes from, best or not."""
    fid = {1: 9.0, 2: 1.0, 3: 7.0, 4: 2.0, 5: 5.0}
    checkpoints = Checkpoints(tmp_path, keep=Keep.parse(text))
    for step, value in fid.items():
        checkpoints.save(step, tree(step), {"fid": value, "other": 0.0})
        if reopened:
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path, keep=Keep.parse(text))
    step, restored = checkpoints.restore(ABSTRACT)
    checkpoints.close()
    assert on_disk(tmp_path) == kept
    assert step == 5 and float(restored["w"][0, 0]) == 5.0


def test_checkpoints_without_the_metric_are_not_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=Keep.parse("1,min:fid"))
    for step, metrics in ((1, {}), (2, {"fid": 3.0}), (3, None), (4, {"fid": 4.0}), (5, {})):
        checkpoints.save(step, tree(step), metrics)
    checkpoints.close()
    assert on_disk(tmp_path) == [2, 5]


def test_what_was_ranked_by_another_metric_comes_last(tmp_path):
    for text, steps in (("1,min:loss", (1, 2)), ("1,max:fid", (3, 4, 5))):
        checkpoints = Checkpoints(tmp_path, keep=Keep.parse(text))
        assert checkpoints.restore(ABSTRACT, best=True) is None
        for step in steps:
            checkpoints.save(step, tree(step), {"loss": 9.0, "fid": -float(step)})
        checkpoints.close()
    assert on_disk(tmp_path) == [3, 5]


def rewritten(path, content=None, **changes):
    """Another manifest: other bytes, or other values under the old checksum."""
    file = path / "manifest/metadata"
    manifest = json.loads(file.read_text()) | changes
    file.write_bytes(json.dumps(manifest).encode() if content is None else content)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """Three checkpoints, of which the first is the best."""
    folder = tmp_path_factory.mktemp("ranked")
    checkpoints = Checkpoints(folder, keep=Keep.parse("9,min:fid"))
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step), {"fid": float(step)})
    checkpoints.close()
    return folder


@pytest.mark.parametrize(
    "change",
    [dict(content=c) for c in (b"", b"{", b'{"fid": \xff}', b"[1]", b"{}", b"[" * 10**5)]
    + [dict(rank={"fid": 9.0}), dict(rank=None), dict(step=2), dict(run="x"), dict(crc=None)]
    + [dict(format=1), dict(format=3), dict(log=[0, 0]), dict(leaves={})],
)
def test_a_manifest_with_another_rank_is_noticed(ranked, tmp_path, capsys, change):
    """Emptied, cut, or edited: never in silence another best one."""
    folder, keep = shutil.copytree(ranked, tmp_path / "copy"), Keep.parse("9,min:fid")
    rewritten(folder / "1", **change)
    for read_only in (True, False):
        checkpoints = Checkpoints(folder, keep=keep, read_only=read_only)
        assert checkpoints.restore(ABSTRACT, best=True)[0] == 2
        said = capsys.readouterr().out
        assert f"{folder / '1'} is damaged: checksum mismatch in its manifest" in said
        assert checkpoints.restore(ABSTRACT, step=1) is None
        assert (folder / "1.damaged").exists() != read_only
        checkpoints.close()


@pytest.mark.parametrize("gone, said", [("1", False), ("2", True), ("2.damaged", False)])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_best_checkpoint_that_is_gone_is_said(tmp_path, capsys, gone, said, read_only):
    """Until another is saved: then it is the best of what there is."""
    keep = Keep.parse("9,best=1,min:fid")
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step, fid in ((1, 1.0), (2, 1.0), (3, 3.0)):
        checkpoints.save(step, tree(step), {"fid": fid})
    checkpoints.close()
    if gone == "2.damaged":
        rewritten(tmp_path / "2", rank=None)
    else:
        shutil.rmtree(tmp_path / gone)
    for other in ("9,best=1,max:fid", "9"):
        Checkpoints(tmp_path, keep=Keep.parse(other), read_only=True).restore(ABSTRACT)
    assert "the best one" not in capsys.readouterr().out
    checkpoints = Checkpoints(tmp_path, keep=keep, read_only=read_only)
    assert checkpoints.restore(ABSTRACT)[0] == 3
    warned = f"{tmp_path / '2'}, the best one, is gone" in capsys.readouterr().out
    assert warned == said
    if not read_only:
        checkpoints.save(4, tree(4), {"fid": 4.0})
        assert checkpoints.restore(ABSTRACT)[0] == 4
        assert "the best one" not in capsys.readouterr().out
    checkpoints.close()


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_what_is_not_finite_ranks_no_checkpoint(tmp_path, value):
    checkpoints = Checkpoints(tmp_path, keep=Keep.parse("1,max:fid"))
    for step, fid in ((1, 3.0), (2, value), (3, 2.0)):
        checkpoints.save(step, tree(step), {} if fid is None else {"fid": fid})
    checkpoints.close()
    assert on_disk(tmp_path) == [1, 3]


def test_a_checkpoint_of_another_step_or_run_is_not_used(tmp_path, capsys):
    """A copy under a greater number would end the run before its time; that of another seed is not what was trained."""
    for run in "ab":
        checkpoints = Checkpoints(tmp_path / run, run=run)
        checkpoints.save(12, tree(12))
        checkpoints.close()
    shutil.copytree(tmp_path / "a/12", tmp_path / "a/20")
    shutil.copytree(tmp_path / "b/12", tmp_path / "a/30")
    reader = Checkpoints(tmp_path / "a", run="a", read_only=True)
    assert reader.restore(ABSTRACT, step=20) is None
    assert reader.restore(ABSTRACT)[0] == 12
    checkpoints = Checkpoints(tmp_path / "a", run="a")
    capsys.readouterr()
    assert checkpoints.restore(ABSTRACT)[0] == 12
    said = capsys.readouterr().out
    assert f"{tmp_path / 'a/30'} is not used: it is of run b, and this is run a" in said
    assert f"{tmp_path / 'a/20'} is not used: it is of step 12" in said
    checkpoints.close()
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"12", "20.damaged", "30.damaged"}
    why = r"its 1 checkpoint cannot be read \(12 is not used: it is of run b, and this is run a\)"
    with pytest.raises(UserError, match=why + "; move "):
        Checkpoints(tmp_path / "b", run="a").restore(ABSTRACT)


def test_a_checkpoint_of_an_earlier_version_is_refused_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tree(step))
    checkpoints.close()
    rewritten(tmp_path / "1", content=b'{"format": 1, "leaves": {}}')
    with pytest.raises(UserError, match="1: was saved by another version of bpgan"):
        Checkpoints(tmp_path).restore(ABSTRACT)
    assert on_disk(tmp_path) == [1, 2]


def test_one_that_is_asked_for_and_damaged_is_none(tmp_path, capsys):
    """The others may be sound: nobody is told to start afresh, least of all a reader."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tree(step))
    checkpoints.close()
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.restore(ABSTRACT, step=1) is None
    assert f"{tmp_path / '1'} is damaged" in capsys.readouterr().out
    assert reader.restore(ABSTRACT)[0] == 2
    shutil.rmtree(tmp_path / "2")
    reader = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UserError, match=r"its 1 checkpoint cannot be read \(1 is damaged: .*\)$"):
        reader.restore(ABSTRACT)


@pytest.mark.parametrize(
    "text",
    ["", "0", "x", "3,", "3,best=0,min:a", "3,best=2", "3,min:", "3,least:a", "-1", "3,best=1"],
)
def test_bad_keep(text):
    with pytest.raises(ValueError, match="must be N or N,best=M,min:METRIC"):
        Keep.parse(text)


def test_manifest_has_type_shape_and_checksum_of_every_array(tmp_path):
    """CRC-32 of the little-endian bytes, as zlib and every archive tool compute it."""
    import zlib

    checkpoints = Checkpoints(tmp_path)
    values = {
        "a": jnp.array([1.0, -0.0, jnp.nan]),
        "b": {"c": jnp.zeros((1, 2), jnp.int8)},
        "d": jnp.bool_(True),
    }
    checkpoints.save(7, values)
    checkpoints.close()
    (file,) = (tmp_path / "7/manifest").glob("metadata")
    leaves = json.loads(file.read_text())["leaves"]
    expected = np.array([1.0, -0.0, np.nan], "<f4").tobytes()
    manifest = json.loads(file.read_text())
    crc = manifest.pop("crc")
    assert crc == zlib.crc32(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
    assert leaves == {
        "a": ["float32", [3], zlib.crc32(expected)],
        "b/c": ["int8", [1, 2], zlib.crc32(bytes(2))],
        "d": ["bool", [], zlib.crc32(b"\x01")],
    }


def test_leftovers_of_killed_saves_are_removed(tmp_path):
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(ABSTRACT) is None
    checkpoints.save(3, tree(3))
    checkpoints.close()
    assert on_disk(tmp_path) == [3] and not list(tmp_path.glob("*tmp*"))


def test_a_save_that_fails_is_one_line(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "x")
    checkpoints.save(1, tree(1))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "x")

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmany\nlines")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UserError) as caught:
        checkpoints.save(2, tree(2))
    message = str(caught.value)
    assert "checkpoint of step 2" in message and "No space left" in message and "\n" not in message
    assert "that of step 1 is kept" in message
    checkpoints.close()
    checkpoints.close()
