"""At least 200 bad inputs to `autoseg check` and `autoseg run`: how many end in exit code 2 with file and field named.

    python benchmarks/badinput.py [--jobs 2] [--only PART] [--show]

Datalists mutated field by field and cut off, damaged NIfTI headers and bodies, labels that do not fit, wrong flags and
wrong keys of the input file. Each is a process of its own with a minute to live. It counts as refused where the exit
code is 2, the first fault names what is wrong (the file and the field, or the flag), no traceback is printed, and
nothing was trained. `--show` prints every message, `--only` those whose name holds a word. The data are generated.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np

from autoseg.demo import make_demo_data

SECONDS = 60.0
Plain = dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """A bad input: `make(folder)` spoils a fresh copy of the data and returns the words after `autoseg`.

    `named`: what the message must hold, the name of the file and of the field, or of the flag.
    """

    name: str
    make: Callable[[Path], list[str]]
    named: tuple[str, ...]


def check(folder: Path, *more: str) -> list[str]:
    return ["check", "--datalist", str(folder / "datalist.json"), "--modality", "MRI", *more]


# ---- datalists


def datalist_mutations() -> Iterator[Bad]:
    """Every field of a datalist replaced by what it must not be; sections misspelt; the text cut off."""
    odd: dict[str, Any] = {
        "null": None,
        "number": 7,
        "list": [],
        "mapping": {"a": 1},
        "empty": "",
        "missing": "no.nii.gz",
    }
    for section, index in (("training", 0), ("training", 3), ("testing", 0)):
        for field in ("image", "label"):
            for kind, value in odd.items():
                if section == "testing" and field == "label" and kind == "null":
                    continue  # a testing case need not have one
                yield _entry(section, index, field, kind, value)
    for kind, value in {"text": "zero", "negative": -1, "half": 0.5, "list": [0], "true": True}.items():
        yield _entry("training", 1, "fold", kind, value)
    for kind, value in {"folder": "images", "absolute": "/no/such/file.nii.gz"}.items():
        yield _entry("training", 1, "image", kind, value)
        yield _entry("training", 1, "label", kind, value)
    for field in ("image", "label"):
        yield replace(_entry("training", 1, field, "text file", "notes.txt"), named=("notes.txt", field))
    for misspelt in ("imge", "lable", "Image", "labels", "flod"):
        yield _edited(
            f"key {misspelt}", lambda d, m=misspelt: _rename(d["training"][0], m), ("datalist.json", "training[0]")
        )
    for key in ("training", "testing"):
        for kind, value in {"text": "x", "number": 3, "mapping": {"image": "a"}, "texts": ["a.nii.gz"]}.items():
            yield _edited(f"{key} is {kind}", lambda d, k=key, v=value: d.update({k: v}), ("datalist.json", key))
    yield _edited("training is empty", lambda d: d.update(training=[]), ("datalist.json", "training"))
    yield _edited("training is missing", lambda d: d.pop("training") and None, ("datalist.json", "training"))
    yield _edited("trainning", lambda d: d.update(trainning=d.pop("training")), ("datalist.json", "trainning"))
    yield _edited("testng", lambda d: d.update(testng=d.pop("testing")), ("datalist.json", "testng"))
    yield _edited("one case", lambda d: d.update(training=d["training"][:1]), ("datalist.json",))
    yield _edited("a case twice", lambda d: d["training"].append(d["training"][0]), ("datalist.json", "training[4]"))
    yield _edited(
        "tested on training", lambda d: d["testing"].append(d["training"][0]), ("datalist.json", "testing[1]")
    )
    yield _edited("folds here and there", lambda d: d["training"][0].update(fold=0), ("datalist.json", "fold"))
    for kind, value in {
        "a list": [1, 2],
        "text": "organ",
        "names of names": {"1": {"a": 1}},
        "not numbers": {"x": "organ", "y": "nodule"},
        "negative": {"-1": "organ", "2": "nodule"},
        "the same name": {"1": "organ", "2": "organ"},
        "too few": {"0": "background", "1": "organ"},
    }.items():
        named = ("label", "declared") if kind == "too few" else ("datalist.json", "labels")
        yield _edited(f"labels are {kind}", lambda d, v=value: d.update(labels=v), named)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        yield Bad(
            f"datalist cut at {share:.0%}",
            lambda f, s=share: _cut_text(f / "datalist.json", s) or check(f),
            ("datalist.json", "line"),
        )
    for kind, text in {
        "empty": "",
        "a list": "[]",
        "text": '"x"',
        "a number": "3",
        "no JSON": "training: []",
        "null": "null",
    }.items():
        yield Bad(
            f"datalist is {kind}",
            lambda f, t=text: ((f / "datalist.json").write_text(t) and check(f)) or check(f),
            ("datalist.json",),
        )
    yield Bad(
        "datalist is binary",
        lambda f: ((f / "datalist.json").write_bytes(os.urandom(500)) and check(f)) or [],
        ("datalist.json",),
    )
    yield Bad(
        "datalist is a folder",
        lambda f: ["check", "--datalist", str(f / "images"), "--modality", "MRI"],
        ("images", "datalist"),
    )
    yield Bad(
        "no datalist",
        lambda f: ["check", "--datalist", str(f / "datalst.json"), "--modality", "MRI"],
        ("datalst.json", "datalist"),
    )


def _entry(section: str, index: int, field: str, kind: str, value: Any) -> Bad:
    def edit(plain: Plain) -> None:
        plain[section][index][field] = value

    return _edited(f"{section}[{index}].{field} is {kind}", edit, ("datalist.json", f"{section}[{index}]", field))


def _edited(name: str, edit: Callable[[Plain], Any], named: tuple[str, ...]) -> Bad:
    def make(folder: Path) -> list[str]:
        path = folder / "datalist.json"
        plain = copy.deepcopy(json.loads(path.read_text()))
        edit(plain)
        path.write_text(json.dumps(plain))
        return check(folder)

    return Bad(f"datalist: {name}", make, named)


def _rename(entry: Plain, misspelt: str) -> None:
    known = "fold" if misspelt == "flod" else "image" if "m" in misspelt.lower() else "label"
    entry[misspelt] = entry.pop(known, 0)


def _cut_text(path: Path, share: float) -> None:
    text = path.read_text()
    path.write_text(text[: int(len(text) * share)])


# ---- images and labels


def image_damages() -> Iterator[Bad]:
    """Of an image and of a label map: bytes lost, changed, replaced; geometry and values that do not fit."""
    for part in ("image", "label"):
        for share in (0.0, 0.01, 0.2, 0.5, 0.9, 0.999):
            yield _damaged(
                part,
                f"cut at {share:.1%}",
                lambda p, s=share: p.write_bytes(p.read_bytes()[: int(p.stat().st_size * s)]),
            )
        for name, text in {
            "text": b"not an image",
            "zeros": bytes(2000),
            "a picture's head": b"\x89PNG\r\n\x1a\n" + bytes(500),
        }.items():
            yield _damaged(part, f"is {name}", lambda p, t=text: p.write_bytes(t))
        yield _damaged(part, "is noise", lambda p: p.write_bytes(np.random.default_rng(0).bytes(3000)))
        yield _damaged(part, "is a folder", lambda p: (p.unlink(), p.mkdir()))
        yield _damaged(part, "is a dangling link", lambda p: (p.unlink(), p.symlink_to("nowhere.nii.gz")))
        for position, value, what in (
            (40, b"\xff\x7f", "dim[0] 32767"),
            (42, b"\x00\x00", "dim[1] 0"),
            (42, b"\xff\xff", "dim[1] -1"),
            (42, b"\xff\x7f", "dim[1] 32767"),
            (70, b"\xff\x00", "datatype 255"),
            (70, b"\x20\x00", "complex numbers"),
            (108, b"\x00\x00\x80\x7f", "vox_offset infinite"),
            (108, b"\x00\x00\x80\x4c", "vox_offset beyond the end"),
            (344, b"abcd", "magic abcd"),
        ):
            yield _damaged(part, what, lambda p, at=position, v=value: _patched(p, at, v))
        yield _damaged(part, "crc of gzip", lambda p: p.write_bytes(p.read_bytes()[:-8] + bytes(8)))
        yield _damaged(part, "middle overwritten", lambda p: _overwritten(p))
    yield _damaged(
        "image",
        "not finite",
        lambda p: _values(p, lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, np.nan, a)),
    )
    yield _damaged("image", "all infinite", lambda p: _values(p, lambda a: np.full(a.shape, np.inf)))
    yield _damaged("image", "4D of two channels", lambda p: _values(p, lambda a: np.stack([a, a], -1)))
    yield _damaged("image", "2D", lambda p: _values(p, lambda a: a[:, :, 0]))
    yield _damaged("image", "affine not invertible", lambda p: _affine(p, np.zeros((4, 4))))
    yield _damaged("image", "affine not finite", lambda p: _affine(p, np.diag([np.nan, 1, 1, 1])))
    yield _damaged("label", "other shape", lambda p: _values(p, lambda a: a[:-2]))
    yield _damaged(
        "label",
        "elsewhere",
        lambda p: _affine(p, np.array([[1, 0, 0, 50], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
    )
    yield _damaged("label", "other spacing", lambda p: _affine(p, np.diag([2.0, 1, 1, 1])))
    yield _damaged("label", "halves", lambda p: _values(p, lambda a: a.astype(np.float32) + 0.5 * (a > 0)))
    yield _damaged("label", "negative", lambda p: _values(p, lambda a: -a.astype(np.int16)))
    yield _damaged("label", "undeclared value", lambda p: _values(p, lambda a: a * 9))
    yield _damaged("label", "not finite", lambda p: _values(p, lambda a: np.where(a > 0, np.nan, 0.0)))
    yield Bad("the same image in training and testing", _same_image, ("image", "same voxels"))


def _damaged(part: str, what: str, damage: Callable[[Path], Any]) -> Bad:
    def make(folder: Path) -> list[str]:
        entry = json.loads((folder / "datalist.json").read_text())["training"][1]
        damage(folder / entry[part])
        return check(folder)

    return Bad(f"{part}: {what}", make, (".nii.gz", part))


def _patched(path: Path, position: int, value: bytes) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[position : position + len(value)] = value
    path.write_bytes(gzip.compress(bytes(raw)))


def _overwritten(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 200] = bytes(200)
    path.write_bytes(bytes(raw))


def _values(path: Path, change: Callable[[Any], Any]) -> None:
    image = nib.load(path)
    array = change(np.asanyarray(image.dataobj))  # type: ignore[attr-defined]
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    nib.save(nib.Nifti1Image(array, image.affine), path)  # type: ignore[attr-defined, no-untyped-call]


def _affine(path: Path, affine: Any) -> None:
    array = np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    image = nib.Nifti1Image(array, np.eye(4))  # type: ignore[no-untyped-call]
    image.header.set_sform(affine, code=1)  # type: ignore[no-untyped-call]
    image.header.set_qform(None, code=0)  # type: ignore[no-untyped-call]
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    nib.save(image, path)


def _same_image(folder: Path) -> list[str]:
    plain = json.loads((folder / "datalist.json").read_text())
    shutil.copy(folder / plain["training"][0]["image"], folder / plain["testing"][0]["image"])
    return check(folder)


# ---- flags and the input file

FLAGS: dict[str, tuple[str, ...]] = {
    "--modality": ("XR", "5"),
    "--algos": ("segresnett", "nnunet,segresnet", ""),
    "--num_fold": ("0", "-2", "two", "1.5", "99"),
    "--dataroot": ("/no/such/folder", "datalist.json/x"),
    "--class_names": ("a,a", "[{name: x}]", "[{name: x, index: []}]", "[{name: x, index: [77]}]"),
    "--mirror_pairs": ("[[1]]", "[[1,1]]", "[[1,9]]", "left"),
    "--normalization": ("z", "ct,ct,ct"),
    "--minutes": ("0", "-3", "soon"),
    "--max_parallel": ("0", "1.5", "many"),
    "--seed": ("-1", "x"),
    "--ensemble_method": ("AlgoEnsembleBest", ""),
    "--n_best": ("0", "all"),
    "--ensemble_mode": ("median",),
    "--tolerance_mm": ("0", "-1", "far"),
    "--patient_pattern": ("(", "*"),
    "--templates_path_or_url": ("/no/such/folder", "https://example.org/templates.zip"),
    "--pretrained": ("/no/such/weights.pt", "https://example.org/model.pt", ".", "{data}/datalist.json"),
    "--set": ("learnin_rate=1", "roi_size=abc", "segresnett.num_epochs=3", "@none.yaml", "novalue", "num_epochs=many"),
    "--check": ("maybe",),
    "--work_dir": ("{data}/datalist.json", "/proc/nowhere"),
}
INPUT: dict[str, tuple[Any, ...]] = {
    "modality": ("XR", 5),
    "num_fold": (0, "two", [5]),
    "datalist": ("datalis.json", 5, None),
    "algos": (["seg_resnet"], 7),
    "ensemble_method": ("Best",),
    "settings": ([1], "x"),
    "num_folds": (5,),
    "learning_rate": (0.1,),
    "train_on_all": ("perhaps",),
    "max_tries": (0, "often"),
    "hpo": ("maybe",),
}


def flag_mistakes() -> Iterator[Bad]:
    """Values that a flag or a key of the input file cannot have; unknown, doubled and missing flags; wrong verbs."""
    for flag, values in FLAGS.items():
        for value in values:
            yield Bad(f"{flag}={value}", lambda f, g=flag, v=value: _run(f, g, v), (flag.removeprefix("--"),))
    for key, contents in INPUT.items():
        for content in contents:
            yield Bad(
                f"input file: {key}: {content!r}", lambda f, k=key, c=content: _input(f, k, c), ("input.yaml", key)
            )
    for words, named in (
        (["rn"], "rn"),
        (["run", "--datalst", "x"], "--datalst"),
        (["run", "--modality", "MRI"], "datalist"),
        (["run", "--datalist"], "--datalist"),
        (["check", "--modality", "MRI", "--modality", "CT", "--datalist", "x"], "--modality"),
        (["predict", "--input", "x"], "--output"),
        (["predict", "--input", "/no/x", "--output", "o", "--work_dir", "/no/w"], "/no/w"),
        (["evaluate", "--predictions", "/no/p", "--references", "/no/r"], "/no/p"),
        (["evaluate", "--predictions", ".", "--references", ".", "--labels", "organ"], "--labels"),
        (["status", "--work_dir", "/no/w"], "/no/w"),
        (["ensemble", "--work_dir", "/no/w"], "datalist"),
        (["datalist", "/no/folder"], "/no/folder"),
        (["logs", "/no/w", "job"], "/no/w"),
        (["cancel", "/no/w"], "/no/w"),
        (["run", "stray"], "stray"),
        (["new-family", "my_net"], "my_net"),
        (["new-family", "segresnet"], "segresnet"),
        (["check-family", "/no/family"], "/no/family"),
        (["check-family", "."], "algo.py"),
    ):
        yield Bad(" ".join(words), lambda f, w=words: w, (named,))
    yield Bad("weights that are text", lambda f: _weights(f, b"not a tensor"), ("weights.pt", "pretrained"))
    yield Bad("weights that are empty", lambda f: _weights(f, b""), ("weights.pt", "pretrained"))
    yield Bad("input file cut off", lambda f: _input_text(f, "modality: [MRI\n"), ("input.yaml",))
    yield Bad("input file is a list", lambda f: _input_text(f, "- 1\n"), ("input.yaml",))
    yield Bad("input file is missing", lambda f: ["run", "--input", str(f / "none.yaml")], ("none.yaml",))


def _run(folder: Path, flag: str, value: str) -> list[str]:
    words = {"--datalist": str(folder / "datalist.json"), "--modality": "MRI", "--work_dir": str(folder / "w")}
    words[flag] = value.format(data=folder) if flag in ("--work_dir", "--pretrained") else value
    return ["run", *(f"{name}={content}" for name, content in words.items())]


def _weights(folder: Path, content: bytes) -> list[str]:
    (folder / "weights.pt").write_bytes(content)
    return _run(folder, "--pretrained", str(folder / "weights.pt"))


def _input(folder: Path, key: str, value: Any) -> list[str]:
    content = {"datalist": str(folder / "datalist.json"), "modality": "MRI", key: value}
    return _input_text(folder, json.dumps(content))


def _input_text(folder: Path, text: str) -> list[str]:
    (folder / "input.yaml").write_text(text)
    return ["run", "--input", str(folder / "input.yaml"), "--work_dir", str(folder / "w")]


# ---- the benchmark


def tried(bad: Bad, data: Path, folder: Path) -> tuple[str, str]:
    """(what is wrong with how it ended, or the empty string; what was printed)."""
    shutil.copytree(data, folder, symlinks=True)
    (folder / "notes.txt").write_text("no image")
    words = bad.make(folder)
    command = [sys.executable, "-m", "autoseg", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "still at work after a minute", ""
    said = done.stdout + done.stderr
    faults = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    trained = list(folder.rglob("metrics.jsonl"))
    wrong = [f"exit code {done.returncode}"] if done.returncode != 2 else []
    wrong += ["a traceback"] if "Traceback" in said else []
    wrong += ["no line says what is wrong"] if not faults else []
    wrong += ["something was trained"] if trained else []
    missing = [word for word in bad.named if not any(word in line for line in faults)]
    wrong += [f"not named: {', '.join(missing)}"] if missing and faults else []
    shutil.rmtree(folder, ignore_errors=True)
    return "; ".join(wrong), "\n".join(faults) or said[-500:]


def main(jobs: int = 2, only: str = "", show: bool = False) -> None:
    """Try them all, print those that were not refused as they should be, and the share that was."""
    bads = [bad for part in (datalist_mutations, image_damages, flag_mistakes) for bad in part() if only in bad.name]
    refused = 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        data = Path(scratch) / "data"
        make_demo_data(data, training=4, testing=1, shape=(20, 20, 16))
        trials = pool.map(lambda pair: tried(pair[1], data, Path(scratch) / f"bad {pair[0]}"), enumerate(bads))
        for bad, (wrong, said) in zip(bads, trials, strict=True):
            refused += not wrong
            if wrong or show:
                print(f"{bad.name}: {wrong or 'refused'}\n    " + said.replace("\n", "\n    "), flush=True)
    print(f"{refused} of {len(bads)} bad inputs ended in exit code 2 with what is wrong named, no traceback, no hang")


if __name__ == "__main__":
    fire.Fire(main)
