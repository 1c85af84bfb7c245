# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan: its reference (:mod:`.reference`), its backends and their choice (:mod:`.backends`), its forms
(:mod:`.scan`). Importing this registers every operator of ``torch.ops.swinumamba``, as files of ``torch.export`` need.
"""

from .backends import BACKENDS
from .reference import cross_scan_2d_ref, selective_scan_ref
from .scan import cross_scan_2d, selective_scan

__all__ = ["BACKENDS", "cross_scan_2d", "cross_scan_2d_ref", "selective_scan", "selective_scan_ref"]
