"""A BIDS tree: sub-<name>/[ses-<name>/]anat/..._<suffix>.nii.gz, label maps below derivatives/ (..._dseg, ..._mask).

Names and folders: the Brain Imaging Data Structure, https://bids-specification.readthedocs.io.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.datalist.complaints import Complaints
from autoseg.datalist.sources.found import Found, Wanted, case_of
from autoseg.errors import nearest

MODALITIES = {"anat": "MRI", "pet": "PET", "ct": "CT"}  # by the folder an image lies in
LABEL_SUFFIXES = ("dseg", "mask")
NO_IMAGES = (*LABEL_SUFFIXES, "probseg", "defacemask")
ENDINGS = (".nii.gz", ".nii")

Session = tuple[str, str]  # subject and session, "" where there are none


@dataclass(frozen=True)
class Name:
    """A BIDS file name taken apart: sub-01_acq-low_T1w is T1w with the entities sub and acq."""

    suffix: str
    entities: Mapping[str, str] = field(default_factory=dict)
    path: Path = Path()

    def __str__(self) -> str:
        return "/".join([*self.path.parent.parts, self.end])

    @property
    def end(self) -> str:
        """The name without subject and session."""
        pairs = [f"{key}-{value}" for key, value in self.entities.items() if key not in ("sub", "ses")]
        return "_".join([*pairs, self.suffix])

    @property
    def session(self) -> Session:
        return self.entities["sub"], self.entities.get("ses", "")

    def suits(self, file: Name) -> bool:
        """Whether `file` has this suffix, these entities, and lies in the folder that stands before them, if any."""
        folder = self.path.parent.parts
        return (
            file.suffix == self.suffix
            and self.entities.items() <= file.entities.items()
            and (not folder or any(file.path.parts[i : i + len(folder)] == folder for i in range(len(file.path.parts))))
        )


def parse_name(path: Path) -> Name | None:
    """A path as a BIDS name, or None; what is before the suffix must be key-value pairs."""
    stem = path.name
    for ending in ENDINGS:
        stem = stem.removesuffix(ending)
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return Name(suffix, entities, path) if suffix and "-" not in suffix and len(entities) == len(pairs) else None


def find_bids(root: Path, wanted: Wanted) -> Found:
    """Labelled sessions as training, the others as testing cases, the subject as patient; raises InputError.

    Channels are the suffixes that every labelled session has, in alphabetical order, or those asked for.
    """
    complaints = Complaints(root)
    derived = _names((root / "derivatives").rglob("sub-*"))
    label = _label_name(wanted.labels, derived, complaints)
    complaints.raise_if_any()
    labels = _chosen([label], _by_session(derived), "--labels", complaints)
    images = _by_session(
        n for kind in MODALITIES for n in _names(root.glob(f"sub-*/**/{kind}/sub-*")) if n.suffix not in NO_IMAGES
    )
    for session in sorted(labels.keys() - images.keys()):
        complaints.add("labels without images", _shown(session), f"no image for the label {labels[session][0].path}")
    complaints.raise_if_any()
    channels, warnings = _channels(wanted.channels, [images[session] for session in labels], complaints)
    chosen = _chosen(channels, images, "--channels", complaints)
    for session in sorted(labels.keys() - chosen.keys() if not complaints.by_kind else ()):
        message = f"is labelled and lacks one of the channels {', '.join(map(str, channels))}"
        complaints.add("missing channels", _shown(session), message)
    complaints.raise_if_any()
    training, testing = [], []
    for session, names in sorted(chosen.items()):
        files = [name.path for name in names]
        if session in labels:
            training.append(case_of(files, labels[session][0].path, patient=session[0]))
        else:  # without a label there is nothing to score, whoever the patient is
            testing.append(case_of(files, None))
    if testing:
        warnings.append(f"{len(testing)} sessions have no label: they are listed as testing cases")
    if len(images) > len(chosen):
        warnings.append(f"{len(images) - len(chosen)} sessions have no label and not all channels: they are left out")
    kinds = [MODALITIES[name.path.parent.name] for name in chosen[min(labels)]]
    return Found(
        f"BIDS tree with labels {label}", root, tuple(training), testing=tuple(testing),
        channels=tuple(map(str, channels)), modality={str(i): kind for i, kind in enumerate(kinds)},
        warnings=tuple(warnings),
    )  # fmt: skip


def _names(paths: Iterable[Path]) -> list[Name]:
    """The images among these paths whose names are BIDS names of a subject."""
    names = (parse_name(path) for path in sorted(paths) if path.name.endswith(ENDINGS))
    return [name for name in names if name is not None and "sub" in name.entities]


def _by_session(names: Iterable[Name]) -> dict[Session, list[Name]]:
    found: dict[Session, list[Name]] = defaultdict(list)
    for name in names:
        found[name.session].append(name)
    return dict(found)


def _chosen(
    wanted: Sequence[Name], sessions: Mapping[Session, Sequence[Name]], flag: str, complaints: Complaints
) -> dict[Session, list[Name]]:
    """By session the one file of each wanted name; sessions that lack one are left out, several are a fault."""
    chosen: dict[Session, list[Name]] = {}
    for session, files in sessions.items():
        found = []
        for name in wanted:
            suiting = [file for file in files if name.suits(file)]
            # beside sub-01_desc-brain_mask, `mask` means sub-01_mask
            plain = [file for file in suiting if file.entities.keys() <= {"sub", "ses", *name.entities}]
            if len(suiting) > 1 and len(plain) != 1:
                names = ", ".join(file.path.name for file in suiting[:4])
                example = suiting[0].end if flag == "--channels" else f"FOLDER/{suiting[0].end}"
                hint = f"say which by {flag}, as in {example}"
                complaints.add(
                    "ambiguous names", _shown(session), f"{len(suiting)} files are named {name}: {names}; {hint}"
                )
            found += plain if len(plain) == 1 else suiting
        if len(found) == len(wanted):
            chosen[session] = found
    return chosen


def _label_name(wanted: str | None, derived: Sequence[Name], complaints: Complaints) -> Name:
    """The name that label maps end with: as asked for, else dseg where there is one, else mask."""
    there = sorted({name.end for name in derived})
    label = parse_name(Path(wanted)) if wanted else None
    if wanted is not None and label is None:
        message = f"'{wanted}' is not the end of a BIDS name such as dseg, label-lesion_mask or FOLDER/dseg"
        complaints.add("labels", "--labels", message)
    if label is None:
        label = next((Name(s) for s in LABEL_SUFFIXES if any(name.suffix == s for name in derived)), Name("dseg"))
    if not any(label.suits(name) for name in derived):
        ends = f"named are {', '.join(there[:8])}" if there else "it holds no image"
        what = str(label) if wanted else " or ".join(LABEL_SUFFIXES)
        complaints.add("labels", "derivatives", f"no file is named sub-..._{what}, so nothing is labelled; {ends}")
    return label


def _channels(
    wanted: Sequence[str], labelled: Sequence[Sequence[Name]], complaints: Complaints
) -> tuple[list[Name], list[str]]:
    """(the channels asked for, or all that every labelled session has; what is left out)."""
    counts = Counter(suffix for names in labelled for suffix in {name.suffix for name in names})
    if wanted:
        parsed = {text: parse_name(Path(text)) for text in wanted}
        for text, name in parsed.items():
            if name is None or not any(name.suits(file) for names in labelled for file in names):
                message = f"no labelled session has an image named '{text}'{nearest(text, counts)}"
                complaints.add("channels", "--channels", f"{message}; there are {', '.join(sorted(counts))}")
        return [name for name in parsed.values() if name], []
    shared = sorted(suffix for suffix, count in counts.items() if count == len(labelled))
    partly = [f"{suffix} ({counts[suffix]} of {len(labelled)})" for suffix in sorted(counts) if suffix not in shared]
    if not shared:
        message = f"no image is in every labelled session; there are {', '.join(partly)}: name some by --channels"
        complaints.add("channels", "channels", message)
        return [], []
    left_out = [f"not in every labelled session and left out: {', '.join(partly)}"] if partly else []
    return [Name(suffix) for suffix in shared], left_out


def _shown(session: Session) -> str:
    return f"sub-{session[0]}" + (f"/ses-{session[1]}" if session[1] else "")
