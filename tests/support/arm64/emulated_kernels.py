"""The CPU kernels for arm64, run by an emulator, behind the bindings that the model's code calls.

A call's memory is copied to the emulator and back: the tensors and structs that its arguments lead
to. Addresses come from `Tensor.data_ptr` and `ctypes.addressof`, which are patched to note whose
they are. So `check(EmulatedKernels(...))` is the start's self-test on an arm64 processor.
"""

import bisect
import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from container.model.kernels import build as build_kernels
from container.model.kernels.cpu import LINE, Kernels

EMULATOR = "qemu-aarch64-static"
COMPILER = "aarch64-linux-gnu-gcc"
DRIVER = Path(__file__).parent / "driver.c"
ARENA = 0x1000000000  # as in driver.c
# Function numbers of driver.c, and which of the arguments are addresses.
FUNCTIONS = {
    "add_norm": 4, "silu_mul": 2, "_argmax": 2, "_exp_totals": 2, "attend": 4, "gemm": 1,
    "decode": 1, "encode": 1,
}  # fmt: skip


def missing_tools() -> list[str]:
    """Return the commands that an emulation needs and this machine lacks."""
    return [tool for tool in (EMULATOR, COMPILER) if shutil.which(tool) is None]


def compile_driver(name: str, folder: Path) -> Path:
    """Compile the kernels for one of build.py's targets into a program for the emulator."""
    program = folder / f"driver-{name}"
    options = [option for option in build_kernels.OPTIONS if option not in ("-fPIC", "-shared")]
    subprocess.run(
        [
            COMPILER, *options, *build_kernels.WARNINGS, "-Werror", "-static", "-pthread",
            *build_kernels.ARM64[name], '-DSOURCE_HASH="emulated"',
            "-I", build_kernels.SOURCE.parent, "-o", program, DRIVER,
        ],
        check=True,
    )  # fmt: skip
    return program


class Addresses:
    """The memory that addresses are of: tensors' storages and ctypes' objects, which stay alive."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._owners: dict[int, tuple[int, Any]] = {}

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Record every object of `data_ptr` and `addressof` from now on."""
        data_ptr, addressof = torch.Tensor.data_ptr, ctypes.addressof

        def of_tensor(tensor: torch.Tensor) -> int:
            storage = tensor.untyped_storage()
            self._note(storage.data_ptr(), storage.nbytes(), storage)
            return data_ptr(tensor)

        def of_struct(value: Any) -> int:
            self._note(addressof(value), ctypes.sizeof(value), value)
            return addressof(value)

        monkeypatch.setattr(torch.Tensor, "data_ptr", of_tensor)
        monkeypatch.setattr(ctypes, "addressof", of_struct)

    def _note(self, start: int, size: int, owner: Any) -> None:
        if start not in self._owners:
            bisect.insort(self._starts, start)
        # An array of structs begins where its first struct does.
        if size >= self._owners.get(start, (0, None))[0]:
            self._owners[start] = size, owner

    def find(self, address: int) -> tuple[int, int, Any]:
        """Return start, size and owner of the memory that an address is in."""
        start = self._starts[bisect.bisect_right(self._starts, address) - 1]
        size, owner = self._owners[start]
        assert start <= address < start + size, f"{address:#x} is of no known tensor or struct"
        return start, size, owner


class EmulatedKernels(Kernels):
    """The kernels of a driver, called in the emulator as the processor `cpu`."""

    def __init__(self, program: Path, cpu: str, addresses: Addresses) -> None:
        command = [EMULATOR, "-cpu", cpu, str(program)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._addresses = addresses
        self.name, self._has_tiles = program.name, False
        facts = struct.unpack("<3q", self._receive(24))
        self._supports_gemm, self._decoder_phases, self._encoder_phases = bool(facts[0]), *facts[1:]
        for number, (name, num_addresses) in enumerate(FUNCTIONS.items()):
            setattr(self, name, self._function(number, num_addresses))

    def close(self) -> None:
        """End the emulator."""
        self._process.kill()
        self._process.communicate()

    def _function(self, number: int, num_addresses: int) -> Callable[..., None]:
        def call(*args: float | None) -> None:
            memory = _Image(self._addresses)
            sent = [
                memory.add(int(arg or 0)) if index < num_addresses else arg
                for index, arg in enumerate(args)
            ]
            self._call(number, sent, memory)

        return call

    def _call(self, number: int, args: list[float | None], memory: "_Image") -> None:
        assert self._process.stdin is not None
        words = [
            struct.pack("<fi", arg, 0) if isinstance(arg, float) else struct.pack("<q", arg)
            for arg in args
        ]
        data = memory.data()
        request = struct.pack("<2q", number, len(data)) + b"".join(words).ljust(64, b"\0")
        self._process.stdin.write(request + data)
        self._process.stdin.flush()
        memory.copy_back(self._receive(len(data)))

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        got = self._process.stdout.read(size)
        assert len(got) == size, f"the emulator ended with {self._process.wait()}"
        return got


class _Image:
    """The memory of one call as the emulator sees it."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._places: dict[int, int] = {}  # where each block lies, by its start
        self._blocks: list[tuple[int, int, Any]] = []
        self._size = 0

    def add(self, address: int) -> int:
        """Place the memory around an address, and return the emulator's address of it."""
        if not address:
            return 0
        start, size, owner = self._addresses.find(address)
        if start not in self._places:
            place = self._size + (start - self._size) % LINE
            self._places[start], self._size = place, place + size
            self._blocks.append((start, size, owner))
            for field in _pointers(type(owner)):
                self.add(ctypes.c_uint64.from_address(start + field).value)
        return ARENA + self._places[start] + address - start

    def data(self) -> bytes:
        """Return the memory, with the emulator's addresses in structs."""
        image = bytearray(self._size)
        for start, size, owner in self._blocks:
            place = self._places[start]
            image[place : place + size] = ctypes.string_at(start, size)
            for field in _pointers(type(owner)):
                value = self.add(ctypes.c_uint64.from_address(start + field).value)
                struct.pack_into("<Q", image, place + field, value)
        return bytes(image)

    def copy_back(self, image: bytes) -> None:
        """Write what the kernels changed; they change no structs."""
        for start, size, owner in self._blocks:
            if isinstance(owner, torch.UntypedStorage):
                place = self._places[start]
                ctypes.memmove(start, image[place : place + size], size)


def _pointers(kind: type) -> Iterator[int]:
    """Yield where a ctypes type has pointers."""
    if kind is ctypes.c_void_p:
        yield 0
    elif issubclass(kind, ctypes.Structure):
        for name, inner in kind._fields_:
            for offset in _pointers(inner):
                yield getattr(kind, name).offset + offset
    elif issubclass(kind, ctypes.Array):
        size = ctypes.sizeof(kind._type_)
        for offset in _pointers(kind._type_):
            yield from range(offset, kind._length_ * size, size)
