"""A client that knows nothing of cellmesh: what it calls, it learns from the server's reflection.

    python -I -S reflection_client.py SITE_PACKAGES SOCKET < calls.json

`-I -S` keeps our generated modules out of reach; SITE_PACKAGES brings gRPC and protobuf back. Reads a list of
{"method": "pkg.Service/Method", "requests": [{…}], "most": answers to read}; prints {"services": {name: [methods]},
"calls": [{"method", "code", "message", "reason", "answers": [{…}]}]}.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from typing import Any

DETAILS = "grpc-status-details-bin"
SECONDS = 20.0


def main(site_packages: str, socket: str) -> int:
    """List, describe and call; return the exit code."""
    # Added by hand, so that the .pth files in it, which lead to the checkout, are not read.
    sys.path.append(site_packages)
    if importlib.util.find_spec("cellmesh") is not None:
        print("cellmesh can be imported, so this would prove nothing", file=sys.stderr)
        return 2
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(f"unix:{socket}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        services = {name: pool.FindServiceByName(name) for name in database.get_services()}
        json.dump(
            {
                "services": {name: [method.name for method in found.methods] for name, found in services.items()},
                "calls": [call(channel, services, wanted) for wanted in json.load(sys.stdin)],
            },
            sys.stdout,
        )
    return 0


def call(channel: Any, services: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Make one call and tell what came of it."""
    import grpc
    from google.protobuf import json_format
    from google.protobuf.message_factory import GetMessageClass

    service, _, name = wanted["method"].partition("/")
    method = services[service].methods_by_name[name]
    request = GetMessageClass(method.input_type)
    requests = (json_format.ParseDict(each, request()) for each in wanted["requests"])
    streams = ("unary", "stream")
    invoke = getattr(channel, f"{streams[method.client_streaming]}_{streams[method.server_streaming]}")(
        f"/{wanted['method']}",
        request_serializer=request.SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    told: dict[str, Any] = {"method": wanted["method"], "code": "OK", "answers": []}
    try:
        given = invoke(requests if method.client_streaming else next(requests), timeout=SECONDS)
        for answer in first(given, wanted["most"]) if method.server_streaming else (given,):
            told["answers"].append(json_format.MessageToDict(answer, descriptor_pool=method.input_type.file.pool))
    except grpc.RpcError as error:
        told |= {"code": error.code().name, "message": error.details(), "reason": reason(error)}
    return told


def first(answers: Any, most: int) -> Iterator[Any]:
    """Give the first answers of a stream and leave it."""
    for place, answer in enumerate(answers, 1):
        yield answer
        if place == most:
            answers.cancel()
            return


def reason(error: Any) -> str:
    """Return the ErrorInfo's reason; empty without one."""
    from google.rpc import error_details_pb2, status_pb2

    for key, value in error.trailing_metadata():
        if key == DETAILS:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
