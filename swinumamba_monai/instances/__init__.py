# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells one by one: what a network learns of an instance map beside the paper's three classes, and the way back."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    "swinumamba_monai",
    submod_attrs={
        "instances.flows": ["FlowLoss", "FlowsToInstancesd", "InstancesToFlowsd", "flow_targets", "flows_to_instances"],
        "instances.targets": ["cell_channels", "find_cells"],
    },
)
