"""The placement of one or more networks as a mixed-integer program.

Reads only the JSON of placement's `Problem`: an independent formulation, so that an optimum
that differs from Lamina's reveals a bug in one of the two.

Binaries x[b, n] say where block b runs. The cost of a cut depends on the two blocks beside it:

- `flow`: a column per cut and pair of nodes for the flow from one to the other;
- `products`: a column per cut and pair of different nodes, at least x + x' - 1 (as the published
  program linearizes its products);
- `quadratic`: the products stay in the objective. Rows for links are left out, so it is a
  relaxation, and `Program.fits` checks whether its answer keeps them.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
INFINITY = float("inf")
# Relative tolerance for rounding, the checker's.
ROUNDING = 1e-9


class NotCoveredError(Exception):
    """The problem has something that this formulation lacks."""


@dataclass
class Network:
    """One workload: expected costs and loads."""

    blocks: int
    entry: int
    weight: float
    rate: float
    # [block][node], infinite where it may not run.
    cost: Floats
    memory: Floats
    slices: Floats
    # Seconds of compute per request, [block][node].
    work: Floats
    # [cut]: cut b is before block b.
    request_bytes: Floats
    reply_bytes: Floats
    reach: Floats
    slice_limit: Floats
    monotone: bool


@dataclass
class World:
    """Nodes, links and networks."""

    tier: Ints
    memory: Floats
    compute: Floats
    round_trip: Floats
    rate: Floats
    share: Floats
    networks: list[Network]

    def crossing(self, net: Network, cut: int) -> Floats:
        """Expected seconds of crossing from row to column; infinite where not allowed."""
        with np.errstate(invalid="ignore"):
            seconds = (
                net.reach[cut] * self.round_trip
                + net.request_bytes[cut] / self.rate
                + net.reply_bytes[cut] / self.rate.T
            )
        seconds[~np.isfinite(seconds)] = INFINITY
        busy = net.rate * net.request_bytes[cut] / self.rate > self.share * (1 + ROUNDING)
        busy |= net.rate * net.reply_bytes[cut] / self.rate.T > self.share.T * (1 + ROUNDING)
        seconds[busy] = INFINITY
        if net.monotone and cut > 0:
            seconds[self.tier[:, None] > self.tier[None, :]] = INFINITY
        np.fill_diagonal(seconds, 0.0)
        return seconds


def live_bytes(workload: dict, cut: int) -> int:
    """Bytes of the values made before a cut and needed after it."""
    behind = workload["blocks"][cut:]
    made = {v for b in behind for v in b["outputs"]}
    needed = {v for b in behind for v in b["inputs"]} | set(workload["outputs"])
    return sum(v["bytes"] for v in workload["values"] if v["name"] in needed - made)


def read_network(data: dict, workload: dict, index: dict[str, int]) -> Network:
    """One workload of the problem."""
    rules = workload["constraints"]
    for rule in ("pins", "forbidden", "allowedTiers", "minAccuracy", "latencyLimitSeconds"):
        if rules.get(rule):
            raise NotCoveredError(rule)
    if rules["keepFirstOnEntry"] or workload.get("previous") or rules["tierSliceLimitBytes"]:
        raise NotCoveredError("entry blocks, previous placements, tier limits")
    nodes = data["nodes"]
    count, length = len(nodes), len(workload["blocks"])
    reach, reply = np.ones(length), np.zeros(length)
    left = 1.0
    for b in range(length):
        reach[b] = left
        for side in (e for e in workload["exits"] if e["afterBlock"] == b):
            if len(side["table"]) != 1:
                raise NotCoveredError("a choice of thresholds")
            leaving = side["table"][0]["rate"]
            reply[b] += left * leaving * side["replyBytes"]
            left *= 1 - leaving
    outputs = set(workload["outputs"])
    reply[-1] += left * sum(v["bytes"] for v in workload["values"] if v["name"] in outputs)
    work = np.full((length, count), INFINITY)
    for b, block in enumerate(workload["blocks"]):
        for name, cost in block["costs"].items():
            if cost["cutPenaltySeconds"]:
                raise NotCoveredError("cut penalties")
            work[b, index[name]] = reach[b] * cost["seconds"]
    free = np.array([1 - n["loadShare"] for n in nodes])
    limit = np.full(count, INFINITY)
    for name, most in rules["nodeSliceLimitBytes"].items():
        limit[index[name]] = most
    return Network(
        blocks=length,
        entry=index[workload["entry"]],
        weight=workload["weight"],
        rate=workload["ratePerSecond"],
        cost=work / free,
        memory=np.array([b["memoryBytes"] for b in workload["blocks"]], dtype=float),
        slices=np.array([b["sliceBytes"] for b in workload["blocks"]], dtype=float),
        work=work,
        request_bytes=reach * [live_bytes(workload, b) for b in range(length)],
        reply_bytes=np.cumsum(reply[::-1])[::-1],
        reach=reach,
        slice_limit=limit,
        monotone=rules["monotoneTiers"],
    )


def read(data: dict) -> World:
    """The problem as arrays."""
    if data["objective"] != "latency":
        raise NotCoveredError("objectives other than latency")
    nodes = data["nodes"]
    if any(n.get("excluded") or n["residentBytes"] for n in nodes):
        raise NotCoveredError("excluded nodes and resident bytes")
    index = {n["name"]: i for i, n in enumerate(nodes)}
    count = len(nodes)
    latency = np.full((count, count), INFINITY)
    rate, share = np.zeros((count, count)), np.ones((count, count))
    for source, row in data["links"].items():
        i = index[source]
        for target, link in row.items():
            j = index[target]
            latency[i, j] = link["latencySeconds"]
            rate[i, j] = link["bytesPerSecond"]
            share[i, j] = link["share"]
    np.fill_diagonal(rate, INFINITY)
    rate[rate == 0] = 1e-300
    ranks = {"device": 0, "edge": 1, "cloud": 2}
    free = [(n["utilisationCap"] - n["loadShare"]) * n["concurrency"] for n in nodes]
    return World(
        tier=np.array([ranks[n["tier"]] for n in nodes]),
        memory=np.array([n["memoryBytes"] for n in nodes], dtype=float),
        compute=np.array(free),
        round_trip=latency + latency.T,
        rate=rate,
        share=share,
        networks=[read_network(data, w, index) for w in data["workloads"]],
    )


@dataclass
class Rows:
    """Rows of a sparse matrix, in order of insertion."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[Ints] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)

    def add(self, columns: Ints, values: Floats, low: float, high: float) -> None:
        """One row between two limits."""
        self.columns.append(columns)
        self.values.append(values)
        self.starts.append(self.starts[-1] + len(columns))
        self.low.append(low)
        self.high.append(high)

    def at_most(self, columns: Ints, loads: Floats, limit: float) -> None:
        """A capacity, in units of its largest load; omitted if it cannot bind."""
        if len(columns) and loads.sum() > limit:
            unit = loads.max()
            self.add(columns, loads / unit, -INFINITY, limit / unit)


class Program:
    """Columns, rows and their meaning."""

    def __init__(self, world: World, form: str) -> None:
        """Builds the program in the given form."""
        self.world = world
        self.form = form
        self.objective: list[Floats] = []
        self.binary = np.zeros(0, dtype=bool)
        self.count = 0
        self.rows = Rows()
        # [network][block][node]: column, or -1 where the block cannot run.
        self.place: list[Ints] = []
        self.products: list[tuple[Ints, Ints, Floats]] = []
        self.link_terms: list[tuple[Ints, Ints, Floats]] = []
        binaries: list[NDArray[np.bool_]] = []
        for net in world.networks:
            self.network(net, binaries)
        self.binary = np.concatenate(binaries)
        self.capacities()
        if form != "quadratic":
            self.links()

    def column(self, costs: Floats, binary: bool, binaries: list[NDArray[np.bool_]]) -> Ints:
        """New columns with these costs."""
        first = self.count
        self.count += len(costs)
        self.objective.append(costs)
        binaries.append(np.full(len(costs), binary))
        return np.arange(first, self.count)

    def network(self, net: Network, binaries: list[NDArray[np.bool_]]) -> None:
        """Columns and rows of one network."""
        world, count = self.world, len(self.world.memory)
        costs = net.weight * net.cost
        costs[0] = costs[0] + net.weight * world.crossing(net, 0)[net.entry]
        able = np.isfinite(costs)
        able &= net.memory[:, None] <= world.memory
        able &= net.slices[:, None] <= net.slice_limit
        able &= net.rate * net.work <= world.compute * (1 + ROUNDING)
        place = np.full((net.blocks, count), -1)
        place[able] = self.column(costs[able], True, binaries)
        for b in range(net.blocks):
            here = place[b][place[b] >= 0]
            self.rows.add(here, np.ones(len(here)), 1.0, 1.0)
        start = np.flatnonzero(place[0] >= 0)
        self.load_links(net, 0, np.full(len(start), net.entry), start, place[0][start])
        for b in range(1, net.blocks):
            self.cut(net, b, place, binaries)
        self.place.append(place)

    def cut(self, net: Network, b: int, place: Ints, binaries: list[NDArray[np.bool_]]) -> None:
        """Costs of the cut before block b."""
        seconds = net.weight * self.world.crossing(net, b)
        before, here = place[b - 1], place[b]
        pairs = (before >= 0)[:, None] & (here >= 0)[None, :]
        source, target = np.nonzero(pairs & np.isfinite(seconds))
        if self.form == "flow":
            flows = self.column(seconds[source, target], False, binaries)
            self.conserve(before, source, flows)
            self.conserve(here, target, flows)
            self.load_links(net, b, source, target, flows)
            return
        apart = source != target
        source, target = source[apart], target[apart]
        self.forbid(before, here, pairs & np.isinf(seconds))
        if self.form == "quadratic":
            self.products.append((before[source], here[target], seconds[source, target]))
            return
        both = self.column(seconds[source, target], False, binaries)
        for column, x, y in zip(both, before[source], here[target], strict=True):
            self.rows.add(np.array([column, x, y]), np.array([1.0, -1.0, -1.0]), -1.0, INFINITY)
        self.load_links(net, b, source, target, both)

    def conserve(self, place: Ints, ends: Ints, flows: Ints) -> None:
        """Inflow and outflow of a node equal what runs there."""
        order = np.argsort(ends, kind="stable")
        bounds = np.searchsorted(ends[order], np.arange(len(place) + 1))
        for node in np.flatnonzero(place >= 0):
            through = flows[order[bounds[node] : bounds[node + 1]]]
            columns = np.append(through, place[node])
            values = np.append(np.ones(len(through)), -1.0)
            self.rows.add(columns, values, 0.0, 0.0)

    def forbid(self, before: Ints, here: Ints, never: NDArray[np.bool_]) -> None:
        """Forbidden crossings, a row per node that is left."""
        for node in np.flatnonzero(never.any(axis=1)):
            columns = np.append(here[never[node]], before[node])
            self.rows.add(columns, np.ones(len(columns)), -INFINITY, 1.0)

    def load_links(self, net: Network, cut: int, source: Ints, target: Ints, columns: Ints) -> None:
        """Adds a crossing's load on the links there and back."""
        if net.rate == 0:
            return
        apart = source != target
        source, target, columns = source[apart], target[apart], columns[apart]
        count, rate = len(self.world.memory), self.world.rate
        there = net.rate * net.request_bytes[cut] / rate[source, target]
        back = net.rate * net.reply_bytes[cut] / rate[target, source]
        self.link_terms.append((source * count + target, columns, there))
        self.link_terms.append((target * count + source, columns, back))

    def capacities(self) -> None:
        """Rows for memory, compute time and slices."""
        world = self.world
        for node in range(len(world.memory)):
            places = [p[:, node] for p in self.place]
            able = [p >= 0 for p in places]
            columns = np.concatenate([p[a] for p, a in zip(places, able, strict=True)])
            nets = list(zip(world.networks, able, strict=True))
            memory = np.concatenate([net.memory[a] for net, a in nets])
            self.rows.at_most(columns, memory, world.memory[node])
            work = np.concatenate([net.rate * net.work[a, node] for net, a in nets])
            self.rows.at_most(columns, work, world.compute[node])
            for (net, a), p in zip(nets, places, strict=True):
                self.rows.at_most(p[a], net.slices[a], net.slice_limit[node])

    def links(self) -> None:
        """Rows for links."""
        if not self.link_terms:
            return
        link, columns, loads = (np.concatenate(part) for part in zip(*self.link_terms, strict=True))
        order = np.argsort(link, kind="stable")
        link, columns, loads = link[order], columns[order], loads[order]
        names, starts = np.unique(link, return_index=True)
        share = self.world.share.ravel()
        for name, first, end in zip(names, starts, np.append(starts[1:], len(link)), strict=True):
            self.rows.at_most(columns[first:end], loads[first:end], share[name])

    def paths(self, solution: Floats) -> list[Ints]:
        """The node of each block."""
        return [np.where(place >= 0, solution[place], -1.0).argmax(axis=1) for place in self.place]

    def value(self, paths: list[Ints]) -> float:
        """Seconds of whole placements, recomputed."""
        total = 0.0
        for net, path in zip(self.world.networks, paths, strict=True):
            at = net.entry
            for b, node in enumerate(path):
                total += net.weight * (net.cost[b, node] + self.world.crossing(net, b)[at, node])
                at = node
        return total

    def fits(self, paths: list[Ints]) -> bool:
        """Whether placements keep every capacity, including links."""
        world = self.world
        memory, compute = np.zeros(len(world.memory)), np.zeros(len(world.memory))
        sent = np.zeros_like(world.rate)
        for net, path in zip(world.networks, paths, strict=True):
            held = np.zeros(len(world.memory))
            at = net.entry
            for b, node in enumerate(path):
                memory[node] += net.memory[b]
                held[node] += net.slices[b]
                compute[node] += net.rate * net.work[b, node]
                if node != at:
                    there, back = world.rate[at, node], world.rate[node, at]
                    sent[at, node] += net.rate * net.request_bytes[b] / there
                    sent[node, at] += net.rate * net.reply_bytes[b] / back
                at = node
            if (held > net.slice_limit).any():
                return False
        room = 1 + ROUNDING
        return bool(
            (memory <= world.memory).all()
            and (compute <= world.compute * room).all()
            and (sent <= world.share * room).all()
        )
