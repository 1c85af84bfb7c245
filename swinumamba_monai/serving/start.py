# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Start MONAI Label with a bundle; the environment must have MONAI Label (``make label`` sets one up)."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from monai.config import PathLike

from swinumamba_monai.atomic import temporary_folder
from swinumamba_monai.data.files.picture_kinds import IMAGE_SUFFIXES
from swinumamba_monai.distribution.network_of_config import read_bundle_network
from swinumamba_monai.errors import InputError, explained, shown
from swinumamba_monai.training.checkpoint import save_atomically
from swinumamba_monai.weight_files import find_checkpoint, read_weights

APP = Path(__file__).parent / "app"
# What serve tells the server, which uvicorn imports: the address, and origins with blanks between them.
MONAI_VARIABLE = "MONAI_LABEL_CORS_ORIGINS"
HOST_VARIABLE, ORIGINS_VARIABLE = "SWINUMAMBA_LABEL_HOST", "SWINUMAMBA_LABEL_ORIGINS"
SESSIONS_VARIABLE = "MONAI_LABEL_SESSION_PATH"
EXTENSIONS_VARIABLE = "MONAI_LABEL_DATASTORE_FILE_EXT"
# Endings of the images and labels that are listed; MONAI Label's own lack .jpeg, .tiff, .bmp and all in capitals.
ENDINGS = (".nii.gz", ".nii", ".nrrd", *IMAGE_SUFFIXES, ".xml")

DATASTORE, LABELS = "datastore_v2.json", "labels"
OWN_FILES = {DATASTORE, ".lock"}  # MONAI Label's own files in the studies folder


def serve(bundle: PathLike, studies: PathLike, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a bundle until the process is stopped.

    Args:
        bundle: folder of the bundle, with ``models/model.pt`` or ``models/model.safetensors``. MONAI Label reads and
            trains the first alone, so it is made from the second where it is missing.
        studies: folder of the images; labels are saved in its ``labels``.
        host: address that clients reach; the default is for clients on this machine alone.
        port: port of the server.

    Raises:
        InputError: MONAI Label is not installed; a folder or the weights are missing, or these do not fit the network
            in ``configs/inference.json``; in ``studies`` lies a link where the server writes, or a list of images that
            names other folders; or the environment variable ``MONAI_LABEL_CORS_ORIGINS``, which names the web sites
            whose pages may use the server, is no list of them.
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
    _check_studies(studies)
    read_bundle_network(bundle / "configs" / "inference.json", weights)  # MONAI Label would answer status 500 for ever
    origins = _read_origins(os.environ.get(MONAI_VARIABLE, ""))
    if weights.suffix == ".safetensors":
        model = weights.with_suffix(".pt")
        print(f"{model} is made from {weights.name}: MONAI Label reads no other file, and training goes on from it.")
        state = read_weights(weights).items()
        save_atomically({name: w.float() if w.is_floating_point() else w for name, w in state}, model)
    stand_in_for_torchvision()
    os.environ[HOST_VARIABLE] = host
    os.environ[ORIGINS_VARIABLE] = " ".join(origins)
    os.environ.setdefault(EXTENSIONS_VARIABLE, json.dumps([f"*{e}" for end in ENDINGS for e in (end, end.upper())]))
    os.environ.pop(MONAI_VARIABLE, None)  # MONAI Label 0.8.5 fails on one that is set
    with temporary_folder("label") as folder, _temporary_files_in(folder):
        # MONAI Label writes its log beside the app, so it gets a copy.
        app = shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
        os.environ[SESSIONS_VARIABLE] = str(folder / "sessions")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # which uvicorn raises again when it has shut down
        (empty := folder / "empty").mkdir()
        os.chdir(empty)  # MONAI Label takes the name of an image for that of a file here, if there is one
        sys.argv = ["monailabel", "start_server", "--app", str(app), "--studies", str(studies)]
        sys.argv += ["--host", host, "--port", str(port), "--conf", "bundle", str(bundle)]
        sys.argv += ["--uvicorn_app", "swinumamba_monai.serving.server:app"]
        try:
            runpy.run_module("monailabel.main", run_name="__main__")
        finally:
            _end_tasks()


def _end_tasks() -> None:
    """End what runs beside the server, whose end MONAI Label would wait for, hours perhaps, and what waits its turn."""
    if (tasks := sys.modules.get("monailabel.utils.async_tasks.utils")) is None:
        return  # the server has not come so far
    for method, executor in tasks.background_executors.items():
        executor.shutdown(wait=False, cancel_futures=True)
        with suppress(tasks.psutil.NoSuchProcess):  # it has just ended
            tasks.stop_background_task(method)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let what clients send, and are sent, go with the server; not by TMPDIR, where a training makes its sockets."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _check_studies(studies: Path) -> None:
    """Refuse a folder of a stranger that would lead the server out of it.

    MONAI Label writes its list of images and its lock, and labels into ``labels``, through links; it reads the list,
    whatever folders it names, and removes what it names.
    """
    labels = studies / LABELS
    for path in [*(studies / name for name in sorted(OWN_FILES)), labels, *labels.glob("*")]:
        if path.is_symlink():
            raise InputError(f"{path} is a link, and the server writes there; put the file or folder itself there.")
    if not (datastore := studies / DATASTORE).exists():
        return
    with explained(f"{datastore} is no list of images of MONAI Label", "remove it, and the server makes it again"):
        content = json.loads(datastore.read_text(encoding="utf-8"), parse_constant=_refuse_number)
        folders = content.get("images_dir", "."), content.get("labels_dir", LABELS)
        names = []
        for name, entry in content.get("objects", {}).items():
            tags = entry.get("labels", {})
            names += [name, *tags, *(name + part.get("ext", "") for part in [entry["image"], *tags.values()])]
        if folders not in (("", LABELS), (".", LABELS)):
            raise ValueError("it names other folders")
        if wrong := [name for name in names if name in ("", ".", "..") or "\0" in name or Path(name).name != name]:
            raise ValueError(f"it names {shown(wrong[0])}, which is no file in it")


def _refuse_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _read_origins(text: str) -> list[str]:
    """The origins in ``MONAI_LABEL_CORS_ORIGINS``: a JSON list, or with commas between them."""
    try:
        origins = (
            json.loads(text) if text.strip().startswith("[") else [o.strip() for o in text.split(",") if o.strip()]
        )
        origins = [origin.lower().rstrip("/") for origin in origins]
        valid = all(re.fullmatch(r"https?://[\w.\[\]:-]+", origin) for origin in origins)
    except (AttributeError, TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(f'{MONAI_VARIABLE} must be a list like ["https://viewer.example.org"].')
    return origins


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
