# SPDX-License-Identifier: Apache-2.0
"""The story: six steps, each a sentence, a command, its output, and checks of what the sentence claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.demo import material
from tests.demo.ground import PORT, Ground, pick_users
from tests.demo.screen import Differs, Screen
from tests.demo.stage import CONFIG, Stage

QUESTION = '"how do I cancel a lease or an order?"'
REFUSED = "denied by rule contracts-are-the-apps: contracts are searched by {app} only"


class Story:
    """Told once, in order; each step raises Differs where something is not as it says."""

    def __init__(self, ground: Ground, screen: Screen) -> None:
        self.ground, self.screen = ground, screen
        self.app, self.nosy, database = pick_users()
        self.stage = Stage(ground, screen, database)
        self.refused = REFUSED.format(app=self.app)

    def tell(self) -> None:
        self.overture()
        self.database()
        self.observe()
        self.enforce()
        self.look()
        self.prove()
        self.no_workers()
        self.leave()

    def overture(self) -> None:
        where = self.ground.describe()
        self.screen.title("Vecward: who asks your vector database what, by which right, and proof of it", [
            "A real Chroma, two ordinary chromadb clients, and Vecward between them. This takes place in:", "",
            *(f"  {line}" for line in where),
            f"  folder     {self.ground.folder}",
            f"  users      {self.app} (an application) and {self.nosy} (nosy); both exist on this host already", "",
            "Nothing else on this host is touched, and all of it is taken away at the end. ^C ends it at any time.",
            "Every line after a prompt is the command that is run; every ✓ is checked, and a wrong one ends the demo.",
        ])  # fmt: skip
        self.screen.wait(4)

    # -- 1 -----------------------------------------------------------------------------------------

    def database(self) -> None:
        self.screen.chapter(1, "A database and its clients, as they are everywhere")
        pins = self.ground.pins
        material.write(
            self.ground.folder, self.app, PORT, "auto" if self.ground.on_host else self.ground.cgroup, pins
        )
        self.screen.say(
            "A real Chroma starts on its default port, and gets six contracts with people's data in them."
        )
        self.stage.start_database()
        said = self.stage.client(self.app, "fill.py")
        self.screen.check("Chroma holds the documents", "6 documents" in said, said)
        self.screen.say(
            "Two programs use it. Both are plain chromadb; nothing in them knows of Vecward.", 0.5
        )
        for name in ("app.py", "nosy.py"):
            self.screen.file(name, (self.ground.folder / name).read_text(), "python")
        self.screen.wait(6)

    # -- 2 -----------------------------------------------------------------------------------------

    def observe(self) -> None:
        self.screen.chapter(2, "Observe: nothing changes for anyone, everything is seen")
        self.screen.say(
            "Vecward gets a policy: the application may search, masked; nobody else reads contracts.", 0.5
        )
        self.screen.file("policy.yaml", (self.ground.folder / "policy.yaml").read_text(), "yaml")
        self.screen.wait(6)
        self.screen.say(
            "It starts with the guard in `mode: observe`. The kernel now leads new connections to it."
        )
        self.pid = self.stage.start_vecward()
        self.links = self.ground.links()
        self.screen.check("BPF programs are attached", self.links)
        self.screen.say(
            f"Both clients do what they always did: {self.app} searches, {self.nosy} takes all it can get."
        )
        found = self.stage.client(self.app, f"app.py {QUESTION}")
        self.screen.check("the search shows e-mail addresses, SSNs and embeddings",
                          all(p in found for p in (material.PEOPLE[0], material.SSNS[0], " of 64 numbers")), found)  # fmt: skip
        taken = self.stage.client(self.nosy, "nosy.py")
        self.screen.check(
            "the other one got every document and embedding", taken.count("got 6 documents") == 2, taken
        )
        self.screen.wait(2)
        self.screen.say(
            "Who was it? The kernel says which process and user made each connection, and the table what"
        )
        self.screen.note("enforce would have done with it (column `would`).")
        self.stage.vecward("sessions")
        self.stage.vecward("tail", "--verdict", "would")
        by_user = self._sessions()
        self.screen.check("every connection has its user, attested by the kernel",
                          set(by_user) == {self.app, self.nosy}
                          and all(s["attribution"] == "kernel" for found in by_user.values() for s in found), str(by_user))  # fmt: skip
        self.screen.check(f"enforce would deny {self.nosy} two requests and mask an answer of {self.app}",
                          self._would(by_user[self.nosy]) == 2 and self._would(by_user[self.app]) >= 1, str(by_user))  # fmt: skip
        self.screen.wait(5)

    # -- 3 -----------------------------------------------------------------------------------------

    def enforce(self) -> None:
        self.screen.chapter(3, "Enforce: the same clients, the same port")
        self.screen.say("One word in the configuration, and a reload.")
        self.stage.shell(f"sed -i 's/mode: observe/mode: enforce/' {CONFIG}")
        self.stage.vecward("reload")
        self.screen.say(f"{self.app} may search: it gets its hits, e-mail and SSN masked, and no embeddings.")
        found = self.stage.client(self.app, f"app.py {QUESTION}")
        self.screen.check("both hits are there", found.count("may cancel") == 2, found)
        self.screen.check("no e-mail address and no SSN is in them",
                          "[email]" in found and "hmac:" in found
                          and not any(secret in found for secret in (*material.PEOPLE, *material.SSNS)), found)  # fmt: skip
        self.screen.check("and no embeddings, though it asked for them", "embeddings: none" in found, found)
        self.screen.wait(4)
        self.screen.say(
            f"{self.nosy} asks for the embeddings and for everything. What it gets is chromadb's own error:"
        )
        taken = self.stage.client(self.nosy, "nosy.py")
        self.screen.check(
            "both are refused, naming the rule", taken.count(self.refused) == 2 and "got" not in taken, taken
        )
        self.screen.check("by an ordinary error of chromadb", taken.count("chromadb.errors.") == 2, taken)
        self.screen.wait(4)

    # -- 4 -----------------------------------------------------------------------------------------

    def look(self) -> None:
        self.screen.chapter(4, "What happened, for someone who asks later")
        self.screen.say("Is every connection accounted for? The kernel's own count says so.")
        self.stage.vecward("status")
        coverage = self.stage.json("status")["coverage"]
        self.screen.check("connects the kernel saw = connects steered = sessions recorded; none went past",
                          coverage["connects"] == coverage["steered"] == len(self.stage.json("sessions"))
                          and coverage["bypass"] == coverage["unobserved"] == 0, str(coverage))  # fmt: skip
        self.screen.wait(3)
        self.screen.say("Sessions, process by process:")
        self.stage.vecward("sessions", "--user", self.nosy)
        denied = self._one(self.nosy, "denied")
        number = self._exchange(denied, "deny")
        self.screen.wait(3)
        self.screen.say(
            "One refused request, whole: who asked, what, how it was decided, what was delivered."
        )
        shown = self.stage.vecward("show", denied, "--exchange", str(number))
        self.screen.check("it names the user, the program and the rule",
                          self.nosy in shown and "/python" in shown and "contracts-are-the-apps" in shown, shown)  # fmt: skip
        self.screen.wait(5)
        self.screen.say("And why: every rule of the policy, and where it fits or fails.")
        why = self.stage.vecward("policy", "explain", "--session", denied, "--exchange", str(number))
        self.screen.check(
            "the denial is explained by its rule", "contracts-are-the-apps" in why and "deny" in why, why
        )
        self.screen.wait(5)
        masked = self._one(self.app, "masked")
        self.screen.say(f"What {self.app} saw, replayed from the evidence: question, hits, what was masked.")
        told = self.stage.vecward("replay", masked)
        self.screen.check("the replay shows the masked answer, not the people's data",
                          "[email]" in told and not any(s in told for s in (*material.PEOPLE, *material.SSNS)), told)  # fmt: skip
        self.screen.wait(5)
        self.page = self.ground.keep / f"session-{denied[-8:]}.html"
        self.screen.say("The same as one page, for someone without a terminal.")
        self.stage.vecward("export", "--format", "html", "--session", denied, "--output", str(self.page))
        page = self.page.read_text()
        self.screen.check("the page stands by itself and holds the denial",
                          self.refused in page and not re.search(r"(?:src|href)=.https?:", page))  # fmt: skip
        self.screen.wait(2)

    def prove(self) -> None:
        self.screen.say(
            "Is the evidence whole? Every frame is chained and signed; anyone with the public key can tell."
        )
        if not self.stage.until(lambda: self.stage.json("status")["evidence"]["unsigned"] == 0, 15):
            raise Differs("the last frames were not signed within 15 s")
        said = self.stage.vecward("verify")
        self.screen.check("whole", said.startswith("whole"), said)
        self.screen.wait(3)
        self.screen.say(
            "Someone changes one bit of a copy, which holds no private key, as an auditor would get it."
        )
        copy = self.ground.keep / "evidence"
        self.stage.shell(
            "mkdir keep/evidence && cp -a evidence/streams evidence/ledger evidence/host.pub keep/evidence"
        )
        file, offset, byte = _victim(copy)
        victim = file.relative_to(self.ground.folder)
        self.stage.shell(
            rf"printf '\{byte ^ 1:03o}' | dd of={victim} bs=1 seek={offset} conv=notrunc status=none  # was \{byte:03o}"
        )
        said = self.stage.vecward("verify", "keep/evidence", expect=4)
        self.screen.note("exit code 4")
        self.screen.check("not whole, and it names the file and the frame",
                          said.startswith("NOT WHOLE") and file.name in said and "tampered" in said, said)  # fmt: skip
        self.screen.wait(5)

    # -- 5 -----------------------------------------------------------------------------------------

    def no_workers(self) -> None:
        self.screen.chapter(5, "When Vecward's workers die, the door stays shut")
        self.screen.say(
            "All proxy workers are killed; the supervisor is stopped, so that nobody starts new ones."
        )
        workers = self.stage.workers()
        self.stage.shell(f"kill -STOP {self.stage.run.pid} && kill -KILL {' '.join(map(str, workers))}")
        self.screen.check("no worker lives", self.stage.until(lambda: _all_dead(workers), 5))
        code, last, took = self.stage.attempt(self.app, f"app.py {QUESTION}")
        self.screen.check(
            f"even {self.app} gets no answer (after {took:.1f} s)",
            code != 0 and "may cancel" not in last,
            last,
        )
        self.screen.wait(2)
        self.screen.say("It is not the database that is down:")
        self.stage.shell(
            f"nsenter --net --target {self.stage.database.pid} ss --no-header -ltnp 'sport = :{PORT}'"
        )
        self.screen.check("Chroma listens, and nobody was let through to it",
                          PORT in self.stage.listening() and self.stage.database.poll() is None)  # fmt: skip
        self.screen.say("The supervisor goes on, starts new workers, and the application works again.")
        self.stage.shell(f"kill -CONT {self.stage.run.pid}")
        served = lambda: any(g["workers"] for g in self.stage.json("status")["guards"])  # noqa: E731
        self.screen.check("workers are back", self.stage.until(served, 20))
        found = self.stage.client(self.app, f"app.py {QUESTION}")
        self.screen.check(
            "searches are answered, masked as before", "[email]" in found and "may cancel" in found, found
        )
        self.screen.wait(3)

    # -- 6 -----------------------------------------------------------------------------------------

    def leave(self) -> None:
        self.screen.chapter(6, "And away")
        self.screen.say("SIGTERM: Vecward finishes what is under way, signs, detaches and ends.")
        self.screen.command("#", f"kill -TERM {self.stage.run.pid} && wait")
        before = len(self.stage.log.read_text())
        code = self.stage.stop_vecward()
        self.screen.output(self.stage.log.read_text()[before:])
        self.screen.check("exit code 0", code == 0, str(code))
        self.screen.check(f"none of its {len(self.links)} BPF links is left", self._links_gone())
        self.screen.check("no pin", not self.ground.pins.exists(), str(self.ground.pins))
        self.screen.check("no cgroup of it", not (self.ground.cgroup / f"vecward-{self.pid}").exists())
        self.screen.check(
            "no socket",
            not list(self.ground.folder.glob("run/*")),
            str(list(self.ground.folder.glob("run/*"))),
        )
        found = self.stage.client(self.app, f"app.py {QUESTION}")
        self.screen.check("clients reach the database directly again", material.PEOPLE[0] in found, found)

    def close(self) -> None:
        """After the ground is gone."""
        self.screen.note("")
        arena = self.ground.cgroup
        self.screen.check("the cgroup, the network namespace and all processes of the demo are gone",
                          self.ground.on_host or not arena.exists())  # fmt: skip
        self.screen.title(f"{self.screen.checks} checks, all true", [
            "kept for you to look at (remove it when you like):",
            f"  the page      {self.page}",
            f"  the evidence  {self.ground.folder}/keep/evidence   (the copy with the flipped byte)",
        ])  # fmt: skip

    # -- facts for checks --------------------------------------------------------------------------

    def _sessions(self) -> dict[str, list[dict[str, Any]]]:
        made: dict[str, list[dict[str, Any]]] = {}
        for session in self.stage.json("sessions"):
            made.setdefault(session["user"], []).append(session)
        return made

    @staticmethod
    def _would(sessions: list[dict[str, Any]]) -> int:
        return sum(s["would"] for s in sessions)

    def _one(self, user: str, counted: str) -> str:
        """The newest session of a user with at least one of what is counted."""
        found = [s["session"] for s in self._sessions().get(user, []) if s[counted]]
        if not found:
            raise Differs(f"no session of {user} has anything {counted}")
        return str(found[-1])

    def _exchange(self, session: str, verdict: str) -> int:
        exchanges = self.stage.json("show", session)["exchanges"]
        return next(int(e["n"]) for e in exchanges if e["verdict"] == verdict)

    def _links_gone(self) -> bool:
        from agent.kernel import syscalls

        return self.stage.until(lambda: not self.links & set(syscalls.link_ids()), 5)


def _victim(evidence: Path) -> tuple[Path, int, int]:
    """File, offset and value of a byte in the middle of the fullest segment of a stream."""
    contents = {path: path.read_bytes().rstrip(b"\0") for path in evidence.glob("streams/*/*.seg")}
    file = max(contents, key=lambda path: len(contents[path]))
    offset = len(contents[file]) // 2
    return file, offset, contents[file][offset]


def _all_dead(pids: list[int]) -> bool:
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in ("Z", "X"):  # its stopped parent has not buried it
            return False
    return True
