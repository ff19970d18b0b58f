# SPDX-License-Identifier: Apache-2.0
"""Messages and descriptors over one connected Unix stream socket.

Owns framing (length, number of descriptors, payload) and nothing of what is said. A frame over its
bound, a descriptor too many or a message that does not decode ends the channel: the peer is then
restarted by whoever watches it. A peer that hears no more may have spoken before it left: that is
still taken. Bounds: 32 MiB a message, 64 MiB waiting to be sent.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice, takewhile

MAX_MESSAGE = 32 * 2**20
MAX_WAITING = 64 * 2**20
MAX_BATCH = 64  # messages in one call
MAX_DESCRIPTORS = 8  # in one received packet
_HEAD = struct.Struct("<IB")


def peer_of(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of who connected a Unix socket, as the kernel noted it then (SO_PEERCRED)."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


class Channel:
    """One end. `received(payload, descriptors)` gets each message; `closed(reason)` is called once.

    Who takes descriptors owns them; those of a message that raises are closed here.
    """

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[bytes, list[int]], None],
        closed: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._received = received
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._in = bytearray()
        self._fds: deque[int] = deque()
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._waiting = 0
        self._writing = False  # the socket was full: the loop says when it is not
        self._soon = False  # on the loop's next turn what was sent in this one leaves, as one
        self._open = True
        self._muted = False
        self._broken = ""  # why nothing can be sent any more
        self._loop.add_reader(sock.fileno(), self._read)

    @property
    def is_open(self) -> bool:
        return self._open

    def peer(self) -> tuple[int, int, int]:
        """(pid, uid, gid) of the peer as the kernel knows them (SO_PEERCRED)."""
        return peer_of(self._sock)

    def send(self, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """Queue one message; it leaves on the loop's next turn, or before `close`. Descriptors are
        duplicated: the caller keeps and closes its own."""
        if not self._open or self._broken:
            return
        if len(payload) > MAX_MESSAGE:
            raise ValueError(f"a message of {len(payload)} bytes; at most {MAX_MESSAGE}")
        if len(descriptors) > MAX_DESCRIPTORS:
            raise ValueError(f"a message with {len(descriptors)} descriptors; at most {MAX_DESCRIPTORS}")
        if self._waiting > MAX_WAITING:
            self.close(f"more than {MAX_WAITING} bytes wait to be sent")
            return
        frame = _HEAD.pack(len(payload), len(descriptors)) + payload
        self._out.append((frame, [os.dup(fd) for fd in descriptors]))
        self._waiting += len(frame)
        if not self._writing and not self._soon:
            self._soon = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._soon and self._open:
            self._write()

    def mute(self) -> None:
        """Send what waits, and take nothing more: what comes is left to whoever is asked next."""
        self._flush()
        if self._open:
            self._muted = True
            self._loop.remove_reader(self._sock.fileno())
            if self._broken:
                self.close()

    def close(self, reason: str = "closed") -> None:
        self._flush()
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock.fileno())
        self._drop_output()
        self._sock.close()
        while self._fds:
            os.close(self._fds.popleft())
        self._closed(self._broken or reason)

    def _break(self, why: str) -> None:
        """Nothing can be said any more, but answers may have come that nobody gives twice: the reader takes
        what is there and then finds the end."""
        self._broken = why
        self._drop_output()
        if self._muted:
            self.close()
            return
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _drop_output(self) -> None:
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
        self._writing = False
        while self._out:
            for fd in self._out.popleft()[1]:
                os.close(fd)

    def _write(self) -> None:
        self._soon = False
        while self._out:
            frames, fds = self._batch()
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self._sock.sendmsg(frames, ancillary)
            except BlockingIOError:
                break
            except OSError as error:
                self._break(f"cannot send: {error.strerror}")
                return
            for fd in fds:
                os.close(fd)
            self._waiting -= sent
            for frame in frames:
                if sent < len(frame):
                    self._out[0] = (frame[sent:], [])
                    break
                sent -= len(frame)
                self._out.popleft()
        if bool(self._out) != self._writing:
            self._writing = bool(self._out)
            if self._writing:
                self._loop.add_writer(self._sock.fileno(), self._write)
            else:
                self._loop.remove_writer(self._sock.fileno())

    def _batch(self) -> tuple[list[bytes], list[int]]:
        """What leaves in one call: a message with its descriptors, or several that have none."""
        frame, fds = self._out[0]
        if fds:
            return [frame], fds
        return [
            frame for frame, _ in takewhile(lambda waiting: not waiting[1], islice(self._out, MAX_BATCH))
        ], []

    def _read(self) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, 262144, MAX_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"cannot receive: {error.strerror}")
            return
        self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:
            self.close("descriptors were lost")
            return
        if not data:
            self.close("the other side went away")
            return
        self._in += data
        self._deliver()
        # The kernel gives descriptors with the first byte of what they came with: more than one message's
        # are descriptors that nobody announced, and would pile up.
        if self._open and len(self._fds) > (MAX_DESCRIPTORS if self._in else 0):
            self.close("descriptors came without a message")

    def _deliver(self) -> None:
        while self._open and len(self._in) >= _HEAD.size:
            length, count = _HEAD.unpack_from(self._in)
            if length > MAX_MESSAGE or count > MAX_DESCRIPTORS:
                self.close(f"a message of {length} bytes with {count} descriptors; at most {MAX_MESSAGE}")
                return
            if len(self._in) < _HEAD.size + length:
                return
            if len(self._fds) < count:
                self.close("a message came without its descriptors")
                return
            payload = bytes(self._in[_HEAD.size : _HEAD.size + length])
            del self._in[: _HEAD.size + length]
            fds = [self._fds.popleft() for _ in range(count)]
            try:
                self._received(payload, fds)
            except Exception as error:
                for fd in fds:
                    with suppress(OSError):
                        os.close(fd)
                self.close(f"{type(error).__name__}: {error}")
                raise
