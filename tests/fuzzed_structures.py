# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Files of :mod:`fuzzing` that are whole as files, but whose insides are not what they should be.

Checkpoints with other tensors, records with other values, DICOM slices with other tags, videos with other boxes: what
reads them gets past every checksum, and has to cope with what it finds.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pydicom
import torch
from ignite.engine import Engine
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from torch import nn

from swinumamba_monai.data.files.label_map import read_label_map
from swinumamba_monai.data.files.video import count_frames, read_frames
from swinumamba_monai.data.prepare.split import divide, read_split
from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.reports.comparison import compare
from swinumamba_monai.reports.results import read_evaluation, result_tables
from swinumamba_monai.training.checkpoint import TrainingCheckpoint, run_record

Random = np.random.Generator

STRANGE_VALUES = (
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**400, "", ".", "..", "\0", "\ud800", "x" * 5000, "=1+1",
    "../../etc/passwd", "/etc/passwd", "/dev/zero", "images", [], {}, [[]], ["a"], {"image": "a"}, {"": {"": None}},
    "endoscopy", "abdomen_mri", "microscopy", "[1,", 2**63, -(2**63), 0.5, "a\nb", "\x1b[31m",
)  # fmt: skip


def change_insides(content: object, random: Random, strange: Callable[[], object]) -> object:
    """One or two of the values at any depth become strange, are taken out, or come again under another name."""
    content = copy.deepcopy(content)
    for _ in range(random.integers(1, 3)):
        place = content
        while keys := list(place) if isinstance(place, dict) else list(range(len(place))):
            key = keys[random.integers(len(keys))]
            if isinstance(place[key], (dict, list)) and place[key] and random.random() < 0.75:
                place = place[key]
                continue
            match random.integers(0, 6):
                case 0:
                    del place[key]
                case 1 if isinstance(place, dict):
                    place[STRANGE_VALUES[random.integers(8, 16)]] = place[key]
                case _:
                    place[key] = strange()
            break
    return content


def strange_value(random: Random) -> object:
    return copy.deepcopy(STRANGE_VALUES[random.integers(len(STRANGE_VALUES))])


def strange_tensor(random: Random) -> object:
    """What a checkpoint may hold in the place of a tensor."""
    shape = tuple(random.integers(0, 4, random.integers(0, 5)))
    match random.integers(0, 16):
        case 0:
            return torch.zeros(shape, dtype=random.choice([torch.int64, torch.bool, torch.complex64, torch.float64]))
        case 1:
            return torch.full(shape, float(random.choice([np.nan, np.inf, 1e38])))
        case 2:
            return torch.zeros(1).expand(int(random.choice([3, 10**6, 10**12])))
        case 3:
            return torch.zeros(3, 3).to_sparse()
        case 4:
            return torch.empty(10**12, device="meta")
        case 5:
            return torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.quint8)
        case 6:
            return torch.zeros(64)[1::7]
        case 7:
            return nn.Parameter(torch.zeros(shape))
        case 8:
            return torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0), (10**12,))
        case 9:
            return torch.zeros(shape).to(random.choice([torch.bfloat16, torch.float16, torch.uint8]))
        case 10:  # of the shape of the network's own, all of it one place at the end of enough memory
            return torch.zeros(6).as_strided((2, 3), (0, 0), 5)
        case 11:
            return torch.zeros(2, 3).to(torch.float8_e4m3fn)
    if random.random() < 0.5:
        return torch.zeros(shape)
    return strange_value(random)


def as_torch_file(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


class Resuming:
    """A small training that goes on from a checkpoint, and makes a step with what it found there."""

    def __init__(self) -> None:
        network, optimizer, _ = self._make()
        network(torch.zeros(1, 3)).sum().backward()
        optimizer.step()
        self.state = {
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": 1,
            "best_metric": 0.5,
            "best_metric_epoch": 1,
            "scaler": {},
            "settings": json.dumps({"learning_rate": 1e-3, "seed": 0}),
            "seconds": 1.5,
        }

    @staticmethod
    def _make() -> tuple:
        network = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        return network, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def __call__(self, path: Path) -> None:
        network, optimizer, scheduler = self._make()
        settings = {"learning_rate": 1e-3, "seed": 0}
        checkpoint = TrainingCheckpoint(path.parent, network, optimizer, scheduler, resume=True, settings=settings)
        trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
        trainer.scaler = None
        trainer.state.epoch_length, trainer.state.max_epochs = 1, 2
        try:
            checkpoint.attach(trainer, evaluator)
            network(torch.zeros(1, 3)).sum().backward()
            optimizer.step()
        finally:
            checkpoint._lock.release()

    def alter(self, random: Random) -> bytes:
        return as_torch_file(change_insides(self.state, random, lambda: strange_tensor(random)))


def video(container: str, codec: str) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as file:
        track = file.add_stream(codec, rate=25)
        track.width, track.height, track.pix_fmt = 32, 24, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(4):
            pixels = np.full((24, 32, 3), 40 * number, np.uint8)
            file.mux(track.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(track.encode())
    return stream.getvalue()


def watch(path: Path) -> int:
    """As inference does: count, then decode; a damaged file may claim more frames than anybody waits for."""
    count_frames(path)
    return sum(1 for frame in islice(read_frames(path), 20) if frame.ndim == 3 and frame.shape[2] == 3)


# Tags that decide what is read, or how much of it.
TAGS = (
    "Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel PhotometricInterpretation "
    "NumberOfFrames PlanarConfiguration PixelSpacing ImageOrientationPatient ImagePositionPatient RescaleSlope "
    "RescaleIntercept InstanceNumber SeriesInstanceUID SOPClassUID SOPInstanceUID SliceThickness Modality "
    "ImageType SeriesNumber SeriesDescription"
).split()
TAG_VALUES = (
    "", "0", "-1", "1", "2", "3", "7", "12", "16", "32", "64", "65535", "1e400", "nan", "abc", "1\\2", "0\\0\\0", "RGB",
    "1\\0\\0\\0\\1\\0", "0\\0\\0\\0\\0\\0", "1e-30\\1e-30", "nan\\1\\2", "PALETTE COLOR", "YBR_FULL",
)  # fmt: skip


def alter_dicom(whole: Dataset, random: Random) -> bytes:
    """A slice with other values in one to three of its tags, also of the wrong kind."""
    dataset = copy.deepcopy(whole)
    for _ in range(random.integers(1, 4)):
        keyword = TAGS[random.integers(len(TAGS))]
        if random.random() < 0.15:
            dataset.pop(tag_for_keyword(keyword), None)
            continue
        kind = dictionary_VR(tag_for_keyword(keyword))
        if kind == "US" and random.random() < 0.8:
            written = int(random.choice([0, 1, 2, 3, 7, 8, 12, 16, 32, 64, 255, 65535])).to_bytes(2, "little")
        else:
            written = TAG_VALUES[random.integers(len(TAG_VALUES))].encode()
        if random.random() < 0.1:
            kind = str(random.choice(["LO", "UN", "UI", "DS", "SQ"]))
        tag = Tag(tag_for_keyword(keyword))
        dataset[tag] = RawDataElement(tag, kind, len(written), written, 0, False, True)  # raw: pydicom checks the rest
    if random.random() < 0.2:
        dataset.PixelData = dataset.PixelData[: int(random.integers(0, 60))]
    stream = io.BytesIO()
    try:
        dataset.save_as(stream, write_like_original=False)
    except Exception:  # pydicom will not write this one
        return alter_dicom(whole, random)
    return stream.getvalue()


RUN = {
    "task": "microscopy", "network_name": "SwinUMambaD", "seed": 0, "pretrained": "a.pt", "parameters": 27_500_000,
    "epoch": 3, "best_metric_epoch": 2, "seconds": 10.5, "gpu": "a GPU", "gpu_bytes": 10**9, "learning_rate": 1e-4,
}  # fmt: skip
COLUMNS = {"f1": {"mean": 0.5}, "f1_corrected": {"mean": 0.6, "class": "cell"}}
SUMMARY = {"run": {"task": "microscopy", "network_name": "SwinUMambaD", "training": [RUN]}, "columns": COLUMNS}
METRICS = [["name", "f1", "f1_corrected"], ["a", 0.5, 0.6], ["b", 0.7, 0.8], ["c", 0.1, "nan"]]
LABEL_MAP = {
    "labels": {"background": 0, "a": [1, 2], "b": 3},
    "regions_class_order": [1, 2],
    "channel_names": {"0": "MRI"},
    "file_ending": ".png",
}
DIVISION = {"train": ["a", "b", "c"], "val": ["d"], "test": ["e", "f"]}
SPLIT = {"default": DIVISION, "folds": [DIVISION, DIVISION]}


def as_csv(rows: list) -> bytes:
    stream = io.StringIO()
    csv.writer(stream).writerows(row if isinstance(row, list) else [row] for row in rows)
    return stream.getvalue().encode(errors="replace")


def split(path: Path) -> None:
    """As ``prepare`` reads it, with and without a fold."""
    for fold in (None, 1):
        divide({name: (9, 9) for name in "abcdef"}, read_split(path, fold), 0.2, 0.2, 0)


def summarize(path: Path) -> list[str]:
    return list(result_tables([read_evaluation(str(path.parent)), read_evaluation(f"other={path.parent}")]))


def structures(dicom: bytes) -> Iterator[dict]:
    """What :class:`fuzzed_formats.Format` is made of.

    Args:
        dicom: a whole slice.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    av.logging.set_level(None)
    resuming = Resuming()
    small = {"feature_size": 4, "depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "d_state": 1}
    network = SwinUMambaD(1, 2, **small)
    weights = {"state_dict": dict(network.state_dict()), "epoch": 3, "args": {"lr": 0.1}}

    def of_json(content: object) -> Callable[[Random], bytes]:
        return lambda random: as_json(change_insides(content, random, lambda: strange_value(random)))

    yield {"name": "checkpoint.pt", "read": resuming, "seeds": [as_torch_file(resuming.state)], "alter": resuming.alter}
    yield {
        "name": "weights.pt",
        "read": lambda path: str(load_pretrained(network, path)),
        "seeds": [as_torch_file(weights)],
        "alter": lambda random: as_torch_file(change_insides(weights, random, lambda: strange_tensor(random))),
    }
    yield {
        "name": "run.json",
        "read": lambda path: run_record(path.with_name("model.pt")),
        "seeds": [as_json(RUN)],
        "alter": of_json(RUN),
    }
    yield {
        "name": "summary.json",
        "read": summarize,
        "seeds": [as_json(SUMMARY)],
        "alter": of_json(SUMMARY),
        "others": {"metrics.csv": as_csv(METRICS)},
    }
    yield {
        "name": "metrics.csv",
        "read": lambda path: [compare(path, path), summarize(path)],
        "seeds": [as_csv(METRICS)],
        "alter": lambda random: as_csv(change_insides(METRICS, random, lambda: strange_value(random))),
        "others": {"summary.json": as_json(SUMMARY)},
    }
    yield {
        "name": "dataset.json",
        "read": lambda path: read_label_map(path).names,
        "seeds": [as_json(LABEL_MAP)],
        "alter": of_json(LABEL_MAP),
    }
    yield {"name": "split.json", "read": split, "seeds": [as_json(SPLIT)], "alter": of_json(SPLIT)}
    for name, codec in {"a.mp4": "mpeg4", "a.avi": "mjpeg", "a.mkv": "mpeg4", "a.mpg": "mpeg1video"}.items():
        kind = {"mkv": "matroska", "mpg": "mpeg"}.get(name[2:], name[2:])
        seed = video(kind, codec)
        yield {"name": name, "read": watch, "seeds": [seed], "header": len(seed)}
    whole = pydicom.dcmread(io.BytesIO(dicom))
    yield {"name": "tags.dcm", "seeds": [dicom], "alter": lambda random: alter_dicom(whole, random)}
