"""What a compiled program sends between devices, read out of its text.

XLA prints one computation after another, `%name (...) -> type {` to `}`, and in each one
instruction a line. A loop names its body and how often it runs; what stands in the body counts
that often.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SCATTER = "all-reduce-scatter"  # the TPU compiler's name of the fusion that is a reduce-scatter
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64}
BITS |= {f"{kind}{bits}": bits for kind in "su" for bits in (8, 16, 32, 64)}

_HEADER = re.compile(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s.*\{\s*$")
_COLLECTIVE = re.compile(rf"=\s(.*?)\s({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply|async_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"([0-9]+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r"= s32\[\]\S* constant\(([0-9]+)\)")
_GROUPS = re.compile(r"replica_groups=\[[0-9]+,([0-9]+)\]|replica_groups=\{\{([0-9,]*)\}")
_CHANNEL = re.compile(r"channel_id=([0-9]+)")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")


class Collective(NamedTuple):
    """One instruction of a program."""

    kind: str
    dtype: str  # of its largest array, as XLA writes it
    shape: tuple[int, ...]  # of its largest result, on one device
    result_bytes: int  # on one device, of all results of an instruction
    largest_bytes: int  # of `shape`
    devices: int  # of a group
    times: int  # that a step runs it

    @property
    def received(self) -> float:
        """Bytes each device receives in a step, around a ring."""
        other = self.devices - 1
        share = {
            "all-gather": other / self.devices,
            "all-reduce": 2 * other / self.devices,
            "reduce-scatter": other,  # the result is one part
            "all-to-all": other / self.devices,
            "collective-permute": 1,
        }[self.kind]
        return self.result_bytes * share * self.times


def _arrays(text: str) -> list[tuple[int, str, tuple[int, ...]]]:
    arrays = []
    for dtype, dims in _ARRAY.findall(text):
        if dtype in BITS:
            shape = tuple(map(int, dims.split(","))) if dims else ()
            arrays.append((math.prod(shape) * BITS[dtype] // 8, dtype, shape))
    return arrays


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(lines by name, name of the entry)."""
    computations, entry, name = {}, "", None
    for line in text.splitlines():
        if name is None:
            if (match := _HEADER.match(line)) and not line.startswith(" "):
                name = match[1]
                computations[name] = []
                entry = name if line.startswith("ENTRY") else entry
        elif line.rstrip() == "}":  # not the "}}," that ends a kernel's own lines
            name = None
        else:
            computations[name].append(line)
    return computations, entry


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop runs: as XLA notes it, or the bound that its condition compares with."""
    if match := _TRIPS.search(line):
        return int(match[1])
    condition = _CONDITION.search(line)
    lines = computations.get(condition[1], ()) if condition else ()
    return max((int(n) for n in _BOUND.findall("\n".join(lines))), default=1)


def _members(line: str, devices: int) -> int:
    """Devices that one collective joins."""
    if match := _MESH_GROUPS.search(line):
        sizes = dict(re.findall(r"'([^']+)'=([0-9]+)", match[1]))
        axes = re.findall(r"'([^']+)'(?::\([0-9]+\)([0-9]+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    match = _GROUPS.search(line)
    if match is None:
        return devices
    return int(match[1]) if match[1] else len(match[2].split(","))


def _times(computations: dict[str, list[str]], entry: str) -> Counter:
    """How often a step runs each computation."""
    times: Counter = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations.get(name, ()):
            trips = _trips(line, computations) if " while(" in line else 1
            called = _CALLED.findall(line)
            for group in _BRANCHES.findall(line):
                called += [each.strip().lstrip("%") for each in group.split(",")]
            for each in called:
                visit(each, count * trips)

    visit(entry, 1)
    return times


def collectives(text: str, devices: int) -> list[Collective]:
    """Those of a compiled program's text over that many devices, the largest first."""
    computations, entry = _computations(text)
    times = _times(computations, entry)
    # What the TPU compiler spreads over several fusions stands in each, under one channel.
    result, seen, fused = [], set(), set(re.findall(r" fusion\(.*calls=%?([\w.\-]+)", text))
    for name, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if not match or not times[name]:
                continue
            channel = _CHANNEL.search(line)
            if channel and name in fused:
                if channel[1] in seen:
                    continue
                seen.add(channel[1])
            arrays = _arrays(match[1])
            # What starts one gives its operand too; of several results at once all count.
            size = max(arrays)[0] if match[3] else sum(each[0] for each in arrays)
            members = _members(line, devices)
            largest, dtype, shape = max(arrays)
            kind = match[2]
            if kind == "all-reduce" and name.startswith(SCATTER):
                kind, size = "reduce-scatter", size // members
            result.append(Collective(kind, dtype, shape, size, largest, members, times[name]))
    return sorted(result, key=lambda each: -each.received)


def received(collectives: list[Collective]) -> dict[str, float]:
    """Bytes each device receives in a step, by kind."""
    total = Counter()
    for each in collectives:
        total[each.kind] += each.received
    return dict(total)
