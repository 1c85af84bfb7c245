# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What does not fit into memory is refused before the prediction, and the estimate is not below what it takes."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from forked import run_forked
from scipy.ndimage import maximum_filter
from small_weights import run_inference

from swinumamba_monai import Predictor
from swinumamba_monai.data import ImageFileReader, VolumeReader, load_images, load_volumes, read_instances
from swinumamba_monai.errors import InputError, find_input_error
from swinumamba_monai.inference import MemoryNeed, memory
from swinumamba_monai.instances import cell_channels

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")


@pytest.fixture
def large(tmp_path) -> Path:
    tifffile.imwrite(tmp_path / "large.tif", np.zeros((1024, 2048), np.uint8), tile=(256, 256), compression="zlib")
    return tmp_path / "large.tif"


def test_an_image_that_does_not_fit_is_refused_before_the_work(large, monkeypatch):
    need = MemoryNeed(3)
    monkeypatch.setattr(memory, "free_memory", lambda: 139_000_000)
    assert len(load_images(large, ImageFileReader, memory=need.check)) == 1  # 2.1 million pixels of 66 bytes
    monkeypatch.setattr(memory, "free_memory", lambda: 138_000_000)
    words = r"large\.tif \(1024 x 2048\) takes about 0\.1 GB of memory, and 0\.1 GB are free; cut it into parts"
    with pytest.raises(InputError, match=words):
        load_images(large, ImageFileReader, memory=need.check)
    with pytest.raises(InputError, match="takes about"):  # each class of saved probabilities has 4 bytes more
        monkeypatch.setattr(memory, "free_memory", lambda: 139_000_000)
        load_images(large, ImageFileReader, memory=MemoryNeed(3, probabilities=True).check)
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert len(load_images(large, ImageFileReader, memory=need.check)) == 1


@pytest.mark.parametrize("mm, gigabytes", [(0.35, 7.6), (0.7, 17.0), (1.25, 44.7)])
def test_a_volume_takes_what_its_grid_and_the_networks_take(mm, gigabytes):
    """1024 x 1024 x 600 voxels of 14 classes on pixels of 1.25 mm; not made, only asked about."""
    voxels = np.broadcast_to(np.int16(0), (1024, 1024, 600))
    needed = MemoryNeed(14, [1.25, 1.25]).estimate(voxels, {"affine": np.diag([mm, mm, 3.0, 1.0])})
    assert needed / 1e9 == pytest.approx(gigabytes, abs=0.1)


def test_a_volume_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(np.zeros((64, 64, 8), np.int16), np.diag([1.0, 1.0, 5.0, 1.0])), tmp_path / "a.nii")
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000_000)
    with pytest.raises(InputError, match=r"a\.nii \(64 x 64 x 8\) takes about"):
        load_volumes(tmp_path / "a.nii", reader=VolumeReader, memory=MemoryNeed(14, [1.25, 1.25]).check)


@linux
def test_the_limit_of_the_process_counts(monkeypatch):
    free = memory.free_memory()
    assert 0 < free < 1 << 50
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (taken + 50_000_000, resource.RLIM_INFINITY))
    assert 0 < memory.free_memory() <= 60_000_000 < free


# The peak of a process in kB; getrusage's begins with that of the process it was forked from.
PEAK = """
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
WHOLE = """
import json, sys
import torch
from torch import nn
from monai.bundle import ConfigWorkflow

class Quick(nn.Module):
    def forward(self, x):
        cell = x[:, :1]
        return torch.cat({"classes": [-cell, cell, 0 * cell], "flows": [-cell, cell, cell / 9, cell / 9]}[target], 1)

bundle, image, out, target, *block_size = sys.argv[1:]
workflow = ConfigWorkflow(
    config_file=f"{bundle}/configs/inference.json", workflow_type="infer", logging_file=False, run_id="inference",
    bundle_root=bundle, dataset_dir=image, output_dir=out, network="$__import__('__main__').Quick()",
    checkpointloader=None, device="$torch.device('cpu')", num_workers=0, output_ext=".tif", target=target,
    **{"block_size": int(size) for size in block_size}
)
workflow.initialize()
before = peak()
workflow.run()
print(json.dumps([before, peak()]))
"""
SLABS = """
import json
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from swinumamba_monai.data import SliceSpacingd
from swinumamba_monai.inference import RestoreVolumed

shape = 384, 384, 120
spacing = Compose([SliceSpacingd("image", spacing=[2.0, 2.0])])
tiny = spacing({"image": MetaTensor(torch.zeros(1, 8, 8, 2), affine=torch.eye(4))})
image = MetaTensor(torch.ones(1, *shape), affine=torch.eye(4))
image.meta |= {"spatial_shape": shape, "original_affine": torch.eye(4)}
before = peak()
item = spacing({"image": image})
item["pred"] = torch.cat([item["image"].as_tensor()] * 2)
assert RestoreVolumed("pred", spacing)(item)["pred"].shape == (1, *shape)
print(json.dumps([before, peak()]))
"""


@pytest.fixture
def grown(tmp_path, monkeypatch) -> Callable[..., int]:
    """Bytes by which the peak of a process grows while it works, which has imported most before: Linux counts anew."""
    monkeypatch.syspath_prepend(tmp_path)

    def measure(code: str, *arguments: object) -> int:
        (tmp_path / "measured_run.py").write_text(PEAK + code)
        done = run_forked([sys.executable, "-m", "measured_run", *map(str, arguments)], tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        before, after = json.loads(done.stdout.splitlines()[-1])
        return 1024 * (after - before)

    return measure


@linux
@pytest.mark.parametrize("target, need", [("classes", MemoryNeed(3)), ("flows", MemoryNeed(4, postprocessing=32))])
def test_the_estimate_is_not_below_what_an_image_takes(grown, tmp_path, target, need):
    """With the bundle's config, and a quick network in the place of its own."""
    image = np.random.default_rng(0).integers(0, 255, (1536, 2048, 3), np.uint8)
    image[::16] = image[:, ::16] = 0  # cells of 15 pixels, not one that fills the image
    tifffile.imwrite(tmp_path / "large.tif", image, tile=(256, 256), photometric="rgb")
    bundle = Path(__file__).parents[2] / "bundles" / "microscopy"
    measured = grown(WHOLE, bundle, tmp_path / "large.tif", tmp_path / "out", target)
    estimated = need.estimate(image, {})
    # Beside what grows with the image there are windows, and what is imported on the way, of all images alike.
    assert estimated / 4 < measured < estimated + 300_000_000


@linux
@pytest.mark.parametrize("target, given", [("classes", {}), ("flows", {"postprocessing": 32})])
def test_the_estimate_of_small_cells_is_not_below_what_they_take(grown, tmp_path, target, given):
    """Cells of 4 pixels: the network sees 16 times the pixels, which the estimate for the image alone does not hold."""
    image = np.random.default_rng(0).integers(0, 255, (768, 1024, 3), np.uint8)
    image[::5] = image[:, ::5] = 0
    tifffile.imwrite(tmp_path / "small.tif", image, photometric="rgb")
    bundle = Path(__file__).parents[2] / "bundles" / "microscopy"
    code = WHOLE.replace("target=target,", "target=target, diameter=4,")
    measured = grown(code, bundle, tmp_path / "small.tif", tmp_path / "out", target)
    channels = cell_channels(target)
    estimated = MemoryNeed(channels, diameter=4, **given).estimate(image, {})
    assert estimated / 2 < measured < estimated + 300_000_000
    as_it_is, known = (MemoryNeed(channels, diameter=diameter, **given) for diameter in (None, 20))
    assert as_it_is.estimate(image, {}) == known.estimate(image, {}) < estimated / 4


@linux
def test_an_image_in_blocks_takes_no_more_than_its_blocks(grown, tmp_path):
    """1536 x 6144 pixels would take 1.06 GB as a whole; how little of a file is read at a time, test_blocks.py asks."""
    image = np.zeros((1536, 6144), np.uint8)
    image[8:-8:512, 8:-8:512] = 255
    image = maximum_filter(image, 15)
    tifffile.imwrite(tmp_path / "large.tif", image, tile=(512, 512), compression="zlib")
    bundle = Path(__file__).parents[2] / "bundles" / "microscopy"
    measured = grown(WHOLE, bundle, tmp_path / "large.tif", tmp_path / "out", "flows", 1536)
    assert read_instances(tmp_path / "out" / "large_instances.tif").shape == image.shape
    assert MemoryNeed(4, postprocessing=32).estimate(image, {}) > 1_050_000_000
    assert measured < 1536 * 1536 * 112 + 1536 * 6144 * 10 + 300_000_000  # a block, its row, and what is imported


class TestWithoutTheCheckOfImages:
    """``check_images`` is what reads all images before; without it each is asked about when its turn comes."""

    def test_the_evaluator_asks(self, large, tmp_path, monkeypatch):
        monkeypatch.setattr(memory, "free_memory", lambda: 100_000_000)
        network = {"network": "$torch.nn.Identity()", "checkpointloader": None}
        places = {"dataset_dir": str(large), "output_dir": str(tmp_path / "out")}
        with pytest.raises(RuntimeError) as caught:
            run_inference("microscopy", check_images=False, **places, **network)
        assert "large.tif (1024 x 2048) takes about 0.2 GB of memory" in str(find_input_error(caught.value))

    def test_the_predictor_asks_of_files_and_arrays(self, large, monkeypatch):
        predictor = Predictor(device="cpu", network="$torch.nn.Identity()", checkpointloader=None)
        monkeypatch.setattr(memory, "free_memory", lambda: 100_000_000)
        with pytest.raises(InputError, match=r"large\.tif \(1024 x 2048\) takes about 0\.2 GB"):
            predictor(large)
        with pytest.raises(InputError, match=r"the array \(1024 x 2048\) takes about 0\.2 GB"):
            predictor(np.zeros((1024, 2048), np.uint8))
        with pytest.raises(InputError, match=r"the array \(1024 x 2048\) takes about 0\.2 GB"):
            predictor(np.zeros((2, 1024, 2048, 3), np.uint8), stack=True)


@linux
def test_resampling_takes_no_grid_of_a_whole_volume(grown):
    """A grid of four float64 for each of 17.7 million voxels would be 566 MB, and their float64 142 MB more."""
    assert grown(SLABS) < 450_000_000
