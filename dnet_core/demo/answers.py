"""What a simulated cluster says: written down here, because no model runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dnet_core.errors import DnetError

_TOKEN = re.compile(r"\s*\S{1,6}|\s+")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is thought and said, token by token, and the error that breaks it off after them, if any."""

    tokens: tuple[str, ...]
    error: DnetError | None = None
    thoughts: tuple[str, ...] = ()


def answer(text: str) -> Answer:
    """Cut `text` into pieces about as long as a model's tokens."""
    return Answer(tuple(_TOKEN.findall(text)))


_RING = """\
Pipeline parallelism cuts the model into **windows of layers**, one per device. Each token visits every \
device once per round:

1. the first device embeds the token and runs its layers
2. every next one receives the activation, a few kilobytes, and goes on
3. the last one samples, and sends the token *straight back* to the first

```python
async for frame in hop.frames():
    x = frame.activation
    for layer in window:
        x = layer(x, cache)
    await next_hop.send(x)
```

What does not fit a device's memory is read from its disk while the others compute.
"""

_TABLE = """\
What limits the speed of one answer, most often first:

| what | why | what helps |
|------|-----|------------|
| memory bandwidth | every weight is read once per token | more devices do not help, faster ones do |
| disk | layers that do not fit are read for every token | one more device, a smaller model |
| network | one small message per hop | a Thunderbolt cable instead of Wi-Fi |

The token timeline shows the three for every device, where the terminal is wide enough for it.
"""

_PLAIN = """\
This is a demonstration: no model runs and nothing leaves this machine. The devices are simulated, their \
plan is the real solver's, and the times are those that such Macs would take.

Try to **lose a device** (*Demo* in the palette), load another model, or move layers by hand in the plan.
"""

_PARIS = "The capital of France is **Paris**."

ANSWERS = tuple(answer(text) for text in (_PLAIN, _RING, _TABLE))
"""Given in turn."""

KNOWN = {"capital of france": answer(_PARIS)}
"""Given to questions that hold these words."""
