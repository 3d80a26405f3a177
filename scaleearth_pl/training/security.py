"""Nobody gets in through a configuration: what may be imported is decided on the raw text, before anything is.

A LightningCLI configuration names classes (`class_path: some.module.Class`), and jsonargparse imports the module
*before* it finds that the class does not fit: a stranger's YAML runs a stranger's code. Hence, before the parser:

* every `class_path`, and every other dotted name below `model`, `data`, `trainer`, `optimizer`, `lr_scheduler`, must begin
  with one of `ALLOWED`; `${...}` is resolved first, and refused in a class name;
* the parser takes a string for YAML, or for the name of a file of any suffix that holds it, wherever that makes a value:
  so it is read here, too, except for `_PLAIN` keys; `${...}` in such a text is refused, for the parser resolves it later;
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

_CLASSES_BELOW = ("model", "data", "trainer", "optimizer", "lr_scheduler")
_PLAIN = frozenset({"experiment", "size", "runs_dir", "ckpt_path", "data.root", "data.cache_dir", "data.tokenizer"})
"""Keys whose type is text: the parser neither imports nor opens what they name."""

_SUBCOMMANDS = ("fit", "validate", "test", "predict")
_LARGEST = 1 << 20
"""Bytes of a configuration; a larger file is refused rather than searched."""

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


def _check_values(source: str, document: Any, above: Place, depth: int = 0) -> None:
    """All strings of a document; one that is YAML, or names a file of it, stands for its content, as jsonargparse has it."""
    if depth > _DEEPEST:
        raise ConfigError("configuration is nested too deeply", file=source, field=".".join(above))
    for below, value in leaves(document):
        place = (*above, *below)
        if not isinstance(value, str) or ".".join(place) in _PLAIN:
            continue
        _check_value(source, place, value)
        for name, content in _behind(source, place, value):
            _check_keys(name, content)
            _check_values(name, content, place, depth + 1)


def _behind(source: str, place: Place, value: str) -> Iterator[tuple[str, Any]]:
    """(name, content) of what a string stands for besides itself: YAML inside it, or files that it names."""
    if (content := _parsed(value)) != value:
        yield source, content
    for file in {Path(value), Path(source).parent / value}:
        if _is_file(file):
            content = _parsed(_small_text(file, place))
            if any("${" in str(leaf) for _, leaf in leaves(content)):
                raise ConfigError(
                    "a file that a value names may not interpolate",
                    file=file,
                    field=".".join(place),
                    remedy="give it with -c, under its full keys",
                )
            yield str(file), content


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a text too long for a name
        return False


def _small_text(file: Path, place: Place) -> str:
    if file.stat().st_size > _LARGEST:
        raise ConfigError("too large for a configuration", file=file, field=".".join(place), value=file.stat().st_size)
    return file.read_text(encoding="utf-8", errors="replace")


def _parsed(text: str) -> Any:
    """What YAML makes of a text; the text itself where it is none."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _check_value(source: str, place: Place, value: str) -> None:
    top = place[1] if place[0] in _SUBCOMMANDS and len(place) > 1 else place[0]
    names_class = place[-1] == "class_path" or (top in _CLASSES_BELOW and _DOTTED.fullmatch(value) is not None)
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
    rest = {k: v for k, v in document.items() if not (k in _SUBCOMMANDS and isinstance(v, dict))}
    for part in inner:
        rest |= part
    return rest


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)
