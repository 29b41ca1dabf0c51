"""HTTP as sent by curl and by programs without a library."""

import gzip
import json
import shutil
import subprocess
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import urllib3
from conftest import LENGTH, assert_same


def test_live(served):
    answer = served.get("/v2/health/live")
    assert (answer.status, answer.json["live"]) == (200, True)


def test_ready(served):
    answer = served.get("/v2/health/ready")
    assert (answer.status, answer.json["ready"]) == (200, True)


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(served, path):
    server = served.get(path).json
    assert server["name"] == "lamina" and server["version"]
    assert "binary_tensor_data" in server["extensions"]


@pytest.mark.parametrize("suffix", ["", "/versions/1", "/"])
def test_model_metadata(served, suffix):
    model = served.get(f"/v2/models/{served.model}{suffix}").json
    assert model["name"] == served.model
    assert model["versions"] == ["1"]
    assert model["platform"] == "pytorch_torchscript"
    for kind in ["inputs", "outputs"]:
        of_grpc = getattr(served.metadata, kind)
        told = [(t["name"], t["datatype"], t["shape"]) for t in model[kind]]
        assert told == [(t.name, t.datatype, list(t.shape)) for t in of_grpc]


@pytest.mark.parametrize("suffix", ["/ready", "/versions/1/ready"])
def test_model_ready(served, suffix):
    answer = served.get(f"/v2/models/{served.model}{suffix}")
    assert (answer.status, answer.json["ready"]) == (200, True)


def test_model_config(served):
    config = served.get(f"/v2/models/{served.model}/config").json
    assert [i["name"] for i in config["input"]] == served.input_names
    assert {i["data_type"] for i in config["input"]} == {"TYPE_FP32"}
    assert config["max_batch_size"] == 0


def test_full_name(served):
    name = served.get(f"/v2/models/default/{served.model}").json["name"]
    assert name == f"default/{served.model}"
    assert served.get(f"/v2/models/default%2F{served.model}").status == 200


@pytest.mark.parametrize("nested", [False, True])
def test_json(served, arrays, wanted, nested):
    answer = served.post({"inputs": served.tensors(arrays, nested)})
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    assert LENGTH not in answer.headers
    assert_same(answer.arrays(), wanted)


def test_json_of_a_version(served, arrays, wanted):
    path = f"/v2/models/{served.model}/versions/1/infer"
    answer = served.post({"inputs": served.tensors(arrays)}, path=path)
    assert_same(answer.arrays(), wanted)


def test_binary_in(served, arrays, wanted):
    answer = served.post(*served.binary(arrays))
    assert LENGTH not in answer.headers
    assert_same(answer.arrays(), wanted)


def test_binary_in_and_out(served, arrays, wanted):
    head = {"parameters": {"binary_data_output": True}}
    answer = served.post(*served.binary(arrays, head))
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert_same(answer.arrays(), wanted)


def test_json_in_binary_out(served, arrays, wanted):
    outputs = [{"name": n, "parameters": {"binary_data": True}} for n in served.output_names]
    answer = served.post({"inputs": served.tensors(arrays), "outputs": outputs})
    assert int(answer.headers[LENGTH]) < len(answer.body)
    assert_same(answer.arrays(), wanted)


def test_inputs_of_both_kinds(served, arrays, wanted):
    first = served.input_names[0]
    if len(served.input_names) < 2:
        pytest.skip("the model has one input")
    answer = served.post(*served.binary(arrays, in_json=[first]))
    assert_same(answer.arrays(), wanted)


def test_outputs_of_both_kinds(served, arrays, wanted):
    if len(served.output_names) < 2:
        pytest.skip("the model has one output")
    outputs = [{"name": n} for n in served.output_names]
    outputs[0]["parameters"] = {"binary_data": False}
    head = {"outputs": outputs, "parameters": {"binary_data_output": True}}
    answer = served.post({"inputs": served.tensors(arrays), **head})
    kinds = ["data" in output for output in answer.json["outputs"]]
    assert kinds == [True] + [False] * (len(outputs) - 1)
    assert_same(answer.arrays(), wanted)


def test_bytes_alone(served, arrays, wanted):
    if len(arrays) > 1:
        answer = served.post(b"", {LENGTH: "0"})
        assert answer.status == 400 and "one input" in answer.error
    else:
        (array,) = arrays.values()
        assert_same(served.post(array.tobytes(), {LENGTH: "0"}).arrays(), wanted)


def test_outputs_in_the_order_asked_for(served, arrays, wanted):
    names = served.output_names[::-1]
    body = {"inputs": served.tensors(arrays), "outputs": [{"name": n} for n in names]}
    assert_same(served.post(body).arrays(), {n: wanted[n] for n in names})


def test_one_output_of_all(served, arrays, wanted):
    name = served.output_names[-1]
    body = {"inputs": served.tensors(arrays), "outputs": [{"name": name}]}
    assert_same(served.post(body).arrays(), {name: wanted[name]})


def test_several_rows(served):
    arrays = served.arrays(rows=3, seed=3)
    answer = served.post(*served.binary(arrays))
    assert_same(answer.arrays(), served.wanted(arrays))


def test_id(served, arrays):
    body = {"id": 'a "quoted" id, ä', "inputs": served.tensors(arrays)}
    assert served.post(body).json["id"] == body["id"]


def test_an_id_is_made_where_there_is_none(served, arrays):
    assert served.post({"inputs": served.tensors(arrays)}).json["id"]


def test_parameters(served, arrays):
    parameters = {"a": True, "b": 1, "c": 1.5, "d": "e"}
    body = {"inputs": served.tensors(arrays), "parameters": parameters}
    told = served.post(body).json["parameters"]
    assert told["lamina_placement_revision"] >= 1
    assert "[" in told["lamina_path"]
    assert json.loads(told["lamina_timing"])[0]["compute_us"] >= 0


PACK = {"gzip": gzip.compress, "deflate": zlib.compress}
UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
def test_packed_request(served, arrays, wanted, coding, binary):
    if binary:
        body, headers = served.binary(arrays)
    else:
        body, headers = json.dumps({"inputs": served.tensors(arrays)}).encode(), {}
    headers["Content-Encoding"] = coding
    assert_same(served.post(PACK[coding](body), headers).arrays(), wanted)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
def test_packed_answer(served, coding, binary):
    arrays = served.arrays(rows=served.many)
    body, headers = served.binary(arrays, {"parameters": {"binary_data_output": binary}})
    answer = served.post(body, {**headers, "Accept-Encoding": coding})
    assert answer.headers["Content-Encoding"] == coding
    answer.body = UNPACK[coding](answer.body)
    assert_same(answer.arrays(), served.wanted(arrays))


def test_errors_are_never_packed(served):
    answer = served.post(b"{", {"Accept-Encoding": "gzip"})
    assert answer.status == 400 and "Content-Encoding" not in answer.headers
    assert answer.error


def test_body_in_chunks(served, arrays, wanted):
    body, headers = served.binary(arrays)
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    pool = urllib3.PoolManager()
    url = f"http://{served.rest_address}/v2/models/{served.model}/infer"
    response = pool.request("POST", url, body=iter(parts), headers=headers, chunked=True)
    assert response.status == 200, response.data
    outputs = json.loads(response.data)["outputs"]
    got = {o["name"]: numpy.array(o["data"], numpy.float32).reshape(o["shape"]) for o in outputs}
    assert_same(got, wanted)


def test_many_requests_on_one_connection(served, arrays):
    pool = urllib3.HTTPConnectionPool(served.rest_address, maxsize=1)
    for name in range(20):
        body = json.dumps({"id": str(name), "inputs": served.tensors(arrays)})
        response = pool.request("POST", f"/v2/models/{served.model}/infer", body=body)
        assert json.loads(response.data)["id"] == str(name)
    assert pool.num_connections == 1


def test_side_by_side(served):
    def one(seed):
        arrays = served.arrays(seed=seed)
        answer = served.post(*served.binary(arrays, {"id": str(seed)}))
        assert answer.json["id"] == str(seed)
        assert_same(answer.arrays(), served.wanted(arrays))

    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(one, range(32)))) == 32


def curl(served, *arguments, path="", data=None):
    """Status and body as received by curl."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    url = f"http://{served.rest_address}/v2/models/{served.model}{path}"
    command = [program, "-sS", "--max-time", "30", "-w", "\n%{http_code}", *arguments, url]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


def test_curl_metadata(served):
    status, body = curl(served)
    assert (status, json.loads(body)["name"]) == (200, served.model)


def test_curl_infer(served, arrays):
    data = json.dumps({"inputs": served.tensors(arrays)}).encode()
    status, body = curl(served, "--json", "@-", path="/infer", data=data)
    assert (status, len(json.loads(body)["outputs"])) == (200, len(served.output_names))


def test_curl_binary(served, arrays):
    body, headers = served.binary(arrays)
    header = f"{LENGTH}: {headers[LENGTH]}"
    more = ["-H", header, "--data-binary", "@-"]
    status, answer = curl(served, *more, path="/infer", data=body)
    assert (status, len(json.loads(answer)["outputs"])) == (200, len(served.output_names))


def test_curl_compressed(served):
    data, headers = served.binary(served.arrays(rows=served.many))
    header = f"{LENGTH}: {headers[LENGTH]}"
    more = ["--compressed", "-H", header, "--data-binary", "@-"]
    status, body = curl(served, *more, path="/infer", data=data)
    assert (status, "outputs" in json.loads(body)) == (200, True)


def test_head_has_no_body(served):
    answer = served.http("HEAD", "/v2/health/live")
    assert (answer.status, answer.body) == (200, b"")


