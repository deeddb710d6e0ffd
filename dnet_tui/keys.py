"""Which key does what: the bindings as they are now, and whether a key may be given to another of them.

everywhere   the app's own; they hold in the prompt, too, so a letter cannot be one of them
prompt, log  hold while that part has the focus, beside those of everywhere
<screen>     hold while that screen is open, and nothing else does
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from textual.app import App
from textual.binding import Binding
from textual.dom import DOMNode
from textual.keys import REPLACED_KEYS, format_key, key_to_character
from textual.signal import Signal
from textual.widgets import Input, TextArea

EVERYWHERE = "everywhere"


@dataclass(frozen=True, slots=True)
class Owner:
    """A part of the screen with keys of its own. While one that `is_over` all is open, only its own hold."""

    scope: str
    kind: type[DOMNode]
    is_over: bool = False
    is_written_in: bool = False  # text is typed there


@dataclass(frozen=True, slots=True)
class Key:
    """One thing that keys do: `keys` are its default ones, with commas between them."""

    id: str
    scope: str
    title: str
    keys: str
    fixed: bool = False  # a key that this program cannot change
    is_over: bool = False  # as of its owner
    is_typed: bool = False  # held where text is typed: a letter cannot be one of these
    goes_first: bool = False  # over all screens, whatever is open


def own_bindings(kind: type[DOMNode]) -> Iterator[Binding]:
    """The bindings that are written down in the class `kind` itself."""
    for binding in kind.__dict__.get("BINDINGS", ()):
        if isinstance(binding, Binding):
            yield binding


def _keys_of(kind: type[DOMNode]) -> frozenset[str]:
    return frozenset(key.strip() for binding in own_bindings(kind) for key in binding.key.split(","))


_IN_PROMPT = _keys_of(TextArea)
"""Keys that move and edit in the prompt, where nothing else hears them."""
_IN_LINE = _keys_of(Input)
"""The same in a line to write."""


def key_of(binding: Binding, owner: Owner) -> Key:
    assert binding.id is not None, "every binding has an id"
    title = binding.tooltip or binding.description
    is_typed = owner.scope == EVERYWHERE or owner.is_written_in
    goes_first = owner.scope == EVERYWHERE and binding.priority
    return Key(
        binding.id, owner.scope, title, binding.key,
        is_over=owner.is_over, is_typed=is_typed, goes_first=goes_first,
    )  # fmt: skip


@runtime_checkable
class Keyed(Protocol):
    """An app that knows its keys as they are now, and tells when they have changed."""

    keys_changed: Signal[None]

    def first_key(self, binding_id: str) -> str: ...


def key_text(app: App[Any], binding_id: str) -> str:
    """`d`, `ctrl+o`, `esc`: the first of the keys that do it now."""
    assert isinstance(app, Keyed), "only such apps have screens with keys"
    return keys_text(app.first_key(binding_id))


def when_keys_change(node: DOMNode, show: Callable[[], object]) -> None:
    """Call `show` each time a key was changed, as long as `node`, which names keys, is mounted."""
    assert isinstance(node.app, Keyed), "only such apps have widgets with keys"
    node.app.keys_changed.subscribe(node, lambda _: show())


def keys_now(key: Key, changed: Mapping[str, str]) -> str:
    return changed.get(key.id, key.keys)


def keys_text(keys: str) -> str:
    """`ctrl+n`, `esc`, `home, g`."""
    names = {
        "escape": "esc",
        "pageup": "pgup",
        "pagedown": "pgdn",
        "slash": "/",
        "delete": "del",
        "left": "←",
        "right": "→",
        "up": "↑",
        "down": "↓",
        "minus": "-",
        "plus": "+",
        "equals_sign": "=",
    }
    return ", ".join(
        names.get(k, k.upper() if k[:1] == "f" and k[1:].isdigit() else k) for k in keys.split(",")
    )


def clash(all_keys: Iterable[Key], changed: Mapping[str, str], of: Key, new: str) -> str | None:
    """Why `new` cannot be the key of `of`; None: it can."""
    is_own = new in of.keys.split(",")
    if of.is_typed and not is_own:
        where = "in the prompt" if of.scope == EVERYWHERE else of.scope
        typed = key_to_character(REPLACED_KEYS.get(new, new))
        if typed is not None and typed.isprintable():
            return f"{format_key(new)} is typed {where}: take one with ctrl, or an F key"
        if new in (_IN_LINE if of.is_over else _IN_PROMPT):
            return f"{keys_text(new)} moves or edits {where}: take another"
    for other in all_keys:
        if other.id == of.id:
            continue
        as_they_come = is_own and new in other.keys.split(",")  # then the part with the focus acts
        apart = other.is_over or of.is_over or as_they_come
        shares = other.scope == of.scope or (not apart and EVERYWHERE in (other.scope, of.scope))
        if (shares or other.goes_first or of.goes_first) and new in keys_now(other, changed).split(","):
            return f"{keys_text(new)} is taken: {other.title}"
    return None
