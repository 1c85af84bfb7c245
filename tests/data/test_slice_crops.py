# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Slices come from the volumes, as often with a foreground class as asked, and from the disk alone."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from forked import run_forked
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.data.utils import set_rnd
from monai.transforms import Compose, RandGaussianNoised, SqueezeDimd

from swinumamba_monai.data.sampling.slice_crops import EverySliceDataset, SliceDataset
from swinumamba_monai.errors import InputError

# What a bundle's config has: load, orient so that the slices are last, resample in the plane, normalise.
VOLUME_TRANSFORM = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "LoadImaged", "keys": "@keys", "reader": "$VolumeReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "@keys"},
        {"_target_": "Orientationd", "keys": "@keys", "axcodes": "PLS", "labels": None},
        {"_target_": "Spacingd", "keys": "@keys", "pixdim": [1.0, 1.0, -1.0], "mode": "@modes"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True},
    ],
}


def volume_transform(keys=("image", "label")):
    config = {
        "imports": ["$from swinumamba_monai.data import VolumeReader"],
        "keys": list(keys),
        "modes": ["bilinear", "nearest"][: len(keys)],
        "t": VOLUME_TRANSFORM,
    }
    return ConfigParser(config).get_parsed_content("t")


def save_volume(folder, name, shape=(20, 24, 6), labelled=True):
    """A volume with a class of one pixel in slice 1, and another of many in slice 4; image = position."""
    x, y, z = np.indices(shape)
    affine = np.diag([2.0, 1.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image((x + 100 * y + 10000 * z).astype(np.float32), affine), folder / f"{name}.nii")
    label = np.zeros(shape, dtype=np.uint8)
    label[2, 3, min(1, shape[2] - 1)] = 1
    if shape[2] > 4:
        label[10:14, 10:20, 4] = 3
    nib.save(nib.Nifti1Image(label * labelled, affine), folder / f"{name}_label.nii")
    return {"image": str(folder / f"{name}.nii"), "label": str(folder / f"{name}_label.nii")}


@pytest.fixture
def items(tmp_path):
    return [save_volume(tmp_path, "a"), save_volume(tmp_path, "b", labelled=False)]


def test_volumes_are_cached_as_slices(items, tmp_path):
    dataset = SliceDataset(items, volume_transform(), tmp_path / "cache")
    expected = volume_transform()(items[0])
    image = np.load(dataset.folders[0] / "image.npy", mmap_mode="r")
    # 24 rows of 1 mm from back to front; 20 columns of 2 mm become 39 or 40 of 1 mm.
    assert image.shape[:3] == (6, 1, 24) and image.shape[3] in (39, 40) and image.dtype == np.float32
    np.testing.assert_array_equal(np.moveaxis(image, 0, -1), expected["image"].numpy())
    np.testing.assert_allclose([image.mean(), image.std()], [0, 1], atol=1e-4)  # over the volume, not the slice
    assert abs(image[0].mean()) > 1
    label = np.load(dataset.folders[0] / "label.npy")
    np.testing.assert_array_equal(np.moveaxis(label, 0, -1), expected["label"][0].numpy())
    sample = dataset[0]
    assert sample["image"].shape[1:] == sample["label"].shape[1:] == image.shape[2:]


def test_crops_are_cut_from_slices_or_padded(items, tmp_path):
    dataset = SliceDataset(items, volume_transform(), tmp_path / "cache", roi_size=(16, 50)).set_random_state(0)
    image = np.load(dataset.folders[1] / "image.npy")
    width = image.shape[3]
    pad = (50 - width) // 2
    seen = set()
    for _ in range(60):
        crop = dataset[1]["image"][0].numpy()
        assert crop.shape == (16, 50)
        assert not crop[:, :pad].any() and not crop[:, pad + width :].any()
        found = [
            (number, top)
            for number in range(6)
            for top in range(24 - 16 + 1)
            if np.array_equal(image[number, 0, top : top + 16], crop[:, pad : pad + width])
        ]
        assert len(found) == 1
        seen |= set(found)
    assert {number for number, _ in seen} == set(range(6)) and {top for _, top in seen} == set(range(9))


def test_a_third_of_the_samples_has_a_class(items, tmp_path):
    dataset = SliceDataset(items, volume_transform(), tmp_path / "cache", roi_size=(5, 5), foreground_fraction=0.5)
    dataset.set_random_state(1)
    count = 1000
    centres = [int(dataset[0]["label"][0, 2, 2]) for _ in range(count)]
    # Half of the samples are centred on a class (but for borders: class 1 lies 3 pixels from one), each as often. By
    # chance alone class 1 would be there once in 5000 pixels. Four standard deviations are 0.055.
    assert abs(centres.count(1) / count - 0.25) < 0.055
    assert abs(centres.count(3) / count - 0.25) < 0.06  # 40 of 5616 crops more
    assert not any(dataset[1]["label"].any() for _ in range(20))  # nothing there, and no error
    never = SliceDataset(items, volume_transform(), tmp_path / "cache", roi_size=(5, 5), foreground_fraction=0.0)
    assert sum(int(never.set_random_state(seed)[0]["label"][0, 2, 2]) == 1 for seed in range(100)) <= 2


def test_random_states_decide(items, tmp_path):
    def draw(seed):
        dataset = SliceDataset(items, volume_transform(), tmp_path / "cache", roi_size=(8, 8))
        dataset.set_random_state(seed)
        return np.stack([dataset[index % 2]["image"].numpy() for index in range(10)])

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


def test_workers_draw_different_slices(items, tmp_path):
    torch.manual_seed(0)  # which the seeds of the workers come from
    dataset = SliceDataset([items[0]] * 8, volume_transform(), tmp_path / "cache", roi_size=(8, 8))
    loader = DataLoader(dataset, num_workers=2, batch_size=1)
    epochs = [np.stack([batch["image"].numpy() for batch in loader]) for _ in range(2)]
    assert len({crop.tobytes() for epoch in epochs for crop in epoch}) > 12


def test_images_without_labels(items, tmp_path):
    """Pretraining: no label anywhere."""
    unlabelled = [{"image": item["image"]} for item in items]
    sample = SliceDataset(unlabelled, volume_transform(["image"]), tmp_path / "cache")[0]
    assert set(sample) == {"image"}


def test_the_cache_is_used_again_until_something_changes(items, tmp_path):
    first = SliceDataset(items, volume_transform(), tmp_path / "cache")
    times = [(folder / "image.npy").stat().st_mtime_ns for folder in first.folders]
    second = SliceDataset(items, volume_transform(), tmp_path / "cache")
    assert second.folders == first.folders
    assert [(folder / "image.npy").stat().st_mtime_ns for folder in second.folders] == times
    os.utime(items[0]["image"], ns=(1, 1))
    third = SliceDataset(items, volume_transform(), tmp_path / "cache")
    assert third.folders[0] != first.folders[0] and third.folders[1] == first.folders[1]
    transform = volume_transform()
    transform.transforms[3].spacing_transform.pixdim = np.array([2.0, 2.0, -1.0])
    assert not set(SliceDataset(items, transform, tmp_path / "cache").folders) & set(third.folders)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "counts.npy", "hashes.json"])
@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: b"\x80garbage" * 99, None])
def test_a_damaged_volume_is_written_again(items, tmp_path, caplog, name, damage):
    before = SliceDataset(items, volume_transform(), tmp_path / "cache", roi_size=(8, 8)).set_random_state(0)[0]
    folder, other = SliceDataset(items, volume_transform(), tmp_path / "cache").folders
    written = other.stat().st_mtime_ns
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage is not None:
        (folder / name).write_bytes(damage(whole))
    after = SliceDataset(items, volume_transform(), tmp_path / "cache", roi_size=(8, 8)).set_random_state(0)[0]
    assert (folder / name).read_bytes() == whole and other.stat().st_mtime_ns == written
    assert torch.equal(before["image"], after["image"])
    assert [r.getMessage() for r in caplog.records if r.name.endswith("owned")] == [
        f"{folder} is damaged: it is not used, and made again"
    ]


def test_a_volume_that_others_could_write_is_written_again(items, tmp_path, caplog):
    cache = tmp_path / "cache"
    folder, other = SliceDataset(items, volume_transform(), cache).folders
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "image.npy").chmod(0o666)
    other.chmod(0o777)
    written = [folder.stat().st_mtime_ns, other.stat().st_mtime_ns]
    for messages in (2, 0):
        caplog.clear()
        assert SliceDataset(items, volume_transform(), cache).folders == [folder, other]
        assert caplog.text.count("could be written by others: it is not used, and made again") == messages
    assert folder.stat().st_mtime_ns > written[0] and other.stat().st_mtime_ns > written[1]


def test_a_volume_of_another_user_is_not_used(items, tmp_path, monkeypatch):
    folder, _ = SliceDataset(items, volume_transform(), tmp_path / "cache").folders
    monkeypatch.setattr("swinumamba_monai.owned.os.geteuid", lambda: 12345)
    assert not set(SliceDataset(items, volume_transform(), tmp_path / "mine").folders) & {folder}  # a name of its own
    monkeypatch.setattr("swinumamba_monai.data.sampling.slice_crops._hash", lambda item, _: item["image"][-5])
    (tmp_path / "cache" / "a").mkdir()  # theirs, at our place
    monkeypatch.setattr("swinumamba_monai.owned.shutil.rmtree", lambda *_, **__: None)  # and we may not remove it
    with pytest.raises(InputError, match="belongs to another user, and cannot be removed; remove it or give another"):
        SliceDataset(items, volume_transform(), tmp_path / "cache")


def test_leftovers_of_killed_processes_go(items, tmp_path):
    left = tmp_path / "cache" / f".{'0a' * 16}-volume"
    SliceDataset(items, volume_transform(), tmp_path / "cache")
    left.mkdir()
    SliceDataset(items, volume_transform(), tmp_path / "cache")
    assert not left.exists()


def test_other_processes_find_the_cache(items, tmp_path, monkeypatch):
    first = SliceDataset(items, volume_transform(), tmp_path / "cache")
    (tmp_path / "slices_again.py").write_text(
        "import sys; from test_slice_crops import *\n"
        f"print(*SliceDataset({items!r}, volume_transform(), sys.argv[1]).folders)"
    )
    for place in (Path(__file__).parent, tmp_path):
        monkeypatch.syspath_prepend(place)
    done = run_forked([sys.executable, "-m", "slices_again", str(tmp_path / "cache")])
    assert done.stdout.split() == [str(folder) for folder in first.folders], done.stderr[-2000:]


def test_ranks_begin_elsewhere(items, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr("swinumamba_monai.data.sampling.slice_crops.idist.get_rank", lambda: 1)
    monkeypatch.setattr("swinumamba_monai.data.sampling.slice_crops.idist.get_world_size", lambda: 2)
    transform = volume_transform()

    def watched(item):
        order.append(item["image"])
        return transform(item)

    monkeypatch.setattr("swinumamba_monai.data.sampling.slice_crops._describe", lambda _: b"")
    SliceDataset(items, watched, tmp_path / "cache")
    assert order == [items[1]["image"], items[0]["image"]]


def test_small_volumes_are_named(tmp_path, caplog):
    item = save_volume(tmp_path, "thin", shape=(20, 24, 1))
    sample = SliceDataset([item], volume_transform(), tmp_path / "cache", roi_size=32)[0]
    assert sample["image"].shape == (1, 32, 32)
    assert "1 of 1 volumes are smaller than the crop (32, 32)" in caplog.text


def test_bad_volumes_and_disks_get_a_sentence(items, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"a\.nii is \(24, \d+, 6\) after the transforms"):
        SliceDataset(items, Compose([volume_transform(), SqueezeDimd("image", dim=0)]), tmp_path / "cache")
    with pytest.raises(InputError, match="without lambdas"):
        SliceDataset(items, lambda item: item, tmp_path / "cache")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("swinumamba_monai.data.sampling.slice_crops.np.save", full)
    with pytest.raises(InputError, match=r"No space left on device\); free space or give another cache_dir"):
        SliceDataset(items, volume_transform(), tmp_path / "cache")
    assert not any((tmp_path / "cache").iterdir())


def test_transform_is_seeded_with_the_slices(items, tmp_path):
    """MONAI's workers and SeedEveryEpoch seed the dataset; the augmentation must not be the same in every worker."""
    noise = RandGaussianNoised("image", prob=1.0)
    dataset = SliceDataset(items, volume_transform(), tmp_path / "cache", (4, 4), transform=noise)

    def drawn(seed):
        set_rnd(dataset, seed)
        return dataset[0]["image"]

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    set_rnd(dataset, 1)
    state = noise.R.get_state()[1].copy()
    set_rnd(dataset, 2)
    assert (noise.R.get_state()[1] != state).any()


def test_every_slice_comes_once_and_whole(items, tmp_path):
    dataset = EverySliceDataset(items, volume_transform(), tmp_path / "cache", transform=lambda s: {**s, "seen": True})
    assert len(dataset) == 12
    for volume, folder in enumerate(SliceDataset(items, volume_transform(), tmp_path / "cache").folders):
        image, label = np.load(folder / "image.npy"), np.load(folder / "label.npy")
        for number in range(6):
            sample = dataset[6 * volume + number]
            np.testing.assert_array_equal(sample["image"], image[number])
            np.testing.assert_array_equal(sample["label"], label[number][None])
            assert sample["seen"]
    with pytest.raises(IndexError):
        dataset[12]
    alone = EverySliceDataset([{"image": items[0]["image"]}], volume_transform(("image",)), tmp_path / "cache")
    assert set(alone[0]) == {"image"}
