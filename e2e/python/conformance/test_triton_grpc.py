"""tritonclient over gRPC, synchronous and asynchronous, and bare messages."""

import asyncio
import functools
import queue

import grpc
import numpy
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as aio
from conftest import assert_same, raw_arrays
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.grpc_address) as client:
        yield client


def inputs_of(arrays):
    inputs = []
    for name, array in arrays.items():
        one = triton.InferInput(name, list(array.shape), "FP32")
        one.set_data_from_numpy(array)
        inputs.append(one)
    return inputs


def arrays_of(served, result):
    return {name: result.as_numpy(name) for name in served.output_names}


def test_health(served, client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(served.model) and client.is_model_ready(served.model, "1")
    assert not client.is_model_ready("no-such-model")
    assert not client.is_model_ready(served.model, "7")


def test_metadata(served, client):
    assert client.get_server_metadata().name == "lamina"
    model = client.get_model_metadata(served.model)
    assert list(model.versions) == ["1"]
    assert model.platform == "pytorch_torchscript"


def test_infer(served, client, arrays, wanted):
    assert_same(arrays_of(served, client.infer(served.model, inputs_of(arrays))), wanted)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(served, client, arrays, wanted, coding):
    result = client.infer(served.model, inputs_of(arrays), compression_algorithm=coding)
    assert_same(arrays_of(served, result), wanted)


def test_requested_outputs(served, client, arrays, wanted):
    name = served.output_names[-1]
    outputs = [triton.InferRequestedOutput(name)]
    result = client.infer(served.model, inputs_of(arrays), outputs=outputs)
    assert [o.name for o in result.get_response().outputs] == [name]
    assert_same({name: result.as_numpy(name)}, {name: wanted[name]})


def test_id_and_parameters(served, client, arrays):
    result = client.infer(served.model, inputs_of(arrays), request_id="7", parameters={"a": 1})
    response = result.get_response()
    assert response.id == "7"
    assert response.parameters["lamina_path"].string_param


def test_typed_contents(served, arrays, wanted):
    message = service_pb2.ModelInferRequest(model_name=served.model)
    for name, array in arrays.items():
        one = message.inputs.add(name=name, datatype="FP32", shape=array.shape)
        one.contents.fp32_contents.extend(array.ravel().tolist())
    assert_same(raw_arrays(served.infer(message)), wanted)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bool_contents", True),
        ("int_contents", 1),
        ("int64_contents", 1),
        ("uint_contents", 1),
        ("uint64_contents", 1),
        ("fp64_contents", 1.0),
        ("bytes_contents", b"1"),
    ],
)
def test_contents_of_another_kind(served, arrays, field, value):
    message = service_pb2.ModelInferRequest(model_name=served.model)
    for name, array in arrays.items():
        one = message.inputs.add(name=name, datatype="FP32", shape=array.shape)
        getattr(one.contents, field).extend([value] * array.size)
    with pytest.raises(grpc.RpcError) as raised:
        served.infer(message)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in raised.value.details()


def refused(served, message, code, word):
    with pytest.raises(grpc.RpcError) as raised:
        served.infer(message)
    assert raised.value.code() == code
    assert word in raised.value.details()


def test_mistakes(served, arrays):
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    message = served.message(arrays)
    message.model_name = "no-such-model"
    refused(served, message, grpc.StatusCode.NOT_FOUND, "no-such-model")
    message = served.message(arrays, model_version="7")
    refused(served, message, grpc.StatusCode.NOT_FOUND, "version")
    message = served.message(arrays)
    message.inputs[0].name = "no-such-input"
    refused(served, message, invalid, "no-such-input")
    message = served.message(arrays)
    message.inputs[0].datatype = "BYTES"
    refused(served, message, invalid, "BYTES")
    message = served.message(arrays)
    message.raw_input_contents[0] = b"123"
    refused(served, message, invalid, served.input_names[0])
    message = served.message(arrays)
    message.raw_input_contents.append(b"")
    refused(served, message, invalid, "raw_input_contents")
    message = served.message(arrays)
    message.outputs.add(name="no-such-output")
    refused(served, message, invalid, "no-such-output")
    message = served.message(arrays)
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    refused(served, message, grpc.StatusCode.UNIMPLEMENTED, "shared_memory_region")


def test_deadline(served, client, arrays):
    with pytest.raises(InferenceServerException, match="(?i)deadline"):
        client.infer(served.model, inputs_of(arrays), client_timeout=0.000_1)


def test_side_by_side(served, client):
    several = [served.arrays(seed=seed) for seed in range(16)]
    answered = queue.Queue()
    for seed, arrays in enumerate(several):

        def done(seed, result, error):
            answered.put((seed, result, error))

        callback = functools.partial(done, seed)
        client.async_infer(served.model, inputs_of(arrays), callback)
    for _ in several:
        seed, result, error = answered.get(timeout=30)
        assert error is None
        assert_same(arrays_of(served, result), served.wanted(several[seed]))


def test_aio(served, arrays, wanted):
    async def work():
        async with aio.InferenceServerClient(served.grpc_address) as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready(served.model)
            asked = [client.infer(served.model, inputs_of(arrays)) for _ in range(8)]
            for result in await asyncio.gather(*asked):
                assert_same(arrays_of(served, result), wanted)
            with pytest.raises(InferenceServerException, match="no-such-model"):
                await client.infer("no-such-model", inputs_of(arrays))

    asyncio.run(work())


def test_config(served, client):
    config = client.get_model_config(served.model).config
    assert config.name == served.model and config.max_batch_size == 0
    inputs = [(i.name, list(i.dims)) for i in config.input]
    assert inputs == [(i.name, list(i.shape)) for i in served.metadata.inputs]
    assert [o.name for o in config.output] == served.output_names
    fp32 = model_config_pb2.TYPE_FP32
    assert {t.data_type for t in [*config.input, *config.output]} == {fp32}


def test_timeout_of_the_request(served, client, arrays):
    with pytest.raises(InferenceServerException, match="deadline"):
        client.infer(served.model, inputs_of(arrays), timeout=1)


def test_half_floats_are_told_apart(served, arrays):
    message = served.message({n: a.astype(numpy.float16) for n, a in arrays.items()})
    for one in message.inputs:
        one.datatype = "FP16"
    refused(served, message, grpc.StatusCode.INVALID_ARGUMENT, "expected datatype FP32")
