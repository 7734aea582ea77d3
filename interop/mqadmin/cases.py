"""What mqadmin is asked, and what a user expects to read in answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What there is to ask for in the cluster of this run."""

    cluster: str
    broker: str
    leader: str
    topic: str
    group: str
    producer_group: str
    offset_id: str
    unique_key: str
    key: str
    client_id: str
    queue_id: int
    queue_offset: int
    message_broker: str
    begin: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command line.

    Attributes:
        expected: Regular expressions that must all be found in the output.
        refused: Regular expressions that must not be.
        endless: It goes on until it is stopped: enough when everything expected was seen.
        is_refusal: An exception is what is expected.
        version: Only with tools whose version begins so.
    """

    arguments: Sequence[str]
    expected: Sequence[str]
    refused: Sequence[str] = field(default_factory=tuple)
    endless: bool = False
    is_refusal: bool = False
    version: str = ""

    @property
    def command(self) -> str:
        """The subcommand."""
        return self.arguments[0]


def cases(f: Facts) -> list[Case]:
    """Returns all commands in an order in which each finds what it needs."""
    return [
        *_cluster(f),
        *_topics(f),
        *_groups(f),
        *_messages(f),
        *_printing_and_sending(f),
        *_settings(f),
        *_endings(f),
    ]


def _case(line: Sequence[str], *expected: str, **more: object) -> Case:
    return Case(arguments=list(line), expected=expected, **more)  # type: ignore[arg-type]


def _cluster(f: Facts) -> list[Case]:
    replica = rf"{f.broker}\s+0\s+{f.leader}"
    return [
        _case(["clusterList"], replica, r"broker-b\s+[123]\s", r"dledger"),
        _case(["clusterList", "-m"], rf"{f.cluster}\s+{f.broker}\s+[1-9]\d*|{f.broker}"),
        _case(["clusterRT", "-c", f.cluster, "-a", "3", "-i", "1"], f.broker, endless=True),
        _case(
            ["brokerStatus", "-b", f.leader],
            r"brokerVersionDesc\s+: dledger",
            r"putTps\s+: [1-9]\d*\.\d+ ",
            r"raftRole\s+: leader",
        ),
        _case(["brokerStatus", "-c", f.cluster], rf"{f.leader}\s+putTps", r"broker|putTps"),
        _case(["getNamesrvConfig"], r"listenPort\s+=\s*\d+"),
        _case(
            ["getBrokerConfig", "-b", f.leader], rf"broker_name\s+=\s+{f.broker}", r"store\.flush"
        ),
    ]


def _topics(f: Facts) -> list[Case]:
    return [
        _case(["topicList"], rf"(?m)^{f.topic}$", "TBW102"),
        _case(["topicList", "-c"], rf"{f.cluster}\s+{f.topic}\s+{f.group}"),
        _case(
            ["topicRoute", "-t", f.topic], f'"brokerName":"{f.broker}"', r'0:"127\.0\.0\.\d+:\d+"'
        ),
        _case(["topicStatus", "-t", f.topic], rf"{f.broker}\s+0\s+0\s+[1-9]\d*\s+20\d\d-"),
        _case(["topicClusterList", "-t", f.topic], rf"(?m)^{f.cluster}$"),
        _case(
            ["updateTopic", "-c", f.cluster, "-t", "made-by-mqadmin", "-r", "3", "-w", "3"],
            rf"create topic to {f.leader} success",
            "readQueueNums=3",
        ),
        _case(["topicStatus", "-t", "made-by-mqadmin"], rf"{f.broker}\s+2\s+0\s+0"),
        _case(["statsAll", "-t", f.topic], rf"{f.topic}\s+{f.group}\s+\d+\s+[1-9]\d*\.\d+"),
    ]


def _groups(f: Facts) -> list[Case]:
    return [
        _case(
            ["updateSubGroup", "-c", f.cluster, "-g", "group-by-mqadmin", "-r", "7"],
            rf"create subscription group to {f.leader} success",
        ),
        _case(
            ["consumerProgress", "-g", f.group],
            rf"{f.topic}\s+{f.broker}\s+0\s+\d+\s+\d+",
            r"Consume TPS: [1-9]\d*\.\d+",
            "Diff Total",
        ),
        _case(["consumerProgress"], rf"{f.group}\s+1\s"),
        _case(
            ["consumerConnection", "-g", f.group],
            f.client_id,
            rf"(?m)^{f.topic}\s+\*\s*$|Topic: {f.topic}",
        ),
        _case(["producerConnection", "-g", f.producer_group, "-t", f.topic], "PYTHON"),
        _case(
            ["consumerStatus", "-g", f.group],
            f.client_id,
            "Same subscription",
            "Rebalance OK",
            refused=("maybe blocked",),
        ),
        _case(
            ["consumerStatus", "-g", f.group, "-i", f.client_id],
            "#Consumer Properties#",
            rf"{f.topic}\s+{f.broker}\s+0\s+\d+",
            "#Consumer RT&TPS#",
        ),
        _case(
            ["cloneGroupOffset", "-s", f.group, "-d", "group-by-mqadmin", "-t", f.topic],
            "clone group offset success",
        ),
        _case(
            ["resetOffsetByTime", "-g", "group-by-mqadmin", "-t", f.topic, "-s", "-1"],
            rf"{f.broker}\s+0\s+\d+",
        ),
    ]


def _messages(f: Facts) -> list[Case]:
    queue = str(f.queue_id)
    return [
        *(
            _case(
                ["queryMsgById", *more, "-i", f.offset_id],
                rf"Topic:\s+{f.topic}",
                f.group,
                version=version,
            )
            for version, more in (("4", []), ("5", ["-t", f.topic]))
        ),
        _case(["queryMsgByKey", "-t", f.topic, "-k", f.key], rf"{f.unique_key}|{f.offset_id}"),
        _case(
            ["queryMsgByUniqueKey", "-t", f.topic, "-i", f.unique_key],
            rf"Topic:\s+{f.topic}",
            r"Queue Offset:\s+\d+",
        ),
        _case(
            [
                "queryMsgByUniqueKey",
                "-t",
                f.topic,
                "-i",
                f.unique_key,
                "-g",
                f.group,
                "-d",
                f.client_id,
            ],
            "CR_SUCCESS",
        ),
        _case(
            [
                "queryMsgByOffset",
                "-t",
                f.topic,
                "-b",
                f.message_broker,
                "-i",
                queue,
                "-o",
                str(f.queue_offset),
            ],
            rf"Topic:\s+{f.topic}",
            f.offset_id,
        ),
    ]


def _printing_and_sending(f: Facts) -> list[Case]:
    queue = str(f.queue_id)
    return [
        _case(
            ["printMsg", "-t", f.topic, "-b", f.begin, "-d", "true"],
            rf"topic={f.topic}|Topic.*{f.topic}|BODY",
        ),
        _case(
            ["printMsgByQueue", "-t", f.topic, "-a", f.message_broker, "-i", queue, "-p", "true"],
            r"MSGID|msgId",
        ),
        _case(["sendMessage", "-t", f.topic, "-p", "from mqadmin"], "SEND_OK"),
        _case(["queryMsgTraceById", "-i", f.unique_key], "Pub", f.group, "success"),
        _case(["sendMessage", "-t", f.topic, "-p", "traced", "-m", "true"], "SEND_OK"),
        _case(["consumeMessage", "-t", f.topic, "-c", "5"], r"MSGID|Consume ok"),
        _case(
            [
                "consumeMessage",
                "-t",
                f.topic,
                "-b",
                f.message_broker,
                "-i",
                queue,
                "-o",
                "0",
                "-c",
                "2",
            ],
            "Consume ok",
        ),
        _case(["checkMsgSendRT", "-t", f.topic, "-a", "5", "-s", "64"], r"Avg RT: \d+\.\d+"),
    ]


def _settings(f: Facts) -> list[Case]:
    return [
        _case(
            ["updateBrokerConfig", "-b", f.leader, "-k", "log_level", "-v", "INFO"],
            "update broker config success",
        ),
        _case(
            ["updateBrokerConfig", "-b", f.leader, "-k", "store.segment_bytes", "-v", "1"],
            "cannot be changed while the broker runs",
            is_refusal=True,
        ),
        _case(
            ["updateKvConfig", "-s", "ours", "-k", "colour", "-v", "blue"],
            "create or update kv config to namespace success",
        ),
        _case(["deleteKvConfig", "-s", "ours", "-k", "colour"], "delete kv config .*success"),
        _case(
            ["wipeWritePerm", "-b", f.broker], rf"wipe write perm of broker\[{f.broker}\].*[1-9]\d*"
        ),
        _case(["topicRoute", "-t", f.topic], r'"perm":4'),
        _case(
            ["addWritePerm", "-b", f.broker], rf"add write perm of broker\[{f.broker}\].*[1-9]\d*"
        ),
        _case(["topicRoute", "-t", f.topic], r'"perm":6', refused=(r'"perm":4',)),
    ]


def _endings(f: Facts) -> list[Case]:
    return [
        _case(["deleteSubGroup", "-c", f.cluster, "-g", "group-by-mqadmin"], "success"),
        _case(
            ["deleteTopic", "-c", f.cluster, "-t", "made-by-mqadmin"],
            r"delete topic \[made-by-mqadmin\] from cluster .* success",
        ),
        _case(["brokerConsumeStats", "-b", f.leader], rf"{f.topic}\s+{f.group}"),
        _case(["producer", "-b", f.leader], f.producer_group, version="5"),
    ]
