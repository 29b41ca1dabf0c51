"""Measures the error and latency of answers with encoded activations, against PyTorch.

    python activations.py --url HOST:PORT --model NAME --file mobilenet-v2.pt

One JSON object on standard output: the number of answered requests, the largest error of an
answer as a share of its largest magnitude, the number of requests with another top class,
and the median seconds of a request.
"""

import argparse
import json
import statistics
import time

import numpy
import torch
import tritonclient.grpc as triton

import images
from ending import end_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", required=True, help="the model's file, for the reference")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for each request")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = torch.jit.load(args.file)
    client = triton.InferenceServerClient(args.url)
    largest, moved, seconds = 0.0, 0, []
    for image in images.variants(args.images, seed=5):
        batch = image.unsqueeze(0)
        with torch.inference_mode():
            expected = network(batch).numpy()
        array = numpy.ascontiguousarray(batch.numpy())
        request = triton.InferInput("image", list(array.shape), "FP32")
        request.set_data_from_numpy(array)
        began = time.monotonic()
        result = client.infer(args.model, [request], client_timeout=args.deadline)
        seconds.append(time.monotonic() - began)
        answer = result.as_numpy(result.get_response().outputs[0].name)
        difference = float(numpy.abs(answer - expected).max() / numpy.abs(expected).max())
        # NaN counts as wrong.
        largest = max(largest, difference) if difference == difference else float("inf")
        moved += int(answer.argmax() != expected.argmax())
    print(
        json.dumps(
            {
                "sent": len(seconds),
                "largest": largest,
                "moved": moved,
                "seconds": statistics.median(seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
    end_process()
