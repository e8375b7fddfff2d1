"""How a Kafka cluster is spoken to: whether encrypted, whom to trust, and as whom.

The settings have one name everywhere. In ``refold.toml`` they stand under ``[kafka]``, in the environment as
``REFOLD_KAFKA_PASSWORD_FILE``, on the command line as ``--kafka password-file=FILE``, in Python as `KafkaSecurity`'s arguments:

================== =================================================================================================
tls                true, false; without it, true as soon as any of the others is given
ca                 PEM file with the certificates of those who sign brokers' certificates; the system's without it
certificate        PEM file with this client's own certificate and those between it and its CA
key                PEM file with its private key; without it, the key is in the file of `certificate`
key-password       opens the key, if that is encrypted; `key-password-file` holds it
user               account for SASL
password           the account's; `password-file` holds it. Neither is ever a part of a URL
mechanism          SCRAM-SHA-512 (the default), SCRAM-SHA-256 or PLAIN
================== =================================================================================================

Brokers' certificates and the names in them are always checked, and nothing older than TLS 1.2 is spoken.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from refold.schemas.errors import ConfigurationError
from refold.schemas.files import read_small

PREFIX = "REFOLD_KAFKA_"
"""What the names of environment variables begin with."""

OTHER_PREFIX = "REFOLD_OTHER_KAFKA_"
"""The same for the other bus, where there are two: the account of one is nothing that the other should be shown."""

MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")
NAMES = (
    "tls",
    "ca",
    "certificate",
    "key",
    "key-password",
    "key-password-file",
    "user",
    "password",
    "password-file",
    "mechanism",
)
FILES = ("ca", "certificate", "key", "key-password-file", "password-file")
SECRETS = {"key-password": "key-password-file", "password": "password-file"}
"""What may stand in the environment alone, and what takes its place where others can read along."""

_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSecurity:
    """How a Kafka cluster is spoken to. Passwords are in no text that it makes of itself.

    Parameters
    ----------
    tls
        Whether connections are encrypted; if None, they are as soon as anything else is given. With False an account signs in
        where anybody on the way can listen.
    ca, certificate, key
        PEM files: whom to trust (the system's if None), this client's own certificate, its private key (in the certificate's
        file if None).
    key_password, key_password_file
        What opens the key.
    user, password, password_file
        The account.
    mechanism
        One of `MECHANISMS`.

    Raises
    ------
    ConfigurationError
        The settings do not go together.
    """

    tls: bool | None = None
    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    key_password: str | None = field(default=None, repr=False)
    key_password_file: str | Path | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | Path | None = None
    mechanism: str = MECHANISMS[0]

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise _wrong("mechanism", f"{self.mechanism!r} is not offered", f"choose one of {', '.join(MECHANISMS)}")
        if self.tls is False and (self.ca or self.certificate or self.key):
            raise _wrong("tls", "certificates are of no use without TLS", "leave out tls=false, or the files")
        if self.key and not self.certificate:
            raise _wrong("certificate", "a key without its certificate", "name the certificate's file too")
        self._check_account()

    def _check_account(self) -> None:
        has_password = self.password is not None or self.password_file is not None
        if self.user is not None and not has_password:
            hint = f"name a file with password-file, or set {PREFIX}PASSWORD"
            raise _wrong("password", f"user {self.user!r} has no password", hint)
        if has_password and self.user is None:
            raise _wrong("user", "a password without its user", "say whose it is with user=NAME")
        if self.password is not None and self.password_file is not None:
            raise _wrong("password", "a password and a file with another", "give one of them")
        # Source: RFC 5802, section 5.1: commas and equals signs are written otherwise there, which kafka-python does not do.
        unfit = "\0" if self.mechanism == "PLAIN" else ",=\0"
        if self.user is not None and (not self.user or set(self.user) & set(unfit)):
            raise _wrong("user", f"{self.user!r} cannot be used", "write a name without commas and equals signs")

    @property
    def is_encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.tls if self.tls is not None else bool(self.ca or self.certificate or self.user)

    @property
    def protocol(self) -> str:
        """Kafka's name for it."""
        return ("SASL_" if self.user is not None else "") + ("SSL" if self.is_encrypted else "PLAINTEXT")

    def read_password(self) -> str:
        """Return the account's password.

        Raises
        ------
        ConfigurationError
            Its file cannot be read, or is empty.
        """
        return _secret("password-file", self.password, self.password_file) or ""

    def read_key_password(self) -> str | None:
        """Return what opens the private key, or None; raises as `read_password`."""
        return _secret("key-password-file", self.key_password, self.key_password_file)

    def to_environment(self, prefix: str = PREFIX) -> dict[str, str]:
        """Return the environment in which `from_environment` gives these settings: for processes of one's own."""
        said = {name: getattr(self, name.replace("-", "_")) for name in NAMES}
        words = {name: str(value).lower() if name == "tls" else str(value) for name, value in said.items() if value is not None}
        for name in FILES:
            if name in words:
                words[name] = str(Path(words[name]).absolute())
        return {prefix + name.replace("-", "_").upper(): word for name, word in words.items()}

    @classmethod
    def from_environment(cls, prefix: str = PREFIX) -> KafkaSecurity:
        """Return what the environment says."""
        return cls.layered(environment_layer(prefix))

    @classmethod
    def layered(cls, *layers: Mapping[str, object]) -> KafkaSecurity:
        """Return what several sources say together, by the names of `NAMES`; a later one has the last word.

        Raises
        ------
        ConfigurationError
            A value is none, or they do not go together.
        """
        said: dict[str, object] = {}
        for layer in layers:
            for name, value in layer.items():
                said[name] = _checked(name, value)
                # Whoever says a password in one way takes back what an earlier source said in the other.
                for pair in SECRETS.items():
                    if name in pair:
                        said.pop(pair[1 - pair.index(name)], None)
        return cls(**{name.replace("-", "_"): value for name, value in said.items()})  # type: ignore[arg-type]


def other_security() -> KafkaSecurity:
    """Return how the other of two buses is spoken to, as the environment says."""
    return KafkaSecurity.from_environment(OTHER_PREFIX)


def environment_layer(prefix: str = PREFIX) -> dict[str, object]:
    """Return the settings that the environment holds, by name."""
    found = {name.removeprefix(prefix): value for name, value in os.environ.items() if name.startswith(prefix)}
    layer: dict[str, object] = {name.lower().replace("_", "-"): value for name, value in found.items()}
    refuse_unknown(layer, lambda name: prefix + name.upper().replace("-", "_"))
    return layer


def refuse_unknown(layer: Mapping[str, object], spelt: object = str, **where: object) -> None:
    """Raise ConfigurationError if a source holds a setting that there is not."""
    assert callable(spelt)
    unknown = sorted(spelt(name) for name in layer if name not in NAMES)
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        hint = f"there are {', '.join(spelt(name) for name in NAMES)}"
        raise ConfigurationError(f"unknown setting{plural} {', '.join(unknown)}", hint=hint, **where)


def _checked(name: str, value: object) -> object:
    if name == "tls":
        found = value if isinstance(value, bool) else _TRUTH.get(str(value).lower())
        if found is None:
            raise _wrong(name, f"{value!r} is neither true nor false", "write true or false")
        return found
    if not isinstance(value, str) or not value:
        raise _wrong(
            name, "this is no text" if not isinstance(value, str) else "this is empty", "give it a value, or leave it out"
        )
    return value


def _secret(name: str, given: str | None, file: str | Path | None) -> str | None:
    if file is None:
        return given
    try:
        found = read_small(file).decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text"
        raise _wrong(name, f"the file cannot be read ({what})", "name the file that holds it", path=file) from error
    if not found:
        raise _wrong(name, "the file is empty", "write the password into it, on one line", path=file)
    return found


def _wrong(name: str, what: str, hint: str, **where: object) -> ConfigurationError:
    return ConfigurationError(f"Kafka security: {what}", setting=name, hint=hint, **where)
