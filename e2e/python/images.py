"""Real photographs, and any number of variants of them for a load."""

import numpy
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as change

MEAN = [0.485, 0.456, 0.406]
DEVIATION = [0.229, 0.224, 0.225]

_PREPARE = transforms.Compose(
    [
        transforms.Resize(224),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, DEVIATION),
    ]
)


def photographs() -> dict[str, Image.Image]:
    """Photographs from installed packages, by name."""
    from matplotlib import cbook
    from sklearn.datasets import load_sample_images

    hopper = Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    found = {"grace_hopper.jpg": hopper.convert("RGB")}
    samples = load_sample_images()
    for name, pixels in zip(samples.filenames, samples.images):
        found[name.replace("\\", "/").rsplit("/", 1)[-1]] = Image.fromarray(numpy.asarray(pixels))
    return found


def prepare(photograph: Image.Image) -> torch.Tensor:
    """Prepares an image for torchvision's ImageNet models: 1x3x224x224, normalized."""
    return _PREPARE(photograph).unsqueeze(0)


def variants(count: int, seed: int) -> torch.Tensor:
    """`count` different images, count x 3 x 224 x 224: crops, mirror images and
    changes of light of the photographs, drawn with `seed`."""
    draw = torch.Generator().manual_seed(seed)
    sources = list(photographs().values())

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand(1, generator=draw).item()

    images = []
    for i in range(count):
        source = sources[i % len(sources)]
        width, height = source.size
        side = int(min(width, height) * uniform(0.35, 0.95))
        left = int(uniform(0, width - side))
        top = int(uniform(0, height - side))
        image = source.crop((left, top, left + side, top + side)).resize((224, 224))
        if uniform(0, 1) < 0.5:
            image = change.hflip(image)
        image = change.adjust_brightness(image, uniform(0.6, 1.4))
        image = change.adjust_hue(image, uniform(-0.2, 0.2))
        pixels = change.to_tensor(image)
        images.append(change.normalize(pixels, MEAN, DEVIATION))
    return torch.stack(images)
