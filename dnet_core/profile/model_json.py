"""A model's profile and a ring's links as JSON, so that plans can be made where neither is at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dnet_core.errors import RequestError
from dnet_core.profile.device import Figure, Text
from dnet_core.types.profiles import KVKind, KVProfile, LayerProfile, LinkProfile, ModelProfile

MODEL_PROFILE_VERSION = 2
"""Bumped when a figure means something else: older files are then refused."""

# What no model reaches, and what sums over all layers still fit into 64 bits with.
_Some = Annotated[int, Field(ge=1, le=1 << 50)]
_Any = Annotated[int, Field(ge=0, le=1 << 50)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _KVDocument(_Document):
    kind: KVKind
    bytes_per_token: _Any
    state_bytes: _Any
    window_tokens: _Some


class _LayerDocument(_Document):
    weight_bytes: _Some
    active_weight_bytes: _Some
    flops_per_token: _Any
    attention_flops_per_token_pair: _Any
    weight_format: Text
    kv: _KVDocument


class _ModelDocument(_Document):
    model_profile_version: Literal[2]
    model: Text
    model_type: Text
    layers: tuple[_LayerDocument, ...] = Field(min_length=1)
    embedding_bytes: _Any
    head_bytes: _Any
    head_flops_per_token: _Any
    hidden_size: _Some
    vocab_size: _Some
    activation_bytes_per_token: _Some
    context_tokens: _Some
    weight_format: Text
    head_weight_format: Text


class _LinkDocument(_Document):
    source: Text
    target: Text
    address: Text
    medium: Text
    latency_s: Figure
    bytes_per_s: Figure


_LINKS = TypeAdapter(tuple[_LinkDocument, ...])


def model_profile_to_json(profile: ModelProfile) -> str:
    """`profile` as a JSON object, indented, its fields by their names."""
    return json.dumps({"model_profile_version": MODEL_PROFILE_VERSION, **asdict(profile)}, indent=2) + "\n"


def model_profile_from_json(text: str, source: str) -> ModelProfile:
    """Read what `model_profile_to_json` wrote. Raises RequestError that names `source` and the field."""
    try:
        document = _ModelDocument.model_validate_json(text)
    except ValidationError as error:
        raise _unreadable(error, source, "a model profile") from error
    fields = document.model_dump(exclude={"model_profile_version", "layers"})
    return ModelProfile(**fields, layers=tuple(_layer(layer) for layer in document.layers))


def _layer(document: _LayerDocument) -> LayerProfile:
    kv = KVProfile(**document.kv.model_dump())
    return LayerProfile(**document.model_dump(exclude={"kv"}), kv=kv)


def links_to_json(links: Sequence[LinkProfile]) -> str:
    """`links` as a JSON list, indented."""
    return json.dumps([asdict(link) for link in links], indent=2) + "\n"


def links_from_json(text: str, source: str) -> tuple[LinkProfile, ...]:
    """Read what `links_to_json` wrote. Raises RequestError that names `source` and the field."""
    try:
        documents = _LINKS.validate_json(text)
    except ValidationError as error:
        raise _unreadable(error, source, "a list of links") from error
    return tuple(LinkProfile(**document.model_dump()) for document in documents)


def _unreadable(error: ValidationError, source: str, what: str) -> RequestError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    where = f"{source}: field '{field}'" if field else source
    return RequestError(f"{where} of {what}: {first['msg']}")
