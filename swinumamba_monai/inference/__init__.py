# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Around and after the network: ensembles and mirroring, the image's own grid, cells, uncertainty, and writing."""

from swinumamba_monai.cells import ClassesToInstancesd, class_map, classes_to_instances
from swinumamba_monai.inference.coco import coco, write_coco
from swinumamba_monai.inference.ensemble import Ensemble
from swinumamba_monai.inference.folders import keep_folders
from swinumamba_monai.inference.mirroring import MirrorInferer
from swinumamba_monai.inference.overlay import Overlayd
from swinumamba_monai.inference.polygons import PolygonWriter, geojson
from swinumamba_monai.inference.restore import RestoreVolumed
from swinumamba_monai.inference.uncertainty import Entropyd, Probabilitiesd, entropy_map
from swinumamba_monai.inference.writers import ClassWriter, InstanceWriter, MapWriter, PictureWriter, VolumeWriter

__all__ = [
    "ClassWriter",
    "ClassesToInstancesd",
    "Ensemble",
    "Entropyd",
    "InstanceWriter",
    "MapWriter",
    "MirrorInferer",
    "Overlayd",
    "PictureWriter",
    "PolygonWriter",
    "Probabilitiesd",
    "RestoreVolumed",
    "VolumeWriter",
    "class_map",
    "classes_to_instances",
    "coco",
    "entropy_map",
    "geojson",
    "keep_folders",
    "write_coco",
]
