# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's server with doors: what :mod:`.requests` does not let through reaches nothing behind them.

MONAI Label 0.8.5 hands the values of requests on as they come, and lets a page of any web site command the server of
"this machine alone". Here each function behind an address gets checked values; addresses that a bundle has no use for
(a proxy, upload and removal of models, a viewer of DICOM, a report of the GPU) are gone; and a browser is answered only
where the page comes from the server itself or from an origin that ``MONAI_LABEL_CORS_ORIGINS`` names. What cannot be
done is an answer of one sentence, and leaves no file behind.
"""

from __future__ import annotations

import functools
import inspect
import ipaddress
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch

from swinumamba_monai.errors import InputError, find_input_error, shown
from swinumamba_monai.serving.requests import (
    INFERENCE,
    SAMPLING,
    TRAINING,
    check_bounds,
    check_data,
    check_device,
    check_fields,
    check_file_name,
    check_name,
    check_sum,
)
from swinumamba_monai.serving.start import HOST_VARIABLE, ORIGINS_VARIABLE, OWN_FILES, stand_in_for_torchvision

stand_in_for_torchvision()

from fastapi import FastAPI, HTTPException, Request  # noqa: E402
from fastapi.background import BackgroundTasks  # noqa: E402
from fastapi.exceptions import RequestValidationError  # noqa: E402
from fastapi.middleware.cors import CORSMiddleware  # noqa: E402
from fastapi.responses import FileResponse, JSONResponse  # noqa: E402
from monailabel import app as monai_label  # noqa: E402
from monailabel.datastore.local import LocalDatastore  # noqa: E402
from monailabel.endpoints import (  # noqa: E402
    activelearning,
    batch_infer,
    datastore,
    infer,
    logs,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.interfaces.exception import (  # noqa: E402
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelException,
)
from monailabel.interfaces.utils.app import app_instance  # noqa: E402
from monailabel.utils.others.generic import device_map, remove_file  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from starlette.background import BackgroundTask  # noqa: E402

__all__ = ["app"]

REMOVED = ("/proxy", "/ohif", "/reload", "/logs/gpu")  # addresses that begin so
LOCAL_NAMES = {"localhost"}
SAME_SITE = {"same-origin", "none"}  # the latter for an address that a person has typed


def _device(field: str, value: object) -> str:
    devices = device_map()
    return check_device(field, value, {*devices, *devices.values()})


def _fields(checks: Mapping) -> Callable[[str, object], dict]:
    checks = {**checks, "device": _device} if "device" in checks else checks
    return lambda field, value: check_fields(value, checks)


def _text(checks: Callable[[str, object], object]) -> Callable[[str, object], str]:
    """A check of JSON that comes as text, and goes on as text."""

    def check(field: str, value: object) -> str:
        try:
            content = json.loads(value) if value else {}
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{field} is not JSON.") from error
        if not isinstance(content, dict):
            raise InputError(f"{field} must be an object of names and values.")
        return json.dumps(checks(field, content))

    return check


def _name_or_nothing(field: str, value: object) -> str | None:
    return value if value is None else check_name(field, value, optional=True)


def _one_file(field: str, value: object) -> bool:
    if value:
        raise InputError(f"{field} is not possible here: send the image, not an archive.")
    return False


def _upload(field: str, value: object) -> object:
    """Files that are sent: MONAI Label makes an image's name, and the endings of its files, from theirs."""
    for file in value if isinstance(value, list) else [value]:
        if getattr(file, "filename", None):
            file.filename = check_file_name(field, file.filename)
    return value


def _label(field: str, value: object) -> object:
    """A label that comes with an image; MONAI Label would take a file ``.bin`` for the voxels of one."""
    if str(getattr(_upload(field, value), "filename", None)).lower().endswith(".bin"):
        raise InputError(f"{field} must be an image, not its bare voxels.")
    return value


def _batch(field: str, value: object) -> dict:
    """An inference on many images; MONAI Label would share them out among GPUs where there are none."""
    checked = _fields(INFERENCE)(field, value)
    return checked if torch.cuda.device_count() else {**checked, "multi_gpu": False}


def _region(field: str, value: object) -> object:
    """Where QuPath and its like ask for; its "params" go into the request as those of an inference do."""
    check_data(field, value.model_dump(exclude={"params"}))
    value.params = _fields(INFERENCE)(field, value.params)
    return value


def _by_model(field: str, value: object) -> dict:
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"{field} must be an object of names and values.")
    if unknown := [model for model in value or {} if model not in app_instance().info()["trainers"]]:
        raise InputError(f"{field} names the model '{shown(unknown[0])}', which there is not.")
    return {model: _fields(TRAINING)(field, own) for model, own in (value or {}).items()}


# What each function behind an address gets, by the names of its arguments. A name with no check here is a number or a
# switch, of which FastAPI has checked the kind; how large it is is looked at in each.
_NAMES = dict.fromkeys(("model", "image", "id", "tag", "label", "session_id", "strategy", "method"), _name_or_nothing)
_NAMES |= dict.fromkeys(("file", "files"), _upload)
_WITH_NAMES_ALONE = ("remove_image", "remove_label", "download_label", "get_image_info", "get_label_info")
_CHECKS: list[tuple[ModuleType, dict[str, dict[str, Callable]]]] = [
    (infer, {"run_inference": {"params": _text(_fields(INFERENCE)), "label": _label}}),
    (wsi_infer, {"run_wsi_inference": {"wsi": _region}}),
    (batch_infer, {"run": {"params": _batch, "images": lambda field, value: value}}),
    (train, {"run_model": {"params": _fields(TRAINING)}, "run": {"params": _by_model}}),
    (activelearning, {"sample": {"params": _fields(SAMPLING)}}),
    (scoring, {"run": {"params": _fields(SAMPLING)}, "run_method": {"params": _fields(SAMPLING)}}),
    (logs, {"get_logs": {}}),
    (session, {"get_session": {}, "remove_session": {}, "create_session": {"uncompress": _one_file}}),
    (
        datastore,
        {
            "add_image": {"params": _text(check_data)},
            "save_label": {"params": _text(check_data), "label": _upload},
            "update_image_info": {"info": _text(check_data)},
            "update_label_info": {"info": _text(check_data)},
            "download_image": {"check_sum": check_sum},
            "download_dataset": {},
            **{name: {} for name in _WITH_NAMES_ALONE},
        },
    ),
]


def _checked(function: Callable, checks: Mapping[str, Callable[[str, object], object]]) -> Callable:
    """A function whose arguments are checked first; a refusal is the answer 400 with the sentence.

    So is what the function finds of the image that it is given. Files that were sent are removed all the same.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        bound = signature.bind(*args, **kwargs)
        try:
            for name, value in bound.arguments.items():
                check = checks.get(name, _NAMES.get(name, check_bounds if isinstance(value, (int, float)) else None))
                if check:
                    bound.arguments[name] = check(name, value)
        except InputError as error:
            raise HTTPException(status_code=400, detail=str(error)) from error
        try:
            return function(*bound.args, **bound.kwargs)
        except BaseException as error:
            _remove_sent(bound.arguments.get("background_tasks"))
            if not isinstance(error, HTTPException) and (cause := find_input_error(error)):
                raise HTTPException(status_code=400, detail=str(cause)) from error
            raise

    return call


def _remove_sent(tasks: BackgroundTasks | None) -> None:
    """Do what MONAI Label leaves for after a good answer alone: remove the copies of what was sent."""
    for task in tasks.tasks if tasks else ():
        task.func(*task.args)


def _sent_once(function: Callable) -> Callable:
    """The archive of all labels, which MONAI Label would leave among the temporary files, for each that asks."""

    @functools.wraps(function)
    def call(limit_cases: int | None = None) -> FileResponse:
        if not app_instance().datastore().datalist():
            raise HTTPException(status_code=404, detail="there are no labels yet.")
        answer = function(limit_cases)
        answer.background = BackgroundTask(remove_file, answer.path)
        return answer

    return call


def _of_the_datastore(function: Callable) -> Callable:
    """An inference on an image that was uploaded or is in the datastore: any other name could be a file's path."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        bound = signature.bind(*args, **kwargs)
        image = bound.arguments.get("image")
        if image and not bound.arguments.get("file") and image not in app_instance().datastore().list_images():
            raise HTTPException(status_code=404, detail="there is no image of that name on this server.")
        return function(*bound.args, **bound.kwargs)

    return call


def _of_images_alone(change: Callable, of_image: bool) -> Callable:
    """A method of the datastore that changes files of a name, if that is none of a link, a folder or the server itself.

    A link would lead it out of the studies folder; of an image called "labels" it would remove all labels.

    Args:
        change: the method.
        of_image: whether it changes the image, and not its labels alone.
    """

    @functools.wraps(change)
    def call(self: LocalDatastore, name: str, *args: object) -> object:
        studies = Path(self._datastore_path)
        folders = [studies] * of_image + [path for path in (studies / "labels").glob("*") if path.is_dir()]
        start = f"{name}.".casefold()  # some file systems tell no case
        found = [
            path for folder in folders for path in folder.iterdir() if f"{path.name}.".casefold().startswith(start)
        ]
        links = any(path.is_symlink() for path in [studies / "labels", *folders[of_image:]])
        if links or any(path.is_symlink() or path.is_dir() or path.name in OWN_FILES for path in found):
            raise HTTPException(status_code=403, detail="links, folders and the server's own files stay as they are.")
        return change(self, name, *args)

    return call


def _own_origins(host: str) -> set[str]:
    return {f"http://{host}", f"https://{host}"}


class Doorkeeper:
    """Refuse what a page of a foreign web site has a browser send, before anything looks at it.

    A browser says whose page it is in ``Origin``, which has to be the server's own or one of ``origins``. While the
    server is for this machine alone, ``Host`` has to name this machine: a foreign name that its owner lets point here
    (DNS rebinding) would count as the server's own.

    Args:
        app: the application behind it.
        origins: origins that are allowed beside the server's own.
        local: whether the server answers this machine alone.
    """

    def __init__(self, app: Callable, origins: set[str], local: bool) -> None:
        self.app, self.origins, self.local = app, origins, local

    async def __call__(self, scope: Mapping, receive: Callable, send: Callable) -> None:
        status, reason = 403, self._why_refused(scope["headers"]) if scope["type"] == "http" else None
        if not reason and _is_removed(scope):
            status, reason = 404, "this server has no such address."
        if not reason:
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": reason.encode()})

    def _why_refused(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        def given(name: bytes) -> list[str]:
            return [value.decode("latin-1").lower() for key, value in headers if key == name]

        hosts = given(b"host") or [""]
        if self.local and not all(map(_is_local, hosts)):
            return "this server answers under the names of its own machine alone."
        known = self.origins.union(*map(_own_origins, hosts))
        origins = given(b"origin")
        # What is asked without an origin, as pictures are, browsers mark as of another site.
        foreign = not origins and not SAME_SITE.issuperset(given(b"sec-fetch-site"))
        if known.issuperset(origins) and not foreign:
            return None
        return "pages of other sites may not use this server; MONAI_LABEL_CORS_ORIGINS names those that may."


def _is_removed(scope: Mapping) -> bool:
    path, method = scope.get("path", ""), scope.get("method")
    return path.startswith(REMOVED) or (path.startswith("/model/") and method not in ("GET", "HEAD"))


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _answer_plainly(inner: FastAPI) -> None:
    """Say in a sentence what is wrong with a request, where MONAI Label would fail or send all of it back."""

    def handle(kind: type[Exception], status: int, sentence: Callable[[Exception], str]) -> None:
        async def answer(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"detail": sentence(error)}, status)

        inner.add_exception_handler(kind, answer)

    for kind in (RequestValidationError, ValidationError):
        handle(kind, 422, _describe_fields)
    handle(json.JSONDecodeError, 400, lambda error: f"the request holds no JSON ({shown(error)}).")
    handle(RecursionError, 400, lambda error: "the request holds too many levels.")
    handle(ImageNotFoundException, 404, lambda error: "there is no image of that name on this server.")
    handle(LabelNotFoundException, 404, lambda error: "there is no label of that name on this server.")
    handle(MONAILabelException, 400, lambda error: "there is no such model, strategy or method on this server.")


def _describe_fields(error: RequestValidationError | ValidationError) -> str:
    first = error.errors()[0]
    return f"{shown('.'.join(map(str, first['loc'])))}: {shown(first['msg'])}."


def _guard() -> Doorkeeper:
    infer.run_inference = _of_the_datastore(infer.run_inference)
    wsi_infer.run_wsi_inference = _of_the_datastore(wsi_infer.run_wsi_inference)
    for module, functions in _CHECKS:
        for name, checks in functions.items():
            setattr(module, name, _checked(getattr(module, name), checks))
    datastore.download_dataset = _sent_once(datastore.download_dataset)
    for name in ("add_image", "remove_image", "save_label", "remove_label"):
        setattr(LocalDatastore, name, _of_images_alone(getattr(LocalDatastore, name), "image" in name))
    inner = monai_label.app
    _answer_plainly(inner)
    # MONAI Label would allow all origins where none is given
    inner.user_middleware = [entry for entry in inner.user_middleware if entry.cls is not CORSMiddleware]
    if origins := os.environ.get(ORIGINS_VARIABLE, "").split():
        inner.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
        )
    host = os.environ.get(HOST_VARIABLE, "127.0.0.1")
    return Doorkeeper(inner, set(origins), local=_is_local(host))


app = _guard()
