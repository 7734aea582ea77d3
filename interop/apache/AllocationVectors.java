import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import org.apache.rocketmq.client.consumer.AllocateMessageQueueStrategy;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragely;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragelyByCircle;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueByMachineRoom;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueConsistentHash;
import org.apache.rocketmq.common.message.MessageQueue;

/** Asks the official client's allocation strategies and prints what they answer, as JSON lines. */
public final class AllocationVectors {
    public static void main(String[] arguments) {
        Random random = new Random(20260101);
        for (int number = 0; number < 20; number++) {
            List<MessageQueue> queues = new ArrayList<>();
            String[] brokers = {"broker-a", "broker-b", "east@broker-c", "west@broker-d", "x@y@z"};
            for (String broker : brokers) {
                int count = random.nextInt(7);
                for (int id = 0; id < count; id++) {
                    queues.add(new MessageQueue("orders", broker, id));
                }
            }
            List<String> members = new ArrayList<>();
            int count = 1 + random.nextInt(9);
            for (int id = 0; id < count; id++) {
                members.add("10.0.0." + random.nextInt(200) + "@" + random.nextInt(100000));
            }
            if (queues.isEmpty()) {
                continue;
            }
            Collections.sort(queues);
            Collections.sort(members);
            AllocateMessageQueueByMachineRoom room = new AllocateMessageQueueByMachineRoom();
            room.setConsumeridcs(new HashSet<>(List.of("east", "x")));
            print("AVG", new AllocateMessageQueueAveragely(), queues, members);
            print("AVG_BY_CIRCLE", new AllocateMessageQueueAveragelyByCircle(), queues, members);
            print("CONSISTENT_HASH", new AllocateMessageQueueConsistentHash(), queues, members);
            print("CONSISTENT_HASH:3", new AllocateMessageQueueConsistentHash(3), queues, members);
            print("MACHINE_ROOM:east,x", room, queues, members);
        }
    }

    private static void print(String name, AllocateMessageQueueStrategy strategy,
                              List<MessageQueue> queues, List<String> members) {
        StringBuilder line = new StringBuilder();
        line.append("{\"strategy\":\"").append(name).append("\",\"queues\":");
        append(line, queues);
        line.append(",\"shares\":{");
        for (int at = 0; at < members.size(); at++) {
            line.append(at == 0 ? "\"" : ",\"").append(members.get(at)).append("\":");
            append(line, strategy.allocate("group", members.get(at), queues, members));
        }
        System.out.println(line.append("}}"));
    }

    private static void append(StringBuilder line, List<MessageQueue> queues) {
        line.append('[');
        for (int at = 0; at < queues.size(); at++) {
            line.append(at == 0 ? "\"" : ",\"").append(queues.get(at).getBrokerName())
                .append(' ').append(queues.get(at).getQueueId()).append('"');
        }
        line.append(']');
    }
}
