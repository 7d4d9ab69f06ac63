"""The server on Ray Serve: replicas of one bundle on one or several machines.

`medusa-trt deploy --kind ray` writes the config for `serve deploy`. Ray calls `app` with the
arguments that stand there.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Message

from medusa_trt.runtime.session import MedusaSession
from medusa_trt.serving.app import make_app
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.replicas.affinity import rank_replicas
from medusa_trt.serving.replicas.calls import Call, answer_call
from medusa_trt.serving.replicas.front import Front, Replicas
from medusa_trt.serving.replicas.options import ReplicaOptions, read_arguments
from medusa_trt.serving.warm_up import warm_up

_MEASURE_S = 5.0
"""Seconds after which a replica that does not tell its measurements is left out."""


class AffinityRouter(RequestRouter):  # type: ignore[misc]  # Ray need not be installed.
    """Prefers the replica that has read the beginning of a conversation, then the others."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Returns one rank for each replica; Ray takes the first that has room."""
        if pending_request is None or not pending_request.args:
            return [candidate_replicas]
        # Without this, Ray would try again at once, and all the time, while all replicas are full.
        pending_request.routing_context.should_backoff = True
        key = pending_request.args[0]
        if not key:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_name[name]] for name in rank_replicas(key, list(by_name))]


class Replica:
    """A session with its server, in a process of its own."""

    def __init__(self, options: ReplicaOptions, server: ServingOptions) -> None:
        """Opens the bundle and warms it up; Ray sends no request before that."""
        self._session = MedusaSession(
            options.bundle,
            backend=options.backend,
            num_threads=options.num_threads,
            max_length=options.max_length,
            batch_size=server.max_sequences,
        )
        warm_up(self._session)
        self._app = make_app(self._session, server)
        self._lifespan: Any = None
        self._name = serve.get_replica_context().replica_id.unique_id

    async def answer(self, key: str, call: Call) -> AsyncGenerator[Message, None]:
        """Answers a request; the router has read the key."""
        await self._start()
        async with aclosing(answer_call(self._app, call)) as messages:
            async for message in messages:
                yield message

    async def measure(self) -> tuple[str, str]:
        """Tells the name of this replica, and its measurements."""
        return self._name, self._app.state.service.metrics.render().decode()

    async def check_health(self) -> None:
        """Raises an error if the scheduler has ended; Ray then replaces this replica."""
        await self._start()
        if not self._app.state.service.worker.is_alive:
            raise RuntimeError("the scheduler has ended")

    async def _start(self) -> None:
        """Starts the scheduler's thread in the loop that runs requests."""
        if self._lifespan is None:
            self._lifespan = self._app.router.lifespan_context(self._app)
            await self._lifespan.__aenter__()

    async def __del__(self) -> None:
        """Ends the scheduler's thread; Ray calls this after the last request."""
        if self._lifespan is not None:
            await self._lifespan.__aexit__(None, None, None)
        self._session.close()


class FrontDeployment:
    """The application that Ray's HTTP proxy calls."""

    def __init__(self, handle: DeploymentHandle, server: ServingOptions) -> None:
        """Passes requests on to the replicas behind a handle."""
        self._handle = handle
        replicas = Replicas(
            answer=self._answer,
            measure=self._measure,
            lost_errors=(RayActorError, ReplicaUnavailableError),
            full_errors=(BackPressureError,),
        )
        self._front = Front(replicas, server)

    def __serve_build_asgi_app__(self) -> Starlette:
        """Makes the application; Ray calls this by its name."""
        return Starlette(routes=[Mount("/", self._front)])

    async def _answer(self, key: str, call: Call) -> AsyncGenerator[Message, None]:
        response = self._handle.options(stream=True).answer.remote(key, call)
        is_complete = False
        try:
            async for message in response:
                yield message
            is_complete = True
        finally:
            if not is_complete:
                response.cancel()

    async def _measure(self) -> Sequence[tuple[str, str]]:
        try:
            results = await self._handle.broadcast("measure").results_async(
                timeout_s=_MEASURE_S, return_exceptions=True
            )
        except (DeploymentUnavailableError, asyncio.TimeoutError, TimeoutError):
            return []
        return [result for result in results if not isinstance(result, BaseException)]


def app(arguments: dict[str, Any]) -> Any:
    """Makes Ray's application of the arguments in its config; see `ReplicaOptions`.

    Raises:
        ServingError: an argument is unknown, missing or wrong.
    """
    options, server = read_arguments(arguments)
    replica = serve.deployment(
        name="Replica",
        max_ongoing_requests=server.max_sequences,
        max_queued_requests=server.max_queue,
        graceful_shutdown_timeout_s=server.grace_s,
        health_check_period_s=2,
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": server.max_sequences,
        },
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        request_router_config={"request_router_class": "medusa_trt.serving.ray_app.AffinityRouter"},
    )(Replica)
    front = serve.deployment(
        name="Front",
        num_replicas=options.num_fronts,
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(FrontDeployment))
    return front.bind(replica.bind(options, server), server)
