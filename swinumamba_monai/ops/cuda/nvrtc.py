# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""CUDA C++ of the folder ``kernels`` compiled when first used, by the NVRTC library that torch brings.

No nvcc, no host compiler and no header files are needed. What was compiled is kept in the user's cache folder, as
:mod:`swinumamba_monai.owned` keeps it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import cache, wraps
from pathlib import Path

import torch
from torch import Tensor

from swinumamba_monai.errors import log_once
from swinumamba_monai.owned import CACHE, keep, load_kept

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "kernels"
MIN_CAPABILITY = (8, 0)  # conversion instructions of bfloat16
_MAX_DYNAMIC_SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_DEFAULT_SHARED_SIZE = 48 << 10
_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


def params_type(name: str, pointers: str, integers: str, *more: tuple) -> type[ctypes.Structure]:
    """The one argument of a kernel, as its source declares it.

    Args:
        name: name of the structure in the source.
        pointers: names of its pointers, which come first, parted by spaces.
        integers: names of its 64-bit integers, which follow.
        more: name and ctypes type of each field after those.
    """
    fields = [(field, ctypes.c_void_p) for field in pointers.split()]
    fields += [(field, ctypes.c_longlong) for field in integers.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, *more]})


def why_nvrtc_is_unavailable() -> str | None:
    """The reason why kernels cannot be compiled for the current CUDA device, or None if they can."""
    if torch.version.cuda is None:
        return "the kernels are for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return f"the kernels need compute capability 8.0 or newer, this GPU has {capability[0]}.{capability[1]}"
    try:
        _libraries()
    except OSError as error:
        return f"the NVRTC library of CUDA {torch.version.cuda} cannot be loaded ({error})"
    return None


@cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """NVRTC and the CUDA driver, as torch itself finds them."""
    folder = Path(torch.__file__).parent / "lib"
    if bundled := sorted(folder.glob("nvrtc64_*.dll")):  # Windows
        return ctypes.CDLL(str(next(f for f in bundled if ".alt." not in f.name))), ctypes.CDLL("nvcuda.dll")
    linked = ctypes.CDLL(str(folder / "libcaffe2_nvrtc.so"))  # torch's own link to both; symbols are found through it
    return linked, linked


def _check_driver(code: int, what: str) -> None:
    if code:
        message = ctypes.c_char_p()
        _libraries()[1].cuGetErrorString(code, ctypes.byref(message))
        reason = message.value.decode() if message.value else f"error {code}"
        raise RuntimeError(f"the CUDA driver could not {what}: {reason}.")


def _in_context(call: Callable[[], int]) -> int:
    """The code of a call of the driver, which is made again in torch's context if this thread is in none.

    Autograd goes backward in threads of its own, where the driver may be called before torch has called it.
    """
    code = call()
    if code == _INVALID_CONTEXT:
        driver, context = _libraries()[1], ctypes.c_void_p()
        _check_driver(
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), torch.cuda.current_device()), "find torch's context"
        )
        _check_driver(driver.cuCtxSetCurrent(context), "enter torch's context")
        code = call()
    return code


def _check_nvrtc(code: int, what: str) -> None:
    if code:
        nvrtc = _libraries()[0]
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC could not {what}: {nvrtc.nvrtcGetErrorString(code).decode()}.")


def _supported_architectures() -> list[int]:
    nvrtc, count = _libraries()[0], ctypes.c_int()
    _check_nvrtc(nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "name its architectures")
    architectures = (ctypes.c_int * count.value)()
    _check_nvrtc(nvrtc.nvrtcGetSupportedArchs(architectures), "name its architectures")
    return list(architectures)


def read_source(name: str, words: Path = SOURCES / "nvidia.cuh") -> str:
    """A kernel file with what it builds on before it, and what it includes in place, for NVRTC is given no files.

    Args:
        name: file in the folder ``kernels``.
        words: file that says what the kernels' macros and intrinsic functions mean on the machine at hand.
    """
    parts = [words, SOURCES / "common.cuh", SOURCES / name]
    return "\n".join(f'#line 1 "{part.name}"\n{_read(part)}' for part in parts)


def _read(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if line.startswith('#include "'):
            name = line.split('"')[1]
            lines[number - 1] = f'#line 1 "{name}"\n{_read(SOURCES / name)}\n#line {number + 1} "{file.name}"'
    return "\n".join(lines)


def _compile(source: str, name: str, options: tuple[str, ...], binary: bool) -> bytes:
    """Machine code (``binary``), or PTX that the driver translates when it loads it."""
    nvrtc, program = _libraries()[0], ctypes.c_void_p()
    _check_nvrtc(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None), "start"
    )
    try:
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), arguments):
            log = _fetch(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
            raise RuntimeError(f"NVRTC could not compile {name}:\n{log}")
        if binary:
            return _fetch(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        return _fetch(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(get_size, get, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check_nvrtc(get_size(program, ctypes.byref(size)), "return what it made")
    buffer = ctypes.create_string_buffer(size.value)
    _check_nvrtc(get(program, buffer), "return what it made")
    return buffer.raw


def _compile_cached(source: str, name: str, options: tuple[str, ...], binary: bool) -> bytes:
    key = hashlib.sha256("\0".join((source, *options, torch.version.cuda)).encode()).hexdigest()
    path = CACHE / f"{Path(name).stem}-{key[:32]}.{'cubin' if binary else 'ptx'}"
    try:
        path = path.expanduser()
        if (kept := load_kept(path)) is not None:
            return kept
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        pass
    logger.info("compiling %s for this GPU, which takes some seconds the first time", name)
    image = _compile(source, name, options, binary)
    try:
        keep(path.expanduser(), image)
    except (OSError, RuntimeError) as error:
        consequence = f"every process compiles the kernels anew, because {CACHE} cannot be written"
        log_once(logger, logging.WARNING, f"{consequence} ({getattr(error, 'strerror', None) or error})")
    return image


class Kernels:
    """The kernels of one file on one device.

    Args:
        image: machine code or PTX, as NVRTC returns them.
    """

    def __init__(self, image: bytes) -> None:
        self._driver = _libraries()[1]
        self._module = ctypes.c_void_p()
        code = _in_context(lambda: self._driver.cuModuleLoadData(ctypes.byref(self._module), image))
        _check_driver(code, "load the kernels")
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._shared_bytes: dict[str, int] = {}  # that a kernel may use

    def _function(self, name: str, shared_bytes: int) -> ctypes.c_void_p:
        if name not in self._functions:
            function = ctypes.c_void_p()
            code = self._driver.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode())
            _check_driver(code, f"find the kernel {name}")
            self._functions[name], self._shared_bytes[name] = function, _DEFAULT_SHARED_SIZE
        function = self._functions[name]
        if shared_bytes > self._shared_bytes[name]:
            code = self._driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_SIZE, shared_bytes)
            _check_driver(code, f"give {shared_bytes} bytes of shared memory to a block")
            self._shared_bytes[name] = shared_bytes
        return function

    def launch(
        self, name: str, grid: tuple[int, int, int], threads: int, shared_bytes: int, params: ctypes.Structure
    ) -> None:
        """Put a kernel on torch's current stream.

        Args:
            name: name of the kernel.
            grid: number of blocks in x, y and z.
            threads: number of threads of a block.
            shared_bytes: dynamic shared memory of a block in bytes.
            params: only parameter of the kernel.

        Raises:
            RuntimeError: the driver refused.
        """
        stream = torch._C._cuda_getCurrentRawStream(torch.cuda.current_device())  # a tenth of current_stream()'s time
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        function = self._function(name, shared_bytes)
        arguments = (*grid, threads, 1, 1, shared_bytes, ctypes.c_void_p(stream), pointers, None)
        code = _in_context(lambda: self._driver.cuLaunchKernel(function, *arguments))
        _check_driver(code, f"launch {name}")


def on_its_device(op: Callable) -> Callable:
    """Kernels are launched on the current device, which need not be that of an operator's tensors."""

    @wraps(op)
    def run(first: Tensor, *others):
        with torch.cuda.device_of(first):
            return op(first, *others)

    return run


@cache
def _load_on_device(name: str, defines: tuple[tuple[str, int], ...], device_index: int) -> Kernels:
    major, minor = torch.cuda.get_device_capability(device_index)
    architecture = 10 * major + minor
    supported = _supported_architectures()
    binary = architecture in supported
    target = f"sm_{architecture}" if binary else f"compute_{max(a for a in supported if a <= architecture)}"
    options = (f"--gpu-architecture={target}", "--std=c++17", *(f"-D{key}={value}" for key, value in defines))
    return Kernels(_compile_cached(read_source(name), name, options, binary))


def load_kernels(name: str, defines: Mapping[str, int]) -> Kernels:
    """Compile a file of kernels for the current device, unless that was done before.

    Args:
        name: file in the folder ``kernels``.
        defines: preprocessor macros.

    Returns:
        its kernels, ready to launch.

    Raises:
        RuntimeError: the source does not compile, or the driver does not take it.
    """
    return _load_on_device(name, tuple(defines.items()), torch.cuda.current_device())
