# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Channels become RGB, slices get their spacing, instance maps become three classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Spacing
from scipy.spatial.transform import Rotation
from skimage.measure import label
from skimage.morphology import dilation, disk
from skimage.segmentation import find_boundaries

from swinumamba_monai.cells import InstancesToClasses, InstancesToClassesd
from swinumamba_monai.data.sampling.transforms import SliceOrientationd, SliceSpacingd, ToRGB, ToRGBd
from swinumamba_monai.data.synthetic.microscopy import synthesize_image
from swinumamba_monai.errors import InputError


def channels(*values):
    """A (C, 2, 2) tensor with one value per channel."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, 2, 2)


@pytest.mark.parametrize(
    ("before", "after"), [((5,), (5, 5, 5)), ((5, 6), (5, 6, 0)), ((5, 6, 7), (5, 6, 7)), ((5, 6, 7, 9), (5, 6, 7))]
)
def test_to_rgb(before, after):
    torch.testing.assert_close(ToRGB()(channels(*before)).as_tensor(), channels(*after))
    np.testing.assert_array_equal(ToRGB()(channels(*before).numpy()), channels(*after))


def test_to_rgb_keeps_metadata_and_refuses_more_channels():
    for count in (1, 2, 3, 4):
        image = MetaTensor(channels(*range(count)), meta={"filename_or_obj": "a.png"})
        items = ToRGBd("image")({"image": image, "other": 1})
        assert isinstance(items["image"], MetaTensor) and items["image"].meta["filename_or_obj"] == "a.png"
        assert items["other"] == 1
    with pytest.raises(InputError, match="5 channels"):
        ToRGB()(channels(1, 2, 3, 4, 5))


# Cell 1 touches the left edge of the array; cells 1 and 2 touch each other.
INSTANCES = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 2, 2, 2, 0],
        [1, 1, 1, 1, 2, 2, 2, 0],
        [1, 1, 1, 1, 2, 2, 2, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
CLASSES = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [2, 2, 2, 2, 2, 2, 2, 0],
        [1, 1, 1, 2, 2, 1, 2, 0],
        [2, 2, 2, 2, 2, 2, 2, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
DILATED = np.array(
    [
        [2, 2, 2, 2, 2, 2, 2, 0],
        [2, 2, 2, 2, 2, 2, 2, 2],
        [2, 2, 2, 2, 2, 2, 2, 2],
        [2, 2, 2, 2, 2, 2, 2, 2],
        [2, 2, 2, 2, 2, 2, 2, 0],
    ]
)


def test_classes_by_hand():
    np.testing.assert_array_equal(InstancesToClasses(min_interior=0)(INSTANCES[None])[0], CLASSES)
    np.testing.assert_array_equal(InstancesToClasses(1, min_interior=0)(INSTANCES[None])[0], DILATED)
    without_speck = np.where((CLASSES == 1) & (INSTANCES == 2), 0, CLASSES)
    np.testing.assert_array_equal(InstancesToClasses(min_interior=3)(INSTANCES[None])[0], without_speck)
    np.testing.assert_array_equal(InstancesToClasses(min_interior=0)(np.ones((1, 4, 4))), np.ones((1, 4, 4)))
    np.testing.assert_array_equal(InstancesToClasses()(np.zeros((1, 4, 4))), np.zeros((1, 4, 4)))


@pytest.fixture(scope="module")
def instances():
    """A crowded (200, 240) map."""
    found = synthesize_image(np.random.default_rng(3), (200, 240), stained=False)[1].astype(np.int32)
    assert found.max() > 20
    return found


def test_published_classes_as_scikit_image_makes_them(instances):
    boundary = dilation(find_boundaries(instances, mode="inner"), disk(1))
    interior = label((instances > 0) & ~boundary, connectivity=1)
    interior = np.isin(interior, np.flatnonzero(np.bincount(interior.ravel()) >= 16)) & (interior > 0)
    expected = np.where(boundary, 2, interior)
    np.testing.assert_array_equal(InstancesToClasses(boundary_dilation=1)(instances[None])[0], expected)


def test_a_crop_has_the_classes_of_the_whole_image(instances):
    """But for its edge, where a neighbour outside may have made a boundary that the crop cannot see."""
    to_classes = InstancesToClasses(min_interior=0)
    whole = to_classes(instances[None])
    window = np.s_[:, 50:150, 60:170]
    crop = to_classes(instances[None][window])
    np.testing.assert_array_equal(crop[:, 1:-1, 1:-1], whole[window][:, 1:-1, 1:-1])
    assert not ((crop == 2) & (whole[window] != 2)).any()


def test_interiors_of_touching_cells_stay_apart(instances):
    classes = InstancesToClasses(min_interior=0)(instances[None])[0]
    pieces = label(classes == 1, connectivity=2)
    for piece in range(1, pieces.max() + 1):
        assert np.unique(instances[pieces == piece]).size == 1


def test_kinds_are_kept():
    tensor = torch.from_numpy(INSTANCES)[None]
    classes = InstancesToClasses(min_interior=0)(MetaTensor(tensor, meta={"filename_or_obj": "a.png"}))
    assert isinstance(classes, MetaTensor) and classes.dtype == torch.uint8
    assert classes.meta["filename_or_obj"] == "a.png"
    assert type(InstancesToClasses()(tensor)) is torch.Tensor
    assert InstancesToClasses()(INSTANCES[None]).dtype == np.uint8
    np.testing.assert_array_equal(classes.numpy()[0], CLASSES)


def test_dictionary_version_keeps_the_instances():
    items = {"label": torch.from_numpy(INSTANCES)[None], "image": 1}
    done = InstancesToClassesd("label", instances_key="instances", min_interior=0)(items)
    np.testing.assert_array_equal(done["label"][0], CLASSES)
    np.testing.assert_array_equal(done["instances"][0], INSTANCES)
    np.testing.assert_array_equal(items["label"][0], INSTANCES)
    assert set(InstancesToClassesd("label")(items)) == {"label", "image"}
    assert InstancesToClassesd("pred", allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(ValueError, match="instances_key"):
        InstancesToClassesd(["label", "pred"], instances_key="instances")


def test_bad_maps_and_arguments_are_refused():
    with pytest.raises(InputError, match=r"\(3, 4, 4\)"):
        InstancesToClasses()(np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="boundary_dilation"):
        InstancesToClasses(boundary_dilation=-1)


def test_slices_are_resampled_and_stay_where_they_are():
    affine = np.diag([2.0, 4.0, 7.0, 1.0])
    volume = MetaTensor(torch.arange(2 * 8 * 6 * 3, dtype=torch.float32).reshape(2, 8, 6, 3), affine=affine)
    items = {"image": volume, "image_path": "a.nii", "image_of_file": volume, "label": 3}  # MONAI Label has such a path
    done = SliceSpacingd("image", spacing=[1.0, 2.0])(items)
    assert done["image"].shape[0] == 2 and done["image"].shape[3] == 3
    np.testing.assert_allclose(done["image"].pixdim, [1, 2, 7])
    expected = Spacing((1.0, 2.0, -1.0), mode="bilinear")(volume)
    torch.testing.assert_close(done["image"].as_tensor(), expected.as_tensor())
    assert done["image_path"] == "a.nii" and done["image_of_file"] is volume and done["label"] == 3
    same = SliceSpacingd("image", spacing=[2.0, 4.0])(items)["image"]
    torch.testing.assert_close(same.as_tensor(), volume.as_tensor())
    one, both = (SliceSpacingd("image", spacing=spacing)(items)["image"] for spacing in (3, [3.0, 3.0]))
    torch.testing.assert_close(one.as_tensor(), both.as_tensor(), rtol=0, atol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [45, 135, -45])
def test_slices_at_45_degrees_come_back_and_are_turned_as_their_label(axis, degrees):
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, :3] @= Rotation.from_euler("xyz"[axis], degrees, degrees=True).as_matrix()
    single = torch.from_numpy(affine.astype(np.float32).astype(np.float64))  # as NIfTI keeps it, and its label may not
    voxels = torch.zeros(1, 5, 5, 5)
    voxels[0, 0, 1, 3] = 1
    transforms = Compose(
        [SliceOrientationd(["image", "label"], "PLS"), SliceSpacingd(["image", "label"], 1.3, "nearest")]
    )
    volumes = {"image": MetaTensor(voxels, affine=single), "label": MetaTensor(voxels, affine=torch.from_numpy(affine))}
    turned = transforms(volumes)
    assert torch.equal(turned["image"].as_tensor(), turned["label"].as_tensor())
    back = transforms.inverse(turned)["image"]
    torch.testing.assert_close(back.affine, single)
    assert torch.equal(back.as_tensor(), voxels)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2)])
def test_axes_at_45_degrees_to_two_others_are_turned_alike_whatever_their_last_digits(order):
    """Two of them lean alike towards the third, so that rounding said which comes first."""
    affine, draw = np.eye(4), np.random.default_rng(0)
    affine[:3, :3] = (Rotation.from_euler("xy", [45, 45], degrees=True).as_matrix() * [1, 1.3, 5])[:, order]
    voxels = torch.arange(24.0).reshape(1, 2, 3, 4)
    near = [affine + 1e-6 * np.eye(4, 3) @ draw.normal(size=(3, 4)) for _ in range(8)]
    turned = [SliceOrientationd("image", "PLS")({"image": MetaTensor(voxels, affine=one)})["image"] for one in near]
    assert all(torch.equal(volume.as_tensor(), turned[0].as_tensor()) for volume in turned)


def test_slices_that_would_be_one_pixel_are_refused():
    """As of metres that are taken for millimetres: all of the image would be one number."""
    volume = MetaTensor(torch.rand(1, 300, 300, 3), affine=np.diag([1e-3, 1e-3, 5e-3, 1]))
    with pytest.raises(InputError, match=r"become a single pixel of 1\.25 x 1\.25 mm; correct the spacing"):
        SliceSpacingd("image", 1.25)({"image": volume})
    assert SliceSpacingd("image", 1.25)({"image": volume[:, :1, :1]})["image"].shape == (1, 1, 1, 3)


def test_a_single_slice_in_another_direction_is_refused():
    """As a localizer's: it would be cut into 300 slices of a row each."""
    volume = MetaTensor(torch.rand(1, 300, 1, 300), affine=np.diag([1.0, 1, 1, 1]))
    with pytest.raises(InputError, match=r"single slice in another direction, .* 300 x 1 pixels"):
        SliceSpacingd("image", 1.25)({"image": volume})


@pytest.mark.parametrize(("sides", "axcodes", "warned"), [
    ([6.0, 1, 1], "PLS", "1 x 6 x 1 mm"), ([1, 6.0, 1], "PLS", "6 x 1 x 1 mm"), ([1, 1, 6.0], "PLS", None),
    ([6.0, 1, 1], "IPR", None), ([1.0, 1, 1], "PLS", None),
])  # fmt: skip
def test_a_stack_of_thick_slices_in_another_direction_is_warned_of(sides, axcodes, warned, caplog):
    """A sagittal or coronal one: axial slices of 6 mm along a side would be cut, without a word."""
    volume = MetaTensor(torch.rand(1, 5, 5, 5), affine=np.diag([*sides, 1]))
    transforms = Compose([SliceOrientationd("image", axcodes), SliceSpacingd("image", 1.25)])
    transforms({"image": volume})
    said = [record.getMessage() for record in caplog.records]
    assert all("the slices are thick and lie in another direction" in line and warned in line for line in said)
    assert len(said) == (warned is not None)
    both = Compose([SliceOrientationd(["image", "label"], axcodes), SliceSpacingd(["image", "label"], 1.25)])
    both({"image": volume, "label": volume})
    assert len(caplog.records) == len(said), "preparing has said it"


@pytest.mark.parametrize("spacing", [[1.0], [0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 101.0], 0, "fine", ["1", "2"]], ids=str)
def test_a_spacing_is_of_two_axes(spacing):
    with pytest.raises(InputError, match="spacing holds the mm"):
        SliceSpacingd("image", spacing)
