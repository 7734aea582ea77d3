"""Creates topics and groups, looks at them, and moves a group to another place."""

from dledger import Admin, ConsumeFrom, GroupConfig, Message, Producer

TOPIC = "example-admin"
GROUP = "example-admin-readers"


def main() -> None:
    with Admin() as admin, Producer("example") as producer:
        admin.create_topic(TOPIC, queue_count=2)
        admin.create_group(GroupConfig(name=GROUP, retry_max=3))
        for number in range(6):
            result = producer.send(Message(TOPIC, b"%d" % number, keys=[f"key-{number}"]))
        print("found by key:", admin.messages_by_key(TOPIC, "key-5")[0].body.decode())
        print("found by id:", admin.message(result.message_id, TOPIC).body.decode())
        print("messages:", sum(b.offset_max - b.offset_min for b in admin.bounds(TOPIC)))
        admin.reset_offsets(GROUP, TOPIC, ConsumeFrom.LATEST)
        print("lag:", sum(progress.lag for progress in admin.consumer_progress(GROUP, TOPIC)))
        admin.reset_offsets(GROUP, TOPIC, ConsumeFrom.EARLIEST)
        print("lag:", sum(progress.lag for progress in admin.consumer_progress(GROUP, TOPIC)))
        admin.delete_group(GROUP)
        admin.delete_topic(TOPIC)


if __name__ == "__main__":
    main()
