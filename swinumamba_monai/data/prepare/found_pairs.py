# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The images of a source folder with their labels, and what is odd about the rest of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from swinumamba_monai.data.datalist import leads_outside
from swinumamba_monai.data.inputs import noting
from swinumamba_monai.data.prepare.label_forms import Label

# Number of a channel, as nnU-Net writes it behind the name of an image; numbers of cases are larger.
FURTHER_CHANNEL = re.compile(r"_000[1-9]$")


@dataclass
class FoundPairs:
    """The pairs of image and label in a source folder.

    Attributes:
        layout: how the folder is arranged, in words.
        source: the folder.
        pairs: image and label by the name of the image; the label in the form that it has, until it is made a file.
        channels: all images of a pair, the first of which is in ``pairs``, where every channel has a file.
        problems: a sentence for everything that is no pair.
        warnings: a sentence for everything that is odd.
        split: the names of the sections that the layout itself gives, which a ``split.json`` overrules.
        used: files and folders of the source that the pairs are made of, or that a problem or warning names.
        links: folders outside of the source that the image and the label of each pair are links into, or None.
        groups: what names of one video, patient or stack have in common, by the name.
        made: folder of the labels that were made of the source's, all of which are then in it; None where they are
            files of the source.
        made_images: folder beside it of the images that were made, in the same way.
    """

    layout: str
    source: Path
    pairs: dict[str, tuple[Path, Label]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    split: dict[str, list[str]] = field(default_factory=dict)
    used: set[Path] = field(default_factory=set)
    channels: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    links: dict[str, tuple[Path | None, Path | None]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    made: Path | None = None
    made_images: Path | None = None

    def add(self, name: str, image: Path, label: Path) -> None:
        """Take a pair of files, or note why not."""
        self.used |= {image, label}
        if name in self.pairs:
            self.problems.append(f"{image} has the name of {self.pairs[name][0]}; rename one.")
            return
        self.pairs[name] = (image, label)
        self.links[name] = tuple(f.resolve().parent if leads_outside(f, self.source) else None for f in (image, label))

    def linked_dir(self) -> Path | None:
        """The folder of what links lead to: all images or all labels are some, for a single one is left out."""
        ends: list[Path] = []
        for kind in (0, 1):
            linked = [name for name, links in self.links.items() if links[kind]]
            if len(linked) == len(self.links):
                ends += [links[kind] for links in self.links.values()]
                continue
            for name in linked:
                image, _ = self.pairs.pop(name, (None, None))
                if image is not None:
                    self.problems.append(
                        f"{image} or its label is a link out of {self.source}; give the folder that it leads to."
                    )
        return Path(os.path.commonpath(ends)) if ends else None

    def make_labels(self, folder: Path, make: Callable[[str, Path, Label], Path]) -> None:
        """Put a file in the place of every label; what cannot be made is a problem, and no pair any more.

        ``make`` gets name, image and label of a pair, and writes into ``folder``, which is made.
        """
        folder.mkdir()
        self.made = folder
        pairs, self.pairs = self.pairs, {}
        for name, (image, label) in pairs.items():
            with noting(self.problems):
                self.pairs[name] = (image, make(name, image, label))

    def images(self, name: str) -> tuple[Path, ...]:
        """The image of a pair, or all of its channels."""
        return self.channels.get(name, self.pairs[name][:1])

    def items(self) -> list[dict[str, str | tuple[str, ...]]]:
        """The paths "image" and "label" of every pair, those of all channels where there are several."""
        images = {name: tuple(map(str, self.images(name))) for name in self.pairs}
        return [
            {"image": paths if len(paths) > 1 else paths[0], "label": str(self.pairs[name][1])}
            for name, paths in images.items()
        ]

    def entry(self, name: str) -> dict[str, str | list[str]]:
        """What the datalist says of a pair: images and label below the source, or below the parent of their folder."""
        image_dir, label_dir = (made.parent if made else self.source for made in (self.made_images, self.made))
        images = [image.relative_to(image_dir).as_posix() for image in self.images(name)]
        label = self.pairs[name][1].relative_to(label_dir).as_posix()
        return {"image": images if len(images) > 1 else images[0], "label": label}
