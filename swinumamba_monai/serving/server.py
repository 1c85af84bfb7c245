# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's server with doors: what :mod:`.requests` does not let through reaches nothing behind them.

MONAI Label 0.8.5 hands the values of requests on as they come, and lets a page of any web site command the server of
"this machine alone". Here each function behind an address gets checked values; addresses that a bundle has no use for
(a proxy, upload and removal of models, a viewer of DICOM, a report of the GPU) are gone, and pages of other sites stay
out (:mod:`.door`). What cannot be done is an answer of one sentence, and leaves no file behind.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from types import ModuleType

import torch

from swinumamba_monai.errors import InputError, find_input_error, shown
from swinumamba_monai.serving.door import Doorkeeper, is_local
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
from swinumamba_monai.serving.start import HOST_VARIABLE, ORIGINS_VARIABLE, stand_in_for_torchvision

stand_in_for_torchvision()

from fastapi import FastAPI, HTTPException, Request  # noqa: E402
from fastapi.background import BackgroundTasks  # noqa: E402
from fastapi.exceptions import RequestValidationError  # noqa: E402
from fastapi.middleware.cors import CORSMiddleware  # noqa: E402
from fastapi.responses import FileResponse, JSONResponse  # noqa: E402
from monailabel import app as monai_label  # noqa: E402
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
from monailabel.utils.sessions import SessionInfo  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from starlette.background import BackgroundTask  # noqa: E402

MAX_FIELDS = 20  # number of fields of a form, each of at most 1 MB; the largest of MONAI Label's forms has three


def _device(field: str, value: object) -> str:
    """A device that is there; without a GPU, ``cuda`` means the processor, which MONAI Label takes then."""
    devices = device_map()
    device = check_device(field, value, {*devices, *devices.values()})
    gpus, number = torch.cuda.device_count(), device.partition("cuda:")[2]
    if gpus and number and int(number) >= gpus:
        raise InputError(f"{field} is a GPU that this machine has not; it has {gpus}, the first of which is cuda:0.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"{field} is mps, and this machine has none; use cpu or cuda.")
    return device


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


def _information(field: str, value: object) -> object:
    """What is kept of an image, without what MONAI Label's strategies keep there and read again."""
    if "strategy" in value:
        raise InputError(f"{field} holds 'strategy', which the server keeps itself.")
    return check_data(field, value)


def _no_dicom(field: str, value: object) -> object:
    if value == "dicom_seg":
        raise InputError(f"{field} dicom_seg is not possible here: the images are no DICOM series of a server.")
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


def _known(kind: str) -> Callable[[str, object], str]:
    """A name that the server's information has under ``kind``.

    What works in the background would find out in a process of its own, a minute later, and others would wait for it.
    """

    def check(field: str, value: object) -> str:
        if check_name(field, value) not in app_instance().info()[kind]:
            raise InputError(f"there is no {field} of that name on this server.")
        return value

    return check


def _by_model(field: str, value: object) -> dict:
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"{field} must be an object of names and values.")
    if unknown := [model for model in value or {} if model not in app_instance().info()["trainers"]]:
        raise InputError(f"{field} names the model '{shown(unknown[0])}', which there is not.")
    return {model: _fields(TRAINING)(field, own) for model, own in (value or {}).items()}


def _is_here(arguments: Mapping[str, object]) -> None:
    """An inference on an image of the datastore, of a session or sent: any other name could be a file's path."""
    image, session_id, file = (arguments.get(name) for name in ("image", "session_id", "file"))
    sent = getattr(file, "filename", None)
    if not (image or session_id or sent):
        raise HTTPException(status_code=400, detail="name an image or a session, or send a file with its name.")
    if session_id and _find_session(session_id) is None:
        raise HTTPException(status_code=404, detail="there is no session of that name on this server.")
    if image and not sent and image not in app_instance().datastore().list_images():
        raise HTTPException(status_code=404, detail="there is no image of that name on this server.")


def _is_one_file(arguments: Mapping[str, object]) -> None:
    """A session, or its image, if that is one file."""
    if arguments.get("image") and (found := _find_session(arguments["session_id"])) and os.path.isdir(found.image):
        raise HTTPException(status_code=400, detail="the session has several files, and not one to send.")


def _find_session(session_id: str) -> SessionInfo | None:
    sessions = app_instance().sessions()
    return None if sessions is None else sessions.get_session(session_id)


# What each function behind an address gets, by the names of its arguments. A name with no check here is a number or a
# switch, of which FastAPI has checked the kind; how large it is is looked at in each.
_NAMES = dict.fromkeys(("model", "image", "id", "tag", "label", "session_id", "strategy", "method"), _name_or_nothing)
_NAMES |= dict.fromkeys(("file", "files"), _upload)
_WITH_NAMES_ALONE = ("remove_image", "remove_label", "download_label", "get_image_info", "get_label_info")
_CHECKS: list[tuple[ModuleType, str, dict[str, Callable]]] = [
    (infer, "run_inference", {"": _is_here, "params": _text(_fields(INFERENCE)), "label": _label, "output": _no_dicom}),
    (wsi_infer, "run_wsi_inference", {"": _is_here, "wsi": _region}),
    (batch_infer, "run", {"model": _known("models"), "params": _batch, "images": lambda field, value: value}),
    (train, "run_model", {"model": _known("trainers"), "params": _fields(TRAINING)}),
    (train, "run", {"params": _by_model}),
    (activelearning, "sample", {"params": _fields(SAMPLING)}),
    (scoring, "run", {"params": _fields(SAMPLING)}),
    (scoring, "run_method", {"method": _known("scoring"), "params": _fields(SAMPLING)}),
    (logs, "get_logs", {}),
    (session, "get_session", {"": _is_one_file, "image": check_bounds}),
    (session, "remove_session", {}),
    (session, "create_session", {"uncompress": _one_file}),
    (datastore, "add_image", {"params": _text(_information)}),
    (datastore, "save_label", {"params": _text(check_data), "label": _upload}),
    (datastore, "update_image_info", {"info": _text(_information)}),
    (datastore, "update_label_info", {"info": _text(check_data)}),
    (datastore, "download_image", {"check_sum": check_sum}),
    (datastore, "download_dataset", {}),
    *((datastore, name, {}) for name in _WITH_NAMES_ALONE),
]


def _checked(function: Callable, checks: Mapping[str, Callable[[str, object], object]]) -> Callable:
    """A function whose arguments are checked first; a refusal is the answer 400 with the sentence.

    So is what the function finds of the image that it is given. Files that were sent are removed all the same. The
    check called "" is of all arguments together, and says itself what the answer is.
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
            if "" in checks:
                checks[""](bound.arguments)
            return function(*bound.args, **bound.kwargs)
        except BaseException as error:
            _remove_sent(bound.arguments.get("background_tasks"))
            if not (sentence := None if isinstance(error, HTTPException) else _say_why(error)):
                raise
        # Not from the error, which holds all that was read until somebody collects garbage
        raise HTTPException(status_code=400, detail=sentence)

    return call


def _say_why(error: BaseException) -> str | None:
    """The sentence alone, of which no variable of the caller holds the error."""
    return str(cause) if (cause := find_input_error(error)) else None


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
    for module, name, checks in _CHECKS:
        setattr(module, name, _checked(getattr(module, name), checks))
    datastore.download_dataset = _sent_once(datastore.download_dataset)
    Request.form = functools.partialmethod(Request.form, max_fields=MAX_FIELDS)  # which go into memory
    inner = monai_label.app
    _answer_plainly(inner)
    # MONAI Label would allow all origins where none is given
    inner.user_middleware = [entry for entry in inner.user_middleware if entry.cls is not CORSMiddleware]
    if origins := os.environ.get(ORIGINS_VARIABLE, "").split():
        inner.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
        )
    host = os.environ.get(HOST_VARIABLE, "127.0.0.1")
    return Doorkeeper(inner, set(origins), local=is_local(host))


app = _guard()
