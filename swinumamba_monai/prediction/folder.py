# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle's answer on many images: files for each, a row for each in ``summary.csv``, and a way to go on later.

An image is finished when its files are there and its row is, which is written last. So a run that was stopped, in
whatever way, goes on when it is given again, and runs on several machines that share the images out add up: each has a
summary of its own, and a run without a share gathers them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from os import PathLike
from pathlib import Path

from monai.transforms import Compose
from monai.utils import ensure_tuple

from swinumamba_monai import __version__
from swinumamba_monai.atomic import write_file
from swinumamba_monai.bundle_options import as_literal
from swinumamba_monai.data.files.numbered import file_and_number
from swinumamba_monai.data.files.tiff_rows import TiffRows
from swinumamba_monai.data.inputs import noting
from swinumamba_monai.errors import InputError, check_known, find_input_error, listed, quoted, shown
from swinumamba_monai.inference.folders import keep_folders, result_names
from swinumamba_monai.inference.kept_blocks import KeptBlocks
from swinumamba_monai.inference.writers import MAX_16_BIT
from swinumamba_monai.prediction.large import predict_large
from swinumamba_monai.prediction.location import CONFIG
from swinumamba_monai.prediction.predictor import Predictor
from swinumamba_monai.prediction.progress import bar_of
from swinumamba_monai.prediction.result_files import FORMATS, OUTLINES, ResultFiles
from swinumamba_monai.prediction.summary import (
    COLUMNS,
    add_row,
    columns_of,
    is_there,
    read_summary,
    rows_that_count,
    write_summary,
)
from swinumamba_monai.run_lock import prediction_lock

logger = logging.getLogger(__name__)

SETTINGS, SUMMARY, COCO, BLOCKS = "predict.json", "summary", "coco", ".blocks"
# Arguments of the predictor and of this module, beside the entries of the config that they decide about.
_ARGUMENTS = set("bundle bundle_dir bundle_root checkpoint ckpt_path dataset_dir device output_dir progress".split())


@dataclass
class Report:
    """What :func:`predict_images` did.

    Args:
        predicted: number of images that were predicted now.
        finished: number of images that had been finished before.
        objects: number of objects in all of them.
        failed: a sentence on each image that could not be predicted.
        passed_over: a line on each folder in which there is something else than images.
        warned: the images whose answer is to be looked at.
        files: names of what was written; NAME stands for an image's.
    """

    predicted: int = 0
    finished: int = 0
    objects: int = 0
    failed: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def predict_images(
    bundle: str | PathLike,
    images: Sequence[str | PathLike],
    output_dir: str | PathLike,
    formats: Sequence[str] = ("masks",),
    overwrite: bool = False,
    share: tuple[int, int] = (1, 1),
    progress: bool = True,
    options: Mapping[str, object] | None = None,
    **of_predictor: object,
) -> Report:
    """Predict images and write for each what the bundle writes, a picture with outlines and a table of its objects.

    Args:
        bundle: see :class:`~swinumamba_monai.prediction.predictor.Predictor`.
        images: files, folders and prepared datasets, as the bundle's inference takes them.
        output_dir: folder of the results; images in several folders have theirs in folders of the same names.
        formats: forms that the objects are written in; the masks always are.
        overwrite: whether to predict images that are finished, too; files of theirs in other forms stay, and are named.
        share: ``(i, n)``: the i-th of n equal shares of the images is predicted.
        progress: whether to show how far the run is.
        options: values of entries of the bundle's config.
        of_predictor: ``checkpoint``, ``device`` and ``bundle_dir`` of the predictor.

    Raises:
        InputError: no image at all, an option that cannot be, results of other images or settings in ``output_dir``, or
            a place that cannot be written. What cannot be predicted is in the report instead.
    """
    number, count = share
    options = dict(options or {})
    _check_request(images, output_dir, formats, share, options)
    places, problems = [], []
    for path in images:
        with noting(problems):
            places.append(_check_place(path))
    if not places:
        raise InputError(problems[0])
    place = as_literal(str(output_dir))
    predictor = Predictor(bundle, progress=progress, **of_predictor, **{**options, "output_dir": place})
    if predictor.of_volumes and set(formats) - {"masks"}:
        raise InputError(f"{predictor.bundle_dir.name} writes volumes, which have no outlines; leave --format out.")
    inputs, found = [], {}
    for path in places:
        with noting(problems):
            inputs.append(predictor.list_images(path))
    for item in chain.from_iterable(inputs):
        with noting(problems):
            # An image may be several files, each a channel; it is called by the first.
            found[_check_letters(ensure_tuple(item["image"])[0])] = item["image"]
    problems += [sentence for items in inputs for sentence in items.bad]
    if not found:
        raise InputError(problems[0])
    job = _Job(predictor, Path(output_dir), formats, found, "" if count == 1 else f"_{number}of{count}")
    try:
        job.open(options, overwrite)
        report = job.run(sorted(job.names)[number - 1 :: count], progress)
        if overwrite:
            job.warn_of_other_forms()
    finally:
        job.lock.release()
    report.failed += problems
    report.passed_over = [items.summary() for items in inputs if items.not_taken]
    return report


def _check_request(
    images: Sequence[str | PathLike],
    output_dir: str | PathLike,
    formats: Sequence[str],
    share: tuple[int, int],
    options: Mapping[str, object],
) -> None:
    """Refuse arguments of :func:`predict_images` that cannot be, before a file is opened."""
    number, count = share
    if not 1 <= number <= count:
        raise InputError(f"share {number}/{count} is none; the shares of 8 are 1/8 to 8/8.")
    check_known("format", formats, FORMATS)
    if not os.fspath(output_dir):
        raise InputError("--output_dir is empty; give the folder of the results.")
    if any(Path(path).is_dir() and Path(path).resolve() == Path(output_dir).resolve() for path in images):
        raise InputError(
            f"{output_dir} holds the images; give another output folder, or results become images next time."
        )
    for name in _ARGUMENTS & options.keys():
        raise InputError(f"{name} is no option to be set: it follows from the arguments of the prediction.")


def _check_place(path: str | PathLike) -> str | PathLike:
    """The path, unless it is known, before a network is built, to hold no images."""
    if not os.fspath(path):
        raise InputError("a path is empty; give images, a folder of them or a prepared dataset.")
    if not Path(path).exists():
        raise InputError(f"{path} does not exist; give images, a folder of them or a prepared dataset.")
    if (Path(path) / SETTINGS).is_file():
        raise InputError(f"{path} holds the results of a prediction, as {SETTINGS} in it says; give its images.")
    return path


def _check_letters(name: str) -> str:
    """The name of an image, unless no table could hold it: in Linux it may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {name} is not in UTF-8; rename it.") from error
    return name


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Job:
    """The images of a run, and its output folder."""

    def __init__(
        self,
        predictor: Predictor,
        folder: Path,
        formats: Sequence[str],
        images: Mapping[str, str | Sequence[str]],
        suffix: str,
    ) -> None:
        self.predictor, self.folder, self.formats, self.suffix = predictor, folder, formats, suffix
        self.images = images
        _, self.names = result_names(list(images))
        keep_folders(Compose(predictor.savers), [{"image": image} for image in images])
        self.files = ResultFiles(folder, predictor, formats)
        self.lock = prediction_lock(folder, suffix)

    def open(self, options: Mapping[str, object], overwrite: bool) -> None:
        """Make the folder, and read what is finished there; with ``overwrite`` nothing is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock.take("a prediction", "--output_dir")
        settings = {
            "bundle": self.predictor.bundle_dir.name,
            "config": _hash(self.predictor.bundle_dir / CONFIG),
            "weights": list(map(_hash, self.predictor.checkpoints)),
            "options": {name: repr(value) for name, value in options.items()},
        }
        file, self.settings = self.folder / SETTINGS, json.dumps(settings, indent=1)
        others = file.is_file() and file.read_text(encoding="utf-8") != self.settings
        rows = {}
        for path in [self.folder / f"{SUMMARY}.csv", *sorted(self.folder.glob(f"{SUMMARY}_*of*.csv"))]:
            if others and overwrite:
                path.unlink(missing_ok=True)
            else:
                rows.update(read_summary(path))
        if others and not overwrite and not (rows and all(row["error"] for row in rows.values())):
            raise InputError(
                f"{self.folder} holds results of another bundle or config, other weights or other options, as "
                f"{SETTINGS} in it says; give another output folder, or --overwrite."
            )
        self.rows = rows_that_count(rows, self.names, overwrite)
        write_file(file, self.settings)

    def warn_of_other_forms(self) -> None:
        """Name what earlier runs wrote of these images in forms that this one does not; it may have been edited."""
        paths = self.files.of_other_forms(self.names)
        if "coco" not in self.formats:
            paths += self.folder.glob(f"{COCO}.json")
        if left := sorted(path.name for path in paths):
            logger.warning("%s of an earlier run: left as they are, though the results are new", listed(left))

    def run(self, names: Sequence[str], progress: bool) -> Report:
        """Predict the images of these names that are not finished, and gather."""
        report = Report()
        mine = {name: self.rows[name] for name in names if self._is_finished(name)}
        report.finished = len(mine)
        if changed := [Path(self.names[name]).name for name in mine if self._has_changed(name)]:
            logger.warning(
                "%s changed after the results were written, which are kept; --overwrite predicts again", listed(changed)
            )
        summary = self.folder / f"{SUMMARY}{self.suffix}.csv"
        kept = mine if self.suffix else {name: row for name, row in self.rows.items() if name not in names} | mine
        # This run has just found its own, and to look for a DICOM series opens all files of its folder.
        others = [row["image"] for name, row in kept.items() if name not in self.names]
        if gone := [image for image in others if not is_there(image)]:
            logger.warning("%s: not there any more; the results and the row in %s stay", listed(gone), summary.name)
        write_summary(summary, kept)
        waiting = [name for name in names if name not in mine]
        with bar_of(len(waiting), "image", disable=not (progress and waiting)) as bar:
            for name in waiting:
                bar.set_postfix_str(shown(Path(name).name), refresh=False)
                row = self._predict(name)
                mine[name] = row
                add_row(summary, row)
                if row["error"]:
                    report.failed.append(row["error"])
                bar.update()
        report.predicted = len(waiting) - len(report.failed)
        report.objects = sum(int(row["objects"] or 0) for row in mine.values())
        report.warned = [row["image"] for row in mine.values() if row["warnings"]]
        answered = {name: self.names[name] for name in names if not mine[name]["error"]}
        report.files = [*self.files.called(list(answered)), summary.name]
        if "coco" in self.formats:
            coco = self.folder / f"{COCO}{self.suffix}.json"
            self.files.write_coco(coco, answered)
            report.files.append(coco.name)
        if not self.suffix:
            write_summary(summary, dict(sorted((kept | mine).items())))
            # What shares have written is gathered now; a COCO file of theirs is if there is one of all images.
            gathered = [f"{SUMMARY}_*of*.csv", *([f"{COCO}_*of*.json"] if "coco" in self.formats else [])]
            for path in [path for pattern in gathered for path in self.folder.glob(pattern)]:
                path.unlink()
            if not report.failed:  # of images that changed since they were begun, or are not there any more
                shutil.rmtree(self.folder / BLOCKS, ignore_errors=True)
        return report

    def _is_finished(self, name: str) -> bool:
        row = self.rows.get(name)
        return row is not None and not row["error"] and self.files.are_there(name)

    def _has_changed(self, name: str) -> bool:
        """Whether the file of a finished image was written, or put in its place, after what was found in it."""
        file, _ = file_and_number(self.names[name])
        if not file.is_file():  # but a folder of DICOM files
            return False
        image, found = file.stat(), self.files.path(name, OUTLINES).stat()
        return max(image.st_mtime, image.st_ctime) > max(found.st_mtime, found.st_ctime)

    def _predict(self, name: str) -> dict[str, object]:
        """The row of the summary, after all files of the image are written; without them if it failed."""
        row = dict.fromkeys(COLUMNS, "") | {"name": name, "image": self.names[name]}
        try:
            if self.files.are_too_long(name):
                raise InputError(f"{self.names[name]} has a name too long for those of its results; rename it.")
            image, blocks = self.images[self.names[name]], self.predictor.blocks
            if large := blocks and blocks.open(image):
                with large:
                    return row | self._predict_large(name, large)
            found = self.predictor(image)
            if found.labels.max() > MAX_16_BIT and ".png" in self.files.mask:
                raise InputError(f"{self.names[name]} has over {MAX_16_BIT} cells; give the option output_ext=.tif.")
        except Exception as error:  # whatever is wrong with one image, the others are to be predicted
            sentence = str(find_input_error(error) or quoted(error))
            place = str(InputError(self.names[name]))  # as in a sentence, whatever letters it has
            return row | {"error": sentence if place in sentence else f"{place}: {sentence}"}
        self.files.write(name, found)
        return row | columns_of(found.table, found.doubts)

    def _predict_large(self, name: str, image: TiffRows) -> dict[str, object]:
        """The columns of the summary of an image that is predicted by blocks, after its files are written."""
        if unable := set(self.formats) & {"coco", "roi"}:
            raise InputError(
                f"{image.path} is so large that it is predicted in blocks, which give masks and geojson, not "
                f"{' and '.join(sorted(unable))}; leave that out of --format."
            )
        self.files.make_folder(name)
        files = self.files.large_mask(name), self.files.polygons(name)
        # What a GPU answers, in another precision, is not continued on a CPU.
        settings = f"{__version__} {self.settings} {self.predictor.device.type}"
        with KeptBlocks(self.folder / BLOCKS, settings) as kept:
            table, outlines, doubts = predict_large(self.predictor, image, *files, kept)
            self.files.write_table(name, table, outlines)
        for doubt in doubts:
            logger.warning("%s: %s", image.path, doubt)
        return columns_of(table, doubts)
