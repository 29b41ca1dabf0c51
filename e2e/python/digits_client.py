"""A user's client of the SDK's network of handwritten digits, against PyTorch.

Uses the test images, which neither its weights nor its thresholds have seen.

    python digits_client.py accuracy --url HOST:PORT --file digits.pt
    python digits_client.py stream --url HOST:PORT --file digits.pt --rate 20 --seconds 15

`accuracy` sends each image under each threshold, one JSON object per threshold. `stream`
sends at a steady rate whatever happens to the network, and ends with one JSON object.
Exit status 1 if an answer is wrong or missing.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import time
from collections import Counter

import numpy
import torch
import tritonclient.grpc as triton

from ending import end_process

SDK = pathlib.Path(__file__).resolve().parents[2] / "sdk"
sys.path.insert(0, str(SDK))
import lamina  # noqa: E402

MODEL = "digits"
TOLERANCE = 1e-4
# Rows so close to a threshold may leave on either side of it.
MARGIN = 1e-4
# Of the split with which the network was trained.
SEED = 0


def example():
    """The SDK's example, which has the data and its split."""
    spec = importlib.util.spec_from_file_location("example", SDK / "examples" / "digits.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["example"] = module
    spec.loader.exec_module(module)
    return module


class Digits:
    """The test images, PyTorch's answers, and a client."""

    def __init__(self, args):
        self.args = args
        self.client = triton.InferenceServerClient(args.url)
        self.metadata = lamina.read_metadata(args.file)
        self.names = [exit.place.name for exit in self.metadata.exits]
        (self.images, self.labels), *_ = example().load(SEED).test
        network = torch.jit.load(args.file)
        with torch.inference_mode():
            self.logits = network(self.images)
        self.wrong, self.lost = [], []

    def policy(self, threshold: float | None) -> lamina.Policy:
        own = self.metadata.policy
        if threshold is None:
            return own
        return lamina.Policy(own.criterion, own.temperatures, (threshold,) * (len(self.names) - 1))

    def unclear(self, policy: lamina.Policy) -> set[int]:
        """Images that rounding could move to another exit."""
        near = set()
        for logits, temperature, threshold in zip(
            self.logits, policy.temperatures, policy.thresholds, strict=False
        ):
            measured = policy.criterion.measure(logits, temperature)
            near.update(torch.nonzero((measured - threshold).abs() < MARGIN).flatten().tolist())
        return near

    def ask(self, image: int, parameters: dict) -> tuple[int, dict, float, float] | None:
        """The class, the reported exit, the error of the logits at that exit, and the seconds."""
        array = self.images[image : image + 1].numpy()
        tensor = triton.InferInput("image", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        began = time.monotonic()
        try:
            result = self.client.infer(
                MODEL, [tensor], parameters=parameters, client_timeout=self.args.deadline
            )
        except triton.InferenceServerException as error:
            self.lost.append(f"image {image}: {error}")
            return None
        seconds = time.monotonic() - began
        response = result.get_response()
        answer = result.as_numpy(response.outputs[0].name)
        (told,) = json.loads(response.parameters["lamina_exits"].string_param)
        expected = self.logits[self.names.index(told["exit"])][image].numpy()
        return int(answer.argmax()), told, float(numpy.abs(answer[0] - expected).max()), seconds

    def faults(self) -> dict:
        first = (self.wrong + self.lost)[:5]
        return {"wrong": len(self.wrong), "lost": len(self.lost), "faults": first}

    def accuracy(self) -> None:
        own = [(f"{t:g}", t, {"lamina_min_confidence": t}) for t in (0.5, 0.8, 0.95, 0.99)]
        last = {"lamina_force_exit": self.names[-1]}
        for name, threshold, parameters in [("file", None, {}), *own, ("none", None, last)]:
            policy = self.policy(threshold)
            final = len(self.names) - 1
            exits = policy.decide(self.logits).tolist()
            near = self.unclear(policy)
            if parameters == last:
                exits, near = [final] * len(exits), set()
            self.setting(name, exits, near, parameters)

    def setting(self, name: str, exits: list[int], near: set[int], parameters: dict) -> None:
        """Sends each image; it must leave at the exit given by `exits`."""
        seconds, by_exit, right, expected = [], Counter(), 0, 0
        for image, exit in enumerate(exits):
            expected += int(self.logits[exit][image].argmax()) == int(self.labels[image])
            seen = self.ask(image, parameters)
            if seen is None:
                continue
            digit, told, difference, took = seen
            seconds.append(took)
            by_exit[told["exit"]] += 1
            right += digit == int(self.labels[image])
            if (told["exit"] != self.names[exit] and image not in near) or not (
                difference <= TOLERANCE
            ):
                self.wrong.append(f"{name}, image {image}: {told}, {difference}")
        print(
            json.dumps(
                {
                    "threshold": name,
                    "images": len(exits),
                    "right": right,
                    "rightInTorch": expected,
                    "unclear": len(near),
                    "medianSeconds": float(numpy.median(seconds)) if seconds else None,
                    "meanSeconds": float(numpy.mean(seconds)) if seconds else None,
                    "byExit": by_exit,
                    **self.faults(),
                }
            ),
            flush=True,
        )

    def stream(self) -> None:
        """Sends image after image, each on time."""
        policy = self.policy(None)
        exits, near = policy.decide(self.logits).tolist(), self.unclear(policy)
        sent, right, cut_off, longest, by_node = 0, 0, 0, 0.0, Counter()
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < self.args.seconds:
            time.sleep(max(0.0, sent / self.args.rate - elapsed))
            image = sent % len(exits)
            sent += 1
            seen = self.ask(image, {})
            if seen is None:
                continue
            digit, told, difference, took = seen
            longest = max(longest, took)
            is_cut_off = told.get("cutOff", False)
            cut_off += is_cut_off
            right += digit == int(self.labels[image])
            by_node[f"{told['exit']} on {told['node']}"] += 1
            exit = self.names.index(told["exit"])
            # A request that is cut off leaves before its exit, every other one at it.
            is_early = exit < exits[image]
            is_there = image in near or exit == exits[image] or (is_cut_off and is_early)
            if not is_there or not difference <= TOLERANCE:
                self.wrong.append(f"image {image}: {told}, {difference}")
        print(
            json.dumps(
                {
                    "sent": sent,
                    "right": right,
                    "cutOff": cut_off,
                    "longestSeconds": longest,
                    "byNode": by_node,
                    **self.faults(),
                }
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "stream"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--file", required=True, help="the model's file, for the reference")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds for each request")
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = Digits(args)
    print("ready", flush=True)
    digits.accuracy() if args.what == "accuracy" else digits.stream()
    end_process(1 if digits.wrong or digits.lost else 0)


if __name__ == "__main__":
    main()
