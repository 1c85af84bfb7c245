# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Swin-UMamba for MONAI: Mamba-based segmentation networks, their training recipe and their bundles."""

__version__ = "0.1.0"
