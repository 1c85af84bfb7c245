# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures computed here: complexity, results of runs, effective receptive fields."""
