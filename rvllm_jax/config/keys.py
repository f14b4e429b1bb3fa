"""What a key of a configuration is: a field of a dataclass with help, unit and range.

A schema is a dataclass whose fields are made by `key` and `section`. From it come the faults of
plain values, and the table of keys that `--help` and KEYS.md show.
"""

import copy
import dataclasses
import functools
import math
import os
import textwrap
import types
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from ml_collections import ConfigDict

from rvllm_jax.system.paths import expanded

NUMBERS = {int: "int", float: "float", bool: "bool", str: "str", int | None: "int or None"}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key, "data.frames"; that of each stage is "stages.STAGE.batch"."""

    path: str
    type: Any
    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    or_folder: bool = False  # the name of a folder is a choice too
    is_path: bool = False  # or several, by commas: ~ is the home
    least: float | None = None
    below: float = math.inf
    required: bool = True  # False: where a configuration lacks the key it has the default
    default: Any = None

    @property
    def kind(self) -> str:
        return NUMBERS.get(self.type, "rows of (regex, name)")

    @property
    def values(self) -> str:
        """The choices or the range, in words; "" for any."""
        if self.choices:
            return ", ".join((*self.choices, *(["FOLDER"] if self.or_folder else [])))
        if self.least is None:
            return ""
        return f">= {self.least}" + (f", < {self.below:g}" if self.below < math.inf else "")

    def fault(self, value: Any, path: str) -> str:
        """What is wrong with a value, by the key's full `path`; "" where it may be."""
        if not _has_type(value, self.type):
            return f"config.{path}={value!r} must be {self.kind}"
        if self.choices and value not in self.choices:
            if not self.or_folder:
                return f"config.{path}={value!r} is not one of {', '.join(self.choices)}"
            if not os.path.isdir(value):
                names = ", ".join(self.choices)
                return f"config.{path}={value!r} is not one of {names}, and there is no such folder"
        if self.least is None or self.least <= value < self.below:
            return ""
        if self.type is int and self.least == 1:
            return f"config.{path}={value} must be positive"
        below = f" and below {self.below:.3g}" if self.below < math.inf else ""
        return f"config.{path}={value} must be {self.least} or more{below}"


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.GenericAlias):
        return isinstance(value, list | tuple)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def key(help: str, *, default: Any = dataclasses.MISSING, **kinds: Any) -> Any:
    """A field that is a key of the configuration; `kinds`: the other fields of `Key`."""
    return dataclasses.field(default=default, metadata={"help": help, **kinds})


path_key = functools.partial(key, is_path=True)


def section(schema: type, *, each: str = "", default: Any = dataclasses.MISSING) -> Any:
    """A field that holds the keys of `schema`, or (`each`: "STAGE") several sections by name."""
    return dataclasses.field(default=default, metadata={"schema": schema, "each": each})


def fields_of(schema: type) -> Iterator[tuple[dataclasses.Field, Key | None]]:
    """The fields that are keys, with the `Key`, and those that are sections, with None."""
    for field in dataclasses.fields(schema):
        if "help" in field.metadata:
            kinds = {"choices": (), **field.metadata}
            kinds["choices"] = tuple(kinds["choices"])
            if field.default is not dataclasses.MISSING:
                kinds |= {"required": False, "default": field.default}
            yield field, Key(field.name, field.type, **kinds)
        elif "schema" in field.metadata:
            yield field, None


def names_of(schema: type) -> tuple[set[str], set[str]]:
    """(all keys and sections of a schema, those that a configuration must name itself)."""
    fields = [field for field, _ in fields_of(schema)]
    needed = {f.name for f in fields if f.default is dataclasses.MISSING}
    return {field.name for field in fields}, needed


def walk(schema: type, where: str = "") -> Iterator[Key]:
    """Every key of a schema by its full path."""
    for field, spec in fields_of(schema):
        path = f"{where}{field.name}"
        if spec is not None:
            yield dataclasses.replace(spec, path=path)
        else:
            each = field.metadata["each"]
            yield from walk(field.metadata["schema"], f"{path}.{each}." if each else f"{path}.")


def sections_in(
    schema: type, values: Mapping[str, Any], where: str
) -> Iterator[tuple[type, Any, str]]:
    """The (schema, values, path) of every section directly in `values`, one a name of `each`."""
    for field, spec in fields_of(schema):
        if spec is not None or field.name not in values:
            continue
        inner, path = values[field.name], f"{where}.{field.name}".strip(".")
        if not field.metadata["each"]:
            yield field.metadata["schema"], inner, path
        elif isinstance(inner, Mapping | ConfigDict):
            for name, one in inner.items():
                yield field.metadata["schema"], one, f"{path}.{name}"


def faults(schema: type, values: Mapping[str, Any], where: str = "") -> list[str]:
    """What of plain, nested values has the wrong type or is out of its range or choices."""
    result = []
    for field, spec in fields_of(schema):
        if spec is not None and field.name in values:
            result.append(spec.fault(values[field.name], f"{where}.{field.name}".strip(".")))
    for inner in sections_in(schema, values, where):
        result += faults(*inner)
    return [fault for fault in result if fault]


def expand_paths(schema: type, values: ConfigDict | MutableMapping[str, Any]) -> None:
    """Puts the home folder for ~ in every path of nested values, in place."""
    for field, spec in fields_of(schema):
        if spec is not None and spec.is_path and isinstance(values.get(field.name), str):
            values[field.name] = expanded(values[field.name], f"config.{field.name}")
    for inner, section, _ in sections_in(schema, values, ""):
        if isinstance(section, ConfigDict | MutableMapping):  # a ConfigDict is no Mapping
            expand_paths(inner, section)


def complete(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of plain, nested values, absent keys and sections that have a default with it."""
    made = copy.deepcopy(dict(values))
    for field, spec in fields_of(schema):
        if spec is None and field.default is None and made.get(field.name) is None:
            made[field.name] = {}
        elif spec is not None and not spec.required:
            made.setdefault(field.name, spec.default)
    for inner, section, _ in sections_in(schema, made, ""):
        if isinstance(section, dict):
            section.update(complete(inner, section))
    return made


def markdown_table(schema: type) -> str:
    """The keys as a Markdown table."""
    rows = [("Key", "Type", "Unit", "Values", "Meaning"), ("---",) * 5]
    for each in walk(schema):
        meaning = each.help
        if not each.required:
            meaning += f" (default: {each.default!r})"
        rows.append((f"`{each.path}`", each.kind, each.unit, each.values, meaning))
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def help_text(schema: type) -> str:
    """The keys as `--help` prints them: each with its meaning, type, unit, values and default."""
    lines = []
    for each in walk(schema):
        kind = ", ".join(filter(None, [each.kind, each.unit, each.values]))
        default = "" if each.required else f"; {each.default!r}"
        text = f"  --config.{each.path}: {each.help}"
        lines += textwrap.wrap(text, 100, subsequent_indent="    ")
        lines.append(f"    ({kind}{default})")
    return "\n".join(lines)
