# SPDX-License-Identifier: Apache-2.0
"""What a service says to systemd and gets from it: states, the watchdog, and descriptors that outlive it.

Owns the datagrams of sd_notify(3) and the environment of sd_listen_fds(3); nothing of what they stand for.
Bias: without systemd every call does nothing, and a line that cannot be said is not worth an error.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

LISTEN_FDS_START = 3
MAX_STATUS = 512  # characters of a STATUS= line: it is shown on one line


class Notifier:
    """Says things to the service manager. ``address``: $NOTIFY_SOCKET, "" where nobody listens."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def say(self, text: str, descriptor: int | None = None) -> bool:
        """One message of KEY=VALUE lines, with a descriptor or none. False where it was not taken."""
        if not self._address:
            return False
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.connect(self._address)
            if descriptor is None:
                sock.send(text.encode())
            else:
                socket.send_fds(sock, [text.encode()], [descriptor])
            return True
        return False

    def status(self, line: str) -> bool:
        """What `systemctl status` shows: one line."""
        return self.say("STATUS=" + status_text(line))


def status_text(line: str) -> str:
    """On one line, and short enough for one."""
    return " ".join(line.split())[:MAX_STATUS]


class DescriptorStore:
    """Listening sockets that systemd holds while this service is not there (FileDescriptorStoreMax=)."""

    def __init__(self, notifier: Notifier, held: dict[str, int]) -> None:
        self._notifier = notifier
        self._held = held

    def take(self, name: str) -> socket.socket | None:
        """What the service before kept under that name; asked for once."""
        descriptor = self._held.pop(name, None)
        if descriptor is None:
            return None
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:  # no socket: whoever put it there, it is none of ours
            with suppress(OSError):
                os.close(descriptor)
            return None
        sock.setblocking(False)
        return sock

    def keep(self, name: str, descriptor: int) -> None:
        self._notifier.say(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)

    def drop(self, name: str) -> None:
        self._notifier.say(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def drop_rest(self) -> None:
        """What nobody took: a guard that is in no configuration any more."""
        for name in list(self._held):
            with suppress(OSError):
                os.close(self._held.pop(name))
            self.drop(name)


def received_descriptors(environ: MutableMapping[str, str], pid: int) -> dict[str, int]:
    """Descriptors that systemd passed to this process, by name; takes the variables away.

    A name that came twice keeps its first descriptor; others are closed.
    """
    count, whose = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, int] = {}
    if not count.isdigit() or whose != str(pid):
        return found
    for number in range(int(count)):
        descriptor = LISTEN_FDS_START + number
        name = names[number] if number < len(names) else ""
        with suppress(OSError):
            os.set_inheritable(descriptor, False)
            if not name or name in found:
                os.close(descriptor)
            else:
                found[name] = descriptor
    return found


def watchdog_seconds(environ: MutableMapping[str, str], pid: int) -> float | None:
    """How often to say WATCHDOG=1: a third of what systemd waits for it. None: it does not wait."""
    usec, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(pid))
    if not usec.isdigit() or whose != str(pid) or int(usec) == 0:
        return None
    return int(usec) / 3e6
