# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What networks cost and where they look: parameters and FLOPs, time and memory, effective receptive fields."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "complexity": [
            "COMPLEXITY_COLUMNS",
            "COMPLEXITY_NOTES",
            "Complexity",
            "complexity_rows",
            "count",
            "scan_flops",
        ],
        "erf": ["effective_receptive_field", "energy_within", "load_inputs", "write_erf"],
        "speed": ["SPEED_COLUMNS", "draw_speed", "speed_notes", "speed_rows"],
    },
)
