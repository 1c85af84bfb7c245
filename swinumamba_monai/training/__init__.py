# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of the training recipe that MONAI does not have; the bundles' configs put them together."""

from .amp import autocast_dtype, default_amp
from .checkpoint import TrainingCheckpoint, run_record
from .deep_supervision import HalvingDeepSupervisionLoss
from .distributed import GlobalBatchLoss
from .handlers import EarlyStop, FreezeEncoder, GradientClip
from .mim import MaskedBatch, MaskedImageModel, MaskedL1Loss, random_patch_mask
from .pictures import ReconstructionPicture
from .reproducible import SeedEveryEpoch, StopOnSigterm, init_worker

__all__ = [
    "EarlyStop",
    "FreezeEncoder",
    "GlobalBatchLoss",
    "GradientClip",
    "HalvingDeepSupervisionLoss",
    "MaskedBatch",
    "MaskedImageModel",
    "MaskedL1Loss",
    "ReconstructionPicture",
    "SeedEveryEpoch",
    "StopOnSigterm",
    "TrainingCheckpoint",
    "autocast_dtype",
    "default_amp",
    "init_worker",
    "random_patch_mask",
    "run_record",
]
