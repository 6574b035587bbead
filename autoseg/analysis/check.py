"""What is wrong with a data set: the faults of each case, and what only shows when cases are seen together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from autoseg.analysis.report import CaseReport, CheckResult
from autoseg.errors import Faults
from autoseg.records import Case, Datalist

RARE_CASES = 3  # a label in fewer cases is missing from the training or the validation part of some fold


def check_reports(datalist: Datalist, reports: Sequence[CaseReport]) -> CheckResult:
    """All faults and warnings at once, case by case, then over the data set.

    A case of the datalist without a report is a fault: none is dropped silently. With no labels declared, values are
    not compared (see `discovered_labels`).
    """
    faults, warnings = Faults(), Faults()
    known = {report.case: report for report in reports}
    for case in (*datalist.training, *datalist.validation, *datalist.testing):
        if case.id not in known:
            faults.add(case.image[0], "image", f"case {case.id} was not examined")
    for report in reports:
        faults.extend(report.faults)
        warnings.extend(report.warnings)
        _check_values(datalist, report, faults)
    _check_label_presence(datalist, known, warnings)
    _check_alike(reports, faults)
    _check_duplicates(datalist, known, faults, warnings)
    return CheckResult(tuple(faults.items), tuple(warnings.items))


def _check_values(datalist: Datalist, report: CaseReport, faults: Faults) -> None:
    """Every value of a label map must be declared; without a declaration only negative ones are refused."""
    declared = {0, *datalist.labels}
    odd = {
        value: voxels
        for value, voxels in report.counts.items()
        if voxels and (value < 0 or (datalist.labels and value not in declared))
    }
    if odd:
        found = ", ".join(f"{value} ({voxels} voxels)" for value, voxels in sorted(odd.items())[:8])
        more = f" and {len(odd) - 8} more" if len(odd) > 8 else ""
        wanted = ", ".join(map(str, sorted(declared))) if datalist.labels else "0 and above"
        faults.add(report.label, "label", f"values not declared: {found}{more}; declared are {wanted}")


def _check_label_presence(datalist: Datalist, known: Mapping[str, CaseReport], warnings: Faults) -> None:
    """Empty label maps of single cases; labels that never occur, or in too few cases to be learnt and validated."""
    cases = [case for case in (*datalist.training, *datalist.validation) if case.id in known]
    labelled = [known[case.id] for case in cases if known[case.id].counts]
    for case in (*cases, *datalist.testing):
        report = known.get(case.id)
        if report is not None and report.counts and not any(v for k, v in report.counts.items() if k > 0):
            warnings.add(report.label, "label", "empty: no voxel is labelled")
    for value, name in sorted(datalist.labels.items()):
        holders = [report.case for report in labelled if report.counts.get(value)]
        if labelled and not holders:
            message = f"label {value} ({name}) occurs in no case: it cannot be learnt"
            warnings.add(datalist.path, f"labels.{value}", message)
        elif len(holders) < min(RARE_CASES, len(labelled)):
            message = f"label {value} ({name}) is rare: only in {', '.join(holders)} of {len(labelled)} cases"
            warnings.add(datalist.path, f"labels.{value}", message)


def _check_alike(reports: Sequence[CaseReport], faults: Faults) -> None:
    """All cases have as many channels, and are 2D or 3D, as most have; the others are named."""
    read = [(report, report.extras) for report in reports if report.extras is not None]
    channels = Counter(extras.channels for _, extras in read).most_common(1)
    dims = Counter(len(extras.shape) for _, extras in read).most_common(1)
    for report, extras in read:
        if extras.channels != channels[0][0]:
            faults.add(report.image[0], "image", f"{extras.channels} channels, most cases have {channels[0][0]}")
        if len(extras.shape) != dims[0][0]:
            faults.add(report.image[0], "image", f"is {len(extras.shape)}D, most cases are {dims[0][0]}D")


def _check_duplicates(datalist: Datalist, known: Mapping[str, CaseReport], faults: Faults, warnings: Faults) -> None:
    """Equal voxels under two names: a fault where it lets a score be measured on what was learnt.

    That is across training, validation and testing, and across folds. Where folds are still to be made, it is a
    warning with the way to keep the two together.
    """
    places: dict[str, list[tuple[str, Case]]] = defaultdict(list)
    for part, cases in (
        ("training", datalist.training),
        ("validation", datalist.validation),
        ("testing", datalist.testing),
    ):
        for case in cases:
            report = known.get(case.id)
            if report is not None and report.content_hash and report.extras and not report.extras.constant:
                places[report.content_hash].append((part, case))
    for copies in places.values():
        (first_part, first), *rest = copies
        for part, case in rest:
            both = f"holds the same voxels as {first.image[0]}"
            if part != first_part:
                faults.add(case.image[0], "image", f"{both}: one is in {first_part}, the other in {part}")
            elif part == "training" and case.fold != first.fold:
                message = f"{both}: one is in fold {first.fold}, the other in fold {case.fold}"
                faults.add(case.image[0], "image", message)
            elif part == "training" and case.fold is None and (case.patient is None or case.patient != first.patient):
                hint = "give both the same `patient`, so that they fall into one fold, or remove one"
                warnings.add(case.image[0], "image", f"{both}: {hint}")
            else:
                warnings.add(case.image[0], "image", both)
