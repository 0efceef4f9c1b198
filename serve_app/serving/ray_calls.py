"""Every call over Ray, typed: the one place that knows Ray Serve's handles."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, cast

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.admission.answers import AdmissionRequest
from serve_app.admission.answers import Answer as AdmissionAnswer
from serve_app.admission.answers import Granted as AdmissionGranted
from serve_app.admission.day_book import Day, Usage
from serve_app.admission.tenants import Tenant
from serve_app.admission.tickets import Ticket
from serve_app.admission.views import EngineView, LiveSession
from serve_app.config import ENGINE_APPLICATION, LOOPBACK
from serve_app.errors import ChorusError, EngineLost
from serve_app.serving.directory import EngineCard, Orders
from serve_app.serving.granted import Admitted, Answer
from serve_app.serving.knock import Knock, Opened
from serve_app.serving.resuming import Keeping, Returning
from serve_app.serving.tick_trace import EngineTicks
from serve_app.spec import SessionSpec
from serve_app.units import SessionId

ASK_S: Final = 3.0
"""How long a question to the authority may take: while there is none, Ray lets callers hang."""
ENGINE_DEPLOYMENT: Final = "Engine"
DIRECTORY_DEPLOYMENT: Final = "EngineDirectory"


class DirectoryHandle:
    """The directory of this cluster. Each call is one round trip; raises what Ray raises."""

    def __init__(self) -> None:
        self._handle = serve.get_deployment_handle(DIRECTORY_DEPLOYMENT, app_name=ENGINE_APPLICATION)

    async def engines(self) -> list[EngineCard]:
        """The cards of the engines that live."""
        return cast(list[EngineCard], await self._handle.engines.remote())

    async def report(self, card: EngineCard, sessions: tuple[LiveSession, ...]) -> Orders:
        """Leave a card, and who holds slots."""
        return cast(Orders, await self._handle.report.remote(card, sessions))

    async def views(self) -> list[EngineView]:
        """The engines that live, with their sessions."""
        return cast(list[EngineView], await self._handle.views.remote())

    async def succeed(self) -> bool:
        """An authority begins: whether there was one before."""
        return cast(bool, await self._handle.succeed.remote())

    async def offer_text_model(self, digest: str, content: bytes) -> None:
        """Leave the bytes of a text model."""
        await self._handle.offer_text_model.remote(digest, content)

    async def text_model(self, digest: str) -> bytes | None:
        """The bytes of a text model."""
        return cast(bytes | None, await self._handle.text_model.remote(digest))

    async def offer_ticks(self, ticks: EngineTicks) -> None:
        """Leave the last ticks."""
        await self._handle.offer_ticks.remote(ticks)

    async def ticks(self) -> list[EngineTicks]:
        """The last ticks of every engine; takes up to some seconds. Raises EngineLost where nobody can be asked."""
        try:
            async with asyncio.timeout(2 * ASK_S):
                return cast("list[EngineTicks]", await self._handle.ticks.remote())
        except (RayError, RayServeException, TimeoutError):
            raise EngineLost from None

    async def close(self) -> None:
        """Tell every engine to end its sessions."""
        await self._handle.close.remote()


class LeaseHandles:
    """Calls for slots, by application: each has one model."""

    def __init__(self) -> None:
        self._handles: dict[str, LeaseHandle] = {}

    def of(self, application: str) -> "LeaseHandle":
        """The one of an application that an engine has named. The first time it asks Ray's controller, and blocks."""
        handle = self._handles.get(application)
        if handle is None:
            handle = self._handles[application] = LeaseHandle(application)
        return handle


class LeaseHandle:
    """Calls for slots of one application. Ray picks an engine that has one."""

    def __init__(self, application: str) -> None:
        self._handle: DeploymentHandle[Any] = serve.get_deployment_handle(
            ENGINE_DEPLOYMENT, app_name=application
        ).options(stream=True)

    async def call(
        self, spec: SessionSpec, caller: Admitted | None = None, comeback: Keeping | Returning | None = None
    ) -> AsyncGenerator[Answer, None]:
        """Hold a slot for as long as this is iterated or closed; start it in a context of its own.

        A call belongs to the request in whose context it is made and would be cancelled with it.
        """
        response = cast("DeploymentResponseGenerator[Any]", self._handle.lease.remote(spec, caller, comeback))
        try:
            async for answer in response:
                yield answer
        finally:
            _cancel(response)


class AdmissionHandle:
    """The admission host of this cluster, from its handle. Raises EngineLost where it cannot be asked."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def identify(self, knock: Knock) -> Tenant | ChorusError:
        """Whose key or ticket it is."""
        return cast("Tenant | ChorusError", await self._ask("identify", knock))

    async def ticket(self, knock: Knock) -> Ticket | ChorusError:
        """Trade a key for a ticket."""
        return cast("Ticket | ChorusError", await self._ask("ticket", knock))

    async def usage(self, knock: Knock, first: Day, last: Day) -> Usage | ChorusError:
        """What the holder of a key spoke, by day."""
        return cast("Usage | ChorusError", await self._ask("usage", knock, first, last))

    async def open(self, knock: Knock, request: AdmissionRequest) -> Opened | ChorusError:
        """The first question of a session."""
        return cast("Opened | ChorusError", await self._ask("open", knock, request))

    async def again(self, request: AdmissionRequest, hold_s: float) -> AdmissionAnswer:
        """The next questions."""
        return cast(AdmissionAnswer, await self._ask("again", request, hold_s, limit_s=hold_s + ASK_S))

    async def confirm(self, granted: AdmissionGranted) -> bool:
        """The engine gave the slot."""
        return cast(bool, await self._ask("confirm", granted))

    async def leave(self, session: SessionId, audio_s: float | None) -> None:
        """A caller is gone."""
        await self._ask("leave", session, audio_s)

    async def spent(self) -> dict[SessionId, ChorusError]:
        """Sessions that are to be ended, and why."""
        return cast("dict[SessionId, ChorusError]", await self._ask("spent"))

    async def _ask(self, name: str, *question: object, limit_s: float = ASK_S) -> object:
        try:
            async with asyncio.timeout(limit_s):
                return await getattr(self._handle, name).remote(*question)
        except (RayError, RayServeException, TimeoutError):  # its text may hold what was asked, and so a key
            raise EngineLost from None


def replica_name() -> str:
    """The name of this replica, by which a router finds it."""
    return str(serve.get_replica_context().replica_id.unique_id)


def application_name() -> str:
    """The application that this replica belongs to."""
    return str(serve.get_replica_context().app_name)


def _cancel(response: Any) -> None:
    response.cancel()


def link_host(setting: str | None) -> str:
    """Where an engine listens: see `LinkSettings.host`. One round trip where the setting leaves it to us."""
    if setting is None:
        return LOOPBACK if _alone() else _node_address()
    return _node_address() if setting == "node" else setting


def http_host() -> str:
    """Where Ray Serve's proxies listen: told by the controller, whoever started it; loopback where HTTP is off.

    Serve has no public call for it; the client is the one that handles are made with, so this costs nothing.
    """
    client = _get_global_client()
    assert client is not None, "it raises where there is no controller"
    return str(client.http_config.host or LOOPBACK)


def _alone() -> bool:
    """Whether this node is the whole cluster."""
    here = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return all(node["NodeID"] == here for node in nodes if node["Alive"])


def _node_address() -> str:
    """The address of this Ray node, as other nodes reach it."""
    address: Callable[[], str] = ray.util.get_node_ip_address
    return address()
