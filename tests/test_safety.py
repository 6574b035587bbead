"""What lies in a work_dir or comes with the data is read, never run, and nothing is written outside the work_dir."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from autoseg.bundles.contract import check_template
from autoseg.bundles.marks import bundle_weights
from autoseg.bundles.templates import find_templates
from autoseg.cli import main
from autoseg.config import load_config
from autoseg.datalist import case_id, load_datalist
from autoseg.demo import make_demo_data
from autoseg.errors import InputError
from autoseg.pipeline import cancel, generate
from autoseg.pipeline.predicting import input_cases
from autoseg.workspace import Workspace, read_json, read_yaml, write_json, write_yaml

TINY = {"init_filters": 8, "blocks_down": [1, 1], "dsdepth": 1, "roi_size": [16, 16, 16], "num_iterations": 6}
TINYNET = Path(__file__).parent / "templates"
GIVEN = {"modality": "MRI", "num_fold": 2, "algos": ["segresnet"], "settings": TINY}
CapSys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and `w`, a work_dir whose two bundles are written and not trained."""
    folder = tmp_path_factory.mktemp("Plan é")
    datalist = make_demo_data(folder / "data", training=4, testing=1, shape=(20, 20, 16))
    generate(load_config(None, work_dir=str(folder / "w"), datalist=str(datalist), **GIVEN))
    return folder


class Scene:
    """A copy of `planned`, a folder beside it that must stay as it is, and a file that must never come to be."""

    def __init__(self, planned: Path, root: Path):
        self.marker, self.canary = root / "marker", root / "canary"
        (self.canary / "inside").mkdir(parents=True)
        (self.canary / "precious.txt").write_text("precious\n")
        shutil.copytree(planned / "w", root / "w")
        self.work_dir, self.datalist = root / "w", planned / "data" / "datalist.json"
        self.before = self.snapshot()

    @property
    def expression(self) -> str:
        """What MONAI's ConfigParser would run."""
        return f"$open({str(self.marker)!r}, 'w')"

    def snapshot(self) -> dict[str, bytes]:
        files = [path for path in self.canary.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in (*files, *self.datalist.parent.rglob("*.nii.gz"))}

    def verb(self, name: str) -> list[str]:
        """The words of a verb on this work_dir, none of which trains."""
        data = ["--datalist", str(self.datalist), "--modality", "MRI", "--num_fold", "2", "--algos", "segresnet"]
        sets = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
        output = str(self.work_dir / "out")
        words = {"run": [*data, *sets, "--dry_run"], "stored": ["--dry_run"], "ensemble": data, "status": []}
        words["predict"] = ["--input", str(self.datalist.parent / "images"), "--output", output]
        words["limited"] = [*words["run"], "--time_limit", "1h"]
        return ["run" if name in ("stored", "limited") else name, "--work_dir", str(self.work_dir), *words[name]]

    def unharmed(self) -> bool:
        return not self.marker.exists() and self.snapshot() == self.before


@pytest.fixture
def scene(planned: Path, odd_path: Path) -> Scene:
    return Scene(planned, odd_path)


def said_in_words(capsys: CapSys) -> str:
    """What was printed: no traceback, and no error but in a sentence."""
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said and "internal error" not in said
    return said


# ---- records of a run

STATE = {
    "clock.json": ("limited",),
    "plan.json": ("run", "status"),
    "run.lock": ("run", "status"),
    "events.jsonl": ("run", "status"),
    "leaderboard.json": ("ensemble", "status"),
    "ensemble.json": ("predict", "status"),
    "datalist.json": ("status",),
    "input.yaml": ("stored", "ensemble"),
    "datastats.yaml": ("run",),
    "jobs/segresnet_0/result.json": ("run", "status"),
    "jobs/segresnet_0/job.json": ("status",),
    "segresnet_0/algo_object.json": ("run",),
    "segresnet_0/metrics.jsonl": ("run", "status"),
    "segresnet_0/configs/hyper_parameters.yaml": ("run",),
}
CONTENTS = {
    "torn": b'{"schema_version": 1, "ent',
    "list": b"[1, [2]]",
    "text": b'"text"',
    "other": b'{"status": "running", "entries": [3], "members": "ab", "families": [], "labels": 3, "pid": "x"}',
    "binary": b"\xff\xfe\x00\x80",
    "yaml": b"!!python/object/apply:os.mkdir [MARKER]\n",
}


@pytest.mark.parametrize("name", STATE)
def test_a_record_of_another_form_is_said_or_written_anew(scene: Scene, name: str, capsys: CapSys) -> None:
    path = scene.work_dir / name
    whole = path.read_bytes() if path.exists() else None
    for kind, content in CONTENTS.items():
        for verb in STATE[name]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.replace(b"MARKER", str(scene.marker).encode()))
            code = main(scene.verb(verb))
            assert code in (0, 2), f"{kind}, {verb}: {said_in_words(capsys)}"
            said_in_words(capsys)
            assert scene.unharmed(), f"{kind}, {verb}"
            if whole is not None:
                path.write_bytes(whole)


def test_members_that_lie_elsewhere_are_none(scene: Scene, capsys: CapSys) -> None:
    """Their networks would be built from whatever configuration lies there."""
    elsewhere = scene.work_dir.parent / "elsewhere_0"
    shutil.copytree(scene.work_dir / "segresnet_0", elsewhere)
    write_yaml(elsewhere / "configs" / "network.yaml", {"network_def": scene.expression})
    (elsewhere / "models" / "model.pt").write_bytes(b"x")
    for name in ("../elsewhere_0", str(elsewhere), "segresnet_0/../../elsewhere_0", 7):
        write_json(scene.work_dir / "ensemble.json", {"members": [name]})
        assert main(scene.verb("predict")) == 2
        assert "no bundle of a run" in said_in_words(capsys)
    entry = {"algo": "../elsewhere", "fold": 0, "status": "done", "mean_dice": 0.9}
    write_json(scene.work_dir / "leaderboard.json", {"entries": [entry]})
    assert main(scene.verb("ensemble")) == 2
    assert "no bundle of a run" in said_in_words(capsys)
    assert scene.unharmed()


def test_yaml_constructs_nothing(scene: Scene, capsys: CapSys) -> None:
    path = scene.work_dir.parent / "given.yaml"
    path.write_text(f"modality: !!python/object/apply:os.mkdir [{str(scene.marker)!r}]\ndatalist: {scene.datalist}\n")
    assert main(["run", "--input", str(path), "--work_dir", str(scene.work_dir)]) == 2
    assert "given.yaml" in said_in_words(capsys)
    assert main([*scene.verb("run"), "--set", f"@{path}"]) == 2
    assert "given.yaml" in said_in_words(capsys)
    assert scene.unharmed()


@pytest.mark.parametrize("place", ["label_values", "n_cases", "spacing"])
def test_statistics_are_numbers(scene: Scene, place: str) -> None:
    path = scene.work_dir / "datastats.yaml"
    stats = read_yaml(path)
    value = scene.expression
    stats["autoseg"][place] = {"label_values": [0, value], "n_cases": value, "spacing": {"median": [value] * 3}}[place]
    write_yaml(path, stats, versioned=False)
    config = load_config(
        None, work_dir=str(scene.work_dir), datalist=str(scene.datalist), analyze=False, **{**GIVEN, "num_fold": None}
    )
    with pytest.raises(InputError, match=r"datastats\.yaml: no statistics"):
        generate(config)
    assert scene.unharmed()


def test_another_process_is_never_ended_for_a_record(scene: Scene) -> None:
    lock = Workspace(scene.work_dir).lock_file
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        try:
            with open(lock, "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                for pid in (bystander.pid, -1, 0, 2**40):
                    file.seek(0)
                    file.truncate()
                    file.write(json.dumps({"pid": pid, "host": socket.gethostname(), "started": "soon"}))
                    file.flush()
                    with pytest.raises(InputError, match=f"process {pid} does not hold it"):
                        cancel(scene.work_dir)
                with pytest.raises(InputError, match="in use by process"), Workspace(scene.work_dir).lock():
                    pass
            assert bystander.poll() is None
        finally:
            bystander.kill()


# ---- what comes with the data


def spoilt_datalist(scene: Scene, **changes: Any) -> Path:
    """A datalist of links to the images, `changes` made in it."""
    folder = scene.work_dir.parent / "spoilt"
    shutil.copytree(scene.datalist.parent, folder)
    write_json(folder / "datalist.json", {**read_json(folder / "datalist.json"), **changes})
    return folder / "datalist.json"


def test_names_of_the_data_are_words_to_monai(scene: Scene) -> None:
    """In labels, patients, modality and file names; MONAI's own command reads the bundle."""
    run, macro = scene.expression, "%network.yaml::network_def"
    labels = {"0": "background", "1": run, "2": "@network_def"}
    path = spoilt_datalist(scene, labels=labels)
    plain = read_json(path)
    for entry, patient in zip(plain["training"], (run, "@x", macro, "$y"), strict=True):
        entry["patient"] = patient
    first = path.parent / plain["training"][0]["image"]
    renamed = first.with_name("$open('x','w').nii.gz")
    plain["training"][0]["image"] = str(first.rename(renamed))
    write_json(path, plain)
    given = {**GIVEN, "modality": run, "normalization": "zscore"}
    bundles = generate(load_config(None, work_dir=str(scene.work_dir), datalist=str(path), **given))
    for bundle in bundles:
        texts = {file.name: file.read_text() for file in (bundle / "configs").iterdir()}
        assert not [name for name, text in texts.items() if "$open" in text]
        settings = read_yaml(bundle / "configs" / "hyper_parameters.yaml")
        assert settings["class_names"]["2"] == "_network_def"
        for name in ("inference.yaml", "train.yaml"):
            parser = ConfigParser(read_yaml(bundle / "configs" / name))
            parser["bundle_root"] = str(bundle)
            parser.get_parsed_content("network_def")
            parser.get_parsed_content("train#preprocessing" if name == "train.yaml" else "preprocessing")
        assert ConfigParser(settings).get_parsed_content("class_names") == settings["class_names"]
    assert scene.unharmed() and not Path("x").exists()


def test_foreign_templates_are_told_escaped_names(scene: Scene) -> None:
    """MONAI's own templates copy the names into configurations that they run."""
    given = {**GIVEN, "class_names": [scene.expression, "@b"], "algos": ["tinynet"]}
    given |= {"settings": {}, "templates_path_or_url": str(TINYNET)}
    config = load_config(None, work_dir=str(scene.work_dir), datalist=str(scene.datalist), **given)
    generate(config)
    told = read_yaml(scene.work_dir / "input_foreign.yaml")["class_names"]
    assert len(told) == 2 and not any("$" in name or "@" in name for name in told)
    assert scene.unharmed()


def test_a_template_is_looked_at_without_running_it(scene: Scene) -> None:
    folder = scene.work_dir.parent / "templates" / "evil"
    shutil.copytree(TINYNET / "tinynet", folder)
    for script in (folder / "scripts").iterdir():
        script.write_text(f"open({str(scene.marker)!r}, 'w')\n{script.read_text().replace('TinynetAlgo', 'EvilAlgo')}")
    assert check_template(folder) == []
    assert find_templates(("evil",), folder.parent)
    config = {"datalist": str(scene.datalist), "algos": ["evil"], "settings": {"x": 1}}
    load_config(config, modality="MRI", templates_path_or_url=str(folder.parent), work_dir=str(scene.work_dir))
    assert scene.unharmed()


def test_the_weights_of_a_foreign_bundle_are_found_without_reading_them(scene: Scene) -> None:
    bundle = scene.work_dir / "tinynet_0"
    (bundle / "models").mkdir(parents=True)
    write_json(bundle / "foreign.json", {"settings": {}})
    (bundle / "models" / "best.pt").write_bytes(b"no checkpoint")
    (bundle / "models" / "gone.pt").symlink_to("nowhere.pt")
    assert bundle_weights(bundle).name == "best.pt"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("x/...nii.gz", "...nii.gz"),
        ("x/..nii.gz", "..nii.gz"),
        ("x/.nii.gz", ".nii.gz"),
        ("x/..png", "..png"),
        ("../../a.nii.gz", "a"),
        ("x/a.b.nii.gz", "a.b"),
        ("x/a.unknown", "a"),
        ("x/..a", "..a"),
    ],
)
def test_no_case_is_named_as_another_folder(file: str, expected: str) -> None:
    assert case_id(file) == expected


def test_paths_that_climb_are_inputs_alone(scene: Scene) -> None:
    """A datalist may name files anywhere; what is written is named by the file's own name."""
    path = spoilt_datalist(scene)
    plain = read_json(path)
    climbing = path.parent / "images" / "...nii.gz"
    (path.parent / plain["testing"][0]["image"]).rename(climbing)
    plain["testing"][0]["image"] = f"images/../../{path.parent.name}/images/...nii.gz"
    write_json(path, plain)
    (case,) = load_datalist(path).testing
    assert case.image == (str(climbing),)
    workspace = Workspace(scene.work_dir)
    written = workspace.prediction(case.id).resolve()
    assert written.is_relative_to(workspace.ensemble_output) and written.parent != workspace.ensemble_output


# ---- links


def _folder(scene: Scene, name: str) -> Path:
    path = scene.work_dir / name
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(scene.canary)
    return path


def _file(scene: Scene, name: str) -> Path:
    path = scene.work_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(scene.canary / "precious.txt")
    return path


FOLDERS = ("ensemble_output", "ensemble_output/case_4", "segresnet_0", "segresnet_1/models", "cache", "cache/analysis")
FOLDERS += ("jobs", "jobs/segresnet_0", "algorithm_templates", "algorithm_templates/segresnet")
FILES = ("run.lock", "events.jsonl", "clock.json", "segresnet_0/metrics.jsonl", "segresnet_0/training.log")
PLANTS = [(_folder, name) for name in FOLDERS] + [(_file, name) for name in FILES]


@pytest.mark.parametrize(("plant", "name"), PLANTS, ids=[name for _, name in PLANTS])
def test_nothing_is_written_through_a_link_that_leads_out(
    scene: Scene, plant: Callable[[Scene, str], Path], name: str, capsys: CapSys
) -> None:
    link = plant(scene, name)
    for verb in ("run", "ensemble"):
        assert main(scene.verb(verb)) == 2
        said = said_in_words(capsys)
        assert str(link) in said and "leads out of the work_dir" in said
    assert scene.unharmed() and link.is_symlink()


def test_links_that_stay_within_and_those_of_others_are_left_alone(scene: Scene, capsys: CapSys) -> None:
    """A work_dir may be a link itself, and the user's own links may lie in it."""
    (scene.work_dir / "cache").rename(scene.work_dir / "kept")
    (scene.work_dir / "cache").symlink_to("kept")
    (scene.work_dir / "my images").symlink_to(scene.canary)
    linked = scene.work_dir.with_name("linked")
    linked.symlink_to(scene.work_dir)
    words = [str(linked) if word == str(scene.work_dir) else word for word in scene.verb("run")]
    assert main(words) == 0, said_in_words(capsys)
    assert scene.unharmed()


def test_a_folder_of_images_with_links(scene: Scene) -> None:
    folder = scene.work_dir.parent / "pictures"
    folder.mkdir()
    image = scene.datalist.parent / read_json(scene.datalist)["testing"][0]["image"]
    (folder / "a.nii.gz").symlink_to(image)
    (folder / "loop").symlink_to(folder)
    assert [case.id for case in input_cases(folder, 1)] == ["a"]
    (folder / "b.nii.gz").symlink_to(folder / "b.nii.gz")
    (folder / "c.nii.gz").symlink_to("nowhere.nii.gz")
    with pytest.raises(InputError) as caught:
        input_cases(folder, 1)
    assert sorted(Path(fault.file).name for fault in caught.value.faults) == ["b.nii.gz", "c.nii.gz"]
    assert os.path.samefile(folder / "a.nii.gz", image)
