# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Speed, memory and convergence, measured: one script a table. README.md says how to rerun each."""
