# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Where a bundle lies: it is no part of the installed package."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch

from swinumamba_monai.errors import InputError, shown
from swinumamba_monai.tasks import TASKS

CONFIG = Path("configs") / "inference.json"


def find_bundle(bundle: str | PathLike, bundle_dir: str | PathLike | None = None) -> Path:
    """The folder of a bundle.

    A config is code, so a bundle is never taken from the working directory because it has the right name.

    Args:
        bundle: name of a task, such as ``microscopy``; any other text is the folder of a bundle, such as ``./mine``.
        bundle_dir: the folder of the bundle, or the one that it lies in. With None the bundle ``bundle`` of the
            repository is taken or, where the package is installed without that, the one that
            ``python -m monai.bundle download`` has put into MONAI's folder.

    Raises:
        InputError: it is no text and no path, empty, or there is none; the sentence says how to get it.
    """
    given = {"bundle": bundle} if bundle_dir is None else {"bundle": bundle, "bundle_dir": bundle_dir}
    for name, value in given.items():
        if not isinstance(value, (str, PathLike)):
            raise InputError(f"{name} must be a task ({', '.join(TASKS)}) or a path; got {value!r}.")
        if not str(value).strip():  # of a variable of the shell that is not set; it would be the working directory
            raise InputError(f"{name} is empty; give a task ({', '.join(TASKS)}) or the folder of a bundle.")
    if bundle_dir is not None:
        places = [Path(bundle_dir), Path(bundle_dir) / bundle]
    elif bundle in TASKS:
        repository = Path(__file__).parents[2] / "bundles"
        places = [folder / bundle for folder in (repository, Path(torch.hub.get_dir()) / "bundle")]
    elif (Path(bundle) / CONFIG).is_file():
        places = [Path(bundle)]
    else:
        raise InputError(f"'{shown(bundle)}' is no task ({', '.join(TASKS)}), and no folder of a bundle.")
    for place in places:
        if (place / CONFIG).is_file():
            return place.resolve()
    raise InputError(
        f"there is no bundle {' or '.join(map(str, places))}; bundles are no part of the package, so clone the "
        "repository, or fetch the bundle with 'python -m monai.bundle download', and give its folder as bundle_dir."
    )
