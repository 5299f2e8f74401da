"""Clusters and endpoints as Envoy reads them.

A cluster never changes while it is there: all that a switch touches is its endpoint.
"""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import UInt32Value

from cellmesh.envoy.cluster.v3 import cluster_pb2
from cellmesh.envoy.discovery.v3 import discovery_pb2
from cellmesh.envoy.endpoint.v3 import endpoint_pb2
from cellmesh.envoy.upstream.v3 import http_protocol_options_pb2
from cellmesh.hypervisor.edge.answers import ACTIVATOR, ROLE
from cellmesh.hypervisor.edge.endpoint import Endpoint
from cellmesh.hypervisor.limits import RouteLimits

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
METADATA = "cellmesh"
"""Under which name the access log finds whose an endpoint is."""

_PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_EDS = 3
_VERSION_3 = 2


def cluster(name: str, limits: RouteLimits) -> discovery_pb2.Resource:
    """Return a cluster whose endpoint comes by the stream that told of it."""
    protocol = http_protocol_options_pb2.HttpProtocolOptions(
        common_http_protocol_options=http_protocol_options_pb2.HttpProtocolOptions.CommonOptions(
            idle_timeout=limits.idle_timeout, max_headers_count=UInt32Value(value=limits.answer_headers)
        ),
        explicit_http_config=http_protocol_options_pb2.HttpProtocolOptions.ExplicitHttpConfig(
            http_protocol_options=http_protocol_options_pb2.HttpProtocolOptions.Http1Options()
        ),
    )
    message = cluster_pb2.Cluster(
        name=name,
        type=_EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(
            eds_config=cluster_pb2.Cluster.ConfigSource(
                ads=cluster_pb2.Cluster.AggregatedConfigSource(), resource_api_version=_VERSION_3
            )
        ),
        connect_timeout=limits.connect_timeout,
        per_connection_buffer_limit_bytes=UInt32Value(value=limits.buffer_bytes),
        circuit_breakers=cluster_pb2.Cluster.CircuitBreakers(
            thresholds=[
                cluster_pb2.Cluster.Thresholds(
                    max_connections=UInt32Value(value=limits.connections),
                    max_pending_requests=UInt32Value(value=limits.pending_requests),
                    max_requests=UInt32Value(value=limits.connections + limits.pending_requests),
                    # All that wait when a container goes away may look for the next one at once.
                    max_retries=UInt32Value(value=limits.connections + limits.pending_requests),
                )
            ]
        ),
    )
    message.typed_extension_protocol_options[_PROTOCOL_OPTIONS].Pack(protocol)
    return _resource(name, CLUSTER, message)


def assignment(name: str, endpoint: Endpoint) -> discovery_pb2.Resource:
    """Return where the requests of a cluster go."""
    owner = Struct()
    if not endpoint.vm_id:
        owner.update({ROLE: ACTIVATOR})
    else:
        # Numbers as text: a Struct knows floating point only.
        owner.update(
            {
                "vm_id": endpoint.vm_id,
                "container": endpoint.container,
                "epoch": str(endpoint.epoch),
                "generation": str(endpoint.generation),
            }
        )
    message = endpoint_pb2.ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[
            endpoint_pb2.ClusterLoadAssignment.LocalityLbEndpoints(
                lb_endpoints=[
                    endpoint_pb2.ClusterLoadAssignment.LbEndpoint(
                        endpoint=endpoint_pb2.ClusterLoadAssignment.Endpoint(
                            address=endpoint_pb2.ClusterLoadAssignment.Address(
                                pipe=endpoint_pb2.ClusterLoadAssignment.Pipe(path=str(endpoint.path))
                            )
                        ),
                        metadata=endpoint_pb2.ClusterLoadAssignment.Metadata(filter_metadata={METADATA: owner}),
                    )
                ]
            )
        ],
    )
    return _resource(name, ENDPOINT, message)


def _resource(name: str, type_url: str, message: Message) -> discovery_pb2.Resource:
    """Return a message with a version made of what it says: the same after a restart of ours."""
    value = message.SerializeToString(deterministic=True)
    made = discovery_pb2.Resource(name=name, version=hashlib.sha256(value).hexdigest()[:16])
    made.resource.type_url, made.resource.value = type_url, value
    return made
