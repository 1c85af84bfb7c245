# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is particular to volumes: their geometry comes back exactly, slices are what is trained on, scores are in mm."""

from __future__ import annotations

import json
import re
from functools import partial

import bundle_runs
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import NETWORK, SHORT, before_the_metric, load_weights, workflow_of
from monai.data.utils import set_rnd
from monai.inferers import SlidingWindowInferer
from monai.transforms import LoadImage
from result_tables import read_rows
from scipy import ndimage

from swinumamba_monai.data import LabelMap, prepare_abdomen_mri, synthesize_abdomen_mri

# Turned by 20 degrees about one axis and by 10 about another, so that no axis of the file is one of the body.
TURN = np.array([[0.9397, -0.3420, 0.0], [0.3368, 0.9254, -0.1736], [0.0594, 0.1632, 0.9848]])


run, refusal = (partial(f, "abdomen_mri") for f in (bundle_runs.run, bundle_runs.refusal))


def oblique_affine(axes: tuple[int, ...], flips: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """The affine of a file whose axes lead along ``axes`` of a turned body, each forwards (1) or backwards (-1)."""
    affine = np.eye(4)
    affine[:3, :3] = TURN[:, list(axes)] * np.array(flips) * np.array(spacing)
    affine[:3, 3] = (12.5, -80.25, 40.75)
    return affine.astype(np.float32).astype(np.float64)  # what a NIfTI header holds


def save_blobs(path, shape, affine) -> np.ndarray:
    """A volume of smooth noise, which has no symmetry."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 3)
    voxels = np.round(5000 * noise).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return voxels


def bright(workflow) -> None:
    """Make the network one that sees a voxel brighter than the mean of its volume as class 1."""
    network = workflow.parser.get_parsed_content("network_def")
    with torch.no_grad():
        network.weight.copy_(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))
        network.bias.zero_()


THRESHOLD = bundle_runs.threshold(1, 2)


class TestGeometry:
    @pytest.mark.parametrize(
        "axes, flips",
        [
            ((0, 1, 2), (1, 1, 1)),
            ((0, 1, 2), (-1, -1, 1)),
            ((1, 0, 2), (1, -1, -1)),
            ((2, 0, 1), (-1, 1, 1)),
            ((1, 2, 0), (1, 1, -1)),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("resampled", [False, True])
    def test_comes_back_exactly(self, axes, flips, resampled, tmp_path):
        body_spacing = (1.5, 2.0, 5.0)  # right-left, anterior-posterior, superior-inferior
        spacing = tuple(body_spacing[axis] for axis in axes)
        affine = oblique_affine(axes, flips, spacing)
        shape = tuple((40, 36, 10)[axis] for axis in axes)
        (tmp_path / "images").mkdir()
        voxels = save_blobs(tmp_path / "images" / "a.b.nii.gz", shape, affine)
        rows_columns = (1.2, 1.3) if resampled else (body_spacing[1], body_spacing[0])
        options = {**THRESHOLD, "spacing": list(rows_columns), "output_dir": str(tmp_path / "out")}
        run("inference", tmp_path, bright, dataset_dir=str(tmp_path / "images"), **options)
        (file,) = (tmp_path / "out").iterdir()
        assert file.name == "a.b_classes.nii.gz"
        result = nib.load(file)
        np.testing.assert_array_equal(result.affine, affine)
        np.testing.assert_array_equal(nib.load(file).get_qform()[:3, 3], affine[:3, 3])
        assert result.get_data_dtype() == np.uint8 and result.header.get_xyzt_units()[0] == "mm"
        classes, expected = np.asarray(result.dataobj), voxels > voxels.mean()
        if resampled:  # a voxel's value may be that of its neighbour's half: edges of blobs, nothing else
            near = ndimage.gaussian_filter(voxels.astype(float), 0.5) - voxels.mean()
            clear = np.abs(near) > 0.35 * voxels.std()
            assert clear.mean() > 0.6
            assert (classes == expected)[clear].mean() > 0.999
        else:
            np.testing.assert_array_equal(classes, expected)

    def test_probabilities_and_entropy_lie_on_the_same_grid(self, tmp_path):
        affine = oblique_affine((1, 0, 2), (1, -1, -1), (1.5, 2.0, 5.0))
        (tmp_path / "images").mkdir()
        save_blobs(tmp_path / "images" / "a.nii", (36, 40, 5), affine)
        options = {**THRESHOLD, "spacing": [1.4, 1.3], "save_probabilities": True, "save_entropy": True}
        run("inference", tmp_path, bright, dataset_dir=str(tmp_path / "images"), output_dir=str(tmp_path), **options)
        images = {name: nib.load(tmp_path / f"a_{name}.nii.gz") for name in ("classes", "probabilities", "entropy")}
        classes, probabilities, entropy = (np.asarray(image.dataobj) for image in images.values())
        assert all((image.affine == affine).all() for image in images.values())
        assert probabilities.shape == (36, 40, 5, 2) and entropy.shape == classes.shape == (36, 40, 5)
        np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
        np.testing.assert_array_equal(probabilities.argmax(-1), classes)
        assert 0 <= entropy.min() and entropy.max() <= 1
        sure = probabilities.max(-1)
        assert entropy[sure > 0.95].max() < 0.5 < entropy[sure < 0.6].min()

    def test_one_slice_and_volumes_smaller_than_the_crop(self, trained_in, tmp_path):
        (tmp_path / "images").mkdir()
        for name, shape in (("one", (50, 40, 1)), ("small", (9, 7, 3))):
            save_blobs(tmp_path / "images" / f"{name}.nii.gz", shape, np.diag([3.0, 3.0, 5.0, 1.0]))
        options = {**NETWORK, "dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "out")}
        run("inference", trained_in("abdomen_mri"), **options)
        shapes = {file.name: nib.load(file).shape for file in (tmp_path / "out").iterdir()}
        assert shapes == {"one_classes.nii.gz": (50, 40, 1), "small_classes.nii.gz": (9, 7, 3)}

    def test_a_failed_write_leaves_no_file(self, trained_in, tmp_path, monkeypatch):
        save_blobs(tmp_path / "a.nii.gz", (20, 20, 3), np.diag([3.0, 3.0, 5.0, 1.0]))
        trained, save = trained_in("abdomen_mri"), nib.save

        def fail(image, path):
            save(image, path)
            raise OSError("No space left on device")

        monkeypatch.setattr(nib, "save", fail)
        options = {**NETWORK, "dataset_dir": str(tmp_path / "a.nii.gz"), "output_dir": str(tmp_path / "out")}
        assert "could not be written (No space left" in refusal("inference", trained, **options)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".predict.lock"]  # until this process ends


def test_windows_of_slices_are_the_slices_in_windows(tmp_path):
    """SliceInferer's batches of windows out of a volume give what 2D inference gives slice by slice."""
    workflow = workflow_of("abdomen_mri", "inference", tmp_path, **{**THRESHOLD, "sw_batch_size": 5})
    inferer = workflow.parser.get_parsed_content("inferer")
    network = torch.nn.Conv2d(1, 3, 5, padding=2)
    volume = torch.rand(1, 1, 50, 41, 4)
    flat = SlidingWindowInferer([32, 32], sw_batch_size=1, overlap=0.5, mode="gaussian")
    with torch.no_grad():
        expected = torch.stack([flat(plane, network) for plane in volume.unbind(-1)], dim=-1)
        torch.testing.assert_close(inferer(volume, network), expected, rtol=0, atol=1e-6)


def test_a_dicom_series_becomes_a_nifti_file(trained_in, tmp_path):
    pytest.importorskip("pydicom")
    series = tmp_path / "studies" / "1.2.840.77"
    write_series(series)
    options = {**NETWORK, "dataset_dir": str(tmp_path / "studies"), "output_dir": str(tmp_path / "out")}
    run("inference", trained_in("abdomen_mri"), **options)
    result = nib.load(tmp_path / "out" / "1.2.840.77_classes.nii.gz")
    expected = LoadImage(reader="PydicomReader", affine_lps_to_ras=True)(series)
    assert result.shape == expected.shape == (24, 20, 4)
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-4)  # float32 in the header


def write_series(folder) -> None:
    """Four axial slices of 20 rows and 24 columns."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True)
    series = generate_uid()
    for number in range(4):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.Modality, slice_.InstanceNumber = series, "MR", number + 1
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 20, 24, 1
        slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
        slice_.PixelSpacing, slice_.SliceThickness = [2.5, 3.0], 6.0
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [-30.0, -20.0, 6.0 * number]
        slice_.PixelData = np.random.default_rng(number).integers(0, 900, (20, 24), dtype=np.uint16).tobytes()
        slice_.is_little_endian, slice_.is_implicit_VR = True, False
        slice_.save_as(folder / f"slice{number}.dcm", write_like_original=False)


class TestScores:
    def test_are_in_mm_for_the_classes_that_there_are(self, trained_in, dataset_of, tmp_path):
        """A prediction that is the truth scores 1; one moved by 4 mm is within the tolerance of some organs only."""
        written = {}

        def truth(workflow):
            """The truth instead of the prediction, moved by a voxel along the last axis of the file."""

            def replace(engine):
                for item in engine.state.output:
                    moved = torch.roll(item["label"], 1, dims=-1)
                    moved[..., 0] = 0
                    item["pred"] = moved if written["moved"] else item["label"]

            before_the_metric(workflow, replace)

        for moved in (False, True):
            written["moved"] = moved
            out = tmp_path / str(moved)
            options = {"dataset_dir": str(dataset_of("abdomen_mri")), "output_dir": str(out), **NETWORK}
            run("evaluate", trained_in("abdomen_mri"), truth, num_figures=0, **options)
        rows = read_rows(tmp_path / "False" / "metrics.csv")
        scores = [name for name in rows[0] if name.startswith(("dsc_corrected", "nsd_corrected"))]
        assert len(scores) == 2 * 14 and all(float(row[name]) == 1 for row in rows for name in scores)
        summary = json.loads((tmp_path / "True" / "summary.json").read_text())
        assert summary["tolerance_unit"] == "mm" and summary["tolerances"]["duodenum"] == 7
        assert summary["published_cut_slices"] == ["aorta", "inferior_vena_cava", "esophagus"]
        assert summary["columns"]["nsd_corrected_liver"]["mean"] < 1  # slices are some 45 mm apart

    def test_pictures_show_the_image_as_it_lies_in_the_file(self, trained_in, dataset_of, tmp_path):
        """The network sees it turned; the labels of the picture are those of the file."""
        options = {"dataset_dir": str(dataset_of("abdomen_mri")), "output_dir": str(tmp_path), **NETWORK}
        reports = []

        def watch(workflow):
            reports.append(workflow.parser.get_parsed_content("validate#handlers")[2])

        run("evaluate", trained_in("abdomen_mri"), watch, **options)
        assert len(reports[0]._first) == 2
        for _, case, _ in reports[0]._first:
            file, number = re.fullmatch(r"(.*), slice (\d+) of 4", case.name).groups()
            image = nib.load(dataset_of("abdomen_mri") / "images" / file).get_fdata()
            expected = np.rot90(image[..., int(number) - 1])
            # but for what is brighter than the picture shows
            assert np.corrcoef(expected.ravel(), case.image[..., 0].ravel())[0, 1] > 0.98

    def test_of_a_dataset_with_fewer_organs(self, tmp_path, dataset_of):
        """Four organs with numbers of their own: the tolerances follow the names."""
        label_map = LabelMap(
            ("background", "liver", "spleen", "aorta"), ((0, 2, 4, 6, 7, 8, 9, 10, 11, 12, 13), (1,), (3,), (5,))
        )
        prepared = tmp_path / "prepared"
        prepare_abdomen_mri(dataset_of("abdomen_mri"), prepared, label_map=label_map)
        options = {**SHORT, "dataset_dir": str(prepared), "num_classes": 4}
        run("train", tmp_path, **options)
        run("evaluate", tmp_path, output_dir=str(tmp_path / "report"), num_figures=0, **options)
        summary = json.loads((tmp_path / "report" / "summary.json").read_text())
        assert summary["tolerances"] == {"liver": 5, "spleen": 3, "aorta": 2}
        assert summary["published_cut_slices"] == ["aorta"]
        options["nsd_tolerances"] = {"liver": 5}
        assert "no NSD tolerance for spleen, aorta" in refusal("evaluate", tmp_path, **options)


class TestSlices:
    def test_augmentation_differs_between_workers_and_follows_the_seed(self, dataset_of, tmp_path):
        """MONAI seeds a dataset in every worker, and looks no deeper than its own random state."""

        def draw(seed: int, worker: int) -> list[torch.Tensor]:
            options = {**SHORT, "dataset_dir": str(dataset_of("abdomen_mri")), "foreground_fraction": 0.0}
            dataset = workflow_of("abdomen_mri", "train", tmp_path, **options).parser.get_parsed_content(
                "train#dataset"
            )

            set_rnd(dataset, seed + worker)
            # where slices are drawn alike, what differs is the augmentation
            dataset.R = np.random.RandomState(0)
            return [dataset[0]["image"] for _ in range(4)]

        assert all(map(torch.equal, draw(0, 0), draw(0, 0)))
        assert not all(map(torch.equal, draw(0, 0), draw(0, 1)))

    def test_training_takes_volumes_from_the_cache(self, dataset_of, tmp_path):
        options = {**SHORT, "dataset_dir": str(dataset_of("abdomen_mri"))}
        workflow = run("train", tmp_path, **options)
        assert len(list((tmp_path / "cache").iterdir())) == 3  # of training; validation reads whole volumes
        item = workflow.trainer.state.batch[0]
        assert item["image"].shape == (1, 64, 64) and item["label"].dtype == torch.float32
        assert load_weights(tmp_path / "models" / "checkpoint.pt")["epoch"] == 1

    def test_pretraining_sees_every_slice_once(self, dataset_of, tmp_path):
        options = {**bundle_runs.PRETRAIN, "dataset_dir": str(dataset_of("abdomen_mri")), "batch_size": 5}
        workflow = run("pretrain", tmp_path, **options)
        assert workflow.trainer.state.iteration == 3  # 3 volumes of 4 slices
        assert workflow.trainer.state.batch[0]["image"].shape == (1, 32, 64)

    def test_pretraining_on_a_folder_of_volumes(self, tmp_path, caplog):
        folder = tmp_path / "volumes"
        folder.mkdir()
        for name in ("a", "b"):
            save_blobs(folder / f"{name}.nii.gz", (30, 30, 3), np.diag([8.0, 8.0, 5.0, 1.0]))
        run("pretrain", tmp_path, dataset_dir=str(folder), **bundle_runs.PRETRAIN)
        assert "only 2 images to pretrain on" in caplog.text


@pytest.mark.parametrize(
    "damage, words",
    [("affine", "lies elsewhere"), ("id", "label ids 99"), ("4d", "4 dimensions"), ("shape", "both need one size")],
)
def test_bad_pairs_are_named_before_work_is_lost(damage, words, tmp_path):
    folder = synthesize_abdomen_mri(tmp_path / "data", 2, 1, 1, image_size=(48, 48), num_slices=4)
    image = folder / "images" / "synthetic_001.nii.gz"
    label = folder / "labels" / "synthetic_001.nii.gz"
    loaded = nib.load(label)
    classes, affine = np.array(loaded.dataobj), loaded.affine.copy()
    if damage == "affine":
        affine[0, 3] += 5
    elif damage == "id":
        classes[0, 0, 0] = 99
    elif damage == "shape":
        classes = classes[:-1]
    if damage == "4d":
        nib.save(nib.Nifti1Image(np.stack([classes, classes], -1), affine), image)
    else:
        nib.save(nib.Nifti1Image(classes, affine), label)
    sentence = refusal("train", tmp_path / "out", dataset_dir=str(folder), **SHORT)
    assert words in sentence and "synthetic_001.nii.gz" in sentence
    assert not (tmp_path / "out" / "models").exists()


@pytest.mark.parametrize("spacing", [[1.0], [0.0, 1.0], [1.0, 1.0, 1.0]], ids=str)
def test_a_spacing_that_cannot_be(spacing, trained_in, dataset_of, tmp_path):
    options = {**NETWORK, "dataset_dir": str(dataset_of("abdomen_mri")), "output_dir": str(tmp_path)}
    assert "spacing holds the mm" in refusal("inference", trained_in("abdomen_mri"), spacing=spacing, **options)
