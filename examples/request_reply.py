"""Asks a question by message and waits for the answer."""

import threading

from dledger import ConsumeFrom, Message, Producer, PushConsumer, ReceivedMessage

TOPIC = "example-questions"


def main() -> None:
    with (
        Producer("example-answers") as answering,
        PushConsumer(
            "example-answerers",
            subscriptions={TOPIC: "*"},
            consume_from=ConsumeFrom.EARLIEST,
        ) as consumer,
    ):

        def answer(question: ReceivedMessage) -> None:
            answering.reply(question, question.body.upper())

        answerer = threading.Thread(target=consumer.run, args=(answer,))
        answerer.start()
        with Producer("example-asking") as producer:
            print(producer.request(Message(TOPIC, b"how loud?"), timeout_s=10).body.decode())
        consumer.stop()
        answerer.join()


if __name__ == "__main__":
    main()
