# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Bundles on their way to others: checked, put into an archive, and taken out of one."""

from __future__ import annotations

from .archive import unpack, write_archive
from .package import package_bundle
from .verify import verify_bundle

__all__ = ["package_bundle", "unpack", "verify_bundle", "write_archive"]
