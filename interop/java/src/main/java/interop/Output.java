package interop;

/** Lines of JSON on standard output, whole ones only. */
final class Output {
    private Output() {}

    static void verdict(String name, String verdict, String detail) {
        line("case", name, "verdict", verdict, "detail", detail);
    }

    /** Asks the runner for something, or tells it: names and values in turn. */
    static void event(String name, Object... namesAndValues) {
        Object[] all = new Object[namesAndValues.length + 2];
        all[0] = "event";
        all[1] = name;
        System.arraycopy(namesAndValues, 0, all, 2, namesAndValues.length);
        line(all);
    }

    private static void line(Object... namesAndValues) {
        StringBuilder text = new StringBuilder("{");
        for (int at = 0; at < namesAndValues.length; at += 2) {
            text.append(at == 0 ? "" : ",").append(quoted(namesAndValues[at].toString()));
            Object value = namesAndValues[at + 1];
            text.append(":").append(value instanceof Number ? value : quoted(String.valueOf(value)));
        }
        synchronized (Output.class) {
            System.out.println(text.append("}"));
            System.out.flush();
        }
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char letter : text.toCharArray()) {
            if (letter == '"' || letter == '\\') {
                out.append('\\').append(letter);
            } else if (letter < ' ') {
                out.append(String.format("\\u%04x", (int) letter));
            } else {
                out.append(letter);
            }
        }
        return out.append('"').toString();
    }
}
