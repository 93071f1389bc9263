package seqlm;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Reads JSON: objects become Map, arrays List, whole numbers Long, others Double. */
final class Json {
    private static final int DEEPEST = 64;
    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /**
     * The object that a text holds.
     *
     * @throws IllegalArgumentException it is no JSON, or no object.
     */
    @SuppressWarnings("unchecked")
    static Map<String, Object> object(byte[] data) {
        Json json = new Json(Utf8.decode(data));
        Object value = json.value(0);
        json.space();
        if (json.at < json.text.length() || !(value instanceof Map)) {
            throw json.wrong("one object");
        }
        return (Map<String, Object>) value;
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> object(Map<String, Object> parent, String name) {
        return (Map<String, Object>) of(parent, name, Map.class);
    }

    @SuppressWarnings("unchecked")
    static List<Object> list(Map<String, Object> parent, String name) {
        return (List<Object>) of(parent, name, List.class);
    }

    static String string(Map<String, Object> parent, String name) {
        return (String) of(parent, name, String.class);
    }

    static int integer(Map<String, Object> parent, String name) {
        return whole(of(parent, name, Long.class), name);
    }

    /** A whole number, or null where the field is null or not there. */
    static Integer integerOrNull(Map<String, Object> parent, String name) {
        return parent.get(name) == null ? null : Integer.valueOf(integer(parent, name));
    }

    static int[] integers(Map<String, Object> parent, String name) {
        List<Object> items = list(parent, name);
        int[] numbers = new int[items.size()];
        for (int i = 0; i < numbers.length; i++) {
            numbers[i] = whole(items.get(i), name);
        }
        return numbers;
    }

    private static int whole(Object value, String name) {
        if (!(value instanceof Long) || (Long) value != ((Long) value).intValue()) {
            throw new IllegalArgumentException("\"" + name + "\" must be a whole number of 32 bits; got " + value);
        }
        return ((Long) value).intValue();
    }

    private static Object of(Map<String, Object> parent, String name, Class<?> kind) {
        Object value = parent.get(name);
        if (!kind.isInstance(value)) {
            throw new IllegalArgumentException(
                "the field \"" + name + "\" must be a " + kind.getSimpleName() + "; got " + value);
        }
        return value;
    }

    private Object value(int depth) {
        space();
        if (depth > DEEPEST) {
            throw wrong("fewer levels");
        }
        char c = at < text.length() ? text.charAt(at) : '\0';
        if (c == '{') {
            return map(depth);
        }
        if (c == '[') {
            at++;
            List<Object> items = new ArrayList<>();
            while (more(items.isEmpty(), ']')) {
                items.add(value(depth + 1));
            }
            return items;
        }
        if (c == '"') {
            return quoted();
        }
        for (String word : new String[] {"true", "false", "null"}) {
            if (text.startsWith(word, at)) {
                at += word.length();
                return c == 'n' ? null : (Object) (c == 't');
            }
        }
        return number();
    }

    private Map<String, Object> map(int depth) {
        at++;
        Map<String, Object> items = new LinkedHashMap<>();
        while (more(items.isEmpty(), '}')) {
            space();
            String key = quoted();
            space();
            expect(':');
            items.put(key, value(depth + 1));
        }
        return items;
    }

    /** Whether another item follows; passes the comma before it, or the bracket at the end. */
    private boolean more(boolean first, char end) {
        space();
        if (at < text.length() && text.charAt(at) == end) {
            at++;
            return false;
        }
        if (!first) {
            expect(',');
        }
        return true;
    }

    private String quoted() {
        expect('"');
        StringBuilder out = new StringBuilder();
        while (true) {
            if (at >= text.length()) {
                throw wrong("the end of a string");
            }
            char c = text.charAt(at++);
            if (c == '"') {
                return out.toString();
            }
            out.append(c == '\\' ? escaped() : c);
        }
    }

    private char escaped() {
        char c = at < text.length() ? text.charAt(at++) : '\0';
        int simple = "\"\\/bfnrt".indexOf(c);
        if (simple >= 0) {
            return "\"\\/\b\f\n\r\t".charAt(simple);
        }
        if (c != 'u' || at + 4 > text.length()) {
            throw wrong("an escape");
        }
        at += 4;
        try {
            return (char) Integer.parseInt(text.substring(at - 4, at), 16);
        } catch (NumberFormatException error) {
            throw wrong("four hexadecimal digits");
        }
    }

    private Object number() {
        int start = at;
        while (at < text.length() && "+-.eE0123456789".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        String digits = text.substring(start, at);
        try {
            if (digits.matches("-?[0-9]+")) {
                return Long.valueOf(digits);
            }
            return Double.valueOf(digits);
        } catch (NumberFormatException error) {
            throw wrong("a value");
        }
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private void expect(char wanted) {
        if (at >= text.length() || text.charAt(at) != wanted) {
            throw wrong("'" + wanted + "'");
        }
        at++;
    }

    private IllegalArgumentException wrong(String wanted) {
        return new IllegalArgumentException("this is no JSON: at character " + at + " expected " + wanted);
    }
}
