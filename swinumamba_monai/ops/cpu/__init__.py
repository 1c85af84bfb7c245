# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The loops that Numba compiles for the CPU, and the threads they run on."""
