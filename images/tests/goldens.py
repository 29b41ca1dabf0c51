"""Writes tests/goldens/: small images, and what Pillow and torchvision make of them.

    python images/tests/goldens.py

With the versions of e2e/python/requirements.txt the same bytes come out.
"""

import io
import json
import pathlib
import struct
import zlib

import numpy
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

FOLDER = pathlib.Path(__file__).parent / "goldens"
MODES = {
    "Bilinear": InterpolationMode.BILINEAR,
    "Bicubic": InterpolationMode.BICUBIC,
    "Lanczos": InterpolationMode.LANCZOS,
}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def scene(width, height):
    """Smooth colours with edges and some noise, as photographs have."""
    random = numpy.random.default_rng(7)
    y, x = numpy.mgrid[0:height, 0:width].astype(numpy.float64)
    red = 128 + 100 * numpy.sin(x / 9.0) * numpy.cos(y / 13.0)
    green = 255 * x / width
    blue = 255 * y / height
    pixels = numpy.stack([red, green, blue], axis=2)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = [250, 20, 30]
    pixels += random.normal(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))


def files():
    """Each kind of file that is taken, by name."""
    image = scene(61, 47)
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    palette = image.quantize(16)
    sixteen = (numpy.asarray(image).astype(numpy.uint16) << 8) | 0x7F
    made = {
        "baseline.jpg": (image, {"quality": 90, "subsampling": 2}),
        "full.jpg": (image, {"quality": 95, "subsampling": 0}),
        "half.jpg": (image, {"quality": 85, "subsampling": 1}),
        "progressive.jpg": (image, {"quality": 80, "progressive": True}),
        "restart.jpg": (image, {"quality": 80, "restart_marker_blocks": 2}),
        "grey.jpg": (image.convert("L"), {"quality": 90}),
        "turned.jpg": (image, {"quality": 90, "exif": turned()}),
        "photo.jpg": (scene(320, 240), {"quality": 75}),
        "tall.jpg": (scene(40, 90), {"quality": 90}),
        "rgb.png": (image, {}),
        "rgba.png": (alpha, {}),
        "palette.png": (palette, {}),
        "clear.png": (palette, {"transparency": 3}),
        "grey.png": (image.convert("L"), {}),
        "grey-alpha.png": (image.convert("LA"), {}),
        "bits.png": (image.convert("1"), {}),
    }
    for name, (image, options) in made.items():
        file = io.BytesIO()
        image.save(file, "JPEG" if name.endswith("jpg") else "PNG", **options)
        yield name, file.getvalue()
    yield "sixteen.png", png16(sixteen)


def refused():
    """Files that are refused."""
    image = scene(24, 16)
    for name, image, options in [
        ("cmyk.jpg", image.convert("CMYK"), {}),
        ("grey16.png", Image.fromarray(numpy.full((16, 24), 700, numpy.uint16)), {}),
        ("other.gif", image, {}),
    ]:
        file = io.BytesIO()
        image.save(file, {"jpg": "JPEG", "png": "PNG", "gif": "GIF"}[name[-3:]], **options)
        yield name, file.getvalue()
    # Four bytes of pixels that claim to be a billion.
    yield "bomb.png", png16(numpy.zeros((1, 1, 3), numpy.uint16), (16384, 16384))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def png16(pixels, size=None):
    """A PNG of 16 bits a colour, which Pillow reads and does not write. Its head says `size`."""
    width, height = size or (pixels.shape[1], pixels.shape[0])

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def steps():
    """Steps by name, as a DnnModel declares them."""
    area = lambda width, height: {"width": width, "height": height}
    yield "plain", {"resize": {"exact": area(61, 47)}}
    yield "imagenet", {"resize": {"shorterSide": 32}, "crop": area(28, 28), **IMAGENET}
    yield "odd", {"resize": {"shorterSide": 31}, "crop": area(26, 20)}
    yield "exact", {"resize": {"exact": area(33, 18)}, "interpolation": "Bicubic"}
    yield "lanczos", {"resize": {"exact": area(20, 20)}, "interpolation": "Lanczos"}
    yield "larger", {"resize": {"shorterSide": 60}, "crop": area(60, 60), "interpolation": "Bicubic"}
    yield "crop", {"crop": area(32, 24)}
    yield "filled", {"crop": area(70, 52), **IMAGENET}


def pipeline(steps):
    done = []
    mode = MODES[steps.get("interpolation", "Bilinear")]
    resize = steps.get("resize", {})
    if "shorterSide" in resize:
        done.append(transforms.Resize(resize["shorterSide"], mode, antialias=True))
    elif resize:
        area = resize["exact"]
        done.append(transforms.Resize((area["height"], area["width"]), mode, antialias=True))
    if crop := steps.get("crop"):
        done.append(transforms.CenterCrop((crop["height"], crop["width"])))
    done.append(transforms.ToTensor())
    if "mean" in steps:
        done.append(transforms.Normalize(steps["mean"], steps["std"]))
    return transforms.Compose(done)


def main():
    FOLDER.mkdir(exist_ok=True)
    cases, levels = [], b""
    every = dict(steps())
    for name, content in files():
        (FOLDER / name).write_bytes(content)
        image = Image.open(io.BytesIO(content)).convert("RGB")
        few = ["plain", "imagenet"]
        used = every if name in ("rgb.png", "baseline.jpg", "tall.jpg") else few
        if name == "photo.jpg":
            used = ["imagenet"]
        for kind in used:
            # Without normalising, values are levels of 255.
            tensor = pipeline({k: v for k, v in every[kind].items() if k != "mean"})(image)
            content = (tensor * 255).round().numpy().astype(numpy.uint8).tobytes()
            case = {"file": name, "kind": kind, "steps": every[kind]}
            cases.append(case | {"from": len(levels), "levels": len(content)})
            levels += content
    image = Image.open(FOLDER / "rgb.png").convert("RGB")
    normalised = pipeline(every["filled"])(image).numpy().astype("<f4")
    (FOLDER / "rgb-filled.f32").write_bytes(normalised.tobytes())
    for name, content in refused():
        (FOLDER / name).write_bytes(content)
    (FOLDER / "levels").write_bytes(levels)
    (FOLDER / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
