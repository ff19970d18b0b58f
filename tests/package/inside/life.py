# SPDX-License-Identifier: Apache-2.0
"""A package's life: installed, configured, used, upgraded under load, downgraded, removed, purged.

Owns the order of an administrator's commands and what holds after each. The packages are /rig/packages/1 (the
build) and /rig/packages/2 (the one after it). What a namespace of process IDs cannot show is only asked
outside of one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.package.inside import databases, traces
from tests.package.inside.ground import (
    Differs,
    holds,
    measure,
    own_processes,
    pss,
    recalled,
    remember,
    run,
    shown,
    vecward,
    vecward_json,
    wait_until,
)

AGENT = "vecward-agent.service"
RPM = bool(list(Path("/rig/packages/1").glob("*.rpm")))
CONFIG = Path("/etc/vecward")
WAITED_FOR = 15.0  # seconds without an agent in which surely nobody is refused (AWAY_TIMEOUT: 20)
GUARDS = """\
guards:
  - {name: docs, engine: chroma, ports: [8000], mode: enforce, tls: {cert: ca/db.crt, key: ca/db.key}}
  - {name: pg, engine: pgvector, ports: [5432], mode: enforce, tls: {cert: ca/db.crt, key: ca/db.key}}
"""
POLICY = """\
version: 1
rules:
  - id: people
    who: {user: [root, daemon]}
    what: {action: [search, read, scan, count, write, delete, schema, snapshot, admin, session]}
    allow: true
"""


def contained() -> bool:
    return run("systemd-detect-virt", "--container", code=None).stdout.strip() != "none"


def package(number: int) -> list[str]:
    return [str(path) for path in sorted(Path(f"/rig/packages/{number}").iterdir())]


def look_before() -> None:
    """Also starts the databases, which are there before any guard is."""
    databases.prepare()
    databases.start_chroma()
    databases.start_postgres()
    databases.psql("root", databases.SCHEMA)
    remember("before", traces.look())
    holds(databases.chroma_client("daemon").stdout.startswith("a "), "Chroma answers without a guard")
    holds(databases.psql("daemon").stdout.strip() == "5", "PostgreSQL answers without a guard")


def install() -> None:
    began, spent = time.monotonic(), os.times()
    _install(1)
    measure("install", time.monotonic() - began, "s")
    after = os.times()
    cpu = after.children_user + after.children_system - spent.children_user - spent.children_system
    measure("install-cpu", cpu, "s")
    if RPM:
        holds(shown(AGENT, "ActiveState") == "inactive", "EL leaves it to the administrator to start it")
        run("systemctl", "enable", "--now", "vecward.target")
    wait_until(lambda: vecward("status"), "status answers after the install")
    holds(vecward_json("status")["guards"] == [], "it guards nothing until it is told to")
    holds(databases.chroma_client("nobody").stdout.startswith("a "), "nobody is refused by an install")
    _verify_package()


def doctor() -> None:
    done = run("vecward", "doctor", code=None)
    print(done.stdout, flush=True)
    missing = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
    if contained():  # others steer on the same kernel, in namespaces of theirs, and doctor tells of them
        missing = [line for line in missing if "foreign sk_lookup" not in line]
    else:
        holds(done.returncode == 0, f"doctor ended with {done.returncode}: {done.stderr}")
    holds(not [line for line in missing if line.strip()], f"doctor misses {missing}")


def first_hour() -> None:
    """docs/howto/first-hour.md: drafts in observe, rules out of what was seen, enforce, off; then undone."""
    print(vecward("discover", "--write"), flush=True)
    drafts = sorted((CONFIG / "vecward.d").glob("discovered-*.yaml"))
    holds(len(drafts) == 2, f"both databases are found: {drafts}")
    vecward("reload")
    wait_until(lambda: _modes() == ["observe", "observe"], "both are observed")
    _is_served("daemon")

    def proposed() -> str:
        text = vecward("policy", "learn")
        for port in (8000, 5432):
            holds(text.count(f"-{port}") > 1, f"rules for port {port}: {text}")
        return text

    wait_until(proposed, "what was seen becomes rules")
    learned = CONFIG / "policy.d" / "learned.yaml"
    vecward("policy", "learn", "-o", str(learned))
    print(learned.read_text(), vecward("policy", "check"), vecward("policy", "test"), flush=True)
    vecward("reload")
    _is_served("nobody")  # still: what follows from it is only counted
    would = [(s["user"], s["would"]) for s in vecward_json("sessions", "--verdict", "would")]
    holds(any(user == "nobody" and count for user, count in would), f"enforce would refuse nobody: {would}")
    for draft in drafts:
        draft.write_text(draft.read_text().replace("mode: observe", "mode: enforce"))
    vecward("reload")
    wait_until(lambda: _modes() == ["enforce", "enforce"], "both are enforced")
    _is_served("daemon")
    holds(databases.chroma_client("nobody", code=None).returncode != 0, "nobody is refused")
    print(vecward("status"), flush=True)
    vecward("off", "--for", "15m", "--reason", "the way back")
    _is_served("nobody")
    vecward("on")
    holds(databases.psql("nobody", code=None).returncode != 0, "nobody is refused again")
    for path in (*drafts, learned):
        path.unlink()
    vecward("reload")
    wait_until(lambda: _modes() == [], "nothing is guarded any more")


def guard() -> None:
    """Observe nothing, enforce at once: what a cautious administrator comes to at last; with TLS offered."""
    vecward("ca", "init")
    vecward("ca", "issue", "db", "--san", "127.0.0.1")
    shutil.copyfile(CONFIG / "ca" / "ca.crt", databases.AUTHORITY)
    (CONFIG / "vecward.d").mkdir(exist_ok=True)
    (CONFIG / "policy.d").mkdir(exist_ok=True)
    (CONFIG / "vecward.d" / "10-local.yaml").write_text(GUARDS)
    (CONFIG / "policy.d" / "10-local.yaml").write_text(POLICY)
    vecward("reload")
    wait_until(_guarded, "both guards stand")


def use() -> None:
    """The databases' own clients as users who may and who may not, and what is on record of it."""
    holds(databases.chroma_client("daemon").stdout.startswith("a "), "a user of the rule gets the answer")
    holds(databases.psql("daemon").stdout.strip() == "5", "over PostgreSQL too")
    refused = databases.chroma_client("nobody", code=None)
    holds(refused.returncode != 0, f"a user of no rule was let through: {refused.stdout}")
    refused = databases.psql("nobody", "SELECT id FROM documents LIMIT 1", code=None)
    holds(refused.returncode != 0 and refused.stdout.strip() == "", f"psql of nobody: {refused.stdout}")

    def recorded() -> bool:
        seen = {(s["guard"], s["user"]): s for s in vecward_json("sessions")}
        wanted = [(guard, user) for guard in ("docs", "pg") for user in ("daemon", "nobody")]
        if not all(key in seen for key in wanted):
            raise Differs(f"sessions of {sorted(map(str, seen))}")
        return all(seen[key]["requests"] > 0 for key in wanted)

    wait_until(recorded, "four kinds of sessions are on record, with user")
    sessions = vecward_json("sessions")
    holds(any(s["denied"] for s in sessions if s["user"] == "nobody"), "a refusal is recorded as denied")
    holds(not any(s["denied"] for s in sessions if s["user"] == "daemon"), "what was allowed is not")
    if not contained():
        seen = {s["exe"] for s in sessions if s["user"] == "daemon"}
        holds(any(exe and exe.endswith("/psql") for exe in seen), f"sessions name their program: {seen}")
        holds(any(exe and "/python3" in exe for exe in seen), f"sessions name their program: {seen}")
    print(vecward("verify"), flush=True)


def scores() -> None:
    """Each service's `systemd-analyze security`."""
    names = run("systemctl", "list-units", "--no-legend", "--plain", "vecward*.service").stdout.splitlines()
    for name in sorted(line.split()[0] for line in names):
        text = run("systemd-analyze", "--no-pager", "security", name, code=None).stdout
        score = float(text.rpartition("Overall exposure level for")[2].split(":")[1].split()[0])
        measure(f"exposure-{name}", score, "points")
        bound = 2.0 if "proxy" in name else 2.5 if "agent" in name else None
        holds(bound is None or score <= bound, f"{name} is exposed by {score}, the bound is {bound}")


def rest() -> None:
    """Idle memory, and how long a cold start takes until it is ready."""
    databases_up = [databases.answers(8000), databases.answers(5432)]
    holds(all(databases_up), "the databases are reachable")
    total = 0
    for pid in own_processes():
        size = pss(pid)
        total += size
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:80]
        measure(f"memory-of-{words.replace(' ', '_')}", size / 2**20, "MiB")
    measure("memory", total / 2**20, "MiB")
    run("systemctl", "stop", "vecward.target")
    wait_until(lambda: not list(own_processes()), "stop ends all processes")
    began = time.monotonic()
    run("systemctl", "start", "vecward.target")
    wait_until(_guarded, "the guards stand again")
    measure("start", time.monotonic() - began, "s")
    units = ("vecward-steer.service", AGENT, *_generations())
    measure("start-cpu", sum(int(shown(unit, "CPUUsageNSec")) for unit in units) / 1e9, "s")
    holds(
        databases.chroma_client("daemon").stdout.startswith("a "),
        "its users are served after it",
    )


def upgrade() -> None:
    databases.start_load()
    _change(2)


def downgrade() -> None:
    _change(1)


def restart() -> None:
    """The agent, and systemd itself, under the same load."""
    away = 0.0
    for _ in range(5):
        before = databases.load()
        run("systemctl", "restart", AGENT)
        away = _away()
        _goes_on(before, "a restart of the agent", away)
        if away < WAITED_FOR or not contained():  # once at least it is seen that nobody is refused
            break
    else:
        raise Differs(f"this machine needs {away:.0f} s to start an agent")
    before = databases.load()
    run("systemctl", "daemon-reexec")
    _goes_on(before, "systemd's own restart")
    databases.stop_load()
    # Their last sessions are over: the generations before end by themselves, long before `proxy.drain`.
    wait_until(lambda: len(_generations()) == 1, "older generations end when their sessions do")
    print(vecward("verify"), flush=True)


def remove() -> None:
    run(*(["rpm", "-e", _name()] if RPM else ["dpkg", "-r", _name()]))
    wait_until(lambda: not list(own_processes()), "no process is left")
    holds(databases.chroma_client("nobody").stdout.startswith("a "), "everyone reaches the database again")
    holds(databases.psql("nobody").stdout.strip() == "5", "over PostgreSQL too")
    kept = CONFIG / "vecward.d" / "10-local.yaml"
    holds(kept.exists(), "a removal keeps what the administrator wrote")
    holds(Path("/var/lib/vecward/evidence").is_dir(), "and the evidence")


def purge() -> None:
    if RPM:  # has no purge: an administrator removes the state
        run("rm", "-rf", "/etc/vecward", "/var/lib/vecward")
    else:
        run("dpkg", "-P", _name())
        holds(
            "vecward" not in run("dpkg-query", "-W", "-f", "${Package} ${Status}\\n").stdout,
            "dpkg knows it not",
        )
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed")
    traces.compare(recalled("before"), traces.look())


def _name() -> str:
    return "vecward"


def _install(number: int) -> None:
    files = package(number)
    if RPM:
        run("rpm", "-U", "--nodeps", "--oldpackage", *files)  # Debian's rpm database knows of no systemd
    else:
        run("dpkg", "--force-confdef", "--force-confold", "--force-downgrade", "-i", *files)


def _version() -> str:
    return str(vecward_json("status")["version"])


def _serving() -> set[int]:
    """Workers that take new connections."""
    return {int(w["pid"]) for w in vecward_json("status")["workers"] if not w["draining"]}


def _generations() -> list[str]:
    """Units of workers that run."""
    listed = run("systemctl", "list-units", "--no-legend", "--plain", "--state=active", "vecward-proxy@*")
    return [line.split()[0] for line in listed.stdout.splitlines()]


def _change(number: int) -> None:
    before, old, workers = databases.load(), _version(), _serving()
    began = time.monotonic()
    _install(number)
    measure(f"change-to-{number}", time.monotonic() - began, "s")
    wait_until(lambda: _version() != old, f"the running version is no more {old}")
    wait_until(lambda: _serving() and not _serving() & workers, "workers of the new package take what is new")
    _goes_on(before, f"the change to package {number}", _away())
    holds((CONFIG / "vecward.d" / "10-local.yaml").read_text() == GUARDS, "the configuration stands")
    holds(databases.chroma_client("nobody", code=None).returncode != 0, "and so does the rule")


def _away() -> float:
    """Seconds from the last agent's end to when this one was ready; also printed."""
    left, came = (int(shown(AGENT, f"Active{name}TimestampMonotonic")) for name in ("Exit", "Enter"))
    measure("agent-away", (came - left) / 1e6, "s")
    return (came - left) / 1e6


def _goes_on(before: dict[str, databases.Count], what: str, away: float = 0.0) -> None:
    """Each client had twenty answers since, and none of them a failure.

    Where the agent was away for longer than it is waited for, as on a machine that is interpreted, new
    connections may have been refused; those that stood may not have been cut.
    """
    refused = away >= WAITED_FOR

    def more() -> bool:
        now = databases.load()
        felt = {
            name: said["last"]
            for name, said in now.items()
            if said["failed"] > before[name]["failed"] and not (refused and name.endswith("-new"))
        }
        if felt:
            raise Broken(f"{what} was felt: {felt}, {now}")
        return all(int(now[name]["done"]) > int(before[name]["done"]) + 20 for name in now)

    wait_until(more, f"the load goes on after {what}")


class Broken(Exception):
    """A client had a failure: no waiting makes that good."""


def _is_served(user: str) -> None:
    holds(databases.chroma_client(user).stdout.startswith("a "), f"{user} is served")
    holds(databases.psql(user).stdout.strip() == "5", f"{user} is served over PostgreSQL")


def _modes() -> list[str]:
    return sorted(str(g["mode"]) for g in vecward_json("status")["guards"])


def _guarded() -> bool:
    guards = {g["name"]: g for g in vecward_json("status")["guards"]}
    return set(guards) == {"docs", "pg"} and databases.answers(8000) and databases.answers(5432)


def _verify_package() -> None:
    if RPM:
        run("rpm", "-V", "--nodeps", _name())
    else:
        changed = run("dpkg", "-V", _name()).stdout
        holds(changed == "", f"dpkg -V: {changed}")


STEPS: dict[str, Callable[[], None]] = {
    step.__name__: step
    for step in (
        look_before,
        install,
        doctor,
        first_hour,
        guard,
        use,
        scores,
        rest,
        upgrade,
        downgrade,
        restart,
        remove,
        purge,
    )
}
