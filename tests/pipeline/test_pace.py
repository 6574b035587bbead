"""What predictions take where they are made in fewer windows than planned, and in which those of before are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.bundles.marks import bundle_settings, patch_file
from autoseg.config import load_config
from autoseg.datalist import load_datalist
from autoseg.devices import Devices
from autoseg.pipeline import pace
from autoseg.pipeline.clock import Clock
from autoseg.pipeline.session import Session, silent
from autoseg.planning.budget import Candidate, Choice
from autoseg.planning.windows import LEVELS, fewer_windows
from autoseg.records import Speed
from autoseg.workspace import Workspace, write_json

MakeBundle = Callable[..., Path]
MIRRORED = {"overlap": 0.5, "mirror_axes_inference": [0]}
SPEED = Speed(5.0, 0.5, 10.0, shape=(32, 32, 32), fewest=3.0)  # 54 windows as planned: 7 s of the 10 are theirs


@pytest.fixture
def session(make_bundle: MakeBundle, tmp_path: Path) -> Session:
    """One of two cores, within ten minutes."""
    make_bundle(**MIRRORED)
    data = tmp_path / "Köpfe und Hälse" / "data" / "datalist.json"
    config = load_config({"datalist": str(data), "modality": "MRI", "work_dir": str(tmp_path / "w")})
    return Session(config, Workspace(tmp_path / "w"), Devices(2, 2**34, ()), silent, Clock(600.0, tmp_path / "c.json"))


def test_seconds_of_a_case_lie_between_those_measured(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(**MIRRORED)
    assert bundle_settings(bundle)["roi_size"] == [16, 16, 16]
    taken = [pace._in_windows(SPEED, bundle, fewer_windows(bundle_settings(bundle), level)).case for level in LEVELS]
    assert taken == [10.0, pytest.approx(3.0 + 7.0 * (2 * 27 - 27) / (2 * 27 - 27)), 3.0]
    large = Speed(5.0, 0.5, 10.0, shape=(48, 48, 48), fewest=3.0)
    taken = [pace._in_windows(large, bundle, fewer_windows(bundle_settings(bundle), level)).case for level in LEVELS]
    assert taken == [10.0, pytest.approx(3.0 + 7.0 * (2 * 64 - 64) / (2 * 125 - 64)), 3.0]
    unknown = Speed(5.0, 0.5, 10.0)  # of a foreign family
    assert pace._in_windows(unknown, bundle, {"overlap": 0.25}) == unknown


def test_networks_that_are_kept_predict_in_the_windows_of_their_scores(
    make_bundle: MakeBundle, session: Session
) -> None:
    bundles = [make_bundle(fold=fold, **MIRRORED) for fold in (0, 1)]
    datalist = load_datalist(session.config.datalist)
    family = Candidate("segresnet", SPEED, 1000, 3000, 3)

    def members(left: set[str]) -> float:
        return pace._ahead(session, bundles, datalist, [family], LEVELS[-1], left).members["segresnet"]

    fewest, all_windows = members({"segresnet_0", "segresnet_1"}), members({"segresnet_0"})
    assert all_windows == pytest.approx(fewest * (10.0 - pace.SECONDS_A_CASE) / (3.0 - pace.SECONDS_A_CASE))
    write_json(patch_file(bundles[1]), {"roi_size": [16, 16, 16], "overlap": 0.25, "mirror_axes_inference": []})
    assert members({"segresnet_0"}) == fewest


def test_windows_are_judged_by_the_families_that_are_chosen(make_bundle: MakeBundle, session: Session) -> None:
    bundles = [make_bundle(**MIRRORED)]
    family = Candidate("segresnet", SPEED, 1000, 3000, 3)
    there = pace._ahead(session, bundles, load_datalist(session.config.datalist), [family], 0, {"segresnet_0"})
    choice = Choice({"segresnet": 100.0}, {"segresnet": 100}, folds=2, training=200.0)
    alone = pace._windows_share(there, choice)
    there.members["slow"] = 1000.0
    assert pace._windows_share(there, choice) == alone and pace._windows_share(there, None) is None


def test_a_slow_family_that_is_left_out_costs_no_windows(make_bundle: MakeBundle, session: Session) -> None:
    bundles = [make_bundle(**MIRRORED), make_bundle(name="slow_0", **MIRRORED)]
    quick = Candidate("segresnet", Speed(5.0, 0.5, 3.0, shape=(48, 48, 48), fewest=1.0), 1000, 3000, 3, share=3.0)
    slow = Candidate("slow", Speed(5.0, 0.5, 30.0, shape=(48, 48, 48), fewest=10.0), 1000, 3000, 3)
    datalist, left = replace(load_datalist(session.config.datalist), num_fold=1), {"segresnet_0", "slow_0"}
    session.workspace.create()
    ahead = [pace._ahead(session, bundles, datalist, [quick, slow], level, left) for level in LEVELS]
    choice = pace._chosen(session, bundles, datalist, ahead)
    assert list(choice.seconds) == ["segresnet"] and (choice.folds, choice.windows) == (1, 0)
