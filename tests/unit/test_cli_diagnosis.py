"""What the doctor finds wrong, from made-up answers."""

from cli.diagnosis import Level, Observation, diagnose, worst

NS = "ns:1"


def replica(number, *, silent=False, leader=False, group="broker-a", **table):
    values = {
        "replicaId": f"{group}-{number}",
        "raftServing": str(leader).lower(),
        "raftTerm": "3",
        "commitIndex": "1000",
        "appliedIndex": "1000",
        "wallClockMs": "1700000000000",
        "programVersion": "0.1.0",
        "commitLogDiskRatio": "0.01",
        "diskFull": "false",
        **{name: str(value) for name, value in table.items()},
    }
    return Observation(
        group=group,
        address=f"h:{number}",
        table=None if silent else values,
        asked_ms=1_700_000_000_000,
        round_trip_ms=2,
    )


def healthy():
    return [replica(0, leader=True), replica(1), replica(2)]


def routes(leader=0, numbers=(0, 1, 2)):
    others = [f"h:{n}" for n in numbers if n != leader]
    return {NS: {"broker-a": {0: f"h:{leader}", **dict(enumerate(others, 1))}}}


def bad(replicas, known=None, differences=None):
    findings = diagnose(known or routes(), replicas, differences or {})
    return {(f.check, f.level): f.text for f in findings if f.level > Level.GOOD}


def test_a_healthy_cluster():
    findings = diagnose(routes(), healthy(), {})
    assert worst(findings) is Level.GOOD
    wanted = {"nameserver", "quorum", "leader", "lag", "disk", "route", "clocks", "versions"}
    assert {f.check for f in findings} == wanted | {"subscriptions"}


def test_one_silent_replica_of_three_is_a_problem_of_five_a_warning():
    found = bad([replica(0, leader=True), replica(1), replica(2, silent=True)])
    assert "2 of 3 replicas answer, silent: h:2" in found["quorum", Level.PROBLEM]
    five = [replica(0, leader=True), *(replica(n) for n in (1, 2, 3)), replica(4, silent=True)]
    assert ("quorum", Level.WARNING) in bad(five, routes(numbers=range(4)))


def test_who_catches_up_does_not_count():
    members = "broker-a-0=h:0;broker-a-1=h:1;broker-a-2=h:2;broker-a-3=h:3"
    leader = replica(0, leader=True, raftMembers=members, raftLearners="broker-a-3")
    all_voters = [leader, replica(1), replica(2)]
    known = routes(numbers=range(4))
    assert ("quorum", Level.PROBLEM) not in bad([*all_voters, replica(3)], known)
    text = bad([*all_voters, replica(3, silent=True)], known)["quorum", Level.WARNING]
    assert "3 of 3 replicas answer, 1 more are catching up" in text
    assert "silent: h:3" in text
    # Three of four would be a majority; but it is two of three.
    found = bad([leader, replica(1), replica(2, silent=True), replica(3)], known)
    assert "2 of 3 replicas answer" in found["quorum", Level.PROBLEM]


def test_no_leader():
    found = bad([replica(n) for n in range(3)])
    assert "nobody serves" in found["leader", Level.PROBLEM]


def test_of_two_that_believe_to_lead_the_newer_one_counts():
    both = [replica(0, leader=True, raftTerm=2), replica(1, leader=True), replica(2)]
    assert "takes h:0 for the leader, it is h:1" in bad(both)["route", Level.PROBLEM]
    assert ("route", Level.PROBLEM) not in bad(both, routes(leader=1))


def test_a_follower_that_no_nameserver_knows():
    found = bad(healthy(), routes(numbers=(0, 1)))
    assert "does not know broker-a-2" in found["route", Level.WARNING]


def test_a_nameserver_that_is_down():
    found = bad(healthy(), {**routes(), "ns:2": None})
    assert found == {("nameserver", Level.PROBLEM): "ns:2 does not answer"}


def test_a_replica_that_is_behind():
    late = [replica(0, leader=True, commitIndex=50_000), replica(1, appliedIndex=49_999)]
    found = bad([*late, replica(2, appliedIndex=7)])
    assert "broker-a-2 is 49993 entries behind" in found["lag", Level.WARNING]


def test_disks():
    found = bad([replica(0, leader=True), replica(1, diskFull="true"), replica(2)])
    assert "the disk of broker-a-1 is full" in found["disk", Level.PROBLEM]
    found = bad([replica(0, leader=True, commitLogDiskRatio=0.9), replica(1), replica(2)])
    assert "takes 90% of its disk" in found["disk", Level.WARNING]


def test_clocks_that_are_apart():
    found = bad([replica(0, leader=True), replica(1, wallClockMs=1_700_000_002_000), replica(2)])
    assert "clocks are 2000 ms apart" in found["clocks", Level.WARNING]
    assert "broker-a-1" in found["clocks", Level.WARNING]


def test_versions_that_differ():
    found = bad([replica(0, leader=True), replica(1, programVersion="0.2.0"), replica(2)])
    assert "0.1.0: broker-a-0, broker-a-2; 0.2.0: broker-a-1" in found["versions", Level.WARNING]


def test_subscriptions_that_differ_show_one_member_of_each_kind():
    members = {"c1": {"t": "a"}, "c2": {"t": "b"}, "c3": {"t": "a"}}
    found = bad(healthy(), differences={"g": members})
    assert found["subscriptions", Level.PROBLEM].endswith("different things: c1: t a; c2: t b")


def test_nobody_at_all():
    assert ("brokers", Level.PROBLEM) in bad([], {NS: {}})
