"""The only reader of the environment: `FOVEA_*` variables or a `.env` file; command-line flags win over both."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class InvalidSettings(ValueError):
    """A setting does not make sense; the message says which, and what would."""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """Each field is the environment variable `FOVEA_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix="FOVEA_", env_file=".env", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port of HTTP; 0 takes a free one and says which."""
    grpc_port: int | None = Field(default=8081, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one and says which, off serves none."""
    tls_certificate: Path | None = None
    """File of the certificate chain, in PEM: both ports speak TLS."""
    tls_key: Path | None = None
    """File of that certificate's private key, in PEM and without a passphrase."""
    backend: Literal["embedded", "triton"] = "embedded"
    """Where models run: ONNX Runtime in this process, or a Triton Inference Server."""
    model_repository: Path = Path("model_repository")
    """Directory of the models, for the embedded backend."""
    triton_url: str = "127.0.0.1:8001"
    """Triton's gRPC address, host:port, for that backend; its models are its own."""
    decode_on: Literal["gateway", "triton"] = "gateway"
    """Where images are decoded; triton, with that backend alone: by its decode model."""
    default_model: str | None = None
    """Model or route of requests that name none; by default the only model, or the bundled lenet5-digits."""
    database_url: str = "sqlite:///fovea.db"
    """Database of taught heads, routes, pinned versions and keys: a file, or postgresql://user:password@host/name for
    several gateways to share."""
    admin: bool | None = None
    """Take calls that teach, or change routes, pins and what is loaded. Where there are keys such a call needs one of
    scope admin, and false takes none at all. Where there are none, unless given, they are taken only if host is a
    loopback address; behind a proxy on the same machine everybody comes from there: make keys, or say false."""
    first_key: bool = False
    """Make a key of scope admin and show it in the log, if the database holds no key and never held one: for trying it
    out in a container. Whoever reads the log has the key."""
    insecure: bool = False
    """Serve without keys although host is not a loopback address, or although all keys were revoked."""
    rate_limit_url: str | None = None
    """Redis in which gateways count together what each key asks, redis://host:6379/0; unless given, each process
    counts for itself."""

    default_timeout_ms: float = Field(default=30_000, gt=0)
    """Deadline of requests that state none."""
    max_timeout_ms: float = Field(default=120_000, gt=0)
    """Longest deadline that a request may state."""
    max_image_bytes: int = Field(default=20 * 2**20, ge=1)
    """Size of one encoded image."""
    max_request_bytes: int = Field(default=64 * 2**20, ge=1)
    """Size of one request's body."""
    max_message_bytes: int | None = Field(default=None, ge=1)
    """Size of one gRPC message, either way; unless given, that of a request's body."""
    max_calls: int = Field(default=2048, ge=1)
    """gRPC calls at once; a stream is one."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Width times height of one image; read from its header, before anything is decoded."""
    max_images: int = Field(default=64, ge=1)
    """Images in one request."""
    max_queue: int = Field(default=1024, ge=1)
    """Images that may wait for one version of a model."""

    max_heads: int = Field(default=1000, ge=1)
    """Taught heads, in all."""
    max_examples: int = Field(default=10_000, ge=2)
    """Examples of one taught head."""
    max_labels: int = Field(default=1000, ge=2)
    """Classes of one taught head."""

    workers: int = Field(default=1, ge=1, le=256)
    """Processes that serve; one that dies is replaced."""
    threads: int = Field(default_factory=_cores, ge=1)
    """Threads of one inference, and of decoding; of several workers, each gets its share of the cores unless given."""
    poll_seconds: float = Field(default=1.0, gt=0)
    """Time between two looks at the model repository."""
    drain_delay: float = Field(default=1.0, ge=0)
    """Seconds after SIGTERM during which /readyz says 503 and requests are still taken: load balancers notice."""
    drain_timeout: float = Field(default=30.0, gt=0)
    """Seconds after that for accepted requests to finish."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """auto: text on a terminal, else JSON."""
    access_log: bool = True
    """Log every request."""
    traces: Literal["off", "otlp"] = "off"
    """Send traces, over OTLP/HTTP; where to, under which name and of how many requests is said by OpenTelemetry's own
    variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER."""

    @field_validator("grpc_port", mode="before")
    @classmethod
    def _is_off(cls, value: object) -> object:
        return None if value == "off" else value

    @field_validator("model_repository")
    @classmethod
    def _exists(cls, value: Path, info: ValidationInfo) -> Path:
        if info.data.get("backend") == "embedded" and not value.is_dir():
            raise ValueError(f"{value} is not a directory; name the model repository's")
        return value

    @field_validator("triton_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not re.fullmatch(r"[^/\s]+:\d{1,5}", value):
            raise ValueError(f"{value!r} is not host:port; Triton's gRPC port is 8001 unless told otherwise")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.max_timeout_ms < self.default_timeout_ms:
            raise ValueError("max_timeout_ms must not be less than default_timeout_ms")
        if self.decode_on == "triton" and self.backend != "triton":
            raise ValueError("decode_on=triton belongs to backend=triton")
        if self.max_queue < self.max_images:
            raise ValueError("max_queue must not be less than max_images: it has to hold one request")
        return self

    @model_validator(mode="after")
    def _certified(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both, or neither")
        if tls := self.tls():
            try:
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*tls, password="")
            except OSError as error:
                raise ValueError(f"tls_certificate and tls_key are not a certificate and its key: {error}") from None
        return self

    def tls(self) -> tuple[Path, Path] | None:
        """Files of the certificate chain and of its key, if TLS is spoken."""
        return (self.tls_certificate, self.tls_key) if self.tls_certificate and self.tls_key else None

    def is_loopback(self) -> bool:
        """Whether nobody but this machine reaches the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def load(**flags: Any) -> Settings:
    """Settings from the environment, with the flags that were given on top.

    Raises:
        InvalidSettings: With one line for each setting that is wrong.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = []
        for one in error.errors(include_url=False):
            name = ".".join(map(str, one["loc"]))
            source = f"--{name.replace('_', '-')}" if name in given else f"FOVEA_{name.upper()}"
            message = one["msg"].removeprefix("Value error, ")  # pydantic's words; the rest is ours
            lines.append(f"{source}: {message}" if name else message)
        raise InvalidSettings("\n".join(lines)) from None
