"""What all that is read from requests has in common: strict where a field is known, open where it is not."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _refuse(value: object) -> object:
    raise PydanticCustomError("unsupported", "this server does not support it")


Refused = Annotated[Any, AfterValidator(_refuse)]


Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Field(strict=False)]
"""A JSON array; strictness would ask for a Python tuple."""


class Body(BaseModel):
    """Base of everything read from a request."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value
