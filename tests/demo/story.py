# SPDX-License-Identifier: Apache-2.0
"""The story: six chapters; each step is a sentence, a command, its output, and checks of what was claimed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from agent.kernel import syscalls
from tests.demo import material
from tests.demo.ground import PORT, Ground, inhabited, pick_users
from tests.demo.screen import Differs, Screen
from tests.demo.stage import CONFIG, Stage

ASK = 'app.py "how do I cancel a lease or an order?"'
RULE = "contracts-are-the-apps"
SECRETS = (*material.PEOPLE, *material.SSNS)
REFUSED_WITHIN = 40.0  # seconds; connects wait 5 s for workers to come back, and Python may start slowly


class Story:
    """Told once, in order; each step raises Differs where something is not as it says."""

    def __init__(self, ground: Ground, screen: Screen) -> None:
        self.ground, self.screen = ground, screen
        self.app, self.nosy, database = pick_users()
        self.stage = Stage(ground, screen, database)
        self.network = ground.network()
        self.refused = f"denied by rule {RULE}: contracts are searched by {self.app} only"

    def tell(self) -> None:
        self.overture()
        self.database()
        self.observe()
        self.attribute()
        self.enforce()
        self.look()
        self.tell_one_session()
        self.prove()
        self.no_workers()
        self.leave()

    def overture(self) -> None:
        self.screen.title(
            "Vecward: who asks your vector database what, by which right, and proof of it",
            [
                "A real Chroma, two ordinary chromadb clients, and Vecward between them. It takes place in",
                "",
                *(f"  {line}" for line in self.ground.describe()),
                f"  folder     {self.ground.folder}",
                f"  users      {self.app} (an application) and {self.nosy} (nosy), as they are on this host",
                "",
                "Nothing else on this host is touched, and all is taken away at the end. ^C ends it early.",
                "What stands after a prompt is run as it stands. What has a ✓ was checked: the demo ends",
                "where something is not as it says.",
                *filter(None, [self.screen.hint]),
            ],
        )
        self.screen.wait(5)

    # -- 1 -----------------------------------------------------------------------------------------

    def database(self) -> None:
        cgroup = "auto" if self.ground.on_host else self.ground.cgroup
        material.write(self.ground.folder, self.app, PORT, cgroup, self.ground.pins)
        self.screen.chapter(1, "A database and its clients, as they are everywhere")
        self.screen.say("A real Chroma starts on its default port and gets six contracts with personal data.")
        self.stage.start_database()
        said = self.stage.client(self.app, "fill.py")
        self.screen.check("Chroma holds the documents", "6 documents" in said, said)
        self.screen.say(
            "Two programs use it. Both are plain chromadb; nothing in them knows of Vecward.", 0.5
        )
        for name in ("app.py", "nosy.py"):
            self.screen.file(name, (self.ground.folder / name).read_text(), "python")
        self.screen.wait(6)
        self.before = self.stage.client(self.app, ASK)
        self.screen.check(
            "the search shows e-mail addresses, SSNs and embeddings",
            all(part in self.before for part in (*SECRETS[:2], material.SSNS[0], "of 64 numbers")),
            self.before,
        )

    # -- 2 -----------------------------------------------------------------------------------------

    def observe(self) -> None:
        self.screen.chapter(2, "Observe: nothing changes for anyone, everything is seen")
        self.screen.say("A policy: the application may search, masked; contracts are nobody else's.", 0.5)
        self.screen.file("policy.yaml", (self.ground.folder / "policy.yaml").read_text(), "yaml")
        self.screen.wait(6)
        self.screen.say("Vecward starts in `mode: observe`. The kernel now leads new connections to it.")
        self.pid = self.stage.start_vecward()
        self.links = self.ground.links()
        self.screen.check("it is attached to the kernel", self.links)
        self.screen.say(
            f"Both do what they always did: {self.app} searches, {self.nosy} takes all it can get."
        )
        found = self.stage.client(self.app, ASK)
        self.screen.check("the search gives what it gave without Vecward", found == self.before, found)
        taken = self.stage.client(self.nosy, "nosy.py")
        self.screen.check("the other one got all of it", taken.count("got 6 documents") == 2, taken)
        self.screen.wait(2)

    def attribute(self) -> None:
        self.screen.say("Who was it? The kernel says which process and user made each connection.")
        self.stage.vecward("sessions")
        self.screen.wait(3)
        self.screen.say("And this is what enforce would have done:")
        self.stage.vecward("tail", "--verdict", "would")
        by_user = self._sessions()
        every = [session for found in by_user.values() for session in found]
        self.screen.check(
            "every connection has its user, attested by the kernel",
            set(by_user) == {self.app, self.nosy} and all(s["attribution"] == "kernel" for s in every),
            str(every),
        )
        would = {user: sum(s["would"] for s in found) for user, found in by_user.items()}
        self.screen.check(
            f"enforce would mask one answer of {self.app} and deny {self.nosy} two requests",
            would == {self.app: 1, self.nosy: 2},
            str(would),
        )
        self.screen.wait(5)

    # -- 3 -----------------------------------------------------------------------------------------

    def enforce(self) -> None:
        self.screen.chapter(3, "Enforce: the same clients, the same port")
        self.screen.say("One word in the configuration, and a reload.")
        self.stage.shell(f"sed -i 's/mode: observe/mode: enforce/' {CONFIG}")
        self.stage.vecward("reload")
        self.screen.say(f"{self.app} may search: it gets its hits, e-mail and SSN masked, and no embeddings.")
        found = self.stage.client(self.app, ASK)
        self.screen.check("both hits are there", found.count("may cancel") == 2, found)
        self.screen.check(
            "no e-mail address and no SSN is in them", found.count("[email]") == 2 and _clean(found), found
        )
        self.screen.check("and no embeddings, though it asked for them", "embeddings: none" in found, found)
        self.screen.wait(4)
        self.screen.say(
            f"{self.nosy} asks for embeddings and for everything. It gets an ordinary Chroma error:"
        )
        taken = self.stage.client(self.nosy, "nosy.py")
        self.screen.check(
            "both are refused, naming the rule",
            taken.count(f"chromadb.errors.AuthorizationError: {self.refused}") == 2 and "got" not in taken,
            taken,
        )
        self.screen.wait(4)

    # -- 4 -----------------------------------------------------------------------------------------

    def look(self) -> None:
        self.screen.chapter(4, "What happened, for someone who asks later")
        self.screen.say("Is every connection accounted for? The kernel counts them too.")
        self.stage.vecward("status")
        coverage = self.stage.json("status")["coverage"]
        recorded = len(self.stage.json("sessions"))
        self.screen.check(
            "connects the kernel saw = connects steered = sessions recorded; none went past",
            coverage["connects"] == coverage["steered"] == recorded
            and coverage["bypass"] == coverage["unobserved"] == 0,
            f"{coverage}, {recorded} sessions",
        )
        self.screen.wait(4)
        self.screen.say("Sessions, process by process:")
        self.stage.vecward("sessions", "--user", self.nosy)
        self.screen.wait(3)
        self.denied = self._one(self.nosy, "denied")
        number = self._exchange(self.denied, "deny")
        self.screen.say(
            "One refused request, whole: who asked, what, how it was decided, what was delivered."
        )
        shown = self.stage.vecward("show", self.denied, "--exchange", number)
        self.screen.check(
            "it names the user, the program and the rule",
            f"{self.nosy} · /usr/bin/python" in shown and self.refused in shown,
            shown,
        )
        self.screen.wait(6)
        self.screen.say("And why: every rule of the policy, and where it fits or fails.")
        why = self.stage.vecward("policy", "explain", "--session", self.denied, "--exchange", number)
        self.screen.check("the rule that refused it is named", f"verdict: deny, rule {RULE}" in why, why)
        self.screen.wait(5)

    def tell_one_session(self) -> None:
        self.screen.say(f"What {self.app} asked and saw, replayed: question, hits, what was masked.")
        told = self.stage.vecward("replay", self._one(self.app, "masked"))
        self.screen.check(
            "the replay shows the masked answer; the personal data is not in it",
            told.count("[email]") >= 2 and "masked:" in told and _clean(told),
            told,
        )
        self.screen.wait(6)
        self.screen.say("The refused session as one page, for someone without a terminal.")
        self.page = self.ground.keep / "session.html"
        export = ("export", "--format", "html", "--session", self.denied, "--output", "keep/session.html")
        self.stage.vecward(*export)
        page = self.page.read_text()
        self.screen.check(
            "the page holds the refusal and loads nothing from elsewhere",
            self.refused in page and not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page),
        )
        self.screen.wait(2)

    def prove(self) -> None:
        self.screen.say(
            "Is the evidence whole? It is chained and signed; anyone with the public key can tell."
        )
        if not self.stage.until(lambda: self.stage.json("status")["evidence"]["unsigned"] == 0, 15):
            raise Differs("the last frames were not signed within 15 s")
        said = self.stage.vecward("verify")
        self.screen.check("whole", said.startswith("whole"), said)
        self.screen.wait(4)
        self.screen.say(
            "Someone changes one bit in a copy (without private keys, as an auditor would get it)."
        )
        self.stage.shell(
            "mkdir keep/evidence && cp -a evidence/streams evidence/ledger evidence/host.pub keep/evidence"
        )
        file, offset, byte = _victim(self.ground.keep / "evidence")
        name = file.relative_to(self.ground.folder)
        self.stage.shell(
            rf"printf '\{byte ^ 1:03o}' | dd of={name} bs=1 seek={offset} conv=notrunc status=none"
        )
        said = self.stage.vecward("verify", "keep/evidence", expect=4)
        self.screen.note("exit code 4")
        found = re.search(r"tampered +(\S+) +(\d+) +(\d+)–(\d+)", said)
        self.screen.check(
            "not whole; it names the file and the frame",
            said.startswith("NOT WHOLE")
            and found
            and str(name).endswith(found[1])
            and int(found[2]) <= offset,
            said,
        )
        self.screen.wait(5)

    # -- 5 -----------------------------------------------------------------------------------------

    def no_workers(self) -> None:
        self.screen.chapter(5, "When the workers die, the door stays shut")
        self.screen.say("All workers are killed; the supervisor is stopped, so that nobody starts new ones.")
        workers = self.stage.workers()
        self.stage.shell(f"kill -STOP {self.stage.run.pid} && kill -KILL {' '.join(map(str, workers))}")
        self.screen.check(f"{len(workers)} workers are dead", self.stage.until(lambda: _dead(workers), 5))
        code, last, took = self.stage.attempt(self.app, ASK)
        self.screen.check(
            f"not even {self.app} is let through: after {took:.1f} s its connection is refused",
            code != 0 and "may cancel" not in last and took < REFUSED_WITHIN,
            f"exit code {code} after {took:.1f} s: {last}",
        )
        self.screen.wait(2)
        self.screen.say("It is not the database that is down:")
        pid = self.stage.database.pid
        self.stage.shell(f"nsenter --net --target {pid} ss --no-header -ltnp 'sport = :{PORT}'")
        alive = PORT in self.stage.listening() and self.stage.database.poll() is None
        self.screen.check("Chroma listens", alive)
        self.screen.wait(2)
        self.screen.say("The supervisor goes on and starts new workers; the application works again.")
        self.stage.shell(f"kill -CONT {self.stage.run.pid}")
        self.screen.check("workers are back", self.stage.until(self._is_served, 20))
        found = self.stage.client(self.app, ASK)
        self.screen.check("masked as before", found.count("[email]") == 2 and _clean(found), found)
        self.screen.wait(3)

    # -- 6 -----------------------------------------------------------------------------------------

    def leave(self) -> None:
        self.screen.chapter(6, "And away")
        self.screen.say("SIGTERM: Vecward finishes what is under way, signs, detaches and ends.")
        self.screen.command("#", f"kill -TERM {self.stage.run.pid} && wait {self.stage.run.pid}")
        before = len(self.stage.log.read_text())
        code = self.stage.stop_vecward()
        self.screen.output(self.stage.log.read_text()[before:])
        self.screen.check("exit code 0", code == 0, str(code))
        gone = self.stage.until(lambda: not self.links & set(syscalls.link_ids()), 5)
        self.screen.check(f"none of its {len(self.links)} BPF links is left in the kernel", gone)
        self.screen.check("nor its pins", not self.ground.pins.exists(), str(self.ground.pins))
        self.screen.check("nor its cgroup", not (self.ground.cgroup / f"vecward-{self.pid}").exists())
        self.screen.check("nor its sockets", not list(self.ground.folder.glob("run/*")))
        found = self.stage.client(self.app, ASK)
        self.screen.check("the client gets what it got before Vecward came", found == self.before, found)

    def close(self) -> None:
        """After the ground is gone."""
        if not self.ground.on_host:
            living = inhabited(self.network)
            self.screen.check(
                "the demo's network namespace and cgroup are gone, and all that ran in them",
                not living and not self.ground.cgroup.exists(),
                f"processes {living}",
            )
        left = sorted(path.name for path in self.ground.folder.iterdir())
        self.screen.check("and its folder, but for what follows", left == ["keep"], str(left))
        self.screen.title(
            f"{self.screen.checks} checks, all of them true",
            [
                "Left for you to look at, and to remove:",
                f"  {self.page}   the refused session as a page",
                f"  {self.page.parent}/evidence       the copy with the changed bit",
            ],
        )

    # -- facts for checks --------------------------------------------------------------------------

    def _sessions(self) -> dict[str, list[dict[str, Any]]]:
        made: dict[str, list[dict[str, Any]]] = {}
        for session in self.stage.json("sessions"):
            made.setdefault(session["user"], []).append(session)
        return made

    def _one(self, user: str, counted: str) -> str:
        """The newest session of a user with at least one of what is counted."""
        found = [s["session"] for s in self._sessions().get(user, []) if s[counted]]
        if not found:
            raise Differs(f"no session of {user} has anything {counted}")
        return str(found[-1])

    def _exchange(self, session: str, verdict: str) -> str:
        exchanges = self.stage.json("show", session)["exchanges"]
        return next(str(e["n"]) for e in exchanges if e["verdict"] == verdict)

    def _is_served(self) -> bool:
        return any(guard["workers"] for guard in self.stage.json("status")["guards"])


def _clean(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


def _victim(evidence: Path) -> tuple[Path, int, int]:
    """File, offset and value of a byte in the middle of the fullest segment of a stream."""
    contents = {path: path.read_bytes().rstrip(b"\0") for path in evidence.glob("streams/*/*.seg")}
    file = max(contents, key=lambda path: len(contents[path]))
    offset = len(contents[file]) // 2
    return file, offset, contents[file][offset]


def _dead(pids: list[int]) -> bool:
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in ("Z", "X"):  # a zombie: its stopped parent has not buried it
            return False
    return True
