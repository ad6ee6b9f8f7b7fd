"""Settings: read from the environment, checked with the variable's name in the message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from redis.connection import parse_url

from al_strategies import base, evidence
from ml_backend.settings import (
    _PLAIN_REDIS,
    Local,
    Settings,
    SettingsError,
    absolute_address,
    load_settings,
    without_passwords,
)

needs_no_s3fs = pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def test_the_shared_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "https://ls.example:8443/")
    monkeypatch.setenv("REDIS_URL", "redis://r:1/2")
    settings = load_settings()
    assert settings.label_studio_url == "https://ls.example:8443"
    assert settings.label_studio_host == "ls.example_8443"
    assert settings.redis_url == "redis://r:1/2"


def test_our_own_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://other:1/0")
    monkeypatch.setenv("NEXTSLICE_REDIS_URL", "redis://ours:1/0")
    assert load_settings().redis_url == "redis://ours:1/0"


@pytest.mark.parametrize(
    "host",
    [
        *("\u2603.example", "xn--zzzz", "XN--zzzz", "ex ample", "ex\tample", "a%41b", "a|b"),
        *("lab..example", "a" * 64, "1.2.3.999", "[zz]", "[::1", "", " "),
    ],
)
def test_a_host_that_httpx_could_not_ask_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="expected an address such as http"):
        absolute_address(f"http://{host}:8080")


@pytest.mark.parametrize(
    "address",
    [
        *("http://b\xfccher.example", "http://xn--bcher-kva.example:80/x", "https://a_b:65535"),
        *("http://[::1]:8080", "http://10.0.0.1", "http://ann:pw@Lab.example./a b"),
    ],
)
def test_an_address_that_httpx_can_ask_is_taken(address: str) -> None:
    assert httpx.URL(absolute_address(address + "/")).host
    assert absolute_address(address + "/") == address


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("NEXTSLICE_K", "0", r"NEXTSLICE_K: found '0'.*greater than or equal to 1"),
        ("NEXTSLICE_SEED", "2147483648", r"NEXTSLICE_SEED: found .*equal to 2147483647"),
        ("NEXTSLICE_CROP", "100", r"NEXTSLICE_CROP: found '100'.*multiple of 32"),
        ("NEXTSLICE_MAX_TILE", "1000", r"NEXTSLICE_MAX_TILE: found '1000'.*multiple of 32"),
        ("NEXTSLICE_K", "many", r"NEXTSLICE_K: found 'many'.*integer"),
        ("NEXTSLICE_RECONCILE_S", "inf", r"NEXTSLICE_RECONCILE_S: found 'inf'.*a finite number"),
        ("NEXTSLICE_CACHE_GIB", "inf", r"NEXTSLICE_CACHE_GIB: found 'inf'.*a finite number"),
        ("NEXTSLICE_OPEN_MINUTES", "nan", r"NEXTSLICE_OPEN_MINUTES: found 'nan'.*a finite number"),
        ("REDIS_URL", "localhost:6379", r"REDIS_URL: found .*expected one such as redis://"),
        ("LABEL_STUDIO_URL", "http://host:port", r"LABEL_STUDIO_URL: found .*expected an address"),
        ("LABEL_STUDIO_URL", "http://host..example", "LABEL_STUDIO_URL: .*expected an address"),
        ("REDIS_URL", "redis://lab..example:6379/0", "REDIS_URL: .*expected one such as redis://"),
        ("PUBLIC_URL", "http://host:99999", r"PUBLIC_URL: found .*expected an address"),
        ("NEXTSLICE_LOG_LEVEL", "chatty", r"NEXTSLICE_LOG_LEVEL: found 'CHATTY'.*'DEBUG', 'INFO'"),
        ("BASIC_AUTH_USER", "ann", r"BASIC_AUTH_USER and BASIC_AUTH_PASS: found one of them"),
        ("NEXTSLICE_WEBHOOK_SECRET", "schlüssel€", "SECRET: Label Studio cannot send it: expected"),
        ("LABEL_STUDIO_URL", "labelstudio:8080", r"\. LABEL_STUDIO_URL: found 'labelstudio:8080'"),
        ("NEXTSLICE_STRATEGY", "corset", r"NEXTSLICE_STRATEGY: found 'corset'.*there are badge, "),
        ("NEXTSLICE_STRATEGY", "worst_iou", r"'worst_iou'.*looks at true masks"),
        ("NEXTSLICE_COLD_START", "typiclust", r"needs embedding.*expected random, strided"),
        ("NEXTSLICE_UNLABELLED", "maybe", r"NEXTSLICE_UNLABELLED: found 'maybe'"),
        ("NEXTSLICE_TRAIN_DEVICE", "gpu", r"NEXTSLICE_TRAIN_DEVICE: found 'gpu': expected cpu, "),
        ("NEXTSLICE_TRAIN_DEVICE", "cuda:", r"found 'cuda:': expected cpu, cuda, cuda:1"),
        ("PREDICT_DEVICE", "gpu0", r"\. PREDICT_DEVICE: found 'gpu0': expected cpu, cuda"),
        ("NEXTSLICE_STORE", "nowhere://x", r"NEXTSLICE_STORE: found .*: Protocol not known"),
        pytest.param(
            "NEXTSLICE_STORE",
            "s3://bucket/x",
            r"Install s3fs.* pip install 'nextslice\[s3\]'",
            marks=needs_no_s3fs,
        ),
    ],
)
def test_a_bad_value_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=complaint) as refused:
        load_settings()
    assert "Value error" not in str(refused.value)


def test_a_strategy_of_evidence_that_the_network_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    monkeypatch.setattr(evidence, "_KINDS", evidence.declared_evidence())
    evidence.declare_evidence("hessian", "feature")

    @base.register(base.StrategyInfo(name="mine", summary="Mine.", evidence=("hessian",)))
    class Mine(base.ScoreStrategy):
        def score(self, problem: base.Problem) -> base.Floats:
            return problem.feature("hessian").sum(1)

    monkeypatch.setenv("NEXTSLICE_STRATEGY", "mine")
    with pytest.raises(SettingsError, match=r"needs hessian, which the network does not compute"):
        load_settings()


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_every_kind_of_device_is_taken(make_settings: Callable[..., Settings], device: str) -> None:
    settings = make_settings(NEXTSLICE_TRAIN_DEVICE=device, PREDICT_DEVICE=device)
    assert (settings.train_device, settings.predict_device) == (device, device)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"NEXTSLICE_ARCHITECTURE": "hrnet18"},
            "NEXTSLICE_ARCHITECTURE is 'hrnet18', which cannot",
        ),
        ({"NEXTSLICE_ARCHITECTURE": "unet:resnet35"}, "'unet:resnet35', which cannot be built"),
        ({"NEXTSLICE_TRAIN_DEVICE": "cuda:99"}, "NEXTSLICE_TRAIN_DEVICE is 'cuda:99', and torch"),
    ],
)
def test_what_only_torch_knows_is_found_out_before_a_training(
    make_settings: Callable[..., Settings], settings: dict[str, str], complaint: str
) -> None:
    from ml_backend.rounds.learners import check_network

    with pytest.raises(SettingsError, match=complaint):
        check_network(make_settings(**settings))
    check_network(make_settings(NEXTSLICE_ARCHITECTURE="hrnet_w18_small"))


@pytest.mark.parametrize(("k", "reserve"), [(2, 32), (8, 32), (16, 64)])
def test_the_reserve_follows_k(
    make_settings: Callable[..., Settings], k: int, reserve: int
) -> None:
    assert make_settings(NEXTSLICE_K=k).reserve_size == reserve
    assert make_settings(NEXTSLICE_K=k, NEXTSLICE_RESERVE=5).reserve_size == 5


def test_secrets_do_not_show(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(
        LABEL_STUDIO_API_KEY="hidden", BASIC_AUTH_USER="ann", BASIC_AUTH_PASS="hidden"
    )
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:secret@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("redis://ann:se@cret@r:1/0 and more", "redis://ann:***@r:1/0 and more"),
        ("redis://r:1/0?db=2&password=secret", "redis://r:1/0?db=2&password=***"),
        ("http://127.0.0.1:8080/a, b@c", "http://127.0.0.1:8080/a, b@c"),
        ("https://ann@labelstudio.example", "https://ann@labelstudio.example"),
    ],
)
def test_passwords_of_addresses_do_not_show(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_a_bad_address_does_not_show_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "ftp://ann:secret@labelstudio.example")
    with pytest.raises(SettingsError, match=r"found 'ftp://ann:\*\*\*@labelstudio") as refused:
        load_settings()
    assert "secret" not in str(refused.value)


def test_an_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEXTSLICE_RESERVE", "NEXTSLICE_TRAIN_STEPS", "BASIC_AUTH_USER", "NEXTSLICE_K"):
        monkeypatch.setenv(name, "")
    settings = load_settings()
    assert (settings.reserve, settings.train_steps, settings.k) == (None, None, 8)
    assert settings.basic_auth is None


def test_basic_auth_is_user_and_password(make_settings: Callable[..., Settings]) -> None:
    assert make_settings().basic_auth is None
    assert make_settings(BASIC_AUTH_USER="u", BASIC_AUTH_PASS="p").basic_auth == ("u", "p")


@pytest.mark.parametrize(
    ("user", "password", "complaint"),
    [
        ("lab:ns", "secret", r"BASIC_AUTH_USER: found 'lab:ns', expected a user without a colon"),
        ("łab", "secret", r"BASIC_AUTH_USER: Label Studio cannot send it: expected .*Latin-1"),
        ("lab", "secret€", r"BASIC_AUTH_PASS: Label Studio cannot send it: expected .*Latin-1"),
        ("lab", "secret ", r"BASIC_AUTH_PASS: Label Studio cannot send it: .*no space at either"),
    ],
)
def test_credentials_that_label_studio_cannot_send_are_refused(
    monkeypatch: pytest.MonkeyPatch, user: str, password: str, complaint: str
) -> None:
    monkeypatch.setenv("BASIC_AUTH_USER", user)
    monkeypatch.setenv("BASIC_AUTH_PASS", password)
    with pytest.raises(SettingsError, match=complaint) as refused:
        load_settings()
    assert password not in str(refused.value)


def test_a_user_without_a_home_needs_none_for_a_redis_that_is_named(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with a user of any number."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("NEXTSLICE_HOME", raising=False)
    named = "redis://redis.example:6379/0"
    assert make_settings(REDIS_URL=named).redis_address == named
    with pytest.raises(SettingsError, match="set NEXTSLICE_HOME"):
        _ = make_settings(REDIS_URL="").redis_address


def test_a_round_records_every_setting_that_decides_what_it_computes() -> None:
    recorded = Settings(k=3, label_studio_api_key="secret").of_a_round()  # type: ignore[arg-type]
    assert recorded["k"] == 3
    assert {"strategy", "seed", "train_steps", "reserve", "unlabelled"} <= recorded.keys()
    assert "secret" not in json.dumps(recorded)
    where = ("url", "secret", "pass", "api_key", "_s", "dir", "prefix", "origins")
    assert not [name for name in recorded if name.endswith(where)]


def test_a_new_setting_is_recorded_without_being_listed() -> None:
    class Later(Settings):
        smoothness: float = 0.5
        proxy: Local[str] = "http://proxy"

    recorded = Later().of_a_round()
    assert recorded["smoothness"] == 0.5
    assert "proxy" not in recorded


def test_the_defaults_that_are_not_looked_at_are_good() -> None:
    """They are believed, since the look costs NumPy."""
    strategy, cold_start = (
        base.get_strategy(Settings.model_fields[name].default)
        for name in ("strategy", "cold_start")
    )
    for one in (strategy, cold_start):
        assert not one.needs_ground_truth
        assert not one.beyond(evidence.STANDARD)
    assert not cold_start.evidence


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:6379/0", "redis://r-1.example:1", "redis://R:9/12"]
)
def test_addresses_of_redis_that_are_not_looked_at_are_good(url: str) -> None:
    assert _PLAIN_REDIS.fullmatch(url)
    assert parse_url(url)["port"]
    assert Settings.model_fields["redis_url"].default == "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize(
    "url",
    ["redis://:pw@r:1/0", "rediss://r:1/0", "redis://r:99999/0", "redis://r:1/0?db=2", "r:1", ""],
)
def test_all_others_are(url: str) -> None:
    assert not _PLAIN_REDIS.fullmatch(url)
