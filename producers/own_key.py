"""What `rounds` tells a client of the key that it signs with."""

from __future__ import annotations

from refold.schemas.errors import ConfigurationError, RefoldError, TryAgainError
from refold.schemas.events import Receipt
from refold.schemas.identity import ClientNotice

ENROL = "give the key that is (`refold show NAME` lists them), or enrol this one with `refold enroll`, and let a server run"


class OwnKey:
    """Whether a client's key is enrolled, as far as the notices and receipts of `rounds` say.

    Logs of older Refolds hold no notices: whoever has had a receipt there has a key that counts, and where nothing was told of
    anybody's key, nothing is known of this one.
    """

    def __init__(self, client: str, key_id: bytes) -> None:
        self._client = client
        self._key_id = key_id
        self._told = ""
        self._tells = False
        self._has_another = False
        self._is_heard = False
        self._is_refused = False

    def take(self, notice: ClientNotice) -> None:
        """Hear of a client's key."""
        self._tells = self._tells or notice.key_id is not None
        self._has_another = self._has_another or (notice.client == self._client and notice.what == "enrolled")
        if (notice.client, notice.key_id) == (self._client, self._key_id):
            self._told = notice.what

    def take_receipt(self, receipt: Receipt) -> None:
        """Hear that an update of this client's name was held to it."""
        self._is_heard = self._is_heard or receipt.client == self._client

    def is_passed_over(self) -> None:
        """Take note that an update had no receipt, though its client is not kept out."""
        self._is_refused = True

    @property
    def is_strange(self) -> bool:
        """Whether this key was never enrolled, while another of this client's was, or those of others."""
        return not self._told and (self._has_another or (self._tells and not self._is_heard))

    def require(self) -> None:
        """Go on only with a key that may count.

        Raises
        ------
        ConfigurationError
            It was revoked or replaced, or an update that it signed was refused, and the log does not know it.
        """
        if self._told == "revoked":
            hint = "it counts no more: take the key that replaced it, or a new one by `refold enroll --redeem`"
            raise self._error(ConfigurationError, "this client's key was revoked", hint)
        if self._is_refused and not self._told:
            raise self._error(ConfigurationError, "this client's key is not enrolled, and what it signed was refused", ENROL)

    def not_enrolled(self) -> RefoldError:
        """Return the error of a client that waited in vain to be enrolled."""
        return self._error(TryAgainError, "this client's key is not enrolled", ENROL)

    def _error(self, kind: type[RefoldError], message: str, hint: str) -> RefoldError:
        return kind(message, client=self._client, key_id=self._key_id.hex(), hint=hint)
