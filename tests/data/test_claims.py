# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Images, volumes and videos of strangers: what they claim costs nothing, and no other file is read."""

from __future__ import annotations

import gzip
import http.server
import io
import resource
import struct
import threading
import zlib

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from swinumamba_monai.data import read_image, read_volume
from swinumamba_monai.data.files.video import read_frames
from swinumamba_monai.errors import InputError


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    return png(width, height, 8, 2, zlib.compress(b"\0"))


def nifti_header(kind: type, shape: tuple[int, ...]) -> bytes:
    header = kind.header_class()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    return header.binaryblock + bytes(64)


def png_of_zeros(side: int, rows: int = 100) -> bytes:
    """A whole one: ``rows`` of its ``side`` are compressed, and repeated; all of them would take deflate a minute."""
    deflate = zlib.compressobj(9, wbits=-15)
    part = deflate.compress(bytes(rows * (1 + 8 * side))) + deflate.flush(zlib.Z_FULL_FLUSH)
    checksum = side * (1 + 8 * side) % 65521 << 16 | 1  # Adler-32 of so many zeros
    data = b"\x78\xda" + part * (side // rows) + b"\x03\0" + struct.pack(">I", checksum)
    return png(side, side, 16, 6, data)


def tiff_of_nothing(side: int) -> bytes:
    """One strip of a few bytes, that deflate would have to make ``side`` rows of."""
    tags = [(256, 4, side), (257, 4, side), (258, 3, 64), (259, 3, 8), (262, 3, 1), (273, 4, 8), (278, 4, side)]
    tags += [(279, 4, 8)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def ome_of_many_planes() -> bytes:
    description = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="4" SizeY="4" SizeZ="600000000" SizeC="1"'
        ' SizeT="1">'
        "<TiffData/></Pixels></Image></OME>"
    )
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((4, 4), np.uint8), description=description, metadata=None)
    return stream.getvalue()


def progressive_jpeg(scans: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    first = content.index(b"\xff\xda")
    end = content.index(b"\xff", first + 2)
    return content[:end] + content[first:end] * scans + content[end:]


def nifti_that_begins_late() -> bytes:
    header = nib.Nifti1Image.header_class()
    header.set_data_dtype(np.int16)
    header.set_data_shape((4, 4, 4))
    header["vox_offset"] = 3.2e9
    return header.binaryblock + bytes(1000)


CLAIMS = {
    "zeros.png": (png_of_zeros(20_000), "no file of its size holds"),
    "nothing.tif": (tiff_of_nothing(20_000), "no file of its size holds"),
    "planes.ome.tif": (ome_of_many_planes(), "over 1000 planes"),
    "scans.jpg": (progressive_jpeg(5_000), "over 100 scans"),
    "late.nii": (nifti_that_begins_late(), "begin at byte"),
    "late.nii.gz": (gzip.compress(nifti_that_begins_late()), "begin at byte"),
    "wide.png": (png_header(100_000, 100_000), "100000 x 100000 pixels"),
    "under_the_limit.png": (png_header(20_000, 20_000), "no file of its size holds"),
    "trillion.nii": (nifti_header(nib.Nifti1Image, (10_000, 10_000, 10_000)), "can be read"),
    "trillion.nii.gz": (gzip.compress(nifti_header(nib.Nifti1Image, (10_000, 10_000, 10_000))), "can be read"),
    "overflow.nii": (nifti_header(nib.Nifti2Image, (2**32, 2**32, 1)), "can be read"),
    "billion.nii": (nifti_header(nib.Nifti1Image, (1_000, 1_000, 1_000)), "no file of its size holds"),
    "billion.nii.gz": (gzip.compress(nifti_header(nib.Nifti1Image, (1_000, 1_000, 1_000))), "no file of its size"),
}


def test_the_png_of_zeros_is_one():
    content = png_of_zeros(600)
    with Image.open(io.BytesIO(content)) as image:
        assert not np.asarray(image).any() and image.size == (600, 600)
    start = content.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", content[start - 8 : start - 4])
    assert zlib.decompress(content[start : start + length]) == bytes(600 * 4801)  # which checks Adler-32


@pytest.mark.parametrize("name", CLAIMS)
def test_headers_that_claim_too_much_cost_nothing(name, tmp_path):
    """Refused before memory is taken, and nothing is written."""
    content, words = CLAIMS[name]
    (tmp_path / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        (read_volume if ".nii" in name else read_image)(tmp_path / name)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 50, "MB"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_dicom_slice_that_claims_too_much(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.RLELossless
    dataset = pydicom.FileDataset("slice.dcm", {}, file_meta=meta, preamble=bytes(128))
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.Rows = dataset.Columns = 32_768
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 32, 32, 31, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(64)])
    dataset["PixelData"].is_undefined_length = True
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for samples, words in ((1, "no file of its size holds"), (60_000, "60000 samples of 32 bits")):
        dataset.SamplesPerPixel = samples
        dataset.save_as(tmp_path / "slice.dcm", write_like_original=True)
        with pytest.raises(InputError, match=words):
            read_volume(tmp_path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 50, "MB"


class TestVideosThatName:
    """Texts that FFmpeg takes for lists of other files, whatever their name is."""

    @pytest.fixture
    def fetched(self):
        """A server on this machine, and what was asked of it."""
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, *args):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()

    def texts(self, other: str) -> dict[str, str]:
        dash = (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" codecs="avc1" width="8" '
            f'height="8"><BaseURL>{other}</BaseURL><SegmentBase indexRange="0-1"><Initialization range="0-1"/>'
            "</SegmentBase></Representation></AdaptationSet></Period></MPD>"
        )
        hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"
        return {"dash": dash, "concat": f"ffconcat version 1.0\nfile '{other}'\n", "hls": hls}

    @pytest.mark.parametrize("kind", ["dash", "concat", "hls"])
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
    def test_nothing_else_is_read(self, tmp_path, fetched, kind, suffix):
        av = pytest.importorskip("av")
        address, asked = fetched
        neighbour = tmp_path / "neighbour.mp4"
        with av.open(str(neighbour), "w") as container:
            stream = container.add_stream("mpeg4", rate=5)
            stream.width = stream.height = 32
            for _ in range(3):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
            container.mux(stream.encode())
        assert len(list(read_frames(neighbour))) == 3
        for other in (f"{address}/x.mp4", "neighbour.mp4", f"file://{neighbour}", str(neighbour)):
            video = tmp_path / f"list{suffix}"
            video.write_text(self.texts(other)[kind])
            with pytest.raises(InputError, match="cannot be opened as a video"):
                list(read_frames(video))
        assert asked == []
