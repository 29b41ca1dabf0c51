"""Early exits as seen by a user's client, against PyTorch and the SDK's own policy.

    python exits.py --url HOST:PORT --model exits --file exits.pt [--cut-off]

Each request is sent to the agent once, alone or in a batch, and its answer must
be that of the exit at which its row leaves according to `lamina.Policy`. With `--cut-off`
the host behind the first exit is unreachable: rows that go further must be answered by the
first exit and marked. One JSON object on standard output; exit status 1 if an answer
is wrong or missing.
"""

import argparse
import json
import pathlib
import sys
from collections import Counter

import numpy
import torch
import tritonclient.grpc as triton

import models
from ending import end_process

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sdk"))
import lamina  # noqa: E402

TOLERANCE = 1e-4
# Rows so close to a threshold may leave on either side of it.
MARGIN = 1e-4


class Check:
    """Sends requests and compares their answers."""

    def __init__(self, args):
        self.args = args
        self.client = triton.InferenceServerClient(args.url)
        self.metadata = lamina.read_metadata(args.file)
        self.names = [exit.place.name for exit in self.metadata.exits]
        network = torch.jit.load(args.file)
        self.images, _ = models.shapes(args.images, seed=11)
        with torch.inference_mode():
            self.logits = [one.numpy() for one in network(self.images)]
        self.wrong, self.sent, self.unclear = [], 0, 0
        self.by_exit, self.by_node = Counter(), Counter()
        self.cut_off = 0

    def policy(self, thresholds=None) -> lamina.Policy:
        own = self.metadata.policy
        return own if thresholds is None else lamina.Policy(
            own.criterion, own.temperatures, tuple(thresholds)
        )

    def is_clear(self, row: int, policy: lamina.Policy) -> bool:
        """Whether rounding cannot move the row to another exit."""
        for index, threshold in enumerate(policy.thresholds):
            if threshold is None:
                continue
            logits = torch.from_numpy(self.logits[index][row : row + 1])
            measured = float(policy.criterion.measure(logits, policy.temperatures[index]))
            if abs(measured - threshold) < MARGIN:
                return False
        return True

    def infer(self, rows: range, parameters=None, outputs=None):
        array = numpy.ascontiguousarray(self.images[rows.start : rows.stop].numpy())
        image = triton.InferInput("image", list(array.shape), "FP32")
        image.set_data_from_numpy(array)
        wanted = [triton.InferRequestedOutput(name) for name in outputs] if outputs else None
        self.sent += 1
        return self.client.infer(
            self.args.model,
            [image],
            outputs=wanted,
            parameters=parameters,
            client_timeout=self.args.deadline,
        )

    def rows(self, rows: range, policy: lamina.Policy, parameters=None) -> None:
        result = self.infer(rows, parameters)
        response = result.get_response()
        if len(response.outputs) != 1:
            self.wrong.append(f"{rows}: {len(response.outputs)} outputs")
            return
        answer = result.as_numpy(response.outputs[0].name)
        told = json.loads(response.parameters["lamina_exits"].string_param)
        expected = policy.decide([torch.from_numpy(one) for one in self.logits])
        for place, row in enumerate(rows):
            if not self.is_clear(row, policy):
                self.unclear += 1
                continue
            left = int(expected[row])
            is_cut_off = self.args.cut_off and left > 0
            exit = 0 if is_cut_off else left
            difference = float(numpy.abs(answer[place] - self.logits[exit][row]).max())
            line = told[place]
            self.by_exit[line["exit"]] += 1
            self.by_node[f"{line['exit']} on {line['node']}"] += 1
            self.cut_off += line.get("cutOff", False)
            if (
                line["exit"] != self.names[exit]
                or line.get("cutOff", False) != is_cut_off
                or not difference <= TOLERANCE
            ):
                self.wrong.append(f"row {row}: {line}, expected {self.names[exit]}, {difference}")

    def as_it_is(self) -> None:
        policy = self.policy()
        half = self.args.images // 2
        for row in range(half):
            self.rows(range(row, row + 1), policy)
        for begin in range(half, self.args.images - 7, 8):
            self.rows(range(begin, begin + 8), policy)

    def as_asked(self) -> None:
        count = len(self.names)
        for confidence in (0.0, 0.5, 0.9, 1.0):
            policy = self.policy([confidence] * (count - 1))
            self.rows(range(0, 16), policy, {"lamina_min_confidence": confidence})
        for index, name in enumerate(self.names):
            forced = [0.0 if i == index else None for i in range(count - 1)]
            self.rows(range(0, 8), self.policy(forced), {"lamina_force_exit": name})
            own = self.metadata.policy.thresholds
            last = [0.0 if i >= index else own[i] for i in range(count - 1)]
            self.rows(range(0, 8), self.policy(last), {"lamina_max_exit": name})

    def every_exit(self) -> None:
        """A request for a side exit's output by name gets all exits of every row."""
        metadata = self.client.get_model_metadata(self.args.model)
        names = [output.name for output in metadata.outputs]
        result = self.infer(range(0, 8), outputs=names)
        for name, expected in zip(names, self.logits):
            difference = float(numpy.abs(result.as_numpy(name) - expected[:8]).max())
            if not difference <= TOLERANCE:
                self.wrong.append(f"{name} of all: {difference}")

    def refusals(self) -> None:
        for parameters, words in [
            ({"lamina_force_exit": "nowhere"}, "early, middle, final"),
            ({"lamina_min_confidence": 7.5}, "from 0 to 1"),
        ]:
            try:
                self.infer(range(0, 1), parameters)
                self.wrong.append(f"{parameters} was taken")
            except triton.InferenceServerException as error:
                if "INVALID_ARGUMENT" not in str(error.status()) or words not in str(error):
                    self.wrong.append(f"{parameters}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", required=True, help="the model's file, for the reference")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds for each request")
    parser.add_argument("--cut-off", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    check = Check(args)
    try:
        check.as_it_is()
        if not args.cut_off:
            check.as_asked()
            check.every_exit()
            check.refusals()
    except triton.InferenceServerException as error:
        check.wrong.append(f"lost: {error}")
    print(
        json.dumps(
            {
                "sent": check.sent,
                "wrong": check.wrong[:10],
                "unclear": check.unclear,
                "cutOff": check.cut_off,
                "byExit": check.by_exit,
                "byNode": check.by_node,
            }
        )
    )
    end_process(1 if check.wrong else 0)


if __name__ == "__main__":
    main()
