# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle on a MONAI Label server."""

from swinumamba_monai.serving.start import serve

__all__ = ["serve"]
