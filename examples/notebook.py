# %% [markdown]
# # Auto3DSeg's first notebook, with autoseg
# Twelve training and two testing volumes are simulated, one fold is trained, the testing volumes are segmented.
# The cells (`# %%`) run one by one in an editor or with Jupytext, and the file as a whole with Python:
# `python examples/notebook.py work_dirs/notebook`

# %%
from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import create_test_image_3d

from autoseg import AutoRunner

work_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "work_dirs/notebook")
size = int(sys.argv[2]) if len(sys.argv) > 2 else 64
iterations = int(sys.argv[3]) if len(sys.argv) > 3 else 200

# %% [markdown]
# ## Simulate the data

# %%
data = work_dir / "data"
data.mkdir(parents=True, exist_ok=True)
datalist: dict[str, list[dict[str, str]]] = {"training": [], "testing": []}
random = np.random.RandomState(0)
for section, name, count in (("training", "tr", 12), ("testing", "test", 2)):
    for number in range(1, count + 1):
        radius = size // 6
        image, label = create_test_image_3d(
            size, size, size, rad_max=radius, rad_min=radius // 2, num_seg_classes=1, random_state=random
        )
        entry = {"image": f"{name}_image_{number:03d}.nii.gz", "label": f"{name}_label_{number:03d}.nii.gz"}
        if not (data / entry["label"]).exists():
            nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), data / entry["image"])
            nib.save(nib.Nifti1Image(label.astype(np.uint8), np.eye(4)), data / entry["label"])
        datalist[section].append(entry)
(data / "datalist.json").write_text(json.dumps(datalist), "utf-8")

# %% [markdown]
# ## One call

# %%
source = {"modality": "MRI", "datalist": str(data / "datalist.json"), "dataroot": str(data)}
runner = AutoRunner(work_dir=str(work_dir), algos="segresnet", input=source)
runner.set_training_params({"num_iterations": iterations, "num_warmup_epochs": 1})
runner.set_num_fold(1)
result = runner.run()

# %% [markdown]
# ## What came out

# %%
print(f"validation Dice of {result.leaderboard[0].name}: {result.leaderboard[0].mean_dice:.4f}")
if result.evaluation is not None:
    print(f"Dice on the testing cases: {result.evaluation.mean_dice:.4f}")
print(work_dir / "ensemble_output" / "test_image_001" / "test_image_001_ensemble.nii.gz")
