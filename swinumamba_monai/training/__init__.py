# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of the training recipe that MONAI does not have; the bundles' configs put them together."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "amp": ["autocast_dtype", "default_amp"],
        "checkpoint": ["TrainingCheckpoint", "run_record"],
        "handlers": ["EarlyStop", "FiniteWeights", "FreezeEncoder", "GradientClip"],
        "ignored": ["IgnoredToBackgroundd", "PartialDiceCELoss"],
        "losses": ["FusedDiceCELoss", "GlobalBatchLoss", "HalvingDeepSupervisionLoss"],
        "mim": ["MaskedBatch", "MaskedImageModel", "MaskedL1Loss", "random_patch_mask"],
        "reconstruction": ["ReconstructionPicture"],
        "run_log": ["RunLog"],
        "reproducible": ["SeedEveryEpoch", "StopOnSigterm", "init_worker"],
    },
)
