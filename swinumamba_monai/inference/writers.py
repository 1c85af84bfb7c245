# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Writing instance maps: exact ids, rows first, and never half a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tifffile
from monai.config import NdarrayOrTensor, PathLike
from monai.data import ImageWriter
from monai.utils import convert_to_numpy
from PIL import Image

from swinumamba_monai.atomic import replacing
from swinumamba_monai.errors import InputError

MAX_16_BIT = np.iinfo(np.uint16).max


class InstanceWriter(ImageWriter):
    """Write instance ids as a 16-bit PNG or TIFF image in (H, W) order.

    For ``SaveImaged(writer="swinumamba_monai.inference.InstanceWriter", output_ext=".png", resample=False)``. MONAI's
    PILWriter would clip ids to 8 bits and swap rows and columns. A TIFF file is zlib-compressed and becomes 32-bit when
    there are more than 65535 cells.

    Args:
        output_dtype: part of the interface of ``SaveImaged``; the ids alone decide the type.
        scale: must be None, ids are not intensities.

    Raises:
        InputError: when ids would have to be scaled, resampled, rounded or cut to fit, and for another file type.
            ``SaveImaged`` turns it into a RuntimeError that ends with its sentence.
    """

    def __init__(self, output_dtype: object = None, scale: int | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if scale is not None:
            raise InputError("InstanceWriter writes cell ids, which cannot be scaled: leave 'scale' of SaveImaged out.")

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **kwargs: object) -> None:
        """Take the ids.

        Args:
            data_array: instance ids of shape (1, H, W) or (H, W), whole numbers, of any type.
            channel_dim: ignored: ids have one channel, first if there at all.
        """
        ids = convert_to_numpy(data_array)
        if ids.ndim == 3 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 2:
            raise InputError(f"InstanceWriter writes (1, H, W) cell ids, but got an array of shape {ids.shape}.")
        if ids.min() < 0 or (ids.dtype.kind == "f" and (ids != np.rint(ids)).any()):
            raise InputError("InstanceWriter writes cell ids, but got negative or fractional numbers.")
        self.data_obj = ids.astype(np.uint16 if ids.max() <= MAX_16_BIT else np.uint32)

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = False, **options: object) -> None:
        """Ids keep the grid they are on: there is nothing to take from the metadata.

        Args:
            meta_dict: ignored.
            resample: must be False.
        """
        if resample:
            raise InputError(
                "InstanceWriter cannot resample cell ids: give SaveImaged resample=False, and bring the prediction to "
                "the size of the image (Invertd) before its cells are numbered."
            )

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: object) -> None:
        """Write the file.

        Args:
            filename: ends in .png, .tif or .tiff.
            verbose: log the file name.
        """
        super().write(filename, verbose=verbose)
        suffix = Path(filename).suffix.lower()
        if suffix not in (".png", ".tif", ".tiff"):
            raise InputError(f"InstanceWriter cannot write '{filename}': set output_ext to '.png' or '.tif'.")
        if suffix == ".png" and self.data_obj.dtype != np.uint16:
            raise InputError(
                f"'{filename}' would need cell ids up to {self.data_obj.max()}, more than the {MAX_16_BIT} of a PNG "
                "image: set output_ext to '.tif'."
            )
        with replacing(filename) as temporary:
            if suffix == ".png":
                Image.fromarray(self.data_obj).save(temporary)
            else:
                tifffile.imwrite(temporary, self.data_obj, photometric="minisblack", compression="zlib")
