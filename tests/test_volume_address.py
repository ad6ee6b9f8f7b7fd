"""The signed address of a whole volume."""

from __future__ import annotations

import pytest

from ml_backend.volumes.address import AddressRefused, SliceAddress, SliceKeys
from ml_backend.volumes.volume_address import VolumeAddress, last_day

KEYS = SliceKeys(("a secret of the laboratory",))
NOON = 1_800_014_400 + 43_200
DAY = 86_400


def token(address: VolumeAddress, keys: SliceKeys = KEYS) -> str:
    return address.url("", keys).removeprefix("/zarr/")


@pytest.mark.parametrize("volume", ["scans/bone.h5", "/a b/../µ?#%.h5", "\ud800", "x" * 1000])
def test_what_was_signed_comes_back(volume: str) -> None:
    address = VolumeAddress("7.1767225600", volume, "y", NOON)
    assert VolumeAddress.parse(token(address), KEYS, now=NOON - 1) == address
    assert address.url("https://lab.example/nextslice/", KEYS).startswith(
        "https://lab.example/nextslice/zarr/"
    )


def test_whatever_is_changed_in_it_is_refused() -> None:
    good = token(VolumeAddress("7.1", "scans/bone.h5", "z", NOON))
    for at in range(len(good)):
        changed = good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :]
        for bad in (changed, good[:at], good[:at] + good[at + 1 :]):
            with pytest.raises(AddressRefused):
                VolumeAddress.parse(bad, KEYS, now=0)


def test_it_ends_and_a_slice_s_signature_is_not_its_own() -> None:
    address = VolumeAddress("7.1", "scans/bone.h5", "z", NOON)
    with pytest.raises(AddressRefused, match="expired"):
        VolumeAddress.parse(token(address), KEYS, now=NOON)
    body = token(address).partition(".")[0]
    other = SliceAddress(body, "z", 0).url("", KEYS)
    key, signature = (other.partition(f"{name}=")[2].partition("&")[0] for name in ("key", "sig"))
    with pytest.raises(AddressRefused, match="does not fit"):
        VolumeAddress.parse(f"{body}.{key}.{signature}", KEYS, now=0)


def test_old_secrets_stay_good() -> None:
    address = VolumeAddress("7.1", "scans/bone.h5", "z", NOON)
    both = SliceKeys(("another secret of theirs", *KEYS.secrets))
    assert VolumeAddress.parse(token(address), both, now=0) == address
    assert token(address, both) != token(address)


@pytest.mark.parametrize("said", ["", "AA", "W10", "WzEsMiwzLDRd", "bnVsbA", "W1tbW1tbW1tb" * 90])
def test_what_says_nothing_is_refused_though_it_is_signed(said: str) -> None:
    key, signature = KEYS.sign(f"nextslice volume\n{said}")
    with pytest.raises(AddressRefused):
        VolumeAddress.parse(f"{said}.{key}.{signature}", KEYS, now=0)


def test_addresses_of_a_day_are_the_same() -> None:
    midnight = NOON - NOON % DAY
    assert last_day(midnight) == last_day(midnight + DAY - 1) == midnight + 31 * DAY
    assert last_day(midnight + DAY) == midnight + 32 * DAY
