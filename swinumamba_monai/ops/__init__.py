# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan: its reference (:mod:`.reference`), its backends, and the choice among them (:mod:`.dispatch`)."""

from .dispatch import BACKENDS, cross_scan_2d, selective_scan
from .reference import cross_scan_2d_ref, selective_scan_ref

__all__ = ["BACKENDS", "cross_scan_2d", "cross_scan_2d_ref", "selective_scan", "selective_scan_ref"]
