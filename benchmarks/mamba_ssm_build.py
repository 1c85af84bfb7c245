# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Build the Mamba-1 scan of mamba-ssm from its source archive, for the comparisons here and for nothing else.

    python -m pip download --no-deps --no-binary :all: --no-build-isolation mamba-ssm -d .carry
    python -m benchmarks.mamba_ssm_build .carry/mamba_ssm-*.tar.gz --target_dir .carry/mamba
    export PYTHONPATH=.carry/mamba      # selective_scan_fn and the backend "mamba_ssm" can be imported

The whole package is built for nine architectures and drags causal-conv1d and transformers in. What Swin-UMamba calls
is one function, ``selective_scan_fn``; it needs a few Python files and one extension. Of the extension's kernels only
those are compiled that the released networks run: this GPU's architecture, real A, B and C that vary along the
sequence, no gate z. The kernels' own code is untouched; another combination raises an error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tarfile
import time
from pathlib import Path

PYTHON_FILES = (
    "ops/__init__.py",
    "ops/selective_scan_interface.py",
    "ops/triton/__init__.py",
    "ops/triton/layer_norm.py",
    "utils/__init__.py",
    "utils/determinism.py",
    "utils/torch.py",
)
# mamba-ssm's setup.py, without its list of architectures
CUDA_FLAGS = (
    "-O3 -std=c++17 --expt-relaxed-constexpr --expt-extended-lambda --use_fast_math "
    "-U__CUDA_NO_HALF_OPERATORS__ -U__CUDA_NO_HALF_CONVERSIONS__ -U__CUDA_NO_BFLOAT16_OPERATORS__ "
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__ -U__CUDA_NO_BFLOAT162_OPERATORS__ -U__CUDA_NO_BFLOAT162_CONVERSIONS__"
).split()
ONLY = """
#define ONLY(COND, VALUE, CONST_NAME, ...)                                       \\
    [&] {                                                                        \\
        TORCH_CHECK((COND) == VALUE, "built without this case: " #COND);         \\
        constexpr bool CONST_NAME = VALUE;                                       \\
        return __VA_ARGS__();                                                    \\
    }()
"""
PATCHES = {  # file: (pattern, replacement, how often)
    "selective_scan.cpp": [
        (
            r"(ScalarType::ComplexFloat\) \{\s*\\\n)\s*using weight_t = c10::complex<float>;\s*\\\n\s*__VA_ARGS__\(\);",
            r'\1        AT_ERROR(#NAME, " is built for real weights only"); ',
            1,
        )
    ],
    "static_switch.h": [(r"#pragma once\n", lambda found: found.group() + ONLY, 1)],
    "selective_scan_fwd_kernel.cuh": [
        (r"BOOL_SWITCH\((params\.is_variable_[BC])\s*,", r"ONLY(\1, true,", 2),
        (r"BOOL_SWITCH\((params\.z_ptr != nullptr)\s*,", r"ONLY(\1, false,", 1),
    ],
    "selective_scan_bwd_kernel.cuh": [
        (r"BOOL_SWITCH\((params\.is_variable_[BC])\s*,", r"ONLY(\1, true,", 2),
        (r"BOOL_SWITCH\((params\.z_ptr != nullptr)\s*,", r"ONLY(\1, false,", 1),
    ],
    **{
        f"selective_scan_fwd_{dtype}.cu": [(r"template void .*complex_t.*;", "", 1)]
        for dtype in ("fp32", "fp16", "bf16")
    },
}


def unpack(archive: Path, target_dir: Path) -> list[Path]:
    """Put the Python files below ``target_dir/mamba_ssm`` and the patched C++ below ``target_dir/csrc``.

    Returns:
        the sources to compile.

    Raises:
        RuntimeError: the archive is of a version whose source these patches don't fit.
    """
    shutil.rmtree(target_dir, ignore_errors=True)
    (target_dir / "mamba_ssm").mkdir(parents=True)
    with tarfile.open(archive) as tar:
        root = tar.getnames()[0].split("/")[0]
        for name in PYTHON_FILES:
            _write(target_dir / "mamba_ssm" / name, tar.extractfile(f"{root}/mamba_ssm/{name}").read().decode())
        version = re.search(
            r"__version__ = .*", tar.extractfile(f"{root}/mamba_ssm/__init__.py").read().decode()
        ).group()
        _write(target_dir / "mamba_ssm" / "__init__.py", version + "\n")  # its own imports every model of the package
        prefix = f"{root}/csrc/selective_scan/"
        for member in tar.getmembers():
            name = member.name.removeprefix(prefix)
            if not member.isfile() or not member.name.startswith(prefix) or name.endswith("complex.cu"):
                continue
            text = tar.extractfile(member).read().decode()
            for pattern, replacement, expected in PATCHES.get(name, []):
                text, found = re.subn(pattern, replacement, text)
                if found != expected:
                    raise RuntimeError(f"{archive.name}: {name} has {found} places like {pattern!r}, not {expected}.")
            _write(target_dir / "csrc" / name, text)
    return sorted(path for path in (target_dir / "csrc").iterdir() if path.suffix in (".cpp", ".cu"))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def build(sources: list[Path], target_dir: Path) -> None:
    """Compile ``selective_scan_cuda`` into ``target_dir`` for the GPU that is there."""
    import torch
    from torch.utils.cpp_extension import load

    major, minor = torch.cuda.get_device_capability()
    os.environ["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    build_dir = target_dir / "build"
    build_dir.mkdir()
    load(
        "selective_scan_cuda",
        [str(source) for source in sources],
        extra_cflags=["-O3", "-std=c++17"],
        extra_cuda_cflags=CUDA_FLAGS,
        build_directory=str(build_dir),
        is_python_module=False,
        verbose=True,
    )
    (library,) = build_dir.glob("selective_scan_cuda*.so")
    shutil.copy(library, target_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("archive", type=Path, help="mamba_ssm-*.tar.gz as pip downloads it")
    parser.add_argument("--target_dir", type=Path, required=True, help="new folder, for PYTHONPATH")
    arguments = parser.parse_args()
    start = time.perf_counter()
    target_dir = arguments.target_dir.absolute()
    build(unpack(arguments.archive, target_dir), target_dir)
    print(f"built in {time.perf_counter() - start:.0f} s; export PYTHONPATH={target_dir}")


if __name__ == "__main__":
    main()
