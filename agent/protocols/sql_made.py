# SPDX-License-Identifier: Apache-2.0
"""What sessions and engines hand each other for every exchange and run of rows (``agent/protocols/sql.py``).

Apart from there so that they can be compiled: a class of the compiled form is made in a tenth of the time.
Values; their makers and readers own what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from agent.protocols.session import Masked


@dataclass(slots=True, init=False)
class Parameter:
    """One value of a Bind message (PostgreSQL docs, 54.7 Message Formats)."""

    type: int  # OID as declared in Parse or told by ParameterDescription; 0: not known
    format: Literal[0, 1]  # 0 text, 1 binary
    value: bytes | None  # None: NULL

    def __init__(self, kind: int, code: Literal[0, 1], value: bytes | None) -> None:
        self.type = kind
        self.format = code
        self.value = value


class Described:
    """A request as evidence keeps it; the very same one where a statement without parameters comes again."""

    __slots__ = ("body", "cut", "recorded", "sha256")

    def __init__(self, body: bytes, recorded: bytes, cut: int, sent: bytes | None = None) -> None:
        """`body`: vectors as they are. `recorded`: at level masked, `cut` of them replaced by dimension and
        digest; the body itself where that was not asked for. `sent`: what the digest is of, where the body
        could not keep all bytes as they came."""
        self.body = body
        self.recorded = recorded
        self.cut = cut
        self.sha256 = sha256(body if sent is None else sent).digest()


class Released:
    """A run of DataRow or CopyData messages after masking, whole messages with their headers."""

    __slots__ = ("ids", "masks", "recorded", "released", "rows", "vectors_cut")

    def __init__(
        self,
        released: bytes,
        recorded: bytes,
        rows: int,
        ids: tuple[str, ...] = (),
        vectors_cut: int = 0,
        masks: tuple[Masked, ...] = (),
    ) -> None:
        """`released`: for the client; the input object itself where nothing had to change.

        `recorded`: for the record at level masked: the `vectors_cut` vectors in it replaced by dimension and
        digest. `rows` -1: nothing was looked at, so not counted; the CommandComplete tag (or the session)
        knows.
        """
        self.released = released
        self.recorded = recorded
        self.rows = rows
        self.ids = ids
        self.vectors_cut = vectors_cut
        self.masks = masks
