"""A picture is the same in whichever form it is stored, clear parts are white, and what cannot be opened is named."""

import base64
import gc
import io
import json
import logging
import re
import struct
import sys
import types
import urllib.parse
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from halfv_data import DataError, Picture, Sample, Video, fingerprint, is_picture, load_samples, open_image, scenes

SCENE = next(scenes(1, seed=0)).image
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8), "RGB")


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def complaint(value, where="rows.jsonl line 3", folder=Path()):
    """The one line about a picture that cannot be used; it never repeats more than 80 characters of it."""
    with pytest.raises(DataError) as caught:
        Picture.of(value, where, folder).load()
    message = str(caught.value)
    assert message.startswith(where) and "\n" not in message
    assert len(message) < len(where) + 80 + 160
    return message


# --------------------------------------------------------------------------------------------------------- transparency


def over_white(pixels):
    """The oracle: colours [..., 3] and alpha [..., 1] of 0 to 255, over white."""
    colour, alpha = pixels[..., :3].astype(float), pixels[..., 3:].astype(float) / 255
    return colour * alpha + 255 * (1 - alpha)


def seen(value):
    image = Picture.of(value, "here").load()
    assert image.mode == "RGB"
    return np.asarray(image).astype(float)


DISC = np.zeros((12, 12, 4), np.uint8)  # black throughout, so that only alpha tells the disc from what is around it
DISC[3:9, 3:9, 3] = 255
DISC[0, 0] = 200, 100, 0, 128
CLEAR = Image.fromarray(DISC, "RGBA")
GREY = CLEAR.convert("LA")
PALETTE = Image.new("P", (12, 12), 0)
PALETTE.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 0])
PALETTE.paste(1, (3, 3, 9, 9))
PALETTE.putpixel((0, 0), 2)
TRANSPARENT = {
    "RGBA": (CLEAR, encoded(CLEAR)),
    "LA": (GREY, encoded(GREY)),
    "WebP": (CLEAR, encoded(CLEAR, "WEBP", lossless=True, exact=True)),
    "TIFF": (CLEAR, encoded(CLEAR, "TIFF")),
    "TGA": (CLEAR, encoded(CLEAR, "TGA")),
    "JPEG 2000": (CLEAR, encoded(CLEAR, "JPEG2000")),
    "an open image": (CLEAR, CLEAR),
    "PA": (CLEAR.convert("PA"), CLEAR.convert("PA")),
    "premultiplied": (CLEAR, CLEAR.convert("RGBa")),
    "premultiplied grey": (GREY, GREY.convert("La")),
}


@pytest.mark.parametrize("form", TRANSPARENT)
def test_what_is_clear_is_white(form):
    image, stored = TRANSPARENT[form]
    assert np.abs(seen(stored) - over_white(np.asarray(image.convert("RGBA")))).max() <= 1


def test_a_palette_may_have_an_alpha_for_each_colour():
    found = seen(encoded(PALETTE, transparency=bytes([0, 255, 128])))
    alpha = np.select([np.asarray(PALETTE) == 1, np.asarray(PALETTE) == 2], [255, 128], 0)
    pixels = np.concatenate([np.asarray(PALETTE.convert("RGB")), alpha[..., None].astype(np.uint8)], axis=-1)
    assert np.abs(found - over_white(pixels)).max() <= 1


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "1"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGB"), ("GIF", "L"), ("GIF", "P")]
)
def test_one_colour_may_stand_for_nothing(kind, mode):
    image = Image.new(mode, (12, 12), 0)
    image.paste(1 if mode == "1" else (120,) * len(image.getbands()), (3, 3, 9, 9))
    clear = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    found = seen(encoded(image, kind, transparency=clear))
    assert (found[0, 0] == 255).all()
    assert (found[5, 5] == seen(image)[5, 5]).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_a_picture_that_hides_nothing_keeps_its_colours(mode):
    image = SCENE.convert(mode)
    assert (seen(encoded(image, "TIFF")) == np.asarray(image.convert("RGB"))).all()


# ---------------------------------------------------------------------------------------------------------------- forms


def in_lines(text, width=76):
    return "\r\n".join(text[start : start + width] for start in range(0, len(text), width)) + "\n"


FORMS = {
    "plain": lambda text: text,
    "in lines": in_lines,
    "with blanks around": lambda text: f"  {text}\n",
    "without padding": lambda text: text.rstrip("="),
    "with too much padding": lambda text: text + "==",
    "of the other alphabet": lambda text: text.replace("+", "-").replace("/", "_"),
    "as bytes": lambda text: text.encode(),
    "in a dict": lambda text: {"bytes": text, "path": None},
    "as a data: URI": lambda text: f"data:image/png;base64,{text}",
    "as a data: URI in lines": lambda text: f"data:image/png;base64,{in_lines(text)}",
    "as a data: URI with more words": lambda text: f"DATA:image/png;charset=utf-8;BASE64,{text.rstrip('=')}",
    "as a quoted data: URI": lambda text: f"data:image/png;base64,{urllib.parse.quote(text, safe='')}",
    "as a data: URI without base64": lambda text: "data:image/png," + urllib.parse.quote(base64.b64decode(text)),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_base64(form, kind):
    whole = encoded(NOISE, kind)
    value = FORMS[form](base64.b64encode(whole).decode())
    assert Picture.of(value, "here").load() == Picture.of(whole, "here").load()


@given(size=st.tuples(st.integers(1, 30), st.integers(1, 30)), form=st.sampled_from(sorted(FORMS)))
def test_base64_of_any_length(size, form):
    image = NOISE.resize(size)
    assert Picture.of(FORMS[form](base64.b64encode(encoded(image)).decode()), "here").load() == image


def test_every_way_to_store_a_picture(tmp_path, monkeypatch):
    path = tmp_path / "a b.png"
    path.write_bytes(whole := encoded(SCENE))
    monkeypatch.setenv("HOME", str(tmp_path))
    forms = [path, str(path), "~/a b.png", path.as_uri(), whole, bytearray(whole), memoryview(whole), SCENE]
    forms += [{"bytes": whole, "path": "gone.png"}, {"bytes": None, "path": str(path)}, {"path": str(path)}]
    forms += [lambda: whole, lambda: {"bytes": None, "path": "a b.png"}]
    for form in forms:
        picture = Picture.of(form, "here", tmp_path)
        assert picture.load() == SCENE
        assert picture == Picture.of(SCENE, "there") and hash(picture) == hash(Picture.of(SCENE, "there"))
    assert Picture.of("a b.png", "here", tmp_path).load() == SCENE
    assert Picture.of(NOISE, "here") != Picture.of(SCENE, "here")


WHOLE = base64.b64encode(encoded(NOISE)).decode()
JUNK = {
    "a picture cut off": (WHOLE[: len(WHOLE) // 2], "damaged or cut off"),
    "a picture cut off between bytes": (WHOLE[: len(WHOLE) // 8 * 4 + 1], "damaged or cut off"),
    "no picture": (base64.b64encode(b"hello world" * 5000).decode(), "is a text of .* neither a path nor a picture"),
    "a long text": ("word " * 10_000, "is a text of 50000 characters, 'word .*neither a path nor a picture"),
    "a long path": ("x/" * 1500, "cannot be read|does not exist"),
    "a long name": ("x" * 300 + ".png", "cannot be read|does not exist"),
    "an empty data: URI": ("data:image/png;base64,", "data: URI without a picture: encode"),
    "a data: URI without data": ("data:image/png;base64", "data: URI without a picture"),
    "a data: URI of junk": ("data:image/png;base64," + "!" * 50_000, "data: URI without a picture"),
    "a data: URI of text": ("data:text/plain," + "hello" * 9000, "is not an image"),
    "a zero": ("a\0.png", r"a\\x00\.png does not exist|cannot be read"),
    "a lone surrogate": ("\ud800.png", r"\\ud800\.png"),
    "nothing": (None, "the image is None"),
    "an empty text": ("", "the image is ''"),
    "an empty dict": ({"bytes": None, "path": None}, "the image is {'bytes': None"),
    "a number": (7, "the image is 7"),
    "a large dict": ({"a": "x" * 9000}, "the image is {'a': 'xxx"),
    "no bytes": (b"", "is not an image"),
    "a vector graphic": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image: give a PNG"),
    "a long URL": ("https://example.org/" + "a" * 5000, "is a URL: download it"),
    "a lazy hole": (lambda: "gone.png", "gone.png does not exist"),
}


@pytest.mark.parametrize("case", JUNK)
def test_what_is_no_picture_is_refused_in_few_words(case):
    value, sentence = JUNK[case]
    message = complaint(value)
    assert re.search(sentence, message), message
    message.encode()  # a surrogate in it could not be printed


# ------------------------------------------------------------------------------------------------------- HEIC and size


HEIC = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + b"\0" * 64


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"hevc"])
def test_heic_is_called_by_its_name_and_by_the_package_that_opens_it(tmp_path, monkeypatch, brand):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = HEIC.replace(b"ftypheic", b"ftyp" + brand)
    (tmp_path / "IMG_1.HEIC").write_bytes(content)
    for value in (content, "IMG_1.HEIC", base64.b64encode(content).decode()):
        assert "is a HEIC photograph: pip install pillow-heif, or save it as JPEG" in complaint(value, folder=tmp_path)


def test_heic_is_opened_where_its_package_is_installed(monkeypatch):
    opened = types.SimpleNamespace(to_pillow=lambda: NOISE.copy())
    package = types.SimpleNamespace(open_heif=lambda file: opened if file.read(12) == HEIC[:12] else None)
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    assert Picture.of(HEIC, "here").load() == NOISE


def large_png(width, height):
    """A PNG of so many pixels, all black, in few bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 7) // 8 + 1) * height, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_too_many_pixels_are_called_that():
    assert "has more than 179 megapixels: scale it down" in complaint(large_png(18_000, 10_000))


def test_many_pixels_and_odd_files_are_opened_in_silence(capfd, caplog, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", NOISE.width * NOISE.height - 1)  # Pillow warns from here on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Picture.of(encoded(NOISE), "here").load()
        Picture.of(encoded(PALETTE, transparency=bytes([0, 255, 128])), "here").load()
    monkeypatch.setattr(logging.getLogger("PIL"), "propagate", True)
    deep = encoded(NOISE, "TIFF")
    bands = struct.pack("<HHIHH", 277, 3, 1, 3, 0)  # SamplesPerPixel: one short, 3
    assert bands in deep
    with pytest.raises(DataError):  # Pillow also logs this
        Picture.of(deep.replace(bands, struct.pack("<HHIHH", 277, 3, 1, 99, 0)), "here").load()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_sixteen_bits_are_refused():
    deep = Image.new("I;16", (4, 4), 40_000)
    assert "has pixels of mode 'I;16', more than 8 bits" in complaint(encoded(deep))
    assert "more than 8 bits" in complaint(deep)


# ------------------------------------------------------------------------------------------------------------- suffixes


@pytest.mark.parametrize(
    "name",
    "a.png A.PNG a.JPG a.jpeg a.jpe a.jfif a.mpo a.avif a.AVIF a.jp2 a.j2k a.ppm a.pgm a.tga a.webp a.bmp a.gif a.tif "
    "a.tiff a.ico a.heic a.HEIC a.heif .b.png".split(),
)
def test_suffixes_of_pictures(name):
    assert is_picture(Path("folder") / name)


@pytest.mark.parametrize("name", "._a.png ._A.JPG a.txt a.json a.mp4 a.mpg a.h5 a.grib a.pdf a.svg png .png a".split())
def test_suffixes_of_other_files(name):
    assert not is_picture(Path("folder") / name)


@pytest.mark.parametrize(
    "suffix", ["avif", "jp2", "jfif", "ppm", "tga", "jpe", "mpo", "JPG", "bmp", "dib", "ico", "sgi"]
)
def test_a_picture_in_a_folder_is_one_that_can_be_opened(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    SCENE.save(file, *(["MPO"] if suffix == "mpo" else []))
    assert is_picture(file) and open_image(file).mode == "RGB"


# ------------------------------------------------------------------------------------------------- samples and memory


def test_a_folder_takes_every_suffix_and_leaves_the_files_of_macos_alone(tmp_path):
    for name in ("a.png", "b.AVIF", "c.jp2", "d.jfif", "e.ppm", "f.TGA"):
        SCENE.save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("What is this?")
        (tmp_path / f"._{name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert len(load_samples(tmp_path)) == 6


def decoded_alive():
    gc.collect()
    return sum(issubclass(type(each), Image.Image) and each.size == (512, 512) for each in gc.get_objects())


def test_what_was_loaded_holds_no_decoded_picture(tmp_path, monkeypatch):
    before, most = decoded_alive(), []
    load = Picture.load
    monkeypatch.setattr(Picture, "load", lambda self: most.append(decoded_alive()) or load(self))
    rows = []
    for number in range(8):
        Image.effect_noise((512, 512), 50 + number).save(tmp_path / f"{number}.jpg")
        rows.append(f'{{"image": "{number}.jpg", "question": "What?"}}')
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    samples = load_samples(tmp_path / "rows.jsonl")
    assert len({sample.fingerprint for sample in samples}) == 8
    assert len(most) == 8  # decoded once each, to be checked and for the sample's own fingerprint
    assert fingerprint(samples) == fingerprint(load_samples(tmp_path / "rows.jsonl"))
    assert max(most) <= before + 1
    assert decoded_alive() == before
    assert samples[0].image.size == (512, 512)
    assert decoded_alive() == before


def test_the_shipped_samples_have_the_fingerprint_that_committed_profiles_tell():
    profile = json.loads((Path(__file__).parents[2] / "reports/tiny_vlm/tiny-llava/profile.json").read_text())
    assert fingerprint(load_samples()) == profile["calibration"]["data_fingerprint"]


def test_samples_of_several_pictures():
    both = Sample((Picture.of(SCENE, ""), Picture.of(NOISE, "")), "Which is larger?")
    assert both.images == [SCENE, NOISE] and both.image == SCENE
    swapped = Sample(both.pictures[::-1], both.question)
    assert len({fingerprint([each]) for each in (both, swapped, Sample(both.pictures[:1], both.question))}) == 3
    assert both == Sample((Picture.of(encoded(SCENE), "a"), Picture.of(encoded(NOISE), "b")), both.question, where="c")
    with pytest.raises(DataError, match=r"^rows line 1 has no picture"):
        _ = Sample((), "What?", where="rows line 1").image


# --------------------------------------------------------------------------------------------------------------- videos


def test_a_video_is_a_file_or_its_frames(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    for value in ("a.mp4", tmp_path / "a.mp4", {"path": "a.mp4", "bytes": None}):
        assert Video.of(value, "here", tmp_path).load() == str(tmp_path / "a.mp4")
    SCENE.save(tmp_path / "a.png")
    frames = Video.of(["a.png", NOISE], "here", tmp_path)
    assert frames.load() == [SCENE, NOISE]
    prints = [fingerprint([Sample((), "What?", video=video)]) for video in (frames, Video.of([NOISE, SCENE], ""))]
    prints.append(fingerprint([Sample((), "What?", video=Video.of("a.mp4", "", tmp_path))]))
    (tmp_path / "a.mp4").write_bytes(b"another film")
    prints.append(fingerprint([Sample((), "What?", video=Video.of("a.mp4", "", tmp_path))]))
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "the video is None: it must be the path of a video file, or a list of frames"),
        ([], r"the video is \[\]"),
        ({"bytes": b"x" * 999}, "the video is {'bytes'"),
        ("gone.mp4", "video gone.mp4 does not exist"),
        ("https://example.org/a.mp4", "video 'https://example.org/a.mp4' is a URL"),
        (["gone.png"], "image gone.png does not exist"),
    ],
)
def test_what_is_no_video(value, sentence):
    with pytest.raises(DataError, match=f"^row 3: {sentence}"):
        Video.of(value, "row 3")


# ----------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("half", ["\ud800", "\udc80", "\udfff"])
@pytest.mark.parametrize("field", ["question", "answer", "task"])
def test_half_a_character_is_no_text(field, half):
    fields = {"question": "What?", field: "x" * 500 + half}
    with pytest.raises(
        DataError, match=rf"^row 3: the {field} 'xxx.*holds \\u{ord(half):04x}, half of a char"
    ) as caught:
        Sample((), **fields, where="row 3")
    assert len(str(caught.value)) < 260
    str(caught.value).encode()


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_other_character_is_text(text):
    assert Sample((), text).question == text
