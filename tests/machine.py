# SPDX-License-Identifier: Apache-2.0
"""What this machine can run: asked of the kernel by doing it, never by its version.

Owns the reasons why a ring is skipped. Bias: when in doubt a ring runs and fails loudly; only a clear no
skips it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from pathlib import Path

_SYS_BPF = {"x86_64": 321, "aarch64": 280}  # asm/unistd_64.h, asm-generic/unistd.h
_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_SK_LOOKUP = 30  # enum bpf_prog_type, linux/bpf.h
_BPF_SK_LOOKUP = 36  # enum bpf_attach_type
_FIRST_PID_NAMESPACE = f"pid:[{0xEFFFFFFC}]"  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_RETURN_PASS = struct.pack("<BBhi", 0xB7, 0, 0, 1) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # r0 = 1; exit


@functools.cache
def why_no_steering() -> str | None:
    """Why the rings that steer real connections cannot run here, in a few words; None if they can."""
    if os.geteuid() != 0:
        return "needs root"
    if os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
        return "needs the host's own process IDs, which the kernel part reports; this is a PID namespace"
    if not any(line.split()[2] == "cgroup2" for line in Path("/proc/mounts").read_text().splitlines()):
        return "needs cgroup v2, which is not mounted"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "needs the kernel's BTF (/sys/kernel/btf/vmlinux)"
    return _why_no_sk_lookup() or _why_no_netns()


def _why_no_sk_lookup() -> str | None:
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        return f"no BPF system call number known for {platform.machine()}"
    code = ctypes.create_string_buffer(_RETURN_PASS)
    licence = ctypes.create_string_buffer(b"GPL")
    # union bpf_attr, BPF_PROG_LOAD: prog_type, insn_cnt, insns, license, log_level, log_size, log_buf,
    # kern_version, prog_flags, prog_name[16], prog_ifindex, expected_attach_type
    attr = struct.pack(
        "<IIQQIIQII16sII",
        _BPF_PROG_TYPE_SK_LOOKUP, 2, ctypes.addressof(code), ctypes.addressof(licence),
        0, 0, 0, 0, 0, b"vwtest_probe", 0, _BPF_SK_LOOKUP,
    )  # fmt: skip
    fd = ctypes.CDLL(None, use_errno=True).syscall(number, _BPF_PROG_LOAD, attr, len(attr))
    if fd < 0:
        return f"the kernel refuses a BPF sk_lookup program ({errno.errorcode[ctypes.get_errno()]})"
    os.close(fd)
    return None


def _why_no_netns() -> str | None:
    child = os.fork()
    if child == 0:
        os._exit(1 if ctypes.CDLL(None).unshare(0x40000000) else 0)  # CLONE_NEWNET
    _, status = os.waitpid(child, 0)
    return None if status == 0 else "may not make a network namespace"
