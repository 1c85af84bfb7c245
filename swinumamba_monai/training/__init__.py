# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of the training recipe that MONAI does not have; the bundles' configs put them together."""

from .checkpoint import TrainingCheckpoint
from .handlers import FreezeEncoder, GradientClip

__all__ = ["FreezeEncoder", "GradientClip", "TrainingCheckpoint"]
