"""Modules of a model with another call: what stands in the list of layers while a window runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class Wrapped:
    """A module of which only the call is another one; anything else it is asked goes to the module itself."""

    def __init__(self, module: Any) -> None:
        self._module = module

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The module's own class: a model may ask `isinstance(layer, FullAttentionLayer)`."""
        return type(self._module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class StandIn(Wrapped):
    """A layer that returns what `output` gives."""

    def __init__(self, layer: nn.Module, output: Callable[[], Any]) -> None:
        super().__init__(layer)
        self._output = output

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._output()


class Observer(Wrapped):
    """The real layer; tells `saw` its arguments and its output at every call."""

    def __init__(self, layer: nn.Module, saw: Callable[[tuple[Any, ...], Any], None]) -> None:
        super().__init__(layer)
        self._saw = saw

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._module(*args, **kwargs)
        self._saw((*args, *kwargs.values()), output)
        return output


class Streamed(Wrapped):
    """A layer that has its weights only during its `turn`, so that nothing of it may stay lazy."""

    def __init__(self, layer: nn.Module, turn: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(layer)
        self._turn = turn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        mx.eval([value for value in given if isinstance(value, mx.array)])  # while the disk is still reading
        with self._turn():
            output = self._module(*args, **kwargs)
            mx.eval(output, [value.state for value in given if hasattr(value, "state")])
        return output


class LastToken(Wrapped):
    """The model's body; only the last token's row of what it returns `[batch, tokens, hidden]` goes on."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._module(*args, **kwargs)
        return output[:, -1:, :] if isinstance(output, mx.array) else output
