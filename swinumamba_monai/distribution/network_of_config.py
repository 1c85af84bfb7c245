# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The network of a bundle's config, for the commands that need it alone: export, verify and package."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from monai.bundle import ConfigParser
from torch import nn

from swinumamba_monai.bundle_options import check_option
from swinumamba_monai.errors import InputError, find_input_error, quoted
from swinumamba_monai.pretrained import load_pretrained


def build_bundle_network(config_file: str | PathLike, overrides: Mapping[str, object] | None = None) -> nn.Module:
    """The network of a bundle's config, with random weights. The config is code, and is run.

    Args:
        config_file: config of the bundle, such as its ``inference.json``, whose ``network_def`` is built.
        overrides: values of the config's entries by their ids, such as ``{"num_classes": 3}``.

    Raises:
        InputError: no such file, no such entry, or no ``network_def`` that can be built.
    """
    path = Path(config_file)
    if not path.is_file():
        raise InputError(f"there is no config file {path}.")
    try:
        parser = ConfigParser()
        parser.read_config(str(path))
        for name, value in (overrides or {}).items():
            check_option(name, value, parser.get())
        parser.update(dict(overrides or {}))
        return parser.get_parsed_content("network_def")
    except InputError:
        raise
    except Exception as error:  # a config can fail in any way, or have none
        reason = find_input_error(error) or quoted(error)
        raise InputError(f"{path} gives no network_def that can be built ({reason}).") from error


def read_bundle_network(
    config_file: str | PathLike, ckpt_file: str | PathLike, overrides: Mapping[str, object] | None = None
) -> nn.Module:
    """The network of a bundle's config with trained weights, in evaluation mode on the CPU.

    Args:
        config_file, overrides: see :func:`build_bundle_network`.
        ckpt_file: file with the whole weights of that network.

    Raises:
        InputError: no such files, a config without a network, or weights that do not fit.
    """
    network = build_bundle_network(config_file, overrides)
    load_pretrained(network, ckpt_file, strict=True)
    return network.eval()
