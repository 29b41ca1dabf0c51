"""Profiles torchvision's networks as chains of blocks, for the placement benchmarks.

    python profile_models.py FOLDER

FLOPs come from torch's own counter (two per multiply-add), sizes from the tensors, times from
one thread of this CPU: of several runs the fastest, because whatever else runs on the machine
only adds. Weights are random; they change none of the three. Each network is written at one or
two granularities:

- `units`: the 22 layers into which the code of the paper (addnn) divides GoogLeNet, its two side
  exits included;
- `coarse`: cut wherever exactly one tensor crosses;
- `fine`: cut behind every operation in execution order; every tensor still needed crosses.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

RUNS = 25
FLOAT_BYTES = 4
# Belongs to the operation before it: cheap, and merged with it by graph optimization.
MERGED_MODULES = (
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.Dropout,
    nn.Identity,
)
MERGED_FUNCTIONS = {"relu", "flatten", "dropout", "getitem"}
MERGED_METHODS = {"reshape", "permute", "expand", "flatten"}


@dataclass
class Block:
    """One block; `output_elements` are those crossing a cut behind it."""

    name: str = ""
    flops: int = 0
    seconds: float = 0.0
    convolution_seconds: float = 0.0
    weight_bytes: int = 0
    activation_bytes: int = 0
    output_elements: int = 0


@dataclass
class Exit:
    """A side exit, whose head is part of the block behind which requests leave."""

    name: str
    after_block: int


@dataclass
class Profile:
    """A network as a chain of blocks."""

    name: str
    input_elements: int
    blocks: list[Block]
    exits: list[Exit] = field(default_factory=list)


def elements(value: object) -> int:
    """Elements of a tensor, or of the tensors in a tuple."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, tuple):
        return sum(elements(part) for part in value)
    return 0


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


class Recorder(fx.Interpreter):
    """Runs a graph node by node, recording sizes, FLOPs and the fastest time of each."""

    def __init__(self, graph: fx.GraphModule) -> None:
        """Starts with nothing recorded."""
        super().__init__(graph)
        self.elements: dict[fx.Node, int] = {}
        self.flops: dict[fx.Node, int] = {}
        self.seconds: dict[fx.Node, float] = {}
        self.counting = False

    def run_node(self, n: fx.Node) -> object:
        """Runs one node."""
        if self.counting:
            with FlopCounterMode(display=False) as counter:
                result = super().run_node(n)
            self.flops[n] = counter.get_total_flops()
            self.elements[n] = elements(result)
            return result
        start = time.perf_counter()
        result = super().run_node(n)
        took = time.perf_counter() - start
        self.seconds[n] = min(took, self.seconds.get(n, took))
        return result


def plain_attention() -> AbstractContextManager[None]:
    """Attention by matrix products, which the counter counts."""
    return sdpa_kernel(SDPBackend.MATH)


def record(model: nn.Module, image: torch.Tensor) -> tuple[fx.GraphModule, Recorder]:
    """Traces and measures a model."""
    graph = fx.symbolic_trace(model)
    recorder = Recorder(graph)
    recorder.counting = True
    with plain_attention():
        # With gradients, because attention would otherwise take a fused path that is not counted.
        recorder.run(image)
    recorder.counting = False
    with torch.inference_mode():
        for _ in range(RUNS):
            recorder.run(image)
    return graph, recorder


def is_merged(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the node belongs to the operation before it."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], MERGED_MODULES)
    if node.op == "call_function":
        return getattr(node.target, "__name__", "") in MERGED_FUNCTIONS
    return node.op == "call_method" and node.target in MERGED_METHODS


def add(block: Block, name: str, one: Block) -> None:
    """Adds an operation to a block."""
    block.name = block.name or name
    block.flops += one.flops
    block.seconds += one.seconds
    block.convolution_seconds += one.convolution_seconds
    block.weight_bytes += one.weight_bytes
    block.activation_bytes = max(block.activation_bytes, one.activation_bytes)
    block.output_elements = one.output_elements


def chain(model: nn.Module, image: torch.Tensor) -> tuple[list[Block], list[Block]]:
    """The model's coarse and fine blocks."""
    graph, recorder = record(model.eval(), image)
    modules = dict(graph.named_modules())
    tensors = [n for n in graph.graph.nodes if recorder.elements.get(n) and n.op != "get_attr"]
    position = {n: i for i, n in enumerate(tensors)}
    last = {n: max((position.get(u, 0) for u in n.users), default=0) for n in tensors}
    steps = [n for n in tensors if n.op not in {"placeholder", "output"}]
    coarse, fine = [Block()], [Block()]
    for i, node in enumerate(steps):
        module = modules[str(node.target)] if node.op == "call_module" else None
        at = position[node]
        live = [n for n in tensors[: at + 1] if last[n] > at]
        held = sum(recorder.elements[n] for n in live)
        is_last = i + 1 == len(steps)
        one = Block(
            flops=recorder.flops[node],
            seconds=recorder.seconds[node],
            convolution_seconds=recorder.seconds[node] if isinstance(module, nn.Conv2d) else 0.0,
            weight_bytes=parameter_bytes(module) if module is not None else 0,
            activation_bytes=FLOAT_BYTES * (held + recorder.elements[node]),
            output_elements=recorder.elements[node] if is_last else held,
        )
        add(coarse[-1], node.name, one)
        add(fine[-1], node.name, one)
        if is_last or is_merged(steps[i + 1], modules):
            continue
        fine.append(Block())
        if len(live) == 1:
            coarse.append(Block())
    return coarse, fine


def leaves(module: nn.Module) -> list[nn.Module]:
    """Modules without children."""
    return [m for m in module.modules() if not list(m.children())]


class Clock:
    """Sums up the time of the convolutions and the elements of every leaf's output."""

    def __init__(self, module: nn.Module) -> None:
        """Hooks into every leaf."""
        self.convolution_seconds = 0.0
        self.elements = 0
        self.start = 0.0
        self.hooks = []
        for leaf in leaves(module):
            self.hooks.append(leaf.register_forward_pre_hook(self.before))
            self.hooks.append(leaf.register_forward_hook(self.after))

    def before(self, _module: nn.Module, _inputs: object) -> None:
        """Starts the clock."""
        self.start = time.perf_counter()

    def after(self, module: nn.Module, _inputs: object, output: object) -> None:
        """Stops the clock."""
        if isinstance(module, nn.Conv2d):
            self.convolution_seconds += time.perf_counter() - self.start
        self.elements += elements(output)

    def close(self) -> None:
        """Removes the hooks."""
        for hook in self.hooks:
            hook.remove()


def googlenet_units(image: torch.Tensor) -> Profile:
    """GoogLeNet in the 22 units of addnn, two of which are the heads of side exits."""
    net = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False).eval()
    names = [
        *("conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b"),
        *("maxpool3", "inception4a", "aux1", "inception4b", "inception4c", "inception4d", "aux2"),
        *("inception4e", "maxpool4", "inception5a", "inception5b", "avgpool", "flatten"),
        *("dropout", "fc"),
    ]
    modules = [nn.Flatten() if n == "flatten" else getattr(net, n) for n in names]
    blocks = [
        Block(name=n, seconds=float("inf"), weight_bytes=parameter_bytes(m))
        for n, m in zip(names, modules, strict=True)
    ]
    # Round after round over the whole network, so that a busy moment never hits the same unit.
    with torch.inference_mode():
        for _ in range(RUNS):
            value = image
            for block, module in zip(blocks, modules, strict=True):
                output = unit(block, module, value)
                # A head reads the input of the next unit, and passes it on.
                value = value if block.name.startswith("aux") else output
                block.output_elements = value.numel()
    exits = [Exit(n, i) for i, n in enumerate(names) if n.startswith("aux")]
    return Profile("googlenet_units", image.numel(), blocks, exits)


def unit(block: Block, module: nn.Module, value: torch.Tensor) -> torch.Tensor:
    """Runs one unit on `value`, keeping its figures if it was faster than before."""
    if not block.activation_bytes:
        with FlopCounterMode(display=False) as counter:
            module(value)
        block.flops = counter.get_total_flops()
    clock = Clock(module)
    start = time.perf_counter()
    output = module(value)
    took = time.perf_counter() - start
    clock.close()
    if took < block.seconds:
        block.seconds, block.convolution_seconds = took, clock.convolution_seconds
    block.activation_bytes = FLOAT_BYTES * (value.numel() + clock.elements)
    return output


def models() -> dict[str, Callable[[], nn.Module]]:
    """The networks other than the units of GoogLeNet."""
    tv = torchvision.models
    return {
        "googlenet": lambda: tv.googlenet(weights=None, aux_logits=False, init_weights=False),
        "mobilenet_v2": tv.mobilenet_v2,
        "resnet50": tv.resnet50,
        "vgg16": tv.vgg16,
        "vit_b_16": tv.vit_b_16,
    }


def camel(name: str) -> str:
    """`weight_bytes` as `weightBytes`."""
    head, *rest = name.split("_")
    return head + "".join(word.title() for word in rest)


def plain(value: object) -> object:
    """Keys as read by the benchmarks, times rounded to the nanosecond."""
    if isinstance(value, dict):
        return {camel(k): plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return round(value, 9) if isinstance(value, float) else value


def cpu_name() -> str:
    """The processor as the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def write(folder: Path, profile: Profile) -> None:
    """Writes one profile with its provenance."""
    provenance = {
        "command": "python placement/bench/python/profile_models.py placement/bench/profiles",
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__.split("+")[0],
        "torchvision": torchvision.__version__.split("+")[0],
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "runs": RUNS,
        "weights": "random",
    }
    data = {"name": profile.name, "provenance": provenance, **asdict(profile)}
    text = json.dumps(plain(data), indent=1)
    (folder / f"{profile.name}.json").write_text(text + "\n")
    print(
        f"{profile.name}: {len(profile.blocks)} blocks, "
        f"{sum(b.flops for b in profile.blocks) / 1e9:.3f} GFLOP, "
        f"{sum(b.weight_bytes for b in profile.blocks) / 1e6:.1f} MB, "
        f"{sum(b.seconds for b in profile.blocks) * 1e3:.1f} ms, "
        f"{sum(b.convolution_seconds for b in profile.blocks) * 1e3:.1f} ms of it convolutions",
        flush=True,
    )


def main() -> None:
    """Profiles everything."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image = torch.randn(1, 3, 224, 224)
    write(folder, googlenet_units(image))
    for name, make in models().items():
        coarse, fine = chain(make(), image)
        write(folder, Profile(f"{name}_coarse", image.numel(), coarse))
        write(folder, Profile(f"{name}_fine", image.numel(), fine))


if __name__ == "__main__":
    main()
