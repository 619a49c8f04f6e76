"""What a compiled program consists of, read from XLA's texts: the optimized HLO, and the GPU backend's list of thunks.

Pure functions of text. A *kernel* is an instruction that the device launches: a fusion, a call of a library, a copy.
Parameters, tuples and views cost nothing; a loop or branch is counted by what it contains.
"""

import collections
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([\d,]*))?")
_NAME = re.compile(r"%([\w.\-]+)")
_FREE = frozenset(
    "parameter get-tuple-element tuple bitcast constant after-all iota while conditional call partition-id replica-id"
    " opt-barrier get-dimension-size add-dependency domain".split()
)
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_VIEWS = ("bitcast", "get-tuple-element")
_PICKS = ("gather", "dynamic-slice", "slice")
_BESIDE = ("copy-start", "slice-start")
"""Copies between the memories of a TPU, which runs other kernels at the same time."""


class Instruction(NamedTuple):
    """A line of HLO: its name, its type as text, its opcode and the rest of the line from its operands on."""

    name: str
    type: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        depth = 1
        for i, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return _NAME.findall(self.rest[:i])
        return _NAME.findall(self.rest)

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations in these attributes."""
        found = []
        for attribute in attributes:
            for one, many in re.findall(
                rf"\b{attribute}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", self.rest
            ):
                found += [one] if one else [name.strip().lstrip("%") for name in many.split(",")]
        return found


class Kernels(NamedTuple):
    """Kernels of a computation and of the loops and branches in it.

    Attributes:
      own: of the computation itself.
      loops: those of each loop's body, and how often it runs (0: not known before it runs).
      branches: those of each branch of each conditional.
    """

    own: int
    loops: tuple[tuple["Kernels", int], ...] = ()
    branches: tuple[tuple["Kernels", ...], ...] = ()

    @property
    def total(self) -> int:
        """Launches, if each conditional takes its longest branch and loops of unknown length run once."""
        loops = sum(max(times, 1) * body.total for body, times in self.loops)
        return self.own + loops + sum(max(b.total for b in each) for each in self.branches)

    def __str__(self) -> str:
        """``387 + 5 x 439 + n x 1 + (35 | 41)``."""
        parts = [str(self.own)]
        parts += [f"{times or 'n'} x {_within(body)}" for body, times in self.loops]
        parts += [f"({' | '.join(map(str, each))})" for each in self.branches]
        return " + ".join(parts)


def _within(kernels: Kernels) -> str:
    text = str(kernels)
    return f"({text})" if " + " in text else text


class Module:
    """An optimized HLO module.

    Args:
      text: of ``compiled.as_text()``.
    """

    def __init__(self, text: str):
        self.text = text
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        now = None
        for line in text.splitlines():
            if head := _HEAD.match(line):
                now = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("}"):
                now = None
            elif now is not None and (found := _INSTRUCTION.match(line)):
                now.append(Instruction(*found.groups()))
        self._defined = {
            instruction.name: instruction
            for body in self.computations.values()
            for instruction in body
        }

    def kernels(self, name: str) -> Kernels:
        """Those of a computation."""
        own, loops, branches = 0, [], []
        for instruction in self.computations[name]:
            match instruction.opcode:
                case "while":
                    (body,) = instruction.called("body")
                    loops.append((self.kernels(body), _trips(instruction)))
                case "conditional":
                    branches.append(tuple(map(self.kernels, _branches(instruction))))
                case "call":
                    inner = self.kernels(instruction.called("to_apply")[0])
                    own, loops, branches = (
                        own + inner.own,
                        [*loops, *inner.loops],
                        [*branches, *inner.branches],
                    )
                case _:
                    own += _is_kernel(instruction)
        return Kernels(own, tuple(loops), tuple(branches))

    @property
    def step(self) -> str:
        """The computation of one step: the loop body of the entry with the most kernels, or the entry."""
        bodies = [
            body
            for i in self.computations[self.entry]
            if i.opcode == "while"
            for body in i.called("body")
        ]
        return max(bodies, key=lambda name: self.kernels(name).total, default=self.entry)

    def total(self, name: str, of: Callable[[Instruction], int]) -> int:
        """The sum of ``of`` over the instructions of a computation, and in its loops and branches.

        A loop counts as often as it runs, once if that is not known, and a conditional as its dearest branch.
        """
        found = 0
        for instruction in self.computations[name]:
            match instruction.opcode:
                case "while":
                    (body,) = instruction.called("body")
                    found += max(self._trips(instruction), 1) * self.total(body, of)
                case "conditional":
                    found += max(self.total(branch, of) for branch in _branches(instruction))
                case "call":
                    found += self.total(instruction.called("to_apply")[0], of)
                case _:
                    found += of(instruction)
        return found

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as XLA says, or, as it does not for a TPU, by its condition; 0 if it is not known."""
        *_, root = self.computations[loop.called("condition")[0]]
        end = self._defined.get(root.operands[-1]) if root.operands else None
        counts = root.opcode == "compare" and "direction=LT" in root.rest
        if counts and end is not None and end.opcode == "constant":
            return _trips(loop) or int(end.rest.partition(")")[0])
        return _trips(loop)

    def bytes(self, name: str) -> int:
        """Bytes that the kernels of a computation read and write, but those in a TPU's own small memories."""
        return self.total(name, lambda i: self._traffic(i) if _is_kernel(i) else 0)

    def operations(self, name: str) -> int:
        """Kernels of a computation, without what a TPU's scalar unit does, and its copies that run beside others."""
        return self.total(name, _is_operation)

    def communication(self, name: str) -> dict[str, list[int]]:
        """Of each kind of collective: how many a computation runs, and the bytes of their results."""
        found = {}
        for kind in COLLECTIVES:
            count = self.total(name, lambda i, kind=kind: _collective(i) == kind)
            if count:
                size = self.total(
                    name, lambda i, kind=kind: (_collective(i) == kind) * _result_of(i)
                )
                found[kind] = [count, size]
        return found

    def _traffic(self, kernel: Instruction) -> int:
        """Operands and results; of an operand that a fusion only picks rows from, and of one it updates, those rows."""
        types = [self._defined[name].type for name in kernel.operands if name in self._defined]
        if kernel.opcode in _BESIDE:  # of a whole array or of a slice, to or from the large memory
            (one, one_far), (other, other_far) = _arrays(kernel.type)[:2]
            return min(one, other) * (one_far + other_far)
        sizes, result = list(map(far_size_of, types)), far_size_of(kernel.type)
        if kernel.opcode in _PICKS:
            sizes[0] = min(sizes[0], size_of(kernel.type))
        if kernel.opcode != "fusion":
            return result + sum(sizes)
        body = self.computations[kernel.called("calls")[0]]
        users = collections.defaultdict(list)
        for instruction in body:
            for name in instruction.operands:
                users[name].append(instruction)
        for parameter in body:
            if parameter.opcode == "parameter":
                at, uses = int(parameter.rest.partition(")")[0]), users[parameter.name]
                while len(uses) == 1 and uses[0].opcode in _VIEWS:
                    uses = users[uses[0].name]
                if uses and all(i.opcode in _PICKS for i in uses):
                    sizes[at] = min(sizes[at], sum(size_of(i.type) for i in uses))
        return result + sum(sizes)

    def launched(self) -> Iterator[Instruction]:
        """The kernels of the entry and of all loops, conditions and branches below it."""
        waiting, seen = [self.entry], set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            for instruction in self.computations[name]:
                match instruction.opcode:
                    case "while":
                        waiting += instruction.called("body", "condition")
                    case "conditional":
                        waiting += _branches(instruction)
                    case "call":
                        waiting += instruction.called("to_apply")
                    case _ if _is_kernel(instruction):
                        yield instruction

    def collectives(self) -> dict[str, list[int]]:
        """Bytes of the result of each collective operation, by its kind."""
        found: dict[str, list[int]] = {}
        for body in self.computations.values():
            for instruction in body:
                if kind := _collective(instruction):
                    found.setdefault(kind, []).append(_result_of(instruction))
        return found

    def convolutions(self) -> list[tuple[str, bool]]:
        """cuDNN's convolutions: the name of the call, and whether the channels of its images lie side by side."""
        found = []
        for instruction in self.launched():
            target = re.search(r'custom_call_target="__cudnn\$(conv\w+)"', instruction.rest)
            labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
            if target and labels:
                # The image that is the result, or of a filter's gradient the first operand.
                filters = target[1] == "convBackwardFilter"
                image = self._defined[instruction.operands[0]].type if filters else instruction.type
                channel = labels[1 if filters or target[1] == "convBackwardInput" else 3].index("f")
                layout = _ARRAY.search(image)
                found.append((target[1], bool(layout) and _minor(layout[3]) == channel))
        return found

    def opcodes(self) -> collections.Counter[str]:
        """How often each opcode occurs, fused or not."""
        return collections.Counter(i.opcode for body in self.computations.values() for i in body)

    def types(self) -> collections.Counter[str]:
        """How many results there are of each element type."""
        return collections.Counter(
            found[0] for i in self._defined.values() for found in _ARRAY.findall(i.type)
        )

    def host_transfers(self) -> int:
        """Instructions that exchange data with the host, or that leave arrays in its memory."""
        codes = self.opcodes()
        named = sum(codes[c] for c in ("infeed", "outfeed", "send", "recv"))
        return named + len(re.findall(r"xla_\w*python|S\(5\)|annotate_device_placement", self.text))


def _minor(layout: str) -> int:
    return int(layout.partition(",")[0])


def _is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode not in _FREE and not instruction.opcode.endswith(("-done", "-update"))


def _is_operation(instruction: Instruction) -> bool:
    scalar = instruction.opcode != "fusion" and not re.search(
        r"\[(?!1\])[\d,]+\]", instruction.type
    )
    view = '"ConcatBitcast"' in instruction.rest
    return _is_kernel(instruction) and not (scalar or view or instruction.opcode in _BESIDE)


def _collective(instruction: Instruction) -> str:
    """The kind of a collective operation, or nothing."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else ""


def _trips(loop: Instruction) -> int:
    found = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.rest)
    return int(found[1]) if found else 0


def _branches(conditional: Instruction) -> list[str]:
    return conditional.called("true_computation", "false_computation", "branch_computations")


def _result_of(collective: Instruction) -> int:
    """Bytes of what a collective gives: a start of two parts holds its operands, too."""
    size = size_of(collective.type)
    if collective.opcode in ("all-gather-start", "collective-permute-start"):
        arrays = [size_of(m[0]) for m in _ARRAY.finditer(collective.type)]
        return sum(arrays[len(arrays) // 2 :])
    return size


def size_of(type_text: str) -> int:
    """Bytes of all arrays of a type, such as ``(f32[64,28]{1,0}, u8[0]{0})``."""
    return sum(
        _width(kind) * math.prod(int(d) for d in dims.split(",") if d)
        for kind, dims, _ in _ARRAY.findall(type_text)
    )


def far_size_of(type_text: str) -> int:
    """The same without arrays that a TPU has in one of its small memories, as ``S(1)`` in a layout says."""
    return sum(size for size, far in _arrays(type_text) if far)


def _arrays(type_text: str) -> list[tuple[int, bool]]:
    """Bytes of each array of a type, and whether it lies in the large memory."""
    ends = [m.end() for m in _ARRAY.finditer(type_text)]
    layouts = [type_text[end:].partition("}")[0].partition("[")[0] for end in ends]
    sizes = [size_of(m[0]) for m in _ARRAY.finditer(type_text)]
    return [(size, "S(" not in layout) for size, layout in zip(sizes, layouts, strict=True)]


def _width(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(int(bits[0]) // 8, 1) if bits else int(kind == "pred")


class Thunks(NamedTuple):
    """What the host of a GPU program does.

    Attributes:
      command_buffers: CUDA graphs it launches.
      loops, conditionals: those it decides itself, waiting for the device each time.
    """

    command_buffers: int
    loops: int
    conditionals: int


def thunks_of(text: str) -> Thunks:
    """Counts in XLA's dump of thunks; what lies inside a command buffer is decided on the device."""
    counts = collections.Counter(_outside_command_buffers(text.splitlines()))
    return Thunks(counts["kCommandBuffer"], counts["kWhile"], counts["kConditional"])


def _outside_command_buffers(lines: Iterable[str]) -> Iterator[str]:
    inside = None  # the indentation of the command buffer that the lines belong to
    for line in lines:
        found = re.match(r"(\s*)\d+: (k\w+)", line)
        indentation = len(line) - len(line.lstrip())
        if inside is not None and indentation > inside:
            continue
        if found:
            inside = indentation if found[2] == "kCommandBuffer" else None
            yield found[2]
