# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Stage 1, a foundation model of one's own: VMamba's encoders learn folders of images, and from a
teacher; or the whole of Swin-UMamba† learns pictures made by formulas.
"""
