"""Reads a queue from any place: an offset, a time, its ends; and keeps a place for the group."""

import time

from dledger import Admin, Message, Producer, PullConsumer

TOPIC = "example-journal"


def main() -> None:
    with Admin() as admin:
        admin.create_topic(TOPIC, queue_count=1)
    with Producer("example") as producer:
        for number in range(3):
            producer.send(Message(TOPIC, b"entry %d" % number))
        time.sleep(0.05)
        noon = int(time.time() * 1000)
        for number in range(3, 6):
            producer.send(Message(TOPIC, b"entry %d" % number))

    with PullConsumer("example-journal-reader") as consumer:
        [queue] = consumer.queues(TOPIC)
        consumer.seek(queue, 4)
        print("from offset 4:", [m.body.decode() for m in consumer.pull(queue)])
        consumer.seek_to_time(queue, noon)
        print("since noon:", [m.body.decode() for m in consumer.pull(queue)])
        consumer.seek_to_begin(queue)
        print("the first:", [m.body.decode() for m in consumer.pull(queue, count_max=1)])
        consumer.commit()  # the group goes on from here, in another process too
        print("committed:", consumer.committed(queue))


if __name__ == "__main__":
    main()
