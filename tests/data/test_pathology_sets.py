# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Public sets of nuclei, imitated in the layout in which they are downloaded: XML of Aperio, MATLAB, arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from picture_datasets import problems, save
from scipy.io import savemat

from swinumamba_monai.data import load_datalist
from swinumamba_monai.data.files.annotations import read_annotations
from swinumamba_monai.data.files.aperio import is_aperio, read_aperio
from swinumamba_monai.data.files.images import read_classes, read_image, read_instances
from swinumamba_monai.data.files.matlab import read_variables
from swinumamba_monai.data.files.shapes import numbers_of, rasterize
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.data.prepare.label_forms import check_numbers
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy

BOXES = {1: (1, 1, 5, 4), 2: (6, 2, 11, 5), 3: (2, 6, 9, 9)}  # left, top, right, bottom, in an image of 12 x 10
NAMES = ("TCGA-A7-A13E-01Z-00-DX1", "TCGA-18-5592-01Z-00-DX1", "TCGA-38-6178-01Z-00-DX1", "TCGA-B0-5711-01Z-00-DX1")


def nuclei() -> np.ndarray:
    numbers = np.zeros((10, 12), np.int32)
    for number, (left, top, right, bottom) in BOXES.items():
        numbers[top:bottom, left:right] = number
    return numbers


def region(left: float, top: float, right: float, bottom: float, kind: str = "0", more: str = "") -> str:
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    corners = corners[::2] if kind == "2" else corners
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
    return f'<Region Id="1" Type="{kind}" {more}><Attributes/><Vertices>{vertices}</Vertices></Region>'


def aperio(path: Path, **of_class: str) -> Path:
    """A layer for each class, called as in MoNuSAC; "Description" is what MoNuSeg has."""
    layers = "".join(
        f'<Annotation Id="1" Name=""><Attributes><Attribute Name="{name}" Id="0" Value=""/></Attributes><Regions>'
        f"<RegionAttributeHeaders/>{regions}</Regions></Annotation>"
        for name, regions in of_class.items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<Annotations MicronsPerPixel="0.252000">{layers}</Annotations>')
    return path


def matlab(path: Path, **variables: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def sections(folder: Path) -> dict[str, list[str]]:
    parts = ("training", "validation", "test")
    return {part: [Path(item["image"]).stem for item in load_datalist(folder, part)] for part in parts}


def labels(folder: Path, part: str = "training", read=read_instances) -> list[np.ndarray]:
    return [read(item["label"]) for item in load_datalist(folder, part)]


def test_monuseg(tmp_path):
    """Images to train on in folders, and those of the test beside their outlines."""
    everything = "".join(region(*box) for box in BOXES.values())
    train, test = tmp_path / "in" / "MoNuSeg 2018 Training Data", tmp_path / "in" / "MoNuSegTestData"
    for name in NAMES[:3]:
        save(train / "Tissue Images" / f"{name}.tif")
        aperio(train / "Annotations" / f"{name}.xml", Description=everything)
    save(test / f"{NAMES[3]}.tif")
    aperio(test / f"{NAMES[3]}.xml", Description=everything)
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out")
    assert sections(tmp_path / "out")["test"] == [NAMES[3]] and report.instances == 12
    assert not report.warnings and not report.inputs.not_taken
    for label in labels(tmp_path / "out"):
        np.testing.assert_array_equal(label > 0, nuclei() > 0)
        assert len(np.unique(label)) == 4


def monusac(source: Path) -> Path:
    first, second, third = (region(*box) for box in BOXES.values())
    for slide in (*NAMES, NAMES[1].replace("DX1", "DX2"), NAMES[3].replace("DX1", "DX2")):
        for number in (1, 2):
            image = save(source / slide / f"{slide}_{number}.tif")
            image.with_suffix(".svs").write_bytes(image.read_bytes())
            aperio(image.with_suffix(".xml"), Epithelial=first, Lymphocyte=second, Ambiguous=third)
    return source


def test_monusac(tmp_path):
    """The images of a patient stay together; undecided regions are no cells, and lost classes are said."""
    report = prepare_microscopy(monusac(tmp_path / "in"), tmp_path / "out")
    assert report.instances == 24 and list(report.inputs.not_taken) == [".svs files"]
    patients = [{name[:12] for name in names} for names in sections(tmp_path / "out").values()]
    assert sum(map(len, patients)) == len(NAMES)
    assert not any((label[6:9, 2:9] > 0).any() for label in labels(tmp_path / "out"))
    said = "\n".join(report.warnings)
    assert said.count("regions called Ambiguous (1), which are no cells") == 12
    assert said.count("has classes of cells, which are not used") == 12


def test_classes_of_monusac(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"background": 0, "Lymphocyte": 1, "Epithelial": 2, "Ambiguous": 3}))
    prepare_endoscopy(monusac(tmp_path / "in"), tmp_path / "out", None, tmp_path / "map.json")
    (label, *_) = labels(tmp_path / "out", read=read_classes)
    np.testing.assert_array_equal(label, np.array([0, 2, 1, 3])[nuclei()])


def test_test_images_of_monusac_are_not_trained_on(tmp_path):
    monusac(tmp_path / "in" / "MoNuSAC_images_and_annotations")
    folder = tmp_path / "in" / "MoNuSAC Testing Data and Annotations" / "TCGA-XX-YYYY-01Z-00-DX1"
    save(folder / "TCGA-XX-YYYY-01Z-00-DX1_1.tif")
    aperio(folder / "TCGA-XX-YYYY-01Z-00-DX1_1.xml", Epithelial=region(*BOXES[1]))
    prepare_microscopy(tmp_path / "in", tmp_path / "out")
    assert sections(tmp_path / "out")["test"] == ["TCGA-XX-YYYY-01Z-00-DX1_1"]


def test_kinds_of_regions_of_aperio(tmp_path):
    """An ellipse has two corners of its box; a name of the layer goes before that of its attribute."""
    path = aperio(tmp_path / "a.xml", Description=region(*BOXES[2], kind="1") + region(2, 5, 10, 9, kind="2"))
    path.write_text(path.read_text().replace('Name=""', 'Name="Tumor"'))
    found = read_aperio(path)
    y, x = np.mgrid[:10, :12] + 0.5
    expected = ((x - 6) / 4) ** 2 + ((y - 7) / 2) ** 2 < 1
    painted = rasterize(found, numbers_of(found.shapes), (10, 12))
    np.testing.assert_array_equal(painted == 2, expected)
    np.testing.assert_array_equal(painted == 1, nuclei() == 2)
    assert found.names == ("Tumor",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<Annotations><Annotation><Regions/></Annotation></Annotations>", "has no region of Aperio"),
        (region(*BOXES[1], kind="4"), "has a region of the kind 'Type 4'"),
        (region(*BOXES[1], more='NegativeROA="1"'), "has a negative region"),
        (region(20, 2, 30, 9), "outside of its image of"),
        (region(1, 2, 5, 9).replace('X="1"', 'X="one"'), "cannot be read"),
        (region(1, 2, 5, 9).replace('X="1" ', ""), "cannot be read"),
        (region(1, 2, 5, 9)[:-20], "is no XML"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><Annotations>&b;</Annotations>', "declares entities"),
    ],
)
def test_bad_files_of_aperio_do_not_stop_the_others(text, words, tmp_path):
    for name in NAMES:
        save(tmp_path / "in" / f"{name}.tif")
        path = aperio(tmp_path / "in" / f"{name}.xml", Description=region(*BOXES[1]))
    path.write_text(text if "Annotations>" in text else path.read_text().replace(region(*BOXES[1]), text))
    (problem,) = problems(tmp_path / "in").splitlines()[1:]
    assert path.name in problem and words in problem
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out", PrepareOptions(skip_bad=True))
    assert list(report.problems) == [problem] and sum(report.sizes.values()) == 3


def test_a_file_of_aperio_in_utf_16(tmp_path):
    path = aperio(tmp_path / "a.xml", Description=region(*BOXES[1]))
    path.write_text('<?xml version="1.0" encoding="UTF-16"?>' + path.read_text(), "utf-16")
    assert is_aperio(path) and len(read_aperio(path).shapes) == 1


def test_other_xml_beside_an_image_is_no_label(tmp_path):
    """VOC's boxes, beside CVAT's file for all images, which counts."""
    images = ""
    for number in range(3):
        save(tmp_path / "in" / "images" / f"{number}.png")
        (tmp_path / "in" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "in" / "annotations" / f"{number}.xml").write_text("<annotation><object/></annotation>")
        box = '<box label="cell" xtl="1" ytl="1" xbr="5" ybr="4"/>'
        images += f'<image id="{number}" name="{number}.png" width="12" height="10">{box}</image>'
    (tmp_path / "in" / "annotations" / "all.xml").write_text(f"<annotations>{images}</annotations>")
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out")
    assert report.instances == 3 and report.inputs.not_taken == {".xml files": ["0.xml", "1.xml", "2.xml"]}
    assert read_annotations(aperio(tmp_path / "a.xml", Description="")) is None


def test_outlines_of_aperio_on_an_image_that_is_to_be_turned(tmp_path):
    save(tmp_path / "in" / "a.tif", extratags=[(274, "H", 1, 6, True)])
    aperio(tmp_path / "in" / "a.xml", Description=region(*BOXES[1]))
    assert "a.tif is to be turned before it is seen" in problems(tmp_path / "in")


def test_consep_and_kumar(tmp_path):
    """Overlays are no images; Kumar has two folders for the test; a class is one of the nuclei in their order."""
    numbers = np.where(nuclei() > 0, nuclei() * 5, 0).astype(np.float64)
    for part, names in (("Train", "abc"), ("Test_same", "d"), ("test_diff", "e")):
        for name in names:
            for folder in ("Images", "Overlay"):
                save(tmp_path / "in" / part / folder / f"{name}.png")
            matlab(
                tmp_path / "in" / part / "Labels" / f"{name}.mat",
                inst_map=numbers,
                inst_type=np.array([[3.0], [1.0], [2.0]]),
                notes={"a": np.array(["b"], object)},
            )
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out")
    assert sorted(sections(tmp_path / "out")["test"]) == ["d", "e"] and len(report.inputs.not_taken[".png files"]) == 5
    assert all(np.array_equal(label, numbers) for label in labels(tmp_path / "out"))
    assert len(report.warnings) == 5 and "has classes of cells, which are not used" in report.warnings[0]
    (tmp_path / "map.json").write_text(json.dumps({"background": 0, "a": 1, "b": 2, "c": 3}))
    prepare_endoscopy(tmp_path / "in", tmp_path / "classes", None, tmp_path / "map.json")
    for label in labels(tmp_path / "classes", "test", read_classes):
        np.testing.assert_array_equal(label, np.array([0, 3, 1, 2])[nuclei()])


def test_lizard(tmp_path):
    """Images in two folders; the classes are those of the ids, in any order."""
    ids, classes = np.array([[7], [2], [9], [4]]), np.array([[1], [2], [3], [4]])
    numbers = np.array([0, 2, 4, 9])[nuclei()]
    for number in range(4):
        save(tmp_path / "in" / f"Lizard_Images{1 + number % 2}" / f"dpath_{number}.png")
        place = tmp_path / "in" / "Lizard_Labels" / "Labels" / f"dpath_{number}.mat"
        matlab(place, inst_map=numbers, id=ids, **{"class": classes})
    assert prepare_microscopy(tmp_path / "in", tmp_path / "cells").instances == 12
    (tmp_path / "map.json").write_text(json.dumps({"background": [0, 1], "a": 2, "b": 3, "c": 4}))
    prepare_endoscopy(tmp_path / "in", tmp_path / "classes", None, tmp_path / "map.json")
    assert all(
        np.array_equal(label, np.array([0, 1, 3, 2])[nuclei()])
        for label in labels(tmp_path / "classes", "validation", read_classes)
    )
    for variables in ({"id": ids, "class": classes}, {"inst_type": classes}):
        matlab(place, inst_map=nuclei(), **variables)
        said = problems(tmp_path / "in", "endoscopy", {"background": 0, "a": [1, 2, 3, 4]})
        assert "has no class for each of its 3 nuclei, but 4 in all" in said


def test_matlab_keeps_doubles_that_are_whole_in_fewer_bytes(tmp_path):
    """As MATLAB itself writes them: the array says double, its numbers are bytes."""
    savemat(tmp_path / "a.mat", {"inst_map": nuclei().astype(np.uint8)})
    data = bytearray((tmp_path / "a.mat").read_bytes())
    assert data[144] == 9, "the kind of the array, uint8"
    data[144] = 6
    (tmp_path / "a.mat").write_bytes(data)
    np.testing.assert_array_equal(read_variables(tmp_path / "a.mat", "inst_map")["inst_map"], nuclei())


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"other": np.ones((2, 2)), "inst_map": {"a": 1}}, "has no inst_map with the numbers of its nuclei, but other"),
        ({"inst_map": np.array([["a"]], object)}, "but nothing"),
        ({"inst_map": np.ones((10, 12)) * 1j}, "but nothing"),
        ({"inst_map": np.full((10, 12), 0.5)}, "no map of numbers"),
        ({"inst_map": np.zeros((3, 10, 12))}, "no map of numbers"),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64", "is a file of MATLAB 7.3, which is HDF5"),
        (b"MATLAB 5.0 MAT-file" + bytes(200), "is no file of MATLAB that can be read"),
        (b"", "is no file of MATLAB that can be read"),
    ],
)
def test_bad_files_of_matlab_do_not_stop_the_others(variables, words, tmp_path):
    for name in "abcd":
        save(tmp_path / "in" / "train" / "Images" / f"{name}.png")
        path = tmp_path / "in" / "train" / "Labels" / f"{name}.mat"
        matlab(path, inst_map=nuclei())
    if isinstance(variables, bytes):
        path.write_bytes(variables)
    else:
        matlab(path, **variables)
    (problem,) = problems(tmp_path / "in").splitlines()[1:]
    assert "d.mat" in problem and words in problem
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out", PrepareOptions(skip_bad=True))
    assert list(report.problems) == [problem] and sum(report.sizes.values()) == 3


def pannuke(source: Path, folds: int = 3) -> Path:
    """Two patches in the first fold, three in the second and so on, each of another gray."""
    for fold in range(1, folds + 1):
        masks = np.zeros((fold + 1, 10, 12, 6))
        for channel, number in ((0, 1), (3, 2), (3, 3)):
            masks[..., channel][:, nuclei() == number] = 7 * number
        masks[:, 3, 4, 4] = 7  # lies under a nucleus of the first class, and has its number
        masks[:, 8:10, 10:12, 4] = 7
        masks[..., 5] = masks[..., :5].sum(-1) == 0
        images = np.ones((fold + 1, 10, 12, 3)) * (10 * fold + np.arange(fold + 1))[:, None, None, None]
        for kind, array in (("images", images), ("masks", masks)):
            place = source / f"Fold {fold}" / kind / f"fold{fold}"
            place.mkdir(parents=True)
            np.save(place / f"{kind}.npy", array)
        types = np.array(["Breast", None], object)
        np.save(source / f"Fold {fold}" / "images" / f"fold{fold}" / "types.npy", types, allow_pickle=True)
    return source


def test_pannuke(tmp_path):
    """Every patch becomes a file; the folds are the sections, and the copied images are all that is needed."""
    report = prepare_microscopy(pannuke(tmp_path / "in"), tmp_path / "out")
    assert not report.inputs.not_taken and report.instances == 4 * 9
    (tmp_path / "in").rename(tmp_path / "gone")
    expected = nuclei()
    expected[8:10, 10:12] = 4
    for fold, part in enumerate(("training", "validation", "test"), start=1):
        items = load_datalist(tmp_path / "out", part)
        assert [Path(item["image"]).name for item in items] == [f"fold{fold}_{n:06d}.png" for n in range(fold + 1)]
        grays = [int(read_image(item["image"])[5, 5, 0]) for item in items]
        assert grays == [10 * fold + number for number in range(fold + 1)]
        for label in labels(tmp_path / "out", part):
            np.testing.assert_array_equal(label, expected)
    assert "classes of cells, which are not used" in report.warnings[0] and "which slide" in report.warnings[1]


def test_folds_of_pannuke_stay_whole(tmp_path):
    prepare_microscopy(pannuke(tmp_path / "in", folds=4), tmp_path / "in")
    parts = [{name[:5] for name in names} for names in sections(tmp_path / "in").values()]
    assert sum(map(len, parts)) == 4
    assert prepare_microscopy(tmp_path / "in", tmp_path / "in").inputs.not_taken == {}, "and again, in place"


def test_bad_arrays_of_pannuke(tmp_path):
    """Those whose sizes differ, a pickle, and single patches; good ones are left."""
    source = pannuke(tmp_path / "in", folds=5)
    place = [source / f"Fold {fold}" / "masks" / f"fold{fold}" / "masks.npy" for fold in range(6)]
    np.save(place[1], np.load(place[1])[:, :8])
    np.save(place[2], np.array([None], object), allow_pickle=True)
    np.save(place[3], np.load(place[3])[..., :5])
    masks = np.load(place[4])
    masks[0, 0, 0, 0] = 0.5
    np.save(place[4], masks)
    images = source / "Fold 5" / "images" / "fold5" / "images.npy"
    np.save(images, np.where(np.arange(6)[:, None, None, None] == 3, np.nan, np.load(images)))
    report = prepare_microscopy(source, tmp_path / "out", PrepareOptions(skip_bad=True))
    words = (
        "has 2 patches of 8 x 12 pixels, but",
        "is no plain array",
        "has the shape (4, 10, 12, 5)",
        "(patch 0) is no map of numbers",
    )
    for problem, fold, word in zip(report.problems, (1, 2, 3, 4), words):
        assert str(place[fold]) in problem and word in problem
    assert "images.npy (patch 3) has other pixels" in report.problems[4] and len(report.problems) == 5
    assert sum(report.sizes.values()) == 4 + 5
    with pytest.raises(InputError, match=r"has 5 problem\(s\)"):
        prepare_microscopy(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_numbers_of_half_precision(recwarn):
    numbers = nuclei().astype(np.float16)
    np.testing.assert_array_equal(check_numbers(numbers, "a.npy"), nuclei())
    numbers[0, 0] = np.inf
    with pytest.raises(InputError, match="is no map of numbers"):
        check_numbers(numbers, "a.npy")
    assert not recwarn
