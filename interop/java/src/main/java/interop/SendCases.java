package interop;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;

/** The ways to send. Each case reads back what it sent. */
final class SendCases {
    private static final int COUNT = 50;

    private SendCases() {}

    static void register(Map<String, Case> cases) {
        cases.put("send-sync", SendCases::sync);
        cases.put("send-async", SendCases::async);
        cases.put("send-oneway", SendCases::oneWay);
        cases.put("send-batch", SendCases::batch);
    }

    private static String sync(Context context) throws Exception {
        DefaultMQProducer producer = context.producer();
        for (int at = 0; at < COUNT; at++) {
            SendResult result = producer.send(context.message("m" + at));
            Context.check(result.getSendStatus() == SendStatus.SEND_OK, result.toString());
        }
        return readBack(context);
    }

    private static String async(Context context) throws Exception {
        DefaultMQProducer producer = context.producer();
        CountDownLatch answered = new CountDownLatch(COUNT);
        AtomicReference<Throwable> failure = new AtomicReference<>();
        for (int at = 0; at < COUNT; at++) {
            producer.send(
                    context.message("m" + at),
                    new SendCallback() {
                        @Override
                        public void onSuccess(SendResult result) {
                            answered.countDown();
                        }

                        @Override
                        public void onException(Throwable problem) {
                            failure.set(problem);
                            answered.countDown();
                        }
                    });
        }
        Context.check(answered.await(20, TimeUnit.SECONDS), "callbacks are missing");
        Context.check(failure.get() == null, String.valueOf(failure.get()));
        return readBack(context);
    }

    private static String oneWay(Context context) throws Exception {
        DefaultMQProducer producer = context.producer();
        for (int at = 0; at < COUNT; at++) {
            producer.sendOneway(context.message("m" + at));
        }
        return readBack(context);
    }

    private static String batch(Context context) throws Exception {
        DefaultMQProducer producer = context.producer();
        List<Message> messages = new ArrayList<>();
        for (int at = 0; at < COUNT; at++) {
            messages.add(context.message("m" + at));
        }
        SendResult result = producer.send(messages);
        Context.check(result.getSendStatus() == SendStatus.SEND_OK, result.toString());
        int ids = result.getOffsetMsgId().split(",").length;
        Context.check(ids == COUNT, ids + " ids for " + COUNT + " messages");
        return readBack(context);
    }

    private static String readBack(Context context) throws Exception {
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
        Context.await("all messages read back", () -> seen.size() >= COUNT);
        for (int at = 0; at < COUNT; at++) {
            Context.check(seen.contains("m" + at), "m" + at + " is missing");
        }
        return COUNT + " sent and read back";
    }
}
