# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
