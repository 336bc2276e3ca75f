"""From a URL and its options to obstore's client of the service behind it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from snapshot_assets.errors import AccessDenied, ConfigurationError
from snapshot_assets.store.keys import check_key

if TYPE_CHECKING:
    import boto3
    from obstore.store import ClientConfig, RetryConfig, S3Credential, S3CredentialProvider

__all__ = ["OPTIONS", "Place"]

OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "s3": frozenset({"endpoint", "region", "access_key_id", "secret_access_key", "session_token", "allow_http"}),
    "gs": frozenset(
        {
            "endpoint",
            "allow_http",
            "service_account",
            "service_account_key",
            "application_credentials",
            "bearer_token",
            "skip_signature",
        }
    ),
    "az": frozenset(
        {"endpoint", "allow_http", "account_name", "account_key", "sas_key", "tenant_id", "client_id", "client_secret"}
    ),
}
"""The options of each scheme."""

_URL: Final = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{1,254})(?:/([^?#]*))?")
_CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object store is, and how to get in. Nothing is looked up or asked before a client is built.

    Raises:
        ConfigurationError: the URL or an option is not understood, or two options contradict each other.
    """

    scheme: Literal["s3", "gs", "az"]
    bucket: str
    prefix: str
    options: Mapping[str, str] = field(repr=False)
    credentials: object | None = field(repr=False)

    @classmethod
    def parse(cls, url: str, options: Mapping[str, str] | None, credentials: object | None) -> Place:
        """The place that a URL and its options name."""
        match = _URL.fullmatch(url)
        if match is None:
            # What stands before an @ or after a question mark may be a secret.
            shown = re.sub(r"//.*@", "//...@", url).partition("?")[0]
            raise ConfigurationError(
                f"{shown!r} is not an object store's URL",
                hint="Write s3://bucket/prefix, gs://bucket/prefix or az://container/prefix, without credentials.",
            )
        scheme, bucket, prefix = match[1], match[2], (match[3] or "").strip("/")
        if prefix:
            check_key(prefix)
        given = dict(options or {})
        known = OPTIONS[scheme]
        if unknown := sorted(given.keys() - known):
            raise ConfigurationError(
                f"{scheme}:// has no option {', '.join(unknown)}", hint=f"Its options are {', '.join(sorted(known))}."
            )
        if credentials is not None and scheme != "s3":
            raise ConfigurationError(f"{scheme}:// takes its credentials from options or the environment, not boto3")
        if scheme == "s3":
            _check_s3(given, credentials)
        _check_endpoint(given)
        return cls(scheme, bucket, prefix, given, credentials)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        """The URL, without credentials."""
        return f"{self.scheme}://{self.bucket}{'/' if self.prefix else ''}{self.prefix}"

    def client(self, timeout: float) -> S3Store | GCSStore | AzureStore:
        """A client whose requests each end within the seconds, one way or the other, and are never repeated by it.

        Repeating is `SettledStore`'s business: only there it is known which writes may be repeated, and how a lost
        answer is decided. One layer also keeps the time bounded after which a hung server is given up.

        Raises:
            ConfigurationError: an option has a value that can not be used.
            AccessDenied: there are no credentials.
        """
        client_options: ClientConfig = {
            "timeout": timedelta(seconds=timeout),
            "connect_timeout": timedelta(seconds=min(_CONNECT_SECONDS, timeout)),
            "allow_http": self.allow_http,
        }
        retries: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=timeout)}
        settings: dict[str, Any] = {name: value for name, value in self.options.items() if name != "allow_http"}
        common: dict[str, Any] = {
            "prefix": self.prefix or None,
            "client_options": client_options,
            "retry_config": retries,
        }
        try:
            if self.scheme == "gs":
                endpoint = settings.pop("endpoint", None)
                if endpoint is not None:
                    settings["base_url"] = endpoint
                return GCSStore(self.bucket, **common, **settings)
            if self.scheme == "az":
                return AzureStore(self.bucket, **common, **settings)
            return self._s3(common)
        except (BaseError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(f"{self.url} can not be opened with these options: {reason}") from error

    @property
    def endpoint(self) -> str | None:
        """The address of the service when it is not the provider's own."""
        if "endpoint" in self.options or self.scheme != "s3":
            return self.options.get("endpoint")
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None

    @property
    def service(self) -> str:
        """What tells the place apart from another of the same URL: its service's address, and on Azure the account."""
        account = ""
        if self.scheme == "az":
            account = self.options.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        return f"{self.endpoint or ''} {account}"

    @property
    def allow_http(self) -> bool:
        """Whether connections may go unencrypted: said by the option, or by an http:// endpoint."""
        if "allow_http" in self.options:
            return self.options["allow_http"] == "true"
        return (self.endpoint or "").startswith("http://")

    @property
    def region(self) -> str:
        """The region of an S3 bucket: the option's, the boto3 session's, the environment's, or us-east-1."""
        found = self.options.get("region") or self.boto3_session().region_name
        return found or os.environ.get("AWS_REGION") or "us-east-1"

    def boto3_session(self) -> boto3.Session:
        """A boto3 session with the same credentials and region.

        Raises:
            ConfigurationError: the profile that the environment names does not exist, or can not be used.
        """
        import boto3
        from botocore.exceptions import BotoCoreError

        if self.credentials is not None:
            assert isinstance(self.credentials, boto3.Session)
            return self.credentials
        try:
            return boto3.Session(
                aws_access_key_id=self.options.get("access_key_id"),
                aws_secret_access_key=self.options.get("secret_access_key"),
                aws_session_token=self.options.get("session_token"),
                region_name=self.options.get("region"),
            )
        except BotoCoreError as error:
            raise ConfigurationError(f"the AWS settings for {self.url} can not be used: {error}") from error

    def _s3(self, common: Mapping[str, Any]) -> S3Store:
        # Credentials and region are always passed, so that obstore never mixes in half of what the environment holds.
        provider: S3CredentialProvider
        if "access_key_id" in self.options:
            provider = self._credentials_from_options
        else:
            from obstore.auth.boto3 import Boto3CredentialProvider

            session = self.boto3_session()
            if session.get_credentials() is None:
                raise AccessDenied(
                    f"no AWS credentials were found for {self.url}",
                    hint="Give them as options, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by a profile.",
                )
            found = Boto3CredentialProvider(session)
            found.config = {}
            provider = found
        settings: dict[str, Any] = {"region": self.region, "credential_provider": provider}
        if self.endpoint is not None:
            settings["endpoint"] = self.endpoint
        return S3Store(self.bucket, **common, **settings)

    def _credentials_from_options(self) -> S3Credential:
        return {
            "access_key_id": self.options["access_key_id"],
            "secret_access_key": self.options["secret_access_key"],
            "token": self.options.get("session_token"),
            "expires_at": None,
        }


def _check_s3(options: Mapping[str, str], credentials: object | None) -> None:
    keys = {"access_key_id", "secret_access_key"} & options.keys()
    if len(keys) == 1 or (not keys and "session_token" in options):
        raise ConfigurationError("access_key_id and secret_access_key belong together; only part of them was given")
    if credentials is not None:
        import boto3

        if not isinstance(credentials, boto3.Session):
            raise ConfigurationError(f"credentials must be a boto3.Session, not {type(credentials).__name__}")
        if keys:
            raise ConfigurationError("credentials were given twice: as options and as a boto3 session")


def _check_endpoint(options: Mapping[str, str]) -> None:
    endpoint = options.get("endpoint", "https://")
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(f"the endpoint {endpoint!r} is not an http:// or https:// URL")
    allow_http = options.get("allow_http", "true")
    if allow_http not in {"true", "false"}:
        raise ConfigurationError(f"allow_http is 'true' or 'false', not {allow_http!r}")
    if allow_http == "false" and endpoint.startswith("http://"):
        raise ConfigurationError(f"allow_http is 'false', but the endpoint is {endpoint!r}")
