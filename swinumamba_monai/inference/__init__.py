# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""After the network: numbering cells, and writing them."""

from swinumamba_monai.inference.instances import ClassesToInstancesd, class_map, classes_to_instances
from swinumamba_monai.inference.writers import InstanceWriter

__all__ = ["ClassesToInstancesd", "InstanceWriter", "class_map", "classes_to_instances"]
