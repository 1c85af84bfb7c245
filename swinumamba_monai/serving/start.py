# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Start MONAI Label with a bundle; the environment must have MONAI Label (``make label`` sets one up)."""

from __future__ import annotations

import runpy
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from monai.config import PathLike

from swinumamba_monai.errors import InputError
from swinumamba_monai.pretrained import find_checkpoint, read_weights
from swinumamba_monai.training.checkpoint import save_atomically

APP = Path(__file__).parent / "app"


def serve(bundle: PathLike, studies: PathLike, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a bundle until the process is stopped.

    Args:
        bundle: folder of the bundle, with ``models/model.pt`` or ``models/model.safetensors``. MONAI Label reads and
            trains the first alone, so it is made from the second where it is missing.
        studies: folder of the images; labels are saved in its ``labels``.
        host: address that clients reach; the default is for clients on this machine alone.
        port: of the server.

    Raises:
        InputError: MONAI Label is not installed, or a folder or the weights are missing.
    """
    bundle, studies = Path(bundle).resolve(), Path(studies).resolve()
    if find_spec("monailabel") is None:
        raise InputError("MONAI Label is not installed here; `make label` sets up an environment that has it.")
    if not (bundle / "configs" / "inference.json").is_file():
        raise InputError(f"{bundle} is no bundle: it has no configs/inference.json.")
    weights = Path(find_checkpoint(bundle / "models"))
    if not weights.is_file():
        raise InputError(f"{bundle} has no models/model.pt; train the bundle, or put its weights there, first.")
    if not studies.is_dir():
        raise InputError(f"{studies} is no folder; give the one with the images as --studies.")
    if weights.suffix == ".safetensors":
        model = weights.with_suffix(".pt")
        print(f"{model} is made from {weights.name}: MONAI Label reads no other file, and training goes on from it.")
        state = read_weights(weights).items()
        save_atomically({name: w.float() if w.is_floating_point() else w for name, w in state}, model)
    stand_in_for_torchvision()
    # MONAI Label writes its log beside the app, so it gets a copy.
    app = shutil.copytree(APP, Path(tempfile.mkdtemp()) / "app", ignore=shutil.ignore_patterns("__pycache__"))
    sys.argv = ["monailabel", "start_server", "--app", str(app), "--studies", str(studies)]
    sys.argv += ["--host", host, "--port", str(port), "--conf", "bundle", str(bundle)]
    runpy.run_module("monailabel.main", run_name="__main__")


def stand_in_for_torchvision() -> None:
    """Let MONAI Label import where torchvision is missing or built for another torch.

    MONAI Label imports two functions of it, for pictures of DeepEdit and of pathology that no bundle here makes.
    """
    try:
        import torchvision.utils  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        package, module = ModuleType("torchvision"), ModuleType("torchvision.utils")
        package.utils = module
        module.make_grid = module.save_image = None
        sys.modules.update({"torchvision": package, "torchvision.utils": module})
