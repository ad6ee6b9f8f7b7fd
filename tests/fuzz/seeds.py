"""Make the corpus, all of it our own: ``python -m tests.fuzz.seeds``. What was found stays."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import tifffile
from PIL import Image

from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import bitmask_config, brush_config, parse_label_config
from ml_backend.studio.masks import encode_bitmask, encode_brush
from ml_backend.volumes.address import SliceAddress, SliceKeys
from ml_backend.volumes.opening import write_volume
from ml_backend.volumes.volume import ReadOptions, VolumeSpec
from ml_backend.volumes.volume_address import VolumeAddress
from ml_backend.volumes.window import Window
from tests.fuzz.instruments import INSTRUMENTS, Seeds
from tests.fuzz.parsers import CONTROLS, HEIGHT, MASKS, SECRET, WIDTH
from tests.fuzz.target import CORPUS
from tests.fuzz.wire import KEY
from tests.fuzz.wire import SECRET as WIRE_SECRET

__all__ = ["main"]

_RNG = np.random.default_rng(0)
_GREY = (np.arange(4 * 10 * 12).reshape(4, 10, 12) * 37 % 1000).astype("u2")
_SHOWN = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 7 % 256).astype("u1")
_ROWS, _COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
_DISC = (_ROWS - 12) ** 2 + (_COLUMNS - 14) ** 2 < 60


def main() -> None:
    for target, make in _MAKES.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith("found-"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        for name, content in make():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def _label_configs() -> Seeds:
    yield "bitmask", bitmask_config(["bone", "implant"]).encode()
    yield "brush", brush_config(["background", "bone", "Zähne"]).encode()
    for name, control in zip(("alias", "outlines"), CONTROLS, strict=True):
        yield name, MASKS.format(control).encode()


def _result(region: str, kind: str, value: dict[str, object]) -> dict[str, object]:
    return {
        "id": region,
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": value,
    }


def _tasks() -> Seeds:
    outlines = [
        _result(
            "a",
            "polygonlabels",
            {"points": [[10, 10], [50.5, 20], [30, 80]], "closed": True, "polygonlabels": ["bone"]},
        ),
        _result(
            "b",
            "rectanglelabels",
            {
                "x": 20,
                "y": 10,
                "width": 30,
                "height": 40.5,
                "rotation": 15,
                "rectanglelabels": ["i"],
            },
        ),
        _result(
            "c",
            "ellipselabels",
            {
                "x": 50,
                "y": 50,
                "radiusX": 20,
                "radiusY": 10,
                "rotation": 30,
                "ellipselabels": ["bone"],
            },
        ),
        _result("d", "keypointlabels", {"x": 5, "y": 5, "width": 1, "keypointlabels": ["bone"]}),
        {
            "id": "e",
            "type": "choices",
            "from_name": "q",
            "to_name": "image",
            "value": {"choices": ["good"]},
        },
    ]
    mask = _DISC.astype(np.uint8)
    for name, control in zip(("bitmask", "brush"), CONTROLS, strict=True):
        painted = regions(mask, parse_label_config(MASKS.format(control)))
        yield name, json.dumps(_task(painted)).encode()
    yield "outlines", json.dumps(_task(outlines)).encode()


def _task(result: list[dict[str, object]]) -> dict[str, object]:
    made = {
        "id": 11,
        "result": result,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-05-01T10:00:00.5Z",
        "updated_at": "2026-05-01T10:05:00.5Z",
        "completed_by": 1,
        "lead_time": 31.5,
    }
    draft = {"id": 2, "result": result[:1], "annotation": None, "updated_at": None}
    return {
        "id": 7,
        "data": {"image": "/data/upload/1/a.png", "z": 3, "volume": "scan"},
        "annotations": [made, made | {"id": 12, "was_cancelled": True}],
        "drafts": [draft],
        "predictions": [{"id": 3, "model_version": "nextslice-r001-abcdef", "score": 0.1}],
        "project": 1,
        "is_labeled": True,
        "created_at": "2026-05-01T09:00:00Z",
    }


def _brushes() -> Seeds:
    yield "disc", bytes(encode_brush(_DISC))
    yield "noise", bytes(encode_brush(_RNG.random((HEIGHT, WIDTH)) < 0.5))
    # literal groups, as the browser's encoder writes them: word size 8, 4·H·W values
    bits = f"{4 * HEIGHT * WIDTH:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    values = np.repeat(_SHOWN.ravel(), 4)
    for start in range(0, values.size, 256):
        part = values[start : start + 256]
        bits += "0" + "10" + f"{part.size - 1:08b}" + "".join(f"{v:08b}" for v in part)
    bits += "0" * (-len(bits) % 8)
    yield "literal", int(bits, 2).to_bytes(len(bits) // 8, "big")


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    to = io.BytesIO()
    image.save(to, kind, **options)
    return to.getvalue()


def _bitmasks() -> Seeds:
    yield "ours.png", _png_of(encode_bitmask(_DISC))
    shown = Image.fromarray(_SHOWN)
    alpha = Image.merge("RGBA", (shown, shown, shown, Image.fromarray(_DISC.astype("u1") * 255)))
    yield "rgba.png", _saved(alpha, "PNG")
    yield "palette.png", _saved(shown.convert("P"), "PNG", transparency=3)
    yield "grey.png", _saved(shown, "PNG")


def _png_of(url: str) -> bytes:
    import base64

    return base64.b64decode(url.partition(",")[2])


def _bitmask_texts() -> Seeds:
    yield "ours", encode_bitmask(_DISC).encode()


def _images() -> Seeds:
    grey, colour = Image.fromarray(_SHOWN), Image.fromarray(np.dstack([_SHOWN] * 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "grey.png", _saved(grey, "PNG")
    yield "grey16.png", _saved(Image.fromarray(_SHOWN.astype("u2") * 200), "PNG")
    yield "colour.png", _saved(colour, "PNG", exif=exif)
    yield "colour.jpg", _saved(colour, "JPEG", exif=exif, progressive=True)
    yield "cmyk.jpg", _saved(colour.convert("CMYK"), "JPEG")
    yield "colour.webp", _saved(colour, "WEBP", exif=exif)
    yield "lossless.webp", _saved(colour, "WEBP", lossless=True)
    yield "grey.gif", _saved(grey, "GIF")
    yield "colour.bmp", _saved(colour, "BMP")
    yield "grey.bmp", _saved(grey, "BMP")
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        yield f"{compression}.tif", _saved(grey, "TIFF", compression=compression, exif=exif)
    yield "float.tif", _saved(Image.fromarray(_SHOWN.astype("f4")), "TIFF")
    yield "group4.tif", _saved(grey.convert("1"), "TIFF", compression="group4")


def _label_pictures() -> Seeds:
    yield "grey.png", _saved(Image.fromarray(_SHOWN), "PNG")
    yield "palette.png", _saved(Image.fromarray(_SHOWN).convert("P"), "PNG")
    yield "interlaced.png", _saved(Image.fromarray(_SHOWN), "PNG", interlace=1)


def _addresses() -> Seeds:
    keys = SliceKeys((SECRET,))
    options = ReadOptions("/entry/data", (4, 10, 12), "<u2", 8)
    plain = SliceAddress("scans/a b.h5", "z", 3, Window(0.5, 1000))
    yield "plain", plain.url("http://127.0.0.1:9090", keys).encode()
    whole = SliceAddress("scans/a.raw", "x", 0, None, options, 4102444800)
    yield "options", whole.url("https://lab.example/nextslice", keys).encode()


def _volume_addresses() -> Seeds:
    keys = SliceKeys((SECRET,))
    for name, volume in ("plain", "scans/a.raw"), ("spaces", "/scans/week 4/µ.h5"):
        found = VolumeAddress("7.1767225600", volume, "z", 4102444800).url("", keys)
        yield name, found.removeprefix("/zarr/").encode()


def _requests() -> Seeds:
    config, keys = bitmask_config(["bone"]), SliceKeys((WIRE_SECRET,))
    bodies: dict[str, dict[str, object]] = {
        "setup": {"project": KEY, "schema": config, "hostname": "http://ls", "access_token": "t"},
        "predict": {
            "project": KEY,
            "label_config": config,
            "params": {"context": None},
            "tasks": [{"id": 1, "data": {"image": "/data/upload/1/a.png"}}],
        },
        "webhook": {
            "action": "ANNOTATION_CREATED",
            "project": {"id": 7, "created_at": "2025-11-23T02:30:28.893829Z"},
        },
    }
    for name, body in bodies.items():
        content = json.dumps(body)
        head = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        yield name, f"POST /{name} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n{content}".encode()
    raw = ReadOptions(shape=(4, 10, 12), dtype="<u1")
    address = SliceAddress("scans/a.raw", "z", 1, None, raw).url("", keys)
    volume = VolumeAddress(KEY, "scans/a.raw", "z", 4102444800).url("", keys)
    paths = {
        "slice": address,
        "zarr": f"{volume}/scan.zarr/0/1/0/0",
        "health": "/health",
        "metrics": "/metrics",
        "ready": "/ready?exclude=gpu&exclude=control",
        "versions": f"/versions?project={KEY}",
        "openapi": "/openapi.json",
    }
    for name, path in paths.items():
        head = 'Origin: http://localhost:8080\r\nIf-None-Match: "a"\r\nAccept: */*\r\n'
        yield name, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode()
    chunk = json.dumps({"project": KEY})
    yield (
        "chunked",
        (
            "POST /setup HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Transfer-Encoding: chunked\r\n\r\n{len(chunk):x}\r\n{chunk}\r\n0\r\n\r\n"
        ).encode(),
    )


def _written(name: str, array: np.ndarray = _GREY) -> Seeds:
    """A volume as we write it, under the name of its target."""
    with tempfile.TemporaryDirectory() as folder:
        shape = (array.shape[0], array.shape[1], array.shape[2])
        spec = VolumeSpec(shape, array.dtype, (4.6, 2.0, 1.0), "µm", ("background", "bone"))
        write_volume(Path(folder) / name, iter(array), spec)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                yield str(path.relative_to(folder)), path.read_bytes()


def _single(name: str, array: np.ndarray = _GREY) -> bytes:
    return dict(_written(name, array))[name]


def _hdf5() -> Seeds:
    yield "nexus", _single("a.h5")
    yield "chunked", _made_hdf5("a", chunks=(2, 5, 12), compression="lzf", fletcher32=True)
    yield "plain", _made_hdf5("b")
    yield "compact", _made_hdf5("c", np.zeros((1, 4, 10, 12), "f4"), chunks=(1, 1, 10, 12))
    yield "new", _made_hdf5("d", libver="latest", chunks=(1, 10, 12), compression="gzip")


def _made_hdf5(name: str, array: np.ndarray = _GREY, libver: str = "earliest", **form: object):
    to = io.BytesIO()
    with h5py.File(to, "w", libver=libver) as file:
        file.create_dataset(f"group/{name}", data=array, **form)
        file["link"] = h5py.SoftLink(f"/group/{name}")
        file.attrs["default"] = "group"
        file["group"].attrs["signal"] = name
        file["group"].attrs["axes"] = np.array(["z", "y", "x"], h5py.string_dtype())
        if name == "b":
            layout = h5py.VirtualLayout(array.shape, array.dtype)
            layout[:] = h5py.VirtualSource(".", "group/b", array.shape)
            file.create_virtual_dataset("group/v", layout)
            file["group"].attrs["signal"] = "v"
    return to.getvalue()


def _nifti() -> Seeds:
    import nibabel

    yield "ours", _single("a.nii")
    scaled = nibabel.Nifti2Image(_GREY.astype("i2").T, np.diag([2.0, 2.0, 5.0, 1.0]))
    scaled.header.set_slope_inter(0.5, -3)
    yield "scaled", scaled.to_bytes()
    big = nibabel.Nifti1Header(endianness=">")
    big.set_data_dtype("f4")
    turned = nibabel.Nifti1Image(_GREY.astype("f4").T, None, header=big)
    yield "big", turned.to_bytes()


def _nifti_gz() -> Seeds:
    yield "ours", _single("a.nii.gz")


def _tiff() -> Seeds:
    yield "ome", _single("a.tif")
    forms: dict[str, dict[str, object]] = {
        "imagej": {"imagej": True, "metadata": {"spacing": 2.0, "unit": "um"}},
        "shaped": {},
        "pages": {"metadata": None, "byteorder": ">"},
        "lzw": {"metadata": None, "compression": "lzw", "predictor": True},
        "tiles": {"metadata": None, "tile": (16, 16), "compression": "zlib"},
        "big": {"bigtiff": True, "compression": "zstd"},
        "jpeg": {"data": (_GREY % 256).astype("u1"), "metadata": None, "compression": "jpeg"},
        "packbits": {"data": (_GREY % 256).astype("u1"), "compression": "packbits"},
        "jpeg2000": {"metadata": None, "compression": "jpeg2000"},
        "float": {"data": _GREY.astype("f4"), "compression": "deflate", "predictor": 3},
    }
    for name, form in forms.items():
        to = io.BytesIO()
        given = {"data": _GREY, "photometric": "minisblack"} | form
        tifffile.imwrite(to, **given)
        yield name, to.getvalue()


def _tiff_folder() -> Seeds:
    for name, form in {"plain": {}, "deflate": {"compression": "zlib"}}.items():
        for z in range(2):
            to = io.BytesIO()
            tifffile.imwrite(to, _GREY[z], photometric="minisblack", metadata=None, **form)
            yield f"{name}/a_tif/s{z}.tif", to.getvalue()


def _zarr() -> Seeds:
    import zarr

    for name, content in _written("a.zarr"):
        yield f"v3/{name}", content
    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(
            f"{folder}/a.zarr",
            shape=(2, 10, 12),
            dtype="u2",
            chunks=(2, 10, 12),
            zarr_format=2,
            chunk_key_encoding={"name": "v2", "separator": "."},
        )
        array[:] = _GREY[:2]
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                yield f"v2/{path.relative_to(folder)}", path.read_bytes()


def _numpy() -> Seeds:
    for name, array in {
        "ours": _GREY,
        "fortran": np.asfortranarray(_GREY),
        "big": _GREY.astype(">f4"),
    }.items():
        to = io.BytesIO()
        np.save(to, array)
        yield f"{name}/a.npy", to.getvalue()
    for name, content in _written("a.npy"):
        yield f"sidecar/{name}", content


def _raw() -> Seeds:
    for name, array in {"u2": _GREY, "f4": _GREY.astype("f4"), "bool": _GREY > 500}.items():
        for file, content in _written("a.raw", array):
            yield f"{name}/{file}", content


def _pictures() -> Seeds:
    yield from ((f"ours/{name}", content) for name, content in _written("a_png", _GREY[:2]))
    shown = Image.fromarray((_GREY[0] % 256).astype("u1"))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        for z in range(2):
            ending = kind.lower()
            yield f"{ending}/a_png/{z}.{ending}", _saved(shown, kind, **options)


_MAKES: dict[str, Callable[[], Seeds]] = {
    "label-config": _label_configs,
    "annotation": _tasks,
    "brush": _brushes,
    "bitmask": _bitmasks,
    "bitmask-text": _bitmask_texts,
    "image": _images,
    "label-picture": _label_pictures,
    "address": _addresses,
    "volume-address": _volume_addresses,
    "wire": _requests,
    "hdf5": _hdf5,
    "nifti": _nifti,
    "nifti-gz": _nifti_gz,
    "tiff": _tiff,
    "tiff-folder": _tiff_folder,
    "zarr": _zarr,
    "numpy": _numpy,
    "raw": _raw,
    "pictures": _pictures,
    **INSTRUMENTS,
}

if __name__ == "__main__":
    main()
