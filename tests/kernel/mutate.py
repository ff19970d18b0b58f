# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - the table quotes lines of C
"""Takes the rules of the kernel part out one by one and looks whether a test notices.

Run by hand (``python -m tests.kernel.mutate``) after a change of bpf/ or of these tests: every line must say
``noticed``. Builds changed copies of bpf/ in a temporary directory; the tests load them by VECWARD_TEST_OBJECT.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.arena import ROOT


@dataclass(frozen=True)
class Rule:
    name: str
    file: str
    old: str
    new: str
    tests: str  # pytest -k


RULES = (
    Rule("own port is closed", "steer.bpf.c", "return counted(STAT_LOOKUP_OWN_PORT, SK_DROP)",
         "count(STAT_LOOKUP_OWN_PORT)", "own_port"),
    Rule("ticket passes", "steer.bpf.c", "if (bpf_map_lookup_elem(&tickets, &flow))", "if (0)", "with_a_ticket"),
    Rule("ticket is single use", "track.h", "if (!bpf_map_delete_elem(&tickets, &flow)) {",
         "if (bpf_map_lookup_elem(&tickets, &flow)) {", "stale_ticket"),
    Rule("ticket ends with its socket", "track.h", "!bpf_map_delete_elem(&tickets, &kept->flow)", "0", "never_used"),
    Rule("ticket only for exempt cgroups", "steer.bpf.c", "proxy = bpf_map_lookup_elem(&exempt, &cgroup) != 0",
         "proxy = true", "calling_cgroup"),
    Rule("loop guard", "steer.bpf.c", "if (who && who->flags & IDENTITY_PROXY)", "if (0)", "steered_to_itself"),
    Rule("stopped database is refused", "steer.bpf.c", "if (!is_up(", "if (0 && !is_up(", "stopped_database_is"),
    Rule("loopback only stays loopback only", "steer.bpf.c", "if (!is_up(", "if (0 && !is_up(", "loopback_only"),
    Rule("v6only", "steer.bpf.c", "!(v4 && known->v6only)", "true", "v6only"),
    Rule("close of a listener is seen", "track.h", "if (closing && known &&", "if (0 && known &&", "stopped_database_is"),
    Rule("one lane a listener", "track.h", "known && known->cookie == value.cookie", "known", "two_listeners"),
    Rule("next slot when one is empty", "steer.bpf.c", "base + (first + i) % workers", "base + first",
         "dead_workers_clients"),
    Rule("reserve", "steer.bpf.c", "if (give(ctx, &reserve, guard->index))", "if (0)", "reserve_takes_over"),
    Rule("reserve only when all are dead", "steer.bpf.c", "workers = guard->workers;", "workers = 0;",
         "reserve_takes_over"),
    Rule("enforce fails closed", "steer.bpf.c", "return counted(STAT_LOOKUP_REFUSED, SK_DROP)",
         "return counted(STAT_LOOKUP_REFUSED, SK_PASS)", "reserve_takes_over or occupied_slot"),
    Rule("observe passes", "steer.bpf.c", "return pass(&flow, EVENT_UNOBSERVED, STAT_LOOKUP_UNOBSERVED)",
         "return SK_DROP", "observe_passes"),
    Rule("observe is not a bypass", "track.h", "if (why)", "if (0)", "observe_passes"),
    Rule("off", "steer.bpf.c", "if (guard->flags & GUARD_OFF)\n\t\treturn pass", "if (0)\n\t\treturn pass",
         "off_passes"),
    Rule("remote passes in observe", "steer.bpf.c", "guard->flags & GUARD_REMOTE_PASS &&", "0 &&", "remote_callers"),
    Rule("remote is judged in enforce", "steer.bpf.c", "guard->flags & GUARD_REMOTE_PASS &&", "", "remote_callers"),
    Rule("containers are not remote", "steer.bpf.c", "return !bpf_map_lookup_elem(&elsewhere, &anywhere);",
         "return true;", "container_of_this_host"),
    Rule("local addresses are not remote", "steer.bpf.c", "if (bpf_map_lookup_elem(&local_addresses, &place))",
         "if (0)", "local_address_without"),
    Rule("bypass is reported", "track.h", "kind = EVENT_BYPASS, *why", "kind = EVENT_OFF, *why", "unticketed"),
    Rule("mark tells steered", "track.h", "if (bpf_sk_storage_get(&marks, sk, 0, 0)) {", "if (0) {",
         "every_form"),
    Rule("marks are inherited", "maps.h", "SOCKET_STORAGE(marks, __u32, BPF_F_CLONE)", "SOCKET_STORAGE(marks, __u32, 0)",
         "every_form"),
    Rule("UDP", "steer.bpf.c", "return counted(STAT_LOOKUP_NOT_TCP, SK_DROP)", "return SK_PASS", "udp"),
    Rule("addresses of a guard", "track.h", "__builtin_memcpy(key.addr, addr, sizeof(key.addr));\n\tguard",
         "__builtin_memset(key.addr, 0, sizeof(key.addr));\n\tguard", "share_a_port"),
    Rule("namespace in the key", "track.h", "kept->flow.netns = kept->who.netns;", "kept->flow.netns = 0;",
         "own_namespace or every_form"),
    Rule("cap of one user", "who.h", "return in_flight(uid) >= (__s32)limits->per_user;", "return false;", "his_share"),
    Rule("cap of all", "who.h", "|| in_flight(BUCKET_TOTAL) >= (__s32)limits->total", "", "limit_of_all"),
    Rule("taken frees", "who.h", "- (user ? *user : 0)", "", "taking_an_identity or his_share"),
    Rule("close frees", "track.h", "discharge(kept->who.bucket);\n\t\tcount(STAT_IDENTITY_CLOSED)",
         "count(STAT_IDENTITY_CLOSED)", "ends_with_its_socket"),
    Rule("established identities stay", "track.h", "if (!refused && !(kept", "if (0 && !(kept", "outlives_its_client"),
    Rule("a name is bound to one connection", "track.h", "who->accepted = bpf_get_socket_cookie(ctx);", ";",
         "only_to_its_own_connection"),
    Rule("no older name", "track.h", "forget(ctx, &ends);", "", "does_not_get_an_older"),
    Rule("a passed connection's record goes with its event", "track.h", "hand_over(event, flow);", "",
         "observe_passes"),
    Rule("a lost record is uncharged", "track.h", "discharge(kept->who.bucket);\n\t\tcount(STAT_IDENTITY_LOST)",
         "count(STAT_IDENTITY_LOST)", "full_table"),
    Rule("EPERM without memory", "steer.bpf.c", "if (!kept)\n\t\treturn refuse_unless_observed(*flags, STAT_CONNECT_REFUSED_MEMORY);",
         "if (!kept)\n\t\treturn ALLOW;", "cannot_hold"),
    Rule("observe lets through", "steer.bpf.c", "if (flags & GUARD_ENFORCE)\n", "if (1)\n", "over_the_limit"),
    Rule("group leader, not thread", "who.h", "who->start = start_of(leader)", "who->start = start_of(task)",
         "own_namespace or thread"),
    Rule("ctime without the queried bit", "who.h", " & 0x7fffffff", "", "one_in_every_form"),
    Rule("processes outlive", "steer.bpf.c", "keep_process(&key, kept);\n\treturn 0;\n}\n\nSEC(\"tp_btf/sched_process_fork",
         "return 0;\n}\n\nSEC(\"tp_btf/sched_process_fork", "gone_before_accept"),
    Rule("forks keep the image", "steer.bpf.c", "if (from)\n", "if (0 && from)\n", "fork_keeps"),
)  # fmt: skip


def noticed(rule: Rule, folder: Path) -> str:
    source = folder / rule.file
    original = source.read_text()
    if original.count(rule.old) < 1:
        return "the rule is not in the source any more"
    source.write_text(original.replace(rule.old, rule.new, 1))
    try:
        built = subprocess.run(["make", "-s", "-B", "-C", folder, "WARNINGS=-w"],
                               capture_output=True, text=True, check=False)  # fmt: skip
        if built.returncode:
            return "does not build: " + built.stderr[-300:]
        environment = {**os.environ, "VECWARD_TEST_OBJECT": str(folder / "steer.bpf.o")}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", rule.tests]
        files = [f"tests/kernel/test_{name}.py" for name in ("steering", "callers")]
        run = subprocess.run([*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True,
                             check=False)  # fmt: skip
        return {0: "NOT NOTICED", 1: "noticed"}.get(run.returncode, run.stdout[-500:])
    finally:
        source.write_text(original)


def main() -> int:
    wanted = sys.argv[1:]
    bad = 0
    with tempfile.TemporaryDirectory(prefix="vwtest-mutate-") as scratch:
        folder = Path(scratch) / "bpf"
        shutil.copytree(ROOT / "bpf", folder)
        for rule in RULES:
            if wanted and not any(word in rule.name for word in wanted):
                continue
            result = noticed(rule, folder)
            bad += result != "noticed"
            print(f"{result:12} {rule.name}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
