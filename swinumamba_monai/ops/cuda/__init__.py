# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels and the operators made of them; no nvcc, no CUDA build (:mod:`.nvrtc`)."""
