"""TemplateAlgo: what every family's Algo shares. Plans from statistics, writes a whole bundle; MONAI's BundleAlgo."""

from __future__ import annotations

import importlib
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.apps.auto3dseg import BundleAlgo

from autoseg.bundles import writer
from autoseg.bundles.contract import algo_class
from autoseg.bundles.templates import template_settings
from autoseg.datalist import load_datalist, with_regions
from autoseg.devices import detect_devices
from autoseg.errors import Fault, InputError
from autoseg.evaluation import nesting
from autoseg.planning import Machine, Plan, Statistics, normalize_modes, read_statistics
from autoseg.planning.patch import planar
from autoseg.planning.plan import BY_USER, plan_mirrored_windows, plan_mirroring
from autoseg.records import Datalist
from autoseg.workspace import read_json, read_yaml


class TemplateAlgo(BundleAlgo):  # type: ignore[misc]  # monai is untyped
    """Base of `<Name>Algo` in a template: subclasses say `plan`, all else is here.

    Under autoseg the pipeline calls `make_plan` and `export_to_disk`; under MONAI's AutoRunner, BundleGen calls
    `export_to_disk`, which plans for the machine it finds.
    """

    def __init__(self, template_path: str | None = None):
        super().__init__(template_path)
        self.fold = 0

    @abstractmethod
    def plan(self, stats: Statistics, machine: Machine, modes: Sequence[str]) -> Plan:
        """Hyper-parameters of this family for this data on this machine, each with its reason; pure.

        `modes`: how each channel is normalised, ct or zscore.
        """

    def make_plan(
        self,
        datastats: Mapping[str, Any],
        source: Mapping[str, Any],
        datalist: Datalist,
        machine: Machine,
        overrides: Mapping[str, Any],
    ) -> Plan:
        """The family's plan completed by labels or regions, seed and mirroring, then by the user's `overrides`.

        `source` is input.yaml's mapping (modality, seed, mirror_pairs). A user's num_epochs beats a planned
        num_iterations, as it was said later.
        """
        stats = read_statistics(datastats)
        modality = str(source.get("modality", "MRI"))
        plan = self.plan(stats, machine, normalize_modes(modality, source.get("normalization"), stats.channels))
        _plan_classes(plan, datalist, stats)
        pairs = source.get("mirror_pairs")
        plan_mirroring(plan, datalist.labels, pairs, machine, datalist.regions, stats.alike_across)
        plan.set("modality", modality, "as given")
        plan.set("seed", int(source.get("seed") or 0), "as given")
        for key, value in overrides.items():
            plan.set(key, value, BY_USER)
        if "mirror_axes_inference" not in overrides:
            plan_mirrored_windows(plan)
        size = plan.settings["roi_size"]
        if "roi_multiple" in overrides and "roi_size" not in overrides:  # of pretrained weights, say
            multiple = planar(plan.settings["roi_multiple"] or [1] * 3, plan.settings["slice_axis"])
            plan.settings["roi_multiple"] = multiple
            size = [-(-n // m) * m for n, m in zip(size, multiple, strict=True)]
        plan.settings["roi_size"] = planar(size, plan.settings["slice_axis"])
        return plan

    def _defaults(self) -> dict[str, Any]:
        return template_settings(Path(str(self.template_path)) / self.name)

    def fill_template_config(self, data_stats_filename: str, algo_path: str, **kwargs: Any) -> dict[str, Any]:
        """Complete the copied template at `algo_path` to a bundle; tolerates unknown keyword arguments.

        Keywords used: fold, plan (a ready Plan; otherwise one is made for this machine), home (where the bundle will
        stand, if not at `algo_path`), cache (of preprocessed cases, if not beside the bundles). With MONAI's OptunaGen
        and NNIGen, which say fill_with_datastats=False: the settings of the bundle before, and theirs over them.
        """
        self.fold = int(kwargs.get("fold", self.fold))
        source, datalist = self._given()
        before = self.fill_records.get("hyper_parameters.yaml")
        if before and not kwargs.get("fill_with_datastats", True):
            plan = Plan({**before, **_known_among(kwargs, before)})
        else:
            plan = kwargs.get("plan") or self._plan_here(read_yaml(data_stats_filename), source, datalist)
        settings = {**self._defaults(), **plan.settings, "name": self.name, "fold": self.fold}
        home = Path(kwargs.get("home", algo_path))
        settings["dataroot"] = datalist.dataroot
        settings["datalist"] = writer.relative(source["datalist"], home)
        pretrained = settings["pretrained"]
        settings["pretrained"] = pretrained and writer.relative(pretrained, home)
        settings["cache_dir"] = writer.relative(kwargs.get("cache", home.parent / "cache" / "preprocessed"), home)
        writer.write_bundle(Path(algo_path), settings)
        # for OptunaGen and NNIGen, which generate again from this elsewhere
        return {"hyper_parameters.yaml": {**settings, "pretrained": pretrained}}

    def pre_check_skip_algo(self, skip_bundlegen: bool = False, skip_info: str = "") -> tuple[bool, str]:
        """Whether the family is left out, and why: MONAI's BundleGen asks before it generates."""
        reason = self._plan_here(read_yaml(self.data_stats_files), *self._given()).skip
        return (True, reason) if reason else (skip_bundlegen, skip_info)

    def _given(self) -> tuple[dict[str, Any], Datalist]:
        """input.yaml, ours or the one that MONAI's AutoRunner writes, and its datalist."""
        source = read_yaml(self.data_list_file)
        keys = {key: source.get(key) for key in ("class_names", "sigmoid")}
        return source, load_datalist(source["datalist"], source.get("dataroot"), **keys)

    def _plan_here(self, datastats: Mapping[str, Any], source: Mapping[str, Any], datalist: Datalist) -> Plan:
        """A plan for this machine; labels that the datalist does not declare are those that `datastats` found."""
        if read_json(source["datalist"]).get("labels") is None:
            datalist = _with_found_labels(datalist, source, read_statistics(datastats).label_values)
        devices = detect_devices()
        machine = Machine(devices.kind, devices.job_memory, devices.cores)
        plan = self.make_plan(datastats, source, datalist, machine, {})
        plan.set("image_files", len(datalist.training[0].image), "files of every case")  # no word of it in MONAI's file
        return plan

    def state_dict(self) -> dict[str, Any]:
        """MONAI's state and the fold: OptunaGen generates again without saying it."""
        return {**super().state_dict(), "fold": self.fold}


def _known_among(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters among what a caller gives; num_epochs puts aside num_iterations, which was said before."""
    found = {key.rpartition("#")[2]: value for key, value in given.items()}
    found = {key: value for key, value in found.items() if key in known}
    return {**({"num_iterations": None} if "num_epochs" in found else {}), **found}


def _with_found_labels(datalist: Datalist, source: Mapping[str, Any], values: Sequence[int]) -> Datalist:
    """A datalist that declares no labels with the `values` of the data, which class_names name in ascending order.

    Regions among the class_names hold their values themselves: then nothing changes.
    """
    names: Sequence[Any] = source.get("class_names") or ()
    if any(isinstance(name, Mapping) for name in names):
        return datalist
    found = [value for value in values if value > 0]
    if datalist.labels and len(datalist.labels) != len(found):
        message = f"{len(datalist.labels)} names, where the data have the labels {found}"
        raise InputError([Fault("", "class_names", message)])
    labels = dict(zip(found, datalist.labels.values() or [f"class_{value}" for value in found], strict=True))
    datalist = replace(datalist, labels=labels, regions={})
    return with_regions(datalist) if source.get("sigmoid") else datalist


def _plan_classes(plan: Plan, datalist: Datalist, stats: Statistics) -> None:
    """What the network's outputs stand for: background and every label, or the regions."""
    labels, regions = datalist.labels, [list(values) for values in datalist.regions.values()]
    values = sorted({0, *labels} if labels else stats.label_values)
    plan.set("label_values", values, "as declared in the datalist")
    plan.set("regions", regions or None, "as declared" if regions else "no region is declared: labels are exclusive")
    if regions:
        written = "the value of the innermost region" if nesting(regions) else "one mask a region"
        plan.set("output_classes", len(regions), f"every region; a file holds {written}")
    else:
        plan.set("output_classes", len(values), "background and every label")
    names = datalist.scored or {v: f"class_{v}" for v in values if v}
    plan.set("class_names", {str(key): name for key, name in names.items()}, "as declared")


def load_algo(name: str, folder: Path) -> TemplateAlgo:
    """An instance of `<Name>Algo` from `<folder>/scripts/algo.py`, named as MONAI's contract names it.

    The module is imported as `<name>.scripts.algo`, for that is what `algo_object.json` holds and MONAI imports.
    """
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[module]
    sys.path.insert(0, str(folder.parent))
    try:
        importlib.invalidate_caches()
        module_object = importlib.import_module(f"{name}.scripts.algo")
        algo: TemplateAlgo = getattr(module_object, algo_class(name))(template_path=str(folder.parent))
    except Exception as error:  # whatever a template's own code raises
        message = f"{type(error).__name__}: {error}"
        raise InputError([Fault(str(folder / "scripts" / "algo.py"), algo_class(name), message)]) from error
    finally:
        sys.path.remove(str(folder.parent))
    algo.name = name
    return algo
