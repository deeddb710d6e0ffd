"""Trust: one cluster key, from which every process derives the same certificate authority.

    cluster key  --HKDF-->  key of the CA (P-256)  --signs-->  certificate of this process
    160 bits                the same everywhere                made at start, kept in memory

Two processes that hold the key accept each other's certificates (mutual TLS); whoever lacks it can neither
connect nor listen in the middle. There is no server to ask and no state to keep but the key itself.

A certificate lasts a year and is not renewed: its key never leaves the process, which holds the cluster key
as well, so a shorter life would protect nothing. A process that runs longer must be started again.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dnet_core.errors import StartError, TrustError

KEY_BYTES = 20
CHECK_CHARS = 4  # 20 bits: one mistyped key in a million passes, and then fails the handshake
GROUP_CHARS = 4

SERVER_NAME = "dnet-shard"
"""The one name in all certificates: peers are reached by addresses that change, and the key is the proof."""

CHANNEL_OPTIONS = (("grpc.ssl_target_name_override", SERVER_NAME),)
"""What a channel with `channel_credentials` needs beside them."""

CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dnet cluster")])
CA_INFO = b"dnet cluster certificate authority, version 1"
CA_START = datetime(2000, 1, 1, tzinfo=UTC)
CA_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280: "no well-defined expiration"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

VALIDITY = timedelta(days=365)
CLOCK_SKEW = timedelta(days=1)  # how far the clocks of two devices may be apart


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """The secret of a cluster: `KEY_BYTES` random bytes, never shown by `repr`."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a cluster key has {KEY_BYTES} bytes, not {len(self.secret)}")

    @classmethod
    def generate(cls) -> ClusterKey:
        """Return a new random key."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def from_text(cls, text: str) -> ClusterKey:
        """Read what `text` wrote: case, spaces and dashes do not matter, nor 0 for O, 1 for I, 8 for B.

        Raises TrustError when characters are missing or mistyped.
        """
        chars = "".join(char for char in text.upper() if char not in " -\t\r\n").translate(_LOOK_ALIKES)
        key_chars = KEY_BYTES * 8 // 5
        if len(chars) != key_chars + CHECK_CHARS:
            raise TrustError(
                f"a cluster key has {key_chars + CHECK_CHARS} letters and digits, this one {len(chars)}:"
                " copy it again from a device of the cluster"
            )
        try:
            key = cls(base64.b32decode(chars[:key_chars]))
        except ValueError:
            raise TrustError("a cluster key has only the letters A to Z and the digits 2 to 7") from None
        if not secrets.compare_digest(chars, key._chars()):
            raise TrustError(
                "the cluster key has a typing mistake: copy it again from a device of the cluster"
            )
        return key

    @property
    def text(self) -> str:
        """The key for people: `ABCD-EFGH-...`, nine groups, the last one a checksum."""
        chars = self._chars()
        return "-".join(chars[at : at + GROUP_CHARS] for at in range(0, len(chars), GROUP_CHARS))

    def _chars(self) -> str:
        check = hashlib.sha256(b"dnet cluster key" + self.secret).digest()
        return base64.b32encode(self.secret).decode() + base64.b32encode(check).decode()[:CHECK_CHARS]


_LOOK_ALIKES = str.maketrans("018", "OIB")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a process shows and what it accepts, as PEM. `key_pem` is secret."""

    ca_pem: bytes
    chain_pem: bytes
    key_pem: bytes = field(repr=False)


def find_key(text: str | None, path: Path) -> ClusterKey:
    """Return the cluster key: `text` where a parent handed one down, else what the file at `path` holds.

    The file is made, with a new key, when there is none. Raises TrustError for a bad or unprotected key,
    StartError when the file cannot be read or written.
    """
    if text is not None:
        return ClusterKey.from_text(text)
    try:
        return _read_key(path) or _create_key(path)
    except OSError as error:
        raise StartError(f"the cluster key {path} cannot be used: {error.strerror}") from error


def save_key(key: ClusterKey, path: Path) -> None:
    """Make `key` this device's cluster key, in place of another one. Raises StartError when it cannot."""
    try:
        new = _write_beside(key, path)
        new.replace(path)
    except OSError as error:
        raise StartError(f"the cluster key {path} cannot be written: {error.strerror}") from error


def issue(key: ClusterKey, peer: str, now: datetime | None = None) -> Certificate:
    """Make a certificate of this cluster for the process `peer`, valid from `now` (default: the clock).

    It holds `SERVER_NAME` and, as `dnet://peer`, the name of the process, for logs; the name is no proof.
    """
    now = now or datetime.now(UTC)
    ca_key = _ca_key(key)
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(SERVER_NAME), x509.UniformResourceIdentifier(f"dnet://{quote(peer, safe='')}")]
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)]))
        .issuer_name(CA_NAME)
        .public_key(leaf_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return Certificate(
        ca_pem=_ca_certificate(ca_key).public_bytes(serialization.Encoding.PEM),
        chain_pem=leaf.public_bytes(serialization.Encoding.PEM),
        key_pem=leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def server_credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Return what a server needs to accept this cluster's processes and nobody else."""
    return grpc.ssl_server_credentials(
        [(certificate.key_pem, certificate.chain_pem)],
        root_certificates=certificate.ca_pem,
        require_client_auth=True,
    )


def channel_credentials(certificate: Certificate) -> grpc.ChannelCredentials:
    """Return what a channel needs to reach this cluster's servers; it takes `CHANNEL_OPTIONS` too."""
    return grpc.ssl_channel_credentials(certificate.ca_pem, certificate.key_pem, certificate.chain_pem)


def refusal(peer: str, details: str) -> TrustError | None:
    """Say what a failed connection to `peer`, with gRPC's `details`, has to do with trust; None: nothing."""
    if "unix:" in details:  # a socket file has no greeting: who hangs up there has ended
        return None
    if "certificate has expired" in details or "certificate is not yet valid" in details:
        return TrustError(
            f"the clock of {peer} or of this device is wrong by more than a day, or one of the two programs"
            " has run for more than a year: set the clock and start the program again"
        )
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return TrustError(f"{peer} has another cluster key: start both devices with the same one")
    if "handshake failed" in details or "Verification Check failed" in details:
        return TrustError(
            f"{peer} does not speak TLS as this version does: it has no cluster key, or is not dnet"
        )
    # With TLS 1.3 a client has finished its handshake before the server judges its certificate: then the
    # server just closes, and that it was reached and closed at once is all that can be seen from here.
    if "failed to connect" in details and ("Socket closed" in details or "Connection reset" in details):
        return TrustError(
            f"{peer} hung up at the greeting: it does not accept this device's cluster key, or its clock"
        )
    return None


def _ca_key(key: ClusterKey) -> ec.EllipticCurvePrivateKey:
    """Derive the authority's key, from 128 bits more than the curve's order has: no value is favoured."""
    derived = HKDF(hashes.SHA256(), length=48, salt=None, info=CA_INFO).derive(key.secret)
    return ec.derive_private_key(int.from_bytes(derived) % (P256_ORDER - 1) + 1, ec.SECP256R1())


def _ca_certificate(ca_key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Name the authority. Only its signature differs between processes, and nobody looks at that."""
    public_key = ca_key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(CA_NAME)
        .issuer_name(CA_NAME)
        .public_key(public_key)
        .serial_number(1)
        .not_valid_before(CA_START)
        .not_valid_after(CA_END)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _read_key(path: Path) -> ClusterKey | None:
    """Return the key in the file at `path`, None when there is no file."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1024)
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise TrustError(f"other users can read the cluster key: run chmod 600 '{path}'")
    try:
        return ClusterKey.from_text(text.decode("ascii"))
    except (UnicodeDecodeError, TrustError) as error:
        raise TrustError(f"{path} does not hold a cluster key: {error}") from error


def _create_key(path: Path) -> ClusterKey:
    """Write a new key, unless another process is quicker: then its key is the one."""
    key = ClusterKey.generate()
    new = _write_beside(key, path)
    try:
        path.hardlink_to(new)
    except FileExistsError:
        return _read_key(path) or key
    finally:
        new.unlink()
    return key


def _write_beside(key: ClusterKey, path: Path) -> Path:
    """Write `key` to a new file next to `path` that nobody else can read; return its path."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key.text + "\n")
    return new
