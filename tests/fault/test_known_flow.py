"""The flow that users of dnet know, word for word: shards, API, and curl, each a process of its own.

dnet-shard                          on each machine
dnet-api --peer A --peer B
curl .../v1/prepare_topology | curl .../v1/load_model -d @-
curl .../v1/chat/completions
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dnet_core.settings import child_environment
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")

CLUSTER = ("--cluster", "known-flow", "--no-mdns")
LAYERS = 5


@contextmanager
def process(home: Path, module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command until the block ends, and the line in which it says where it is ready."""
    with (home / f"{module}.log").open("a") as log:
        running = subprocess.Popen(
            (sys.executable, "-m", module, *CLUSTER, *arguments),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=child_environment(DNET_HOME=str(home)),
        )
    with running:
        try:
            assert running.stdout is not None
            yield running, running.stdout.readline()
        finally:
            running.kill()


@contextmanager
def shard(home: Path, name: str) -> Iterator[str]:
    """A `dnet-shard`; yields `host:port`."""
    ports = ("--grpc-port", "0", "--http-port", "0")
    with process(home, "dnet_core.shard.main", "--name", name, "--host", "127.0.0.1", *ports) as (_, ready):
        found = re.search(r"is ready: gRPC on (\d+)", ready)
        assert found is not None, ready
        yield f"127.0.0.1:{found[1]}"


def curl(url: str, path: str, body: str | None = None) -> Any:
    """What `curl` prints, as JSON."""
    command = ["curl", "--silent", "--show-error", "--max-time", "120", f"{url}{path}"]
    if body is not None:
        command += ["-X", "POST", "-H", "Content-Type: application/json", "-d", "@-"]
    done = subprocess.run(command, input=body, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_known_flow(tmp_path: Path) -> None:
    model = str(write_tiny_model("llama", tmp_path / "flow-llama", overrides={"num_hidden_layers": LAYERS}))
    with ExitStack() as stack:
        targets = [stack.enter_context(shard(tmp_path, name)) for name in ("studio", "mini")]
        peers = [word for target in targets for word in ("--peer", target)]
        head = process(
            tmp_path, "dnet_core.main", "--no-local-shard", *peers, "--no-load", "--http-port", "0"
        )
        api, listens = stack.enter_context(head)
        found = re.search(r"listens on (http://\S+/v1); nothing is loaded", listens)
        assert found is not None, listens
        url = found[1]

        while len(curl(url, "/devices")["devices"]) < 2:
            pass  # until both have answered; the test's timeout is the bound

        plan = curl(url, "/prepare_topology", json.dumps({"model": model, "seq_len": 256}))
        assert sorted(device["instance"] for device in plan["devices"]) == ["mini", "studio"]
        assert sorted(i for a in plan["assignments"] for w in a["layers"] for i in w) == list(range(LAYERS))

        by_hand = [
            {"instance": name, "layers": [layers]}
            for name, layers in (("studio", [0, 1, 2]), ("mini", [3, 4]))
        ]
        plan = curl(url, "/prepare_topology_manual", json.dumps({**plan, "assignments": by_hand}))
        assert [a["next_instance"] for a in plan["assignments"]] == ["mini", "studio"]

        loaded = curl(url, "/load_model", json.dumps(plan))
        assert [(s["instance"], s["layers_loaded"]) for s in loaded["shard_statuses"]] == [
            ("studio", [0, 1, 2]),
            ("mini", [3, 4]),
        ]
        assert curl(url, "/topology")["loaded"] is True

        question = {"model": "flow-llama", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        answer = curl(url, "/chat/completions", json.dumps({**question, "temperature": 0}))
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")
        assert 1 <= answer["usage"]["completion_tokens"] <= 4

        devices = curl(url, "/devices")["devices"]
        assert {name: device["model"] for name, device in devices.items()} == {"studio": model, "mini": model}
        assert {f"{d['local_ip']}:{d['shard_port']}" for d in devices.values()} == set(targets)

        assert curl(url, "/unload_model", "{}")["success"] is True
        assert {device["model"] for device in curl(url, "/devices")["devices"].values()} == {None}

        api.send_signal(signal.SIGTERM)
        assert api.wait(30) == 0
