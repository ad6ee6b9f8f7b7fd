"""Volume names: the same file on every machine, and never one outside its root."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ml_backend.volumes.roots import NoSuchVolume, VolumeRoots
from ml_backend.volumes.volume import VolumeError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scans/ with volumes and links beside archive/ and a secret that is in no root."""
    top = tmp_path_factory.mktemp("tree")
    for folder in ("scans/week 4", "archive/scans", "scans-secret"):
        (top / folder).mkdir(parents=True)
    for file in ("scans/a.npy", "scans/week 4/b (1).npy", "archive/scans/c.npy", "secret.npy"):
        (top / file).write_bytes(b"")
    links = {"out.npy": "../secret.npy", "up": "..", "other.npy": "../archive/scans/c.npy"}
    links |= {"in.npy": "a.npy", "beside": "../scans-secret", "loop": "loop", "gone": "nowhere"}
    for name, target in links.items():
        (top / "scans" / name).symlink_to(target)
    return top


def roots(top: Path) -> VolumeRoots:
    return VolumeRoots.parse(f"{top}/scans, old={top}/archive/scans")


def test_roots_are_called_as_they_are_told_or_as_their_folder() -> None:
    found = VolumeRoots.parse("/data/scans/, archive=/mnt/x,/mnt/a=b")
    assert found.folders == {
        "scans": Path("/data/scans"),
        "archive": Path("/mnt/x"),
        "a=b": Path("/mnt/a=b"),
    }
    assert not VolumeRoots.parse("").folders


@pytest.mark.parametrize("text", ["a=", "=/data", "/", "..=/data", "a\\b=/data"])
def test_a_malformed_root_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"NEXTSLICE_VOLUMES: found .* expected a folder"):
        VolumeRoots.parse(text)


def test_two_roots_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two roots are called 'scans' \(/a/scans and /b/scans\)"):
        VolumeRoots.parse("/a/scans,/b/scans")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("scans/a.npy", "scans/a.npy"),
        ("scans/week 4/b (1).npy", "scans/week 4/b (1).npy"),
        ("scans/week 4", "scans/week 4"),
        ("scans", "scans"),
        ("archive/scans/c.npy", "old/c.npy"),
        ("scans/in.npy", "scans/in.npy"),
        ("scans/../scans/a.npy", "scans/a.npy"),
        ("scans/up/scans/a.npy", "scans/up/scans/a.npy"),
        ("scans/other.npy", "old/c.npy"),
    ],
)
def test_a_path_has_a_name_that_leads_back(tree: Path, file: str, name: str) -> None:
    found = roots(tree)
    assert found.name(tree / file) == name
    assert found.path(name).samefile(tree / file)


def test_the_deepest_root_names_a_path(tree: Path) -> None:
    nested = VolumeRoots.parse(f"all={tree},{tree}/scans")
    assert nested.name(tree / "scans" / "a.npy") == "scans/a.npy"
    assert nested.name(tree / "secret.npy") == "all/secret.npy"


def test_a_root_that_is_reached_through_a_link_names_paths_both_ways(tree: Path) -> None:
    link = tree / "linked"
    if not link.is_symlink():
        link.symlink_to("scans")
    found = VolumeRoots.parse(f"{link}")
    assert found.name(tree / "scans" / "a.npy") == "linked/a.npy"
    assert found.name(link / "a.npy") == "linked/a.npy"


@pytest.mark.parametrize("file", ["secret.npy", "scans-secret", "."])
def test_a_path_outside_says_what_to_set(tree: Path, file: str) -> None:
    with pytest.raises(VolumeError, match=r"roots are scans=/.*, old=/.*Set NEXTSLICE_VOLUMES to"):
        roots(tree).name(tree / file)
    with pytest.raises(VolumeError, match="NEXTSLICE_VOLUMES names no folder"):
        VolumeRoots.parse("").name(tree / file)


@pytest.mark.parametrize("file", ["out.npy", "up", "up/secret.npy", "beside", "other.npy"])
def test_links_that_lead_out_are_refused(tree: Path, file: str) -> None:
    with pytest.raises(VolumeError, match="leads out of") as refused:
        roots(tree).path(f"scans/{file}")
    assert not isinstance(refused.value, NoSuchVolume)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.npy", "scans/../secret.npy", "scans/../../etc/passwd", "/etc/passwd", ""),
        *("scans//etc/passwd", "scans/", "/scans/a.npy", "scans/./a.npy", "scans/a.npy/", "."),
        *("..", "scans/..\\secret.npy", "scans\\a.npy", "scans/a.npy\0", "scans/a\n.npy"),
        "scans/\udcff",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(tree: Path, name: str) -> None:
    with pytest.raises(VolumeError, match=r"expected <root>/<path>") as refused:
        roots(tree).path(name)
    assert not isinstance(refused.value, NoSuchVolume)


@pytest.mark.parametrize(
    "name", ["scans/b.npy", "other/a.npy", "scans/a.npy/x", "scans/gone", "scans/loop", "~/a.npy"]
)
def test_what_is_not_there_is_said_so(tree: Path, name: str) -> None:
    with pytest.raises(NoSuchVolume, match=r"volume '"):
        roots(tree).path(name)


def test_a_name_that_is_too_long_is_not_there(tree: Path) -> None:
    with pytest.raises(NoSuchVolume):
        roots(tree).path("scans/" + "x" * 5000)


PARTS = st.sampled_from(
    [
        *("scans", "old", "a.npy", "c.npy", "secret.npy", "scans-secret", "archive", "up", "etc"),
        *("beside", "out.npy", "in.npy", "other.npy", "loop", "week 4", "..", ".", "", "~", "\\"),
        *("..\\", "\0", "/", "//", "%2e%2e", "…", "\u2215", "tmp"),
    ]
)


@settings(deadline=None)
@given(name=st.lists(PARTS | st.text(max_size=3), max_size=6).map("/".join) | st.text())
@example("scans/up/scans/up/archive/scans/c.npy")
def test_no_name_leaves_its_root(tree: Path, name: str) -> None:
    try:
        found = roots(tree).path(name)
    except VolumeError:
        return
    root = tree / {"scans": "scans", "old": "archive/scans"}[name.split("/")[0]]
    assert found.resolve(strict=True).is_relative_to(root)
    assert roots(tree).path(roots(tree).name(found)).samefile(found)
