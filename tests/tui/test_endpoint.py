"""F4: the OpenAI endpoint beside the chat, on a real ring of two local shards and the sample model."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from textual.pilot import Pilot

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_tui.app import DnetApp
from dnet_tui.chat import ChatOverrides, Finished, Stopped
from dnet_tui.cluster import Cluster
from dnet_tui.launch import open_endpoint
from dnet_tui.main import SAMPLE_MODEL
from dnet_tui.pace import Timing
from dnet_tui.personal_app import Personal
from dnet_tui.screens.confirm import ConfirmScreen
from dnet_tui.screens.endpoint import EndpointScreen
from dnet_tui.service_app import Services
from dnet_tui.serving import Off, On, curl_text, environment_text
from dnet_tui.state import Ready
from dnet_tui.wishes import EndpointWish
from tests.tui.conftest import OpenDesk


@dataclass
class Room:
    app: DnetApp
    pilot: Pilot[None]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(120):
            while not holds():
                await self.pilot.pause(0.05)

    def text(self) -> str:
        return "\n".join(strip.text.rstrip() for strip in self.app.screen._compositor.render_strips())

    async def ask(self, text: str) -> None:
        self.app.conversation.prompt.insert(text)
        await self.pilot.press("enter")

    async def switch_on(self) -> On:
        await self.pilot.press("f4")
        await self.until(lambda: isinstance(self.app.endpoint, On))
        await self.pilot.pause()
        assert isinstance(self.app.endpoint, On)
        return self.app.endpoint


async def ask_over_http(url: str, path: str, body: dict[str, object]) -> tuple[int, str]:
    def post() -> tuple[int, str]:
        request = urllib.request.Request(
            url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(post)


@asynccontextmanager
async def room(wish: EndpointWish) -> AsyncIterator[Room]:
    """The whole app on a ring of two shards of its own."""

    @asynccontextmanager
    async def open_cluster() -> AsyncIterator[Cluster]:
        async with Coordinator(ClusterOptions(local_shards=2)) as coordinator:
            yield coordinator

    personal = Personal(override=ChatOverrides(temperature=0.0, max_tokens=200).over)
    services = Services(open_endpoint, wish)
    app = DnetApp(open_cluster, SAMPLE_MODEL, personal, Timing(blink=False), services)
    async with app.run_test(size=(120, 40)) as pilot:
        yield Room(app, pilot)


async def test_the_endpoint_serves_beside_the_chat() -> None:
    async with room(EndpointWish(port=0, sessions=1, waiting=1)) as desk:
        await desk.until(lambda: isinstance(desk.app.view.model, Ready))
        on = await desk.switch_on()
        text = desk.text()
        assert on.url in text
        assert f"export OPENAI_BASE_URL={on.url}" in text
        assert f"curl {on.url}/chat/completions" in text
        await desk.pilot.press("escape")
        assert f"API :{on.port}" in desk.text().splitlines()[0]

        turns = lambda: desk.app.conversation.turns  # noqa: E731
        await desk.ask("What is the capital of France?")
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        asked = asyncio.create_task(
            ask_over_http(
                on.url, "/chat/completions", {"messages": messages, "max_tokens": 12, "temperature": 0}
            )
        )
        await desk.until(lambda: isinstance(desk.app.endpoint, On) and desk.app.endpoint.activity.requests)
        status, reply = await asked
        assert status == 200
        assert "Paris" in json.loads(reply)["choices"][0]["message"]["content"]
        await desk.until(lambda: turns() and isinstance(turns()[-1].phase, Finished))
        assert "Paris" in turns()[-1].answer

        status, _ = await ask_over_http(on.url, "/chat/completions", {"messages": "nonsense"})
        assert status == 400
        await desk.until(lambda: isinstance(desk.app.endpoint, On) and desk.app.endpoint.activity.last_errors)
        await desk.pilot.pause()
        assert "last error 400" in desk.text().splitlines()[0]

        body: dict[str, object] = {"messages": messages, "max_tokens": 24}
        three = [ask_over_http(on.url, "/chat/completions", body) for _ in range(3)]
        told = sorted([status for status, _ in await asyncio.gather(*three)])
        assert told == [200, 200, 429], "one at once, one waits, as was wished for"

        await desk.ask("Tell a long story about a ship.")
        await desk.until(lambda: len(turns()) == 2 and turns()[-1].answer)
        await desk.pilot.press("escape")
        await desk.until(lambda: isinstance(turns()[-1].phase, Stopped))

        await desk.pilot.press("ctrl+q")
        await desk.pilot.pause()
        assert isinstance(desk.app.screen, ConfirmScreen), "quitting asks once while it serves"
        assert on.url in desk.text()
        await desk.pilot.press("escape")
        await desk.pilot.press("f4")
        assert isinstance(desk.app.endpoint, On), "who wants its address again does not switch it off"
        assert "F4 switches it off" in desk.text()
        await desk.pilot.press("f4")
        await desk.until(lambda: isinstance(desk.app.endpoint, Off))
        await desk.pilot.press("escape")
        refused = socket.socket()
        assert refused.connect_ex(("127.0.0.1", on.port)) != 0, "nothing listens any more"
        refused.close()
        assert isinstance(desk.app.view.model, Ready), "the chat goes on"


async def test_a_taken_port_offers_a_free_one_and_another_address_wants_a_key() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with taken:
        async with room(EndpointWish(port=port)) as desk:
            await desk.until(lambda: desk.app.view.here)
            await desk.pilot.press("f4")
            await desk.until(lambda: isinstance(desk.app.endpoint, Off) and desk.app.endpoint.problem)
            await desk.pilot.pause()
            assert isinstance(desk.app.screen, EndpointScreen)
            assert f"port {port}: another program uses it" in " ".join(desk.text().split())
            assert "enter takes it" in desk.text()
            await desk.pilot.press("enter")
            await desk.until(lambda: isinstance(desk.app.endpoint, On))
            await desk.pilot.press("f4")
            await desk.until(lambda: isinstance(desk.app.endpoint, Off))
            desk.app._services = replace(desk.app._services, endpoint=EndpointWish("0.0.0.0", 0))
            await desk.pilot.press("f4")
            await desk.until(lambda: isinstance(desk.app.endpoint, Off) and desk.app.endpoint.problem)
            await desk.pilot.pause()
            assert "key" in desk.text()


def test_what_is_copied_keeps_a_key_out_of_the_screen_and_in_the_clipboard() -> None:
    @dataclass(frozen=True)
    class Nothing:
        requests: tuple[()] = ()
        requests_total: int = 0
        last_errors: tuple[()] = ()

    on = On("http://10.0.0.2:8080/v1", 8080, "secret", Nothing())
    assert "secret" not in environment_text(on, shows_key=False)
    assert environment_text(on, shows_key=True).endswith("OPENAI_API_KEY=secret")
    assert "secret" not in curl_text(on)
    assert "$OPENAI_API_KEY" in curl_text(on)
    assert "$OPENAI_API_KEY" not in curl_text(replace(on, api_key=None))


async def test_a_cluster_without_an_endpoint_says_so(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.pilot.press("f4")
        await desk.pilot.pause()
        assert "there is no endpoint here" in desk.screen_text()
        await desk.pilot.press("escape")
        assert "API off" in desk.screen_text().splitlines()[0]
