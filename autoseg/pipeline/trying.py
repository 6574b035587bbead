"""The verb check-family: a template is planned, written, trained, resumed, used and exported, on generated data."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from autoseg.bundles.contract import check_template, is_foreign
from autoseg.config import RunConfig, load_config
from autoseg.demo import make_demo_data
from autoseg.errors import Fault, InputError, one_line, root_cause
from autoseg.pipeline.watching import job_log
from autoseg.records import Event
from autoseg.workspace import Workspace, read_json

T = TypeVar("T")
PATIENCE = 900  # seconds of a step
SHAPE = (40, 36, 32)
EXPORT = ("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.yaml")


def check_family(folder: str | Path, notify: Callable[[Event], None]) -> None:
    """Raise InputError with every breach of the contract, or with what a run of the family on small data came to.

    Two steps are trained, one case predicted, two more steps trained from the checkpoint, the network exported. Of a
    template written for MONAI's Auto3DSeg, whose steps are its own to count, all but that: it trains as it stands.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise InputError([Fault(str(folder), "", "no such folder")])
    if faults := check_template(folder):
        raise InputError(faults)
    with tempfile.TemporaryDirectory(prefix="autoseg_") as place:
        trial = _Trial(folder, Path(place), notify)
        trial.generate()
        if trial.foreign:
            trial.train_foreign()
            return
        trial.network()
        trial.train()
        trial.infer()
        trial.resume()
        trial.export()


class _Trial:
    """The family at `folder`, tried in `place`; what fails is a fault of the folder, named by the step."""

    def __init__(self, folder: Path, place: Path, notify: Callable[[Event], None]):
        self.folder, self.notify = folder, notify
        self.datalist = make_demo_data(place / "data", training=4, testing=1, shape=SHAPE)
        self.image = self.datalist.parent / read_json(self.datalist)["testing"][0]["image"]
        self.workspace = Workspace(place / "work dir")
        self.bundle = self.workspace.bundle(folder.name, 0)
        self.foreign = is_foreign(folder)

    def generate(self) -> None:
        """Plan and write the bundle of one fold."""
        from autoseg.pipeline import generate

        self._try("plan", lambda: generate(self._config()))
        self._done("plans and writes its bundle")

    def network(self) -> None:
        """Outputs of the right shape, of a patch as planned."""
        import torch

        from autoseg.engine.bundle import Bundle

        bundle = Bundle.load(self.bundle)
        settings = bundle.settings
        size = [n for axis, n in enumerate(settings["roi_size"]) if axis != settings["slice_axis"]]
        wanted = [1, int(settings["output_classes"]), *size]

        def forward() -> list[int]:
            with torch.no_grad():
                return list(bundle.network().eval()(torch.zeros(1, int(settings["input_channels"]), *size)).shape)

        shape = self._try("network", forward)
        if shape != wanted:
            raise self._fault("network", f"gives {shape} of a patch, where logits {wanted} are wanted")
        self._done(f"its network gives logits {wanted}")

    def train(self) -> None:
        """Two steps, by the bundle's own script."""
        self._python("train", "scripts/train.py", "run", "--num_iterations", "2")
        if not (self.bundle / "models" / "model.pt").is_file():
            raise self._fault("train", "left no models/model.pt")
        self._done("trains two steps")

    def infer(self) -> None:
        """A prediction of the image's shape that holds the labels' values alone."""
        import nibabel as nib
        import numpy as np

        output = self.workspace.root / "prediction.nii.gz"
        self._python("infer", "scripts/infer.py", "run", "--image", str(self.image), "--output", str(output))
        found = np.asarray(nib.load(output).dataobj)
        if found.shape != SHAPE or not set(np.unique(found)) <= {0, 1, 2}:
            raise self._fault("infer", f"a prediction of {found.shape} with the values {np.unique(found)}")
        self._done("predicts an image on its own grid")

    def resume(self) -> None:
        """Two steps more, from the checkpoint."""
        log = self._python("resume", "scripts/train.py", "run", "--num_iterations", "4")
        if "resumed at step 2" not in log:
            raise self._fault("resume", "began anew where a checkpoint was")
        self._done("resumes at the third step")

    def export(self) -> None:
        """As TorchScript, by MONAI's own command."""
        command = ("ckpt_export", "--net_id", "network_def", "--use_trace", "True", *EXPORT)
        self._python("export", "-m", "monai.bundle", *command)
        self._done("is exported as TorchScript by python -m monai.bundle ckpt_export")

    def train_foreign(self) -> None:
        """By its own train.py, as it stands; then scored and asked for a prediction, as in any run."""
        from autoseg.pipeline import run

        result = self._try("train", lambda: run(self._config()))
        if result.failed or not result.predictions:
            said = job_log(self.workspace.root, result.failed[0].id, 1) if result.failed else []
            raise self._fault("train", f"came to nothing: {said[-1] if said else 'no prediction'}")
        self._done("trains, is scored and predicts; resuming and exporting are its own affair")

    def _config(self) -> RunConfig:
        given = {"work_dir": str(self.workspace.root), "datalist": str(self.datalist), "modality": "MRI"}
        given |= {"templates_path_or_url": str(self.folder.parent)}
        settings = {} if self.foreign else {"num_epochs": 1}
        return load_config({**given, "algos": [self.folder.name], "num_fold": 1, "settings": settings, "max_tries": 1})

    def _python(self, step: str, *words: str) -> str:
        """What a command in the bundle prints; a fault with its last line where it fails."""
        try:
            found = subprocess.run(
                [sys.executable, *words],
                cwd=self.bundle,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise self._fault(step, f"was not over after {PATIENCE} s") from None
        said = [line for line in found.stdout.splitlines() if line.strip()]
        if found.returncode:
            raise self._fault(step, said[-1] if said else f"exit code {found.returncode}")
        return found.stdout

    def _try(self, step: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except InputError:
            raise
        except Exception as error:  # whatever a template's own code raises
            raise self._fault(step, one_line(root_cause(error))) from error

    def _fault(self, step: str, message: str) -> InputError:
        return InputError([Fault(str(self.folder), step, message)])

    def _done(self, message: str) -> None:
        self.notify(Event("stage", f"{self.folder.name} {message}"))
