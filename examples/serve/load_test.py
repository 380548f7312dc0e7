"""How much a server takes: requests from 1, 8 and 64 clients at a time, against calling the model one by one.

    python examples/serve/serve.py --model bert-lam --port 8000 &
    python examples/serve/load_test.py --url http://127.0.0.1:8000 --model bert-lam --texts sentences.txt

`sentences.txt` has a text a line. Every client sends its next request when it has the answer to the last one. Without
`--model`, nothing is called one by one.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser


@dataclass
class LoadArguments:
    url: str = field(metadata={"help": "Of the server."})
    texts: str = field(metadata={"help": "A file with one text a line; they are sent in turn."})
    model: str | None = field(default=None, metadata={"help": "The folder that is served, to call it one by one."})
    clients: list[int] = field(default_factory=lambda: [1, 8, 64], metadata={"help": "How many send at a time."})
    requests: int = field(default=500, metadata={"help": "Requests of each number of clients."})
    json: str | None = field(default=None, metadata={"help": "A file for the figures."})


async def load(url: str, texts: list[str], clients: int, requests: int) -> dict[str, Any]:
    """Seconds of every request and of all, and how many failed."""
    numbers = iter(range(requests))
    seconds: list[float] = []
    failed = 0

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal failed
        for number in numbers:
            began = time.perf_counter()
            body = {"inputs": texts[number % len(texts)], "top_k": 1}
            async with session.post(f"{url}/predict", json=body) as response:
                await response.read()
                failed += response.status != 200
            seconds.append(time.perf_counter() - began)

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return summarize(f"{clients} clients", seconds, time.perf_counter() - began, failed)


def one_by_one(folder: str, texts: list[str], requests: int) -> dict[str, Any]:
    """The same requests, each a call of the model."""
    from classifier import Classifier

    classifier = Classifier(folder)
    seconds = []
    began = time.perf_counter()
    for number in range(requests):
        start = time.perf_counter()
        (logits,) = classifier.run([classifier.prepare(texts[number % len(texts)])])
        classifier.describe(logits, 1)
        seconds.append(time.perf_counter() - start)
    return summarize("one by one, no server", seconds, time.perf_counter() - began, 0)


def summarize(name: str, seconds: list[float], total: float, failed: int) -> dict[str, Any]:
    middle, most, worst = (1000 * np.percentile(seconds, x) for x in (50, 95, 99))
    return {
        "name": name,
        "requests_per_s": len(seconds) / total,
        "p50_ms": middle,
        "p95_ms": most,
        "p99_ms": worst,
        "failed": failed,
    }


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    kinds: Any = (LoadArguments,)
    (wanted,) = HfArgumentParser(kinds, description=__doc__, allow_abbrev=False).parse_args_into_dataclasses(arguments)
    texts = [line for line in Path(wanted.texts).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"--texts {wanted.texts!r} has no texts.")
    asyncio.run(load(wanted.url, texts, 1, min(20, wanted.requests)))  # the first ones are slower
    rows = [asyncio.run(load(wanted.url, texts, clients, wanted.requests)) for clients in wanted.clients]
    if wanted.model is not None:
        rows.append(one_by_one(wanted.model, texts, wanted.requests))
    table = Table("", "requests/s", "p50, ms", "p95, ms", "p99, ms", "failed")
    for row in rows:
        figures = (row["requests_per_s"], row["p50_ms"], row["p95_ms"], row["p99_ms"])
        table.add_row(row["name"], *(f"{figure:.1f}" for figure in figures), str(row["failed"]))
    Console().print(table)
    if wanted.json is not None:
        Path(wanted.json).write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
