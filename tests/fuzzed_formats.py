# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Files of every format for :mod:`fuzzing` to damage, and what reads each."""

from __future__ import annotations

import gzip
import io
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import safetensors.torch
import tifffile
import torch
from fuzzed_structures import structures
from PIL import Image
from scipy.io import savemat

from swinumamba_monai.data import load_datalist, load_images, read_label_map, read_volume
from swinumamba_monai.data.files.annotations import read_annotations, read_outlines
from swinumamba_monai.data.files.aperio import read_aperio
from swinumamba_monai.data.files.imagej_roi import read_rois
from swinumamba_monai.data.files.images import read_image
from swinumamba_monai.data.files.matlab import classes_of_nuclei
from swinumamba_monai.data.files.shapes import Annotations, rasterize
from swinumamba_monai.data.files.yolo import read_yolo
from swinumamba_monai.data.prepare.label_forms import cells_of
from swinumamba_monai.distribution import unpack_archive, write_archive
from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.pretrained import load_pretrained

PLAIN, RLE, DEFLATED = (f"1.2.840.10008.1.2.{end}" for end in ("1", "5", "1.99"))  # transfer syntaxes of DICOM


@dataclass
class Format:
    """What is damaged, and what has to cope with it.

    Args:
        name: of the file that is written.
        seeds: whole files.
        read: reads the file; what it returns is a proper result.
        header: so many bytes at the start are damaged more often than the rest.
        repair: makes the damage get past what protects the file, such as checksums.
        others: files beside it.
        alter: makes a file with other insides, instead of most of the damage to bytes.
    """

    name: str
    seeds: list[bytes]
    read: Callable[[Path], object]
    header: int
    repair: Callable[[bytes], bytes] = lambda data: data
    others: dict[str, bytes] | None = None
    alter: Callable[[np.random.Generator], bytes] | None = None


def pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def picture(kind: str, mode: str, size: tuple[int, int] = (9, 7), **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(*size, 3)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def nifti(kind: type, dtype: type) -> bytes:
    return kind(pixels(5, 4, 3, dtype=dtype), np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes()


def dicom(number: int, syntax: str) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", f"1.2.3.{number}"
    meta.TransferSyntaxUID = PLAIN if syntax == RLE else syntax
    stream = io.BytesIO()
    dataset = FileDataset(stream, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.InstanceNumber = "1.2.3", number
    dataset.Rows, dataset.Columns, dataset.PixelSpacing = 6, 5, [1.5, 0.75]
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * number]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-3"
    dataset.PixelData = pixels(6, 5, dtype=np.uint16).tobytes()
    if syntax == RLE:
        dataset.compress(syntax)
    dataset.save_as(stream, write_like_original=False)
    return stream.getvalue()


def torch_file(content: object, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def right_checksums(png: bytes) -> bytes:
    """The chunks of a PNG with the checksums that fit what is in them now."""
    result, position = bytearray(png[:8]), 8
    while position + 12 <= len(png):
        length = min(int.from_bytes(png[position : position + 4], "big"), len(png) - position - 12)
        body = png[position + 4 : position + 8 + length]
        result += png[position : position + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        position += 12 + length
    return bytes(result)


def formats(folder: Path) -> Iterator[Format]:
    yield Format(
        "a.png",
        [picture("PNG", "L"), picture("PNG", "RGB"), picture("PNG", "P"), picture("PNG", "RGBA"), tiff_as_png16()],
        image,
        64,
        right_checksums,
    )
    yield Format("a.jpg", [picture("JPEG", "RGB"), picture("JPEG", "L")], image, 200)
    yield Format("a.bmp", [picture("BMP", "RGB"), picture("BMP", "P")], image, 60)
    yield Format(
        "a.tif",
        [
            tiff(pixels(9, 7, dtype=np.uint16)),
            tiff(pixels(9, 7, 3), photometric="rgb", compression="zlib"),
            tiff(pixels(40, 40), tile=(16, 16), compression="lzw"),
            tiff(pixels(9, 7, dtype=np.float32), bigtiff=True, predictor=True, compression="zlib"),
            tiff(pixels(16, 16, 3), photometric="rgb", compression="jpeg"),
        ],
        image,
        400,
    )
    nii, nii2 = nifti(nib.Nifti1Image, np.int16), nifti(nib.Nifti2Image, np.float32)
    yield Format("a.nii", [nii, nii2], volume, 352)
    yield Format("b.nii.gz", [nii, nii2], volume, 352, gzip.compress)
    yield Format("c.nii.gz", [gzip.compress(nii)], volume, 20)
    yield Format(
        "a.dcm",
        [dicom(0, syntax) for syntax in (PLAIN, RLE, DEFLATED)],
        lambda path: volume(path.parent),
        500,
        others={"b.dcm": dicom(1, PLAIN)},
    )
    small = {"feature_size": 4, "depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "d_state": 1}
    net = SwinUMambaD(1, 2, **small)
    state = net.state_dict()
    for name, seeds in {
        "a.pt": [torch_file({"model": state, "epoch": 3}, zipped) for zipped in (True, False)],
        "a.safetensors": [safetensors.torch.save(state)],
    }.items():
        yield Format(name, seeds, lambda path: str(load_pretrained(net, path)), 3000)
    item = {"image": "images/a.png", "label": "labels/a.png"}
    datalist = {
        "name": "endoscopy", "description": "", "labels": {"0": "background", "1": "a"}, "source_dir": ".",
        "label_dir": ".", "training": [item], "validation": [item], "test": [item],
    }  # fmt: skip
    images = {"images/a.png": picture("PNG", "L"), "labels/a.png": picture("PNG", "1")}
    text = json.dumps(datalist).encode()
    yield Format(
        "datalist.json",
        [text],
        lambda path: [load_datalist(path.parent, "training", check=False), load_images(path.parent)],
        len(text),
        others=images,
    )
    label_map = json.dumps({"labels": {"background": 0, "a": [1, 2], "b": 3}}).encode()
    yield Format("labels.json", [label_map], lambda path: read_label_map(path).names, len(label_map))
    square = [[1, 1], [5, 1], [5, 4], [1, 4]]
    outline = {"type": "Polygon", "coordinates": [square]}
    geojson = {"features": [{"geometry": outline, "properties": {"classification": {"name": "a"}}}]}
    yield Format("a.geojson", [json.dumps(geojson).encode()], lambda path: painted(read_outlines(path)), 200)
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 7, "width": 9}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]},
            {"image_id": 1, "category_id": 1, "segmentation": {"size": [7, 9], "counts": [5, 9, 49]}},
        ],
    }
    yield Format("coco.json", [json.dumps(coco).encode()], all_painted, 500)
    cvat = (
        b'<annotations><image name="a" height="7" width="9"><polygon label="a" points="1,1;5,1;5,4"/>'
        b'<mask label="a" rle="1,2,3" left="1" top="1" width="3" height="2"/></image></annotations>'
    )
    tracks = (
        b"<annotations><meta><task><size>3</size><original_size><width>9</width><height>7</height></original_size>"
        b'</task></meta><track label="a"><box frame="1" outside="0" xtl="1" ytl="1" xbr="5" ybr="4"/></track>'
        b"</annotations>"
    )
    yield Format("cvat.xml", [cvat, tracks], all_painted, len(cvat))
    corners = b'<Vertices><Vertex X="1" Y="1"/><Vertex X="5" Y="1"/><Vertex X="5" Y="4"/></Vertices>'
    aperio = (
        b'<Annotations><Annotation Name="a"><Regions><Region Type="0">%s</Region><Region Type="2">%s</Region></Regions>'
        b"</Annotation></Annotations>"
    ) % (corners, corners)
    yield Format("aperio.xml", [aperio], lambda path: painted(read_aperio(path)), len(aperio))
    yolo = b"0 0.25 0.2 0.75 0.2 0.75 0.5\n1 0.5 0.8 1 0.8 1 1\n"
    yield Format("a.txt", [yolo], lambda path: painted(read_yolo(path)), len(yolo))
    yield Format("a.roi", roi_files(), lambda path: painted(read_rois(path)), 100)
    array = io.BytesIO()
    np.save(array, pixels(7, 9))
    yield Format("a.npy", [array.getvalue()], lambda path: cells_of(path, (7, 9)), 128)
    yield Format("a.mat", [matlab(False), matlab(True)], nuclei, 400)
    archive = write_archive(folder / "seed.zip", {"a/LICENSE": b"free", "a/configs/b.json": b"{}"})
    yield Format("a.zip", [archive.read_bytes()], whole_or_nothing, 400)
    archive.unlink()
    for parts in structures(dicom(0, PLAIN)):
        if parts["name"] == "tags.dcm":
            parts |= {"read": lambda path: volume(path.parent), "others": {"b.dcm": dicom(1, PLAIN)}}
        yield Format(**{"header": len(parts["seeds"][0]), **parts})


def tiff_as_png16() -> bytes:
    import imagecodecs

    return bytes(imagecodecs.png_encode(pixels(9, 7, 3, dtype=np.uint16)))


def image(path: Path) -> None:
    array = read_image(path)
    assert array.ndim in (2, 3) and array.size > 0 and np.isfinite(array).all()


def volume(path: Path) -> None:
    voxels, affine = read_volume(path)
    assert voxels.ndim == 3 and voxels.size > 0 and np.isfinite(voxels).all()
    assert np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]) != 0


def roi_files() -> list[bytes]:
    """A polygon and a composite region of ImageJ."""
    header = bytearray(64)
    header[:4], header[6] = b"Iout", 0
    header[8:18] = np.array([1, 1, 4, 5, 4], ">i2").tobytes()
    corners = np.array([0, 4, 4, 0, 0, 0, 3, 3], ">i2").tobytes()
    path = np.array([0, 1, 1, 1, 5, 1, 1, 5, 4, 4], ">f4").tobytes()
    composite = bytes(header[:36]) + (10).to_bytes(4, "big") + bytes(24) + path
    return [bytes(header) + corners, composite]


def matlab(compressed: bool) -> bytes:
    """Nuclei with their classes, and a structure that is not read."""
    file = io.BytesIO()
    variables = {"inst_map": pixels(7, 9) % 3, "id": [1, 2], "class": [5.0, 6.0], "other": {"a": ["b"]}}
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def nuclei(path: Path) -> None:
    classes_of_nuclei(path, cells_of(path, (7, 9)))


def painted(found: Annotations) -> None:
    rasterize(found, range(1, len(found.shapes) + 1), found.size or (7, 9))


def all_painted(path: Path) -> None:
    for found in (read_annotations(path) or {}).values():
        if found.size and min(found.size) > 0 and math.prod(found.size) < 1 << 24:  # its image has to be there
            painted(found)


def whole_or_nothing(path: Path) -> str:
    """Unpack beside the file, and take away what came of it."""
    bundle = unpack_archive(path, path.parent)
    shutil.rmtree(bundle)
    return bundle.name
