"""Whether a template folder keeps Auto3DSeg's contract, read from its source: nothing of it is executed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from autoseg.errors import Fault
from autoseg.workspace import parse_reason, parse_yaml

NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
# what BundleGen, AutoRunner and the ensembles call; an Algo that derives from nothing must have it all
METHODS = [
    *("set_data_stats", "set_data_source", "export_to_disk", "get_output_path", "get_score", "state_dict"),
    *("load_state_dict", "train", "predict"),
]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def algo_class(name: str) -> str:
    """The class that MONAI looks for in the `scripts/algo.py` of a template."""
    return f"{name.capitalize()}Algo"


def is_foreign(folder: Path) -> bool:
    """Whether a template was written for MONAI's Auto3DSeg: its Algo derives from nothing of autoseg.

    Such a template brings its own training and inference; the others are completed by autoseg's skeleton.
    """
    module, _ = _parsed(folder / "scripts" / "algo.py")
    if module is None:
        return False
    ours = {
        alias.asname or alias.name
        for node in ast.walk(module)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).partition(".")[0] == "autoseg"
    }
    found = _class(module, algo_class(folder.name))
    return found is not None and not any(ast.unparse(base).partition(".")[0] in ours for base in found.bases)


def check_template(folder: Path) -> list[Fault]:
    """Every breach of the contract, one fault each; the empty list where it is kept."""
    faults = []
    if not NAME.fullmatch(folder.name):
        reason = "letters and digits alone make a name: what follows a '_' is taken for the fold"
        faults.append(Fault(str(folder), folder.name, reason))
    faults += _algo_faults(folder)
    brings_its_own = any((folder / "scripts" / file).exists() for file in ("train.py", "infer.py"))
    if is_foreign(folder) or brings_its_own:
        faults += _train_faults(folder / "scripts" / "train.py")
        faults += _infer_faults(folder / "scripts" / "infer.py")
        if not any(path.suffix in (".yaml", ".json") for path in (folder / "configs").glob("*")):
            faults.append(Fault(str(folder / "configs"), "", "holds no configuration (a .yaml or .json file)"))
    else:
        for file, key in (("hyper_parameters.yaml", ""), ("network.yaml", "network_def")):
            faults += _config_faults(folder / "configs" / file, key)
    return faults


def _algo_faults(folder: Path) -> Iterator[Fault]:
    path, name = folder / "scripts" / "algo.py", algo_class(folder.name)
    module, wrong = _parsed(path)
    if module is None:
        yield Fault(str(path), "", wrong)
        return
    found = _class(module, name)
    if found is None:
        others = [node.name for node in module.body if isinstance(node, ast.ClassDef)]
        yield Fault(str(path), name, f"no such class (there is {', '.join(others) or 'none'})")
        return
    methods = _methods(found)
    if not found.bases:
        for method in METHODS:
            if method not in methods:
                yield Fault(str(path), f"{name}.{method}", "no such method: derive from MONAI's BundleAlgo")
    elif not is_foreign(folder) and "plan" not in methods:
        yield Fault(str(path), f"{name}.plan", "no such method: it says the hyper-parameters")
    start = methods.get("__init__")
    if start is not None and "template_path" not in _arguments(start) and start.args.kwarg is None:
        yield Fault(str(path), f"{name}.__init__", "does not take template_path")
    if start is not None and len(_arguments(start)) - len(start.args.defaults) - 1 > 0:
        yield Fault(str(path), f"{name}.__init__", "has arguments without a default: MONAI makes it without any")


def _train_faults(path: Path) -> Iterator[Fault]:
    module, wrong = _parsed(path)
    if module is None:
        yield Fault(str(path), "", wrong)
        return
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    if "run" not in functions:
        yield Fault(str(path), "run", "no such function: training is started by `train.py run --config_file ...`")
        return
    yield from _call_faults(path, "run", functions["run"])
    if not any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in module.body):
        yield Fault(str(path), "", "does nothing as a program: `if __name__ == '__main__'` is missing")


def _infer_faults(path: Path) -> Iterator[Fault]:
    module, wrong = _parsed(path)
    if module is None:
        yield Fault(str(path), "", wrong)
        return
    found = _class(module, "InferClass")
    if found is None:
        yield Fault(str(path), "InferClass", "no such class")
        return
    methods = _methods(found)
    if "__init__" in methods:
        yield from _call_faults(path, "InferClass.__init__", methods["__init__"])
    elif not found.bases:
        yield Fault(str(path), "InferClass.__init__", "no such method: it is given the configuration files")
    if "infer" not in methods and not found.bases:
        yield Fault(str(path), "InferClass.infer", "no such method: it gives the probabilities of an image")


def _call_faults(path: Path, name: str, function: Function) -> Iterator[Fault]:
    """What is called with configuration files and overrides must take both."""
    if not _arguments(function, skip=("self",)) and function.args.vararg is None:
        yield Fault(str(path), name, "does not take config_file")
    if function.args.kwarg is None:
        yield Fault(str(path), name, "does not take overrides (**override)")


def _config_faults(path: Path, key: str) -> Iterator[Fault]:
    try:
        content = parse_yaml(path.read_text("utf-8"))
    except OSError:
        yield Fault(str(path), "", "no such file")
    except (ValueError, yaml.YAMLError) as error:
        yield Fault(str(path), "", f"cannot be parsed: {parse_reason(error)}")
    else:
        if content is not None and not isinstance(content, dict):
            yield Fault(str(path), "", "does not hold keys and values")
        elif key and key not in (content or {}):
            yield Fault(str(path), key, "is missing")


def _parsed(path: Path) -> tuple[ast.Module | None, str]:
    """(syntax tree, what is wrong where there is none)."""
    try:
        return ast.parse(path.read_text("utf-8"), filename=str(path)), ""
    except OSError:
        return None, "no such file"
    except (SyntaxError, ValueError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        return None, f"is not Python: {getattr(error, 'msg', error)}{line}"


def _class(module: ast.Module, name: str) -> ast.ClassDef | None:
    return next((node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _methods(found: ast.ClassDef) -> dict[str, Function]:
    return {node.name: node for node in found.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def _arguments(function: Function, skip: tuple[str, ...] = ()) -> list[str]:
    return [a.arg for a in (*function.args.posonlyargs, *function.args.args) if a.arg not in skip]
