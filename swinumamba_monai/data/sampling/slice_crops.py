# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""2D training from volumes: each is preprocessed once, kept on the disk, and slices are read from there alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from monai.config import PathLike
from monai.data.utils import set_rnd
from monai.transforms import Compose, Randomizable
from monai.utils import MAX_SEED, ensure_tuple, ensure_tuple_rep
from torch.utils.data import Dataset

from swinumamba_monai.atomic import remove_unfinished, writing_folder
from swinumamba_monai.data.files.label_map import IGNORED
from swinumamba_monai.data.files.volumes import label_files, volume_files
from swinumamba_monai.errors import InputError
from swinumamba_monai.owned import refuse, why_not_own

logger = logging.getLogger(__name__)

HASHES = "hashes.json"  # file with the hashes of the others in a volume's folder


class SliceDataset(Randomizable, Dataset):
    """Random slices, or crops of slices, of volumes, sampled as nnU-Net's 2D configuration samples them.

    An item is a volume, and reading it gives another slice each time: with a random sampler every volume has the same
    chance, as in nnU-Net (``nnUNetDataLoader2D``). A part of the samples must show a foreground class: one class of the
    volume is drawn, then one of its pixels, and the crop is centred on it. The other samples are any crop of any slice.
    (nnU-Net makes the last third of every batch foreground; here each sample is with that probability.)

    Preprocessed volumes lie in ``cache_dir`` as ``.npy`` files and are memory-mapped, so a process holds the pages of
    the crops that it reads and no volume. The folder of a volume is named by a hash of its files (path, size, time), of
    ``volume_transform`` and of the user: when one changes a new one is written, and old ones may be deleted at any time
    between runs. Several processes may share ``cache_dir``: each starts at another volume and takes over what others
    wrote. Folders that are damaged, or that others could have changed, are written again when the dataset is made.

    Args:
        data: dictionaries with the path "image" and, where there is one, the path "label".
        volume_transform: makes of such a dictionary one with arrays (C, H, W, S) and (1, H, W, S); S are the slices. It
            must be the same every time: load, orient, resample in the plane, normalise.
        cache_dir: folder for the preprocessed volumes, made when needed.
        roi_size: (H, W) of the crops; smaller slices are padded with zeros. None gives whole slices.
        transform: transforms of a sample after the cached ones, for instance augmentation.
        foreground_fraction: the probability of a sample with a foreground class, of volumes that have one.
        num_workers: volumes that are preprocessed at once, when the dataset is made.

    Raises:
        InputError: ``volume_transform`` cannot be pickled or gives other shapes, labels do not fit in 8 bits, or the
            disk is full.

    >>> from functools import partial
    >>> from tempfile import TemporaryDirectory
    >>> load = partial(dict, image=np.ones((1, 12, 20, 5)))  # in the place of a chain of transforms: five slices
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "case.nii").touch()
    ...     dataset = SliceDataset([{"image": f"{folder}/case.nii"}], load, f"{folder}/cache", roi_size=(8, 16))
    ...     len(dataset), dataset[0]["image"].shape
    (1, torch.Size([1, 8, 16]))
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        volume_transform: Callable[[Mapping], Mapping],
        cache_dir: PathLike,
        roi_size: Sequence[int] | int | None = None,
        transform: Callable[[Mapping], Mapping] | None = None,
        foreground_fraction: float = 1 / 3,
        num_workers: int = 1,
    ) -> None:
        self.data = list(data)
        self.volume_transform = volume_transform
        self.cache_dir = Path(cache_dir)
        self.roi_size = None if roi_size is None else ensure_tuple_rep(roi_size, 2)
        self.transform = transform
        self.foreground_fraction = foreground_fraction
        described = _describe(volume_transform)
        self.folders = [self.cache_dir / _hash(item, described) for item in self.data]
        self._preprocess(num_workers)

    def __len__(self) -> int:
        """The number of volumes."""
        return len(self.data)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> SliceDataset:
        """Seed the choice of slices, and ``transform`` too: MONAI's loaders look no deeper than this."""
        super().set_random_state(seed, state)
        set_rnd(self.transform, int(self.R.randint(MAX_SEED, dtype="uint32")))
        return self

    def __getitem__(self, index: int) -> Mapping:
        """A random sample of a volume, transformed: "image" (C, H, W) float32 and perhaps "label" (1, H, W) uint8."""
        folder = self.folders[index]
        image, label = _open(folder)
        number, centre = self._draw(image.shape[0], label, folder)
        window = self._window(image.shape[2:], centre)
        sample = {"image": torch.from_numpy(_cut(image[number], window))}
        if label is not None:
            sample["label"] = torch.from_numpy(_cut(label[number][None], window))
        return sample if self.transform is None else self.transform(sample)

    def _draw(self, slices: int, label: np.ndarray | None, folder: Path) -> tuple[int, tuple[int, int] | None]:
        """The number of a slice, and the pixel in it that the crop is to be centred on."""
        if label is not None and self.R.random() < self.foreground_fraction:
            # How many pixels of each foreground class (rows) each slice (columns) has.
            counts = np.load(folder / "counts.npy")[1:]
            present = np.flatnonzero(counts.sum(axis=1))
            if present.size:
                label_class = self.R.choice(present)
                weights = counts[label_class] / counts[label_class].sum()  # every pixel of the class is as likely
                number = int(self.R.choice(slices, p=weights))
                rows, columns = np.nonzero(label[number] == label_class + 1)
                pixel = self.R.randint(rows.size)
                return number, (int(rows[pixel]), int(columns[pixel]))
        return int(self.R.randint(slices)), None

    def _window(self, shape: tuple[int, ...], centre: tuple[int, int] | None) -> list[tuple[int, int]]:
        """The first and the number of rows, and of columns; the first is negative where the slice is padded."""
        window = []
        for axis, (available, wanted) in enumerate(zip(shape, self.roi_size or shape)):
            lowest = -(max(wanted - available, 0) // 2)
            highest = max(available - wanted, lowest)
            if centre is None:
                first = int(self.R.randint(lowest, highest + 1))
            else:
                first = min(max(centre[axis] - wanted // 2, lowest), highest)
            window.append((first, wanted))
        return window

    def _preprocess(self, num_workers: int) -> None:
        """Write what is not in the cache; other processes of this training begin elsewhere."""
        remove_unfinished(self.cache_dir)
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            usable = list(pool.map(_is_usable, self.folders))
        missing = [index for index in range(len(self.data)) if not usable[index]]
        start = idist.get_rank() * len(missing) // idist.get_world_size()
        if missing:
            logger.info("preprocessing %d of %d volumes into %s", len(missing), len(self.data), self.cache_dir)
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            list(pool.map(self._write, missing[start:] + missing[:start]))
        if self.roi_size is not None:
            shapes = [_open(folder)[0].shape[2:] for folder in self.folders]
            small = sum(any(s < w for s, w in zip(shape, self.roi_size)) for shape in shapes)
            if small:
                logger.warning("slices of %d of %d volumes are smaller than the crop %s and are padded with zeros",
                               small, len(shapes), self.roi_size)  # fmt: skip

    def _write(self, index: int) -> None:
        """Preprocess a volume into its folder, which appears as a whole."""
        folder, item = self.folders[index], self.data[index]
        if folder.is_dir():  # another process was faster
            return
        volume = self.volume_transform(dict(item))
        image = _slices_first(volume["image"], item["image"]).astype(np.float32, copy=False)
        arrays = {"image.npy": image}
        if "label" in volume:
            label = _slices_first(volume["label"], item["label"])
            if label.shape[0] != image.shape[0] or label.shape[1] != 1 or label.shape[2:] != image.shape[2:]:
                raise InputError(f"{item['label']} is {label.shape} after the transforms, its image {image.shape}.")
            if label.min() < 0 or label.max() > 255:
                raise InputError(f"{item['label']} has classes up to {label.max()}, but 0 to 255 are possible.")
            label = np.rint(label[:, 0]).astype(np.uint8)
            classes = int(label.max(where=label != IGNORED, initial=0)) + 1
            planes = [plane[plane != IGNORED] for plane in label]
            counts = np.stack([np.bincount(plane, minlength=classes) for plane in planes], axis=1)
            arrays |= {"label.npy": label, "counts.npy": counts}
        try:
            with writing_folder(folder) as temporary:
                temporary.chmod(0o700)
                for name, array in arrays.items():
                    np.save(temporary / name, array)
                hashes = {name: _hash_file(temporary / name) for name in arrays}
                (temporary / HASHES).write_text(json.dumps(hashes), encoding="utf-8")
        except OSError as error:
            if not folder.is_dir():
                raise InputError(
                    f"{folder} cannot be written ({error.strerror or error}); free space or give another cache_dir."
                ) from error


class EverySliceDataset(Dataset):
    """Every slice of some volumes once and whole, from the same cache as :class:`SliceDataset`.

    Args:
        data, volume_transform, cache_dir, transform, num_workers: see :class:`SliceDataset`.

    >>> from functools import partial
    >>> from tempfile import TemporaryDirectory
    >>> load = partial(dict, image=np.ones((1, 12, 20, 5)))  # in the place of a chain of transforms: five slices
    >>> with TemporaryDirectory() as folder:
    ...     Path(folder, "case.nii").touch()
    ...     dataset = EverySliceDataset([{"image": f"{folder}/case.nii"}], load, f"{folder}/cache")
    ...     len(dataset), dataset[0]["image"].shape
    (5, torch.Size([1, 12, 20]))
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        volume_transform: Callable[[Mapping], Mapping],
        cache_dir: PathLike,
        transform: Callable[[Mapping], Mapping] | None = None,
        num_workers: int = 1,
    ) -> None:
        self.folders = SliceDataset(data, volume_transform, cache_dir, num_workers=num_workers).folders
        self.transform = transform
        self.places = [(i, number) for i, folder in enumerate(self.folders) for number in range(len(_open(folder)[0]))]

    def __len__(self) -> int:
        """The number of slices."""
        return len(self.places)

    def __getitem__(self, index: int) -> Mapping:
        """The slice ``index``, counted through all volumes: see :meth:`SliceDataset.__getitem__`."""
        volume, number = self.places[index]
        image, label = _open(self.folders[volume])
        sample = {"image": torch.from_numpy(image[number].copy())}
        if label is not None:
            sample["label"] = torch.from_numpy(label[number][None].copy())
        return sample if self.transform is None else self.transform(sample)


def _open(folder: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """A preprocessed volume (S, C, H, W) and, where it has one, its label (S, H, W), memory-mapped."""
    image, label = folder / "image.npy", folder / "label.npy"
    return np.load(image, mmap_mode="r"), np.load(label, mmap_mode="r") if label.exists() else None


def _slices_first(volume: torch.Tensor | np.ndarray, path: str) -> np.ndarray:
    """(C, H, W, S) as a contiguous array (S, C, H, W)."""
    if volume.ndim != 4:
        raise InputError(f"{path} is {tuple(volume.shape)} after the transforms, but (C, H, W, slices) is needed.")
    return np.ascontiguousarray(np.moveaxis(np.asarray(volume), -1, 0))


def _cut(plane: np.ndarray, window: Sequence[tuple[int, int]]) -> np.ndarray:
    """A copy of the window of (C, H, W), with zeros where it leaves the plane."""
    (top, rows), (left, columns) = window
    result = np.zeros((plane.shape[0], rows, columns), dtype=plane.dtype)
    part = plane[:, max(top, 0) : top + rows, max(left, 0) : left + columns]
    result[:, max(-top, 0) : max(-top, 0) + part.shape[1], max(-left, 0) : max(-left, 0) + part.shape[2]] = part
    return result


def _describe(transform: Callable) -> bytes:
    """What a chain of transforms does, as bytes: the state of each, without random states of the chain itself."""
    transforms = transform.flatten().transforms if isinstance(transform, Compose) else [transform]
    try:
        return b"".join(pickle.dumps(part) for part in transforms)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise InputError(f"volume_transform needs parts that can be pickled, without lambdas ({error}).") from error


def _is_usable(folder: Path) -> bool:
    """Whether a volume's folder is there, this user's own and whole; one that is not is removed."""
    try:
        found = _identify(folder)
    except OSError:  # none is there, or writing will say why not
        return False
    if not (reason := _why_not_usable(folder)):
        return True
    with suppress(FileNotFoundError):
        if _identify(folder) == found:  # else another process was faster and has written it again
            refuse(folder, reason)
        if _identify(folder) == found:
            raise InputError(f"{folder} {reason}, and cannot be removed; remove it or give another cache_dir.")
    return False


def _identify(folder: Path) -> tuple[int, int]:
    status = folder.lstat()
    return status.st_ino, status.st_mtime_ns  # numbers of files are given out again


def _why_not_usable(folder: Path) -> str | None:
    try:
        paths = [path for path in folder.iterdir() if path.name != HASHES]
        for path in (folder, folder / HASHES, *paths):
            if reason := why_not_own(path):
                return reason
        hashes = json.loads((folder / HASHES).read_bytes())
        return None if hashes == {path.name: _hash_file(path) for path in paths} else "is damaged"
    except (OSError, ValueError, RecursionError):
        return "is damaged"


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _hash(item: Mapping[str, str], described: bytes) -> str:
    """The name of the folder of a volume; it changes with the files, what is done to them and the user."""
    digest = hashlib.sha256(described)
    digest.update(str(os.geteuid() if hasattr(os, "geteuid") else "").encode())
    for key, files_of in (("image", volume_files), ("label", label_files)):
        if key in item:
            # Several volumes may lie in the same files, and have names of their own.
            digest.update(repr([name for name in ensure_tuple(item[key]) if not Path(name).exists()]).encode())
            for file in chain.from_iterable(map(files_of, ensure_tuple(item[key]))):
                status = file.stat()
                digest.update(f"{key} {file.absolute()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
