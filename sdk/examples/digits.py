"""Trains a network with three exits on scikit-learn's handwritten digits.

    pip install ./sdk[examples]
    python examples/digits.py --out digits.pt
    python examples/digits.py --out digits.pt --criterion entropy --exit-rate 0.6

1797 images of 8 x 8 pixels are split 60/20/20: trained on the first part, the
thresholds learned on the second, everything printed measured on the third. Then
the network is exported as one TorchScript file with lamina.json inside, and the
file is compared with the network bit for bit.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lamina

Rows = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Digits:
    """Images (rows x 1 x 8 x 8, 0..=1) and labels (rows, 0..=9), in three parts."""

    train: TensorDataset
    validation: Rows
    test: Rows


def load(seed: int) -> Digits:
    """The data from scikit-learn, split with `seed`, each digit evenly."""
    pixels, labels = load_digits(return_X_y=True)
    rest, test, rest_labels, test_labels = train_test_split(
        pixels, labels, test_size=0.2, random_state=seed, stratify=labels
    )
    train, validation, train_labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=0.25, random_state=seed, stratify=rest_labels
    )

    def tensors(images: object, numbers: object) -> tuple[Tensor, Tensor]:
        return (
            torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16.0,
            torch.as_tensor(numbers, dtype=torch.int64),
        )

    return Digits(
        TensorDataset(*tensors(train, train_labels)),
        [tensors(validation, validation_labels)],
        [tensors(test, test_labels)],
    )


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def head(channels: int) -> nn.Sequential:
    """Means over 2 x 2 fields, then ten logits."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.Dropout(0.2), nn.Linear(channels * 4, 10)
    )


def network() -> lamina.MultiExit:
    """Three stages, which may run on three hosts, with an exit behind each."""
    return lamina.MultiExit(
        stages=[
            lamina.Stage(convolution(1, 8), "stem"),
            lamina.Stage(nn.Sequential(convolution(8, 32, 2), convolution(32, 32)), "middle"),
            lamina.Stage(nn.Sequential(convolution(32, 64, 2), convolution(64, 64)), "deep"),
        ],
        exits={
            0: lamina.Exit(head(8), "early"),
            1: lamina.Exit(head(32), "middle"),
            2: lamina.Exit(head(64), "final"),
        },
    )


def show_progress(epoch: lamina.Epoch) -> None:
    """One line, overwritten on a terminal, every tenth epoch elsewhere."""
    line = f"epoch {epoch.number:3}/{epoch.of}  joint loss {epoch.loss:.4f}"
    if sys.stdout.isatty():
        print(f"\r{line}", end="\n" if epoch.number == epoch.of else "", flush=True)
    elif epoch.number % 10 == 0 or epoch.number in (1, epoch.of):
        print(line, flush=True)


def trained(data: Digits, epochs: int, seed: int) -> lamina.MultiExit:
    """The network, trained with all exits together."""
    model = network()
    order = torch.Generator().manual_seed(seed)
    batches = DataLoader(data.train, batch_size=64, shuffle=True, generator=order)
    lamina.train(model, batches, epochs=epochs, weights=[0.3, 0.3, 1.0], on_epoch=show_progress)
    return model


def learned(
    outputs: lamina.ExitOutputs, costs: tuple[int, ...], args: argparse.Namespace
) -> lamina.Policy:
    """Thresholds for the target of the command line, `costs` in FLOPs."""
    criterion = lamina.Criterion(args.criterion)
    if args.exit_rate is not None:
        return lamina.thresholds_for_exit_rates(outputs, args.exit_rate, criterion=criterion)
    return lamina.thresholds_for_accuracy(outputs, args.accuracy, criterion=criterion, costs=costs)


def report(outputs: lamina.ExitOutputs, policy: lamina.Policy, names: tuple[str, ...]) -> None:
    """Tables on rows unseen by weights and thresholds."""
    rows = len(outputs.labels)
    for index, name in enumerate(names[:-1]):
        print(f"\nexit {name} as the only side exit, {rows} test images, {policy.criterion}:")
        table = lamina.exit_table(outputs, index, policy.criterion, policy.temperatures[index])
        print(lamina.format_table(table))
    print(f"\nall exits with the learned thresholds, {rows} test images:")
    print(lamina.format_evaluation(lamina.evaluate(outputs, policy), names, policy))


def report_costs(evaluation: lamina.Evaluation, costs: tuple[int, ...]) -> None:
    """Average FLOPs of a request, compared with the whole network."""
    mean = sum(e.exit_rate * c for e, c in zip(evaluation.exits, costs, strict=True))
    shares = ", ".join(f"{c / 1e6:.2f}" for c in costs)
    print(f"\nMFLOP up to each exit: {shares}; on average {mean / 1e6:.2f}")


def check_file(path: Path, model: lamina.MultiExit, images: Tensor) -> bool:
    """Whether plain TorchScript gives the same as the network, bit for bit."""
    file = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return all(map(torch.equal, file(images), model(images)))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("digits.pt"), help="file to write")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the training set")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights and batches")
    parser.add_argument("--criterion", choices=list(lamina.Criterion), default="confidence")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--accuracy", type=float, default=0.98, help="of all exits together, on the validation set"
    )
    target.add_argument(
        "--exit-rate", type=float, help="of those who reach a side exit, the share that leaves"
    )
    return parser.parse_args()


def main() -> int:
    """Trains, learns, prints and exports."""
    args = arguments()
    start = time.perf_counter()
    # So small a network is faster on one thread, and its sums are then reproducible.
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    data = load(args.seed)
    model = trained(data, args.epochs, args.seed)
    costs = lamina.flops_to_exits(model, data.test[0][0][:1])
    validation = lamina.collect(model, data.validation)
    try:
        policy = learned(validation, costs, args)
    except lamina.LaminaError as error:
        print(f"digits.py: {error}", file=sys.stderr)
        return 1
    test = lamina.collect(model, data.test)
    report(test, policy, model.exit_names)
    report_costs(lamina.evaluate(test, policy), costs)
    images = data.test[0][0]
    lamina.export(
        model, args.out, images[:4], policy=policy, validation=validation, input_name="image"
    )
    equal = check_file(args.out, model, images)
    print(f"\n{args.out}: {'equal to' if equal else 'DIFFERS FROM'} the network, bit for bit")
    print(f"{time.perf_counter() - start:.1f} s")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
