"""The reading side of W6: members that fail at random, and the dead letters read at the end."""

from __future__ import annotations

import asyncio
import random

from dledger.client.admin import AsyncAdmin
from dledger.client.config import AdminConfig
from dledger.message import ReceivedMessage
from jepsen_tests.history import Dead, Value
from jepsen_tests.workloads.bodies import value_of
from jepsen_tests.workloads.group_consume import consume
from jepsen_tests.workloads.group_member import name_of
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Recorder, now_ns

_MEMBERS = 2
_FAILS = 0.25
_HOPELESS = 0.02
_BROKER_CHOOSES = 0.2
_DELAY_S = (0.1, 1.5)


async def run_retry_consume(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Two members of which a quarter of all deliveries fails; some messages always fail."""
    handling = _Failing(plan)
    config = AdminConfig(session=session_config(plan))
    async with AsyncAdmin(nameserver=plan.nameserver, config=config) as admin:
        dead = _DeadLetters(plan, recorder, admin)

        async def finished() -> bool:
            await dead.read()
            return handling.failed <= dead.values

        await consume(
            plan,
            recorder,
            stopping,
            _MEMBERS,
            handle=handling.handle,
            finished=finished,
            max_attempts=plan.retry_max + 1,
        )


class _Failing:
    """Fails as often as it should, and knows which messages have to come again or are dead."""

    def __init__(self, plan: WorkerPlan) -> None:
        self._seed = plan.seed
        self._chance = random.Random(f"{plan.seed}-failing")
        self.failed: set[Value] = set()

    def handle(self, message: ReceivedMessage, value: Value) -> bool:
        chance = self._chance
        hopeless = random.Random(f"{self._seed}-{value}").random() < _HOPELESS
        if not hopeless and chance.random() >= _FAILS:
            self.failed.discard(value)
            return True
        self.failed.add(value)
        delay_s = None if chance.random() < _BROKER_CHOOSES else chance.uniform(*_DELAY_S)
        message.nack(delay_s, reason="by chance")
        return False


class _DeadLetters:
    """Reads the group's dead letters, each once, and writes them down."""

    def __init__(self, plan: WorkerPlan, recorder: Recorder, admin: AsyncAdmin) -> None:
        self._plan = plan
        self._recorder = recorder
        self._letters = admin.dead_letters()
        self._next: dict[str, int] = {}
        self.values: set[Value] = set()

    async def read(self) -> None:
        group = self._plan.consumers
        for queue in await self._letters.queues(group):
            name = name_of(queue.queue)
            async for letter in self._letters.read(queue, self._next.get(name, 0)):
                message = letter.message
                self._next[name] = message.queue_offset + 1
                value = value_of(message.body)
                self.values.add(value)
                self._recorder.event(
                    Dead(
                        group=group,
                        value=value,
                        t=now_ns(),
                        queue=name,
                        offset=message.queue_offset,
                    )
                )
                self._recorder.counts["dead-ok"] += 1
