"""Malformed requests: each is refused with a reason, and the next one is answered."""

import json
import socket
import time
import zlib

import pytest
from conftest import LENGTH, assert_same


@pytest.fixture(autouse=True)
def serves_on(served, arrays, wanted):
    yield
    assert_same(served.post(*served.binary(arrays)).arrays(), wanted)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/models", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/no-such-model", 404),
        ("GET", "/v2/models/no-such-model/ready", 404),
        ("POST", "/v2/models/no-such-model/infer", 404),
        ("GET", "/v2/models/{}/versions/7", 404),
        ("GET", "/v2/models/{}/versions/7/ready", 404),
        ("POST", "/v2/models/{}/versions/7/infer", 404),
        ("GET", "/v2/models/{}/infer", 405),
        ("POST", "/v2/models/{}", 405),
        ("PUT", "/v2/health/live", 405),
        ("GET", "/v2/systemsharedmemory/status", 404),
    ],
)
def test_paths(served, method, path, status):
    body = b'{"inputs": []}' if method == "POST" else None
    answer = served.http(method, path.format(served.model), body)
    assert answer.status == status
    assert answer.error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{",
        b'{"inputs": 5}',
        b'{"inputs": [5]}',
        b'{"inputs": [{}]}',
        b'{"inputs": []} x',
        b"\xff\xfe{}",
        b'{"id": 5, "inputs": []}',
        b'{"inputs": [], "parameters": []}',
        b'{"inputs": [], "outputs": [5]}',
        b"[" * 100_000,
        b'{"inputs":' * 1000,
    ],
)
def test_no_request(served, body):
    answer = served.post(body)
    assert answer.status == 400
    assert answer.error


def changed(served, arrays, **change):
    """The request with its first input changed."""
    tensors = served.tensors(arrays)
    tensors[0].update(change)
    return {"inputs": [{k: v for k, v in t.items() if v is not None} for t in tensors]}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "no-such-input"}, "no-such-input"),
        ({"datatype": "INT64"}, "does not fit"),
        ({"datatype": "FP8"}, "FP8"),
        ({"datatype": "FP16"}, "binary"),
        ({"datatype": "BF16"}, "binary"),
        ({"datatype": "BYTES", "shape": [1], "data": ["a"]}, "BYTES"),
        ({"datatype": 5}, "expected a string"),
        ({"shape": [1]}, "shape"),
        ({"shape": [-1]}, "negative"),
        ({"shape": [2**62, 4]}, "overflowing"),
        ({"shape": [1.5]}, "expected i64"),
        ({"shape": None}, "shape"),
        ({"data": None}, "data"),
        ({"data": 5}, "array"),
        ({"data": []}, "0 elements"),
        ({"data": [[]]}, "nested"),
        ({"data": ["a"]}, "FP32"),
        ({"data": [None]}, "FP32"),
        ({"data": [1e39]}, "does not fit into FP32"),
        ({"parameters": {"binary_data_size": 4}}, "both"),
        ({"parameters": {"binary_data_size": -4}, "data": None}, "binary_data_size"),
        ({"parameters": {"binary_data_size": 4}, "data": None}, "4 bytes"),
        ({"parameters": {"a": [1]}}, "parameter"),
    ],
)
def test_inputs(served, arrays, change, word):
    answer = served.post(changed(served, arrays, **change))
    assert answer.status == 400
    assert word in answer.error


def test_shape_that_the_model_does_not_take(served, arrays):
    (name, array), *_ = arrays.items()
    other = {**arrays, name: array.reshape(-1, *array.shape)[..., :1]}
    answer = served.post(*served.binary(other))
    assert answer.status == 400
    assert name in answer.error and "shape" in answer.error


def test_missing_and_doubled_inputs(served, arrays):
    tensors = served.tensors(arrays)
    answer = served.post({"inputs": tensors[1:]})
    assert answer.status == 400 and served.input_names[0] in answer.error
    answer = served.post({"inputs": [tensors[0], *tensors]})
    assert answer.status == 400 and "twice" in answer.error


@pytest.mark.parametrize(
    ("outputs", "word"),
    [
        ([{"name": "no-such-output"}], "no-such-output"),
        ([{"name": "{}"}, {"name": "{}"}], "twice"),
        ([{"name": "{}", "parameters": {"binary_data": "yes"}}], "binary_data"),
    ],
)
def test_outputs(served, arrays, outputs, word):
    outputs = json.loads(json.dumps(outputs).replace("{}", served.output_names[0]))
    answer = served.post({"inputs": served.tensors(arrays), "outputs": outputs})
    assert answer.status == 400 and word in answer.error


@pytest.mark.parametrize("key", ["shared_memory_region", "classification"])
def test_extensions_that_are_not_there(served, arrays, key):
    tensors = served.tensors(arrays)
    outputs = [{"name": served.output_names[0]}]
    (tensors if key == "shared_memory_region" else outputs)[0]["parameters"] = {key: 1}
    answer = served.post({"inputs": tensors, "outputs": outputs})
    assert answer.status == 501 and key in answer.error


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "99999999999999999999", "100000000"])
def test_length_of_the_json(served, arrays, length):
    body, _ = served.binary(arrays)
    answer = served.post(body, {LENGTH: length})
    assert answer.status == 400 and LENGTH in answer.error


@pytest.mark.parametrize("change", [-1, 1])
def test_length_of_the_json_beside_its_end(served, arrays, change):
    body, headers = served.binary(arrays)
    answer = served.post(body, {LENGTH: str(int(headers[LENGTH]) + change)})
    assert answer.status == 400


@pytest.mark.parametrize("change", [-4, 4])
def test_bytes_that_are_missing_or_too_many(served, arrays, change):
    body, headers = served.binary(arrays)
    body = body[:change] if change < 0 else body + b"\0" * change
    answer = served.post(body, headers)
    assert answer.status == 400 and "binary_data_size" in answer.error


def test_encodings(served, arrays):
    body, headers = served.binary(arrays)
    answer = served.post(body, {**headers, "Content-Encoding": "br"})
    assert answer.status == 415 and "gzip" in answer.error
    for coding in ["gzip", "deflate"]:
        answer = served.post(body, {**headers, "Content-Encoding": coding})
        assert answer.status == 400 and coding in answer.error


def test_bomb(served):
    packer = zlib.compressobj()
    bomb = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(400)) + packer.flush()
    assert len(bomb) < 1 << 20
    answer = served.post(bomb, {"Content-Encoding": "deflate"})
    assert answer.status == 413 and "bytes" in answer.error


@pytest.mark.parametrize("timeout", [-5, "soon", 1.5, True])
def test_timeout(served, arrays, timeout):
    body = {"inputs": served.tensors(arrays), "parameters": {"timeout": timeout}}
    answer = served.post(body)
    assert answer.status == 400 and "timeout" in answer.error


def test_deadline(served, arrays):
    body, headers = served.binary(arrays, {"parameters": {"timeout": 1}})
    answer = served.post(body, headers)
    assert answer.status == 504 and "deadline" in answer.error


def connect(served):
    host, port = served.rest_address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ],
)
def test_no_http(served, text):
    with connect(served) as stream:
        try:
            stream.sendall(text)
            head = stream.recv(4096)
        except ConnectionError:
            head = b""
    assert head == b"" or head.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))


def test_client_that_goes_in_the_middle(served, arrays):
    body, headers = served.binary(arrays)
    head = f"POST /v2/models/{served.model}/infer HTTP/1.1\r\nHost: x\r\n"
    head += f"{LENGTH}: {headers[LENGTH]}\r\nContent-Length: {len(body)}\r\n\r\n"
    for part in [len(body) // 2, len(body)]:
        with connect(served) as stream:
            stream.sendall(head.encode() + body[:part])


def test_slow_client_hinders_nobody(served, arrays, wanted):
    with connect(served) as slow:
        slow.sendall(b"POST /v2/models/x/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        began = time.monotonic()
        assert_same(served.post(*served.binary(arrays)).arrays(), wanted)
        assert time.monotonic() - began < 10
