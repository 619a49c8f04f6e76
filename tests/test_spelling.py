"""One spelling, American, in code, messages and pages."""

import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "*.py", "*.toml", "*.txt", "Makefile", ".ci/*")
    for path in ROOT.glob(pattern)
) + sorted(
    path
    for folder in ("bpgan", "experiments", "tests", "benchmarks", "docs")
    for kind in ("py", "md", "html", "sh")
    for path in ROOT.glob(f"{folder}/**/*.{kind}")
)
# CHANGELOG.md names what was renamed, and this file what is looked for.
PAGES = [
    path
    for path in PAGES
    if path.is_file() and path.name not in ("CHANGELOG.md", "test_spelling.py")
]

ISE = (
    "optim normal regular initial summar memor general standard vector discret factor random organ recogn real minim"
    " maxim penal parametr serial synchron util visual character equal special stabil linear quant categor modern"
    " local final prior custom symmetr neutral harmon diagonal triangular materi monopol author emphas capital"
    " item token central binar digit crystall apolog critic legal scal ideal steril global orthogonal orthonormal"
).split()
BRITISH = re.compile(
    rf"(?:{'|'.join(ISE)})is(?:e|ed|er|ers|es|ing|ation|ations|able)(?![a-z])"
    r"|analys(?:e|ed|er|ing)(?![a-z])"
    r"|(?:col|behavi|fav|hon|lab|neighb|rum|vig|hum|arm)our"
    r"|grey|(?:cent|theat|fib|calib|lit)re(?:s|d)?(?![a-z])|(?<![a-z])(?:kilo|milli)?metres?(?![a-z])"
    r"|(?:model|label|cancel|travel|signal|total|level|fuel|channel|unravel|tunnel)l(?:ed|ing|er)(?![a-z])"
    r"|catalogue|artefact|judgement|licence|defence|offence|sceptic|programme(?![a-z])|whilst|amongst|ageing"
    r"|(?<![a-z])fulfil(?![a-z]|l)|(?<![a-z])skilful|(?<![a-z])plough|(?<![a-z])tyre|(?<![a-z])cheque(?![a-z])",
    re.IGNORECASE,
)
OTHERS = {"CANCELLED"}
"""Words that belong to others: a state of Slurm's jobs."""


@functools.cache
def is_british(word: str) -> bool:
    """Whether a word is spelled the British way. A page has each of its words many times."""
    return word not in OTHERS and BRITISH.search(word) is not None


def british(text: str) -> list[str]:
    """The words in a text that are spelled the British way."""
    return [word for word in re.findall(r"[^\W\d_]+", text) if is_british(word)]


def test_spelling_is_american():
    assert len(PAGES) > 150
    found = []
    for path in PAGES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if words := british(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {', '.join(words)}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "optimiser",
        "Normalise",
        "the nearest neighbours",
        "GREY",
        "a centred image",
        "cancelled",
        "vectorised",
    ],
)
def test_a_british_word_is_found(text):
    assert british(text)


@pytest.mark.parametrize(
    "text",
    ["relativistic", "realistic", "a promise, precise", "analysis", "entire", "parameters", "four hours", "CANCELLED",
     "advertise", "exercise", "emphasis", "greedy", "centered", "labeled", "likewise", "pour"],
)  # fmt: skip
def test_other_words_are_not(text):
    assert not british(text)
