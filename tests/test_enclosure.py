"""A volume shows nothing that lies outside its roots: it is refused, and the message names it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from flask.testing import FlaskClient

from ml_backend.app import create_app
from ml_backend.settings import Settings
from ml_backend.volumes.address import SliceAddress, SliceKeys
from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import Bounds, VolumeError
from ml_backend.volumes.window import Window
from tests.test_formats import assert_holds, values, write

GREY = values("u2", (4, 20, 24))
KEYS = SliceKeys(("a secret of the laboratory",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder outside the root that holds the values of `GREY` in every way."""
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "grey.raw").write_bytes(GREY.tobytes())
    with h5py.File(folder / "grey.h5", "w") as file:
        file["data"] = GREY
    return folder


def external_storage(root: Path, secret: Path) -> Path:
    with h5py.File(root / "a.h5", "w") as file:
        where = [(str(secret / "grey.raw"), 0, GREY.nbytes)]
        file.create_dataset("data", GREY.shape, GREY.dtype, external=where)
    return root / "a.h5"


def external_link(root: Path, secret: Path) -> Path:
    with h5py.File(root / "a.h5", "w") as file:
        file["data"] = h5py.ExternalLink(str(secret / "grey.h5"), "/data")
    return root / "a.h5"


def relative_link(root: Path, secret: Path) -> Path:
    with h5py.File(root / "a.h5", "w") as file:
        file["data"] = h5py.ExternalLink("../secret/grey.h5", "/data")
    return root / "a.h5"


def link_behind_links(root: Path, secret: Path) -> Path:
    """A soft link to an external one inside, which leads to another file that leads outside."""
    with h5py.File(root / "b.h5", "w") as file:
        file["group"] = h5py.ExternalLink(str(secret / "grey.h5"), "/")
    with h5py.File(root / "a.h5", "w") as file:
        file["inner"] = h5py.ExternalLink("b.h5", "/group")
        file["scan"] = h5py.SoftLink("/inner/data")
        file.attrs.update({"signal": "scan"})
    return root / "a.h5"


def virtual_dataset(root: Path, secret: Path) -> Path:
    return virtual(root / "a.h5", str(secret / "grey.h5"), "data")


def virtual_through_a_link(root: Path, secret: Path) -> Path:
    with h5py.File(root / "b.h5", "w") as file:
        file["data"] = h5py.ExternalLink(str(secret / "grey.h5"), "/data")
    return virtual(root / "a.h5", "b.h5", "data")


def virtual_of_virtual(root: Path, secret: Path) -> Path:
    virtual(root / "b.h5", str(secret / "grey.h5"), "data")
    return virtual(root / "a.h5", "b.h5", "scan")


def virtual_of_external_storage(root: Path, secret: Path) -> Path:
    external_storage(root, secret).rename(root / "b.h5")
    return virtual(root / "a.h5", "b.h5", "data")


def virtual_of_its_own_file(root: Path, secret: Path) -> Path:
    external_storage(root, secret)
    return virtual(root / "a.h5", ".", "data")


def virtual(path: Path, file: str, name: str) -> Path:
    layout = h5py.VirtualLayout(GREY.shape, GREY.dtype)
    layout[:] = h5py.VirtualSource(file, name, GREY.shape)
    with h5py.File(path, "a") as made:
        made.create_virtual_dataset("scan", layout)
        made.attrs["signal"] = "scan"
    return path


def linked_file(ending: str) -> Callable[[Path, Path], Path]:
    def make(root: Path, secret: Path) -> Path:
        write(secret / f"b{ending}", GREY)
        (root / f"a{ending}").symlink_to(secret / f"b{ending}")
        if (sidecar := secret / f"b{ending}.json").exists():
            shutil.copy(sidecar, root / f"a{ending}.json")
        return root / f"a{ending}"

    return make


def linked_images(ending: str) -> Callable[[Path, Path], Path]:
    """A folder of slices, of which one in the middle lies elsewhere."""

    def make(root: Path, secret: Path) -> Path:
        folder = root / "a"
        if ending == ".png":
            write(folder, GREY)
        else:
            import tifffile

            folder.mkdir()
            for z, values_ in enumerate(GREY):
                tifffile.imwrite(folder / f"{z:04d}.tif", values_)
        moved(folder / f"0002{ending}", secret)
        return folder

    return make


def linked_chunk(root: Path, secret: Path) -> Path:
    write(root / "a.zarr", GREY)
    chunk = next(path for path in (root / "a.zarr" / "0" / "c").rglob("*") if path.is_file())
    moved(chunk, secret)
    return root / "a.zarr"


def linked_chunks(root: Path, secret: Path) -> Path:
    """The folder of the chunks lies elsewhere, their metadata are here."""
    write(root / "a.zarr", GREY)
    moved(root / "a.zarr" / "0" / "c", secret)
    return root / "a.zarr"


def linked_sidecar(root: Path, secret: Path) -> Path:
    write(root / "a.raw", GREY)
    moved(root / "a.raw.json", secret)
    return root / "a.raw"


def moved(path: Path, folder: Path) -> None:
    shutil.move(path, folder / path.name)
    path.symlink_to(folder / path.name)


MADE = {
    make.__name__: make
    for make in (
        external_storage,
        external_link,
        relative_link,
        link_behind_links,
        virtual_dataset,
        virtual_through_a_link,
        virtual_of_virtual,
        virtual_of_external_storage,
        virtual_of_its_own_file,
        linked_chunk,
        linked_chunks,
        linked_sidecar,
    )
} | {
    "linked png": linked_images(".png"),
    "linked tif": linked_images(".tif"),
}
LINKS = {
    f"link to {ending}": linked_file(ending)
    for ending in (".h5", ".tif", ".raw", ".npy", ".nii", ".nii.gz", ".zarr")
}


def read_all(path: Path, *roots: Path) -> np.ndarray:
    with open_volume(path, ReadOptions(bounds=Bounds(roots))) as volume:
        return np.stack(list(volume))


@pytest.mark.parametrize("kind", MADE | LINKS)
def test_what_lies_outside_the_roots_is_refused_by_name(
    root: Path, secret: Path, kind: str
) -> None:
    path = (MADE | LINKS)[kind](root, secret)
    with pytest.raises(VolumeError) as caught:
        read_all(path, root)
    assert f"leads out of {root}: expected everything that a volume is made of" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", MADE)
def test_a_path_of_a_command_leads_no_further_than_its_folder(
    root: Path, secret: Path, kind: str
) -> None:
    path = MADE[kind](root, secret)
    with pytest.raises(VolumeError, match="leads out of"):
        read_all(path)


@pytest.mark.parametrize("kind", MADE | LINKS)
def test_it_is_read_where_a_root_holds_both(root: Path, secret: Path, kind: str) -> None:
    path = (MADE | LINKS)[kind](root, secret)
    assert np.array_equal(read_all(path, root, secret), GREY)


def test_storage_beside_the_file_is_found_wherever_the_process_was_started(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "grey.raw").write_bytes(GREY.tobytes())
    with h5py.File(root / "a.h5", "w") as file:
        file.create_dataset("data", GREY.shape, "u2", external=[("grey.raw", 0, GREY.nbytes)])
    monkeypatch.chdir(root.parent)
    with open_volume(root / "a.h5") as volume:
        assert_holds(volume, GREY)


def test_a_dataset_beside_a_link_that_leads_outside_is_read_when_it_is_named(
    root: Path, secret: Path
) -> None:
    external_link(root, secret)
    with h5py.File(root / "a.h5", "a") as file:
        file["recon"] = GREY + 1
    with pytest.raises(VolumeError, match=r"grey\.h5 is opened for .*a\.h5, but leads out of"):
        open_volume(root / "a.h5")
    with open_volume(root / "a.h5", ReadOptions(dataset="recon")) as volume:
        assert_holds(volume, GREY + 1)


@pytest.mark.parametrize("name", ["a.raw", "a.npy", "a.h5", "a.tif", "a.nii"])
def test_a_pipe_is_no_volume(root: Path, name: str) -> None:
    os.mkfifo(root / name)
    with pytest.raises(VolumeError, match="is no file and no folder"):
        open_volume(root / name, ReadOptions(shape=(4, 20, 24), dtype="u2"))


def test_a_page_that_becomes_a_link_after_it_was_opened(root: Path, secret: Path) -> None:
    write(root / "a", GREY)
    with open_volume(root / "a") as volume:
        moved(root / "a" / "0002.png", secret)
        assert np.array_equal(volume[1], GREY[1])
        with pytest.raises(VolumeError, match=r"0002\.png is opened for .*leads out of"):
            volume[2]


@pytest.fixture
def client(make_settings: Callable[..., Settings], root: Path) -> FlaskClient:
    settings = make_settings(NEXTSLICE_VOLUMES=root, NEXTSLICE_SLICE_SECRET=KEYS.secrets[0])
    return create_app(settings).test_client()


@pytest.mark.parametrize("kind", MADE)
def test_the_slice_server_refuses_it(
    client: FlaskClient, root: Path, secret: Path, kind: str
) -> None:
    path = MADE[kind](root, secret)
    for index in range(4):
        address = SliceAddress(f"scans/{path.name}", "z", index, Window(0, 2**16))
        answer = client.get(address.url("", KEYS))
        assert answer.status_code == 422
        assert f"leads out of {root}" in answer.get_data(as_text=True)


def test_a_part_of_an_open_virtual_dataset_is_a_volume_of_its_own(root: Path) -> None:
    with h5py.File(root / "b.h5", "w") as file:
        file["data"] = GREY
    with open_volume(virtual(root / "a.h5", "b.h5", "data")) as whole:
        assert_holds(whole, GREY)
        with open_volume(root / "b.h5") as part:
            assert_holds(part, GREY)
