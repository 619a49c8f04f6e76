"""Files that are read back: whatever is in them, they are what they must be or one line says what is wrong."""

import contextlib
import copy
import csv
import json
import math
import os
import random

import pytest

from bpgan import files
from bpgan.files import Damaged
from bpgan.report import compare
from bpgan.report import page as report
from bpgan.runtime import records
from bpgan.types import UserError

RUN = {
    "experiment": "mnist_gan",
    "config": {"lr": 1e-3, "steps": 100, "keep": "3", "tensorboard": True, "seed": 2**32 - 1},
    "data": "ab" * 32,
    "images_per_step": 64,
    "versions": {"jax": "0.10", "numpy": "2.1"},
    "devices": ["cpu:0 cpu"],
    "git": None,
    "command": "python -m experiments.mnist_gan --lr=1e-3",
    "group": {"lowering": "map", "members": ["runs/a", "runs/b"]},
}
RESULT = {
    "status": "done",
    "step": 100,
    "metrics": {"d/loss": 0.5, "eval/FD": math.nan, "g/loss": math.inf},
    "anomalies": ["step 3: d/loss jumped"],
    "timings": {"total_s": 1.5},
    "config": {"lr": 1e-3},
}
LINE = {"step": 10, "epoch": 0.5, "d/loss": 0.25, "eval/FD": math.nan, "anomaly": "d/loss jumped"}
EVALUATION = {
    "metric": "FD-<net>",
    "value": 41.5,
    "real": 7.25,
    "untrained": None,
    "step": 9,
    "flags": "truncation=0.7",
    "features": "net",
    "features_sha256": "ab",
    "n": 300,
}
LEDGER = {"seconds": 12.5, "rungs 01ab": [[1.0, math.inf], [2.0]]}
JOB = {"cluster": "slurm", "folder": "f", "id": "3_1", "command": ["python", "-m", "x"]}
KINDS = {
    "config.json": (records.read_run, RUN),
    "result.json": (records.read_result, RESULT),
    "metrics.jsonl": (records.read_log, LINE),
    "metrics.json": (records.read_evaluations, [EVALUATION, EVALUATION]),
    "sweep_lr.json": (records.read_ledger, LEDGER),
    "run.job": (records.read_job, JOB),
}
ODD = (None, True, -1, 0, 2**63 - 1, 2**63, 10**400, 1.5, 1e308, -1e308, math.nan, -math.inf, "", "text", "\ud800",
       "<script>", "a\nb", "\0", "9" * 3000, [], [[]], [1, "a"], {}, {"": 1}, {"a": {"b": None}})  # fmt: skip
BYTES = (b"", b"\0", b"\xff\xfe", b"null", b"[" * 50_000, b'{"a":' * 50_000, b"1" * 5000, b"\xef\xbb\xbf{}",
         b'"\\ud800"', b'{"step": 1, "step": 2}', b"{}{}", b"1e999999", b"NaN", b"[1,]", b"// no")  # fmt: skip


def places(value, at=()):
    """The paths of all values in a document."""
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def listed(value):
    return value if isinstance(value, list) else [value]


def plain(record):
    return record if isinstance(record, dict) else records.fields(record)


def same(found, document):
    """Whether all of a document is found as it was written, NaN and Infinity, too."""
    found = plain(found)
    return repr({key: found[key] for key in document}) == repr(document)


def crafted(document, generator):
    """The document with one thing wrong with it, or two; as bytes."""
    document = copy.deepcopy(document)
    for _ in range(generator.choice((1, 1, 2))):
        at = generator.choice(list(places(document)))
        if not at:
            continue
        parent = document
        for key in at[:-1]:
            parent = parent[key]
        if generator.random() < 0.2:
            del parent[at[-1]]
        else:
            parent[at[-1]] = copy.deepcopy(generator.choice(ODD))
    raw = json.dumps(document).encode()
    wrong = generator.randrange(8)
    at = generator.randrange(len(raw) + 1)
    if wrong == 0:
        raw = generator.choice(BYTES)
    elif wrong == 1:
        raw = raw[:at]
    elif wrong == 2:
        raw = (
            raw[:at]
            + generator.choice((b"\0", b"\xc3", b"{", b'"', b",", b"-", b"9" * 30))
            + raw[at:]
        )
    elif wrong == 3:
        raw = raw.replace(b", ", b', "step": 3, "metric": 3, ', 1)
    return raw


def many(name, count=300):
    """Crafted files of one kind; the same ones every time."""
    _, document = KINDS[name]
    generator = random.Random(name)
    for _ in range(count):
        raw = crafted(document, generator)
        yield raw + b"\n" if name.endswith(".jsonl") else raw


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_read(tmp_path, name):
    read, document = KINDS[name]
    path = tmp_path / name
    assert not read(path)
    if name.endswith(".jsonl"):
        path.write_text(json.dumps(document) + "\n")
        (found,) = read(path)
    else:
        files.write_json(path, document)
        found = read(path)
    assert all(map(same, listed(found), listed(document)))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", KINDS)
def test_any_file_is_read_or_named_in_one_line(tmp_path, name):
    """Of 300 crafted files of each kind; whatever is accepted can be written again."""
    read, _ = KINDS[name]
    path, refused = tmp_path / name, 0
    for raw in many(name):
        path.write_bytes(raw)
        try:
            found = read(path)
        except Damaged as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error), raw
            assert str(error).isprintable() and len(str(error)) < len(str(path)) + 250, raw
            assert error.path == path
        else:
            json.dumps([plain(each) for each in listed(found)], ensure_ascii=False).encode()
    assert 100 < refused < 300


@pytest.mark.parametrize(
    "raw, said",
    [
        (b'{"status": "done"}', "Object missing required field step"),
        (b'{"status": "done", "step": 1.0}', "step: Expected int, got float"),
        (b'{"status": "done", "step": true}', "step: Expected int, got bool"),
        (b'{"status": "done", "step": -1}', "step: Expected int >= 0"),
        (b'{"status": "done", "step": 1, "metrics": {"a": 1, "b": "x"}}', "metrics['b']: Expected float, got str"),
        (b'{"status": "done", "step": 1, "status": "x"}', "the key 'status' occurs twice"),
        (b'{"status": "done", "step": 1' + b"0" * 5000 + b"}", "has more than 64 bits"),
        (b'{"status": "\\ud800", "step": 1}', "surrogates not allowed"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff{}", "can't decode byte 0xff"),
        (b"", "Expecting value"),
    ],
)  # fmt: skip
def test_it_is_said_what_is_wrong_with_which_key(tmp_path, raw, said):
    (tmp_path / "result.json").write_bytes(raw)
    with pytest.raises(Damaged) as error:
        records.read_result(tmp_path / "result.json")
    assert said in error.value.reason


def test_what_is_no_file_is_named(tmp_path):
    """A directory, a pipe (which would never end), a device, and links to nothing or to themselves."""
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, said in {
        "directory": "is a directory",
        "pipe": "is no regular file",
        "device": "is no regular file",
        "dangling": "is a link to a file that is not there",
        "loop": "cannot be read (Too many levels of symbolic links)",
    }.items():
        for read, _ in KINDS.values():
            with pytest.raises(Damaged) as error:
                read(tmp_path / name)
            assert error.value.reason.startswith(said)
    (tmp_path / "large").write_bytes(b"{}")
    os.truncate(tmp_path / "large", 1 << 40)  # a hole: nothing is on the disk
    with pytest.raises(Damaged, match="must have at most"):
        records.read_run(tmp_path / "large")
    assert records.read_run(tmp_path / "large" / "config.json") is None


def test_a_warning_is_given_once(tmp_path, capsys):
    (tmp_path / "result.json").write_text("{torn")
    for _ in range(3):
        assert records.sound(records.read_result, tmp_path / "result.json") is None
    said = capsys.readouterr().err
    assert (
        said.startswith(f"warning: {tmp_path / 'result.json'}: is damaged")
        and said.count("\n") == 1
    )


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    files.write_json(tmp_path / "a.json", [1])
    for bad in ({1, 2}, "\ud800"):
        with pytest.raises((TypeError, ValueError)):
            with files.replaced(tmp_path / "a.json") as path:
                path.write_text(json.dumps(bad, ensure_ascii=False), encoding="utf-8")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "[\n  1\n]\n")]


def test_a_link_in_the_way_leads_to_no_other_file(tmp_path):
    (tmp_path / "theirs").write_text("kept")
    (tmp_path / "a.json.tmp").symlink_to("theirs")
    (tmp_path / "a.json").symlink_to("theirs")
    files.write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "theirs").read_text() == "kept" and (
        tmp_path / "a.json"
    ).read_text() == "1\n"


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    """What a spreadsheet would compute is text; numbers stay numbers, in full."""
    rows = [
        {"=name": "=cmd|' /C calc'!A0", "lr": -1e-7, "b": "-0.5", "c": "+1", "d": "@SUM(A1)", "n": -math.inf},
        {"=name": "-x", "lr": 1 / 3, "b": "1e-4", "c": "\t=1", "d": 'a,"b"\nc', "n": None},
    ]  # fmt: skip
    files.write_csv(tmp_path / "t.csv", list(rows[0]), [list(row.values()) for row in rows])
    with (tmp_path / "t.csv").open(newline="") as file:
        names, first, second = csv.reader(file)
    assert names == ["'=name", "lr", "b", "c", "d", "n"]
    assert first == ["'=cmd|' /C calc'!A0", "-1e-07", "-0.5", "+1", "'@SUM(A1)", "-inf"]
    assert second == ["'-x", repr(1 / 3), "1e-4", "'\t=1", 'a,"b"\nc', ""]


@pytest.mark.medium
@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith(("sweep", "run."))])
def test_any_run_directory_has_a_report_and_a_place_in_a_comparison(tmp_path, monkeypatch, name):
    """Of 300 crafted files of each kind beside sound ones; drawing has its own tests, and takes longer."""
    monkeypatch.setattr(report.plot, "write_svg", lambda *_, **__: None)
    monkeypatch.setattr(records, "warn", lambda text: None)
    for each, (_, document) in KINDS.items():
        (tmp_path / each).write_text(json.dumps(document) + "\n")
    reports = 0
    for raw in many(name):
        (tmp_path / name).write_bytes(raw)
        try:
            page = report.write_report(tmp_path).read_bytes()
        except Damaged as error:
            assert name == "config.json" and error.path == tmp_path / name
            page = b""
        assert b"<script>alert" not in page and page.count(b"<script") in (0, 2), raw
        with contextlib.suppress(UserError):  # holds no run
            runs = compare.read([tmp_path])
            page = compare.write(runs, "", tmp_path / "out").read_bytes()
            compare.rows(compare.settings(runs), compare.shown_metrics(runs, ""))
            assert b"<script>alert" not in page and page.count(b"<script") == 2, raw
            reports += 1
    assert reports > (50 if name == "config.json" else 299)
