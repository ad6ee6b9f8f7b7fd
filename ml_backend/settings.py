"""Every setting of the service, its default and its unit, read once.

Each field is the environment variable ``NEXTSLICE_<FIELD>``; the few that other programs share
(`LABEL_STUDIO_URL`, `LABEL_STUDIO_API_KEY`, `REDIS_URL`, …) are read by their common names. Files
may stand in for the environment (`configuration`). `docs/operations.md` lists all settings; a test
compares the two.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    JsonValue,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ml_backend.configuration import (
    PREFIX,
    Given,
    asked_home,
    asked_log_format,
    asked_log_level,
    configure_logging,
    first_given,
    misspelt,
    places,
)
from ml_backend.errors import SettingsError
from ml_backend.logs import without_passwords

__all__ = [
    "DEVICE",
    "LARGEST_SEED",
    "Local",
    "Settings",
    "SettingsError",
    "absolute_address",
    "asked_log_format",
    "asked_log_level",
    "configure_logging",
    "default_home",
    "given_settings",
    "load_settings",
    "misspelt_settings",
    "own_fields",
    "own_redis_socket",
    "read_settings",
    "socket_url",
    "variable_of",
    "without_passwords",
]

logger = logging.getLogger(__name__)

DEVICE = r"cpu|cuda(:[0-9]+)?"
"""Regular expression of what a device may be called, besides ``auto``."""
LARGEST_SEED = 2**31 - 1
"""A round adds its number, and scikit-learn takes no more than 32 bits: it would say so in the
first training."""

_PLAIN_REDIS = re.compile(
    r"redis://([A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63}:[0-9]{1,4}(/[0-9]{1,4})?"
)
"""Addresses in which there is nothing that could be wrong."""


_PLAIN_ADDRESS = re.compile(
    r"https?://(127\.0\.0\.1|(?!xn--)[a-z][a-z0-9-]{0,62}(\.(?!xn--)[a-z0-9-]{1,63})*)"
    r"(:[1-5]?[0-9]{1,4})?(/[!-~]*)?"
)
"""Likewise."""
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_LATIN_1 = re.compile(r"[\x00-\xff]*")


def _shared(name: str) -> AliasChoices:
    """Read ``NEXTSLICE_X`` first, then the name that other programs use for the same thing."""
    return AliasChoices(f"NEXTSLICE_{name}", name)


def absolute_address(value: str) -> str:
    """The http or https address ``value`` without a slash at its end. ValueError for another."""
    if not _PLAIN_ADDRESS.fullmatch(value):
        try:
            _check_address(value)
        except ValueError as error:
            expected = "expected an address such as http://labelstudio.example:8080"
            raise ValueError(f"{error}: {expected}" if str(error) else expected) from None
    return value.rstrip("/")


def _check_address(value: str) -> None:
    """Raise ValueError for what httpx could not ask: it is an error here, or wherever it is first
    needed."""
    import httpx  # takes as long as all the rest

    try:
        asked = httpx.URL(value)
        host, name = asked.raw_host.decode(), asked.host  # what a name stands for may be none
    except httpx.InvalidURL as error:  # no ValueError
        raise ValueError(str(error)) from None
    if asked.scheme not in ("http", "https") or not host:
        raise ValueError
    if ":" not in host:  # else of IPv6, which is known by now
        if not _HOST_NAME.fullmatch(host):
            raise ValueError(f"{name!r} is no name of a host")
        _check_labels(host)
    urlsplit(value).port  # noqa: B018  # whether it can be one


def _check_labels(host: str) -> None:
    """Raise ValueError where a part of ``host`` is empty or too long: no socket takes that."""
    host.encode("idna")


Seconds = Annotated[float, Field(gt=0)]
_V = TypeVar("_V")
_LOCAL = object()
Local = Annotated[_V, _LOCAL]
"""A setting that says where things are or how long they may take, not what a round computes: it is
not recorded with the round. Every other setting is, a new one too."""
_MACHINE = object()
Machine = Annotated[_V, _MACHINE]
"""A setting that is recorded, and yet is the machine's: no project has one of its own. Of every
other recorded one it may."""


class _AsGiven(PydanticBaseSettingsSource):
    """What the environment and the files give, each setting by its first name."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value, the name that the model takes it by, and False: none of ours is JSON."""
        given = first_given(_variables(field_name, field), self._places)
        return (None if given is None else given.value), _names(field_name, field)[0], False

    def __call__(self) -> dict[str, Any]:
        self._places = places()
        fields = self.settings_cls.model_fields.items()
        found = (self.get_field_value(field, name) for name, field in fields)
        return {name: value for value, name, _ in found if value is not None}


def _names(name: str, field: FieldInfo) -> list[str]:
    """The names by which the model takes the field."""
    alias = field.validation_alias
    return list(map(str, alias.choices)) if isinstance(alias, AliasChoices) else [name]


def _variables(name: str, field: FieldInfo) -> list[str]:
    """The environment variables of the field, the one that wins first."""
    return [n if n.isupper() else f"{PREFIX}{n.upper()}" for n in _names(name, field)]


class Settings(BaseSettings):
    """The service's settings. See each field's description; units are in the names or there."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    # -- addresses and secrets
    label_studio_url: Local[str] = Field(
        "http://127.0.0.1:8080",
        validation_alias=_shared("LABEL_STUDIO_URL"),
        description="Label Studio, as this machine sees it.",
    )
    label_studio_api_key: Local[SecretStr] = Field(
        SecretStr(""),
        validation_alias=_shared("LABEL_STUDIO_API_KEY"),
        description="Personal access token (Account & Settings) or legacy token.",
    )
    backend_url: Local[str] = Field(
        "http://127.0.0.1:9090",
        description="This backend, as Label Studio and the workers see it.",
    )
    public_url: Local[str] = Field(
        "",
        validation_alias=_shared("PUBLIC_URL"),
        description="This backend, as browsers see the slices; empty: NEXTSLICE_BACKEND_URL.",
    )
    redis_url: Local[str] = Field(
        "redis://127.0.0.1:6379/0",
        validation_alias=_shared("REDIS_URL"),
        description="Redis, for the RQ queues; not set: the one of this user that `nextslice up` "
        "has started, while it listens, else this address.",
    )
    basic_auth_user: Local[str] = Field(
        "",
        validation_alias=_shared("BASIC_AUTH_USER"),
        description="User that Label Studio must present; empty: no authentication, and nobody on "
        "another machine is answered.",
    )
    basic_auth_pass: Local[SecretStr] = Field(
        SecretStr(""),
        validation_alias=_shared("BASIC_AUTH_PASS"),
        description="Password that goes with the user.",
    )
    allow_anyone: Local[bool] = Field(
        False,
        description="Listen beyond this machine without BASIC_AUTH_USER and BASIC_AUTH_PASS: "
        "whoever reaches the port may have anything done.",
    )
    webhook_secret: Local[SecretStr] = Field(
        SecretStr(""),
        description="Secret header of the webhook; empty: derived from the API key. With neither, "
        "only user and password let a webhook in.",
    )
    slice_secret: Local[SecretStr] = Field(
        SecretStr(""),
        description="Signs the addresses of slices; several, separated by commas: the first signs, "
        "all are good. Empty: derived from the API key, so a new key makes old addresses void.",
    )
    cors_origins: Local[str] = Field(
        "",
        description="Origins that may show slices besides that of `LABEL_STUDIO_URL`, separated by "
        "commas, as https://labelstudio.example; *: all.",
    )
    image_hosts: Local[str] = Field(
        "",
        description="Hosts that images are downloaded from besides Label Studio and its storages, "
        "separated by commas: images.lab, 10.0.0.7:9000, *.example.org; *: all with a public "
        "address.",
    )

    # -- files
    volumes: Local[str] = Field(
        "",
        description="Folders whose volumes are shown slice by slice, separated by commas: "
        "/data/scans or name=/data/scans.",
    )
    store: Local[str] = Field(
        ".nextslice/store",
        description="Root of the rounds: a folder or any fsspec URL (s3://…), the same everywhere. "
        "A relative one is under the folder that a command is started in.",
    )
    cache_dir: Local[Path] = Field(
        Path(".nextslice/cache"),
        description="Downloaded and rendered slices; may be deleted at any time.",
    )
    cache_gib: Local[float] = Field(20.0, gt=0, description="Size limit of the cache, GiB.")

    # -- the loop
    k: int = Field(8, ge=1, description="Slices per round: new annotations that start a round.")
    reserve: int | None = Field(
        None,
        ge=1,
        description="R: how many annotators may work at once; K + 2 R slices are kept ahead. "
        "Empty: the larger of 4 K and 32.",
    )
    open_minutes: float = Field(
        30.0,
        ge=0,
        description="How long the masks of a version stay after the next one is served, minutes: "
        "who has a slice open with an old mask can submit it only while that mask exists.",
    )
    early_rounds: str = Field(
        "1,2,4",
        description="Numbers of labels at which short rounds give the first masks, before K are "
        "there, separated by commas; off: none.",
    )
    further_minutes: float = Field(
        0.0,
        ge=0,
        description="Minutes that the training may go on after each round, while no worker is "
        "needed for anything else; 0: it does not.",
    )
    strategy: str = Field("entropy", description="Acquisition function, see `strategies`.")
    cold_start: str = Field("strided", description="Strategy of round 0, before any model.")
    pause: bool = Field(
        False,
        description="Begin no training: labels are kept for later, the queue goes on.",
    )
    spacing: bool = Field(
        True, description="Keep selected slices apart along z and share them between volumes."
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of everything random.")
    unlabelled: Literal["auto", "ignore", "background"] = Field(
        "auto",
        description="Pixels no one labelled: ignore (by the loss), background, or auto: ignored "
        "when the labelling config has a background label, background when it has none.",
    )

    # -- the network
    architecture: str = Field(
        "auto",
        description="hrnet_w18_small+filters, hrnet_w18, …, or unet, fpn, …; auto: HRNet with "
        "filters, by device.",
    )
    pretrained: Literal["auto", "true", "false"] = Field(
        "auto",
        description="Start from timm's ImageNet weights: true (an error where they cannot be had), "
        "false, or auto: when they can be had.",
    )
    train_device: Machine[str] = Field(
        "auto", description="cuda, cuda:1, cpu; auto: cuda when there."
    )
    predict_device: Local[str] = Field(
        "auto",
        validation_alias=_shared("PREDICT_DEVICE"),
        description="Device of /predict; auto: cuda when there.",
    )
    train_steps: int | None = Field(
        None, ge=1, description="Optimiser steps of one training; empty: by device and data."
    )
    train_minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes that one training may take: where its steps do not fit, by the pace "
        "they have, fewer are made, and the learning rate falls to its end all the same; empty: as "
        "long as they take. What an expert that decides alone is taught afterwards, one to four "
        "minutes of a core, is not counted.",
    )
    train_nice: Machine[int] = Field(
        5,
        ge=0,
        le=19,
        description="Niceness of jobs that train on the CPU, so that people's requests come first; "
        "0: none, where other work of the machine would starve them.",
    )
    crop: int | None = Field(
        None,
        ge=32,
        multiple_of=32,
        description="Side of a training crop, pixels, a multiple of 32; empty: by device and data.",
    )
    warm_start: bool = Field(
        False,
        description="Start each training from the weights of the round before.",
    )
    neighbours: int = Field(
        0,
        ge=0,
        le=8,
        description="Slices on each side that the network sees as well (2.5-D), in tasks that "
        "`import` made.",
    )
    max_tile: Machine[int] = Field(
        2048,
        ge=64,
        multiple_of=32,
        description="Longest side computed without tiling, pixels, a multiple of 32.",
    )

    # -- timing
    round_timeout_s: Local[Seconds] = Field(
        86_400, description="Longest a round may take, seconds."
    )
    reconcile_s: Local[Seconds] = Field(30, description="Seconds between two looks of reconcile.")
    claim_ttl_s: Local[Seconds] = Field(
        120, description="A round's claim without a sign of life is void after this, seconds."
    )
    published_ttl_s: Local[Seconds] = Field(
        2, description="How long /setup and /predict may serve a cached published.json, seconds."
    )
    opened_mib: Local[int] = Field(
        512,
        ge=0,
        description="Memory for what the network believes of opened slices, MiB: drags are "
        "answered from it (two bytes a pixel and class).",
    )
    download_s: Local[Seconds] = Field(
        30, description="Longest the download of one image may take, seconds."
    )
    volume_timeout_s: Local[Seconds] = Field(
        30,
        description="Seconds in which a volume must be open, and each of its slices read (ten "
        "times that across y and x).",
    )
    tiled_servers: Local[str] = Field(
        "",
        description="Tiled servers whose arrays may be volumes, separated by commas: "
        "https://tiled.example.",
    )
    tiled_api_key: Local[SecretStr] = Field(
        SecretStr(""),
        validation_alias=_shared("TILED_API_KEY"),
        description="Key that Tiled servers are shown, where arrays are not public.",
    )
    queue_prefix: Local[str] = Field(
        "nextslice", pattern=r"^[A-Za-z0-9_-]+$", description="Prefix of the RQ queues."
    )
    entry_points: Local[str] = Field(
        "",
        description="Functions that jobs may call besides nextslice's own, separated by commas: "
        "dotted names, for other programs that use its workers.",
    )
    log_level: Local[
        Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)]
    ] = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: Local[Annotated[Literal["text", "json"], BeforeValidator(str.lower)]] = Field(
        "text", description="Lines of the log: text, or json, one object a line, for programs."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then what is given elsewhere."""
        return init_settings, _AsGiven(settings_cls)

    @field_validator("label_studio_url", "backend_url", "public_url")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.field_name == "public_url":
            return value
        return absolute_address(value)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in filter(None, map(str.strip, value.split(","))):
            parts = urlsplit(origin)
            absolute = parts.scheme in ("http", "https") and parts.netloc
            if origin != "*" and (not absolute or parts.path.strip("/") or parts.query):
                raise ValueError(
                    f"found {origin!r}, expected origins such as https://labelstudio.example:8080, "
                    "or *"
                )
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        if _PLAIN_REDIS.fullmatch(value):
            return value  # without the import, which takes as long as all the rest
        from redis.connection import parse_url

        try:
            parts = parse_url(value)  # type: ignore[no-untyped-call]  # redis has no types here
            _check_labels(parts.get("host", ""))
        except ValueError as error:
            raise ValueError(f"{error}: expected one such as redis://127.0.0.1:6379/0") from None
        return value

    @field_validator("store")
    @classmethod
    def _readable(cls, value: str) -> str:
        protocol, separator, _ = value.partition("://")
        if not separator:
            return value
        try:
            import fsspec

            fsspec.get_filesystem_class(protocol)
        except ImportError as error:  # says which package the protocol needs
            how = " with pip install 'nextslice[s3]'" if protocol in ("s3", "s3a") else ""
            raise ValueError(f"{error}{how}") from None
        return value

    @field_validator("early_rounds")
    @classmethod
    def _early(cls, value: str) -> str:
        parts = [] if value == "off" else [part.strip() for part in value.split(",")]
        numbers = [int(part) if part.isdecimal() else 0 for part in parts]
        if any(number < 1 for number in numbers) or numbers != sorted(set(numbers)):
            raise ValueError("expected numbers of labels that rise, such as 1,2,4, or off")
        return value

    @field_validator("train_device", "predict_device")
    @classmethod
    def _device(cls, value: str) -> str:
        if value != "auto" and not re.fullmatch(DEVICE, value):
            raise ValueError("expected cpu, cuda, cuda:1, …, or auto")
        return value

    @field_validator("strategy", "cold_start")
    @classmethod
    def _runs_here(cls, value: str, info: ValidationInfo) -> str:
        if value == cls.model_fields[str(info.field_name)].default:
            return value  # without NumPy, which nothing else here needs
        from al_strategies import available_strategies, get_strategy
        from al_strategies.evidence import STANDARD

        strategy = get_strategy(value)
        if strategy.needs_ground_truth:
            raise ValueError("it looks at true masks, so it runs in `nextslice simulate` only")
        if unknown := strategy.beyond(STANDARD):
            raise ValueError(
                f"it needs {', '.join(unknown)}, which the network does not compute: it runs with "
                "a learner of its own only"
            )
        if info.field_name == "cold_start" and strategy.evidence:
            without = ", ".join(i.name for i in available_strategies() if not i.evidence)
            raise ValueError(
                f"it needs {', '.join(strategy.evidence)}, which only a trained model can give; "
                f"expected {without}"
            )
        return value

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if bool(self.basic_auth_user) != bool(self.basic_auth_pass.get_secret_value()):
            raise ValueError(
                "BASIC_AUTH_USER and BASIC_AUTH_PASS: found one of them, expected both, or neither "
                "to let everybody in"
            )
        return self

    @model_validator(mode="after")
    def _as_label_studio_can_send_it(self) -> Self:
        if ":" in self.basic_auth_user:
            raise ValueError(
                f"BASIC_AUTH_USER: found {self.basic_auth_user!r}, expected a user without a "
                "colon: what follows one is taken for the password"
            )
        sent = {
            "basic_auth_user": self.basic_auth_user,
            "basic_auth_pass": self.basic_auth_pass.get_secret_value(),
            "webhook_secret": self.webhook_secret.get_secret_value(),
        }
        for name, text in sent.items():
            if text != text.strip() or not _LATIN_1.fullmatch(text):
                raise ValueError(
                    f"{variable_of(name)}: Label Studio cannot send it: expected characters of "
                    "Latin-1 alone, and no space at either end"
                )
        return self

    @property
    def slices_url(self) -> str:
        """What addresses of slices begin with: the backend as browsers see it."""
        return self.public_url or self.backend_url

    @property
    def redis_address(self) -> str:
        """Where Redis is: ``redis_url``; where that is not set, `own_redis_socket` if one listens
        there."""
        if "redis_url" in self.model_fields_set:
            return self.redis_url
        own = own_redis_socket()
        return socket_url(own) if _listens(own) else self.redis_url

    @property
    def also_called(self) -> frozenset[str]:
        """Dotted names of the functions that jobs may call besides ours."""
        return frozenset(filter(None, map(str.strip, self.entry_points.split(","))))

    @property
    def early_labels(self) -> tuple[int, ...]:
        """Numbers of labels, fewer than K, at which a short round begins."""
        if self.early_rounds == "off":
            return ()
        return tuple(n for n in map(int, self.early_rounds.split(",")) if n < self.k)

    @property
    def reserve_size(self) -> int:
        """R: how many slices follow the K in the queue."""
        return self.reserve if self.reserve is not None else max(4 * self.k, 32)

    @property
    def label_studio_host(self) -> str:
        """Folder name of this Label Studio in the store: ``host`` or ``host_port``."""
        return urlsplit(self.label_studio_url).netloc.split("@")[-1].replace(":", "_")

    def of_a_round(self) -> dict[str, JsonValue]:
        """What a round records, so that it can be replayed: every setting that is not `Local`."""
        recorded = {
            name for name, field in type(self).model_fields.items() if _LOCAL not in field.metadata
        }
        return self.model_dump(mode="json", include=recorded)

    def with_own(self, own: Mapping[str, JsonValue]) -> Settings:
        """These, and over them a project's ``own`` settings, by field. What is none of `own_fields`
        is passed over, as of a later version. SettingsError names what cannot be used."""
        known = {name: value for name, value in own.items() if name in own_fields()}
        if not known:
            return self
        try:
            checked = type(self)(**known)  # type: ignore[arg-type]  # that is what is checked
        except ValidationError as error:
            raise SettingsError("; ".join(_own_complaints(error, known))) from None
        return self.model_copy(update={name: getattr(checked, name) for name in known})

    @property
    def basic_auth(self) -> tuple[str, str] | None:
        """User and password, or None when no authentication is asked for."""
        password = self.basic_auth_pass.get_secret_value()
        return (self.basic_auth_user, password) if self.basic_auth_user and password else None


@cache
def own_fields() -> tuple[str, ...]:
    """The settings that a project may have of its own, in order: what decides what a round
    computes, and is not the machine's."""
    return tuple(
        name
        for name, field in Settings.model_fields.items()
        if not any(mark in (_LOCAL, _MACHINE) for mark in field.metadata)
    )


def default_home() -> Path:
    """Where what is a user's own is kept: NEXTSLICE_HOME, else ``~/.cache/nextslice``. Raises
    SettingsError for a user without a home."""
    given = asked_home()
    if given:
        return Path(given).resolve()
    try:
        return Path.home() / ".cache" / "nextslice"
    except RuntimeError:
        raise SettingsError(
            f"User {os.geteuid()} has no home, where nextslice keeps its own: set NEXTSLICE_HOME "
            "to a folder; where that is for Redis only, REDIS_URL does."
        ) from None


def own_redis_socket() -> Path:
    """Where `nextslice up` has a Redis listen for this user alone, where no REDIS_URL is set."""
    return default_home() / "redis.sock"


def socket_url(path: Path) -> str:
    """The address of a Redis that listens on the Unix socket ``path``, whatever its name is."""
    return f"unix://{quote(str(path))}?db=0"


def _listens(path: Path) -> bool:
    """Whether somebody listens on the Unix socket: one that was killed leaves the file."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(1)
        try:
            asking.connect(str(path))
        except OSError:
            return False
    return True


def variable_of(name: str) -> str:
    """The environment variable of the field ``name``: of two, the one that other programs know."""
    return _variables(name, Settings.model_fields[name])[-1]


def given_settings() -> dict[str, Given]:
    """What is given, and where, by field; a field that is not there has its default."""
    where = places()
    found = {n: first_given(_variables(n, f), where) for n, f in Settings.model_fields.items()}
    return {name: given for name, given in found.items() if given is not None}


def misspelt_settings() -> list[str]:
    """A sentence on each variable that begins as ours do and is none. Raises SettingsError for one
    in a file of settings."""
    return misspelt({PREFIX + name.upper() for name in Settings.model_fields}, places())


def _own_complaints(error: ValidationError, own: Mapping[str, JsonValue]) -> list[str]:
    """What is wrong with a project's own settings, else with those of the service."""
    found = [item for item in error.errors() if item["loc"] and item["loc"][0] in own]
    if not found:
        return [_complaint(error)]
    return [
        f"{item['loc'][0]}: found {item.get('input')!r}: "
        f"{item['msg'].removeprefix('Value error, ')}"
        for item in found
    ]


def _complaint(error: ValidationError) -> str:
    given = given_settings()
    lines = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        if item["loc"]:  # else of several together: the message names them
            field = str(item["loc"][0]).removeprefix(PREFIX).lower()
            where = given.get(field, variable_of(field))
            message = f"{where}: found {item.get('input')!r}: {message}"
        lines.append(message)
    return without_passwords("Settings cannot be used. " + "; ".join(lines))


@cache
def load_settings() -> Settings:
    """The settings of this process, read once; a misspelt one is named in the log. Raises as
    `read_settings`."""
    settings = read_settings()
    for said in misspelt_settings():
        logger.warning(said)
    return settings


def read_settings() -> Settings:
    """The settings as environment and files have them now. SettingsError names each bad one, and
    where it is written."""
    try:
        return Settings()  # type: ignore[call-arg]  # every field has a default or an alias
    except ValidationError as error:
        raise SettingsError(_complaint(error)) from None
