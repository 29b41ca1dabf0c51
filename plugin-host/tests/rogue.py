"""Plugins that no one should write: dies-early, dies-late or babbles."""

import os
import sys
import time
from concurrent import futures

import grpc

import strategy_pb2 as wire
import strategy_pb2_grpc as service

DEED = sys.argv[1]


def answer() -> wire.SolveReply:
    segments = [wire.Segment(node="cam-1", blocks=[0, 1]), wire.Segment(node="edge-1", blocks=[2])]
    return wire.SolveReply(placements=[wire.Placement(workload="net", segments=segments)])


class Rogue(service.StrategyServicer):
    def Describe(self, request, context):
        info = wire.StrategyInfo(name="rogue")
        return wire.DescribeReply(protocol_version=1, version="0", strategies=[info])

    def Solve(self, request, context):
        if DEED == "dies-late":
            yield answer()
            # What was sent must leave the process first.
            time.sleep(0.3)
        os._exit(1)


def babble() -> grpc.GenericRpcHandler:
    """The same service, whose Solve sends bytes that are no message."""
    handlers = {
        "Describe": grpc.unary_unary_rpc_method_handler(
            Rogue().Describe,
            request_deserializer=wire.DescribeRequest.FromString,
            response_serializer=wire.DescribeReply.SerializeToString,
        ),
        "Solve": grpc.unary_stream_rpc_method_handler(
            lambda request, context: iter([b"\xff\xff\xff\xff"]),
            request_deserializer=wire.SolveRequest.FromString,
            response_serializer=lambda raw: raw,
        ),
    }
    return grpc.method_handlers_generic_handler("lamina.strategy.v1.Strategy", handlers)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
if DEED == "babbles":
    server.add_generic_rpc_handlers((babble(),))
else:
    service.add_StrategyServicer_to_server(Rogue(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("listening on port", port, flush=True)
server.wait_for_termination()
