# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Other tools' ways to the same end, trained and scored on the same images as ours."""
