# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of ``python -m swinumamba_monai``, a module each; :mod:`swinumamba_monai.cli` finds them by name.

A module's docstring is the command's help, ``add_arguments`` names what it takes, and ``run`` does it. Nothing slow is
imported before a command runs.
"""
