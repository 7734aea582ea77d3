"""The table of request codes: which processor, and whether only the leader may answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.dispatcher import Handle, HandleAsync, Place, Route
from broker.processors.assignment import AssignmentProcessor
from broker.processors.clients import ClientProcessor
from broker.processors.groups import GroupProcessor
from broker.processors.info import InfoProcessor
from broker.processors.inspection import InspectionProcessor
from broker.processors.locks import LockProcessor
from broker.processors.offsets import OffsetProcessor
from broker.processors.pop import PopProcessor
from broker.processors.pop_acks import PopAckProcessor
from broker.processors.pull import PullProcessor
from broker.processors.queries import QueryProcessor
from broker.processors.recall import RecallProcessor
from broker.processors.relays import RelayProcessor
from broker.processors.replicas import ReplicaProcessor
from broker.processors.reply import ReplyProcessor
from broker.processors.resets import ResetProcessor
from broker.processors.send import SendProcessor
from broker.processors.send_back import SendBackProcessor
from broker.processors.settings import SettingsProcessor
from broker.processors.statistics import StatisticsProcessor
from broker.processors.topics import TopicProcessor
from broker.processors.transactions import TransactionProcessor
from dledger.codes import EXT_NO_FORWARD
from dledger.codes import RequestCode as Code
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection


@dataclass(frozen=True, slots=True)
class Processors:
    """One of each family."""

    send: SendProcessor
    send_back: SendBackProcessor
    recall: RecallProcessor
    reply: ReplyProcessor
    pull: PullProcessor
    offsets: OffsetProcessor
    clients: ClientProcessor
    topics: TopicProcessor
    groups: GroupProcessor
    queries: QueryProcessor
    info: InfoProcessor
    replicas: ReplicaProcessor
    locks: LockProcessor
    transactions: TransactionProcessor
    resets: ResetProcessor
    assignment: AssignmentProcessor
    statistics: StatisticsProcessor
    inspection: InspectionProcessor
    relays: RelayProcessor
    settings: SettingsProcessor
    pop: PopProcessor
    pop_acks: PopAckProcessor


def make_routes(
    processors: Processors, background: Callable[[HandleAsync], Handle]
) -> dict[int, Route]:
    """Returns the handler of every request code that the broker knows.

    Args:
        processors: The processors.
        background: Makes a handler out of a coroutine function.
    """
    places = (
        (Place.LEADER, _by_the_leader(processors, background)),
        (Place.HERE, _here(processors, background)),
        (Place.HERE_THEN_LEADER, _here_then_by_the_leader(processors, background)),
    )
    return {
        int(code): Route(place, handle)
        for place, handlers in places
        for code, handle in handlers.items()
    }


def _by_the_leader(
    p: Processors, background: Callable[[HandleAsync], Handle]
) -> dict[Code, Handle]:
    return {
        Code.SEND_MESSAGE: p.send.send,
        Code.SEND_MESSAGE_V2: p.send.send,
        Code.SEND_BATCH_MESSAGE: p.send.send,
        Code.CONSUMER_SEND_MESSAGE_BACK: p.send_back.send_back,
        Code.RECALL_MESSAGE: p.recall.recall,
        Code.SEND_REPLY_MESSAGE: background(p.reply.reply),
        Code.SEND_REPLY_MESSAGE_V2: background(p.reply.reply),
        Code.QUERY_CONSUMER_OFFSET: background(p.offsets.query_consumer_offset),
        Code.UPDATE_CONSUMER_OFFSET: p.offsets.update_consumer_offset,
        Code.SEARCH_OFFSET_BY_TIMESTAMP: p.offsets.search_by_time,
        Code.GET_MAX_OFFSET: background(p.offsets.max_offset),
        Code.GET_MIN_OFFSET: p.offsets.min_offset,
        Code.GET_EARLIEST_MESSAGE_STORE_TIME: p.offsets.earliest_store_time,
        Code.UPDATE_AND_CREATE_TOPIC: background(p.topics.create),
        Code.DELETE_TOPIC_IN_BROKER: background(p.topics.delete),
        Code.GET_TOPIC_STATS_INFO: p.topics.stats,
        Code.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP: background(p.groups.put),
        Code.DELETE_SUBSCRIPTION_GROUP: background(p.groups.delete),
        Code.GET_CONSUME_STATS: p.statistics.consume_stats,
        Code.GET_BROKER_CONSUME_STATS: p.statistics.all_consume_stats,
        Code.GET_CONSUMER_LIST_BY_GROUP: p.clients.consumer_list,
        Code.TRANSFER_LEADER: background(p.replicas.transfer_leader),
        Code.ADD_REPLICA: background(p.replicas.add),
        Code.REMOVE_REPLICA: background(p.replicas.remove),
        Code.GET_REPLICAS: p.replicas.configuration,
        Code.INVOKE_BROKER_TO_RESET_OFFSET: background(p.resets.reset),
        Code.CLONE_GROUP_OFFSET: background(p.resets.clone),
        Code.END_TRANSACTION: background(p.transactions.end),
        Code.QUERY_ASSIGNMENT: background(p.assignment.query),
        Code.SET_MESSAGE_REQUEST_MODE: background(p.assignment.set_mode),
        Code.POP_MESSAGE: p.pop.pop,
        Code.PEEK_MESSAGE: p.pop.peek,
        Code.NOTIFICATION: p.pop.notify,
        Code.POLLING_INFO: p.pop.polling_info,
        Code.ACK_MESSAGE: p.pop_acks.ack,
        Code.BATCH_ACK_MESSAGE: p.pop_acks.batch_ack,
        Code.CHANGE_MESSAGE_INVISIBLETIME: p.pop_acks.change,
        Code.LOCK_BATCH_MQ: background(p.locks.lock),
        Code.UNLOCK_BATCH_MQ: background(p.locks.unlock),
    }


def _here(p: Processors, background: Callable[[HandleAsync], Handle]) -> dict[Code, Handle]:
    return {
        Code.PULL_MESSAGE: p.pull.pull,
        Code.LITE_PULL_MESSAGE: p.pull.pull,
        Code.HEART_BEAT: p.clients.heartbeat,
        Code.UNREGISTER_CLIENT: p.clients.unregister,
        Code.CHECK_CLIENT_CONFIG: p.clients.check_config,
        Code.GET_CONSUMER_CONNECTION_LIST: p.clients.consumer_connections,
        Code.GET_PRODUCER_CONNECTION_LIST: p.clients.producer_connections,
        Code.GET_ALL_TOPIC_CONFIG: p.topics.all_configs,
        Code.GET_SYSTEM_TOPIC_LIST_FROM_BROKER: p.topics.system_topics,
        Code.QUERY_TOPIC_CONSUME_BY_WHO: p.topics.consumers,
        Code.GET_ALL_SUBSCRIPTION_GROUP_CONFIG: p.groups.all_configs,
        Code.GET_BROKER_CONFIG: p.settings.show,
        Code.UPDATE_BROKER_CONFIG: background(p.settings.update),
        Code.GET_BROKER_RUNTIME_INFO: p.info.runtime_info,
        Code.GET_ALL_CONSUMER_OFFSET: p.inspection.all_offsets,
        Code.QUERY_CONSUME_TIME_SPAN: p.inspection.time_spans,
        Code.QUERY_CONSUME_QUEUE: p.inspection.consume_queue,
        Code.GET_ALL_PRODUCER_INFO: p.inspection.producers,
        Code.QUERY_TOPICS_BY_CONSUMER: p.inspection.topics_of_group,
        Code.QUERY_SUBSCRIPTION_BY_CONSUMER: p.inspection.subscription,
        Code.LOCATE_MESSAGE: p.inspection.locate,
        Code.GET_SUBSCRIPTION_DIFFERENCES: p.inspection.differences,
        Code.GET_CONSUMER_RUNNING_INFO: background(p.relays.running_info),
        Code.CONSUME_MESSAGE_DIRECTLY: background(p.relays.consume_directly),
        Code.INVOKE_BROKER_TO_GET_CONSUMER_STATUS: background(p.relays.consumer_status),
        Code.VIEW_BROKER_STATS_DATA: p.statistics.view,
    }


def _here_then_by_the_leader(
    p: Processors, background: Callable[[HandleAsync], Handle]
) -> dict[Code, Handle]:
    topic_config_now = background(p.topics.config_now)

    def topic_config(connection: Connection, command: Command) -> None:
        # Who does not want to be forwarded takes us for the leader, and our word for the last.
        now = command.ext.get(EXT_NO_FORWARD)
        (topic_config_now if now else p.topics.config)(connection, command)

    return {
        Code.QUERY_MESSAGE: p.queries.query,
        Code.VIEW_MESSAGE_BY_ID: p.queries.view,
        Code.GET_TOPIC_CONFIG: topic_config,
        Code.GET_SUBSCRIPTION_GROUP_CONFIG: p.groups.config,
    }
