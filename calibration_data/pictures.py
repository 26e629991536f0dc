"""Pictures and videos as handles: a path, encoded bytes or an open image, decoded when they are asked for.

A twelve-megapixel photograph takes 4 MB as a file and 36 MB decoded, so what is kept is the file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from PIL import Image, ImageOps

from halfv_data.errors import DataError, shown

HINT = "check the path (relative paths start at the list)"
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows their names and decodes none of them by itself
PATH_MAX = 4096  # bytes, on Linux
HEIF = (".heic", ".heif", ".hif")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"P6")
APPLE_DOUBLE = "._"  # macOS writes ._x.png beside x.png on foreign disks: its attributes, not a picture


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture that is decoded each time it is asked for.

    Parameters
    ----------
    where : str
        What a message calls its place: "samples.jsonl line 7".
    source : Path, bytes, PIL.Image.Image or callable
        The file, the encoded file, an open image; or a function that gives, when it is called, any value that
        `Picture.of` takes.
    """

    where: str
    source: Path | bytes | Image.Image | Callable[[], Any] = field(repr=False)
    folder: Path = Path()

    @classmethod
    def of(cls, value: Any, where: str, folder: Path = Path(), hint: str = HINT) -> Picture:
        """A handle of a picture in whichever form people store one.

        Parameters
        ----------
        value : str, Path, bytes, dict, PIL.Image.Image or callable
            The path of a file (``~`` and file: URIs too), an encoded file, the same as base64 (also as a data: URI),
            what ``datasets`` stores ({"bytes", "path"}), or an image. A function is called when the picture is asked
            for and gives one of these, so that rows of a large table need not be held in memory.
        where : str
            For messages.
        folder : Path
            Where relative paths start.
        hint : str
            What to do about a file that is missing.

        Raises
        ------
        DataError
            If it is none of these, or if no file is there. What is in the file is seen by `load`.
        """
        given = value
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, memoryview | bytearray):
            value = bytes(value)
        if isinstance(value, bytes):
            return cls(where, _base64(value) or value)
        if isinstance(value, Image.Image) or callable(value):
            return cls(where, value, folder)
        if isinstance(value, Path):
            return cls(where, _file(str(value), folder, where, hint))
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{_at(where)}the image is {shown(given)}: it must be the path of an image file")
        return cls(where, _of_text(value, folder, where, hint))

    def load(self) -> Image.Image:
        """The picture as RGB, decoded to its last pixel, turned upright by its EXIF tag, on white where it is clear.

        Raises
        ------
        DataError
            If it is missing, not an image, cut off, too large, or has more than 8 bits a channel.
        """
        if callable(self.source):
            return Picture.of(self.source(), self.where, self.folder).load()
        if isinstance(self.source, Path):
            return _decode(self.source, f"{_at(self.where)}{shown(self.source)}")
        if isinstance(self.source, bytes):
            return _decode(io.BytesIO(self.source), self.where or "the image")
        return _rgb(self.source, self.where or "the image")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of size and pixels, in hex: the same for every way to store them."""
        image = self.load()
        found = hashlib.sha256(repr(image.size).encode())
        found.update(image.tobytes())
        return found.hexdigest()

    def __eq__(self, other: object) -> bool:
        """Whether they show the same pixels."""
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class Video:
    """A video file, or the frames of one, decoded when they are asked for."""

    where: str = field(compare=False)
    source: Path | tuple[Picture, ...]

    @classmethod
    def of(cls, value: Any, where: str, folder: Path = Path(), hint: str = HINT) -> Video:
        """A handle of a video: the path of a file, {"path"}, or a sequence of frames, each as `Picture.of` takes it.

        Raises
        ------
        DataError
            If it is none of these, or if no file is there.
        """
        given = value
        if isinstance(value, dict):
            value = value.get("path")
        if isinstance(value, str | Path) and str(value).strip():
            return cls(where, _file(str(value), folder, where, hint, what="video"))
        if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value):
            return cls(where, tuple(Picture.of(frame, where, folder, hint) for frame in value))
        raise DataError(
            f"{_at(where)}the video is {shown(given)}: it must be the path of a video file, or a list of frames"
        )

    def load(self) -> str | list[Image.Image]:
        """What a processor takes: the path of the file, or the decoded frames."""
        return str(self.source) if isinstance(self.source, Path) else [frame.load() for frame in self.source]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, or of the frames' pixels, in hex."""
        if isinstance(self.source, Path):
            found = hashlib.sha256()
            with self.source.open("rb") as file:
                while part := file.read(1 << 20):
                    found.update(part)
            return found.hexdigest()
        return hashlib.sha256("".join(frame.digest for frame in self.source).encode()).hexdigest()


def is_picture(path: Path) -> bool:
    """Whether a file in a folder is taken for a picture: by its suffix, in either case, as Pillow registers them."""
    return path.suffix.lower() in _suffixes() and not path.name.startswith(APPLE_DOUBLE)


def is_video(path: Path) -> bool:
    """Whether a file in a folder is taken for a video, by its suffix."""
    return path.suffix.lower() in VIDEOS and not path.name.startswith(APPLE_DOUBLE)


def open_image(path: str | Path) -> Image.Image:
    """Open one picture as RGB, decoded to its last pixel and turned upright by its EXIF tag.

    Raises
    ------
    DataError
        If it is missing, not an image, cut off, or has more than 8 bits a channel, or if the path is a URL.
    """
    return Picture.of(path, where="", hint="check the path").load()


@cache
def _suffixes() -> frozenset[str]:
    Image.init()
    kinds = {*Image.OPEN, "MPO"} - STUBS  # Pillow opens an MPO as the JPEG that it begins with
    opened = {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}
    return frozenset({*opened, *HEIF})


def _at(where: str) -> str:
    return f"{where}: " if where else ""


# ------------------------------------------------------------------------------------------------------- where it lies


def _of_text(text: str, folder: Path, where: str, hint: str) -> Path | bytes:
    """What a text stands for: a data: URI, a file, or a picture in base64; refused unless it is one of them."""
    if text.lstrip()[:5].lower() == "data:":
        return _of_data_uri(text.strip(), where)
    if len(text) <= PATH_MAX or "://" in text[:20]:
        try:
            return _file(text, folder, where, hint)
        except DataError:
            if (found := _base64(text)) is not None:
                return found
            raise
    if (found := _base64(text)) is not None:
        return found
    raise DataError(
        f"{_at(where)}the image is a text of {len(text)} characters, {shown(text)}, which is neither a path nor a "
        "picture in base64: give one of them"
    )


def _of_data_uri(uri: str, where: str) -> bytes:
    head, comma, data = uri.partition(",")
    base64_coded = head.lower().endswith(";base64")
    found = _from_base64(data) if base64_coded else unquote_to_bytes(data)
    if not comma or not found:
        raise DataError(f"{_at(where)}the image {shown(uri)} is a data: URI without a picture: encode the file again")
    return found


def _base64(text: str | bytes) -> bytes | None:
    """The file that this text is in base64, if it is the beginning of a picture's; None for any other text."""
    head = re.sub(rb"\s", b"", text[:64].encode("ascii", "replace") if isinstance(text, str) else text[:64])
    start = _from_base64(head[: len(head) // 4 * 4]) if len(head) >= 16 else None
    if start is None or not (start.startswith(MAGIC) or start[4:8] == b"ftyp" or start[8:12] == b"WEBP"):
        return None
    return _from_base64(text)


def _from_base64(text: str | bytes) -> bytes | None:
    """Decode base64 of either alphabet, in lines or not, percent-encoded or not, however it is padded; else None."""
    packed = text.encode("ascii", "replace") if isinstance(text, str) else text
    packed = unquote_to_bytes(packed) if b"%" in packed else packed
    packed = re.sub(rb"\s", b"", packed).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    packed = packed[: len(packed) - (len(packed) % 4 == 1)]  # six bits alone are no byte: it was cut off there
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        return None


def _file(path: str, folder: Path, where: str, hint: str, what: str = "image") -> Path:
    """Where a picture or a video is; refused unless a file is there."""
    if path.lower().startswith("file:"):
        path = url2pathname(urlsplit(path).path)
    if "://" in path:
        raise DataError(f"{_at(where)}{what} {shown(path)} is a URL: download it, because only local files are opened")
    file = folder / os.path.expanduser(path)
    try:
        if file.is_dir():
            raise DataError(f"{_at(where)}{what} {shown(file)} is a folder: name one {what} file")
        if not file.is_file():
            raise DataError(f"{_at(where)}{what} {shown(file)} does not exist: {hint}")
        return file
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__  # the whole message repeats the path
        raise DataError(f"{_at(where)}{what} path {shown(path)} cannot be read ({reason}): check it") from error


# ------------------------------------------------------------------------------------------------------------ decoding


def _decode(encoded: Path | io.BytesIO, where: str) -> Image.Image:
    try:
        with _quiet(), _opened(encoded, where) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image, where)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{where} is not an image: give a PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF file") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise DataError(f"{where} has more than {limit:.0f} megapixels: scale it down") from error
    except MemoryError as error:
        raise DataError(f"{where} does not fit into memory: scale it down") from error
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files, SyntaxError and struct.error too
        reason = shown(str(error) or type(error).__name__)[1:-1]
        raise DataError(f"{where} is damaged or cut off ({reason}): copy or save the image again") from error


def _opened(encoded: Path | io.BytesIO, where: str) -> Image.Image:
    """By Pillow and its plugins; a HEIC photograph also by pillow-heif where that is installed."""
    try:
        return Image.open(encoded)
    except Image.UnidentifiedImageError:
        if not _is_heif(encoded):
            raise
    try:
        import pillow_heif
    except ImportError:
        raise DataError(f"{where} is a HEIC photograph: pip install pillow-heif, or save it as JPEG") from None
    if isinstance(encoded, io.BytesIO):
        encoded.seek(0)
    return pillow_heif.open_heif(encoded).to_pillow()


def _is_heif(encoded: Path | io.BytesIO) -> bool:
    head = encoded.getvalue()[:12] if isinstance(encoded, io.BytesIO) else encoded.open("rb").read(12)
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def _rgb(image: Image.Image, where: str) -> Image.Image:
    """Eight bits a channel, and white behind whatever is transparent."""
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{where} has pixels of mode {image.mode!r}, more than 8 bits: save it with 8 bits a channel")
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings from stderr: what cannot be used is told by an error, and the rest is used."""
    logger = logging.getLogger("PIL")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
