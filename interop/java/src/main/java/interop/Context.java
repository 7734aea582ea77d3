package interop;

import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** What a case works with: names of its own, and clients that are shut down after it. */
final class Context {
    static final long WAIT_MS = 60_000;
    private static final AtomicInteger INSTANCES = new AtomicInteger();

    final String nameserver;
    final String topic;
    final String group;
    private final Deque<Runnable> endings = new ArrayDeque<>();

    Context(String nameserver, String prefix, String name) {
        this.nameserver = nameserver;
        this.topic = prefix + "-" + name;
        this.group = prefix + "-" + name + "-group";
    }

    /** A producer with the client's defaults, started. */
    DefaultMQProducer producer() throws MQClientException {
        DefaultMQProducer producer = new DefaultMQProducer(group + "-producer");
        producer.setNamesrvAddr(nameserver);
        producer.setInstanceName(instance());
        producer.start();
        return atEnd(producer, producer::shutdown);
    }

    /** A consumer of this case's group from the earliest message, to be subscribed and started. */
    DefaultMQPushConsumer consumer() {
        return consumer(group);
    }

    DefaultMQPushConsumer consumer(String groupName) {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(groupName);
        consumer.setNamesrvAddr(nameserver);
        consumer.setInstanceName(instance());
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        return atEnd(consumer, consumer::shutdown);
    }

    Message message(String body) {
        return new Message(topic, body.getBytes(StandardCharsets.UTF_8));
    }

    Message message(String tag, String key, String body) {
        return new Message(topic, tag, key, body.getBytes(StandardCharsets.UTF_8));
    }

    <T> T atEnd(T client, Runnable ending) {
        endings.push(ending);
        return client;
    }

    void close() {
        for (Runnable ending : endings) {
            try {
                ending.run();
            } catch (RuntimeException problem) {
                problem.printStackTrace();
            }
        }
    }

    static String body(MessageExt message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }

    static void await(String what, BooleanSupplier condition) throws InterruptedException {
        await(what, WAIT_MS, condition);
    }

    static void await(String what, long limitMs, BooleanSupplier condition)
            throws InterruptedException {
        long deadline = System.nanoTime() + limitMs * 1_000_000;
        while (!condition.getAsBoolean()) {
            if (System.nanoTime() > deadline) {
                throw new IllegalStateException("not within " + limitMs + " ms: " + what);
            }
            Thread.sleep(20);
        }
    }

    static void check(boolean condition, String otherwise) {
        if (!condition) {
            throw new IllegalStateException(otherwise);
        }
    }

    // Clients of one process with the same instance name would share one connection and one id.
    private static String instance() {
        return ProcessHandle.current().pid() + "-" + INSTANCES.incrementAndGet();
    }
}
