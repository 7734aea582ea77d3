package interop;

import java.lang.reflect.Method;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;

/** The ways to consume. */
final class ConsumeCases {
    private static final int COUNT = 60;

    private ConsumeCases() {}

    static void register(Map<String, Case> cases) {
        cases.put("consume-push", ConsumeCases::push);
        cases.put("consume-orderly", ConsumeCases::orderly);
        cases.put("consume-broadcast", ConsumeCases::broadcast);
        cases.put("filter-tag", ConsumeCases::tags);
        cases.put("filter-sql", ConsumeCases::sql);
        cases.put("pop", ConsumeCases::pop);
    }

    /** Two members share the queues; each message comes once. */
    private static String push(Context context) throws Exception {
        List<List<String>> seen = new ArrayList<>();
        for (int member = 0; member < 2; member++) {
            List<String> mine = Collections.synchronizedList(new ArrayList<>());
            seen.add(mine);
            DefaultMQPushConsumer consumer = context.consumer();
            consumer.subscribe(context.topic, "*");
            collect(consumer, mine);
            consumer.start();
        }
        DefaultMQProducer producer = context.producer();
        // The queues are divided when both get something.
        AtomicInteger sent = new AtomicInteger();
        long deadline = System.currentTimeMillis() + Context.WAIT_MS;
        while (seen.stream().anyMatch(List::isEmpty) || sent.get() < COUNT) {
            Context.check(System.currentTimeMillis() < deadline, "one member gets nothing");
            producer.send(context.message("m" + sent.getAndIncrement()));
            Thread.sleep(50);
        }
        Context.await("all", () -> distinct(seen) == sent.get());
        return sent.get() + " messages, two members: " + seen.get(0).size() + " and "
                + seen.get(1).size();
    }

    /** Per key strictly in order, with two members. */
    private static String orderly(Context context) throws Exception {
        Map<String, Integer> next = new ConcurrentHashMap<>();
        List<String> wrong = Collections.synchronizedList(new ArrayList<>());
        AtomicInteger again = new AtomicInteger();
        for (int member = 0; member < 2; member++) {
            DefaultMQPushConsumer consumer = context.consumer();
            consumer.subscribe(context.topic, "*");
            consumer.registerMessageListener(
                    (MessageListenerOrderly)
                            (messages, view) -> {
                                for (Message message : messages) {
                                    String key = message.getUserProperty("key");
                                    int number =
                                            Integer.parseInt(message.getUserProperty("number"));
                                    Integer before = next.put(key, number + 1);
                                    int wanted = before == null ? 0 : before;
                                    // A queue that changes hands may go on from a little earlier.
                                    if (number < wanted) {
                                        again.incrementAndGet();
                                    } else if (number > wanted) {
                                        wrong.add(key + ": " + number + " for " + wanted);
                                    }
                                }
                                return ConsumeOrderlyStatus.SUCCESS;
                            });
            consumer.start();
        }
        DefaultMQProducer producer = context.producer();
        int keys = 6;
        for (int number = 0; number < COUNT; number++) {
            for (int key = 0; key < keys; key++) {
                Message message = context.message(key + "/" + number);
                message.putUserProperty("key", "k" + key);
                message.putUserProperty("number", "" + number);
                producer.send(
                        message,
                        (queues, one, shard) -> queues.get((Integer) shard % queues.size()),
                        key);
            }
        }
        Context.await(
                "all in order",
                () -> next.values().stream().mapToInt(Integer::intValue).sum() == COUNT * keys);
        Context.check(wrong.isEmpty(), wrong.toString());
        String repeats = again.get() == 0 ? "" : ", " + again.get() + " came again";
        return keys + " keys of " + COUNT + " in order" + repeats;
    }

    private static String broadcast(Context context) throws Exception {
        List<List<String>> seen = new ArrayList<>();
        for (int member = 0; member < 2; member++) {
            List<String> mine = Collections.synchronizedList(new ArrayList<>());
            seen.add(mine);
            DefaultMQPushConsumer consumer = context.consumer();
            setBroadcasting(consumer);
            consumer.subscribe(context.topic, "*");
            collect(consumer, mine);
            consumer.start();
        }
        DefaultMQProducer producer = context.producer();
        for (int at = 0; at < COUNT; at++) {
            producer.send(context.message("m" + at));
        }
        Context.await(
                "everything at both",
                () -> seen.stream().allMatch(mine -> Set.copyOf(mine).size() == COUNT));
        return COUNT + " messages at both members";
    }

    private static String tags(Context context) throws Exception {
        List<String> seen = Collections.synchronizedList(new ArrayList<>());
        DefaultMQPushConsumer consumer = context.consumer();
        consumer.subscribe(context.topic, "red || blue");
        collect(consumer, seen);
        consumer.start();
        DefaultMQProducer producer = context.producer();
        for (String tag : new String[] {"red", "green", "blue", "redder", "red"}) {
            producer.send(context.message(tag, "", tag));
        }
        producer.send(context.message("blue", "", "last"));
        Context.await("the last", () -> seen.size() >= 4);
        return exactly(seen, "blue", "last", "red", "red");
    }

    private static String sql(Context context) throws Exception {
        List<String> seen = Collections.synchronizedList(new ArrayList<>());
        DefaultMQPushConsumer consumer = context.consumer();
        consumer.subscribe(
                context.topic,
                MessageSelector.bySql("amount BETWEEN 10 AND 20 AND country IN ('CH', 'FR')"));
        collect(consumer, seen);
        consumer.start();
        DefaultMQProducer producer = context.producer();
        String[][] data = {{"5", "CH"}, {"15", "CH"}, {"15", "DE"}, {"20", "FR"}, {"21", "FR"}};
        for (String[] one : data) {
            Message message = context.message(one[0] + one[1]);
            message.putUserProperty("amount", one[0]);
            message.putUserProperty("country", one[1]);
            producer.send(message);
        }
        producer.send(context.message("without properties"));
        Context.await("two", () -> seen.size() >= 2);
        Thread.sleep(1000);
        return exactly(seen, "15CH", "20FR");
    }

    /** The broker deals out messages instead of queues. The runner sets the group's mode. */
    private static String pop(Context context) throws Exception {
        DefaultMQPushConsumer consumer = context.consumer();
        try {
            DefaultMQPushConsumer.class
                    .getMethod("setClientRebalance", boolean.class)
                    .invoke(consumer, false);
        } catch (NoSuchMethodException absent) {
            throw new NotInClientException("no setClientRebalance");
        }
        List<String> seen = Collections.synchronizedList(new ArrayList<>());
        AtomicInteger popped = new AtomicInteger();
        consumer.subscribe(context.topic, "*");
        consumer.registerMessageListener(
                (MessageListenerConcurrently)
                        (messages, view) -> {
                            messages.forEach(
                                    message -> {
                                        seen.add(Context.body(message));
                                        if (message.getProperty("POP_CK") != null) {
                                            popped.incrementAndGet();
                                        }
                                    });
                            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
                        });
        Output.event("pop-mode", "topic", context.topic, "group", context.group);
        Thread.sleep(1000);
        consumer.start();
        DefaultMQProducer producer = context.producer();
        for (int at = 0; at < COUNT; at++) {
            producer.send(context.message("m" + at));
        }
        Context.await("all", () -> Set.copyOf(seen).size() == COUNT);
        Context.check(popped.get() >= COUNT, "only " + popped.get() + " came by pop");
        return COUNT + " messages by pop";
    }

    static void collect(DefaultMQPushConsumer consumer, List<String> seen) {
        consumer.registerMessageListener(
                (MessageListenerConcurrently)
                        (messages, view) -> {
                            messages.forEach(message -> seen.add(Context.body(message)));
                            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
                        });
    }

    private static int distinct(List<List<String>> seen) {
        return seen.stream()
                .flatMap(mine -> List.copyOf(mine).stream())
                .collect(Collectors.toSet())
                .size();
    }

    private static String exactly(List<String> seen, String... wanted) {
        List<String> sorted = new ArrayList<>(seen);
        Collections.sort(sorted);
        Context.check(sorted.equals(List.of(wanted)), "got " + sorted);
        return sorted.toString();
    }

    // The class MessageModel moved to another package in 5.x: its name must not be compiled in.
    private static void setBroadcasting(DefaultMQPushConsumer consumer) throws Exception {
        for (Method method : DefaultMQPushConsumer.class.getMethods()) {
            if (method.getName().equals("setMessageModel")) {
                Object[] models = method.getParameterTypes()[0].getEnumConstants();
                for (Object model : models) {
                    if (model.toString().equals("BROADCASTING")) {
                        method.invoke(consumer, model);
                        return;
                    }
                }
            }
        }
        throw new IllegalStateException("no model BROADCASTING");
    }
}
