# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What a request may hold; with a real server in test_monai_label_attacks.py."""

from __future__ import annotations

import pytest

from swinumamba_monai.errors import InputError
from swinumamba_monai.serving.requests import (
    INFERENCE,
    TRAINING,
    check_bounds,
    check_data,
    check_device,
    check_fields,
    check_file_name,
    check_name,
    check_segments,
    check_sum,
)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "slide 3.ome",
        "größe_1",
        "2024-11-25",
        "x" * 240,
        "-1",
        "a$b",
        "a..b",
        "10:30",
        "..a",
        "console",
        "a#b",
        "null",
        "com10",
    ],
)
def test_names(name: str) -> None:
    assert check_name("image", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "a/b", "a\\b", "..", ".", "/etc", "$x", "@x", "%x", "~", "a\nb", "a\x00", "x" * 241, "ö" * 121, None, 3,
        ["a"],
        "NUL", "con", "aux.png", "COM1", "lpt9.tif", "con .a.b", "CONIN$", "com¹",
        "%2e%2e", "...", ".. ", " ", "c:", "c:a.png", "C:\\a", "\\\\host\\share", "a\ud800", "a\u202egnp", "\uff04x/..",
    ],
)  # fmt: skip
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(InputError, match="image must be a name"):
        check_name("image", name)


def test_devices() -> None:
    assert [check_device("device", d) for d in ("cpu", "cuda", "cuda:1", "mps", ["cuda:0"])][-1] == "cuda:0"
    assert check_device("device", "NVIDIA H100", {"NVIDIA H100"}) == "NVIDIA H100"
    refused = ("cpu')", "$cpu", "cuda:1234", "cuda:-1", "cuda:", "cuda:\u0661", "cpu\n", "CPU", "cpu:0", "meta", "")
    for device in (*refused, None, [], ["x"], {"a": 1}, 0, "NVIDIA H100"):
        with pytest.raises(InputError, match="device must be a device"):
            check_device("device", device)


def test_what_clients_send_becomes_what_it_means() -> None:
    """3D Slicer sends its table of options, some as text."""
    options = {"device": ["cpu"], "pretrained": "false", "max_epochs": "5", "gpus": "", "tracking": ["mlflow", "None"]}
    options |= {"tracking_uri": "", "run_id": "", "val_split": 0.2, "model_filename": ["model.pt"], "client_id": "me"}
    checked = check_fields(options, TRAINING)
    assert checked["pretrained"] is False and checked["max_epochs"] == 5 and checked["gpus"] == "all"
    assert checked["device"] == "cpu" and checked["tracking"] == "mlflow" and checked["model_filename"] == "model.pt"
    region = {"level": 0, "location": [0, 0], "foreground": [[1, 2], [3.5, 4]], "result_extension": ".nrrd"}
    assert check_fields(region, INFERENCE) == region and check_fields(None, TRAINING) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_epochs", -1), ("max_epochs", 10**30), ("max_epochs", "9" * 5000), ("max_epochs", "1e999"),
        ("val_split", "1e999"), ("val_split", "-inf"), ("val_split", [0.1]), ("val_split", "0" * 10**6 + "x"),
        ("pretrained", 1.0), ("pretrained", None), ("pretrained", ""), ("gpus", "\u0661"), ("gpus", "-1"),
        ("gpus", "0\n"),
        ("model_filename", "a.pt\0"), ("model_filename", ".pt"), ("model_filename", "c:a.pt"), ("device", "cuda:-1"),
        ("max_epochs", 1.5), ("max_epochs", float("inf")), ("max_epochs", 0), ("max_epochs", "1e3"), ("max_epochs", []),
        ("val_split", float("nan")), ("val_split", "$0.1"), ("pretrained", "maybe"), ("pretrained", 2),
        ("tracking_uri", "http://a"), ("run_id", "training"), ("model_filename", "a.py"), ("model_filename", "../a.pt"),
        ("gpus", "0,x"), ("network", 1), ("bundle_path", "/"), ("tracking", "a.json"),
    ],
)  # fmt: skip
def test_refusals(field: str, value: object) -> None:
    with pytest.raises(InputError):
        check_fields({field: value}, TRAINING)


def test_switches() -> None:
    for value, meant in (
        (True, True),
        ("TRUE", True),
        ("1", True),
        (1, True),
        ("false", False),
        ("0", False),
        (0, False),
    ):
        assert check_fields({"pretrained": value}, TRAINING) == {"pretrained": meant}


def test_names_of_files_that_are_sent() -> None:
    """Some clients send the path that the file has there; the image is called by its end."""
    for sent in ("a.nii.gz", "/home/me/a.nii.gz", "C:\\me\\a.nii.gz", "../../a.nii.gz"):
        assert check_file_name("file", sent) == "a.nii.gz"
    for sent in ("..", "a/..", "a/", "/x/$y.png", "a\\@b", "a\0.png", "." * 3, "a." + "x" * 250, ""):
        with pytest.raises(InputError, match="file must be a name"):
            check_file_name("file", sent)


def test_data_goes_out_again_as_json() -> None:
    """What one client stores, others get, in an answer that must not fail for it."""
    for value in (float("nan"), float("inf"), -(10**400), 2.0**60, "a\ud800", "a\0b", {"\udfff": 1}):
        for nested in (value, [[value]], {"a": value}):
            with pytest.raises(InputError, match="info holds"):
                check_data("info", nested)
    for text in ("x" * 100_001, ["x" * 1000] * 101, {"x" * 100_001: 1}):
        with pytest.raises(InputError, match="more than"):
            check_data("info", text)
    for value in (2**53, -(2**53), 1e-300, True, "größe 1 😀"):
        assert check_data("info", value) == value


def test_data_is_bounded_and_no_code() -> None:
    deep: object = 1
    for _ in range(20):
        deep = [deep]
    for value in ({"a": ["$x"]}, {"@a": 1}, deep, list(range(200_000))):
        with pytest.raises(InputError):
            check_data("info", value)
    assert check_data("info", {"a": [1, 2.5, None, "text", {"b": True}]})
    with pytest.raises(InputError, match="an object"):
        check_fields([1], TRAINING)


def test_sums() -> None:
    for given in (None, "0a1B", "SHA256:ff", "MD5:0"):
        assert check_sum("check_sum", given) == given
    for given in ("", "sha:1", "XX:1", "SHA256:", "g", "0" * 129, 1):
        with pytest.raises(InputError, match="check_sum must be a hash"):
            check_sum("check_sum", given)


@pytest.mark.parametrize("number", [10**57, -(10**57), float("nan"), float("inf")])
def test_numbers_are_bounded(number):
    with pytest.raises(InputError, match="lines must be a number of at most 9007199254740992"):
        check_bounds("lines", number)
    assert check_bounds("lines", 300) == 300 and check_bounds("html", True) is True


ORGANS = {1: "liver", 2: "right kidney", 3: "spleen"}


def slicer(*names: str, first: int = 1) -> dict:
    """What 3D Slicer says of a label of these segments."""
    return {"label_info": [{"name": name, "idx": number} for number, name in enumerate(names, first)], "model": "a"}


@pytest.mark.parametrize(
    "said",
    [
        {}, [], None, {"label_info": "liver"}, {"label_info": [None, {"name": ["liver"], "idx": {}}]},
        slicer(*ORGANS.values()), slicer("liver"), slicer("liver", "Segment_2", "spleen"),
        slicer(*ORGANS.values(), first=2),  # behind a background, which is not in the label
    ],
)  # fmt: skip
def test_segments_that_are_the_classes(said: object) -> None:
    check_segments(said, ORGANS)


@pytest.mark.parametrize("said", [slicer("liver", "spleen"), slicer("right kidney", "liver", "spleen")], ids=str)
def test_segments_that_have_moved_up(said: dict) -> None:
    with pytest.raises(InputError, match="in this order: liver, right kidney, spleen"):
        check_segments(said, ORGANS)
    check_segments(said, {})  # of cells every number is one
