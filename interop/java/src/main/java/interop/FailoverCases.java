package interop;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.MessageExt;

/** The leader dies while clients with their default settings work. */
final class FailoverCases {
    private static final int COUNT = 600;
    private static final int KILL_AT = 200;
    private static final long PAUSE_MS = 10;
    private static final long LIMIT_MS = 120_000;

    private FailoverCases() {}

    static void register(Map<String, Case> cases) {
        cases.put("leader-killed", FailoverCases::leaderKilled);
        cases.put("standstill", FailoverCases::standstill);
    }

    /** Nothing that was acknowledged is lost, and the consumer sees all of it. */
    private static String leaderKilled(Context context) throws Exception {
        Set<String> seen = ConcurrentHashMap.newKeySet();
        DefaultMQPushConsumer consumer = context.consumer();
        consumer.subscribe(context.topic, "*");
        consumer.registerMessageListener(
                (MessageListenerConcurrently)
                        (messages, view) -> {
                            messages.forEach(message -> seen.add(Context.body(message)));
                            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
                        });
        consumer.start();
        DefaultMQProducer producer = context.producer();
        Set<String> acknowledged = ConcurrentHashMap.newKeySet();
        int failures = 0;
        long deadline = System.currentTimeMillis() + LIMIT_MS;
        for (int at = 0; acknowledged.size() < COUNT; at++) {
            Context.check(System.currentTimeMillis() < deadline, acknowledged.size() + " sent");
            if (at == KILL_AT) {
                Output.event("kill-leader");
            }
            try {
                String body = "m" + at;
                if (producer.send(context.message(body)).getSendStatus() == SendStatus.SEND_OK) {
                    acknowledged.add(body);
                }
            } catch (Exception failed) {
                failures++;
            }
            Thread.sleep(PAUSE_MS);
        }
        Context.await("all consumed", LIMIT_MS, () -> seen.containsAll(acknowledged));
        return COUNT + " acknowledged, all consumed; " + failures + " sends failed";
    }

    /** Tells of every send and every message, until the runner closes our standard input. */
    private static String standstill(Context context) throws Exception {
        DefaultMQPushConsumer consumer = context.consumer();
        consumer.subscribe(context.topic, "*");
        consumer.registerMessageListener(
                (MessageListenerConcurrently)
                        (messages, view) -> {
                            for (MessageExt message : messages) {
                                Output.event(
                                        "consumed",
                                        "began", Long.parseLong(Context.body(message)),
                                        "ended", System.currentTimeMillis(),
                                        "broker", message.getBrokerName());
                            }
                            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
                        });
        consumer.start();
        DefaultMQProducer producer = context.producer();
        AtomicBoolean isOver = new AtomicBoolean();
        Thread input = new Thread(() -> awaitEndOfInput(isOver));
        input.setDaemon(true);
        input.start();
        while (!isOver.get()) {
            long began = System.currentTimeMillis();
            try {
                SendResult sent = producer.send(context.message(String.valueOf(began)));
                String broker = sent.getMessageQueue().getBrokerName();
                long ended = System.currentTimeMillis();
                Output.event("sent", "began", began, "ended", ended, "broker", broker);
            } catch (Exception failed) {
                long ended = System.currentTimeMillis();
                Output.event("failed", "began", began, "ended", ended, "why", failed.toString());
            }
            Thread.sleep(PAUSE_MS);
        }
        return "measured";
    }

    private static void awaitEndOfInput(AtomicBoolean isOver) {
        try (BufferedReader input = new BufferedReader(new InputStreamReader(System.in))) {
            while (input.readLine() != null) {
                // Only the end counts.
            }
        } catch (java.io.IOException closed) {
            // The runner is gone: that is an end as well.
        }
        isOver.set(true);
    }
}
