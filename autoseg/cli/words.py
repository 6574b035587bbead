"""Words of the shell against a verb's signature: checked, converted, explained. Prints nothing, calls no verb."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from autoseg.errors import Fault, Faults, InputError, nearest
from autoseg.workspace import parse_reason, parse_yaml

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
REPEATED = "set"
Parameters = Mapping[str, inspect.Parameter]


def parameters(verb: Callable[..., int], shared: Callable[..., Any]) -> Parameters:
    """The flags of a verb: its own, and those of `shared` where it takes `**flags`."""
    own = inspect.signature(verb).parameters
    named = {name: p for name, p in own.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    return {**inspect.signature(shared).parameters, **named} if len(named) < len(own) else named


def positional(known: Parameters) -> list[str]:
    """The parameters that words without dashes fill, in this order: those of a signature before its `*`."""
    return [name for name, p in known.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def parse_words(words: Sequence[str], known: Parameters) -> dict[str, Any]:
    """`--flag value`, `--flag=value`, bare boolean flags and positional words as keyword arguments.

    Raises one InputError with every fault.
    """
    faults = Faults()
    given: dict[str, Any] = {}
    bare: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or not name:
            bare.append(word)
            continue
        following = left[0] if left and not left[0].startswith("--") else None
        if name not in known:
            faults.add("", f"--{name}", f"unknown flag{nearest(f'--{name}', [f'--{n}' for n in known])}")
            if not equals and following is not None:
                left.pop(0)  # its value is no second fault
            continue
        kind = kind_of(known[name])
        if not equals and kind == "bool":
            value = left.pop(0) if following is not None and following.lower() in (*YES, *NO) else "true"
        elif not equals and following is not None:
            value = left.pop(0)
        elif not equals:
            faults.add("", f"--{name}", "needs a value")
            given.setdefault(name, None)
            continue
        if name in given and name != REPEATED:
            faults.add("", f"--{name}", "given twice")
        try:
            given[name] = [*given.get(name, []), value] if name == REPEATED else convert(kind, value)
        except (ValueError, yaml.YAMLError) as error:
            faults.add("", f"--{name}", parse_reason(error))
            given.setdefault(name, None)
    _place(bare, known, given, faults)
    needed = [name for name, p in known.items() if p.default is inspect.Parameter.empty and name not in given]
    faults.extend(Fault("", _shown(name, known), "is needed") for name in needed)
    faults.raise_if_any()
    return given


def _place(bare: Sequence[str], known: Parameters, given: dict[str, Any], faults: Faults) -> None:
    """Give the words without dashes to the positional parameters that no flag has filled."""
    places = positional(known)
    free = [name for name in places if name not in given]
    for name, word in zip(free, bare, strict=False):
        try:
            given[name] = convert(kind_of(known[name]), word)
        except (ValueError, yaml.YAMLError) as error:
            faults.add("", _shown(name, known), parse_reason(error))
            given[name] = None
    surplus = bare[len(free) :]
    if not places:
        for word in surplus:
            faults.add("", word, "not a flag: flags are written --name value")
    elif surplus:
        count = "1 word" if len(surplus) == 1 else f"{len(surplus)} words"
        message = f"{count} too many beside {', '.join(map(str.upper, places))}; quote a `*`, or the shell expands it"
        faults.add("", surplus[0], message)


def _shown(name: str, known: Parameters) -> str:
    return name.upper() if name in positional(known) else f"--{name}"


def kind_of(parameter: inspect.Parameter) -> str:
    """A parameter's annotation as text, without `| None`: bool, int, float, str, list[str], or Any for YAML."""
    return str(parameter.annotation).removesuffix(" | None")


def convert(kind: str, value: str) -> Any:
    """A flag's text as its signature's type; raises ValueError (or yaml.YAMLError) saying what is wrong."""
    if kind == "bool":
        if value.lower() not in (*YES, *NO):
            raise ValueError(f"'{value}' is neither true nor false")
        return value.lower() in YES
    if kind in ("int", "float"):
        try:
            number = int(value) if kind == "int" else float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"'{value}' is not a {'whole ' if kind == 'int' else ''}number")
        return number
    if kind == "list[str]":
        items = parse_yaml(value) if value.lstrip().startswith("[") else value.split(",")
        return [str(item).strip() for item in items if str(item).strip()]
    return yaml_or_text(value) if kind == "Any" else value


def yaml_or_text(value: str) -> Any:
    """YAML where it is a list, a mapping or a number, else the text as it was typed; raises yaml.YAMLError."""
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError:
        if value.lstrip().startswith(("[", "{")):
            raise
        return value
    return parsed if isinstance(parsed, (list, dict, int, float)) and not isinstance(parsed, bool) else value


def read_object(flag: str, text: str) -> Any:
    """A flag's JSON or YAML text as plain values; raises InputError."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError([Fault("", flag, f"cannot be parsed: {parse_reason(error)}")]) from error


def summary(verb: Callable[..., int]) -> str:
    """The first line of a verb's docstring."""
    return (verb.__doc__ or "").splitlines()[0]


def verb_help(name: str, verb: Callable[..., int], shared: Callable[..., Any]) -> str:
    """A verb's sentence, words and flags, from the signatures and the `name: text` lines of the docstrings."""
    texts = dict(re.findall(r"^ {4}(\w+): (.+)$", f"{shared.__doc__}\n{verb.__doc__}", re.MULTILINE))
    values = {"bool": "", "int": " N", "float": " X", "list[str]": " A,B"}
    rows: dict[str, list[str]] = {"words": [], "flags": []}
    known = parameters(verb, shared)
    places = positional(known)
    for flag, parameter in known.items():
        value = " KEY=VALUE" if flag == REPEATED else values.get(kind_of(parameter), " VALUE")
        needed = parameter.default is parameter.empty
        said = " (needed)" if needed else f" (default: {parameter.default})" if parameter.default else ""
        shown = flag.upper() if flag in places else f"--{flag}{value}"
        rows["words" if flag in places else "flags"].append(f"  {shown:<32} {texts.get(flag, '')}{said}")
    usage = " ".join(["autoseg", name, *map(str.upper, places), "[--flag value ...]"])
    sections = ["\n".join([f"{kind}:", *lines]) for kind, lines in rows.items() if lines]
    return "\n\n".join([f"usage: {usage}", summary(verb), *sections])
