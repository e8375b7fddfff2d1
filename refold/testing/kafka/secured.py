"""Settings of brokers that ask who is calling: TLS on every listener, accounts or certificates, and ACLs.

``EXTERNAL`` takes accounts (SCRAM over TLS), ``CERTIFICATE`` takes client certificates; brokers and controllers know each other
by certificate too, so that nobody else on the machine can pass for one.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from refold.bus.security import KafkaSecurity
from refold.testing.kafka.authority import Authority
from refold.testing.kafka.settings import CONTROLLER, EXTERNAL, INTERNAL, to_properties

CERTIFICATE = "CERTIFICATE"
BROKER, ADMIN = "broker", "admin"
MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512")
_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass(frozen=True, slots=True)
class Listener:
    """One more listener.

    Parameters
    ----------
    protocol
        PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
    keystore
        PEM file with key and certificate, in place of the brokers' own.
    asks_for_certificate
        Whether nobody is let in without a client's certificate.
    """

    protocol: str
    keystore: Path | None = None
    asks_for_certificate: bool = False


@dataclass(frozen=True)
class Secured:
    """What makes a cluster ask who is calling.

    Parameters
    ----------
    folder
        For the authority and what it signs.
    users
        Accounts: name → password, for both mechanisms.
    more
        Further listeners by name, which tests reach at `Cluster.port_of`.
    """

    folder: Path
    users: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Listener] = field(default_factory=dict)

    @property
    def authority(self) -> Authority:
        """Who signs the certificates of brokers and clients."""
        return Authority(self.folder)

    @property
    def listeners(self) -> dict[str, Listener]:
        """All listeners that clients may use, but the one for accounts."""
        return {CERTIFICATE: Listener("SSL", asks_for_certificate=True), **self.more}

    def account(self, user: str, mechanism: str = MECHANISMS[1]) -> KafkaSecurity:
        """Return what a client with an account says, to the port of `Cluster.url`."""
        return KafkaSecurity(ca=self.authority.ca, user=user, password=self.users[user], mechanism=mechanism)

    def certificate(self, name: str) -> KafkaSecurity:
        """Return what a client with a certificate says, to the port of `Cluster.certificate_url`; ``admin`` may do anything."""
        return KafkaSecurity(ca=self.authority.ca, certificate=self.authority.issue(name))

    def write_admin_file(self, path: Path) -> Path:
        """Write what Kafka's own tools take with ``--command-config``, to the port of `Cluster.certificate_url`."""
        told = {
            "security.protocol": "SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.authority.issue(ADMIN)),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.ca),
        }
        path.write_text(to_properties(told))
        return path

    def context(self) -> ssl.SSLContext:
        """Return what the launcher itself asks brokers with."""
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        context.load_cert_chain(self.authority.issue(ADMIN))
        return context

    def settings(self) -> dict[str, str]:
        """Return what brokers are told beside their other settings."""
        protocols = {EXTERNAL: "SASL_SSL", INTERNAL: "SSL", CONTROLLER: "SSL"}
        protocols |= {name: listener.protocol for name, listener in self.listeners.items()}
        told = {
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.authority.issue(BROKER)),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.ca),
            "ssl.client.auth": "required",
            # A certificate's common name is the account's: User:ward-7 and not User:CN=ward-7.
            "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/,DEFAULT",
            "sasl.enabled.mechanisms": ",".join(MECHANISMS),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{BROKER};User:{ADMIN}",
        }
        for name, listener in {EXTERNAL: Listener("SASL_SSL"), **self.listeners}.items():
            told |= _of_listener(f"listener.name.{name.lower()}", listener)
        return told

    def scram(self) -> list[str]:
        """Return the words of ``StorageTool format`` that make the accounts."""
        return [
            word
            for user, password in self.users.items()
            for mechanism in MECHANISMS
            for word in ("--add-scram", f"{mechanism}=[name={user},password={password}]")
        ]


def _of_listener(prefix: str, listener: Listener) -> dict[str, str]:
    told = {f"{prefix}.ssl.client.auth": "required" if listener.asks_for_certificate else "none"}
    if listener.keystore is not None:
        told |= {f"{prefix}.ssl.keystore.type": "PEM", f"{prefix}.ssl.keystore.location": str(listener.keystore)}
    if listener.protocol.startswith("SASL"):
        told |= {f"{prefix}.{mechanism.lower()}.sasl.jaas.config": _LOGIN for mechanism in MECHANISMS}
    return told
