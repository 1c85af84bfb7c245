# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the scan becomes in a file: TorchScript, a program of ``torch.export``, ONNX."""
