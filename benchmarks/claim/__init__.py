# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's claim, that a foundation model makes the difference, measured on three tasks."""
