package interop;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;

/**
 * Runs named cases on the official Java client and prints one JSON line for each.
 *
 * <p>Usage: {@code Main NAMESERVER PREFIX CASE...}. The topics {@code PREFIX-CASE} exist already.
 */
public final class Main {
    private static final int CONCURRENT = 6;

    private Main() {}

    public static void main(String[] arguments) throws Exception {
        Map<String, Case> known = new LinkedHashMap<>();
        SendCases.register(known);
        ConsumeCases.register(known);
        LaterCases.register(known);
        QueryCases.register(known);
        FailoverCases.register(known);
        if (arguments.length < 3) {
            System.err.println("usage: NAMESERVER PREFIX CASE...; cases: " + known.keySet());
            System.exit(2);
        }
        warmUp(new Context(arguments[0], arguments[1], arguments[2]));
        // Cases share nothing, and most of them wait for most of their time.
        ExecutorService pool = Executors.newFixedThreadPool(CONCURRENT);
        List<Future<?>> running = new ArrayList<>();
        for (int at = 2; at < arguments.length; at++) {
            String name = arguments[at];
            Case wanted = known.get(name);
            if (wanted == null) {
                Output.verdict(name, "absent", "the program has no such case");
                continue;
            }
            Context context = new Context(arguments[0], arguments[1], name);
            running.add(pool.submit(() -> run(name, wanted, context)));
        }
        for (Future<?> one : running) {
            one.get();
        }
        // Clients leave threads behind that are no daemons.
        System.exit(0);
    }

    /**
     * Asks for a route until it comes: a JVM that has just started on a busy machine may need longer
     * to load classes than the client waits for its first answers.
     */
    private static void warmUp(Context context) throws Exception {
        long deadline = System.nanoTime() + Context.WAIT_MS * 1_000_000;
        DefaultMQProducer producer = context.producer();
        while (true) {
            try {
                producer.fetchPublishMessageQueues(context.topic);
                break;
            } catch (MQClientException problem) {
                if (System.nanoTime() > deadline) {
                    throw problem;
                }
            }
        }
        context.close();
    }

    private static void run(String name, Case wanted, Context context) {
        try {
            Output.verdict(name, "yes", wanted.run(context));
        } catch (NotInClientException absent) {
            Output.verdict(name, "absent", absent.getMessage());
        } catch (Throwable problem) {
            Output.verdict(name, "no", problem.toString());
            problem.printStackTrace();
        } finally {
            context.close();
        }
    }
}
