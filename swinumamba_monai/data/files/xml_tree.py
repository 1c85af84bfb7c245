# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""XML of strangers, without what may unfold."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from swinumamba_monai.errors import InputError, explained


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree of a file that declares nothing, in whatever encoding it would declare it."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _Declares


class _Declares(Exception):
    pass


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        InputError: the file cannot be read, is no XML, or declares entities, which may unfold without end.
    """
    kinds = (OSError, ValueError, ElementTree.ParseError)
    with explained(f"{path} is no XML that can be read", "export it again", *kinds):
        try:
            return ElementTree.parse(path, ElementTree.XMLParser(target=_Builder())).getroot()
        except _Declares:
            sentence = f"{path} declares entities, which may unfold without end and which no tool needs; remove them."
            raise InputError(sentence) from None
