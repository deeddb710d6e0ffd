"""Trust between processes, with real servers and channels on loopback."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from dnet_core.errors import PeerLost, StartError, TrustError
from dnet_core.transport import tls
from dnet_core.transport.failures import from_rpc
from dnet_core.transport.tls import ClusterKey

KEY = ClusterKey(bytes(range(20)))
KEY_TEXT = "AAAQ-EAYE-AUDA-OCAJ-BIFQ-YDIO-B4IB-CEQT"
DEADLINE_S = 10.0


def same(data: bytes) -> bytes:
    return data


async def echo(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


@asynccontextmanager
async def served(credentials: grpc.ServerCredentials | None) -> AsyncIterator[str]:
    """An echo server; yields its target."""
    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(echo, same, same)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", {"Echo": handler})])
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


async def said_back(target: str, credentials: grpc.ChannelCredentials | None, message: bytes) -> bytes:
    """Send `message` through the echo server at `target`; raises AioRpcError when it cannot be reached."""
    if credentials is None:
        channel = grpc.aio.insecure_channel(target)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options=tls.CHANNEL_OPTIONS)
    async with channel:
        call = channel.stream_stream("/test/Echo", same, same)(iter([message]), timeout=DEADLINE_S)
        return b"".join([reply async for reply in call])


async def refused(target: str, credentials: grpc.ChannelCredentials | None) -> str:
    """Fail to reach `target`; return the text of the TrustError that the failure means."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await said_back(target, credentials, b"let me in")
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    error = tls.refusal("studio", failure.value.details() or "")
    assert isinstance(error, TrustError), failure.value.details()
    return str(error)


async def test_a_local_shard_that_ends_while_it_is_reached_is_lost_and_not_distrusted(tmp_path: Path) -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    path = tmp_path / "s"
    async with await asyncio.start_unix_server(hang_up, path):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await said_back(f"unix:{path}", None, b"let me in")
    assert isinstance(from_rpc(failure.value, "vm-1"), PeerLost)


def server(key: ClusterKey = KEY, age: timedelta = timedelta()) -> grpc.ServerCredentials:
    return tls.server_credentials(tls.issue(key, "studio", datetime.now(UTC) - age))


def client(key: ClusterKey = KEY, age: timedelta = timedelta()) -> grpc.ChannelCredentials:
    return tls.channel_credentials(tls.issue(key, "laptop", datetime.now(UTC) - age))


async def test_processes_with_the_same_key_reach_each_other() -> None:
    key = ClusterKey.from_text(KEY.text)  # as another process would have got it
    async with served(server()) as target:
        assert await said_back(target, client(key), b"hello" * 1000) == b"hello" * 1000


async def test_another_key_is_refused() -> None:
    async with served(server()) as target:
        assert "another cluster key" in await refused(target, client(ClusterKey.generate()))


async def test_no_key_is_refused() -> None:
    ca_pem = tls.issue(KEY, "studio").ca_pem
    async with served(server()) as target:
        assert "hung up" in await refused(target, None)
        assert "hung up" in await refused(target, grpc.ssl_channel_credentials(ca_pem))


async def test_a_server_without_the_key_is_refused() -> None:
    async with served(None) as target:
        assert "has no cluster key" in await refused(target, client())
    async with served(server(ClusterKey.generate())) as target:
        assert "another cluster key" in await refused(target, client())


async def test_an_expired_certificate_is_refused() -> None:
    expired = tls.VALIDITY + timedelta(minutes=1)
    async with served(server()) as target:
        assert "hung up" in await refused(target, client(age=expired))
    async with served(server(age=expired)) as target:
        assert "clock" in await refused(target, client())


async def test_clocks_may_differ_by_a_day() -> None:
    skew = tls.CLOCK_SKEW - timedelta(minutes=1)
    async with served(server(age=-skew)) as target:
        assert await said_back(target, client(age=skew), b"x") == b"x"
        assert await said_back(target, client(age=-skew), b"x") == b"x"
    async with served(server(age=-skew - timedelta(minutes=2))) as target:
        assert "clock" in await refused(target, client())


async def test_a_closed_port_is_no_matter_of_trust() -> None:
    async with served(server()) as target:
        pass
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await said_back(target, client(), b"x")
    assert tls.refusal("studio", failure.value.details() or "") is None


def test_every_process_derives_the_same_authority() -> None:
    """Also tomorrow: another derivation would split running clusters."""
    certificate = x509.load_pem_x509_certificate(tls.issue(KEY, "a").ca_pem)
    other = x509.load_pem_x509_certificate(tls.issue(KEY, "b").ca_pem)
    numbers: Any = certificate.public_key()
    assert certificate.public_key() == other.public_key()
    assert (
        hex(numbers.public_numbers().x)
        == "0x15e9b5d10d5e9579cae7389fbe8fb17fb81472f554ccafb9a4dac76b48e78d5e"
    )


@pytest.mark.parametrize("peer", ["studio", "Anna's Mäc mini", "x" * 300, ""])
def test_certificates_fit_any_peer_name(peer: str) -> None:
    certificate = tls.issue(KEY, peer)
    leaf = x509.load_pem_x509_certificate(certificate.chain_pem)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(certificate.ca_pem))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [tls.SERVER_NAME]
    assert load_pem_private_key(certificate.key_pem, None).public_key() == leaf.public_key()
    assert tls.issue(KEY, peer).key_pem != certificate.key_pem


def test_key_text_survives_people() -> None:
    assert KEY.text.startswith(KEY_TEXT)
    assert len(KEY.text.split("-")) == 9
    for text in (KEY.text, KEY.text.lower(), KEY.text.replace("-", " "), f"  {KEY.text}\n"):
        assert ClusterKey.from_text(text) == KEY
    assert ClusterKey.from_text(KEY.text.replace("O", "0").replace("I", "1").replace("B", "8")) == KEY
    random = ClusterKey.generate()
    assert ClusterKey.from_text(random.text) == random


def test_a_mistyped_key_is_noticed() -> None:
    chars = KEY.text.replace("-", "")
    for at, right in enumerate(chars):
        for wrong in set("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") - {right}:
            with pytest.raises(TrustError, match="typing mistake"):
                ClusterKey.from_text(chars[:at] + wrong + chars[at + 1 :])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this one 0"),
        (KEY_TEXT, "this one 32"),
        ("=" * 36, "letters A to Z"),
        ("é" * 36, "letters A to Z"),
    ],
)
def test_what_is_no_key_is_refused(text: str, message: str) -> None:
    with pytest.raises(TrustError, match=message):
        ClusterKey.from_text(text)


def test_secrets_are_not_shown() -> None:
    assert KEY.text not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)
    assert "PRIVATE KEY" not in repr(tls.issue(KEY, "a"))


def test_the_first_start_makes_the_key_and_the_next_one_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "config" / "cluster.key"
    key = tls.find_key(None, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tls.find_key(None, path) == key
    assert tls.find_key(KEY.text, path) == KEY  # handed down: goes before the file
    assert list(path.parent.iterdir()) == [path]
    tls.save_key(KEY, path)
    assert tls.find_key(None, path) == KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    for n in range(20):
        path = tmp_path / f"{n}.key"
        with ThreadPoolExecutor(8) as threads:
            keys = set(threads.map(lambda _, p=path: tls.find_key(None, p), range(8)))
        assert len(keys) == 1


def test_a_key_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    tls.save_key(KEY, path)
    path.chmod(0o640)
    with pytest.raises(TrustError, match="chmod 600"):
        tls.find_key(None, path)


def test_bad_key_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    path.touch(0o600)
    for content in (b"", b"\xff\xfe", KEY_TEXT.encode()):
        path.write_bytes(content)
        with pytest.raises(TrustError, match="does not hold a cluster key"):
            tls.find_key(None, path)
    beneath = path / "cluster.key"  # a file where a folder should be
    with pytest.raises(StartError, match="cannot be used"):
        tls.find_key(None, beneath)
    with pytest.raises(StartError, match="cannot be written"):
        tls.save_key(KEY, beneath)
