"""Which key does what: the bindings as they are now, and whether a key may be given to another of them.

everywhere   the app's own; they hold in the prompt, too, so a letter cannot be one of them
prompt, log  hold while that part has the focus, beside those of everywhere
<screen>     hold while that screen is open, and nothing else does
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from textual.binding import Binding
from textual.keys import format_key

EVERYWHERE = "everywhere"


@dataclass(frozen=True, slots=True)
class Key:
    """One thing that keys do: `keys` are its default ones, with commas between them."""

    id: str
    scope: str
    title: str
    keys: str
    fixed: bool = False  # a key that this program cannot change


def key_of(binding: Binding, scope: str) -> Key:
    assert binding.id is not None, "every binding has an id"
    return Key(binding.id, scope, binding.tooltip or binding.description, binding.key)


def keys_now(key: Key, changed: Mapping[str, str]) -> str:
    return changed.get(key.id, key.keys)


def keys_text(keys: str) -> str:
    """`ctrl+n`, `esc`, `home, g`."""
    names = {"escape": "esc", "pageup": "pgup", "pagedown": "pgdn", "slash": "/", "delete": "del"}
    return ", ".join(
        names.get(k, k.upper() if k[:1] == "f" and k[1:].isdigit() else k) for k in keys.split(",")
    )


def clash(all_keys: Iterable[Key], changed: Mapping[str, str], of: Key, new: str) -> str | None:
    """Why `new` cannot be the key of `of`; None: it can."""
    if of.scope == EVERYWHERE and len(format_key(new)) == 1 and "+" not in new:
        return f"{format_key(new)} is typed into the prompt: take one with ctrl, or an F key"
    for other in all_keys:
        if other.id == of.id:
            continue
        shares = other.scope == of.scope or EVERYWHERE in (other.scope, of.scope)
        if shares and new in keys_now(other, changed).split(","):
            return f"{keys_text(new)} is taken: {other.title}"
    return None
