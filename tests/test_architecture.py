"""The rules of the house that a program can check: who imports whom, sizes, dangers, who may speak."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "autoseg"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SKELETON = PACKAGE / "bundles" / "skeleton"  # copied into bundles: its scripts are clients of the engine
TEMPLATES = sorted((REPOSITORY / "algorithm_templates").rglob("*.py"))
LEVELS = [
    {"_version"},
    {"errors", "records", "devices", "config", "datalist", "workspace"},
    {"analysis", "planning", "evaluation", "execution"},
    {"bundles"},
    {"engine"},
    {"hpo", "ensemble", "report", "deploy", "demo"},
    {"pipeline"},
    {"runner"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LONGEST_FUNCTION, LONGEST_FILE = 60, 400


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def room_of_file(path: Path) -> str | None:
    """The room a source file belongs to; None for the package's own __init__."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def imports(module: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of everything a file may import, at any depth, relative imports resolved."""
    package = list(path.relative_to(REPOSITORY).parts[:-1])
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, stem
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def rooms_imported(module: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imports(module, path):
        parts = name.split(".")
        if parts[0] == "autoseg" and len(parts) > 1 and parts[1] in LEVEL:
            yield line, parts[1]


def may_import(here: str, there: str) -> bool:
    """Down always; on the same level only within a room and on the ground floor."""
    return here == there or LEVEL[there] < LEVEL[here] or (LEVEL[here] == LEVEL[there] and LEVEL[here] <= 1)


def calls(module: ast.Module) -> Iterator[tuple[int, str, ast.Call]]:
    """(line, dotted name, node) of every call whose function is a name or an attribute of one."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


@pytest.mark.parametrize(
    ("source", "path", "found"),
    [
        ("from autoseg.cli import main", "autoseg/errors.py", ["cli"]),
        ("from . import pipeline", "autoseg/errors.py", ["pipeline"]),
        ("from ..runner import AutoRunner", "autoseg/engine/trainer.py", ["runner"]),
        ("def f():\n    import autoseg.hpo.study", "autoseg/engine/trainer.py", ["hpo"]),
        ("from .metrics import dice", "autoseg/evaluation/evaluate.py", ["evaluation"]),
    ],
)
def test_the_import_reader_sees_every_form(source: str, path: str, found: list[str]) -> None:
    assert sorted({room for _, room in rooms_imported(ast.parse(source), REPOSITORY / path)}) == found


def test_every_room_has_a_level() -> None:
    assert {room_of_file(path) for path in SOURCES} - {None} <= set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    here = room_of_file(path)
    if here is None or SKELETON in path.parents:
        pytest.skip("the package offers AutoRunner lazily; a bundle's scripts call the engine")
    wrong = [f"line {line}: {there}" for line, there in rooms_imported(tree(path), path) if not may_import(here, there)]
    assert not wrong, f"{here} must not import {wrong}"


@pytest.mark.parametrize("path", [*SOURCES, *TEMPLATES], ids=name_of)
def test_nothing_unpickles_or_runs_a_string(path: Path) -> None:
    module = tree(path)
    wrong = [f"line {line}: imports {name}" for line, name in imports(module, path) if name.split(".")[0] in UNPICKLERS]
    for line, function, node in calls(module):
        options = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if function in ("eval", "exec", "os.system", "os.popen") or options.get("shell") is True:
            wrong.append(f"line {line}: {function} runs a string")
        if options.get("weights_only") is False or options.get("allow_pickle") is True:
            wrong.append(f"line {line}: {function} unpickles")
        if function == "torch.load" and options.get("weights_only") is not True:
            wrong.append(f"line {line}: torch.load without weights_only=True")
    assert not wrong


@pytest.mark.parametrize("path", [*SOURCES, *TEMPLATES], ids=name_of)
def test_files_and_functions_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST_FILE
    functions = [n for n in ast.walk(tree(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno}
    assert not {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_command_prints_or_exits(path: Path) -> None:
    if path in [PACKAGE / "cli" / f"{name}.py" for name in ("__init__", "verbs", "showing")]:
        pytest.skip("the command itself")
    spoken = [
        f"line {line}: {function}"
        for line, function, _ in calls(tree(path))
        if function in ("print", "sys.exit", "exit", "quit", "sys.stdout.write", "sys.stderr.write")
    ]
    assert not spoken


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_is_public_is_documented(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), "the module has no docstring"
    public = [
        node
        for node in module.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    assert not [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("room", ["", ".analysis", ".evaluation", ".execution", ".planning", ".config", ".cli"])
def test_importing_loads_no_torch(room: str) -> None:
    code = f"import sys, autoseg{room}; print([m for m in ('torch', 'monai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_autorunner_is_offered_lazily() -> None:
    code = (
        "import sys, autoseg; print('autoseg.runner' in sys.modules); from autoseg import AutoRunner; print(AutoRunner)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["False", "<class 'autoseg.runner.AutoRunner'>"]


def test_levels_refuse_what_they_should() -> None:
    assert may_import("pipeline", "engine")
    assert may_import("engine", "evaluation")
    assert may_import("records", "errors")
    assert not may_import("bundles", "engine")
    assert not may_import("demo", "pipeline")
    assert not may_import("errors", "engine")
