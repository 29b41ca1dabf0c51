"""Requests and measurements of the serving bench. One JSON object on standard output.

    python bench_client.py closed --url HOST:PORT --model M --in-flight 4 --seconds 10
    python bench_client.py loop --file M.pt --seconds 10
    python bench_client.py idle --url HOST:PORT --model M --count 10000
    python bench_client.py memory --node edge-1
    python bench_client.py cpu --node edge-1

`closed` keeps `--in-flight` requests in flight. `loop` runs the same model in a plain loop of
libtorch, with nothing beside it. `idle` opens idle connections and then sends one request.
`memory` sums up the memory of a host's agent and workers, `cpu` their processor seconds.
"""

import argparse
import asyncio
import json
import os
import pathlib
import resource
import socket
import sys
import time

import numpy

from ending import end_process

SHAPE = (1, 3, 224, 224)
# Requests before the measured ones.
WARM_UP = 5


def emit(**fields) -> None:
    print(json.dumps(fields), flush=True)


def quantiles(seconds: list[float]) -> dict:
    if not seconds:
        return {}
    p50, p99 = numpy.quantile(seconds, [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99)}


def request(seed: int = 0):
    import tritonclient.grpc as triton

    array = numpy.random.default_rng(seed).standard_normal(SHAPE, dtype=numpy.float32)
    tensor = triton.InferInput("image", list(SHAPE), "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def hops(lines: list[list[dict]]) -> list[dict]:
    """The median of each timing of each host."""
    columns = zip(*lines)
    return [
        {
            "node": hop[0]["node"],
            **{key: float(numpy.median([h[key] for h in hop])) for key in hop[0] if key != "node"},
        }
        for hop in columns
    ]


async def closed(args) -> None:
    import tritonclient.grpc.aio as triton

    tensors = [request(seed) for seed in range(8)]
    seconds, timings = [], []
    async with triton.InferenceServerClient(args.url) as client:

        async def ask(number: int):
            return await client.infer(args.model, [tensors[number % len(tensors)]])

        for number in range(WARM_UP):
            await ask(number)
        began = time.monotonic()
        last = began

        async def one(lane: int) -> None:
            nonlocal last
            number = lane
            while time.monotonic() - began < args.seconds:
                sent = time.monotonic()
                result = await ask(number)
                last = time.monotonic()
                seconds.append(last - sent)
                parameters = result.get_response().parameters
                timings.append(json.loads(parameters["lamina_timing"].string_param))
                number += 1

        await asyncio.gather(*(one(lane) for lane in range(args.in_flight)))
    emit(
        requests=len(seconds),
        rate=len(seconds) / (last - began),
        hops=hops(timings),
        **quantiles(seconds),
    )


def loop(args) -> None:
    import torch

    torch.set_num_threads(1)
    network = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.load(args.file).eval()))
    image = torch.from_numpy(numpy.random.default_rng(0).standard_normal(SHAPE, dtype=numpy.float32))
    seconds = []
    with torch.inference_mode():
        for _ in range(WARM_UP):
            network(image)
        began = time.monotonic()
        while time.monotonic() - began < args.seconds:
            start = time.monotonic()
            network(image)
            seconds.append(time.monotonic() - start)
        ended = time.monotonic()
    emit(requests=len(seconds), rate=len(seconds) / (ended - began), hops=[], **quantiles(seconds))


def idle(args) -> None:
    import tritonclient.grpc as triton

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, args.count + 1000), hard))
    host, port = args.url.rsplit(":", 1)
    before = memory_of(args.node)
    connections = []
    for _ in range(args.count):
        try:
            connections.append(socket.create_connection((host, int(port)), timeout=5))
        except OSError:
            break
    time.sleep(2)
    during = memory_of(args.node)
    start = time.monotonic()
    try:
        triton.InferenceServerClient(args.url).infer(args.model, [request()], client_timeout=10)
        seconds = time.monotonic() - start
    except Exception as error:  # noqa: BLE001 - whatever it says is told
        print(error, file=sys.stderr)
        seconds = None
    emit(opened=len(connections), before=before, during=during, seconds=seconds)


def processes() -> dict[int, tuple[int, str]]:
    """Parent and program of each process."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # After the name, which may contain anything, in parentheses: state, parent.
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            found[int(folder.name)] = parent, os.path.basename(os.readlink(folder / "exe"))
        except OSError:
            continue
    return found


def is_agent_of(node: str, pid: int) -> bool:
    try:
        return f"NODE_NAME={node}".encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def family_of(node: str) -> list[tuple[int, str]]:
    """The agent on `node` and its workers, with their programs."""
    everything = processes()
    agents = {
        pid
        for pid, (_, program) in everything.items()
        if program == "lamina-node-agent" and is_agent_of(node, pid)
    }
    return [
        (pid, program)
        for pid, (parent, program) in everything.items()
        if pid in agents or parent in agents
    ]


def memory_of(node: str) -> dict:
    """Megabytes of the agent on `node` and its workers, shared pages in proportion."""
    found: dict = {}
    for pid, program in family_of(node):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                found[program] = found.get(program, 0.0) + int(line.split()[1]) / 1024
    return found


def cpu_of(node: str) -> dict:
    """Processor seconds used by the agent on `node` and its workers."""
    tick = os.sysconf("SC_CLK_TCK")
    found: dict = {}
    for pid, program in family_of(node):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        # User and system time, the 12th and 13th field after the name.
        found[program] = found.get(program, 0.0) + (int(fields[11]) + int(fields[12])) / tick
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["closed", "loop", "idle", "memory", "cpu"])
    parser.add_argument("--url")
    parser.add_argument("--model")
    parser.add_argument("--file")
    parser.add_argument("--node")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--count", type=int, default=2000)
    args = parser.parse_args()
    if args.what in ("memory", "cpu"):
        emit(**{"memory": memory_of, "cpu": cpu_of}[args.what](args.node))
    elif args.what == "closed":
        asyncio.run(closed(args))
    else:
        {"loop": loop, "idle": idle}[args.what](args)


if __name__ == "__main__":
    main()
    end_process()
