# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The training of the weights that ship with the microscopy bundle, for whoever wants to repeat it."""
