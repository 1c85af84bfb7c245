# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What preparing has in common for every task: check the pairs that were found, divide them, describe them, write."""

from __future__ import annotations

import json
import logging
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from monai.config import PathLike

from swinumamba_monai.atomic import replacing, temporary_folder, write_file
from swinumamba_monai.data.datalist import DATALIST_NAME, SECTIONS, write_datalist
from swinumamba_monai.data.files.grids import thick_axis
from swinumamba_monai.data.files.label_map import IGNORE_NAME, LabelMap
from swinumamba_monai.data.files.walk import is_hidden
from swinumamba_monai.data.inputs import Inputs, not_taken_of, refuse_or_leave_out
from swinumamba_monai.data.prepare.fingerprint import AXIAL, FINGERPRINT_NAME, make_fingerprint
from swinumamba_monai.data.prepare.found_pairs import FoundPairs
from swinumamba_monai.data.prepare.inspection import PairReport, inspect_pairs
from swinumamba_monai.data.prepare.split import NNUNET_SPLITS, SPLIT, divide, read_split, split_file
from swinumamba_monai.errors import InputError, check_known
from swinumamba_monai.run_lock import lock_file
from swinumamba_monai.tasks import find_task

logger = logging.getLogger(__name__)

# Files that are about a dataset; read where they are needed.
_ABOUT = {"dataset.json", SPLIT, NNUNET_SPLITS, "labelmap.txt", DATALIST_NAME, FINGERPRINT_NAME}


@dataclass(frozen=True)
class PrepareOptions:
    """What may be asked of preparing, whatever the task.

    Attributes:
        val_fraction: the part of the training images that becomes the validation section when no split names one.
        test_fraction: the part of all images that becomes the test section when nothing says which.
        seed: seed of the division.
        fold: the number of a fold in ``split.json``; None for its default division.
        skip_bad: leave out what cannot be used instead of stopping.
        mask_threshold: the least value of a pixel that belongs to a mask of black and white, whose edges may be soft;
            None for masks of numbers.
        series: the DICOM series to be taken: a UID, a number, or a part of the description.
        nan: what takes the place of NaN in volumes; None refuses it.
        in_channels: number of channels of volumes that hold them as a fourth dimension; None where a ``dataset.json``
            or files of their own say it.
        label_grid: "image" where the voxels of a label volume are those of its image, whatever its header says;
            "file" where the header counts.
        progress: called with the number of pairs checked and of all pairs.

    Raises:
        InputError: a fraction is not between 0 and 1, the seed is below 0, the threshold not above it, there is no
            channel or no such grid.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    fold: int | None = None
    skip_bad: bool = False
    mask_threshold: float | None = None
    series: str | None = None
    nan: float | None = None
    in_channels: int | None = None
    label_grid: str = "file"
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if not (0 < self.val_fraction < 1 and 0 < self.test_fraction < 1):
            raise InputError(
                f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} must be between 0 and 1."
            )
        if self.mask_threshold is not None and not self.mask_threshold > 0:
            raise InputError(
                f"mask_threshold must be a number above 0, not {self.mask_threshold}; 0 is what is not marked."
            )
        check_known("label_grid", [self.label_grid], ("file", "image"))
        if self.in_channels is not None and self.in_channels < 1:
            raise InputError(f"in_channels is {self.in_channels}, but a volume has a channel or more.")
        if self.seed < 0:
            raise InputError(f"seed must be a whole number from 0 on, not {self.seed}.")


@dataclass(frozen=True)
class PreparedDataset:
    """What preparing made.

    Attributes:
        layout: how the source folder is arranged, in words.
        output_dir: folder of the datalist.
        sizes: number of images in each section.
        instances: number of cells in all of them.
        fingerprint: see :func:`~swinumamba_monai.data.prepare.fingerprint.make_fingerprint`.
        inputs: the pairs, with what of the source folder is not taken and the problems of what is left out.
        warnings: a sentence for everything that is odd.
    """

    layout: str
    output_dir: Path
    sizes: Mapping[str, int]
    instances: int
    fingerprint: Mapping[str, object]
    inputs: Inputs
    warnings: Sequence[str]

    @property
    def problems(self) -> Sequence[str]:
        """A sentence for everything that is left out."""
        return self.inputs.bad


def open_source(source_dir: PathLike) -> Path:
    """The resolved source folder; an :class:`InputError` when there is none."""
    if not Path(source_dir).is_dir():
        raise InputError(f"{source_dir} is not a folder; give the folder of the downloaded dataset.")
    return Path(source_dir).resolve()


@contextmanager
def label_folder() -> Iterator[Path]:
    """A temporary folder "labels" for labels that must be made; they wait here until everything is found to be good."""
    with temporary_folder("prepare") as temporary:
        yield temporary / "labels"


def check_and_write(
    task: str,
    found: FoundPairs,
    output_dir: PathLike,
    options: PrepareOptions,
    labels: LabelMap | None = None,
    **reading: object,
) -> PreparedDataset:
    """Check every pair, divide them into three sections, and write datalist, fingerprint and what was made here.

    Args:
        task: one of :data:`~swinumamba_monai.tasks.TASKS`.
        found: the pairs, whose labels have the numbers of the classes by now.
        output_dir: folder that the files are written into; it may be the source.
        options: see :class:`PrepareOptions`.
        labels: the classes; None for cells.
        reading: options of the task's :attr:`~swinumamba_monai.tasks.TaskFiles.inspect`, as its reader gets them.

    Raises:
        InputError: There are problems and not ``skip_bad`` (all are listed, one per line, and nothing is written); too
            few images are left, or no label has anything but background; ``output_dir`` holds another dataset.
    """
    output, source = Path(output_dir).resolve(), found.source
    class_names = labels.all_names if labels else ()
    inspect = partial(find_task(task).files.inspect, class_names=class_names, **reading)
    linked_dir, split = found.linked_dir(), _read_split(found, options.fold)
    items = found.items()
    made = [folder for folder in (found.made_images, found.made) if folder]
    made_here = {output, lock_file(output, "prepare"), *(output / folder.name for folder in made)}
    inputs = Inputs(items, source, not_taken_of(_unused(source, found.used | made_here)))
    inputs.log()
    reports = dict(zip(found.pairs, inspect_pairs(items, inspect, options.progress), strict=True))
    if found.made:
        reports = {name: _of_originals(report, name, found) for name, report in reports.items()}
    split_path = split_file(source / SPLIT, options.fold)
    problems = found.problems + [report.problem for report in reports.values() if report.problem]
    if split_path.is_file():  # of what the layout names it was said already why it is no pair
        problems += _without_pair(chain.from_iterable(split.values()), found.pairs, split_path.name)
    inputs.bad = refuse_or_leave_out(problems, options.skip_bad, source)
    inputs[:] = [item for item, report in zip(items, reports.values(), strict=True) if not report.problem]
    good = {name: report for name, report in reports.items() if not report.problem}
    shapes = {name: report.shape for name, report in good.items()}
    sections = divide(shapes, split, options.val_fraction, options.test_fraction, options.seed, found.groups)
    used = list(dict.fromkeys(name for section in SECTIONS for name in sections[section]))
    known_names = [name for name in class_names if name != IGNORE_NAME]
    # A single label without foreground is odd; a dataset without any cannot be learnt.
    if not any(number > 0 for name in used for number in good[name].class_counts):
        raise InputError(f"{source} has labels with nothing but background in them; check that these are the labels.")
    prints = make_fingerprint([good[name] for name in sections["training"] + sections["validation"]], known_names)
    warnings = found.warnings + [report.warning for report in good.values() if report.warning]
    if len(used) < len(good):
        warnings.append(f"{len(good) - len(used)} images are in no section of {split_path.name} and are not used.")
    taught = {number for name in sections["training"] for number in good[name].class_counts}
    warnings += _what_is_odd([name for number, name in enumerate(known_names) if number not in taught], prints)
    warnings += _cut_across(found, good, prints)
    content = f"{prints['instances']} cells" if not class_names else f"{len(known_names) - 1} classes"
    _copy_made(made, output)
    # After the files, so that there is a datalist of whole ones or none, and the same command goes on from there.
    write_datalist(
        output,
        {section: [found.entry(name) for name in names] for section, names in sections.items()},
        f"{content} in {len(used)} images of {source.name}",
        source_dir="." if source == output or found.made_images else str(source),
        label_dir="." if found.made else None,
        task=task,
        class_names=class_names,
        regions=dict(labels.regions) if labels else None,
        linked_dir=None if linked_dir is None else str(linked_dir),
    )
    write_file(output / FINGERPRINT_NAME, json.dumps({"task": task, **prints}, indent=1) + "\n")
    crop = prints["proposal"]["roi_size"]
    logger.info("%s: %d images (%s), crops of %s proposed", output, len(used), found.layout, crop)
    return PreparedDataset(
        layout=found.layout,
        output_dir=output,
        sizes={section: len(sections[section]) for section in SECTIONS},
        instances=sum(good[name].num_instances for name in used),
        fingerprint=prints,
        inputs=inputs,
        warnings=warnings,
    )


def _of_originals(report: PairReport, name: str, found: FoundPairs) -> PairReport:
    """A report whose sentences do not name a label that was made and is nowhere yet, but whose label it is."""
    image, label = found.pairs[name]
    image = found.source / name if found.made_images else image
    texts = (report.problem, report.warning)
    problem, warning = (text and text.replace(str(label), f"the label of {image}") for text in texts)
    return replace(report, problem=problem, warning=warning)


def _read_split(found: FoundPairs, fold: int | None) -> dict[str, list[str]]:
    """The names of the sections: those of a split file, else of the layout; a fold may be tested on what validates."""
    split = read_split(found.source / SPLIT, fold)
    if not split:
        found.warnings += _unread_splits(found.source)
    if split and "test" not in split:
        split["test"] = found.split.get("test") or split["validation"]
        if not found.split.get("test"):
            found.warnings.append(f"fold {fold} has no test images: it is tested on what validates it.")
    split = split or found.split
    return {section: [unicodedata.normalize("NFC", name) for name in names] for section, names in split.items()}


def _unread_splits(source: Path) -> Iterator[str]:
    """A sentence on each file that is called as if it divided the images, and does not."""
    for path in sorted(source.iterdir()):
        if path.name == NNUNET_SPLITS:
            yield f"{path.name} is not used, because no fold of it was asked for; --fold 0 takes the first."
        elif path.suffix.lower() == ".json" and "split" in path.stem.lower():
            yield f"{path.name} is not read; call it {SPLIT} if it says which images train, validate and test."


def _without_pair(names: Iterable[str], pairs: Mapping[str, object], split_name: str) -> Iterator[str]:
    """A sentence on each name of a split that there is no pair of."""
    for name in names:
        if name not in pairs:
            known = next((other for other in pairs if name.startswith(f"{other}.")), None)
            hint = f"; write {known}, without the suffix" if known else ""
            yield f"{split_name} names {name}, but there is no such pair of image and label{hint}."


def _what_is_odd(untaught: Sequence[str], prints: Mapping) -> Iterator[str]:
    """A sentence on classes that no training image has, and on slices that are not axial."""
    if untaught:
        yield f"no training image has {', '.join(untaught)}; a network cannot learn what it does not see."
    axcodes = prints["proposal"].get("axcodes", AXIAL)
    if axcodes != AXIAL:
        spacing = json.dumps(prints["proposal"]["spacing"], separators=(",", ":"))
        yield (
            f"the slices of most volumes are not axial: --axcodes {axcodes} --spacing {spacing} in every command takes "
            "them as they were made; without, axial ones are cut."
        )


def _cut_across(found: FoundPairs, reports: Mapping[str, PairReport], prints: Mapping) -> Iterator[str]:
    """A sentence on volumes of thick slices in another direction than most, whose order of axes here is RAS."""
    across = "RLAPSI".index(prints["proposal"].get("axcodes", AXIAL)[2]) // 2
    others = [name for name, r in reports.items() if r.spacing and thick_axis(r.spacing) not in (None, across)]
    if others:
        yield (
            f"{len(others)} volumes are stacks of thick slices in another direction than most, the first "
            f"{found.pairs[others[0]][0]}: coarse slices are cut across them; leave them out if the network shall not "
            "learn from these."
        )


def _unused(source: Path, used: set[Path]) -> list[Path]:
    """The files of the source that are not used, without those that are about it; of a hidden folder the folder."""
    unused = []
    for folder, folders, files in os.walk(source):
        place = Path(folder)
        unused += [place / name for name in folders if is_hidden(name)]
        folders[:] = [name for name in folders if place / name not in used and not is_hidden(name)]
        unused += [place / name for name in files if place / name not in used and name not in _ABOUT]
    return unused


def _copy_made(folders: Sequence[Path], output: Path) -> None:
    """Copy labels, or images, that were made to where the datalist will be; replace no file by another."""
    targets = {file: output / folder.name / file.name for folder in folders for file in sorted(folder.iterdir())}
    for file, target in targets.items():
        if target.exists() and target.read_bytes() != file.read_bytes():
            kind = file.parent.name.removesuffix("s")
            raise InputError(f"{target} exists and is another {kind}; give another output_dir.")
    output.mkdir(parents=True, exist_ok=True)
    for file, target in targets.items():
        target.parent.mkdir(exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(file, temporary)
