"""GuestService: the VM as a whole."""

from cellmesh.api.guest.v1 import guest_service_pb2, guest_service_pb2_grpc
from cellmesh.guest import AGENT_VERSION, boot, machine
from cellmesh.guest.identity import Identity
from cellmesh.guest.servicers import codec
from cellmesh.guest.servicers.answer import Context, answered
from cellmesh.guest.shutdown import Shutdown

_LONGEST_GRACE = 120.0


class GuestServicer(guest_service_pb2_grpc.GuestServiceServicer):
    """Answers for the machine."""

    def __init__(self, identity: Identity, shutdown: Shutdown) -> None:
        self._identity = identity
        self._shutdown = shutdown

    @answered
    async def GetInfo(
        self, _request: guest_service_pb2.GetInfoRequest, _context: Context
    ) -> guest_service_pb2.GetInfoResponse:
        """Return what the agent knows of itself."""
        info = machine.read_machine(boot.DATA)
        return guest_service_pb2.GetInfoResponse(
            boot_id=self._identity.boot_id,
            agent_version=AGENT_VERSION,
            kernel_release=info.kernel_release,
            uptime=codec.duration(info.uptime),
            memory_total_bytes=info.memory_total,
            memory_available_bytes=info.memory_available,
            disk_total_bytes=info.disk_total,
            disk_available_bytes=info.disk_available,
            agent_rss_bytes=info.agent_rss,
            agent_module_count=info.agent_modules,
        )

    @answered
    async def SyncClock(
        self, request: guest_service_pb2.SyncClockRequest, _context: Context
    ) -> guest_service_pb2.SyncClockResponse:
        """Set the guest's clock."""
        adjustment = machine.set_clock(request.time.seconds + request.time.nanos / 1e9)
        return guest_service_pb2.SyncClockResponse(adjustment=codec.duration(adjustment))

    @answered
    async def Shutdown(
        self, request: guest_service_pb2.ShutdownRequest, _context: Context
    ) -> guest_service_pb2.ShutdownResponse:
        """Stop everything, flush, answer; the machine powers off right after."""
        await self._identity.check_epoch(request.epoch)
        await self._shutdown.finish(min(codec.seconds(request.grace), _LONGEST_GRACE))
        return guest_service_pb2.ShutdownResponse()
