"""YAML of settings, with numbers and texts read as people expect, and limits against malicious input."""

import re
from typing import Any

import yaml

from ..errors import ConfigError


class Whole(int):
    """A whole number that keeps its spelling: `+7`, `-0`."""

    written: str

    def __str__(self) -> str:
        return self.written


class Number(float):
    """A number that keeps its spelling, `1e3` or `1.50`, for settings that are text."""

    written: str

    def __str__(self) -> str:
        return self.written


def plain(value: object) -> object:
    """The value with usual numbers, at any depth; itself where it has no others."""
    if isinstance(value, Whole):
        return int(value)
    if isinstance(value, Number):
        return float(value)
    if isinstance(value, dict):
        made = [(plain(key), plain(own)) for key, own in value.items()]
        same = all(key is old and own is value[old] for (key, own), old in zip(made, value))
        return value if same else dict(made)
    if isinstance(value, list | tuple):
        items = [plain(own) for own in value]
        if any(new is not old for new, old in zip(items, value)):
            return items if isinstance(value, list) else tuple(items)
    return value


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    value = loader.construct_yaml_int(node)
    if str(value) == node.value:
        return value
    marked = Whole(value)
    marked.written = node.value
    return marked


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    value = loader.construct_yaml_float(node)
    if str(value) == node.value:
        return value
    marked = Number(value)
    marked.written = node.value
    return marked


class _Loader(yaml.SafeLoader):
    """YAML with 1.2 scalars: `3e-4` is a number, and `no`, `1:30`, `2024-01-01` are text, as one expects."""

    def flatten_mapping(self, node: Any) -> None:
        """Duplicate keys are errors. Merge keys, which YAML 1.2 does not have, are not followed, because a few of them
        can expand without limit."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (value := self.construct_object(key)) in seen:  # 1 and 1.0 are the same key
                    raise yaml.constructor.ConstructorError(problem=f"'{key.value}' appears twice")
                seen.add(value)


class _Written(_Loader):
    """As `_Loader`, with numbers that keep their spelling."""


class _Words(_Written):
    """As `_Written`, but true and false are text."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that reads as something else under YAML 1.1 or under `_Loader`; lists on one line."""


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))


_SCALARS = {
    "null": (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"[-+]?(0|[1-9]\d*)$", list("-+0123456789")),
    "float": (
        r"([-+]?(\.\d+|\d+\.\d*|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}
_LOADERS: tuple[type[_Loader], ...] = (_Loader, _Written, _Words)
for _cls in _LOADERS:
    _cls.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    for _cls in (*_LOADERS[: 2 if _tag == "bool" else 3], _Dumper):
        _cls.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
for _cls in (_Written, _Words):
    _cls.add_constructor("tag:yaml.org,2002:int", _whole)
    _cls.add_constructor("tag:yaml.org,2002:float", _number)


MAX_VALUES = 1_000_000  # values in one YAML text; each alias counts as much as what it refers to
MAX_DEPTH = 100  # nesting of lists and mappings


def read_yaml(text: str, what: str) -> Any:
    """The value of YAML text. Raises ConfigError, one line that names `what` was read."""
    return _read(text, what, _Loader)


def read_written(text: str, what: str, booleans: bool = True) -> Any:
    """As `read_yaml`, for settings: numbers in an unusual spelling become `Whole` and `Number`, so that settings that
    are text get the spelling. booleans: whether true and false are converted; otherwise they stay text."""
    return _read(text, what, _Written if booleans else _Words)


def _read(text: str, what: str, loader: type[_Loader]) -> object:
    try:
        value = yaml.load(text, loader)
        if _size(value, {}, MAX_DEPTH) > MAX_VALUES:
            raise ConfigError(f"{what} has aliases that stand for more than {MAX_VALUES:,} values")
        return value
    except RecursionError:
        raise ConfigError(f"{what} is nested too deeply") from None
    except yaml.YAMLError as err:
        problem = getattr(err, "problem", None) or str(err).splitlines()[0]
        raise ConfigError(f"{what} is not YAML: {problem}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as err:  # "!!int x", "!!timestamp x"
        raise ConfigError(f"{what} is not YAML: {(str(err).splitlines() or [type(err).__name__])[0]}") from None


def _size(value: object, known: dict[int, float], depth: int) -> float:
    """Number of values, counting those of an alias each time it occurs; infinite for a cycle."""
    if not isinstance(value, dict | list):
        return 1
    if depth == 0:
        raise RecursionError
    if id(value) not in known:
        known[id(value)] = float("inf")  # until it is counted
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known, depth - 1) for part in parts)
    return known[id(value)]


def write_yaml(values: dict[str, object]) -> str:
    """YAML that `read_yaml` reads back to the same values."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
