# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells one by one: what a network learns of an instance map beside the paper's three classes, and the way back."""
