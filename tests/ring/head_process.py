"""A head without a screen, for tests that kill it: loads a model over given shards, prints token ids.

python -m tests.ring.head_process '{"model": "...", "targets": ["127.0.0.1:1"], "prompt": [1, 2], ...}'
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from typing import Any

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.discover.static import parse_target
from dnet_core.types.generation import SamplingParams, TokenText
from tests.ring_tools import ring_plan
from tests.tiny_models import EOS, make_tokenizer

ENDLESS = SamplingParams(logit_bias=((make_tokenizer().token_to_id(EOS), -100.0),))


async def main(job: dict[str, Any]) -> None:
    static = tuple(parse_target(text) for text in job["targets"])
    async with Coordinator(ClusterOptions(local_shards=0, static=static)) as ring:
        async with ring.subscribe() as events:
            while len(ring.peers) < len(static):
                await anext(events)
        peers = sorted(ring.peers, key=lambda peer: peer.name)
        buffers = job["num_buffers"]
        streamed = range(job["ends"][-1] if buffers else 0)
        plan = ring_plan(job["model"], peers, job["ends"], 1, streamed, buffers)
        await ring.load(job["model"], replace(plan, context_tokens=2048), job["chunk_tokens"])
        async for event in ring.generate_from(tuple(job["prompt"]), ENDLESS):
            if isinstance(event, TokenText):
                print(event.token, flush=True)


asyncio.run(main(json.loads(sys.argv[1])))
