"""One chat as a file: Markdown to read, JSON to keep everything."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

from dnet_tui.chat import Failed, Stopped
from dnet_tui.history import SavedChat
from dnet_tui.saved import settings_text, turn_json


def as_markdown(chat: SavedChat) -> str:
    """Questions as headings, answers as they were written; what was thought is folded away."""
    parts = [f"# {chat.title}", f"*{chat.model}, {_when(chat)}*"]
    if chat.settings.system:
        parts.append(f"> {chat.settings.system}".replace("\n", "\n> "))
    for turn in chat.turns:
        title, _, rest = turn.prompt.partition("\n")
        parts.append(f"## {title}")
        if rest.strip():
            parts.append(rest.strip())
        if turn.reply.thought is not None:
            thought = turn.reply.thought.text
            parts.append(f"<details><summary>Thought</summary>\n\n{thought}\n\n</details>")
        if turn.answer:
            parts.append(turn.answer.strip())
        match turn.phase:
            case Stopped():
                parts.append("*(stopped)*")
            case Failed(message=message):
                parts.append(f"*(failed: {message})*")
            case _:
                pass
    return "\n\n".join(parts) + "\n"


def as_json(chat: SavedChat) -> str:
    """All that is known of the chat, earlier answers included."""
    told = {
        "title": chat.title,
        "model": chat.model,
        "created": _when(chat),
        "settings": json.loads(settings_text(chat.settings)),
        "turns": [turn_json(turn) for turn in chat.turns],
    }
    return json.dumps(told, ensure_ascii=False, indent=2) + "\n"


def write_export(chat: SavedChat, folder: Path) -> tuple[Path, Path]:
    """Write both forms into `folder` under a name that is free; return (.md, .json). Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w-]+", "-", chat.title.lower()).strip("-")[:60] or "chat"
    number = 1
    while True:
        name = stem if number == 1 else f"{stem}-{number}"
        markdown, data = folder / f"{name}.md", folder / f"{name}.json"
        if not markdown.exists() and not data.exists():
            break
        number += 1
    with markdown.open("x", encoding="utf-8") as file:
        file.write(as_markdown(chat))
    with data.open("x", encoding="utf-8") as file:
        file.write(as_json(chat))
    return markdown, data


def _when(chat: SavedChat) -> str:
    return datetime.fromtimestamp(chat.created_unix_s).astimezone().isoformat(timespec="seconds")
