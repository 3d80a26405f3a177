"""Nobody gets in through a configuration: what may be imported is decided on the raw text, before anything is.

A LightningCLI configuration names classes (`class_path: some.module.Class`), and jsonargparse imports the module
*before* it finds that the class does not fit: a stranger's YAML runs a stranger's code. Hence, before the parser:

* every `class_path`, and every other dotted name below `model`, `trainer`, `optimizer`, `lr_scheduler`, must begin with
  one of `ALLOWED`; `${...}` is resolved first, and refused in a class name;
* `trust_remote_code` is refused wherever it stands: Qwen3-VL needs no remote code.

What is saved of a configuration holds no secrets: values that came from `${oc.env:...}` are written as they were asked
for, and keys that end in token, password, secret, ... are emptied.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scaleearth_pl.core.errors import ConfigError

ALLOWED = ("scaleearth_pl.", "lightning.", "torch.")
"""Packages whose classes a configuration may name."""

REDACTED = "<redacted>"

_CLASSES_BELOW = ("model", "trainer", "optimizer", "lr_scheduler")
_SUBCOMMANDS = ("fit", "validate", "test", "predict")
_FILES = (".yaml", ".yml", ".json")
_DEEPEST = 32
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_SECRET_KEY = re.compile(r"(^|_)(token|password|passwd|secret|credentials?|(api|access|private|secret)_?key)$", re.I)
_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([^,}\s]+)")

Place = tuple[str, ...]


def check_arguments(arguments: Sequence[str]) -> None:
    """Checks a command line with all configuration files that it names.

    Raises:
        ConfigError: a class outside `ALLOWED`, `trust_remote_code`, or a file that is no YAML mapping; names the place.
    """
    documents = [*raw_documents(arguments)]
    for source, document in documents:
        _check_keys(source, document)
    try:
        merged = OmegaConf.unsafe_merge({}, *(document for _, document in documents))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"configuration cannot be merged: {error}", field="-c") from error
    for source, document in [*documents, ("the merged configuration", _resolved(merged))]:
        _check_values(source, document, ())


def raw_documents(arguments: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, content) of every configuration file and every override, in order, parsed as plain YAML data."""
    words = [*arguments]
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            continue
        if word.startswith("-c") and word != "-c":
            name, equals, value = "-c", "=", word[2:].removeprefix("=")
        else:
            name, equals, value = word.partition("=")
        value = value if equals else words.pop(0) if words and not words[0].startswith("--") else ""
        if name == "-c" or (len(name) > 3 and "--config".startswith(name)):
            yield value, _without_subcommand(_mapping(value, _read(value)))
        elif name.startswith("--"):
            yield word, _without_subcommand(_nested(name.removeprefix("--").rstrip("+"), _scalar(value)))


def leaves(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value of a nested configuration with its place."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from leaves(child, (*place, str(key)))
    elif isinstance(node, (list, tuple)):
        for number, child in enumerate(node):
            yield from leaves(child, (*place, str(number)))
    else:
        yield place, node


def redacted(config: Any, arguments: Sequence[str]) -> Any:
    """A copy of a resolved configuration without secrets, fit to be saved.

    Args:
        config: plain data, as resolved.
        arguments: the command line that it came from; tells which values were read from the environment.
    """
    asked = {place: value for _, doc in raw_documents(arguments) for place, value in leaves(doc)}
    from_env = {place: value for place, value in asked.items() if _ENVIRONMENT.search(str(value))}
    names = {name for value in from_env.values() for name in _ENVIRONMENT.findall(value)}
    hidden = sorted({os.environ[name] for name in names if os.environ.get(name)}, key=len, reverse=True)
    return _redact(config, (), from_env, hidden)


def _redact(node: Any, place: Place, from_env: Mapping[Place, Any], hidden: Sequence[str]) -> Any:
    if isinstance(node, Mapping):
        return {key: _redact(child, (*place, str(key)), from_env, hidden) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return [_redact(child, (*place, str(number)), from_env, hidden) for number, child in enumerate(node)]
    if place in from_env:
        return from_env[place]
    if place and _SECRET_KEY.search(place[-1]) and node is not None:
        return REDACTED
    if isinstance(node, str):
        for secret in hidden:
            node = node.replace(secret, REDACTED)
    return node


def _check_keys(source: str, document: Any) -> None:
    for place, _ in leaves(document):
        if "trust_remote_code" in place:
            raise ConfigError(
                "trust_remote_code runs code from the hub",
                file=source,
                field=".".join(place),
                remedy="leave it out: Qwen3-VL is part of transformers",
            )


def _check_values(source: str, document: Any, above: Place) -> None:
    """All strings of a document; a string that names a file stands for its content, as jsonargparse has it."""
    for below, value in leaves(document):
        place = (*above, *below)
        if not isinstance(value, str):
            continue
        _check_value(source, place, value)
        for file in {Path(value), Path(source).parent / value} if len(place) < _DEEPEST else ():
            if file.suffix in _FILES and file.is_file():
                content = yaml.safe_load(file.read_text(encoding="utf-8"))
                _check_keys(str(file), content)
                _check_values(str(file), content, place)


def _check_value(source: str, place: Place, value: str) -> None:
    names_class = place[-1] == "class_path" or (place[0] in _CLASSES_BELOW and _DOTTED.fullmatch(value) is not None)
    bare = place[-1] == "class_path" and value.isidentifier()
    if names_class and not bare and not (_DOTTED.fullmatch(value) and value.startswith(ALLOWED)):
        raise ConfigError(
            "a configuration may not import this",
            file=source,
            field=".".join(place),
            value=value,
            remedy=f"classes begin with one of {list(ALLOWED)}; write a file as ./{value}",
        )


def _resolved(merged: Any) -> Any:
    """The merged configuration with `${...}` filled in where that is possible; the rest refers to our own defaults."""
    try:
        return OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException:
        plain = OmegaConf.to_container(merged, resolve=False)
        return _resolve_one_by_one(merged, plain, ())


def _resolve_one_by_one(merged: Any, node: Any, place: Place) -> Any:
    if isinstance(node, Mapping):
        return {k: _resolve_one_by_one(merged, v, (*place, str(k))) for k, v in node.items()}
    if isinstance(node, list):
        return [_resolve_one_by_one(merged, v, (*place, str(i))) for i, v in enumerate(node)]
    if isinstance(node, str) and "${" in node:
        try:
            return OmegaConf.select(merged, ".".join(place))
        except OmegaConfBaseException:
            return node
    return node


def _read(value: str) -> str:
    try:
        return Path(value).read_text(encoding="utf-8")
    except OSError:
        return value  # jsonargparse takes the text itself, too


def _mapping(source: str, text: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}", file=source) from error
    if not isinstance(document, dict):
        raise ConfigError("no such configuration file, or it is no mapping", file=source, field="-c")
    return document


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, (float, int)) else value


def _without_subcommand(document: dict[str, Any]) -> dict[str, Any]:
    """`fit: {model: ...}`, as it stands in a file given before the subcommand, without its `fit`."""
    inner = [value for key, value in document.items() if key in _SUBCOMMANDS and isinstance(value, dict)]
    rest = {key: value for key, value in document.items() if key not in _SUBCOMMANDS}
    for part in inner:
        rest |= part
    return rest


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)
