# SPDX-License-Identifier: Apache-2.0
"""Map elements on kernels that do in two steps what later ones do in one."""

from __future__ import annotations

import os

import pytest

from agent.kernel import syscalls

_HASH = 1  # BPF_MAP_TYPE_HASH
_NO_COMMAND = 0x7FFF  # EINVAL, as looking up and deleting at once is on Linux 5.10


@pytest.mark.parametrize("known", [True, False], ids=["one-step", "two-steps"])
def test_an_element_is_taken_once_whatever_the_kernel_can(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if not known:
        monkeypatch.setattr(syscalls, "_TAKE", _NO_COMMAND)
    descriptor = syscalls.map_create(_HASH, 4, 8, 4)
    try:
        elements = syscalls.Elements(descriptor, 4, 8)
        elements.update(b"key.", b"a value.")
        elements.update(b"more", b"another.")
        assert elements.take(b"key.") == b"a value."
        assert elements.take(b"key.") is None
        assert elements.lookup(b"more") == b"another."
    finally:
        os.close(descriptor)
