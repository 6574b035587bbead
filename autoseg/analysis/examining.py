"""Examine many cases: from the cache where nothing changed, else in worker processes, telling how far it is."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg.analysis.case import examine_case
from autoseg.analysis.report import CaseReport
from autoseg.analysis.workers import examine_in_parallel
from autoseg.records import Case, Event, from_plain
from autoseg.workspace import file_stamp, path_bytes, write_json

logger = logging.getLogger(__name__)

ANALYSIS_VERSION = 3  # raise it whenever a report of the same files would differ
FEW_BYTES = 8 << 20  # files of fewer bytes in all are read sooner than workers start


def examine(
    cases: Sequence[Case],
    *,
    workers: int,
    cache_dir: Path | None,
    notify: Callable[[Event], None],
) -> list[CaseReport]:
    """One report a case, in the order of `cases`; every file is read once, whole, by at most `workers` processes.

    Memory: `workers` times one case. With `cache_dir`, a case whose files have the size and time of last time is not
    read again. Tells by `progress` events how far it is, and by a last `result` event how many were `read` and
    `cached`. Nothing is raised about the data: unreadable files are faults of their case's report.
    """
    keys = [_cache_key(case) if cache_dir is not None else None for case in cases]
    reports: dict[int, CaseReport] = {}
    for index, (case, key) in enumerate(zip(cases, keys, strict=True)):
        known = _from_cache(cache_dir, key)
        if known is not None:
            reports[index] = replace(known, case=case.id)
    cached = len(reports)

    def tell() -> None:
        facts = {"stage": "analysis", "done": len(reports), "total": len(cases)}
        notify(Event("progress", f"analysis: {len(reports)} of {len(cases)} cases", facts))

    tell()
    todo = [index for index in range(len(cases)) if index not in reports]
    todo.sort(key=lambda index: _bytes(cases[index]), reverse=True)  # the longest first, so that workers end together
    with closing(_examine([cases[index] for index in todo], workers)) as answers:
        for position, report in answers:
            index = todo[position]
            reports[index] = report
            _to_cache(cache_dir, keys[index], report)
            tell()
    facts = {"stage": "analysis", "read": len(todo), "cached": cached}
    notify(Event("result", f"analysis: {len(todo)} cases read, {cached} known from before", facts))
    return [reports[index] for index in range(len(cases))]


def _examine(cases: Sequence[Case], workers: int) -> Generator[tuple[int, CaseReport], None, None]:
    if workers <= 1 or len(cases) <= 1 or sum(map(_bytes, cases)) < FEW_BYTES:
        for position, case in enumerate(cases):
            yield position, examine_case(case)
    else:
        yield from examine_in_parallel(cases, workers)


def _files(case: Case) -> tuple[str, ...]:
    return (*case.image, *((case.label,) if case.label else ()))


def _bytes(case: Case) -> int:
    return sum(map(path_bytes, _files(case)))


def _cache_key(case: Case) -> str | None:
    """None where a file is missing: nothing is kept of such a case."""
    facts: list[Any] = [ANALYSIS_VERSION, len(case.image)]
    for path in _files(case):
        try:
            facts.append(file_stamp(path))
        except OSError:
            return None
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _from_cache(cache_dir: Path | None, key: str | None) -> CaseReport | None:
    """A report kept earlier; None where there is none, or its file is torn or of another make."""
    if cache_dir is None or key is None:
        return None
    try:
        return from_plain(CaseReport, json.loads((cache_dir / f"{key}.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        logger.debug("cache entry %s is not usable: %s", key, error)
        return None


def _to_cache(cache_dir: Path | None, key: str | None, report: CaseReport) -> None:
    """Keep what was read; a case that could not be read may be readable next time (memory, a missing reader)."""
    if cache_dir is None or key is None or report.extras is None or (report.label and not report.counts):
        return
    try:
        write_json(cache_dir / f"{key}.json", report)
    except OSError as error:
        logger.warning("cannot keep the analysis of %s in %s: %s", report.case, cache_dir, error)
