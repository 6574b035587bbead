"""The command `autoseg`: words of the shell -> one pipeline verb -> exit code. Only this room prints or exits.

A verb is a function (see `verbs`); its parameters are its words and flags, its docstring is its help. fire calls it,
but only after the words were checked against the signature here: fire alone would run a verb before it refuses an
unknown flag, keep only the last of a repeated one and make a tuple of `a,b`.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from autoseg._version import __version__
from autoseg.cli.flags import Flags
from autoseg.cli.outlet import outlets
from autoseg.cli.verbs import VERBS
from autoseg.cli.words import parameters, parse_words, summary, verb_help
from autoseg.errors import AutosegError, Fault, InputError, nearest

INTERRUPTED, INTERNAL = 130, 4
HELP = ("--help", "-h")
USAGE = f"""autoseg {__version__}: from labelled volumes and a datalist to an evaluated ensemble of networks

usage: autoseg VERB [--flag value ...]

verbs:
{{verbs}}

`autoseg VERB --help` lists the flags of a verb. `--debug` with any verb shows tracebacks; `--version` is the version.
exit codes: 0 done; 2 what was given is wrong; 3 done, with failed jobs; 4 no valid result; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. `argv` is what stands after `autoseg`."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries; a user can do nothing about them
    with outlets():
        try:
            with _terminated_as_interrupt():
                return dispatch(words)
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            lines, code = _explain(error)
            print(*lines, sep="\n", file=sys.stderr)
            return code


def _explain(error: BaseException) -> tuple[list[str], int]:
    """What a person reads of an error, a line a fault, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted: the same command goes on where this one stopped"], INTERRUPTED
    if isinstance(error, InputError):
        return [f"error: {' '.join(str(fault).split())}" for fault in error.faults], error.exit_code
    if isinstance(error, AutosegError):
        return [f"error: {error}"], error.exit_code
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return [f"internal error: {reason} (run with --debug for the traceback)"], INTERNAL


def dispatch(words: Sequence[str]) -> int:
    """Find the verb, check the words against its signature, and let fire call it."""
    if words[:1] == ["--version"]:
        print(f"autoseg {__version__}")
        return 0
    wants_help = not words or any(word in HELP for word in words)
    name = next((word for word in words if word not in HELP), None)
    if name is not None and name not in VERBS:
        hint = "the verb comes first" if name.startswith("-") else f"no such verb{nearest(name, VERBS)}"
        raise InputError([Fault("", name, f"{hint}; `autoseg --help` lists the verbs")])
    if name is None or wants_help:
        print(usage() if name is None else verb_help(name, VERBS[name], Flags))
        return 0
    given = parse_words(words[1:], parameters(VERBS[name], Flags))
    import fire

    # every value goes through fire's own parser, as a Python literal that it cannot read otherwise
    command = [f"--{flag}={value!r}" for flag, value in given.items()]
    code: int = fire.Fire(VERBS[name], command=command, name=f"autoseg {name}", serialize=lambda _: None)
    return code


def usage() -> str:
    """What `autoseg --help` prints."""
    return USAGE.format(verbs="\n".join(f"  {name:<12} {summary(verb)}" for name, verb in VERBS.items()))


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a verb as Ctrl-C does, so that its jobs end with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
