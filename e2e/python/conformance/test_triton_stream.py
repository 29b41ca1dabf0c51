"""Requests on one stream: tritonclient, synchronous and asynchronous, and bare messages."""

import asyncio
import queue

import grpc
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as aio
from conftest import assert_same, raw_arrays
from test_triton_grpc import arrays_of, inputs_of
from tritonclient.utils import InferenceServerException


class Stream:
    """A stream of tritonclient, with its answers in a queue."""

    def __init__(self, served, **options):
        self.served = served
        self.answered = queue.Queue()
        self.client = triton.InferenceServerClient(served.grpc_address)
        self.client.start_stream(
            lambda result, error: self.answered.put((result, error)), **options
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.stop_stream(cancel_requests=True)
        self.client.close()

    def ask(self, arrays, model=None, **more):
        model = model or self.served.model
        self.client.async_stream_infer(model, inputs_of(arrays), **more)

    def next(self):
        return self.answered.get(timeout=30)

    def result(self):
        result, error = self.next()
        assert error is None, error
        return result


@pytest.fixture
def stream(served):
    with Stream(served) as stream:
        yield stream


def test_one(served, stream, arrays, wanted):
    stream.ask(arrays, request_id="one")
    result = stream.result()
    assert result.get_response().id == "one"
    assert_same(arrays_of(served, result), wanted)


def test_a_hundred_in_their_order(served, stream):
    several = [served.arrays(seed=seed) for seed in range(10)]
    wanted = [served.wanted(arrays) for arrays in several]
    for i in range(100):
        stream.ask(several[i % 10], request_id=str(i))
    for i in range(100):
        result = stream.result()
        assert result.get_response().id == str(i)
        assert_same(arrays_of(served, result), wanted[i % 10])


def test_an_error_ends_nothing(served, stream, arrays, wanted):
    stream.ask(arrays, model="no-such-model")
    stream.ask(arrays, request_id="after")
    result, error = stream.next()
    assert result is None and "no-such-model" in error.message()
    result = stream.result()
    assert result.get_response().id == "after"
    assert_same(arrays_of(served, result), wanted)


def test_requested_outputs(served, stream, arrays, wanted):
    name = served.output_names[-1]
    stream.ask(arrays, outputs=[triton.InferRequestedOutput(name)])
    result = stream.result()
    assert [o.name for o in result.get_response().outputs] == [name]
    assert_same({name: result.as_numpy(name)}, {name: wanted[name]})


def test_versions(served, stream, arrays):
    stream.ask(arrays, model_version="1")
    assert stream.result().get_response().model_version == "1"
    stream.ask(arrays, model_version="7")
    assert "version" in stream.next()[1].message()


def test_several_rows(served, stream):
    arrays = served.arrays(rows=3, seed=3)
    stream.ask(arrays)
    assert_same(arrays_of(served, stream.result()), served.wanted(arrays))


def test_a_sequence(served, stream, arrays, wanted):
    for at in range(3):
        stream.ask(
            arrays, sequence_id=7, sequence_start=at == 0, sequence_end=at == 2, priority=1
        )
    for _ in range(3):
        assert_same(arrays_of(served, stream.result()), wanted)


def test_each_answer_is_the_only_one(stream, arrays):
    stream.ask(arrays, enable_empty_final_response=True)
    parameters = stream.result().get_response().parameters
    assert parameters["triton_final_response"].bool_param
    assert parameters["lamina_path"].string_param
    with pytest.raises(queue.Empty):
        stream.answered.get(timeout=0.3)


def test_timeout_of_one_request(served, stream, arrays, wanted):
    stream.ask(arrays, timeout=1)
    stream.ask(arrays)
    assert "deadline" in stream.next()[1].message()
    assert_same(arrays_of(served, stream.result()), wanted)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(served, arrays, wanted, coding):
    with Stream(served, compression_algorithm=coding) as stream:
        for _ in range(3):
            stream.ask(arrays)
        for _ in range(3):
            assert_same(arrays_of(served, stream.result()), wanted)


def test_headers(served, arrays, wanted):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Stream(served, headers={"traceparent": trace, "x-api-key": "any"}) as stream:
        stream.ask(arrays)
        assert_same(arrays_of(served, stream.result()), wanted)


def test_a_stream_that_is_stopped_finishes(served, arrays):
    stream = Stream(served)
    for i in range(20):
        stream.ask(arrays, request_id=str(i))
    stream.client.stop_stream()
    ids = [stream.result().get_response().id for _ in range(20)]
    assert ids == [str(i) for i in range(20)]
    stream.client.close()


def test_a_stream_that_is_cancelled_harms_nobody(served, arrays, wanted):
    with Stream(served) as stream:
        for _ in range(20):
            stream.ask(arrays)
    assert_same(served.wanted(arrays), wanted)


def test_several_streams(served):
    several = [served.arrays(seed=seed) for seed in range(4)]
    streams = [Stream(served) for _ in several]
    for _ in range(5):
        for stream, arrays in zip(streams, several):
            stream.ask(arrays)
    for stream, arrays in zip(streams, several):
        wanted = served.wanted(arrays)
        for _ in range(5):
            assert_same(arrays_of(served, stream.result()), wanted)
        stream.__exit__()


def test_bare_messages(served, arrays, wanted):
    wrong = served.message(arrays, id="wrong")
    wrong.inputs[0].name = "no-such-input"
    heavy = served.message(arrays, id="heavy")
    for _ in range(300):
        heavy.inputs.add()
    messages = [served.message(arrays, id="a"), wrong, heavy, served.message(arrays, id="b")]
    first, second, third, last = served.stub.ModelStreamInfer(iter(messages), timeout=20)
    for answer, name in [(first, "a"), (last, "b")]:
        assert answer.error_message == "" and answer.infer_response.id == name
        assert_same(raw_arrays(answer.infer_response), wanted)
    assert second.infer_response.id == "wrong" and "no-such-input" in second.error_message
    assert "inputs" in third.error_message
    for refused in [second, third]:
        status = refused.infer_response.parameters["lamina_grpc_status"].int64_param
        assert status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert not refused.infer_response.outputs


def test_no_messages(served):
    assert list(served.stub.ModelStreamInfer(iter([]), timeout=20)) == []


def test_answers_come_while_requests_go_on(served, arrays):
    asked = queue.Queue()
    answers = served.stub.ModelStreamInfer(iter(asked.get, None), timeout=30)
    for i in range(5):
        asked.put(served.message(arrays, id=str(i)))
        assert next(answers).infer_response.id == str(i)
    asked.put(None)
    assert list(answers) == []


def test_deadline_of_the_stream(served, arrays):
    asked = queue.Queue()
    answers = served.stub.ModelStreamInfer(iter(asked.get, None), timeout=0.5)
    asked.put(served.message(arrays))
    with pytest.raises(grpc.RpcError) as raised:
        list(answers)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    asked.put(None)


def test_aio(served, arrays, wanted):
    async def requests():
        for i in range(20):
            model = "no-such-model" if i == 7 else served.model
            yield {"model_name": model, "inputs": inputs_of(arrays), "request_id": str(i)}

    async def work():
        async with aio.InferenceServerClient(served.grpc_address) as client:
            return [answer async for answer in client.stream_infer(requests())]

    answers = asyncio.run(work())
    assert len(answers) == 20
    for i, (result, error) in enumerate(answers):
        if i == 7:
            assert isinstance(error, InferenceServerException)
            assert "no-such-model" in error.message()
        else:
            assert error is None and result.get_response().id == str(i)
            assert_same(arrays_of(served, result), wanted)
