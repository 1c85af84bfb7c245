# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The configs that go on top of a bundle's: a baseline with its own recipe, or one of the paper's ablations, by name.

They lie here once, and not in every bundle, because they are the same for all. ``docs/ablations.md`` says what each
does and where its numbers come from.
"""

from __future__ import annotations

from pathlib import Path

from swinumamba_monai.errors import check_known

OVERLAYS = {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*/*.json"))}


def overlay_path(name: str) -> Path:
    """Where the overlay ``name`` lies, else an InputError; it goes into ``--config_file`` behind a bundle's config."""
    check_known("overlay", [name], OVERLAYS)
    return OVERLAYS[name]
