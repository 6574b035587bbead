"""Fixtures that any room's tests may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoseg.workspace import read_json, write_json, write_yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

# Test workers share the cores: one thread each, said before torch or NumPy start their pools.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what a module, or a family, has trained go to one worker, which so trains it once."""
    for item in items:
        family = getattr(getattr(item, "callspec", None), "params", {}).get("family_bundle")
        fixtures = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
        shared = any(definitions[-1].scope == "module" for definitions in fixtures.values())
        if family or shared:
            item.add_marker(pytest.mark.xdist_group(family or item.path.stem))


@pytest.fixture
def odd_path(tmp_path: Path) -> Path:
    """An empty folder whose name has a space and letters beyond ASCII."""
    folder = tmp_path / "Köpfe und Hälse"
    folder.mkdir()
    return folder


@pytest.fixture
def demo_data(odd_path: Path) -> Path:
    """The datalist of a tiny generated data set: six training and two testing cases of 24 x 24 x 20 voxels."""
    from autoseg.demo import make_demo_data

    return make_demo_data(odd_path / "data", training=6, testing=2, shape=(24, 24, 20))


@pytest.fixture
def shared_dataset() -> Callable[[str], Path]:
    """Path of a data set that lies beside the repository; the test is skipped where it does not."""

    def find(name: str) -> Path:
        folder = SHARED / "datasets" / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is not on this machine")
        return folder

    return find


@pytest.fixture
def write_dicom() -> Callable[..., Path]:
    """`write_dicom(folder, volume, spacing, uid, description)` writes a volume [x, y, z] of int16 as a DICOM series."""
    itk = pytest.importorskip("itk", reason="itk-core is not installed")

    def write(
        folder: Path, volume: Any, spacing: tuple[float, ...] = (1, 1, 1), uid: str = "1.2.3.4", description: str = ""
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(volume.shape[2]):
            plane = itk.image_from_array(volume[:, :, number].T[None].copy())
            plane.SetSpacing([float(side) for side in spacing])
            plane.SetOrigin([0.0, 0.0, number * float(spacing[2])])
            tags = {"0020|000d": "1.2.3", "0020|000e": uid, "0008|0018": f"{uid}.{number + 1}", "0008|0060": "CT"}
            tags |= {"0008|103e": description, "0008|0021": "20200101", "0020|0013": str(number)}
            for tag, value in tags.items():
                plane.GetMetaDataDictionary()[tag] = value
            writer = itk.GDCMImageIO.New()
            writer.KeepOriginalUIDOn()
            file = itk.ImageFileWriter.New(Input=plane, FileName=str(folder / f"{uid}_{number}.dcm"))
            file.SetImageIO(writer)
            file.Update()
        return folder

    return write


TINY = {"roi_size": [16, 16, 16], "init_filters": 8, "blocks_down": [1, 1], "dsdepth": 1, "num_iterations": 6}


@pytest.fixture
def make_bundle(demo_data: Path) -> Callable[..., Path]:
    """`make_bundle(fold=0, **settings)` writes a segresnet bundle over the demo data and returns its folder."""
    from autoseg.bundles import find_templates, load_algo
    from autoseg.bundles.templates import template_settings
    from autoseg.planning import Plan

    work = demo_data.parents[1] / "work dir"
    work.mkdir(exist_ok=True)
    plain = read_json(demo_data)
    for number, entry in enumerate(plain["training"]):
        entry["fold"] = number % 2
    write_json(work / "datalist.json", plain)
    source = {"modality": "MRI", "datalist": str(work / "datalist.json"), "dataroot": str(demo_data.parent)}
    write_yaml(work / "input.yaml", source, versioned=False)
    folder = find_templates(("segresnet",))["segresnet"]

    def make(fold: int = 0, name: str | None = None, **settings: Any) -> Path:
        values = {"label_values": [0, 1, 2], "class_names": {"1": "organ", "2": "nodule"}, "output_classes": 3}
        values |= {**TINY, "resample": False, "precision": "float32", **settings}
        assert set(values) <= set(template_settings(folder))
        algo = load_algo("segresnet", folder)
        algo.set_data_source(str(work / "input.yaml"))
        target = name or f"segresnet_{fold}"
        algo.export_to_disk(str(work), target, fold=fold, plan=Plan(values, dict.fromkeys(values, "test")))
        return work / target

    return make


# Kinds of data that every family has to take: what is said to `make_demo_data`, and the regions over its labels.
KINDS: dict[str, dict[str, Any]] = {
    "isotropic": {},
    "anisotropic": {"shape": (32, 30, 16), "spacing": (0.7, 0.7, 3.5)},
    "channels": {"channels": 2},
    "thick channels": {"channels": 2, "shape": (32, 30, 16), "spacing": (0.7, 0.7, 3.5)},
    "gaps": {"labels": (1, 3)},
    "nested": {"labels": (1, 2, 3), "regions": {"whole": [1, 2, 3], "nodules": [2, 3], "second": [3]}},
    "crossing": {"labels": (1, 2, 3), "channels": 2, "regions": {"organ": [1, 2], "nodules": [2, 3]}},
    "tiny": {"shape": (16, 17, 18)},
    "pictures": {"spacing": (1.0, 1.0, 1.0)},
}
# What of these a family knows makes its network small and its training short.
SMALL = {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2, "feature_size": 12, "channel_mul": 0.25}
SMALL |= {"num_images_per_batch": 2, "num_epochs_per_validation": 2}


def _pictures(datalist: Path) -> None:
    """Of every volume the middle plane, as PNG; the datalist names these instead."""
    import nibabel as nib
    import numpy as np
    from PIL import Image

    plain = read_json(datalist)
    for entry in (*plain["training"], *plain["testing"]):
        for key in ("image", "label"):
            volume = np.asarray(nib.load(datalist.parent / entry[key]).dataobj)  # type: ignore[attr-defined]
            plane = volume[..., volume.shape[2] // 2].T.astype(float)
            plane = plane * 255 / plane.max() if key == "image" else plane
            entry[key] = entry[key].replace(".nii.gz", ".png")
            Image.fromarray(plane.astype(np.uint8)).save(datalist.parent / entry[key])
    write_json(datalist, plain)


@pytest.fixture(scope="session")
def data_of_kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, list[int]]]]:
    """`data_of_kind(kind)`: a datalist of four training and two testing cases, and the regions to declare."""
    from autoseg.demo import make_demo_data

    made: dict[str, Path] = {}

    def make(kind: str) -> tuple[Path, dict[str, list[int]]]:
        facts = {"shape": (32, 30, 24), **KINDS[kind]}
        regions = facts.pop("regions", {})
        if kind not in made:
            made[kind] = make_demo_data(tmp_path_factory.mktemp("data"), training=4, testing=2, **facts)
            if kind == "pictures":
                _pictures(made[kind])
        return made[kind], regions

    return make


@pytest.fixture(scope="session")
def bundle_of_family(
    data_of_kind: Callable[[str], tuple[Path, dict[str, list[int]]]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`bundle_of_family(family, kind, **settings)`: a bundle as the family plans it for the data, but small."""
    from autoseg.bundles import available_templates, template_settings
    from autoseg.config import load_config
    from autoseg.pipeline import generate

    def make(family: str, kind: str, **settings: Any) -> Path:
        datalist, regions = data_of_kind(kind)
        known = template_settings(available_templates()[family])
        values = {**SMALL, **settings}
        given: dict[str, Any] = {"modality": "MRI", "num_fold": 2, "algos": [family]}
        if regions:
            given["class_names"] = [{"name": name, "index": index} for name, index in regions.items()]
        work_dir = tmp_path_factory.mktemp(family) / "work dir"
        values = {key: value for key, value in values.items() if key in known}
        config = load_config(None, work_dir=str(work_dir), datalist=str(datalist), settings=values, **given)
        return generate(config)[0]

    return make


@pytest.fixture
def make_foreign(odd_path: Path) -> Callable[..., Path]:
    """`make_foreign(body)` writes a foreign bundle and returns its folder; `body` ends its `infer(image)`."""
    from autoseg.bundles.templates import skeleton_settings

    def make(body: str, name: str = "tinynet_0", **settings: Any) -> Path:
        root = odd_path / "work dir" / name
        for part in ("configs", "scripts"):
            (root / part).mkdir(parents=True)
        code = [
            "from monai.transforms import LoadImage",
            "import torch",
            "class InferClass:",
            "    def __init__(self, config_file=None, **override): ...",
            "    def infer(self, image_file):",
            "        image = LoadImage(image_only=True, ensure_channel_first=True)(image_file['image'])",
            f"        {body}",
        ]
        (root / "scripts" / "infer.py").write_text("\n".join(code))
        values = {"name": name[:-2], "label_values": [0, 1, 2], "output_classes": 3, "image_files": 1, **settings}
        described = {"stamp": "", "overrides": {}, "settings": {**skeleton_settings(), **values}}
        write_json(root / "foreign.json", described)
        return root

    return make


@pytest.fixture
def stop_at() -> Callable[[int], Any]:
    """`stop_at(step)`: a Hook with which a training dies in the middle, as if killed."""
    from autoseg.engine.trainer import Hook, Trainer

    class StopAt(Hook):
        def __init__(self, step: int):
            self.step = step

        def on_step(self, trainer: Trainer, loss: float) -> None:
            if trainer.progress.step == self.step:
                raise KeyboardInterrupt

    return StopAt
