"""Every file name of a run, writes that are whole or wait for room, and the lock that keeps a second run out."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import yaml

from autoseg.errors import Fault, InputError
from autoseg.records import SCHEMA_VERSION, Event, from_plain, to_plain

if TYPE_CHECKING:
    from autoseg.workspace.lock import RunLock

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)
WORDS = ("No space left on device", "Disk quota exceeded")
PAUSE_SECONDS = 2.0
SAID_SECONDS = 60.0
LITTLE = 4 * 2**20  # bytes: with less a process that died without a word died of it
UNCERTAINTY = "uncertainty"  # the folder of such maps, beside predictions
BUNDLE = re.compile(r"[A-Za-z][A-Za-z0-9]*_\d+")  # family and fold
logger = logging.getLogger(__name__)


class _Loader(yaml.SafeLoader):
    """Safe YAML where 1e-4 is a number, as YAML 1.2 says, and a key that stands twice is a fault."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a string such as '1e-4', so that `_Loader` gives back a string."""


_FLOAT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")  # PyYAML follows YAML 1.1, which asks for 1.0e-4
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


@contextmanager
def atomic_file(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write to a temporary neighbour of `path`, then rename: a reader sees the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """The JSON objects that stand in a file, one a line; none where it is not there. Torn lines are passed over."""
    path = Path(path)
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict):
                yield values


def append_line(path: str | Path, line: str) -> None:
    """Append a line whole or not at all: what a full disk took of it is cut off again.

    Where the last line was torn, the new one begins below it.
    """
    with open(path, "a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        file.seek(max(0, before - 1))
        torn = file.read(1) not in (b"", b"\n")
        whole = ("\n" * torn + line + "\n").encode()
        try:
            if file.write(whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(before)
            raise


def is_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, says that the disk or a quota is full; torch raises its own on top."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def says_full(text: str) -> bool:
    """Whether the words of a process say so."""
    return any(words in text for words in WORDS)


def room(folder: Path) -> int:
    """Bytes free where a folder lies, or is to lie."""
    folder = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(folder).free


def patiently(
    write: Callable[[], T],
    path: Path,
    *,
    say: Callable[[str], None] = logger.warning,
    pause: Callable[[float], None] = time.sleep,
) -> T:
    """What `write` returns; while the disk of `path` is full, say so once a minute and try again.

    `write` must leave nothing half-written behind. Other errors come through, and so does what `pause` raises.
    """
    said = -SAID_SECONDS
    while True:
        try:
            return write()
        except (OSError, RuntimeError) as error:
            if not is_full(error):
                raise
        if time.monotonic() - said >= SAID_SECONDS:
            said = time.monotonic()
            say(f"the disk of {path} is full: waiting for room")
        pause(PAUSE_SECONDS)


def file_stamp(path: str | Path) -> tuple[str, int, int]:
    """(absolute path, bytes, time of change in ns): differs where a file was replaced. Raises OSError without one.

    Of a folder (a DICOM series) the third is a digest of names, sizes and times of its files.
    """
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        return os.path.abspath(path), found.st_size, found.st_mtime_ns
    files = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(path) if os.path.isfile(e.path))
    digest = hashlib.blake2b(json.dumps(files).encode(), digest_size=8).digest()
    return os.path.abspath(path), sum(size for _, size, _ in files), int.from_bytes(digest, "big")


def path_bytes(path: str | Path) -> int:
    """Bytes of a file, or of the files in a folder; 0 where there is none."""
    return file_stamp(path)[1] if os.path.exists(path) else 0


def write_json(path: str | Path, value: Any) -> None:
    """Write a record or plain value as JSON; mappings get a `schema_version`."""
    plain = _versioned(to_plain(value))
    with atomic_file(path) as file:
        json.dump(plain, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def parse_json(text: str) -> Any:
    """JSON text as plain values; ValueError with line and column, or with the key that stands twice in an object."""
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key '{next(k for k in keys if keys.count(k) > 1)}' stands twice in one object")
    return mapping


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing, unreadable or torn one is an `InputError` that names it."""
    return _read(path, parse_json)


def read_keys(path: str | Path, *keys: str) -> list[Any]:
    """The values of `keys` in a JSON file; faults as in `read_json`, and where it holds no object with all of them."""
    plain = read_json(path)
    faults = [Fault(str(path), key, "is missing") for key in keys if not isinstance(plain, dict) or key not in plain]
    if faults:
        raise InputError(faults)
    return [plain[key] for key in keys]


def restored(cls: type[T], plain: Any, path: str | Path) -> T:
    """The record that `plain`, read from `path`, describes; an `InputError` where it describes none."""
    try:
        return from_plain(cls, plain)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError([Fault(str(path), "", f"holds no {cls.__name__}: {error}")]) from error


def write_yaml(path: str | Path, value: Any, *, versioned: bool = True, header: str = "") -> None:
    """Write plain values as YAML in the order given; `header` is put before it as comment lines."""
    plain = to_plain(value)
    with atomic_file(path) as file:
        file.writelines(f"# {line}\n" for line in header.splitlines())
        yaml.dump(
            _versioned(plain) if versioned else plain,
            file,
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=None,
            width=120,
        )


def parse_yaml(text: str) -> Any:
    """YAML text as plain values (1e-4 is a number); `yaml.YAMLError` where it is none or a key stands twice."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file without constructing any object; faults as in `read_json`."""
    return _read(path, parse_yaml)


def _versioned(plain: Any) -> Any:
    return {"schema_version": SCHEMA_VERSION, **plain} if isinstance(plain, dict) else plain


def _read(path: str | Path, parse: Any) -> Any:
    try:
        return parse(Path(path).read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte-order mark
    except FileNotFoundError as error:
        raise InputError([Fault(str(path), "", "no such file")]) from error
    except OSError as error:
        raise InputError([Fault(str(path), "", f"cannot be read: {error.strerror}")]) from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError([Fault(str(path), "", f"cannot be parsed: {parse_reason(error)}")]) from error


def parse_reason(error: Exception) -> str:
    """What a parser complains of, on one line, with line and column."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        return f"{error.problem}: line {mark.line + 1} column {mark.column + 1}"
    return " ".join(str(error).split())


def uncertainty_path(prediction: Path) -> Path:
    """Where the map of doubt of a predicted label map lies."""
    return prediction.parent / UNCERTAINTY / prediction.name


class Workspace:
    """The folder of a run (`work_dir`): knows the name of every file in it and writes nothing on its own."""

    def __init__(self, work_dir: str | Path):
        self.root = Path(work_dir).expanduser().absolute()

    # stage files
    input_yaml = property(lambda self: self.root / "input.yaml")
    datalist_json = property(lambda self: self.root / "datalist.json")
    datastats_yaml = property(lambda self: self.root / "datastats.yaml")
    datastats_by_case_yaml = property(lambda self: self.root / "datastats_by_case.yaml")
    pace_json = property(lambda self: self.root / "pace.json")
    reseeded_json = property(lambda self: self.root / "reseeded.json")
    clock_json = property(lambda self: self.root / "clock.json")
    plan_json = property(lambda self: self.root / "plan.json")
    leaderboard_json = property(lambda self: self.root / "leaderboard.json")
    ensemble_json = property(lambda self: self.root / "ensemble.json")
    doubt_json = property(lambda self: self.root / "doubt.json")
    evaluation_json = property(lambda self: self.root / "evaluation.json")
    evaluation_csv = property(lambda self: self.root / "evaluation.csv")
    cross_validation_json = property(lambda self: self.root / "cross_validation.json")
    report_html = property(lambda self: self.root / "report.html")
    events_jsonl = property(lambda self: self.root / "events.jsonl")
    lock_file = property(lambda self: self.root / "run.lock")
    # folders
    templates = property(lambda self: self.root / "algorithm_templates")
    jobs = property(lambda self: self.root / "jobs")
    cache = property(lambda self: self.root / "cache")
    pretrained = property(lambda self: self.root / "pretrained")
    hpo = property(lambda self: self.root / "hpo")
    variants = property(lambda self: self.root / "hpo" / "templates")
    ensemble_output = property(lambda self: self.root / "ensemble_output")

    def bundle(self, algo: str, fold: int) -> Path:
        return self.root / f"{algo}_{fold}"

    def named_bundle(self, name: Any) -> Path:
        """The bundle that a record of the run names; an `InputError` where that is no bundle's name: `../x`, say."""
        if not isinstance(name, str) or not BUNDLE.fullmatch(name):
            raise InputError([Fault(str(self.root), "", f"{name!r} is named there, which is no bundle of a run")])
        return self.root / name

    def job(self, job_id: str) -> Path:
        folder: Path = self.jobs / job_id
        return folder

    def prediction(self, case_id: str) -> Path:
        return Path(self.ensemble_output) / case_id / f"{case_id}_ensemble.nii.gz"

    def create(self) -> None:
        """Make the folder; a file in its place, or one that cannot be written, is an `InputError`."""
        field = "work_dir"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe.{os.getpid()}"
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        except (FileExistsError, NotADirectoryError):
            raise InputError([Fault(str(self.root), field, "is a file (or lies below one), not a folder")]) from None
        except OSError as error:
            raise InputError([Fault(str(self.root), field, f"cannot be written: {error.strerror}")]) from error

    def refuse_links(self) -> None:
        """Nothing is written through links that lead out of the folder: an `InputError` names them.

        Looked at is what a run writes; other things may lie in the folder, too.
        """
        root, faults = self.root.resolve(), []
        own = {getattr(self, name).name for name, kind in vars(Workspace).items() if isinstance(kind, property)}
        for folder, folders, files in os.walk(self.root):
            if Path(folder) == self.root:
                folders[:] = [name for name in folders if name in own or BUNDLE.fullmatch(name)]
                files = [name for name in files if name in own]
            for path in (Path(folder, name) for name in (*folders, *files)):
                if path.is_symlink() and not path.resolve().is_relative_to(root):
                    message = f"leads out of the work_dir, to {os.readlink(path)}: nothing is written there"
                    faults.append(Fault(str(path), "link", message))
        if faults:
            raise InputError(faults)

    def log_event(self, event: Event) -> None:
        """Append to `events.jsonl`; a full disk loses the line, not the run."""
        try:
            append_line(self.events_jsonl, json.dumps(to_plain(event), ensure_ascii=False))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    def lock(self, purpose: Mapping[str, Any] | None = None) -> RunLock:
        from autoseg.workspace.lock import RunLock

        return RunLock(self, dict(purpose or {}))
