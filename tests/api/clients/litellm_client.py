"""LiteLLM against an endpoint: `litellm_client.py BASE_URL MODEL` prints JSON. It has its own environment."""

import json
import sys

import litellm

base_url, model = sys.argv[1:]
common = {"model": f"openai/{model}", "api_base": base_url, "api_key": "none", "num_retries": 0}
messages = [{"role": "user", "content": "the fox"}]
told = {}

whole = litellm.completion(**common, messages=messages, max_tokens=5, temperature=0)
told["whole"] = whole.choices[0].message.content
told["completion_tokens"] = whole.usage.completion_tokens

stream = litellm.completion(
    **common,
    messages=messages,
    max_tokens=5,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
chunks = list(stream)
told["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
told["streamed_tokens"] = [chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None)]

embedded = litellm.embedding(**common, input=["the fox", "x"])
told["vectors"] = [len(entry["embedding"]) for entry in embedded.data]

try:
    litellm.completion(**{**common, "model": "openai/another"}, messages=messages)
except litellm.NotFoundError as error:
    told["error"] = error.status_code

print(json.dumps(told))
