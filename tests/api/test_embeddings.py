"""/v1/embeddings with OpenAI's own client, over a ring of two shards."""

from __future__ import annotations

import math
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from dnet_core.coordinator import Coordinator
from tests.api.conftest import CONTEXT_TOKENS, MODEL
from tests.api.test_errors import error_of
from tests.ring_tools import until_idle

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXTS = ["the quick fox", "a lazy dog", "x"]


async def test_vectors_are_the_unit_means_of_the_hidden_states(
    client: openai.AsyncOpenAI, ring: Coordinator
) -> None:
    answer = await client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    tokens = [ring.tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
    for text, entry in zip(tokens, answer.data, strict=True):
        mean = np.array(await ring.embed(text))
        np.testing.assert_allclose(entry.embedding, mean / np.linalg.norm(mean), rtol=1e-6)
        assert math.isclose(np.linalg.norm(entry.embedding), 1.0, rel_tol=1e-6)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))
    assert answer.model == MODEL
    await until_idle(ring)


async def test_every_form_of_input_is_the_same(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    ids = [list(ring.tokenizer.encode(text, add_special_tokens=True)) for text in TEXTS]

    async def vectors(given: Any) -> list[list[float]]:
        # Without an encoding the official client asks for base64 and decodes it: both forms are compared.
        packed = await client.embeddings.create(model=MODEL, input=given)
        plain = await client.embeddings.create(model=MODEL, input=given, encoding_format="float")
        for one, other in zip(packed.data, plain.data, strict=True):
            np.testing.assert_array_equal(one.embedding, np.array(other.embedding, np.float32))
        return [entry.embedding for entry in plain.data]

    expected = await vectors(TEXTS)
    assert len({tuple(vector) for vector in expected}) == 3
    assert await vectors(ids) == expected
    assert await vectors(TEXTS[0]) == await vectors(ids[0]) == expected[:1]


async def test_the_raw_answer_is_openais(raw: httpx2.AsyncClient) -> None:
    response = await raw.post("/embeddings", json={"input": "hi", "encoding_format": "base64", "user": "me"})
    assert isinstance(response.json()["data"][0]["embedding"], str)
    CreateEmbeddingResponse.model_validate(
        (await raw.post("/embeddings", json={"input": "hi"})).json(), strict=True
    )
    alias = str(raw.base_url).removesuffix("v1/") + "embeddings"
    assert (await raw.post(alias, json={"input": "hi"})).status_code == 200


async def test_the_models_own_number_of_dimensions_may_be_asked_for(client: openai.AsyncOpenAI) -> None:
    size = len((await client.embeddings.create(model=MODEL, input="hi")).data[0].embedding)
    same = await client.embeddings.create(model=MODEL, input="hi", dimensions=size)
    assert len(same.data[0].embedding) == size
    with pytest.raises(openai.BadRequestError, match=str(size)) as caught:
        await client.embeddings.create(model=MODEL, input="hi", dimensions=size - 1)
    assert (caught.value.param, caught.value.code) == ("dimensions", "unsupported_parameter")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"input": ""}, "invalid_value"),
        ({"input": []}, "invalid_value"),
        ({"input": ["a", ""]}, "invalid_value"),
        ({"input": [10**6]}, "invalid_value"),
        ({"input": {"text": "a"}}, "invalid_value"),
        ({"input": ["a"] * 2049}, "invalid_value"),
        ({}, "missing_required_parameter"),
        ({"input": "a " * CONTEXT_TOKENS}, "context_length_exceeded"),
        ({"input": [7] * CONTEXT_TOKENS}, "context_length_exceeded"),
    ],
)
async def test_what_cannot_be_embedded(given: dict[str, Any], code: str, raw: httpx2.AsyncClient) -> None:
    response = await raw.post("/embeddings", json=given)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, code, "input")


async def test_more_texts_than_sessions(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model=MODEL, input=[f"text {i}" for i in range(40)])
    assert len({tuple(entry.embedding) for entry in answer.data}) == 40
