"""Tables of a comparison: on a page, and for a paper."""

import html
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple


class Link(NamedTuple):
    """Text that leads to a file; one without a target is text alone."""

    text: str
    to: str = ""


Cell = str | tuple[Link, ...]


class Table(NamedTuple):
    """Rows of texts under a head.

    Attributes:
      title: what all numbers have in common.
      head: of each column; what stands behind a line break is small.
      rows: each as long as the head.
      best: row and column of the cells that stand out.
      foot: rows of what stands beside, such as real images.
      notes: sentences under it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    best: Collection[tuple[int, int]] = ()
    foot: Sequence[Sequence[Cell]] = ()
    notes: Sequence[str] = ()

    def without_links(self) -> "Table":
        """Without its last column, whose cells are links."""
        return self._replace(head=self.head[:-1], rows=[row[:-1] for row in self.rows])

    def html(self) -> str:
        """As HTML, in a page that has ``plot.PAGE_STYLE``; it scrolls where it is wider than the page."""
        title = f"<h3>{html.escape(self.title)}</h3>" if self.title else ""
        head = "".join(map(_th, self.head))
        body = "".join(
            "<tr>" + "".join(_td(cell, (i, j) in self.best) for j, cell in enumerate(row)) + "</tr>"
            for i, row in enumerate(self.rows)
        )
        foot = "".join("<tr>" + "".join(_td(cell) for cell in row) + "</tr>" for row in self.foot)
        notes = "".join(f'<p class="about">{html.escape(note)}</p>' for note in self.notes)
        return (
            f'{title}<div class="scroll"><table class="table"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>{notes}"
        )

    def text(self) -> list[str]:
        """Lines for a terminal: title, head and rows, without what is small in the head."""
        rows = [[text.partition("\n")[0] for text in self.head]]
        rows += [[_text(cell) for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        padded = (
            (text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows
        )
        return [self.title, *("  " + "  ".join(row).rstrip() for row in padded)]

    def latex(self) -> str:
        """As a LaTeX table of the package ``booktabs``, under its title as a comment."""
        lines = [f"% {_one_line(text)}" for text in (self.title, *self.notes) if text]
        columns = "l" + "r" * (len(self.head) - 1)
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _tr(self.head), r"\midrule"]
        lines += [
            _tr([_text(cell) for cell in row], [j for j in range(len(row)) if (i, j) in self.best])
            for i, row in enumerate(self.rows)
        ]
        if self.foot:
            lines += [r"\midrule", *(_tr([_text(cell) for cell in row]) for row in self.foot)]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _th(text: str) -> str:
    first, _, rest = text.partition("\n")
    small = f"<br><small>{html.escape(rest)}</small>" if rest else ""
    return f"<th>{html.escape(first)}{small}</th>"


_LONG = 40  # letters of a cell that may have several lines


def _td(cell: Cell, best: bool = False) -> str:
    kind = ""
    if isinstance(cell, str):
        text, kind = html.escape(cell), ' class="long"' if len(cell) > _LONG else ""
    else:
        text = " ".join(
            f'<a href="{html.escape(link.to)}">{html.escape(link.text)}</a>'
            if link.to
            else html.escape(link.text)
            for link in cell
        )
    return f"<td{kind}>{f'<b>{text}</b>' if best else text}</td>"


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else " ".join(link.text for link in cell)


def _tr(cells: Sequence[str], bold: Collection[int] = ()) -> str:
    texts = [
        rf"\textbf{{{_latex(cell)}}}" if j in bold else _latex(cell) for j, cell in enumerate(cells)
    ]
    return " & ".join(texts) + r" \\"


_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "→": r"$\to$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$", "–": "--",
    "<": r"\textless{}", ">": r"\textgreater{}",
    **{c: rf"\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in _one_line(text))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
