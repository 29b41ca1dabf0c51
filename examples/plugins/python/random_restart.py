"""A strategy for Lamina in Python: hill climbing on latency from random starts.

    python random_restart.py --listen 127.0.0.1:50051

It respects most constraints, but not all of them, and need not: the host
recomputes every answer and keeps the last one that violates nothing.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from concurrent import futures
from itertools import groupby
from math import inf
from typing import Any

import grpc
import strategy_pb2 as wire
import strategy_pb2_grpc as service

MAX_QUESTION_BYTES = 80 << 20  # the host sends problems of up to 64 MiB

Path = tuple[str, ...]  # a node per block


class Chain:
    """One workload of a problem, with the cost of its placements."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.work = problem["workloads"][0]
        self.blocks = self.work["blocks"]
        self.links = problem["links"]
        self.nodes = {n["name"]: n for n in problem["nodes"]}
        self.hosts = [self.allowed(b) for b in range(len(self.blocks))]
        size = {v["name"]: v["bytes"] for v in self.work["values"]}
        self.live = [self.live_bytes(b, size) for b in range(len(self.blocks) + 1)]

    def allowed(self, block: int) -> list[str]:
        """Nodes that may run `block`."""
        rules = self.work["constraints"]
        hosts = {n for n in self.blocks[block]["costs"] if "excluded" not in self.nodes[n]}
        if block < rules["keepFirstOnEntry"]:
            hosts &= {self.work["entry"]}
        if "allowedTiers" in rules:
            hosts &= {n for n in hosts if self.nodes[n]["tier"] in rules["allowedTiers"]}
        for pin in rules["pins"]:
            hosts &= {pin["node"]} if pin["block"] == block else hosts
        hosts -= {f["node"] for f in rules["forbidden"] if f["block"] == block}
        return sorted(hosts)

    def live_bytes(self, cut: int, size: dict[str, int]) -> int:
        """Bytes needed after the cut before block `cut`."""
        later = self.blocks[cut:]
        needed = {v for b in later for v in b["inputs"]} | set(self.work["outputs"])
        return sum(size[v] for v in needed - {v for b in later for v in b["outputs"]})

    def seconds(self, path: Path) -> float:
        """Latency of a path; infinite if a link is missing or memory too small."""
        total, at = 0.0, self.work["entry"]
        memory = dict.fromkeys(path, 0)
        for block, node in enumerate(path):
            if node != at:
                there = self.links.get(at, {}).get(node)
                back = self.links.get(node, {}).get(at)
                if there is None or back is None:
                    return inf
                total += there["latencySeconds"] + back["latencySeconds"]
                total += self.live[block] / there["bytesPerSecond"]
                total += self.live[-1] / back["bytesPerSecond"]
            cost = self.blocks[block]["costs"][node]
            is_cut = block + 1 < len(path) and path[block + 1] != node
            busy = cost["seconds"] + (cost["cutPenaltySeconds"] if is_cut else 0.0)
            total += busy / (1.0 - self.nodes[node]["loadShare"])
            memory[node] += self.blocks[block]["memoryBytes"]
            at = node
        fits = all(used <= self.nodes[n]["memoryBytes"] for n, used in memory.items())
        return total if fits else inf

    def moves(self, path: Path) -> Iterator[Path]:
        """Paths in which all blocks before or after a cut are on one node."""
        size = len(path)
        for first, end in [(0, c) for c in range(1, size)] + [(c, size) for c in range(size)]:
            for node in sorted(set.intersection(*map(set, self.hosts[first:end]))):
                yield path[:first] + (node,) * (end - first) + path[end:]

    def climb(self, path: Path, until: float) -> Path:
        """Takes the best move while one makes the path faster and time is left."""
        while time.monotonic() < until:
            best = min(self.moves(path), key=self.seconds, default=path)
            if self.seconds(best) >= self.seconds(path):
                break
            path = best
        return path

    def reply(self, path: Path) -> wire.SolveReply:
        """The path as segments."""
        placement = wire.Placement(workload=self.work["name"])
        for node, run in groupby(enumerate(path), key=lambda at: at[1]):
            placement.segments.add(node=node, blocks=[block for block, _ in run])
        return wire.SolveReply(placements=[placement])


class Plugin(service.StrategyServicer):
    """The plugin's service."""

    def Describe(self, request: Any, context: Any) -> wire.DescribeReply:
        """Offers the one strategy."""
        info = wire.StrategyInfo(name="random-restart", objectives=["latency"])
        return wire.DescribeReply(protocol_version=1, version="0.1", strategies=[info])

    def Solve(self, request: wire.SolveRequest, context: Any) -> Iterator[wire.SolveReply]:
        """Streams every path that is faster than those before."""
        until = time.monotonic() + request.time_limit_seconds
        if unknown := set(request.parameters) - {"restarts"}:
            text = f"unknown parameter `{min(unknown)}`; it takes `restarts`"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        restarts = int(request.parameters.get("restarts", "20"))
        chain, draw = Chain(json.loads(request.problem_json)), random.Random(request.seed)
        if not all(chain.hosts):
            block = chain.hosts.index([])
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"no node may run block {block}")
        best = inf
        for _ in range(restarts):
            if time.monotonic() >= until or not context.is_active():
                return
            path = chain.climb(tuple(draw.choice(hosts) for hosts in chain.hosts), until)
            if chain.seconds(path) < best:
                best = chain.seconds(path)
                yield chain.reply(path)


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:50051", help="HOST:PORT, or unix:/PATH")
    listen = parser.parse_args().listen
    options = [("grpc.max_receive_message_length", MAX_QUESTION_BYTES)]
    server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
    service.add_StrategyServicer_to_server(Plugin(), server)
    port = server.add_insecure_port(listen)
    server.start()
    print("listening on", listen if listen.startswith("unix:") else f"port {port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
