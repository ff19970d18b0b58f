# SPDX-License-Identifier: Apache-2.0
"""What the demo puts into its folder: documents, two clients, a policy, a configuration.

The clients are ordinary chromadb programs; nothing in them is Vecward's. They run in Chroma's own venv.
"""

from __future__ import annotations

import json
from pathlib import Path

COLLECTION = "contracts"
PEOPLE = ("ada.lovelace@northwind.example", "j.doe@acme.example", "m.ruiz@globex.example")
SSNS = ("078-05-1120", "219-09-9999", "457-55-5462")
DOCUMENTS = (
    f"Either party may cancel the lease with ninety days notice, in writing, to {PEOPLE[0]}.",
    f"The supplier may cancel an order within ten days; questions go to {PEOPLE[1]}.",
    f"Wages are paid on the last working day. Payroll is kept by {PEOPLE[2]}.",
    "All drawings and source code made under this contract belong to the client.",
    "Liability is limited to the fees of the twelve months before the damage.",
    "Neither party may talk of prices or customers for five years after the end.",
)
WORDS = '''\
"""Stands in for an embedding model: 64 numbers of length 1 that count a text's longer words."""
import math, re, zlib

def embed(text):
    vector = [0.01] * 64
    for word in re.findall(r"[a-z]{5,}", text.lower()):
        vector[zlib.crc32(word.encode()) % 64] += 1.0
    return [number / math.hypot(*vector) for number in vector]
'''
FILL = """\
import json, chromadb
from words import embed
rows = json.load(open("documents.json"))
contracts = chromadb.HttpClient(port=8000).create_collection("contracts", embedding_function=None)
contracts.add(ids=[r["id"] for r in rows], documents=[r["text"] for r in rows],
              metadatas=[{"page": r["page"], "ssn": r["ssn"]} for r in rows],
              embeddings=[embed(r["text"]) for r in rows])
print(contracts.count(), "documents")
"""
APP = """\
import sys, chromadb
from words import embed
contracts = chromadb.HttpClient(port=8000).get_collection("contracts", embedding_function=None)
found = contracts.query(query_embeddings=[embed(sys.argv[1])], n_results=2,
                        include=["documents", "metadatas", "embeddings"])
for text, about in zip(found["documents"][0], found["metadatas"][0]):
    print(text, "SSN", about["ssn"])
vectors = found["embeddings"]
print("embeddings:", "none" if vectors is None else f"{len(vectors[0])} of {len(vectors[0][0])} numbers")
"""
NOSY = """\
import chromadb
contracts = chromadb.HttpClient(port=8000).get_collection("contracts", embedding_function=None)

def take(what, method, **wanted):
    try:
        print(f"{what}: got", len(getattr(contracts, method)(**wanted)["ids"]), "documents")
    except Exception as error:
        print(f"{what}: {type(error).__module__}.{type(error).__name__}: {error}")

take("the embeddings", "get", include=["embeddings"], limit=6)
take("everything", "get")
"""
POLICY = """\
version: 1
rules:
  - id: clients-may-start             # handshake, version, finding the collection
    what: {{action: session}}
    allow: true
  - id: app-searches
    who: {{user: {app}}}
    what: {{guard: docs, collection: contracts, action: search}}
    allow: true
    limit: {{top_k: 5}}
    vectors: false                    # embeddings never leave, asked for or not
    mask:
      - {{pii: [email], as: redact}}
      - {{field: metadata.ssn, as: hmac}}
  - id: contracts-are-the-apps
    what: {{collection: contracts, action: [search, read, scan, snapshot]}}
    unless: {{who: {{user: {app}}}}}
    deny: "contracts are searched by {app} only"
"""
CONFIG = """\
guards:
  - name: docs
    engine: chroma
    ports: [{port}]
    mode: observe
policy: [policy.yaml]
evidence: {{dir: evidence, reserve: 1MiB}}
proxy: {{workers: 2}}
steer: {{cgroup: {cgroup}, pins: {pins}}}
control: {{socket: {folder}/run/control.sock}}
metrics: {{listen: "unix:{folder}/run/metrics.sock"}}
"""


def write(folder: Path, app: str, port: int, cgroup: Path | str, pins: Path) -> None:
    """Everything, readable by every user: the clients run as others. `cgroup`: a path, or "auto"."""
    rows = [
        {"id": f"c{n + 1}", "text": text, "page": n + 1, "ssn": SSNS[n % len(SSNS)]}
        for n, text in enumerate(DOCUMENTS)
    ]
    files = {
        "words.py": WORDS, "fill.py": FILL, "app.py": APP, "nosy.py": NOSY,
        "documents.json": json.dumps(rows, indent=1) + "\n",
        "policy.yaml": POLICY.format(app=app),
        "vecward.yaml": CONFIG.format(port=port, cgroup=cgroup, pins=pins, folder=folder),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
