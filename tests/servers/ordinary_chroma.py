# SPDX-License-Identifier: Apache-2.0
"""Ordinary use of Chroma by its own client, sync or async, written down as text.

    python ordinary_chroma.py sync|async

Every method a program would call, the errors it would meet, values of every type, and a few bodies large
enough to come in pieces. Against the same fresh database it says the same, byte for byte.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import chromadb
from ordinary import Notebook  # type: ignore[import-not-found]  # it runs beside it

METADATA: list[dict[str, Any]] = [
    {"n": n, "half": n / 2, "even": n % 2 == 0, "name": f"name {n}", "tags": f"tag{n % 3}"} for n in range(40)
]
WORDS = [
    "plain",
    "ünïcödé ☃ 漢字",
    'quotes " and \\ back',
    "line\nbreak\ttab",
    "",
    " spaces ",
    "\x7f\u2028",
    "a" * 3000,
]


def vectors(count: int, dim: int = 8, seed: int = 5) -> list[list[float]]:
    dice = random.Random(seed)
    return [[dice.uniform(-1, 1) for _ in range(dim)] for _ in range(count)]


async def by_name(found: Any) -> list[Any]:
    """A list of collections or databases in an order: the server's is that of random ids."""
    found = await found if asyncio.iscoroutine(found) else found
    return sorted(found, key=lambda one: one["name"] if isinstance(one, dict) else one.name)


async def part(client: Any) -> int:
    return len(await by_name(client.list_collections(limit=1, offset=1)))


async def use_collections(client: Any, book: Notebook) -> Any:
    await book.do("version", client.get_version)
    await book.do("settings", client.get_max_batch_size)
    beat = await book.call(client.heartbeat)
    await book.do("heartbeat", lambda: type(beat).__name__)
    await book.do("list nothing", client.list_collections)
    one = await book.do(
        "create",
        client.create_collection,
        "papers",
        metadata={"owner": "ada", "hnsw:space": "cosine"},
        embedding_function=None,
    )
    await book.do("create twice", client.create_collection, "papers", embedding_function=None)
    await book.do("get or create", client.get_or_create_collection, "papers", embedding_function=None)
    await book.do("get", client.get_collection, "papers", embedding_function=None)
    await book.do("get what is not there", client.get_collection, "absent", embedding_function=None)
    await book.do("bad name", client.create_collection, "no spaces or ! here", embedding_function=None)
    for name in ("second", "third"):
        await book.do(f"create {name}", client.create_collection, name, embedding_function=None)
    await book.do("list", lambda: by_name(client.list_collections()))
    await book.do("list a part", lambda: part(client))
    await book.do("count collections", client.count_collections)
    await book.do("delete", client.delete_collection, "third")
    await book.do("delete what is not there", client.delete_collection, "third")
    return one


async def use_rows(one: Any, book: Notebook) -> None:
    given = vectors(40)
    await book.do(
        "add",
        one.add,
        ids=[f"id{n}" for n in range(40)],
        embeddings=given,
        metadatas=METADATA,
        documents=[f"document {n} {WORDS[n % len(WORDS)]}" for n in range(40)],
    )
    await book.do("add the same again", one.add, ids=["id0"], embeddings=[given[1]])
    await book.do("add a wrong dimension", one.add, ids=["wrong"], embeddings=[[1.0, 2.0]])
    await book.do("count", one.count)
    await book.do("peek", one.peek, 3)
    await book.do("get by id", one.get, ids=["id3", "id1", "absent"])
    await book.do("get all of it", one.get, include=["embeddings", "metadatas", "documents", "uris"])
    await book.do("get nothing but ids", one.get, include=[], limit=5, offset=7)
    for where in (
        {"n": 3},
        {"n": {"$gte": 30}},
        {"$and": [{"even": True}, {"half": {"$lt": 4.5}}]},
        {"tags": {"$in": ["tag1"]}},
        {"$or": [{"name": "name 7"}, {"name": {"$ne": "name 8"}}]},
        {"n": {"$nin": [1, 2]}},
        {"absent": 1},
    ):
        await book.do(f"get where {where}", one.get, where=where)
    for text in ({"$contains": "document 1"}, {"$not_contains": "plain"}, {"$regex": "ü.*☃"}):
        await book.do(f"get where document {text}", one.get, where_document=text)
    await book.do("bad where", one.get, where={"n": {"$wat": 1}})
    await book.do("query", one.query, query_embeddings=[given[0]], n_results=5)
    await book.do(
        "query many",
        one.query,
        query_embeddings=vectors(7, seed=6),
        n_results=3,
        include=["embeddings", "metadatas", "documents", "distances"],
    )
    await book.do(
        "query where",
        one.query,
        query_embeddings=[given[2]],
        where={"even": True},
        where_document={"$contains": "document"},
        n_results=4,
    )
    await book.do("query among ids", one.query, query_embeddings=[given[2]], ids=["id1", "id2"], n_results=4)
    await book.do("query a wrong dimension", one.query, query_embeddings=[[1.0]], n_results=1)
    await book.do("query more than there is", one.query, query_embeddings=[given[2]], n_results=100)


async def change_rows(client: Any, one: Any, book: Notebook) -> None:
    await book.do(
        "update",
        one.update,
        ids=["id1", "absent"],
        metadatas=[{"n": 99, "new": "é"}, {"n": 1}],
        embeddings=vectors(2, seed=8),
        documents=["changed", "never"],
    )
    await book.do("updated", one.get, ids=["id1", "absent"], include=["metadatas", "documents", "embeddings"])
    await book.do(
        "upsert",
        one.upsert,
        ids=["id2", "id100"],
        embeddings=vectors(2, seed=9),
        documents=["two", "hundred"],
    )
    await book.do("upserted", one.get, ids=["id2", "id100"], include=["metadatas", "documents", "embeddings"])
    await book.do(
        "a large add",
        one.add,
        ids=[f"big{n}" for n in range(300)],
        embeddings=vectors(300, seed=11),
        documents=[f"{n} " + "lorem ipsum " * 60 for n in range(300)],
    )
    await book.do("a large get", one.get, limit=350, include=["documents", "embeddings", "metadatas"])
    await book.do("delete by id", one.delete, ids=["id5", "absent"])
    await book.do("delete where", one.delete, where={"n": {"$gt": 35}})
    await book.do("delete where document", one.delete, where_document={"$contains": "lorem"})
    await book.do("left", one.get)
    await book.do("delete without saying what", one.delete)
    await book.do("rename", one.modify, name="articles", metadata={"owner": "eve"})
    await book.do("get by the new name", client.get_collection, "articles", embedding_function=None)
    await book.do("get by the old name", client.get_collection, "papers", embedding_function=None)
    await book.do("fork", one.fork, "copy")
    await book.do("list at the end", lambda: by_name(client.list_collections()))
    for name in ("articles", "second", "copy"):
        await book.do(f"delete {name}", client.delete_collection, name)


async def use_tenants(admin: Any, book: Notebook) -> None:
    await book.do("make a database", admin.create_database, "other")
    await book.do("get the database", admin.get_database, "other")
    await book.do("get a database that is not there", admin.get_database, "nope")
    await book.do("list databases", lambda: by_name(admin.list_databases()))
    await book.do("delete the database", admin.delete_database, "other")


async def main() -> None:
    book = Notebook()
    if sys.argv[1] == "async":
        client: Any = await chromadb.AsyncHttpClient(host="127.0.0.1", port=8000)
    else:
        client = chromadb.HttpClient(host="127.0.0.1", port=8000)
        await use_tenants(chromadb.AdminClient(client.get_settings()), book)
    one = await use_collections(client, book)
    await use_rows(one, book)
    await change_rows(client, one, book)
    book.write()


asyncio.run(main())
