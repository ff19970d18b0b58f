# SPDX-License-Identifier: Apache-2.0
"""The policy in force: read the files, check them whole, run their own test cases, or keep the old one.

Owns the file reading around ``policy.load_policy``, which is pure. Bias: a file that cannot be read or
a case that fails leaves everything as it was; the first load must succeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.config import Config, ConfigError, policy_files
from agent.engines import make_engine
from policy.cases import run_cases
from policy.combine import RecordDefaults
from policy.compile import Policy, encode_rules
from policy.context import GuardContext, GuardInfo
from policy.document import Document, load_policy
from policy.problem import PolicyError

MAX_FILE = 2**20  # the bound of policy.yaml_text
MAX_FILES = 1000


@dataclass(frozen=True, slots=True)
class Rulebook:
    """A policy that passed everything. `encoded` is what workers get."""

    document: Document
    encoded: bytes
    policy: Policy
    files: tuple[Path, ...]
    texts: tuple[tuple[str, str], ...]  # (file, what stood in it): what is recorded is what was loaded
    warnings: tuple[str, ...]

    @property
    def hash(self) -> str:
        return self.policy.hash


def guard_context(config: Config, now: float) -> GuardContext:
    """What policy files are checked against."""
    return GuardContext(
        tuple(
            GuardInfo(g.name, g.engine, engine_roots(g.engine), tuple(p.remote for p in g.peers), g.auth)
            for g in config.guards
        ),
        now,
    )


def engine_roots(engine: str) -> frozenset[str]:
    return make_engine(engine, "", hmac_key=b"\0" * 32, clock=lambda: 0.0).masked_fields_known


def read_files(files: Sequence[Path]) -> list[tuple[str, str]]:
    """(name, text) of each. Raises ConfigError naming the file."""
    if len(files) > MAX_FILES:
        raise ConfigError([f"{len(files)} policy files; at most {MAX_FILES} are read"])
    texts = []
    for file in files:
        try:
            if file.stat().st_size > MAX_FILE:
                raise ConfigError([f"{file}: larger than {MAX_FILE} bytes; split it"])
            texts.append((str(file), file.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            raise ConfigError([f"{file}: not UTF-8"]) from None
        except OSError as error:
            raise ConfigError([f"{file}: {error.strerror}"]) from None
    return texts


def load_rulebook(config: Config, now: float) -> Rulebook:
    """Raises ConfigError or PolicyError; a failing test case is a PolicyError too."""
    files = policy_files(config)
    texts = read_files(files)
    document = load_policy(texts, guard_context(config, now))
    policy = Policy(document.rules, RecordDefaults(config.evidence.level, config.evidence.mode))
    results = run_cases(policy, document.cases, {g.name: g.engine for g in config.guards}, now)
    failed = [result.problem for result in results if result.problem is not None]
    if failed:
        raise PolicyError(failed)
    return Rulebook(
        document,
        encode_rules(document.rules),
        policy,
        tuple(files),
        tuple(texts),
        tuple(map(str, document.warnings)),
    )
