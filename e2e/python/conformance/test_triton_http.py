"""tritonclient over HTTP, synchronous and asynchronous."""

import asyncio

import numpy
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as aio
from conftest import assert_same
from tritonclient.utils import InferenceServerException


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.rest_address) as client:
        yield client


def inputs_of(arrays, binary=True):
    inputs = []
    for name, array in arrays.items():
        one = triton.InferInput(name, list(array.shape), "FP32")
        one.set_data_from_numpy(array, binary_data=binary)
        inputs.append(one)
    return inputs


def outputs_of(served, binary=True):
    return [triton.InferRequestedOutput(n, binary_data=binary) for n in served.output_names]


def arrays_of(served, result):
    return {name: result.as_numpy(name) for name in served.output_names}


def test_health(served, client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(served.model) and client.is_model_ready(served.model, "1")
    assert not client.is_model_ready("no-such-model")


def test_metadata(served, client):
    assert client.get_server_metadata()["name"] == "lamina"
    model = client.get_model_metadata(served.model)
    assert [i["name"] for i in model["inputs"]] == served.input_names
    config = client.get_model_config(served.model)
    assert [o["name"] for o in config["output"]] == served.output_names


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True, None])
def test_infer(served, client, arrays, wanted, binary_in, binary_out):
    outputs = None if binary_out is None else outputs_of(served, binary_out)
    result = client.infer(served.model, inputs_of(arrays, binary_in), outputs=outputs)
    assert_same(arrays_of(served, result), wanted)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_compression(served, client, request_coding, response_coding):
    arrays = served.arrays(rows=3)
    result = client.infer(
        served.model,
        inputs_of(arrays),
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    assert_same(arrays_of(served, result), served.wanted(arrays))


def test_id_and_parameters(served, client, arrays):
    result = client.infer(served.model, inputs_of(arrays), request_id="7", parameters={"a": 1})
    response = result.get_response()
    assert response["id"] == "7" and response["model_version"] == "1"
    assert "lamina_path" in response["parameters"]


def test_async_infer(served, arrays, wanted):
    with triton.InferenceServerClient(served.rest_address, concurrency=4) as client:
        asked = [client.async_infer(served.model, inputs_of(arrays)) for _ in range(8)]
        for one in asked:
            assert_same(arrays_of(served, one.get_result()), wanted)


def test_errors_have_their_words(served, client, arrays):
    with pytest.raises(InferenceServerException, match="no-such-model") as raised:
        client.infer("no-such-model", inputs_of(arrays))
    assert raised.value.status() == "404"
    wrong = triton.InferInput(served.input_names[0], [1], "INT64")
    wrong.set_data_from_numpy(numpy.array([1], numpy.int64))
    with pytest.raises(InferenceServerException, match="INT64") as raised:
        client.infer(served.model, [wrong])
    assert raised.value.status() == "400"
    with pytest.raises(InferenceServerException, match="deadline"):
        client.infer(served.model, inputs_of(arrays), timeout=1)


def test_aio(served, arrays, wanted):
    async def work():
        async with aio.InferenceServerClient(served.rest_address) as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready(served.model)
            model = await client.get_model_metadata(served.model)
            assert model["name"] == served.model
            asked = [client.infer(served.model, inputs_of(arrays, b)) for b in [True, False] * 4]
            for result in await asyncio.gather(*asked):
                assert_same(arrays_of(served, result), wanted)
            with pytest.raises(InferenceServerException, match="no-such-model"):
                await client.infer("no-such-model", inputs_of(arrays))

    asyncio.run(work())


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_aio_compression(served, coding):
    arrays = served.arrays(rows=3)

    async def work():
        async with aio.InferenceServerClient(served.rest_address) as client:
            return await client.infer(
                served.model,
                inputs_of(arrays),
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )

    assert_same(arrays_of(served, asyncio.run(work())), served.wanted(arrays))
