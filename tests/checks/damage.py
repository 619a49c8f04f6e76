"""Damages of files, as disks, editors, copies and synchronizers make them; each a function of a seed."""

import json
import os
import pathlib
import shutil


def files(folder):
    """All files below a folder, the small ones of a run as often as the many of its checkpoints."""
    found = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file() and not p.is_symlink())
    top = [p for p in found if p.parent == pathlib.Path(folder) or p.parent.name == "samples"]
    return found, top


def flip(path, rng):
    """One bit."""
    raw = bytearray(path.read_bytes() or b"\0")
    raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    path.write_bytes(raw)


def scramble(path, rng):
    """A block of random bytes."""
    raw = bytearray(path.read_bytes())
    start = int(rng.integers(len(raw) + 1))
    raw[start : start + 64] = rng.bytes(min(64, len(raw) - start))
    path.write_bytes(raw)


def zeros(path, rng):
    """A block that was never written, as after a loss of power."""
    raw = bytearray(path.read_bytes())
    start = int(rng.integers(len(raw) + 1))
    raw[start:] = bytes(len(raw) - start)
    path.write_bytes(raw)


def truncate(path, rng):
    os.truncate(path, rng.integers(path.stat().st_size + 1))


def empty(path, rng):
    os.truncate(path, 0)


def remove(path, rng):
    path.unlink()


def folder(path, rng):
    """A directory in its place."""
    path.unlink()
    path.mkdir()


def dangling(path, rng):
    """A link to nothing in its place."""
    path.unlink()
    path.symlink_to("nowhere")


def longer(path, rng):
    """Something appended."""
    with path.open("ab") as file:
        file.write(
            rng.choice([b"\0" * 50, b"{}\n", b"[[[[", b"\n\n", b"\xff\xfe", b'{"step": 3}\n'])
        )


def other(path, rng):
    """The content of another file of the same directory."""
    others = [p for p in path.parent.iterdir() if p.is_file() and p != path]
    if others:
        shutil.copyfile(others[rng.integers(len(others))], path)


def reshape(path, rng):
    """If it is JSON: one value of another type."""
    values = [None, [], {}, "", "x", -1, 0, 1e308, float("nan"), 10**30, True, [[]], {"a": 1}]
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        whole = False
    except ValueError:
        try:
            lines, whole = [json.loads(path.read_text())], True
        except ValueError:
            return flip(path, rng)
    if not lines:
        return empty(path, rng)
    node = lines[rng.integers(len(lines))]
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[rng.integers(len(keys))]
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
            if isinstance(node, dict) and rng.random() < 0.3:
                del node[key]
            else:
                node[key] = values[rng.integers(len(values))]
            break
        node = inner
    text = json.dumps(lines[0], indent=2) if whole else "\n".join(map(json.dumps, lines)) + "\n"
    path.write_text(text)


KINDS = (
    flip, scramble, zeros, truncate, empty, remove, folder, dangling, longer, other, reshape, reshape
)  # fmt: skip


def strike(folder, rng):
    """Damages one file below a folder; says which and how."""
    found, top = files(folder)
    chosen = top if top and rng.random() < 0.6 else found
    path = chosen[rng.integers(len(chosen))]
    kind = KINDS[rng.integers(len(KINDS))]
    kind(path, rng)
    return f"{kind.__name__} {path.relative_to(folder)}"
