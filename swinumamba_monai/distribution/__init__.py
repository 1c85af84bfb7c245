# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Bundles on their way to others: checked, put into an archive, and taken out of one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "archive": ["unpack_archive", "write_archive"],
        "package": ["package_bundle"],
        "verify": ["verify_bundle"],
    },
)
