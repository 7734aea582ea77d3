package interop;

import java.lang.reflect.InvocationTargetException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** What is delivered later, or perhaps: delays, transactions, retries. */
final class LaterCases {
    /** The client's poll and the machine's load; earliness is never excused. */
    private static final long LATE_MS = 3_000;
    private static final long CHECK_BACK_LIMIT_MS = 150_000;

    private LaterCases() {}

    static void register(Map<String, Case> cases) {
        cases.put("delay-levels", LaterCases::levels);
        cases.put("delay-timers", LaterCases::timers);
        cases.put("transaction", LaterCases::transaction);
        cases.put("retry-dlq", LaterCases::retry);
        cases.put("reset-offset", LaterCases::reset);
    }

    /** Sets something of a message that only newer clients have. */
    private static void set(Message message, String method, long value) throws Exception {
        try {
            Message.class.getMethod(method, long.class).invoke(message, value);
        } catch (NoSuchMethodException absent) {
            throw new NotInClientException("no Message." + method);
        } catch (InvocationTargetException problem) {
            throw new IllegalStateException(problem.getCause());
        }
    }

    private static String levels(Context context) throws Exception {
        Map<String, Long> due = new ConcurrentHashMap<>();
        Map<String, Long> came = arrivals(context);
        DefaultMQProducer producer = context.producer();
        long[] delays = {1_000, 5_000, 10_000};
        for (int level = 1; level <= delays.length; level++) {
            Message message = context.message("level" + level);
            message.setDelayTimeLevel(level);
            due.put("level" + level, System.currentTimeMillis() + delays[level - 1]);
            producer.send(message);
        }
        return onTime(due, came);
    }

    private static String timers(Context context) throws Exception {
        Map<String, Long> due = new ConcurrentHashMap<>();
        Map<String, Long> came = arrivals(context);
        Message seconds = context.message("seconds");
        set(seconds, "setDelayTimeSec", 2);
        Message millis = context.message("millis");
        set(millis, "setDelayTimeMs", 3_300);
        Message at = context.message("at");
        long deliver = System.currentTimeMillis() + 4_000;
        set(at, "setDeliverTimeMs", deliver);
        DefaultMQProducer producer = context.producer();
        due.put("at", deliver);
        producer.send(at);
        due.put("seconds", System.currentTimeMillis() + 2_000);
        producer.send(seconds);
        due.put("millis", System.currentTimeMillis() + 3_300);
        producer.send(millis);
        return onTime(due, came);
    }

    private static Map<String, Long> arrivals(Context context) throws Exception {
        Map<String, Long> came = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = context.consumer();
        consumer.subscribe(context.topic, "*");
        consumer.registerMessageListener(
                (MessageListenerConcurrently)
                        (messages, view) -> {
                            long now = System.currentTimeMillis();
                            messages.forEach(message -> came.putIfAbsent(Context.body(message), now));
                            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
                        });
        consumer.start();
        return came;
    }

    private static String onTime(Map<String, Long> due, Map<String, Long> came) throws Exception {
        Context.await("all delivered", () -> came.size() == due.size());
        List<String> late = new ArrayList<>();
        for (Map.Entry<String, Long> one : due.entrySet()) {
            long lateMs = came.get(one.getKey()) - one.getValue();
            late.add(one.getKey() + " +" + lateMs + " ms");
            Context.check(lateMs >= 0, one.getKey() + " came early: " + lateMs + " ms");
            Context.check(lateMs < LATE_MS, one.getKey() + " came late: " + lateMs + " ms");
        }
        Collections.sort(late);
        return String.join(", ", late);
    }

    private static String transaction(Context context) throws Exception {
        List<String> seen = Collections.synchronizedList(new ArrayList<>());
        DefaultMQPushConsumer consumer = context.consumer();
        consumer.subscribe(context.topic, "*");
        ConsumeCases.collect(consumer, seen);
        consumer.start();
        Map<String, Integer> checks = new ConcurrentHashMap<>();
        TransactionMQProducer producer = new TransactionMQProducer(context.group + "-producer");
        producer.setNamesrvAddr(context.nameserver);
        producer.setTransactionListener(
                new TransactionListener() {
                    @Override
                    public LocalTransactionState executeLocalTransaction(Message half, Object tag) {
                        return decide(new String(half.getBody()), false);
                    }

                    @Override
                    public LocalTransactionState checkLocalTransaction(MessageExt half) {
                        checks.merge(Context.body(half), 1, Integer::sum);
                        return decide(Context.body(half), true);
                    }
                });
        producer.start();
        context.atEnd(producer, producer::shutdown);
        String[] bodies = {"commit", "rollback", "unknown-commit", "unknown-rollback"};
        for (String body : bodies) {
            producer.sendMessageInTransaction(context.message(body), null);
        }
        Context.await("the committed one", () -> seen.contains("commit"));
        Context.await(
                "both are checked and the one is committed",
                CHECK_BACK_LIMIT_MS,
                () -> checks.size() >= 2 && seen.contains("unknown-commit"));
        Thread.sleep(1_000);
        List<String> sorted = new ArrayList<>(seen);
        Collections.sort(sorted);
        Context.check(sorted.equals(List.of("commit", "unknown-commit")), "got " + sorted);
        return "committed, rolled back, and both after a check-back";
    }

    private static LocalTransactionState decide(String body, boolean isCheck) {
        if (!isCheck && body.startsWith("unknown")) {
            return LocalTransactionState.UNKNOW;
        }
        return body.endsWith("commit")
                ? LocalTransactionState.COMMIT_MESSAGE
                : LocalTransactionState.ROLLBACK_MESSAGE;
    }

    private static String retry(Context context) throws Exception {
        List<String> seen = Collections.synchronizedList(new ArrayList<>());
        AtomicInteger tries = new AtomicInteger();
        DefaultMQPushConsumer consumer = context.consumer();
        consumer.subscribe(context.topic, "*");
        consumer.setMaxReconsumeTimes(2);
        consumer.registerMessageListener(
                (MessageListenerConcurrently)
                        (messages, view) -> {
                            view.setDelayLevelWhenNextConsume(1);
                            for (MessageExt message : messages) {
                                seen.add(Context.body(message) + message.getReconsumeTimes());
                                if (Context.body(message).equals("never")) {
                                    tries.incrementAndGet();
                                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                                }
                                if (message.getReconsumeTimes() == 0) {
                                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                                }
                            }
                            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
                        });
        consumer.start();
        DefaultMQProducer producer = context.producer();
        producer.send(context.message("never"));
        producer.send(context.message("second"));
        Context.await("the second time", () -> seen.contains("second1"));
        Context.await("three tries", () -> tries.get() == 3);

        List<String> dead = Collections.synchronizedList(new ArrayList<>());
        DefaultMQPushConsumer undertaker = context.consumer(context.group + "-undertaker");
        undertaker.subscribe("%DLQ%" + context.group, "*");
        ConsumeCases.collect(undertaker, dead);
        undertaker.start();
        Context.await("the dead letter", () -> dead.contains("never"));
        Context.check(dead.size() == 1, "dead letters: " + dead);
        return "retried, and a dead letter after 3 tries";
    }

    /** The group is set back while it consumes. The runner does it. */
    private static String reset(Context context) throws Exception {
        Map<String, Integer> seen = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = context.consumer();
        consumer.subscribe(context.topic, "*");
        consumer.registerMessageListener(
                (MessageListenerConcurrently)
                        (messages, view) -> {
                            messages.forEach(
                                    message -> seen.merge(Context.body(message), 1, Integer::sum));
                            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
                        });
        consumer.start();
        DefaultMQProducer producer = context.producer();
        int count = 40;
        for (int at = 0; at < count; at++) {
            producer.send(context.message("m" + at));
        }
        Context.await("all once", () -> seen.size() == count);
        // Their offsets are committed every five seconds; a reset is one whether or not they are.
        Thread.sleep(6_000);
        Output.event("reset", "topic", context.topic, "group", context.group);
        Context.await("all twice", () -> seen.values().stream().allMatch(times -> times >= 2));
        return count + " messages came again";
    }
}
