package interop;

import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.QueryResult;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.RequestCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.exception.RequestTimeoutException;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Looking up and asking. */
final class QueryCases {
    private QueryCases() {}

    static void register(Map<String, Case> cases) {
        cases.put("query-id", QueryCases::byId);
        cases.put("query-key", QueryCases::byKey);
        cases.put("request-reply", QueryCases::request);
    }

    private static String byId(Context context) throws Exception {
        DefaultMQProducer producer = context.producer();
        SendResult sent = producer.send(context.message("tag", "key", "wanted"));
        MessageExt byPlace = producer.viewMessage(context.topic, sent.getOffsetMsgId());
        Context.check(Context.body(byPlace).equals("wanted"), byPlace.toString());
        MessageExt byClientId = producer.viewMessage(context.topic, sent.getMsgId());
        Context.check(Context.body(byClientId).equals("wanted"), byClientId.toString());
        return "by offset id and by unique key";
    }

    private static String byKey(Context context) throws Exception {
        DefaultMQProducer producer = context.producer();
        long begin = System.currentTimeMillis() - 60_000;
        producer.send(context.message("tag", "order-1 customer-9", "first"));
        producer.send(context.message("tag", "order-2 customer-9", "second"));
        long end = System.currentTimeMillis() + 60_000;
        int both = producer.queryMessage(context.topic, "customer-9", 32, begin, end)
                .getMessageList()
                .size();
        QueryResult one = producer.queryMessage(context.topic, "order-2", 32, begin, end);
        Context.check(both == 2, both + " with the shared key");
        Context.check(
                one.getMessageList().size() == 1
                        && Context.body(one.getMessageList().get(0)).equals("second"),
                one.toString());
        return "one and two found";
    }

    private static String request(Context context) throws Exception {
        DefaultMQProducer answering = context.producer();
        DefaultMQPushConsumer consumer = context.consumer();
        consumer.subscribe(context.topic, "*");
        consumer.registerMessageListener(
                (MessageListenerConcurrently)
                        (messages, view) -> {
                            for (MessageExt message : messages) {
                                String answer = "re: " + Context.body(message);
                                byte[] body = answer.getBytes(StandardCharsets.UTF_8);
                                try {
                                    answering.send(MessageUtil.createReplyMessage(message, body));
                                } catch (Exception problem) {
                                    problem.printStackTrace();
                                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                                }
                            }
                            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
                        });
        consumer.start();
        DefaultMQProducer producer = new DefaultMQProducer(context.group + "-asking");
        producer.setNamesrvAddr(context.nameserver);
        producer.start();
        context.atEnd(producer, producer::shutdown);
        boolean isCallbackNeeded = false;
        for (int at = 0; at < 3; at++) {
            Message reply;
            try {
                reply = producer.request(context.message("q" + at), 20_000);
            } catch (RequestTimeoutException early) {
                // In 5.3 it ends when the request is sent: apache/rocketmq #9319.
                reply = requestWithCallback(producer, context.message("q" + at));
                isCallbackNeeded = true;
            }
            String body = new String(reply.getBody(), StandardCharsets.UTF_8);
            Context.check(body.equals("re: q" + at), body);
        }
        return "three requests answered"
                + (isCallbackNeeded ? "; with a callback, see apache/rocketmq #9319" : "");
    }

    private static Message requestWithCallback(DefaultMQProducer producer, Message message)
            throws Exception {
        CompletableFuture<Message> reply = new CompletableFuture<>();
        producer.request(
                message,
                new RequestCallback() {
                    @Override
                    public void onSuccess(Message found) {
                        // Called without a message when the request is sent, then with the reply.
                        if (found != null) {
                            reply.complete(found);
                        }
                    }

                    @Override
                    public void onException(Throwable problem) {
                        reply.completeExceptionally(problem);
                    }
                },
                20_000);
        return reply.get(20, TimeUnit.SECONDS);
    }
}
