"""The routes for devices, plans and loading, on a ring of two shard processes of their own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from dnet_core.api.app import endpoint
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.events import LoadStarted, ModelLoaded
from dnet_core.tasks import TaskScope
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

LAYERS = 4


@pytest.fixture(scope="module")
def model(models: Path) -> str:
    directory = models / "planned-llama"
    return str(write_tiny_model("llama", directory, overrides={"num_hidden_layers": LAYERS}))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api() -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an endpoint with two shards and no model."""
    async with (
        Coordinator(ClusterOptions(local_shards=2)) as coordinator,
        endpoint(coordinator, "127.0.0.1", 0) as served,
        httpx2.AsyncClient(base_url=served.url, timeout=120) as client,
    ):
        await coordinator.wait_for_local_shards()
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def empty(api: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """The same, with nothing loaded."""
    assert (await api.post("/unload_model")).status_code == 200
    return api


async def post(api: httpx2.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    reply = await api.post(path, json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def refused(api: httpx2.AsyncClient, path: str, **body: Any) -> tuple[int, str, str | None, str]:
    """Status, code, field and text of the error."""
    reply = await api.post(path, json=body)
    error = reply.json()["error"]
    return reply.status_code, error["code"], error["param"], error["message"]


async def chat(api: httpx2.AsyncClient) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": "the quick brown"}], "max_tokens": 3, "temperature": 0}
    return await api.post("/chat/completions", json=body)


async def test_there_is_no_plan_before_there_is_one() -> None:
    async with (
        Coordinator(ClusterOptions()) as coordinator,
        endpoint(coordinator, "127.0.0.1", 0) as served,
        httpx2.AsyncClient(base_url=served.url) as fresh,
    ):
        reply = await fresh.get("/topology")
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_topology")
        assert (await refused(fresh, "/load_model"))[:2] == (400, "no_topology")


async def test_a_load_outlives_the_endpoint(model: str) -> None:
    async with (
        Coordinator(ClusterOptions(local_shards=1)) as coordinator,
        coordinator.subscribe() as events,
        httpx2.AsyncClient(timeout=120) as raw,
        TaskScope() as tasks,
    ):
        await coordinator.wait_for_local_shards()
        async with endpoint(coordinator, "127.0.0.1", 0) as served:
            posting = tasks.start(raw.post(f"{served.url}/load_model", json={"model": model}))
            while not isinstance(await anext(events), LoadStarted):
                pass
        reply = await posting
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "endpoint_stopped")
        while not isinstance(await anext(events), ModelLoaded):
            pass
        assert coordinator.loaded is not None
        assert coordinator.loaded.model == model


async def test_devices_say_where_they_are_and_what_they_hold(empty: httpx2.AsyncClient, model: str) -> None:
    devices = (await empty.get("/devices")).json()["devices"]
    assert len(devices) == 2
    for name, device in devices.items():
        assert device["instance"] == name
        assert (device["local_ip"], device["source"], device["error"]) == ("127.0.0.1", "local", None)
        assert (device["model"], device["is_busy"], device["is_manager"]) == (None, False, False)
        assert device["memory_total_bytes"] > 2**30
    await post(empty, "/load_model", model=model)
    devices = (await empty.get("/devices")).json()["devices"]
    assert [device["model"] for device in devices.values()] == [model, model]


async def test_what_prepare_answers_is_loaded_unchanged(empty: httpx2.AsyncClient, model: str) -> None:
    plan = await post(
        empty, "/prepare_topology", model=model, kv_bits="fp16", seq_len=300, max_batch_exp=1, strange=1
    )
    names = [device["instance"] for device in plan["devices"]]
    known = ("model", "kv_bits", "num_layers", "seq_len", "max_batch_exp", "loaded")
    assert [plan[key] for key in known] == [model, "fp16", LAYERS, 300, 1, False]
    assert [device["local_ip"] for device in plan["devices"]] == ["127.0.0.1", "127.0.0.1"]
    assert plan["assignments"] == [
        {
            "instance": names[place],
            "layers": [layers],
            "next_instance": names[1 - place],
            "window_size": 2,
            "residency_size": 2,
            "streamed": [],
            "num_buffers": 0,
        }
        for place, layers in enumerate([[0, 1], [2, 3]])
    ]
    prediction = plan["prediction"]
    assert plan["solution"] == {
        "k": 1,
        "w": [2, 2],
        "n": [2, 2],
        "obj_value": pytest.approx(
            prediction["ttft_s"] + prediction["answer_tokens"] * prediction["ms_per_token"] / 1e3
        ),
    }
    assert prediction["tokens_per_s"] == pytest.approx(2 * 1e3 / prediction["ms_per_token"])  # a batch of two
    assert [reason["used"] for reason in plan["reasons"]] == [True, True]
    assert [size["num_devices"] for size in plan["sizes"]] == [1, 2]
    assert (await empty.get("/topology")).json() == plan
    loaded = await post(empty, "/load_model", **plan)
    assert (loaded["model"], loaded["success"]) == (model, True)
    assert [s["layers_loaded"] for s in loaded["shard_statuses"]] == [[0, 1], [2, 3]]
    assert (await empty.get("/topology")).json() == {**plan, "loaded": True}
    assert (await chat(empty)).json()["usage"]["completion_tokens"] <= 3


async def test_a_plan_from_elsewhere_is_checked_and_loaded(empty: httpx2.AsyncClient, model: str) -> None:
    plan = await post(empty, "/prepare_topology", model=model, seq_len=256)
    first, second = plan["assignments"]
    first["layers"], second["layers"] = [[0, 1, 2]], [[3]]
    del first["residency_size"], second["residency_size"]
    loaded = await post(empty, "/load_model", **plan)
    assert [s["layers_loaded"] for s in loaded["shard_statuses"]] == [[0, 1, 2], [3]]
    kept = (await empty.get("/topology")).json()
    assert (kept["seq_len"], kept["loaded"]) == (256, True)


async def test_by_hand(empty: httpx2.AsyncClient, model: str) -> None:
    a, b = (await empty.get("/devices")).json()["devices"]
    assignments = [
        {"instance": b, "layers": [0, 2], "residency_size": 2, "window_size": 1, "next_instance": a},
        {"instance": a, "layers": [[1], [3]]},
    ]
    plan = await post(
        empty, "/prepare_topology_manual", model=model, assignments=assignments, num_layers=LAYERS
    )
    assert [(x["instance"], x["layers"]) for x in plan["assignments"]] == [(b, [[0], [2]]), (a, [[1], [3]])]
    assert plan["solution"]["k"] == 2
    assert (await post(empty, "/load_model"))["success"]  # the last plan
    assert (await chat(empty)).status_code == 200
    assert (await empty.get("/topology")).json()["loaded"]


@pytest.mark.parametrize(
    ("layers", "code", "said"),
    [
        ([[0, 2], [3]], "invalid_value", "must follow one another"),
        ([[0, 1], [2.5]], "invalid_value", "must be layer numbers"),
        ([[-1, 0]], "invalid_value", "must be layer numbers"),
        ([], "invalid_value", "leave the device out"),
        ("0-3", "invalid_value", "assignments[0].layers"),
        ([[0, 1]], "invalid_value", "end at layer 2 of 4"),
        ([[1, 2, 3]], "invalid_request", "reached layer 0"),
    ],
)
async def test_what_is_no_plan_is_refused(
    empty: httpx2.AsyncClient, model: str, layers: object, code: str, said: str
) -> None:
    (name, *_) = (await empty.get("/devices")).json()["devices"]
    status, told, _, message = await refused(
        empty,
        "/prepare_topology_manual",
        model=model,
        assignments=[{"instance": name, "layers": layers}],
        num_layers=LAYERS,
    )
    assert (status, told) == (400, code)
    assert said in message


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "said"),
    [
        ("/prepare_topology", {}, 400, "model", "required"),
        ("/prepare_topology", {"model": "m", "kv_bits": "5bit"}, 400, "kv_bits", "'fp16'"),
        ("/prepare_topology", {"model": "m", "seq_len": 0}, 400, "seq_len", "greater"),
        ("/prepare_topology", {"model": "m", "max_batch_exp": 99}, 400, "max_batch_exp", "less"),
        ("/prepare_topology", {"model": "no-such-model"}, 404, None, "no-such-model"),
        ("/load_model", {"model": "no-such-model"}, 404, None, "no-such-model"),
        (
            "/load_model",
            {
                "model": "m",
                "assignments": [{"instance": "a", "layers": [0]}, {"instance": "a", "layers": [1]}],
            },
            400,
            "assignments",
            "twice",
        ),
    ],
)
async def test_requests_that_cannot_be_served(
    empty: httpx2.AsyncClient, path: str, body: dict[str, Any], status: int, param: str | None, said: str
) -> None:
    found = await refused(empty, path, **body)
    assert (found[0], found[2]) == (status, param)
    assert said in found[3]


async def test_a_device_that_is_not_there(empty: httpx2.AsyncClient, model: str) -> None:
    assignments = [{"instance": "nobody", "layers": [[0, 1, 2, 3]]}]
    found = await refused(empty, "/load_model", model=model, assignments=assignments)
    assert found[:2] == (400, "invalid_request")
    assert "'nobody'" in found[3]


async def test_a_model_that_does_not_fit_says_what_is_missing(empty: httpx2.AsyncClient, model: str) -> None:
    directory = Path(model).with_name("long-llama")
    write_tiny_model("llama", directory, overrides={"max_position_embeddings": 2**40})
    status, code, _, message = await refused(
        empty, "/prepare_topology", model=str(directory), seq_len=2**40, max_batch_exp=1
    )
    assert (status, code) == (409, "infeasible_plan")
    assert "what would help" in message


async def test_a_loaded_model_is_replaced_by_the_next(api: httpx2.AsyncClient, model: str) -> None:
    other = Path(model).with_name("other-llama")
    write_tiny_model("llama", other, seed=1, overrides={"num_hidden_layers": LAYERS})
    await post(api, "/load_model", model=model)
    status, code, _, message = await refused(api, "/prepare_topology", model=str(other))
    assert (status, code) == (503, "model_not_ready")
    assert "unload" in message
    await post(api, "/load_model", model=str(other))
    assert json.loads((await api.get("/models")).text)["data"][0]["id"] == "other-llama"


async def test_unloading_frees_every_device(api: httpx2.AsyncClient, model: str) -> None:
    await post(api, "/load_model", model=model)
    gone = await post(api, "/unload_model")
    assert [s["success"] for s in gone["shard_statuses"]] == [True, True]
    devices = (await api.get("/devices")).json()["devices"]
    assert [device["model"] for device in devices.values()] == [None, None]
    assert (await chat(api)).status_code == 503
    assert (await post(api, "/unload_model"))["message"] == "nothing was loaded"
