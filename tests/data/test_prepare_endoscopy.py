# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of every layout are checked and divided by surgery; EndoVis 2017's masks are joined into one."""

from __future__ import annotations

import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from picture_datasets import names, save

from swinumamba_monai.data.datalist import load_class_names, load_datalist
from swinumamba_monai.data.files.images import read_classes
from swinumamba_monai.data.files.label_map import ENDOSCOPY_CLASSES, LabelMap
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.endoscopy import instrument_of, prepare_endoscopy

SHARED = Path(__file__).parents[3] / "shared" / "data" / "endoscopy"
PARTS = LabelMap.of_names(["background", "shaft", "manipulator"])
MAPPING = {"Bipolar Forceps": 1, "Prograsp Forceps": 2, "Large Needle Driver": 3, "Other": 4}


def mask(*windows, size=(6, 8), value=30):
    pixels = np.zeros(size, dtype=np.uint8)
    for window in windows:
        pixels[window] = value
    return pixels


@pytest.fixture
def surgeries(tmp_path):
    """Three surgeries of four frames."""
    source = tmp_path / "source"
    for surgery in range(3):
        for number in range(4):
            name = f"op{surgery}_{number:02d}.png"
            save(source / "images" / name, np.full((6, 8, 3), 9, dtype=np.uint8))
            save(source / "labels" / name, mask(np.s_[:2], value=1) + mask(np.s_[4:], value=2))
    return source


def test_surgeries_are_not_torn_apart(surgeries, tmp_path):
    report = prepare_endoscopy(surgeries, tmp_path / "out", label_map=PARTS)
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (4, 4, 4)
    for section in ("training", "validation", "test"):
        assert len({name[:3] for name in names(tmp_path / "out", section)}) == 1
    assert load_class_names(tmp_path / "out") == list(PARTS.names)


def test_folds(surgeries, tmp_path):
    frames = {op: [f"op{op}_{number:02d}" for number in range(4)] for op in range(3)}
    folds = [{"train": frames[(op + 1) % 3] + frames[(op + 2) % 3], "test": frames[op]} for op in range(3)]
    (surgeries / "split.json").write_text(json.dumps({"default": folds[2], "leave_one_out": folds}))
    for fold, test in ((None, 2), (0, 0), (1, 1)):
        prepare_endoscopy(surgeries, tmp_path / str(fold), PrepareOptions(fold=fold), PARTS)
        assert names(tmp_path / str(fold), "test") == frames[test]
    with pytest.raises(InputError, match="folds 0 to 2, but no fold 3"):
        prepare_endoscopy(surgeries, tmp_path / "x", PrepareOptions(fold=3), PARTS)
    (surgeries / "split.json").unlink()
    with pytest.raises(InputError, match="there is no fold 1"):
        prepare_endoscopy(surgeries, tmp_path / "x", PrepareOptions(fold=1), PARTS)


@pytest.mark.parametrize("digits", [3, 1])
def test_frames_of_one_recording_are_cut_at_the_end(digits, tmp_path):
    """At the end of the time: the neighbours of frame10 are frame9 and frame11, and would be as good as seen."""
    for number in range(11):
        save(tmp_path / "source/images" / f"frame{number:0{digits}d}.png", np.zeros((6, 8), dtype=np.uint8))
        save(tmp_path / "source/labels" / f"frame{number:0{digits}d}.png", mask(np.s_[:2], value=1))
    prepare_endoscopy(tmp_path / "source", tmp_path / "out", label_map=PARTS)
    assert set(names(tmp_path / "out", "test")) == {f"frame{number:0{digits}d}" for number in (9, 10)}
    assert names(tmp_path / "out", "validation") == [f"frame{8:0{digits}d}"]


@pytest.fixture
def endovis(tmp_path):
    """EndoVis 2017: two training sequences with masks per instrument, a test sequence with type masks."""
    source = tmp_path / "endovis"
    folders = {
        "train/instrument_dataset_1": {
            "Left_Prograsp_Forceps_labels": np.s_[:2], "Maryland_Bipolar_Forceps_labels": np.s_[1:4],
            "Other_labels": np.s_[5:],
        },
        "train/instrument_dataset_2": {
            "Large_Needle_Driver_Left_labels": np.s_[2:], "Right_Prograsp_Forceps": np.s_[:1],
        },
    }  # fmt: skip
    for sequence, instruments in folders.items():
        for number in range(3):
            save(source / sequence / "left_frames" / f"frame{number:03d}.png", np.full((6, 8, 3), 9, dtype=np.uint8))
            for folder, window in instruments.items():
                save(source / sequence / "ground_truth" / folder / f"frame{number:03d}.png", mask(window))
    test = source / "test/instrument_dataset_1"
    save(test / "left_frames/frame225.png", np.full((6, 8, 3), 9, dtype=np.uint8))
    save(test / "gt/TypeSegmentation/frame225.png", mask(np.s_[:1], value=4))
    (source / "train" / "mappings.json").write_text(json.dumps(MAPPING))
    return source


def test_masks_of_instruments_are_joined(endovis, tmp_path):
    report = prepare_endoscopy(endovis, tmp_path / "out")
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (3, 3, 1)
    assert load_class_names(tmp_path / "out") == ["background", *MAPPING]
    items = load_datalist(tmp_path / "out", "training") + load_datalist(tmp_path / "out", "validation")
    columns = {item["label"].rsplit("/", 1)[1]: read_classes(item["label"])[:, 0].tolist() for item in items}
    assert columns["instrument_dataset_1_frame000.png"] == [2, 2, 1, 1, 0, 4]
    assert columns["instrument_dataset_2_frame002.png"] == [2, 0, 3, 3, 3, 3]
    (item,) = load_datalist(tmp_path / "out", "test")
    assert read_classes(item["label"])[:, 0].tolist() == [4, 0, 0, 0, 0, 0]
    assert Path(item["image"]).is_relative_to(endovis) and Path(item["label"]).is_relative_to(tmp_path / "out")


def test_sequences_of_one_name_are_kept_apart(endovis, tmp_path):
    """Three hospitals each have a sequence of that name, with other masks."""
    for number, place in enumerate(("b", "c"), start=2):
        sequence = endovis / place / "instrument_dataset_1"
        save(sequence / "left_frames" / "frame000.png", np.full((6, 8, 3), 9, dtype=np.uint8))
        save(sequence / "ground_truth" / "Left_Prograsp_Forceps_labels" / "frame000.png", mask(np.s_[:number]))
    report = prepare_endoscopy(endovis, tmp_path / "out")
    assert sum(report.sizes.values()) == 9
    items = [item for section in ("training", "validation") for item in load_datalist(tmp_path / "out", section)]
    rows = {item["image"].split("/")[-4]: read_classes(item["label"])[:, 0] for item in items
            if item["image"].endswith("instrument_dataset_1/left_frames/frame000.png")}  # fmt: skip
    assert {place: np.count_nonzero(rows[place]) for place in "bc"} == {"b": 2, "c": 3}


def test_a_mapping_of_parts_does_not_number_instruments(endovis, tmp_path):
    mappings = endovis / "train" / "mappings.json"
    mappings.rename(endovis / "train" / "instrument_type_mapping.json")
    mappings.write_text(json.dumps({"Shaft": 10, "Wrist": 20, "Claspers": 30}))
    prepare_endoscopy(endovis, tmp_path / "out")
    assert load_class_names(tmp_path / "out") == ["background", *MAPPING]
    (endovis / "train" / "instrument_type_mapping.json").unlink()
    with pytest.raises(InputError, match=r"mappings\.json number\(s\) none of the mask folders"):
        prepare_endoscopy(endovis, tmp_path / "other")
    mappings.write_text(json.dumps({name: number for name, number in MAPPING.items() if name != "Other"}))
    with pytest.raises(InputError, match="Other_labels is for an instrument that has no number"):
        prepare_endoscopy(endovis, tmp_path / "other")
    mappings.unlink()
    with pytest.raises(InputError, match=r"no mappings\.json"):
        prepare_endoscopy(endovis, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("folder", "instrument"),
    [
        ("Left_Prograsp_Forceps_labels", "prograspforceps"),
        ("Large_Needle_Driver_Right_labels", "largeneedledriver"),
        ("Maryland_Bipolar_Forceps_labels", "bipolarforceps"),
        ("Right_Vessel_Sealer", "vesselsealer"),
        ("Other_labels", "other"),
    ],
)
def test_instruments_of_folders(folder, instrument):
    assert instrument_of(folder) == instrument


def test_nnunet_layout(tmp_path):
    source = tmp_path / "source"
    for part, number in (("Tr", 1), ("Tr", 2), ("Tr", 3), ("Ts", 4)):
        save(source / f"images{part}" / f"seq{number}_frame_0000.png", np.zeros((6, 8, 3), dtype=np.uint8))
        save(source / f"labels{part}" / f"seq{number}_frame.png", mask(np.s_[:2], value=7))
    labels = {name: number for number, name in enumerate(ENDOSCOPY_CLASSES)}
    (source / "dataset.json").write_text(json.dumps({"labels": labels}))
    report = prepare_endoscopy(source, tmp_path / "out")
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (2, 1, 1)
    assert load_class_names(tmp_path / "out") == list(ENDOSCOPY_CLASSES)


def test_bad_frames_are_listed(surgeries, tmp_path):
    save(surgeries / "labels" / "op0_00.png", np.full((6, 8, 3), (9, 0, 0), dtype=np.uint8))
    save(surgeries / "labels" / "op0_01.png", mask(np.s_[:], value=9))
    save(surgeries / "labels" / "op0_02.png", mask(size=(8, 6)))
    save(surgeries / "labels" / "op0_03.png", mask())
    with pytest.raises(InputError) as error:
        prepare_endoscopy(surgeries, tmp_path / "out", label_map=PARTS)
    for words in ("op0_00.png has 3 channels", "op0_01.png has the label ids 9", "op0_02.png has (8, 6) pixels"):
        assert words in str(error.value)
    report = prepare_endoscopy(surgeries, tmp_path / "out", PrepareOptions(skip_bad=True), PARTS)
    assert len(report.problems) == 3 and "op0_03.png has background only" in report.warnings[0]


def test_frames_of_every_kind_are_read(surgeries, tmp_path):
    """16 bits, RGBA and gray frames are as good as others; the fingerprint says what there is."""
    deep = np.arange(6 * 8 * 3, dtype=np.uint16).reshape(6, 8, 3) * 400
    (surgeries / "images" / "op0_00.png").write_bytes(imagecodecs.png_encode(deep))
    save(surgeries / "images" / "op0_01.png", np.full((6, 8, 4), 255, dtype=np.uint8))
    save(surgeries / "images" / "op0_02.png", np.full((6, 8), 7, dtype=np.uint8))
    (surgeries / "split.json").write_text(
        json.dumps({"train": [f"op0_0{n}" for n in range(4)], "val": ["op1_00"], "test": ["op2_00"]})
    )
    report = prepare_endoscopy(surgeries, tmp_path / "out", label_map=PARTS)
    assert report.problems == [] and report.fingerprint["dtypes"] == {"uint8": 4, "uint16": 1}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not here")
def test_real_data(tmp_path):
    report = prepare_endoscopy(SHARED, tmp_path / "ev15", PrepareOptions(fold=1), PARTS)
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (54, 27, 27)
    assert report.problems == []
    assert {name[:8] for name in names(tmp_path / "ev15", "test")} == {"ev15_op2"}
