"""How the intensities of each channel are scaled."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.errors import Fault, InputError

CT_WORDS = ("CT",)


def normalize_modes(modality: str, normalization: str | Sequence[str] | None, channels: int) -> list[str]:
    """`ct` or `zscore` for each channel: as `normalization` says, else by modality.

    Both are one word for all channels, or one a channel (a list; CT+PET). CT numbers are absolute, all others relative.
    Raises InputError where there is another number of words than channels.
    """
    if normalization:
        field, words = "normalization", [normalization] if isinstance(normalization, str) else list(normalization)
        modes = [word.lower() for word in words]
    else:
        field, words = "modality", modality.split("+")
        modes = ["ct" if word.strip().upper() in CT_WORDS else "zscore" for word in words]
    if len(set(modes)) == 1 and len(modes) in (1, channels):
        return modes[:1] * channels
    if len(modes) != channels:
        message = (
            f"{'+'.join(words)} is of {len(words)} channels, the images have {channels}: one word, or one a channel"
        )
        raise InputError([Fault("", field, message)])
    return modes
