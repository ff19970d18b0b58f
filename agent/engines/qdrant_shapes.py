# SPDX-License-Identifier: Apache-2.0
"""The parts of Qdrant's answers that are read by type: what msgspec makes from bytes.

Apart from the engine: a compiled module keeps no annotations for msgspec to read (packaging/native.txt).
"""

from __future__ import annotations

import msgspec


class Alias(msgspec.Struct):
    alias_name: str
    collection_name: str


class AliasList(msgspec.Struct):
    aliases: list[Alias]


class AliasAnswer(msgspec.Struct):
    result: AliasList


class Id(msgspec.Struct):
    id: int | str = 0


class Points(msgspec.Struct):
    points: list[Id]


class Group(msgspec.Struct):
    hits: list[Id]


class Groups(msgspec.Struct):
    groups: list[Group]


class ListAnswer(msgspec.Struct):
    result: list[Id]


class PointsAnswer(msgspec.Struct):
    result: Points


class GroupsAnswer(msgspec.Struct):
    result: Groups


class BatchAnswer(msgspec.Struct):
    result: list[list[Id]]


class QueriesAnswer(msgspec.Struct):
    result: list[Points]


class OneAnswer(msgspec.Struct):
    result: Id
