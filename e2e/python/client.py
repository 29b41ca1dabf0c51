"""A user's client: Open Inference Protocol v2 by tritonclient over gRPC,
compared with PyTorch.

    python client.py photographs --url HOST:PORT --model mobilenet-v2
    python client.py load --url HOST:PORT --model mobilenet-v2 --rate 4 --seconds 60
    python client.py malformed --url HOST:PORT --model mobilenet-v2

One JSON object per line on standard output. `load` reads commands from standard
input: `burst N` sends N further requests at once, `rate R` changes the rate,
`stop` ends sending; it then waits for requests in flight and prints a summary.
"""

import argparse
import json
import pathlib
import queue
import sys
import threading
import time

import numpy
import torch
import tritonclient.grpc as triton

import images
import models
from ending import end_process

TOLERANCE = 1e-4


def emit(**fields) -> None:
    print(json.dumps(fields), flush=True)


def as_input(tensor: torch.Tensor, name: str = "image") -> triton.InferInput:
    array = numpy.ascontiguousarray(tensor.numpy())
    request = triton.InferInput(name, list(array.shape), "FP32")
    request.set_data_from_numpy(array)
    return request


def describe(result) -> dict:
    """Revision, path and time per hop from the reply's parameters."""
    parameters = result.get_response().parameters
    return {
        "revision": parameters["lamina_placement_revision"].int64_param,
        "path": parameters["lamina_path"].string_param,
        "timing": json.loads(parameters["lamina_timing"].string_param or "[]"),
    }


def outputs(result) -> list:
    return [result.as_numpy(output.name) for output in result.get_response().outputs]


def largest_difference(answers: list, expected: list) -> float:
    if len(answers) != len(expected):
        return float("inf")
    pairs = zip(answers, expected)
    return max(float(numpy.abs(answer - right).max()) for answer, right in pairs)


def photographs(args) -> None:
    """Sends each photograph once and prints its label."""
    model = models.load(args.reference or args.model)
    labels = __import__("torchvision").models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    client = triton.InferenceServerClient(args.url)
    for name, photograph in images.photographs().items():
        tensor = images.prepare(photograph)
        with torch.inference_mode():
            expected = model(tensor).numpy()
        start = time.monotonic()
        result = client.infer(args.model, [as_input(tensor)], client_timeout=args.deadline)
        seconds = time.monotonic() - start
        answer = outputs(result)[0]
        confidence = torch.softmax(torch.from_numpy(answer[0].copy()), 0)
        best = int(confidence.argmax())
        emit(
            kind="photograph",
            name=name,
            label=labels[best],
            confidence=float(confidence[best]),
            torch_label=labels[int(expected[0].argmax())],
            max_abs_diff=float(numpy.abs(answer - expected).max()),
            seconds=seconds,
            **describe(result),
        )


class Load:
    """Open loop: requests are sent on time whether or not answers have come, each
    with another image, a deadline and no retry.
    """

    def __init__(self, args):
        self.args = args
        self.client = triton.InferenceServerClient(args.url)
        self.lock = threading.Lock()
        self.in_flight = 0
        self.sent = 0
        self.correct = 0
        self.lost = 0
        self.wrong = 0
        self.refused = 0
        self.rate = args.rate
        self.reference()

    def reference(self) -> None:
        """Every image's own answer, and the proof that answers differ."""
        reference = self.args.reference or self.args.model
        model = models.load(reference)
        self.inputs = models.requests(reference, self.args.images, self.args.seed)
        parts = zip(*(tensor.split(8) for tensor in self.inputs.values()))
        with torch.inference_mode():
            answered = [model(*part) for part in parts]
        # One list of answers for each output.
        answered = [[part] if isinstance(part, torch.Tensor) else part for part in answered]
        self.expected = [torch.cat(output).numpy() for output in zip(*answered)]
        answers = torch.from_numpy(self.expected[0])
        apart = torch.cdist(answers, answers, p=float("inf"))
        apart.fill_diagonal_(float("inf"))
        emit(
            kind="reference",
            images=self.args.images,
            tolerance=TOLERANCE,
            smallest_difference=float(apart.min()),
        )

    def is_exhausted(self) -> bool:
        return self.sent >= self.args.images and not self.args.again

    def send(self) -> None:
        if self.is_exhausted():
            return
        number = self.sent
        image = number % self.args.images
        self.sent += 1
        start = time.monotonic()
        at = time.time()
        with self.lock:
            self.in_flight += 1

        def done(result, error) -> None:
            self.finish(number, at, time.monotonic() - start, result, error)

        self.client.async_infer(
            self.args.model,
            [as_input(all[image : image + 1], name) for name, all in self.inputs.items()],
            callback=done,
            client_timeout=self.args.deadline,
            request_id=str(number),
        )

    def finish(self, number, at, seconds, result, error) -> None:
        record = {"kind": "request", "id": number, "at": at, "seconds": seconds}
        if error is not None:
            # Only a client with its own reference expects a refusal.
            is_refused = self.args.reference and "INVALID_ARGUMENT" in str(error.status())
            record["outcome"] = "refused" if is_refused else "lost"
            record["error"] = str(error)
        else:
            image = number % self.args.images
            expected = [output[image : image + 1] for output in self.expected]
            difference = largest_difference(outputs(result), expected)
            record["max_abs_diff"] = difference
            record["outcome"] = "correct" if difference <= TOLERANCE else "wrong"
            record.update(describe(result))
        with self.lock:
            counter = record["outcome"]
            setattr(self, counter, getattr(self, counter) + 1)
            emit(**record)
            # Last: the process ends once none is in flight.
            self.in_flight -= 1

    def run(self) -> None:
        commands: queue.Queue = queue.Queue()
        threading.Thread(target=self.read_commands, args=(commands,), daemon=True).start()
        end = time.monotonic() + self.args.seconds
        due = time.monotonic()
        while time.monotonic() < end and not self.is_exhausted():
            wait = max(0.0, due - time.monotonic())
            try:
                command = commands.get(timeout=wait)
            except queue.Empty:
                self.send()
                due += 1.0 / self.rate
                continue
            if not self.obey(command):
                break
        while self.in_flight:
            time.sleep(0.02)
        counts = {key: getattr(self, key) for key in ("sent", "correct", "refused", "lost", "wrong")}
        emit(kind="summary", **counts)

    def obey(self, command: list) -> bool:
        if command[0] == "burst":
            for _ in range(int(command[1])):
                self.send()
        elif command[0] == "rate":
            self.rate = float(command[1])
        return command[0] != "stop"

    @staticmethod
    def read_commands(commands: queue.Queue) -> None:
        for line in sys.stdin:
            if line.strip():
                commands.put(line.split())


def malformed(args) -> None:
    """Sends requests with one mistake each and prints how the server refuses them."""
    client = triton.InferenceServerClient(args.url)

    def tensor(name="image", shape=(1, 3, 224, 224), datatype="FP32", dtype=numpy.float32):
        request = triton.InferInput(name, list(shape), datatype)
        request.set_data_from_numpy(numpy.zeros(shape, dtype))
        return request

    wrong_size = tensor()
    wrong_size._raw_content = wrong_size._raw_content[:-4]
    cases = {
        "wrong model": ("no-such-model", [tensor()]),
        "wrong name": (args.model, [tensor(name="picture")]),
        "wrong datatype": (args.model, [tensor(datatype="INT64", dtype=numpy.int64)]),
        "wrong rank": (args.model, [tensor(shape=(3, 224, 224))]),
        "wrong shape": (args.model, [tensor(shape=(1, 3, 224, 225))]),
        "wrong size": (args.model, [wrong_size]),
        "no input": (args.model, []),
        "input twice": (args.model, [tensor(), tensor()]),
    }
    for case, (model, inputs) in cases.items():
        try:
            client.infer(model, inputs, client_timeout=args.deadline)
            emit(kind="refusal", case=case, code="OK", details="")
        except triton.InferenceServerException as error:
            code = str(error.status()).removeprefix("StatusCode.")
            emit(kind="refusal", case=case, code=code, details=error.message())
    emit(kind="health", live=client.is_server_live(), ready=client.is_server_ready(),
         model=client.is_model_ready(args.model), unknown=client.is_model_ready("no-such-model"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["photographs", "load", "malformed"])
    parser.add_argument("--url", required=True, help="host and port of an agent")
    parser.add_argument("--model", required=True, help="name under which it is served")
    parser.add_argument("--reference", choices=sorted(models.MODELS),
                        help="whose inputs are sent and whose answers are expected; default: the model's")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds within which an answer counts")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--images", type=int, default=400, help="different images, and so requests at most")
    parser.add_argument("--again", action="store_true", help="send the images again once all were sent")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "load":
        Load(args).run()
    else:
        {"photographs": photographs, "malformed": malformed}[args.what](args)


if __name__ == "__main__":
    main()
    end_process()
