# SPDX-License-Identifier: Apache-2.0
"""The part of libbpf.so.1 that `steer` needs, through ctypes.

Owns the C signatures and the log callback. Works from libbpf 1.0 on; a missing library or symbol is a
``SteeringError``. Only the short-lived root process imports this: the agent never does.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os

from agent.kernel.errors import SteeringError

_P, _I, _S = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_PRINT = ctypes.CFUNCTYPE(_I, _I, _S, _P)
_callbacks: list[object] = []

_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "bpf_object__open_file": (_P, (_S, _P)),
    "bpf_object__load": (_I, (_P,)),
    "bpf_object__close": (None, (_P,)),
    "bpf_object__next_program": (_P, (_P, _P)),
    "bpf_object__next_map": (_P, (_P, _P)),
    "bpf_program__name": (_S, (_P,)),
    "bpf_program__set_autoload": (_I, (_P, ctypes.c_bool)),
    "bpf_program__attach": (_P, (_P,)),
    "bpf_program__attach_cgroup": (_P, (_P, _I)),
    "bpf_program__attach_netns": (_P, (_P, _I)),
    "bpf_map__name": (_S, (_P,)),
    "bpf_map__is_internal": (ctypes.c_bool, (_P,)),
    "bpf_map__set_pin_path": (_I, (_P, _S)),
    "bpf_map__initial_value": (_P, (_P, ctypes.POINTER(ctypes.c_size_t))),
    "bpf_link__pin": (_I, (_P, _S)),
    "bpf_link__destroy": (_I, (_P,)),
    "libbpf_set_print": (_P, (_P,)),
}


class Library:
    """The loaded library; ``log`` collects what it says (the verifier's last words among it)."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libbpf.so.1", use_errno=True)
        except OSError as error:
            raise SteeringError("libbpf.so.1 cannot be loaded", "install the package libbpf1") from error
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise SteeringError(f"libbpf has no {name}", "libbpf 1.0 or newer is needed") from error
            function.restype, function.argtypes = result, arguments
        self.log: list[str] = []
        self._libc = ctypes.CDLL(None)
        self._callback = _PRINT(self._print)
        _callbacks.append(self._callback)  # for ever: the library holds only a pointer to it
        self._library.libbpf_set_print(ctypes.cast(self._callback, _P))

    def _print(self, level: int, form: bytes, arguments: int) -> int:
        if level < 2:  # not the debug level
            line = ctypes.create_string_buffer(16384)
            self._libc.vsnprintf(line, ctypes.c_size_t(len(line)), form, _P(arguments))
            self.log.append(line.value.decode("utf-8", "replace").strip())
        return 0

    def call(self, name: str, *arguments: object) -> int:
        """An int function: raises OSError for a negative errno."""
        result = int(getattr(self._library, name)(*arguments))
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def pointer(self, name: str, *arguments: object) -> int:
        """A pointer function: raises OSError with errno for NULL."""
        ctypes.set_errno(0)
        result = getattr(self._library, name)(*arguments)
        if not result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(result)

    def children(self, following: str, parent: int) -> list[int]:
        """All programs or maps of an object."""
        found: list[int] = []
        last: int | None = None
        while True:
            last = getattr(self._library, following)(parent, last)
            if not last:
                return found
            found.append(last)

    def name(self, function: str, thing: int) -> str:
        return bytes(getattr(self._library, function)(thing)).decode()

    def is_internal(self, bpf_map: int) -> bool:
        return bool(self._library.bpf_map__is_internal(bpf_map))

    def close(self, bpf_object: int) -> None:
        self._library.bpf_object__close(bpf_object)

    def drop_link(self, link: int) -> None:
        self._library.bpf_link__destroy(link)

    def write_rodata(self, bpf_map: int, value: bytes) -> None:
        """Replace the start of a read-only data section before load."""
        size = ctypes.c_size_t()
        start = self.pointer("bpf_map__initial_value", bpf_map, ctypes.byref(size))
        if len(value) > size.value:
            raise SteeringError("the object's read-only data is not what this version writes", "rebuild it")
        ctypes.memmove(start, value, len(value))
