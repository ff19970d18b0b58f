# SPDX-License-Identifier: Apache-2.0
"""Ordinary use of Qdrant by its own client, sync or async, written down as text.

    python ordinary_qdrant.py sync|async

Every kind of request that the official client makes over REST, and the errors a program would meet.
"""

from __future__ import annotations

import asyncio
import random
import sys
import warnings
from typing import Any

from ordinary import Notebook  # type: ignore[import-not-found]  # it runs beside it
from qdrant_client import AsyncQdrantClient, QdrantClient, models

C = "papers"
LONG = "11111111-2222-3333-4444-555555555555"


def vectors(count: int, dim: int = 4, seed: int = 5) -> list[list[float]]:
    dice = random.Random(seed)
    return [[dice.uniform(-1, 1) for _ in range(dim)] for _ in range(count)]


def point(n: int, vector: list[float]) -> models.PointStruct:
    payload = {
        "n": n,
        "half": n / 2,
        "even": n % 2 == 0,
        "city": ["Paris", "Rome", "Łódź"][n % 3],
        "text": f"word{n} ☃",
        "nested": {"deep": [{"x": n}, {"x": n + 1}]},
        "group": n // 4,
        "tags": [f"t{n % 2}", "all"],
    }
    return models.PointStruct(id=n, vector=vector, payload=payload)


def match(key: str, value: Any) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=value))])


async def use_collections(q: Any, book: Notebook) -> None:
    await book.do("info", q.info)
    await book.do("no collections", q.get_collections)
    config = models.VectorParams(size=4, distance=models.Distance.COSINE)
    await book.do("create", q.create_collection, C, vectors_config=config)
    await book.do("create twice", q.create_collection, C, vectors_config=config)
    await book.do(
        "create named",
        q.create_collection,
        "many",
        vectors_config={"a": config, "b": models.VectorParams(size=2, distance="Dot")},
        sparse_vectors_config={"s": models.SparseVectorParams()},
    )
    await book.do("exists", q.collection_exists, C)
    await book.do("does not exist", q.collection_exists, "absent")
    await book.do("list", q.get_collections)
    await book.do("get", q.get_collection, C)
    await book.do("get what is not there", q.get_collection, "absent")
    await book.do("index", q.create_payload_index, C, "city", field_schema=models.PayloadSchemaType.KEYWORD)
    await book.do("drop the index", q.delete_payload_index, C, "city")
    await book.do(
        "change", q.update_collection, C, optimizer_config=models.OptimizersConfigDiff(indexing_threshold=1)
    )
    alias = models.CreateAlias(collection_name=C, alias_name="current")
    await book.do(
        "alias",
        q.update_collection_aliases,
        change_aliases_operations=[models.CreateAliasOperation(create_alias=alias)],
    )
    await book.do("aliases of it", q.get_collection_aliases, C)
    await book.do("all aliases", q.get_aliases)


async def write(q: Any, book: Notebook) -> None:
    given = vectors(30)
    await book.do("upsert", q.upsert, C, points=[point(n, given[n]) for n in range(20)], wait=True)
    batch = models.Batch(
        ids=[20, LONG], vectors=given[20:22], payloads=[{"n": 20}, {"n": 21, "text": 'quotes " \\ \n'}]
    )
    await book.do("upsert a batch", q.upsert, C, points=batch)
    await book.do("upsert by the alias", q.upsert, "current", points=[point(22, given[22])])
    await book.do("upsert a wrong dimension", q.upsert, C, points=[point(99, [1.0])])
    await book.do(
        "upload",
        q.upload_points,
        C,
        points=[point(n, given[n]) for n in range(23, 30)],
        batch_size=3,
        wait=True,
    )
    named = [
        models.PointStruct(
            id=n,
            vector={"a": v, "b": v[:2], "s": models.SparseVector(indices=[1, n + 3], values=[1.0, 0.5])},
            payload={"owner": n % 2},
        )
        for n, v in enumerate(given[:6])
    ]
    await book.do("upsert named", q.upsert, "many", points=named)
    await book.do(
        "set payload", q.set_payload, C, payload={"new": "é", "list": [1, None, 2.5]}, points=[1, 2]
    )
    await book.do(
        "set payload by filter", q.set_payload, C, payload={"found": True}, points=match("city", "Rome")
    )
    await book.do("set payload below a key", q.set_payload, C, payload={"more": 1}, key="nested", points=[3])
    await book.do("overwrite payload", q.overwrite_payload, C, payload={"only": 1}, points=[4])
    await book.do("delete payload", q.delete_payload, C, keys=["half"], points=[1])
    await book.do("clear payload", q.clear_payload, C, points_selector=[5])
    await book.do("update vectors", q.update_vectors, C, points=[models.PointVectors(id=6, vector=given[0])])
    await book.do("delete vectors", q.delete_vectors, "many", vectors=["b"], points=[1])
    await book.do(
        "batch of updates",
        q.batch_update_points,
        C,
        update_operations=[
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"b": 1}, points=[7])),
            models.DeleteOperation(delete=models.PointIdsList(points=[8])),
        ],
    )
    await book.do("delete", q.delete, C, points_selector=[9])
    await book.do("delete by filter", q.delete, C, points_selector=match("n", 10))


async def read(q: Any, book: Notebook) -> None:
    await book.do("retrieve", q.retrieve, C, ids=[1, LONG, 777], with_vectors=True)
    await book.do("retrieve a field", q.retrieve, C, ids=[1, 2], with_payload=["city", "nested.deep"])
    await book.do("retrieve by the alias", q.retrieve, "current", ids=[3])
    if isinstance(q, QdrantClient):
        await book.do("one point", q.http.points_api.get_point, collection_name=C, id=LONG)
    after, pages = None, 0
    while pages < 6:
        page = await book.do("scroll", q.scroll, C, limit=7, offset=after, with_vectors=pages == 0)
        pages, after = pages + 1, page[1]
        if after is None:
            break
    ranges = models.Filter(
        should=[models.FieldCondition(key="n", range=models.Range(gte=3, lt=6))],
        must_not=[models.HasIdCondition(has_id=[4])],
    )
    await book.do("scroll a filter", q.scroll, C, scroll_filter=ranges)
    nested = models.Filter(
        must=[
            models.NestedCondition(
                nested=models.Nested(
                    key="nested.deep",
                    filter=models.Filter(
                        must=[models.FieldCondition(key="x", match=models.MatchValue(value=3))]
                    ),
                )
            )
        ]
    )
    await book.do("scroll a nested filter", q.scroll, C, scroll_filter=nested)
    await book.do("scroll in order", q.scroll, C, order_by=models.OrderBy(key="n", direction="desc"), limit=4)
    await book.do("scroll what is not there", q.scroll, "absent")
    await book.do("count", q.count, C)
    await book.do("count a filter", q.count, C, count_filter=match("city", "Rome"), exact=True)
    await book.do("facet", q.facet, C, key="city")
    await book.do("facet a filter", q.facet, C, key="city", facet_filter=match("even", True), limit=2)


async def search(q: Any, book: Notebook) -> None:
    v = vectors(4, seed=7)
    await book.do("query", q.query_points, C, query=v[0], limit=5)
    await book.do(
        "query with all",
        q.query_points,
        C,
        query=v[0],
        limit=3,
        offset=2,
        with_payload=True,
        with_vectors=True,
        query_filter=match("even", True),
        score_threshold=-1.0,
    )
    await book.do("query by id", q.query_points, C, query=3, limit=3)
    await book.do("query named", q.query_points, "many", query=v[0][:2], using="b", with_vectors=["a"])
    await book.do(
        "query sparse",
        q.query_points,
        "many",
        query=models.SparseVector(indices=[1], values=[2.0]),
        using="s",
    )
    await book.do(
        "recommend",
        q.query_points,
        C,
        limit=4,
        query=models.RecommendQuery(recommend=models.RecommendInput(positive=[1, v[1]], negative=[2])),
    )
    pair = models.ContextPair(positive=1, negative=2)
    await book.do(
        "discover",
        q.query_points,
        C,
        limit=4,
        query=models.DiscoverQuery(discover=models.DiscoverInput(target=v[0], context=[pair])),
    )
    await book.do("context", q.query_points, C, query=models.ContextQuery(context=[pair]), limit=4)
    await book.do("order", q.query_points, C, query=models.OrderByQuery(order_by="n"), limit=4)
    fused = [
        models.Prefetch(query=v[0], limit=6),
        models.Prefetch(query=v[1], limit=6, filter=match("even", True)),
    ]
    await book.do(
        "prefetch and fusion",
        q.query_points,
        C,
        prefetch=fused,
        query=models.FusionQuery(fusion=models.Fusion.RRF),
    )
    await book.do(
        "prefetch and rescore",
        q.query_points,
        C,
        prefetch=models.Prefetch(prefetch=fused, query=v[2]),
        query=v[3],
    )
    await book.do(
        "look up elsewhere",
        q.query_points,
        C,
        query=1,
        lookup_from=models.LookupLocation(collection="many", vector="a"),
    )
    await book.do(
        "query a batch",
        q.query_batch_points,
        C,
        requests=[
            models.QueryRequest(query=v[0], limit=2, with_payload=True),
            models.QueryRequest(query=v[1], limit=3),
        ],
    )
    await book.do(
        "groups",
        q.query_points_groups,
        C,
        group_by="group",
        query=v[0],
        limit=3,
        group_size=2,
        with_payload=True,
    )
    await book.do(
        "groups with a lookup",
        q.query_points_groups,
        C,
        group_by="group",
        query=v[0],
        limit=2,
        with_lookup=models.WithLookup(collection="many"),
    )
    await book.do("pairs", q.search_matrix_pairs, C, query_filter=match("city", "Paris"), sample=50, limit=2)
    await book.do(
        "offsets", q.search_matrix_offsets, C, query_filter=match("city", "Paris"), sample=50, limit=2
    )
    await book.do("query a wrong dimension", q.query_points, C, query=[1.0])
    await book.do("query nothing", q.query_points, "absent", query=v[0])


async def administer(q: Any, book: Notebook) -> None:
    await book.do("snapshots", q.list_snapshots, C)
    await book.do("full snapshots", q.list_full_snapshots)
    await book.do("cluster", q.collection_cluster_info, C)
    change = models.DeleteAlias(alias_name="current")
    await book.do(
        "drop the alias",
        q.update_collection_aliases,
        change_aliases_operations=[models.DeleteAliasOperation(delete_alias=change)],
    )
    await book.do("by the dropped alias", q.count, "current")
    for name in (C, "many", "absent"):
        await book.do(f"delete {name}", q.delete_collection, name)
    await book.do("nothing left", q.get_collections)


async def main() -> None:
    warnings.simplefilter("ignore")
    book = Notebook()
    kind: Any = AsyncQdrantClient if sys.argv[1] == "async" else QdrantClient
    client = kind(host="127.0.0.1", port=6333, prefer_grpc=False, timeout=20)
    for part in (use_collections, write, read, search, administer):
        await part(client, book)
    await book.call(client.close)
    book.write()


asyncio.run(main())
