# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
import sys

from swinumamba_monai.cli import main

sys.exit(main())
