"""Bearer tokens: who may query a node, and who may control it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.flight as fl

from snapshot_assets.errors import ConfigurationError, TokenRefused
from snapshot_assets.serve.errors import to_flight

__all__ = ["ACCESS", "Access", "AccessRules", "BearerMiddlewareFactory", "CallerMiddleware", "TokenFile"]

_logger = logging.getLogger(__name__)

ACCESS = "access"
"""Under this name a call's middleware says what its caller may do."""


class TokenFile:
    """Tokens in a file, one a line; blank lines and lines that begin with `#` do not count.

    The file is read again when it changes. While it can not be read, it holds no token. Safe to call from several
    threads.

    Raises:
        ConfigurationError: it can not be read, or holds no token, when the node starts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._digests: tuple[bytes, ...] = ()
        try:
            self._read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the token file {path} can not be read: {error}") from error
        if not self._digests:
            raise ConfigurationError(f"the token file {path} holds no token", hint="Write one token a line.")

    def admits(self, token: bytes) -> bool:
        """Whether the token is in the file now; takes the same time for every token."""
        presented = hashlib.sha256(token).digest()
        admitted = False
        for digest in self._current():
            admitted |= hmac.compare_digest(digest, presented)
        return admitted

    def _current(self) -> tuple[bytes, ...]:
        with self._lock:
            try:
                self._read()
            except (OSError, UnicodeDecodeError) as error:
                if self._digests:
                    _logger.warning("the token file %s can not be read, nobody is admitted: %s", self._path, error)
                self._seen, self._digests = None, ()
            return self._digests

    def _read(self) -> None:
        found = self._path.stat()
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp == self._seen:
            return
        lines = (line.strip() for line in self._path.read_text("utf-8").splitlines())
        self._digests = tuple(
            hashlib.sha256(line.encode()).digest() for line in lines if line and not line.startswith("#")
        )
        self._seen = stamp


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller may do."""

    query: bool
    control: bool

    def check_query(self) -> None:
        """Raises `TokenRefused` unless the caller may query."""
        if not self.query:
            raise TokenRefused("this token does not admit to queries")

    def check_status(self) -> None:
        """Raises `TokenRefused` unless the caller may query or control."""
        if not (self.query or self.control):
            raise TokenRefused("this token does not admit to the status")

    def check_control(self) -> None:
        """Raises `TokenRefused` unless the caller may control."""
        if not self.control:
            raise TokenRefused(
                "this caller may not control the node",
                hint="Start the node with --control-token-file and send a token of that file.",
            )


class AccessRules:
    """What a token admits to.

    A query token admits to queries and the status, a control token to control and the status. Without a token file,
    which only a loopback node may be, everybody queries. Without a control token file, whoever may query a loopback
    node may control it too, and nobody may control any other.

    Raises:
        ConfigurationError: the node is open to other machines and has no token file.
    """

    def __init__(self, *, token_file: Path | None, control_token_file: Path | None, loopback: bool) -> None:
        if not loopback and token_file is None:
            raise ConfigurationError(
                "a node that other machines can reach needs a token file",
                hint="Give --token-file, or bind to 127.0.0.1.",
            )
        self._query = TokenFile(token_file) if token_file else None
        self._control = TokenFile(control_token_file) if control_token_file else None
        self._loopback = loopback

    def access(self, token: bytes | None) -> Access:
        """What a caller with this token, or without one, may do.

        Raises:
            TokenRefused: nothing.
        """
        query = self._query is None or (token is not None and self._query.admits(token))
        if self._control is not None:
            control = token is not None and self._control.admits(token)
        else:
            control = self._loopback and query
        if not (query or control) or (token is not None and self._unknown(token)):
            missing = "no bearer token was sent" if token is None else "the bearer token is not known here"
            raise TokenRefused(missing)
        return Access(query=query, control=control)

    def _unknown(self, token: bytes) -> bool:
        """A wrong token is refused even where none is needed, so that a mistake is seen."""
        files = [file for file in (self._query, self._control) if file is not None]
        return bool(files) and not any(file.admits(token) for file in files)


class CallerMiddleware(fl.ServerMiddleware):  # type: ignore[misc]
    """What the caller of one call may do."""

    def __init__(self, access: Access, answer: str | None) -> None:
        self.access = access
        self._answer = answer

    def sending_headers(self) -> dict[str, str]:
        """The bearer header, for clients that presented user and password and expect a token for them."""
        return {} if self._answer is None else {"authorization": self._answer}


class BearerMiddlewareFactory(fl.ServerMiddlewareFactory):  # type: ignore[misc]
    """Looks at the authorization header of every call. A token as the password of basic authentication counts too."""

    def __init__(self, rules: AccessRules) -> None:
        self._rules = rules

    def start_call(self, info: fl.CallInfo, headers: Mapping[str, Sequence[str | bytes]]) -> CallerMiddleware:
        """Raises an unauthenticated error for callers that may do nothing."""
        del info
        token, basic = _token(headers)
        try:
            access = self._rules.access(token)
        except TokenRefused as error:
            raise to_flight(error) from None
        return CallerMiddleware(access, f"Bearer {token.decode()}" if basic and token is not None else None)


def _token(headers: Mapping[str, Sequence[str | bytes]]) -> tuple[bytes | None, bool]:
    """The token of a call, none without the header, empty if it is not understood; and whether it is a password."""
    for name, values in headers.items():
        if name.lower() != "authorization" or not values:
            continue
        value = values[0] if isinstance(values[0], bytes) else values[0].encode()
        scheme, _, rest = value.partition(b" ")
        if scheme.lower() == b"bearer":
            return rest.strip(), False
        if scheme.lower() == b"basic":
            try:
                # some clients leave the padding out
                return base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True).partition(b":")[2], True
            except binascii.Error:
                return b"", False
        return b"", False
    return None, False
