"""Errors become answers, and fatal ones end the process."""

import asyncio

import pytest

from broker.dispatcher import Dispatcher, Place, Route
from broker.tasks import Tasks
from dledger.errors import (
    Corruption,
    CorruptRecordError,
    InvariantError,
    NotLeaderError,
    TopicNotFoundError,
)
from dledger.remoting.commands import Command


class RecordingConnection:
    id = 1
    is_closing = False

    def __init__(self):
        self.answers = []

    def reply(self, command, code=0, ext=None, remark=None, body=b""):
        command.answered = True
        self.answers.append((code, remark))

    def reply_error(self, command, error):
        command.answered = True
        self.answers.append(error)


class RecordingForwarder:
    def __init__(self):
        self.forwarded = []

    def forward(self, _connection, command):
        self.forwarded.append(command.code)


class Setup:
    def __init__(self, handle, place=Place.HERE, serving=True):
        self.fatal = []
        self.tasks = Tasks(self.fatal.append)
        self.forwarder = RecordingForwarder()
        self.connection = RecordingConnection()
        self.dispatcher = Dispatcher(
            is_serving=lambda: serving, tasks=self.tasks, on_fatal=self.fatal.append
        )
        if asyncio.iscoroutinefunction(handle):
            handle = self.dispatcher.background(handle)
        self.dispatcher.connect({5: Route(place, handle)}, self.forwarder)
        self.command = Command(5, 1)

    async def run(self):
        self.dispatcher.handle(self.connection, self.command)
        while len(self.tasks):
            await asyncio.sleep(0)
        return self.connection.answers


def raising(error):
    def handle(_connection, _command):
        raise error

    return handle


def raising_later(error):
    async def handle(_connection, _command):
        raise error

    return handle


@pytest.mark.parametrize("make", [raising, raising_later])
def test_a_refusal_is_answered(make):
    error = TopicNotFoundError("t")
    setup = Setup(make(error))
    assert asyncio.run(setup.run()) == [error]
    assert setup.fatal == []


@pytest.mark.parametrize("make", [raising, raising_later])
def test_a_lost_leadership_without_effect_is_redirected(make):
    setup = Setup(make(NotLeaderError()), place=Place.LEADER)
    assert asyncio.run(setup.run()) == []
    assert setup.forwarder.forwarded == [5]


def test_only_the_leaders_requests_are_redirected_by_a_follower():
    handled = []
    for place, forwarded in ((Place.LEADER, [5]), (Place.HERE, [])):
        setup = Setup(lambda *_: handled.append(1), place=place, serving=False)
        asyncio.run(setup.run())
        assert setup.forwarder.forwarded == forwarded
    assert handled == [1]


def test_what_a_follower_does_not_find_the_leader_may_have():
    for serving, forwarded in ((False, [5]), (True, [])):
        setup = Setup(raising(TopicNotFoundError("t")), Place.HERE_THEN_LEADER, serving)
        asyncio.run(setup.run())
        assert setup.forwarder.forwarded == forwarded


@pytest.mark.parametrize("make", [raising, raising_later])
@pytest.mark.parametrize(
    "error",
    [InvariantError("broken"), CorruptRecordError("file", 7, Corruption.BAD_CHECKSUM)],
)
def test_fatal_errors_are_answered_and_reported(make, error):
    setup = Setup(make(error))
    assert asyncio.run(setup.run()) == [error]
    assert setup.fatal == [error]


@pytest.mark.parametrize("make", [raising, raising_later])
def test_a_bug_costs_one_request(make, caplog):
    error = KeyError("bug")
    setup = Setup(make(error))
    assert asyncio.run(setup.run()) == [error]
    assert setup.fatal == []
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1


def test_unknown_codes_are_named():
    setup = Setup(raising(KeyError()))
    setup.command = Command(77, 1)
    assert asyncio.run(setup.run()) == [(3, " request type 77 not supported")]


def test_a_failed_background_task_is_fatal(caplog):
    async def run():
        setup = Setup(raising(KeyError()))

        async def loop():
            raise ValueError("bug")

        setup.tasks.spawn(loop(), "loop")
        while len(setup.tasks):
            await asyncio.sleep(0)
        return setup.fatal

    (error,) = asyncio.run(run())
    assert isinstance(error, ValueError)
    assert "name=loop" in caplog.text


def test_stopping_answers_requests_under_way_as_unknown():
    async def run():
        async def forever(_connection, _command):
            await asyncio.Event().wait()

        setup = Setup(forever)
        setup.dispatcher.handle(setup.connection, setup.command)
        await asyncio.sleep(0)
        await setup.tasks.close()
        (error,) = setup.connection.answers
        assert not error.definite
        assert setup.fatal == []

    asyncio.run(run())
