# SPDX-License-Identifier: Apache-2.0
"""Reads the kernel's ring buffer of connections that went around the proxy.

Owns the mapped memory of one BPF_MAP_TYPE_RINGBUF: one consumer, no thread, no loop. ``fileno()`` can be
polled for reading. Events are for evidence and alarms; no decision waits for them, and what did not fit
is counted by the kernel (``event_lost``).
"""

from __future__ import annotations

import mmap
import struct

from agent.kernel.records import EVENT, Event
from agent.kernel.syscalls import map_size

_BUSY, _DISCARD, _HEADER = 1 << 31, 1 << 30, 8


class EventReader:
    def __init__(self, descriptor: int) -> None:
        """``descriptor`` of the map; not closed here."""
        self._descriptor = descriptor
        self._size = map_size(descriptor)
        self._consumer = mmap.mmap(
            descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._data = mmap.mmap(
            descriptor, mmap.PAGESIZE + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE
        )

    def fileno(self) -> int:
        return self._descriptor

    def read(self, limit: int = 1024) -> list[Event]:
        """What has been written since the last call, oldest first, at most ``limit``."""
        events: list[Event] = []
        position = struct.unpack_from("=Q", self._consumer)[0]
        while len(events) < limit and position < struct.unpack_from("=Q", self._data)[0]:
            start = mmap.PAGESIZE + position % self._size
            length = struct.unpack_from("=I", self._data, start)[0]
            if length & _BUSY:
                break  # reserved, not yet written
            body = length & ~_DISCARD
            if not length & _DISCARD and body >= EVENT.size:
                events.append(Event.unpack(self._data[start + _HEADER : start + _HEADER + EVENT.size]))
            position += (body + _HEADER + 7) // 8 * 8
            struct.pack_into("=Q", self._consumer, 0, position)
        return events

    def close(self) -> None:
        self._consumer.close()
        self._data.close()
