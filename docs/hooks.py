"""What mkdocs adds to the pages of this folder: pages made of the code, and links to files beside the folder.

``make docs`` loads this file twice: as mkdocs' hooks, and as an extension of griffe, which reads the docstrings.
"""

import ast
import posixpath
import re
import sys
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from checks import rooms as table_of_rooms  # noqa: E402

from bpgan import cli  # noqa: E402
from bpgan.cli import experiments  # noqa: E402
from bpgan.launcher import flags as launcher  # noqa: E402

MIRRORED = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/RESULTS.md")
"""Files of the repository that are pages of the site, too, under the same names."""
MIRRORED += tuple(f"notebooks/{path.name}" for path in sorted(ROOT.glob("notebooks/*.ipynb")))
LINK = re.compile(r"(\]\()([^)#:\s]+)")


def rooms() -> dict[str, list[str]]:
    """The rooms of the library, each with its public modules."""
    found = {room: [] for room in table_of_rooms.ROOMS if room.startswith("bpgan.")}
    for path in table_of_rooms.files():
        name = table_of_rooms.name_of(path)
        if (
            "__main__" not in name
            and (room := table_of_rooms.room_of(name)) in found
            and name != room
        ):
            found[room].append(name)
    return found


def api(room: str, modules: list[str]) -> str:
    """The page of a room: its docstring and what its own file defines, and then each module of a folder."""
    says = table_of_rooms.ROOMS[room].says
    lines = [f"# {room}", f"{says[0].upper()}{says[1:]}.", f"::: {room}"]
    if modules:  # what the file of a folder only hands on is shown where it is defined
        tree = ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text("utf-8"))
        own = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        shown = ", ".join(name for name in own if not name.startswith("_"))
        lines[-1] += f"\n    options:\n      members: [{shown}]"
    for module in modules:
        lines += [f"## {module}", f"::: {module}"]
    return "\n\n".join(lines) + "\n"


def page_of(room: str) -> str:
    """The page that shows a room."""
    return f"reference/api/{room.removeprefix('bpgan.')}.md"


def on_config(config):
    """Lists the rooms in the navigation."""
    for section in config.nav:
        for entry in next(iter(section.values())):
            if isinstance(entry, dict) and "API" in entry:
                entry["API"] = [page_of(room) for room in rooms()]
    return config


def on_files(files: Files, config) -> Files:
    """Adds the pages that are not files of the folder."""
    for name in MIRRORED:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for room, modules in rooms().items():
        files.append(File.generated(config, page_of(room), content=api(room, modules)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Links lead to pages of the site; the tables of flags are filled in."""
    del config
    here = page.file.src_uri
    at = here if here in MIRRORED else f"docs/{here}"  # in the repository

    def link(found: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(at), found[2]))
        there = target.removeprefix("docs/")
        if there not in files.src_uris or (there == target and target not in MIRRORED):
            return found[0]  # mkdocs says so if nothing is there
        return found[1] + posixpath.relpath(there, posixpath.dirname(here) or ".")

    markdown = LINK.sub(link, markdown)
    if "<!-- flags -->" in markdown:
        markdown = markdown.replace("<!-- flags -->", flags())
    return markdown


def flags() -> str:
    """The flags of the launcher, of every experiment and of each, as tables."""

    def table(specs, star: bool = True) -> str:
        rows = []
        for flag in specs:
            bounds = f" ({flag.bounds})" if flag.bounds else ""
            mark = " \\*" if flag.restart_safe and star else ""
            text = (flag.help + bounds).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
            rows.append(f"| `--{flag.name}={cli.show(flag.default)}` | {text}{mark} |")
        return "\n".join(["| flag and default | |", "|---|---|", *rows])

    parts = ["## The launcher", "`python launch.py`, or `bpgan` where it is installed."]
    parts += [table(launcher.TABLE, star=False), "## Every experiment that trains"]
    parts += ["A \\* marks what may differ when an interrupted run is resumed."]
    parts += [table(cli.flags_of(cli.RunConfig).values())]
    for name in experiments.names():
        script = experiments.find(name)
        shared = (cli.RunConfig if script.trains else cli.Config).__dataclass_fields__
        own = [f for f in cli.flags_of(script.config).values() if f.name not in shared]
        parts += [f"## {name}", f"```text\n{cli.docstring_of(script.module)}\n```", table(own)]
        presets = [
            f"| `{preset}` | "
            + " ".join(f"`--{k}={cli.show(v)}`" for k, v in values.items())
            + " |"
            for preset, values in script.presets.items()
        ]
        parts += ["\n".join(["| preset | flags that it sets |", "|---|---|", *presets])]
    return "\n\n".join(parts)


# Docstrings ---------------------------------------------------------------------------------------------------------

RULE = re.compile(r" *=+(?:  +=+)+ *")


def in_markdown(text: str) -> str:
    """A docstring, whose tables, literal blocks and doctests have the forms of plain text, as Markdown."""
    lines, out, i = text.splitlines(), [], 0
    while i < len(lines):
        line = lines[i]
        if RULE.fullmatch(line):
            end = max(j for j in range(i, len(lines)) if RULE.fullmatch(lines[j]) and j <= i + 60)
            out += ["", *_table(lines[i : end + 1]), ""]
            i = end
        elif line.lstrip().startswith(">>> "):
            indent = line[: len(line) - len(line.lstrip())]
            out.append(f"{indent}```pycon")
            while i < len(lines) and lines[i].strip():
                out.append(lines[i])
                i += 1
            out += [f"{indent}```", ""]
        else:
            out.append(line[:-1] if line.endswith("::") else line)
        i += 1
    return "\n".join(out)


def _table(lines: list[str]) -> list[str]:
    """A simple table of reStructuredText as one of Markdown; its rules say where the columns are."""
    starts = [match.start() for match in re.finditer(r"=+", lines[0])]
    ends = [*starts[1:], None]
    rows: list[list[str]] = []
    for line in lines[1:]:
        if RULE.fullmatch(line) or not line.strip():
            continue
        cells = [line[a:b].strip() for a, b in zip(starts, ends, strict=True)]
        if cells[0] or not rows:
            rows.append(cells)
        else:  # the line before goes on
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    indent = " " * starts[0]
    head = [f"{indent}|" + " |" * len(starts), f"{indent}|" + "---|" * len(starts)]
    return head + [
        f"{indent}| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    ]


class Docstrings(griffe.Extension):
    """Hands griffe docstrings in Markdown."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = in_markdown(obj.docstring.value)
