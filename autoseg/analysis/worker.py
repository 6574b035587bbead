"""A process that examines cases: one JSON line in (a Case), one JSON line out (its CaseReport), until input ends."""

from __future__ import annotations

import json
import os
import sys

from autoseg.analysis.case import examine_case
from autoseg.records import Case, from_plain, to_plain


def main() -> None:
    """Answer on what was standard output; what libraries print goes to standard error instead."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            report = examine_case(from_plain(Case, json.loads(line)))
            try:
                answers.write(json.dumps(to_plain(report)) + "\n")
                answers.flush()
            except BrokenPipeError:  # the parent is gone
                os._exit(1)
