"""Signed slice addresses: what is signed is what is shown, and nothing else."""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ml_backend.volumes.address import (
    AddressRefused,
    SliceAddress,
    SliceKeys,
    is_slice_address,
    slice_of,
)
from ml_backend.volumes.volume import ReadOptions
from ml_backend.volumes.window import Window

OLD, NEW = "an old secret of the lab", "a new secret of the lab"
KEYS = SliceKeys((NEW,))
BASE = "https://nextslice.example"
ADDRESS = SliceAddress("scans/a b.h5", "z", 12, Window(0.1, 3e7), ReadOptions(dataset="entry/data"))

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
FLOATS = st.floats(-1e300, 1e300)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    low, high = sorted((draw(FLOATS), draw(FLOATS)))
    return Window(low, high) if low < high else Window(low, math.nextafter(low, math.inf))


OPTIONS = st.builds(
    ReadOptions,
    dataset=st.none() | TEXT,
    shape=st.none() | st.tuples(*[st.integers(1, 10**6)] * 3),
    dtype=st.sampled_from([None, "<u2", "float32"]),
    offset=st.none() | st.integers(0, 10**9),
)
ADDRESSES = st.builds(
    SliceAddress,
    volume=TEXT,
    axis=st.sampled_from("zyx"),
    index=st.integers(0, 10**6),
    window=st.none() | windows(),
    options=OPTIONS,
    expires=st.none() | st.integers(2, 10**11),
)


def test_the_address_is_readable() -> None:
    pattern = (
        r"https://nextslice\.example/slices/scans/a%20b\.h5/z/12\.png"
        r"\?dataset=entry%2Fdata&high=30000000\.0&low=0\.1&key=[0-9a-f]{8}&sig=[0-9a-f]{32}"
    )
    assert re.fullmatch(pattern, ADDRESS.url(BASE + "/", KEYS))


@settings(deadline=None)
@given(address=ADDRESSES)
@example(SliceAddress("slices/a/z/1.png", "y", 2))
@example(SliceAddress("scans/100% ä+&=?#;(1).tif", "x", 0, Window(1e-320, 2e-320)))
def test_what_is_signed_comes_back_exactly(address: SliceAddress) -> None:
    url = address.url(BASE, KEYS)
    assert is_slice_address(url)
    assert SliceAddress.parse(url, KEYS, now=1) == address


@settings(deadline=None)
@given(address=ADDRESSES, data=st.data())
def test_a_change_of_a_character_is_refused_or_changes_nothing(
    address: SliceAddress, data: st.DataObject
) -> None:
    """Another spelling of the same text ("+" for "%20") means the same; all else is refused."""
    url = address.url("", KEYS)
    place = data.draw(st.integers(0, len(url) - 1))
    put = data.draw(st.text(st.characters(codec="utf-8"), max_size=3))
    changed = url[:place] + put + url[place + data.draw(st.integers(0, 3)) :]
    try:
        found = SliceAddress.parse(changed, KEYS, now=1)
    except AddressRefused:
        return
    assert found == address


@settings(deadline=None)
@given(address=ADDRESSES)
def test_every_single_character_of_path_and_query_is_signed(address: SliceAddress) -> None:
    url = address.url("", KEYS)
    for place, character in enumerate(url):
        # a letter or digit after "%" may spell another letter: tested above
        if "%" in url[max(0, place - 2) : place + 1]:
            continue
        other = "1" if character != "1" else "2"
        with pytest.raises(AddressRefused):
            SliceAddress.parse(url[:place] + other + url[place + 1 :], KEYS, now=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: replace(a, volume="scans/secret.h5"),
        lambda a: replace(a, axis="y"),
        lambda a: replace(a, index=13),
        lambda a: replace(a, window=None),
        lambda a: replace(a, options=ReadOptions()),
        lambda a: replace(a, expires=None),
    ],
    ids=["volume", "axis", "index", "window", "options", "expires"],
)
def test_a_signature_is_good_for_one_address_only(change) -> None:
    address = replace(ADDRESS, expires=100)
    other = change(address).url(BASE, KEYS)
    signature = address.url(BASE, KEYS).rpartition("=")[2]
    with pytest.raises(AddressRefused, match="signature does not fit"):
        SliceAddress.parse(other.rpartition("=")[0] + "=" + signature, KEYS, now=1)


def test_scheme_host_and_a_proxy_in_front_do_not_matter() -> None:
    path = ADDRESS.url("", KEYS)
    for base in ("http://127.0.0.1:9090", "https://x.example/nextslice", "https://x/slices/b", ""):
        assert SliceAddress.parse(base + path, KEYS) == ADDRESS
        assert ADDRESS.url(base, KEYS) == base + path


def test_a_proxy_may_spell_and_order_it_anew() -> None:
    address = SliceAddress("scans/a (1)+b.tif", "z", 1, Window(1, 2))
    parts = urlsplit(address.url("", KEYS))
    query = "&".join(reversed(parts.query.split("&")))
    for path in (quote(unquote(parts.path), safe="/()+"), quote(unquote(parts.path), safe="")):
        respelled = f"{path.replace('%2F', '/')}?{query}#fragment"
        assert SliceAddress.parse(respelled, KEYS) == address


def test_old_secrets_verify_and_the_first_one_signs() -> None:
    both = SliceKeys.parse(f" {NEW} , {OLD} ")
    old = ADDRESS.url(BASE, SliceKeys((OLD,)))
    assert SliceAddress.parse(old, both) == ADDRESS
    assert ADDRESS.url(BASE, both) == ADDRESS.url(BASE, KEYS)
    with pytest.raises(AddressRefused, match=r"which this backend has not.*NEXTSLICE_SLICE_SECRET"):
        SliceAddress.parse(old, KEYS)


def test_it_expires_only_when_asked() -> None:
    assert SliceAddress.parse(ADDRESS.url(BASE, KEYS), KEYS, now=1e15) == ADDRESS
    url = replace(ADDRESS, expires=1000).url(BASE, KEYS)
    assert SliceAddress.parse(url, KEYS, now=999.5).expires == 1000
    with pytest.raises(AddressRefused, match="expired 1 s ago"):
        SliceAddress.parse(url, KEYS, now=1001)


@pytest.mark.parametrize(
    "url",
    [
        *("", "http://[", "https://x.example/data/upload/1/a.png", "/slices/a/z/1.png"),
        *("/slices/a/z/1.png?key=1&sig=", "/slices/a/z/1.png?sig=1", "\udcff?key=a&sig=b"),
        ADDRESS.url("", KEYS) + "&sig=1",
        ADDRESS.url("", KEYS) + "&low=1",
        ADDRESS.url("", KEYS).replace("/12.png", "/012.png"),
        ADDRESS.url("", KEYS).replace("/12.png", "/-12.png"),
        ADDRESS.url("", KEYS).replace("sig=", "sig=é"),
    ],
)
def test_what_nobody_signed_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused, match=r"^slice address: "):
        SliceAddress.parse(url, KEYS)


@pytest.mark.parametrize(
    "url",
    [
        *(None, 7, "", "/data/upload/1/z/1.png", "https://x.example/z/1.png?key=1&sig=2"),
        *("/slices/a/z/1.png", "/slices/a/w/1.png?key=1&sig=2", "/slices/z/1.png?key=1&sig=2"),
        *("/slices/a/z/1.png?sig=2", "/slices/a/z/1.jpg?key=1&sig=2"),
        "s3://bucket/slices/a/z/1.png?monkey=1&sig=2",
    ],
)
def test_what_has_another_form_is_no_slice_address(url: object) -> None:
    assert not is_slice_address(url)


@pytest.mark.parametrize("base", ["", "https://lab.example/nextslice", "http://localhost:9090"])
def test_what_is_shown_is_the_same_under_every_host_secret_and_window(base: str) -> None:
    shown = slice_of(ADDRESS.url(BASE, KEYS))
    other = replace(ADDRESS, window=Window(5, 6), expires=1000)

    assert slice_of(other.url(base, SliceKeys((OLD,)))) == shown
    assert (
        slice_of(quote(ADDRESS.url("", KEYS), safe="/?&=%").replace("/scans", "/%73cans")) == shown
    )


@pytest.mark.parametrize(
    "changes",
    [
        *({"volume": "scans/b.h5"}, {"axis": "y"}, {"index": 13}),
        *({"options": ReadOptions(dataset="entry/b")}, {"options": ReadOptions()}),
    ],
)
def test_another_slice_is_shown_as_another(changes: dict[str, object]) -> None:
    other = replace(ADDRESS, **changes)  # type: ignore[arg-type]  # of several types

    assert slice_of(other.url(BASE, KEYS)) != slice_of(ADDRESS.url(BASE, KEYS))


@pytest.mark.parametrize("secrets", [(), ("short",), (NEW, "short")])
def test_secrets_that_can_be_guessed_are_refused(secrets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SliceKeys(secrets)


@pytest.mark.parametrize("text", ["yz", "a", "yy", "z,y"])
def test_axes_to_turn_over_are_some_of_zyx(text: str) -> None:
    url = SliceAddress("scans/a", "z", 0, options=ReadOptions(flip=text)).url("", KEYS)
    with pytest.raises(AddressRefused, match="flip"):
        SliceAddress.parse(url, KEYS)


def test_secrets_do_not_show() -> None:
    assert NEW not in repr(KEYS)


@pytest.mark.parametrize("wrong", [("scans/a", "w", 0), ("scans/a", "z", -1), ("", "z", 0)])
def test_what_cannot_be_a_slice_has_no_address(wrong: tuple[str, str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SliceAddress(*wrong)


class TestAddressesThatAnybodyWrites:
    """Task data and paths of requests: no length and no text of them holds up who looks at them."""

    LONG = "https://lab.example" + "/slices/a/z/1.png?key=a" * 20_000
    DEEP = "/slices" * 5_000 + "/a/z/1.png?key=a&sig=b"

    @pytest.mark.parametrize("url", [LONG, DEEP, "/slices/" * 9_000], ids=["long", "deep", "cut"])
    def test_their_length_costs_no_time(self, url: str) -> None:
        began = time.process_time()
        assert not is_slice_address(url)
        assert SliceAddress.claimed(url) is None
        with pytest.raises(AddressRefused):
            SliceAddress.parse(url, KEYS)
        assert time.process_time() - began < 5, "it hangs"

    def test_ours_may_stand_behind_a_few_others(self) -> None:
        path = SliceAddress("scans/a.h5", "z", 3).url("", KEYS)
        assert SliceAddress.parse("https://lab.example/slices/of/slices" + path, KEYS).index == 3
        deep = "/slices" * 30 + path
        with pytest.raises(AddressRefused, match="does not fit"):
            SliceAddress.parse(deep, KEYS)

    @pytest.mark.parametrize(
        "url",
        [
            "http://[/slices/a/z/1.png?key=a&sig=b",
            "http://a\u2100b/slices/a/z/1.png?key=a&sig=b",
            "/slices/\udcff/z/1.png?key=a&sig=b",
            "/slices/a/z/1.png?key=a&sig=b&dataset=\ud800",
        ],
    )
    def test_what_is_no_address_is_not_taken_for_one(self, url: str) -> None:
        assert not is_slice_address(url)

    def test_a_time_of_any_length_has_expired_or_has_not(self) -> None:
        url = "/slices/a/z/1.png?expires={}&key=a&sig=b"
        assert SliceAddress.claimed(url.format("-" + "9" * 400)) is None
        assert SliceAddress.claimed(url.format("9" * 400)) is not None
