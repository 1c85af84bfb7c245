# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Compiling at run time: the cache, what is compiled for which GPU, and what is said when something fails.

NVRTC and the driver are stand-ins here, but for the last test, which compiles every kernel with NVRTC itself where the
wheel ``nvidia-cuda-nvrtc`` is (torch for CUDA brings it; no GPU is needed).
"""

from __future__ import annotations

import ctypes
import logging
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from swinumamba_monai.ops.cuda import nvrtc, scan_one
from swinumamba_monai.ops.cuda.device import ELEMENTS
from swinumamba_monai.ops.cuda.fused import ROWS, RUN
from swinumamba_monai.ops.cuda.instance_norm import make_macros as make_instance_macros
from swinumamba_monai.ops.cuda.scan_layout import TUNING, make_layout


def write(reference, value) -> None:
    """What a C function does to a pointer that it got by ``byref``."""
    reference._obj.value = value


class FakeNvrtc:
    """Compiles a source to a text that says how."""

    def __init__(self, architectures=(80, 90, 100), log=b"") -> None:
        self.architectures, self.log = architectures, log
        self.compiled: list[list[str]] = []  # options
        self.destroyed = 0
        self.nvrtcGetErrorString = lambda code: b"NVRTC_ERROR_OUT_OF_MEMORY"

    def nvrtcGetNumSupportedArchs(self, count):
        write(count, len(self.architectures))
        return 0

    def nvrtcGetSupportedArchs(self, array):
        array[:] = self.architectures
        return 0

    def nvrtcCreateProgram(self, program, source, name, *headers):
        write(program, 1)
        return 0

    def nvrtcCompileProgram(self, program, count, options):
        self.compiled.append([option.decode() for option in options])
        return 6 if self.log else 0

    def nvrtcDestroyProgram(self, program):
        self.destroyed += 1
        return 0

    def _result(self, text):
        def get_size(program, size):
            write(size, len(text))
            return 0

        def get(program, buffer):
            buffer.raw = text
            return 0

        return get_size, get

    def __getattr__(self, name):
        texts = {"CUBIN": b"machine code", "PTX": b"portable code\0", "ProgramLog": self.log}
        kind = name.removeprefix("nvrtcGet").removesuffix("Size")
        return self._result(texts[kind])[0 if name.endswith("Size") else 1]


class FakeDriver:
    """Takes everything, unless ``code`` says otherwise."""

    def __init__(self, code=0) -> None:
        self.code = code
        self.images: list[bytes] = []
        self.attributes: list[tuple[int, int]] = []
        self.launches: list[tuple] = []

    def cuModuleLoadData(self, module, image):
        self.images.append(image)
        return self.code

    def cuModuleGetFunction(self, function, module, name):
        write(function, len(name))
        return 0

    def cuFuncSetAttribute(self, function, attribute, value):
        self.attributes.append((attribute, value))
        return 0

    def cuLaunchKernel(self, function, *arguments):
        self.launches.append(arguments)
        return self.code

    def cuGetErrorString(self, code, message):
        write(message, b"out of memory")
        return 0


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """An H100 with stand-ins for both libraries, and an empty cache."""
    fakes = SimpleNamespace(nvrtc=FakeNvrtc(), driver=FakeDriver(), capability=(9, 0), cache=tmp_path / "cache")
    monkeypatch.setattr(nvrtc, "_libraries", lambda: (fakes.nvrtc, fakes.driver))
    monkeypatch.setattr(nvrtc, "CACHE", fakes.cache)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: fakes.capability)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 77, raising=False)
    nvrtc._load_on_device.cache_clear()
    nvrtc.log_once.cache_clear()
    yield fakes
    nvrtc._load_on_device.cache_clear()


def in_a_new_process(name="merge.cu", **defines):
    nvrtc._load_on_device.cache_clear()
    return nvrtc.load_kernels(name, {"ELEMENT": 0, "VECTOR": 4, **defines})


class TestTarget:
    def test_machine_code_for_an_architecture_that_nvrtc_knows(self, machine):
        in_a_new_process()
        assert machine.nvrtc.compiled == [["--gpu-architecture=sm_90", "--std=c++17", "-DELEMENT=0", "-DVECTOR=4"]]
        assert machine.driver.images == [b"machine code"]
        assert [path.suffix for path in machine.cache.iterdir()] == [".cubin"]

    @pytest.mark.parametrize("capability, target", [((12, 1), "compute_100"), ((8, 9), "compute_80")])
    def test_ptx_of_the_newest_older_one_where_it_does_not(self, machine, capability, target):
        machine.capability = capability
        in_a_new_process()
        assert machine.nvrtc.compiled[0][0] == f"--gpu-architecture={target}"
        assert machine.driver.images == [b"portable code\0"]  # the driver reads PTX up to its zero
        assert [path.suffix for path in machine.cache.iterdir()] == [".ptx"]


class TestCache:
    def test_once_in_a_process(self, machine):
        assert in_a_new_process() is nvrtc.load_kernels("merge.cu", {"ELEMENT": 0, "VECTOR": 4})
        assert len(machine.driver.images) == 1

    def test_the_next_process_compiles_nothing(self, machine, caplog):
        with caplog.at_level(logging.INFO, nvrtc.__name__):
            in_a_new_process()
            in_a_new_process()
        assert len(machine.nvrtc.compiled) == 1
        assert machine.driver.images == [b"machine code"] * 2
        assert [r.getMessage() for r in caplog.records] == [
            "compiling merge.cu for this GPU, which takes some seconds the first time"
        ]

    def test_every_difference_is_compiled(self, machine, monkeypatch):
        in_a_new_process()
        in_a_new_process(VECTOR=1)
        in_a_new_process(name="pack.cu")
        machine.capability = (8, 0)
        in_a_new_process()
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        in_a_new_process()
        assert len(machine.nvrtc.compiled) == len(list(machine.cache.iterdir())) == 5

    def test_files_are_written_whole(self, machine, monkeypatch):
        """A write that breaks off leaves no file that a later process would load."""

        def break_off(path, data):
            path.open("wb").write(data[:3])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as context:
            context.setattr(Path, "write_bytes", break_off)
            in_a_new_process()
        assert machine.driver.images == [b"machine code"]
        assert not list(machine.cache.iterdir())

    @pytest.mark.parametrize("content", [b"", b"machine", b"\x7fELF" * 99, b"machine code"])
    def test_what_is_damaged_or_planted_is_compiled_again(self, machine, caplog, content):
        in_a_new_process()
        (path,) = machine.cache.iterdir()
        path.write_bytes(content)
        in_a_new_process()
        in_a_new_process()
        assert len(machine.nvrtc.compiled) == 2 and machine.driver.images == [b"machine code"] * 3
        warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert warnings == [f"{path} is damaged: it is not used, and made again"]

    def test_a_folder_of_another_user_is_not_used(self, machine, monkeypatch, caplog):
        in_a_new_process()
        monkeypatch.setattr("swinumamba_monai.owned.os.geteuid", lambda: 12345)
        in_a_new_process()
        assert len(machine.nvrtc.compiled) == 2
        (message,) = (record.message for record in caplog.records if record.levelname == "WARNING")
        assert message.endswith(f"{machine.cache} cannot be written (it belongs to another user)")

    def test_a_folder_that_cannot_be_written_is_said_once(self, machine, monkeypatch, caplog):
        machine.cache.write_text("a file where the folder should be")
        for name in ("merge.cu", "pack.cu", "merge.cu"):
            in_a_new_process(name)
        assert len(machine.nvrtc.compiled) == len(machine.driver.images) == 3
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        start = f"every process compiles the kernels anew, because {machine.cache} cannot be written ("
        assert warning.startswith(start)

    def test_a_user_without_a_home(self, machine, monkeypatch, caplog):
        def no_home(path):
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "expanduser", no_home)
        in_a_new_process()
        assert machine.driver.images == [b"machine code"]
        assert "Could not determine home directory" in caplog.text


class TestErrors:
    def test_a_source_that_does_not_compile(self, machine):
        machine.nvrtc.log = b'merge.cu(3): error: identifier "x" is undefined'
        with pytest.raises(RuntimeError) as error:
            in_a_new_process()
        assert str(error.value) == f"NVRTC could not compile merge.cu:\n{machine.nvrtc.log.decode()}"
        assert machine.nvrtc.destroyed == 1
        assert not machine.cache.exists()

    def test_nvrtc_fails_otherwise(self, machine):
        machine.nvrtc.nvrtcCreateProgram = lambda *arguments: 1
        with pytest.raises(RuntimeError, match=r"^NVRTC could not start: NVRTC_ERROR_OUT_OF_MEMORY\.$"):
            in_a_new_process()

    def test_the_driver_does_not_load(self, machine):
        machine.driver.code = 2
        with pytest.raises(RuntimeError, match=r"^the CUDA driver could not load the kernels: out of memory\.$"):
            in_a_new_process()

    def test_the_driver_does_not_launch(self, machine):
        kernels = in_a_new_process()
        machine.driver.code = 2
        with pytest.raises(RuntimeError, match=r"^the CUDA driver could not launch merge: out of memory\.$"):
            kernels.launch("merge", (1, 1, 1), 32, 0, ctypes.c_int())


class TestLaunch:
    def test_arguments(self, machine):
        in_a_new_process().launch("merge", (2, 3, 4), 128, 16, parameter := ctypes.c_int(5))
        ((*numbers, stream, pointers, extra),) = machine.driver.launches
        assert numbers == [2, 3, 4, 128, 1, 1, 16] and stream.value == 77 and extra is None
        assert pointers[0] == ctypes.addressof(parameter)

    def test_more_shared_memory_is_asked_for_when_needed(self, machine):
        kernels = in_a_new_process()
        for shared in (48 << 10, 50 << 10, 49 << 10, 60 << 10):
            kernels.launch("merge", (1, 1, 1), 32, shared, ctypes.c_int())
        assert machine.driver.attributes == [(8, 50 << 10), (8, 60 << 10)]


def test_kernels_run_on_the_device_of_their_tensors(monkeypatch):
    entered = []

    class DeviceOf:
        def __init__(self, tensor):
            self.tensor = tensor

        def __enter__(self):
            entered.append(self.tensor)

        def __exit__(self, *error):
            entered.append(None)

    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    x, y = torch.ones(2), torch.ones(3)
    assert nvrtc.on_its_device(lambda first, second: len(entered))(x, y) == 1
    assert entered[0] is x and entered[1] is None


@pytest.fixture(scope="module")
def real_nvrtc():
    """The library of the wheel, loaded without a driver."""
    libraries = []
    for package in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
        try:
            spec = find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in spec.submodule_search_locations if spec else ():
            libraries += Path(folder).glob("lib/libnvrtc.so.*")
    for path in libraries:
        builtins = sorted(path.parent.glob("libnvrtc-builtins.so.*"))  # found by name, so loaded first
        for library in builtins:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(path))
    pytest.skip("the wheel nvidia-cuda-nvrtc is not installed")


FILES = [
    ("merge.cu", {}),
    ("pack.cu", {}),
    *(("conv.cu", {"RUN": RUN, "ROWS": rows}) for rows in ROWS),
    ("row_sums.cu", {}),
    *(("instance_norm.cu", make_instance_macros(two)) for two in (False, True)),
    *(("norm.cu", {"LANES": lanes, "ITEMS": items}) for lanes, items in ((8, 3), (32, 12))),
    ("scan_one.cu", scan_one.make_macros(2, 6400, 132, True)),
    ("scan_one.cu", scan_one.make_macros(1000, 100, 132, False)),
]
SCANS = [
    (192, 16, 4, True),
    (36, 13, 1, False),
    (192, 8, 4, True),
    (17, 4, 4, True),
    (96, 2, 1, True),
]


SHARED_KIB = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227}


@pytest.mark.parametrize("architecture", SHARED_KIB)
@pytest.mark.parametrize("vector", [1, 4])
@pytest.mark.parametrize("element", ELEMENTS.values(), ids=map(str, ELEMENTS))
def test_nvrtc_compiles_every_kernel(monkeypatch, real_nvrtc, element, vector, architecture):
    monkeypatch.setattr(nvrtc, "_libraries", lambda: (real_nvrtc, None))
    dtype = next(dtype for dtype, number in ELEMENTS.items() if number == element)
    scans = [
        make_layout(*scan[:2], dtype, vector, *scan[2:], SHARED_KIB[architecture], TUNING).macros for scan in SCANS
    ]
    for name, defines in [*FILES, *(("scan.cu", macros) for macros in scans)]:
        macros = {"ELEMENT": element, "VECTOR": vector, **defines}
        options = (f"--gpu-architecture={architecture}", "--std=c++17", *(f"-D{k}={v}" for k, v in macros.items()))
        image = nvrtc._compile(nvrtc.read_source(name), name, options, binary=True)
        assert image.startswith(b"\x7fELF") and all(kernel in image for kernel in KERNELS[name])


KERNELS = {
    "scan_one.cu": [b"scan_forward", b"scan_backward"],
    "scan.cu": [b"scan_forward", b"scan_end_states", b"scan_chain_gradients", b"scan_backward"],
    "merge.cu": [b"merge"],
    "pack.cu": [b"pack", b"unpack"],
    "row_sums.cu": [b"sum_rows"],
    "conv.cu": [b"conv_silu", b"conv_transposed", b"conv_silu_backward"],
    "instance_norm.cu": [b"instance_statistics", b"instance_norm", b"instance_sums", b"instance_backward"],
    "norm.cu": [b"layer_norm", b"layer_norm_gate_backward"],
}
