"""Statistics of requests, and the index of models, over gRPC and HTTP."""

import asyncio
import json
import shutil
import subprocess
import time

import grpc
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

PARTS = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output"]


@pytest.fixture
def by_grpc(served):
    with over_grpc.InferenceServerClient(served.grpc_address) as client:
        yield client


@pytest.fixture
def by_http(served):
    with over_http.InferenceServerClient(served.rest_address) as client:
        yield client


def statistics(served, path=""):
    (model,) = served.get(f"/v2/models/{served.model}{path}/stats").json["model_stats"]
    return model


def test_requests_are_counted(served, arrays):
    before = statistics(served)
    for _ in range(5):
        served.wanted(arrays)
    served.wanted(served.arrays(rows=3))
    after = statistics(served)
    assert after["execution_count"] - before["execution_count"] == 6
    assert after["inference_count"] - before["inference_count"] == 8
    assert abs(after["last_inference"] / 1000 - time.time()) < 60
    for part in ["success", "queue", "compute_infer"]:
        was, now = (s["inference_stats"][part] for s in (before, after))
        assert now["count"] - was["count"] == 6
        assert now["ns"] >= was["ns"]
    parts = after["inference_stats"]
    inside = parts["queue"]["ns"] + parts["compute_infer"]["ns"]
    assert parts["success"]["ns"] >= inside


def test_what_the_client_got_wrong_is_no_failure(served, arrays):
    before = statistics(served)["inference_stats"]["fail"]
    assert served.post({"inputs": served.tensors(arrays)[1:]}).status == 400
    assert statistics(served)["inference_stats"]["fail"] == before


@pytest.mark.parametrize("path", ["", "/versions/1"])
def test_all_members_are_there(served, path):
    model = statistics(served, path)
    assert (model["name"], model["version"]) == (served.model, "1")
    assert sorted(model["inference_stats"]) == sorted(PARTS)
    for part in model["inference_stats"].values():
        assert part["count"] >= 0 and part["ns"] >= 0
    assert model["batch_stats"] == []


def test_both_ways_tell_the_same(served, by_grpc, by_http):
    (told,) = by_http.get_inference_statistics(served.model, "1")["model_stats"]
    (model,) = by_grpc.get_inference_statistics(served.model, "1").model_stats
    assert (model.name, model.version) == (told["name"], told["version"])
    assert model.inference_count == told["inference_count"]
    for part in PARTS:
        of = getattr(model.inference_stats, part)
        assert {"count": of.count, "ns": of.ns} == told["inference_stats"][part]


def test_as_json(served, by_grpc):
    told = by_grpc.get_inference_statistics(served.model, as_json=True)
    assert told["model_stats"][0]["name"] == served.model


def test_under_the_full_name(served, by_grpc):
    name = f"default/{served.model}"
    (model,) = by_grpc.get_inference_statistics(name).model_stats
    assert model.name == name


def test_of_all_models_that_enter_here(served, by_grpc, by_http):
    names = {m["name"] for m in by_http.get_inference_statistics()["model_stats"]}
    assert all(name.startswith("default/") for name in names)
    assert {m.name for m in by_grpc.get_inference_statistics().model_stats} == names


def test_statistics_of_what_is_not_there(served, by_grpc, by_http):
    for asked in [("no-such-model",), (served.model, "7")]:
        for client in [by_grpc, by_http]:
            with pytest.raises(InferenceServerException) as raised:
                client.get_inference_statistics(*asked)
            assert "404" in raised.value.status() or "NOT_FOUND" in raised.value.status()
    assert served.post(b"", path=f"/v2/models/{served.model}/stats").status == 405


def test_index(served, by_grpc, by_http):
    wanted = {
        "name": f"default/{served.model}",
        "version": "1",
        "state": "READY",
        "reason": "",
    }
    # Other models may exist, too.
    index = by_http.get_model_repository_index()
    assert [model for model in index if model["name"] == wanted["name"]] == [wanted]
    models = by_grpc.get_model_repository_index().models
    assert [model.name for model in models] == [model["name"] for model in index]
    (model,) = [model for model in models if model.name == wanted["name"]]
    assert {key: getattr(model, key) for key in wanted} == wanted
    # The name under which it can be called.
    assert by_grpc.is_model_ready(model.name) and by_http.is_model_ready(model.name)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (None, 1),
        ({}, 1),
        ({"ready": True}, 1),
        ({"ready": False}, 1),
        ({"repository_name": "default"}, 1),
        ({"repository_name": "elsewhere"}, 0),
    ],
)
def test_index_of_some(served, body, count):
    text = b"" if body is None else json.dumps(body).encode()
    answer = served.http("POST", "/v2/repository/index", text)
    own = f"default/{served.model}"
    assert answer.status == 200
    assert [model["name"] for model in answer.json].count(own) == count
    asked = service_pb2.RepositoryIndexRequest(**(body or {}))
    models = served.stub.RepositoryIndex(asked, timeout=20).models
    assert [model.name for model in models].count(own) == count


@pytest.mark.parametrize("body", [b"{", b"5", b'{"ready": 5}', b" " * 8000])
def test_index_of_nonsense(served, body):
    answer = served.http("POST", "/v2/repository/index", body)
    assert answer.status == 400 and answer.error


def test_models_are_loaded_elsewhere(served, by_grpc, by_http):
    for client in [by_grpc, by_http]:
        for change in [client.load_model, client.unload_model]:
            with pytest.raises(InferenceServerException, match="DnnModel") as raised:
                change(served.model)
            assert raised.value.status() in ("501", "StatusCode.UNIMPLEMENTED")
    assert by_http.is_model_ready(served.model)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/repository/models/m/load", 405),
        ("POST", "/v2/repository/models/m/load", 501),
        ("POST", "/v2/repository/models/default/m/unload", 501),
        ("POST", "/v2/repository/models/m", 404),
        ("POST", "/v2/repository", 404),
    ],
)
def test_paths(served, method, path, status):
    answer = served.http(method, path, b"{}" if method == "POST" else None)
    assert answer.status == status and answer.error


def test_extensions_are_what_is_there(served, by_grpc, by_http):
    told = by_http.get_server_metadata()["extensions"]
    assert told == ["binary_tensor_data", *by_grpc.get_server_metadata().extensions]
    assert {"statistics", "model_configuration"} <= set(told)


def test_what_is_not_there_says_so(served, by_grpc):
    calls = [by_grpc.get_log_settings, by_grpc.get_trace_settings]
    for call in [*calls, by_grpc.get_system_shared_memory_status]:
        with pytest.raises(InferenceServerException) as raised:
            call()
        assert raised.value.status() == str(grpc.StatusCode.UNIMPLEMENTED)


def test_aio(served):
    async def work():
        async with over_grpc_aio.InferenceServerClient(served.grpc_address) as client:
            by_grpc = await client.get_inference_statistics(served.model)
            index = await client.get_model_repository_index()
        async with over_http_aio.InferenceServerClient(served.rest_address) as client:
            by_http = await client.get_inference_statistics(served.model)
            listed = await client.get_model_repository_index()
        return by_grpc, index, by_http, listed

    by_grpc, index, by_http, listed = asyncio.run(work())
    assert by_grpc.model_stats[0].name == by_http["model_stats"][0]["name"] == served.model
    assert [m.name for m in index.models] == [m["name"] for m in listed]


@pytest.mark.parametrize("way", ["grpc", "http", "stream"])
def test_perf_analyzer(served, way):
    """Triton's load generator, if it is installed."""
    program = shutil.which("perf_analyzer")
    if program is None:
        pytest.skip("perf_analyzer is not installed")
    address = served.rest_address if way == "http" else served.grpc_address
    shapes = [
        f"--shape={i.name}:{','.join(str(max(1, d)) for d in i.shape)}"
        for i in served.metadata.inputs
    ]
    streaming = ["--async", "--streaming"] if way == "stream" else []
    command = [program, "-m", served.model, "-i", "http" if way == "http" else "grpc"]
    counted = ["--measurement-mode=count_windows", "--measurement-request-count=20"]
    command += ["-u", address, "--max-trials=3", "--stability-percentage=999", *counted]
    done = subprocess.run([*command, *shapes, *streaming], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Server:" in done.stdout and "Inference count" in done.stdout
