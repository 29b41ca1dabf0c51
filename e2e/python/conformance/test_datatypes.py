"""Every datatype in every encoding, against a model that returns its inputs.

It has an input and an output per datatype, in the same order. Half floats have
encodings of their own, so one model has them and one does not.

    python -m pytest conformance/test_datatypes.py --grpc … --rest … --model NAME
"""

import json

import grpc
import numpy
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from conftest import LENGTH
from ml_dtypes import bfloat16
from tritonclient.grpc import model_config_pb2, service_pb2

NUMPY = {
    "BOOL": numpy.bool_,
    "UINT8": numpy.uint8,
    "INT8": numpy.int8,
    "INT16": numpy.int16,
    "INT32": numpy.int32,
    "INT64": numpy.int64,
    "FP16": numpy.float16,
    "BF16": bfloat16,
    "FP32": numpy.float32,
    "FP64": numpy.float64,
}
TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
HALVES = ["FP16", "BF16"]


def values(datatype):
    """Two values of each datatype, at the ends of its range."""
    kind = NUMPY[datatype]
    if datatype == "BOOL":
        return numpy.array([[True, False]])
    if datatype in HALVES or datatype.startswith("FP"):
        return numpy.array([[-1.5, 0.25]], kind)
    ends = numpy.iinfo(kind)
    return numpy.array([[ends.min, ends.max]], kind)


@pytest.fixture(scope="module")
def echo(served):
    if {i.datatype for i in served.metadata.inputs} == {"FP32"}:
        pytest.skip("the model takes one datatype")
    return Echo(served)


@pytest.fixture(scope="module")
def whole(echo):
    """One without half floats."""
    if echo.halves:
        pytest.skip("the model takes half floats, which have no other form than raw")
    return echo


@pytest.fixture(scope="module")
def halved(echo):
    if not echo.halves:
        pytest.skip("the model takes no half floats")
    return echo


class Echo:
    """The model, with its inputs by datatype."""

    def __init__(self, served):
        self.served = served
        self.input = {i.datatype: i.name for i in served.metadata.inputs}
        outputs = zip(served.metadata.inputs, served.metadata.outputs)
        self.output = {i.datatype: o.name for i, o in outputs}
        self.arrays = {datatype: values(datatype) for datatype in self.input}
        self.halves = [datatype for datatype in self.input if datatype in HALVES]

    def message(self):
        """A request over gRPC with raw contents."""
        message = service_pb2.ModelInferRequest(model_name=self.served.model)
        for datatype, array in self.arrays.items():
            name = self.input[datatype]
            message.inputs.add(name=name, datatype=datatype, shape=array.shape)
            message.raw_input_contents.append(array.tobytes())
        return message

    def typed(self):
        """One with typed contents."""
        message = self.message()
        del message.raw_input_contents[:]
        for one in message.inputs:
            field = getattr(one.contents, TYPED[one.datatype])
            field.extend(self.arrays[one.datatype].ravel().tolist())
        return message

    def tensors(self):
        """The inputs in JSON, except half floats, whose bytes follow it."""
        tensors, behind = [], b""
        for datatype, array in self.arrays.items():
            tensor = {"name": self.input[datatype], "datatype": datatype}
            tensor["shape"] = list(array.shape)
            if datatype in HALVES:
                tensor["parameters"] = {"binary_data_size": array.nbytes}
                behind += array.tobytes()
            else:
                tensor["data"] = array.tolist()
            tensors.append(tensor)
        return tensors, behind

    def check(self, response):
        """Asserts that an answer over gRPC has the values sent."""
        assert [o.name for o in response.outputs] == list(self.output.values())
        outputs = zip(response.outputs, response.raw_output_contents)
        for (datatype, array), (output, raw) in zip(self.arrays.items(), outputs):
            assert output.datatype == datatype and list(output.shape) == list(array.shape)
            assert raw == array.tobytes(), datatype

    def refused(self, message, word):
        with pytest.raises(grpc.RpcError) as raised:
            self.served.infer(message)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert word in raised.value.details()


def test_metadata_and_config_tell_them_apart(echo):
    served = echo.served
    config = served.get(f"/v2/models/{served.model}/config").json
    told = {i["name"]: i["data_type"] for i in config["input"]}
    assert told == {name: f"TYPE_{datatype}" for datatype, name in echo.input.items()}
    of_grpc = served.stub.ModelConfig(service_pb2.ModelConfigRequest(name=served.model))
    names = model_config_pb2.DataType.Name
    assert {i.name: names(i.data_type) for i in of_grpc.config.input} == told


def test_raw(echo):
    echo.check(echo.served.infer(echo.message()))


def test_raw_on_a_stream(echo):
    (answer,) = echo.served.stub.ModelStreamInfer(iter([echo.message()]), timeout=20)
    echo.check(answer.infer_response)


def test_typed(whole):
    whole.check(whole.served.infer(whole.typed()))


@pytest.mark.parametrize("datatype", TYPED)
@pytest.mark.parametrize("field", [*sorted(set(TYPED.values())), "uint64_contents"])
def test_typed_in_another_field(whole, datatype, field):
    if TYPED[datatype] == field:
        pytest.skip("its own")
    message = whole.typed()
    one = next(i for i in message.inputs if i.datatype == datatype)
    one.ClearField("contents")
    getattr(one.contents, field).extend([1, 0])
    whole.refused(message, field)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("UINT8", 256), ("INT8", 128), ("INT8", -129), ("INT16", 1 << 15)],
)
def test_typed_beyond_what_it_holds(whole, datatype, value):
    message = whole.typed()
    one = next(i for i in message.inputs if i.datatype == datatype)
    getattr(one.contents, TYPED[datatype])[0] = value
    whole.refused(message, datatype)


def test_typed_half_floats(halved):
    message = halved.message()
    del message.raw_input_contents[:]
    for one in message.inputs:
        field = getattr(one.contents, TYPED.get(one.datatype, "fp32_contents"))
        field.extend(halved.arrays[one.datatype].ravel().tolist())
    halved.refused(message, "raw_input_contents")


def test_json(whole):
    tensors, _ = whole.tensors()
    answer = whole.served.post({"inputs": tensors})
    assert answer.status == 200, answer.body
    for (datatype, array), output in zip(whole.arrays.items(), answer.json["outputs"]):
        assert output["datatype"] == datatype
        assert output["data"] == array.ravel().tolist()


def test_json_beside_binary(halved):
    tensors, behind = halved.tensors()
    head = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    answer = halved.served.post(text + behind, {LENGTH: str(len(text))})
    assert answer.status == 200, answer.body
    whole = b"".join(array.tobytes() for array in halved.arrays.values())
    assert answer.body[int(answer.headers[LENGTH]) :] == whole


def test_half_floats_in_json(halved):
    tensors, _ = halved.tensors()
    for tensor in tensors:
        if tensor.pop("parameters", None):
            tensor["data"] = [1, 0]
    answer = halved.served.post({"inputs": tensors})
    assert answer.status == 400 and "binary" in answer.error
    tensors, behind = halved.tensors()
    text = json.dumps({"inputs": tensors}).encode()
    answer = halved.served.post(text + behind, {LENGTH: str(len(text))})
    assert answer.status == 400 and "binary_data" in answer.error


def inputs_of(echo, module):
    inputs = []
    for datatype, array in echo.arrays.items():
        one = module.InferInput(echo.input[datatype], list(array.shape), datatype)
        one.set_data_from_numpy(array)
        inputs.append(one)
    return inputs


@pytest.mark.parametrize("module", [over_grpc, over_http])
def test_tritonclient(echo, module):
    served = echo.served
    address = served.grpc_address if module is over_grpc else served.rest_address
    with module.InferenceServerClient(address) as client:
        result = client.infer(served.model, inputs_of(echo, module))
    for datatype, array in echo.arrays.items():
        got = result.as_numpy(echo.output[datatype])
        numpy.testing.assert_array_equal(got.astype(array.dtype), array)


@pytest.mark.parametrize("datatype", ["UINT16", "UINT32", "UINT64", "BYTES", "FP8"])
def test_what_torchscript_does_not_have(echo, datatype):
    message = echo.message()
    message.inputs[0].datatype = datatype
    echo.refused(message, datatype)
