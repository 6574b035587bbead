"""Each channel's scaling, by what was said or by its modality."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from autoseg.errors import InputError
from autoseg.planning import normalize_modes


@pytest.mark.parametrize(
    ("modality", "normalization", "channels", "modes"),
    [
        ("CT", None, 2, ["ct", "ct"]),
        ("MRI", None, 3, ["zscore"] * 3),
        ("CT+PET", None, 2, ["ct", "zscore"]),
        ("PET+CT+CT", None, 3, ["zscore", "ct", "ct"]),
        ("MRI+PET", None, 2, ["zscore", "zscore"]),
        ("CT+PET", "zscore", 2, ["zscore", "zscore"]),
        ("XR", "CT", 1, ["ct"]),
        ("MRI", ["zscore", "ct"], 2, ["zscore", "ct"]),
        ("MRI", ("ct",), 2, ["ct", "ct"]),
    ],
)
def test_modes(modality: str, normalization: str | Sequence[str] | None, channels: int, modes: list[str]) -> None:
    assert normalize_modes(modality, normalization, channels) == modes


@pytest.mark.parametrize(
    ("modality", "normalization", "field"),
    [("CT+PET", None, "modality"), ("MRI+PET", None, "modality"), ("CT", ["ct", "ct"], "normalization")],
)
def test_another_number_of_words_than_channels_is_refused(
    modality: str, normalization: Sequence[str] | None, field: str
) -> None:
    with pytest.raises(InputError) as caught:
        normalize_modes(modality, normalization, 3)
    assert caught.value.faults[0].field == field and "3" in str(caught.value)
