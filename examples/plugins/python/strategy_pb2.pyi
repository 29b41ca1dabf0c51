from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ("protocol_version",)
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("protocol_version", "version", "strategies")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STRATEGIES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    version: str
    strategies: _containers.RepeatedCompositeFieldContainer[StrategyInfo]
    def __init__(self, protocol_version: _Optional[int] = ..., version: _Optional[str] = ..., strategies: _Optional[_Iterable[_Union[StrategyInfo, _Mapping]]] = ...) -> None: ...

class StrategyInfo(_message.Message):
    __slots__ = ("name", "objectives", "several_workloads", "exits")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVES_FIELD_NUMBER: _ClassVar[int]
    SEVERAL_WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    EXITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    objectives: _containers.RepeatedScalarFieldContainer[str]
    several_workloads: bool
    exits: bool
    def __init__(self, name: _Optional[str] = ..., objectives: _Optional[_Iterable[str]] = ..., several_workloads: _Optional[bool] = ..., exits: _Optional[bool] = ...) -> None: ...

class SolveRequest(_message.Message):
    __slots__ = ("strategy", "problem_json", "parameters", "seed", "time_limit_seconds")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_JSON_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    strategy: str
    problem_json: str
    parameters: _containers.ScalarMap[str, str]
    seed: int
    time_limit_seconds: float
    def __init__(self, strategy: _Optional[str] = ..., problem_json: _Optional[str] = ..., parameters: _Optional[_Mapping[str, str]] = ..., seed: _Optional[int] = ..., time_limit_seconds: _Optional[float] = ...) -> None: ...

class SolveReply(_message.Message):
    __slots__ = ("placements", "objective", "lower_bound", "last")
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    LOWER_BOUND_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    objective: float
    lower_bound: float
    last: bool
    def __init__(self, placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ..., objective: _Optional[float] = ..., lower_bound: _Optional[float] = ..., last: _Optional[bool] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("workload", "segments", "exit_rows")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    EXIT_ROWS_FIELD_NUMBER: _ClassVar[int]
    workload: str
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    exit_rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, workload: _Optional[str] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., exit_rows: _Optional[_Iterable[int]] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("node", "blocks")
    NODE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    node: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, node: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...
