# SPDX-License-Identifier: Apache-2.0
"""bpf(2) through ctypes: pinned objects, map elements, and the one small program of cookie.py.

Owns the numbers of the system call and its argument layout (linux/bpf.h). Knows no map by name and
keeps no state. Every failure is an ``OSError`` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351, "loongarch64": 280}
_LOOKUP, _UPDATE, _DELETE, _NEXT_KEY = 1, 2, 3, 4
_TAKE = 21
_MAP_CREATE, _PROG_LOAD, _LINK_CREATE = 0, 5, 28
_OBJ_GET, _LINK_NEXT_ID, _LINK_BY_ID, _INFO_BY_FD, _LINK_DETACH = 7, 31, 30, 15, 34
_ATTR_SIZE = 128
_ENOTSUPP = 524  # the kernel's own, which libc has no name for

ANY, NOEXIST, EXIST = 0, 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _number() -> int:
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(38, f"the number of bpf(2) on {machine} is not known")
    return _NUMBERS[machine]


_BPF = _number()


def _bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    block = ctypes.create_string_buffer(attr, _ATTR_SIZE)
    result = _libc.syscall(ctypes.c_long(_BPF), ctypes.c_long(command), block, ctypes.c_ulong(_ATTR_SIZE))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result), block.raw


def object_get(path: Path) -> int:
    """Open a pinned map or link; a descriptor the caller closes (it has CLOEXEC)."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    descriptor, _ = _bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))
    return descriptor


def map_lookup(descriptor: int, key: bytes, size: int) -> bytes | None:
    """The value of ``key`` (``size`` bytes, for per-CPU maps of all CPUs), or None."""
    wanted = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(size)
    try:
        _bpf(_LOOKUP, _element(descriptor, wanted, value))
    except FileNotFoundError:
        return None
    return value.raw


def map_update(descriptor: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Write one element. E2BIG: the map is full (or the index too large); EEXIST with NOEXIST."""
    wanted = ctypes.create_string_buffer(key, len(key))  # named: must live until the call is over
    written = ctypes.create_string_buffer(value, len(value))
    _bpf(_UPDATE, _element(descriptor, wanted, written, flags))


def map_delete(descriptor: int, key: bytes) -> bool:
    """Whether this call was the one that removed it (an array cannot remove: OSError EINVAL)."""
    wanted = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_DELETE, _element(descriptor, wanted, None))
    except FileNotFoundError:
        return False
    return True


def map_keys(descriptor: int, size: int, limit: int = 1 << 20) -> list[bytes]:
    """All keys; entries that come or go meanwhile may be missed or seen twice (then once here)."""
    keys: dict[bytes, None] = {}
    following = ctypes.create_string_buffer(size)
    current: ctypes.Array[ctypes.c_char] | None = None
    for _ in range(limit):
        try:
            _bpf(_NEXT_KEY, _element(descriptor, current, following))
        except FileNotFoundError:
            break
        keys[following.raw] = None
        current = ctypes.create_string_buffer(following.raw, size)
    return list(keys)


class Elements:
    """One map's elements through buffers that are used again: a third of the cost of the functions above.

    For one thread only, and as long as ``descriptor`` is open. Keys and values have their full size.
    """

    def __init__(self, descriptor: int, key_size: int, value_size: int) -> None:
        self._key = ctypes.create_string_buffer(key_size)
        self._value = ctypes.create_string_buffer(value_size)
        self._sizes = key_size, value_size
        self._attr = ctypes.create_string_buffer(_element(descriptor, self._key, self._value), _ATTR_SIZE)
        self._key_alone = ctypes.create_string_buffer(_element(descriptor, self._key, None), _ATTR_SIZE)
        self._call = ctypes.CDLL(None, use_errno=True)["syscall"]
        self._call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong)
        self._call.restype = ctypes.c_long
        self._at = ctypes.addressof(self._attr)
        self._at_key = ctypes.addressof(self._key_alone)  # a deletion that names a value is refused

    def _run(self, command: int, key: bytes) -> bool:
        if len(key) != self._sizes[0]:
            raise ValueError(f"a key of {len(key)} bytes; the map's have {self._sizes[0]}")
        self._key.raw = key
        at = self._at_key if command == _DELETE else self._at
        if self._call(_BPF, command, at, _ATTR_SIZE) >= 0:
            return True
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            return False
        raise OSError(number, os.strerror(number))

    def lookup(self, key: bytes) -> bytes | None:
        return self._value.raw if self._run(_LOOKUP, key) else None

    def take(self, key: bytes) -> bytes | None:
        """Look up and delete as one step (hash maps: Linux 5.14; before, as two)."""
        try:
            return self._value.raw if self._run(_TAKE, key) else None
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP):
                raise
        found = self.lookup(key)
        return found if found is not None and self._run(_DELETE, key) else None

    def update(self, key: bytes, value: bytes) -> None:
        if len(value) != self._sizes[1]:
            raise ValueError(f"a value of {len(value)} bytes; the map's have {self._sizes[1]}")
        self._value.raw = value
        if not self._run(_UPDATE, key):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def map_create(kind: int, key_size: int, value_size: int, entries: int) -> int:
    """A new map's descriptor, which the caller closes."""
    return _bpf(_MAP_CREATE, struct.pack("=IIIII", kind, key_size, value_size, entries, 0))[0]


def prog_load(kind: int, attach_type: int, steps: bytes, license_name: ctypes.Array[ctypes.c_char]) -> int:
    """A program's descriptor, which the caller closes. ``steps``: struct bpf_insn, 8 bytes each."""
    held = ctypes.create_string_buffer(steps, len(steps))
    steps_at, license_at = ctypes.addressof(held), ctypes.addressof(license_name)
    attr = struct.pack("=IIQQIIQII", kind, len(steps) // 8, steps_at, license_at, 0, 0, 0, 0, 0)
    return _bpf(_PROG_LOAD, attr + bytes(20) + struct.pack("=I", attach_type))[0]


def link_create(program: int, target: int, attach_type: int) -> int:
    """Attach a program until the descriptor, which the caller closes, is closed."""
    return _bpf(_LINK_CREATE, struct.pack("=IIII", program, target, attach_type, 0))[0]


def link_detach(descriptor: int) -> None:
    """Detach a cgroup or netns link now, whoever else holds it. OSError EOPNOTSUPP for other kinds."""
    _bpf(_LINK_DETACH, struct.pack("=I", descriptor))


def link_ids() -> list[int]:
    """Ids of all links of the system. Needs CAP_SYS_ADMIN."""
    ids: list[int] = []
    last = 0
    while True:
        try:
            _, answer = _bpf(_LINK_NEXT_ID, struct.pack("=III", last, 0, 0))
        except FileNotFoundError:
            return ids
        last = struct.unpack_from("=I", answer, 4)[0]
        ids.append(last)


def link_open(number: int) -> int:
    """A descriptor of the link with this id. Needs CAP_SYS_ADMIN."""
    descriptor, _ = _bpf(_LINK_BY_ID, struct.pack("=III", number, 0, 0))
    return descriptor


def link_info(descriptor: int) -> bytes:
    """struct bpf_link_info: type, id, prog_id, padding, then what the type holds."""
    info = ctypes.create_string_buffer(128)
    _bpf(_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    return info.raw


def map_size(descriptor: int) -> int:
    """max_entries of a map (for a ring buffer: its bytes)."""
    info = ctypes.create_string_buffer(80)
    _bpf(_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    return int(struct.unpack_from("=I", info.raw, 16)[0])


def _element(
    descriptor: int,
    key: ctypes.Array[ctypes.c_char] | None,
    value: ctypes.Array[ctypes.c_char] | None,
    flags: int = 0,
) -> bytes:
    return struct.pack("=IIQQQ", descriptor, 0, ctypes.addressof(key) if key is not None else 0,
                       ctypes.addressof(value) if value is not None else 0, flags)  # fmt: skip
