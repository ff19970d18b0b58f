# SPDX-License-Identifier: Apache-2.0
"""The parts of Chroma's answers that are read by type: what msgspec makes from bytes.

Apart from the engine: a compiled module keeps no annotations for msgspec to read (packaging/native.txt).
"""

from __future__ import annotations

import msgspec


class Collection(msgspec.Struct):
    id: str
    name: str
    tenant: str
    database: str


class Ids(msgspec.Struct):
    ids: msgspec.Raw


class Columns(msgspec.Struct):
    """A search's or a get's answer that holds vectors."""

    ids: msgspec.Raw
    embeddings: msgspec.Raw
    include: msgspec.Raw = msgspec.Raw(b"[]")
