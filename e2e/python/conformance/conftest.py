"""Third-party clients of the Open Inference Protocol v2, against one served model.

    python -m pytest conformance --grpc HOST:8001 --rest HOST:8000 --model NAME

The model takes FP32 tensors whose first dimension is free. What it computes does not
matter: every client must get the same numbers as raw gRPC, and the error for every mistake.
"""

import http.client
import json
import math
import pathlib
import sys

import grpc
import numpy
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

sys.path.insert(0, str(pathlib.Path(__file__).parent))

LENGTH = "Inference-Header-Content-Length"


def pytest_addoption(parser):
    parser.addoption("--grpc", required=True, help="address for gRPC, HOST:PORT")
    parser.addoption("--rest", required=True, help="address for HTTP, HOST:PORT")
    parser.addoption("--model", required=True, help="name of a model that serves")


class Answer:
    """A response over HTTP."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self):
        length = self.headers.get(LENGTH)
        return json.loads(self.body[: int(length)] if length else self.body)

    @property
    def error(self):
        assert self.status >= 400, self.body
        return self.json["error"]

    def arrays(self):
        """The outputs, in JSON or in binary."""
        behind = self.body[int(self.headers.get(LENGTH) or len(self.body)) :]
        arrays = {}
        for output in self.json["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                flat = numpy.array(output["data"], numpy.float32)
            else:
                flat = numpy.frombuffer(behind[:size], numpy.float32)
                behind = behind[size:]
            arrays[output["name"]] = flat.reshape(output["shape"])
        assert behind == b"", "bytes that no output claims"
        return arrays


class Served:
    """The model and its two addresses."""

    def __init__(self, grpc_address, rest_address, model):
        self.grpc_address = grpc_address
        self.rest_address = rest_address
        self.model = model
        self.channel = grpc.insecure_channel(grpc_address)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        asked = service_pb2.ModelMetadataRequest(name=model)
        self.metadata = self.stub.ModelMetadata(asked, timeout=20)
        self.input_names = [i.name for i in self.metadata.inputs]
        self.output_names = [o.name for o in self.metadata.outputs]
        row = sum(4 * math.prod(o.shape[1:]) for o in self.metadata.outputs)
        # Enough that the answer is worth compressing.
        self.many = 1 + 2000 // row

    def arrays(self, rows=1, seed=0):
        """Inputs of one request."""
        random = numpy.random.default_rng(seed)
        return {
            i.name: random.standard_normal([rows, *i.shape[1:]]).astype(numpy.float32)
            for i in self.metadata.inputs
        }

    def message(self, arrays, **more):
        """A request over gRPC with raw contents."""
        message = service_pb2.ModelInferRequest(model_name=self.model, **more)
        for name, array in arrays.items():
            message.inputs.add(name=name, datatype="FP32", shape=array.shape)
            message.raw_input_contents.append(array.tobytes())
        return message

    def infer(self, message):
        """The answer over gRPC."""
        return self.stub.ModelInfer(message, timeout=20)

    def wanted(self, arrays):
        """The result that every client must get."""
        return raw_arrays(self.infer(self.message(arrays)))

    def http(self, method, path, body=None, headers=None):
        """One call over HTTP, sent byte by byte as given."""
        connection = http.client.HTTPConnection(self.rest_address, timeout=30)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path):
        return self.http("GET", path)

    def post(self, body, headers=None, path=None):
        """An inference request; `body` is JSON or bytes."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self.http("POST", path or f"/v2/models/{self.model}/infer", body, headers)

    def tensors(self, arrays, nested=False):
        """The inputs in JSON."""
        return [
            {
                "name": name,
                "datatype": "FP32",
                "shape": list(array.shape),
                "data": array.tolist() if nested else array.ravel().tolist(),
            }
            for name, array in arrays.items()
        ]

    def binary(self, arrays, head=None, in_json=()):
        """A body with inputs in binary, and its headers."""
        tensors = self.tensors(arrays)
        behind = b""
        for tensor, array in zip(tensors, arrays.values()):
            if tensor["name"] not in in_json:
                del tensor["data"]
                tensor["parameters"] = {"binary_data_size": array.nbytes}
                behind += array.tobytes()
        text = json.dumps({"inputs": tensors, **(head or {})}).encode()
        return text + behind, {LENGTH: str(len(text))}


def raw_arrays(response):
    """The outputs of an answer over gRPC."""
    pairs = zip(response.outputs, response.raw_output_contents)
    return {o.name: numpy.frombuffer(raw, numpy.float32).reshape(o.shape) for o, raw in pairs}


def assert_same(got, wanted):
    """Asserts that results of two clients are equal."""
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        assert got[name].shape == array.shape
        numpy.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="session")
def served(request):
    option = request.config.getoption
    return Served(option("--grpc"), option("--rest"), option("--model"))


@pytest.fixture(scope="session")
def arrays(served):
    return served.arrays()


@pytest.fixture(scope="session")
def wanted(served, arrays):
    return served.wanted(arrays)
