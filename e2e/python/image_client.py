"""How far answers to image files are from PyTorch's, where hosts of the model decode them.

    python image_client.py --url HOST:PORT --rest HOST:PORT --model NAME --file mobilenet-v2.pt

Photographs travel as JPEG and PNG, alone and as a batch, over gRPC and over HTTP. One JSON
object on standard output: the requests answered, the largest difference of an answer as a
share of that answer's largest magnitude, the requests whose best class is another, the bytes
of all files, and what was said of requests that must be refused.
"""

import argparse
import io
import json
import struct
import urllib.error
import urllib.request
import zlib

import numpy
import torch
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

import images
from ending import end_process

SIDE = 480


def encoded(photograph, kind: str) -> bytes:
    file = io.BytesIO()
    photograph.save(file, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return file.getvalue()


class Refused(Exception):
    """What a client is told instead of an answer."""


class Grpc:
    """tritonclient, over gRPC."""

    def __init__(self, url: str, model: str, deadline: float) -> None:
        self.client = tritonclient.grpc.InferenceServerClient(url)
        self.model = model
        self.deadline = deadline

    def __call__(self, files: list[bytes]) -> numpy.ndarray:
        request = tritonclient.grpc.InferInput("image", [len(files)], "BYTES")
        request.set_data_from_numpy(numpy.array(files, dtype=numpy.object_))
        try:
            result = self.client.infer(self.model, [request], client_timeout=self.deadline)
        except InferenceServerException as error:
            raise Refused(f"{error.status()}: {error.message()}") from error
        return result.as_numpy(result.get_response().outputs[0].name)


class Rest:
    """The binary extension over HTTP, byte by byte."""

    def __init__(self, address: str, model: str, deadline: float) -> None:
        self.url = f"http://{address}/v2/models/{model}/infer"
        self.deadline = deadline

    def __call__(self, files: list[bytes]) -> numpy.ndarray:
        content = b"".join(struct.pack("<I", len(file)) + file for file in files)
        image = {
            "name": "image",
            "datatype": "BYTES",
            "shape": [len(files)],
            "parameters": {"binary_data_size": len(content)},
        }
        head = json.dumps({"inputs": [image], "parameters": {"binary_data_output": True}}).encode()
        request = urllib.request.Request(
            self.url,
            data=head + content,
            headers={
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(len(head)),
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=self.deadline) as reply:
                length = int(reply.headers["Inference-Header-Content-Length"])
                body = reply.read()
        except urllib.error.HTTPError as error:
            raise Refused(f"{error.code}: {error.read().decode()}") from error
        (output,) = json.loads(body[:length])["outputs"]
        return numpy.frombuffer(body[length:], dtype="<f4").reshape(output["shape"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rest", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", required=True, help="the model's file, for the reference")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for each request")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = torch.jit.load(args.file)
    from PIL import Image

    def reference(files: list[bytes]) -> numpy.ndarray:
        decoded = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        with torch.inference_mode():
            return network(torch.cat([images.prepare(image) for image in decoded])).numpy()

    both = {
        "grpc": Grpc(args.url, args.model, args.deadline),
        "rest": Rest(args.rest, args.model, args.deadline),
    }
    photographs = []
    for photograph in images.photographs().values():
        photograph.thumbnail((SIDE, SIDE))
        photographs.append(photograph)
    kinds = ["JPEG", "PNG", "JPEG"]
    files = [encoded(photograph, kind) for photograph, kind in zip(photographs, kinds)]
    asked = [[file] for file in files] + [files]
    sent, largest, moved = 0, 0.0, 0
    for request in asked:
        expected = reference(request)
        for infer in both.values():
            answer = infer(request)
            sent += 1
            difference = float(numpy.abs(answer - expected).max() / numpy.abs(expected).max())
            # Not a number counts as wrong.
            largest = max(largest, difference) if difference == difference else float("inf")
            moved += int((answer.argmax(axis=1) != expected.argmax(axis=1)).sum())
    refused = {}
    bomb = bytearray(encoded(photographs[0], "PNG"))
    bomb[16:24] = struct.pack(">II", 16384, 16384)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    bad = {
        "cut": files[0][: len(files[0]) // 2],
        "bomb": bytes(bomb),
        "text": b"no image at all",
        "cmyk": encoded(photographs[0].convert("CMYK"), "JPEG"),
    }
    for name, file in bad.items():
        for protocol, infer in both.items():
            try:
                infer([file])
                refused[f"{name} {protocol}"] = "answered"
            except Refused as error:
                refused[f"{name} {protocol}"] = str(error)
    # A bad one costs the others nothing.
    sent += int(both["grpc"]([files[0]]).shape[0] == 1)
    print(
        json.dumps(
            {
                "sent": sent,
                "largest": largest,
                "moved": moved,
                "bytes": sum(len(file) for file in files),
                "refused": refused,
            }
        )
    )


if __name__ == "__main__":
    main()
    end_process()
