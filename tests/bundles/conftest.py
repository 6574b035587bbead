"""One trained bundle a family, over data that makes preprocessing work: the tests of MONAI's contract share it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.bundles import available_templates, template_settings
from autoseg.config import load_config
from autoseg.demo import make_demo_data, simulate_case
from autoseg.engine.bundle import Bundle
from autoseg.engine.trainer import Trainer
from autoseg.pipeline import generate

FAMILIES = sorted(available_templates())
# what of these a family knows is set: small enough to learn something in seconds
SMALL = {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 1, "num_images_per_batch": 2, "num_iterations": 45}
SMALL |= {"overlap": 0.25, "feature_size": 12, "depths": [1, 1, 1, 1]}
SLOW = {"swinunetr": {"num_images_per_batch": 1, "num_iterations": 30}}  # its steps take ten times as long


@pytest.fixture(scope="session")
def awkward_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datalist: labels 1 and 3, spacings that differ between cases, and one testing case far smaller than a patch."""
    datalist = make_demo_data(tmp_path_factory.mktemp("data"), training=4, testing=2, shape=(32, 28, 24), labels=(1, 3))
    for path in datalist.parent.glob("*/*.nii.gz"):
        image = nib.load(path)
        spacing = [1.0, 1.1, 1.6] if "_00" in path.name else [1.2, 1.3, 1.5]
        voxels = np.asarray(image.dataobj)  # type: ignore[attr-defined]
        nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)
    image, label = simulate_case(np.random.default_rng(7), (16, 16, 16), 1, (1, 3))
    affine = np.array([[0, 0, 1.5, -11], [-1.2, 0, 0, 40], [0, -1.3, 0, 7], [0, 0, 0, 1.0]])  # stored PIR
    for kind, voxels in (("images", image[0]), ("labels", label)):
        nib.save(nib.Nifti1Image(voxels, affine), datalist.parent / kind / "tiny.nii.gz")
    plain = json.loads(datalist.read_text())
    plain["testing"].append({"image": "images/tiny.nii.gz", "label": "labels/tiny.nii.gz"})
    datalist.write_text(json.dumps(plain))
    return datalist


@pytest.fixture(scope="session", params=FAMILIES)
def family_bundle(request: pytest.FixtureRequest, awkward_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each family that comes with autoseg, planned from the data and trained for a few seconds."""
    known = template_settings(available_templates()[request.param])
    config = load_config(
        None,
        work_dir=str(tmp_path_factory.mktemp(request.param) / "work dir"),
        datalist=str(awkward_data),
        modality="MRI",
        num_fold=2,
        algos=[request.param],
        allow_skip=False,
        settings={key: value for key, value in {**SMALL, **SLOW.get(request.param, {})}.items() if key in known},
    )
    root = generate(config)[0]
    Trainer(Bundle.load(root)).run()
    return root
