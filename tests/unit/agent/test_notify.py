# SPDX-License-Identifier: Apache-2.0
"""What is said to systemd and got from it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from agent import notify
from agent.notify import DescriptorStore, Notifier, received_descriptors, status_text, watchdog_seconds


class _Heard(Notifier):
    def __init__(self) -> None:
        super().__init__("")
        self.said: list[tuple[str, int | None]] = []

    def say(self, text: str, descriptor: int | None = None) -> bool:
        self.said.append((text, descriptor))
        return True


def test_without_systemd_nothing_is_said_and_nothing_fails() -> None:
    assert not Notifier("").say("READY=1")
    assert not Notifier("/nowhere/notify").say("READY=1")


def test_a_message_arrives_with_its_descriptor(tmp_path: Path) -> None:
    address = os.fspath(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, socket.socket() as kept:
        listener.bind(address)
        assert Notifier(address).say("FDSTORE=1", kept.fileno())
        text, descriptors, _, _ = socket.recv_fds(listener, 100, 4)
        assert text == b"FDSTORE=1"
        assert os.fstat(descriptors[0]).st_ino == os.fstat(kept.fileno()).st_ino
        os.close(descriptors[0])


def test_a_status_is_one_bounded_line() -> None:
    assert status_text("a\nREADY=1\tb") == "a READY=1 b"
    assert len(status_text("x" * 10_000)) == notify.MAX_STATUS


def test_what_was_kept_is_taken_once_and_the_rest_is_let_go() -> None:
    heard = _Heard()
    taken, left = socket.socket(), socket.socket()
    store = DescriptorStore(heard, {"reserve-a": taken.detach(), "reserve-gone": left.detach()})
    first = store.take("reserve-a")
    assert first is not None
    assert not first.getblocking()
    first.close()
    assert store.take("reserve-a") is None
    store.drop_rest()
    assert heard.said == [("FDSTOREREMOVE=1\nFDNAME=reserve-gone", None)]


def test_what_is_no_socket_is_not_taken() -> None:
    read, write = os.pipe()
    os.close(write)
    assert DescriptorStore(_Heard(), {"reserve-a": read}).take("reserve-a") is None


def test_keeping_and_dropping_name_the_guard() -> None:
    heard = _Heard()
    store = DescriptorStore(heard, {})
    store.keep("reserve-a", 7)
    store.drop("reserve-a")
    assert heard.said == [
        ("FDSTORE=1\nFDNAME=reserve-a\nFDPOLL=0", 7),
        ("FDSTOREREMOVE=1\nFDNAME=reserve-a", None),
    ]


def test_descriptors_for_another_process_are_left_alone() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "reserve-a"}
    assert received_descriptors(environ, os.getpid()) == {}
    assert environ == {}


def test_descriptors_come_by_name() -> None:
    one, two = socket.socket(), socket.socket()
    start = 900
    os.dup2(one.fileno(), start)
    os.dup2(two.fileno(), start + 1)
    one.close()
    two.close()
    before = notify.LISTEN_FDS_START
    notify.LISTEN_FDS_START = start
    try:
        environ = {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "reserve-a:reserve-a"}
        found = received_descriptors(environ, os.getpid())
    finally:
        notify.LISTEN_FDS_START = before
    assert found == {"reserve-a": start}
    assert not os.get_inheritable(start)
    os.close(start)


def test_the_watchdog_is_told_three_times_within_its_time() -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "5"}, 5) == 10.0
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "6"}, 5) is None
    assert watchdog_seconds({}, 5) is None
