package seqlm;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/** Words split as GPT-2 splits them, then merged byte by byte; any bytes come back as they were. */
final class BytePairTokenizer extends Tokenizer {
    private static final String LETTERS = "Lstrevmld";
    private static final int MOST_CACHED = 1 << 13;
    private final CodePointTable classes;
    private final byte[][] tokens;
    private final int[] byteIds = new int[256];
    private final Merges merges;
    private final int maxWordBytes;
    private final String split;
    private final boolean addPrefixSpace;
    private final Map<String, Integer> wholeWords;
    private final Map<String, int[]> cache = new HashMap<>();

    BytePairTokenizer(Files files) throws IOException {
        super(files);
        Integer most = Json.integerOrNull(files.config, "max_word_bytes");
        maxWordBytes = most == null ? Integer.MAX_VALUE : most;
        split = files.config.get("split") == null ? "gpt2" : Json.string(files.config, "split");
        if (!split.equals("gpt2") && !split.equals("llama3") && !split.equals("qwen2")) {
            throw new IllegalArgumentException("there is no split of words named \"" + split + "\" here");
        }
        addPrefixSpace = Boolean.TRUE.equals(files.config.get("add_prefix_space"));
        wholeWords = Boolean.TRUE.equals(files.config.get("ignore_merges")) ? new HashMap<String, Integer>() : null;
        classes = new CodePointTable(files.bytes("classes.bin"), 1, "classes.bin");
        int[] bytes = bytesOfCharacters();
        String[] lines = files.lines("vocabulary.txt");
        if (lines.length != vocabularySize) {
            throw new IllegalArgumentException("vocabulary.txt must hold " + vocabularySize + " lines");
        }
        tokens = new byte[lines.length][];
        Map<String, Integer> ids = new HashMap<>();
        for (int i = 0; i < lines.length; i++) {
            if (isSpecial(i)) {
                tokens[i] = new byte[0];
            } else {
                tokens[i] = bytes(lines[i], bytes);
                ids.put(lines[i], i);  // an empty line is an id that only the added tokens name
                if (wholeWords != null && tokens[i].length > 0) {
                    wholeWords.put(latin(tokens[i]), i);
                }
            }
        }
        Arrays.fill(byteIds, -1);
        for (int i = 0; i < tokens.length; i++) {
            if (tokens[i].length == 1) {
                byteIds[tokens[i][0] & 0xFF] = i;
            }
        }
        for (int id : byteIds) {
            if (id < 0) {
                throw new IllegalArgumentException("vocabulary.txt must hold a token for each of 256 bytes");
            }
        }
        String[] pairs = files.lines("merges.txt");
        merges = new Merges(pairs.length);
        for (int rank = 0; rank < pairs.length; rank++) {
            int space = pairs[rank].indexOf(' ');
            String left = space < 0 ? pairs[rank] : pairs[rank].substring(0, space);
            String right = space < 0 ? "" : pairs[rank].substring(space + 1);
            Integer leftId = ids.get(left);
            Integer rightId = ids.get(right);
            Integer joined = ids.get(left + right);
            if (leftId == null || rightId == null || joined == null || merges.has(leftId, rightId)) {
                throw new IllegalArgumentException("merges.txt, line " + (rank + 1) + " joins no two tokens to one");
            }
            merges.put(leftId, rightId, rank, joined);
        }
    }

    @Override
    int[] encodePlain(byte[] given) {
        byte[] text = given;
        if (addPrefixSpace && given.length > 0 && given[0] != ' ') {
            text = new byte[given.length + 1];
            text[0] = ' ';
            System.arraycopy(given, 0, text, 1, given.length);
        }
        int[] points = Utf8.codePointsOrBytes(text);
        char[] kinds = new char[points.length];
        for (int i = 0; i < kinds.length; i++) {
            kinds[i] = (char) classes.get(points[i]);
        }
        Ints ids = new Ints();
        int place = 0;
        for (int start = 0; start < kinds.length; ) {
            int end = split.equals("gpt2") ? gpt2WordEnd(kinds, start) : llama3WordEnd(kinds, start, split.equals("llama3") ? 3 : 1);
            int from = place;
            for (int i = start; i < end; i++) {
                place += Utf8.size(points[i]);
            }
            Integer whole = wholeWords == null ? null : wholeWords.get(latin(Arrays.copyOfRange(text, from, place)));
            if (whole != null) {
                ids.add(whole);
                from = place;
            }
            for (int part = from; part < place; part += Math.min(maxWordBytes, place - part)) {
                ids.addAll(word(Arrays.copyOfRange(text, part, part + Math.min(maxWordBytes, place - part))));
            }
            start = end;
        }
        return ids.toArray();
    }

    @Override
    boolean keepsBytes() {
        return true;
    }

    @Override
    byte[] shown(int id) {
        return tokens[id];
    }

    private int[] word(byte[] data) {
        String key = latin(data);
        int[] known = cache.get(key);
        if (known == null) {
            int[] ids = new int[data.length];
            for (int i = 0; i < ids.length; i++) {
                ids[i] = byteIds[data[i] & 0xFF];
            }
            known = merges.apply(ids);
            if (cache.size() >= MOST_CACHED) {
                cache.clear();
            }
            if (data.length <= 64) {
                cache.put(key, known);
            }
        }
        return known;
    }

    /** Where the word that begins at `start` ends; see guides/sidecar.md for the expression. */
    private static int gpt2WordEnd(char[] kinds, int start) {
        int size = kinds.length;
        char first = kinds[start];
        if (contraction(kinds, start) > 0) {
            return start + contraction(kinds, start);
        }
        int body = first == ' ' ? start + 1 : start;
        if (body < size) {
            int kind = kind(kinds[body]);
            if (kind > 0) {
                return run(kinds, body + 1, kind);
            }
        }
        int end = run(kinds, start + 1, 0);
        return end < size && end - start > 1 ? end - 1 : end;  // the last space belongs to the word after it
    }

    /** The same as Llama 3 splits, numbers in groups of `digits`. */
    private static int llama3WordEnd(char[] kinds, int start, int digits) {
        int size = kinds.length;
        if (contraction(kinds, start) > 0) {
            return start + contraction(kinds, start);
        }
        int first = kind(kinds[start]);
        int next = start + 1 < size ? kind(kinds[start + 1]) : -1;
        if (first == 1 || next == 1 && first != 2 && kinds[start] != 'R') {
            return run(kinds, start + 1, 1);
        }
        if (first == 2) {
            return Math.min(run(kinds, start + 1, 2), start + digits);
        }
        if (first == 3 || next == 3 && kinds[start] == ' ') {
            int end = run(kinds, start + 1, 3);
            while (end < size && kinds[end] == 'R') {
                end++;
            }
            return end;
        }
        int end = run(kinds, start + 1, 0);
        for (int last = end; last > start; last--) {
            if (kinds[last - 1] == 'R') {
                return last;
            }
        }
        return end < size && end - start > 1 ? end - 1 : end;
    }

    private static int run(char[] kinds, int start, int kind) {
        int end = start;
        while (end < kinds.length && kind(kinds[end]) == kind) {
            end++;
        }
        return end;
    }

    /** How long the contraction is that begins at `start`, 0 where there is none. */
    private static int contraction(char[] kinds, int start) {
        if (kinds[start] != '\'' || start + 1 == kinds.length) {
            return 0;
        }
        char second = kinds[start + 1];
        if (second == 's' || second == 't' || second == 'm' || second == 'd') {
            return 2;
        }
        return start + 2 < kinds.length && isPair(second, kinds[start + 2]) ? 3 : 0;
    }

    private static boolean isPair(char second, char third) {
        return second == 'r' && third == 'e' || second == 'v' && third == 'e' || second == 'l' && third == 'l';
    }

    /** 0 for a space, 1 for a letter, 2 for a number, 3 for the rest. */
    private static int kind(char c) {
        if (c == ' ' || c == 'S' || c == 'R') {
            return 0;
        }
        return LETTERS.indexOf(c) >= 0 ? 1 : c == 'N' ? 2 : 3;
    }

    private static String latin(byte[] data) {
        char[] out = new char[data.length];
        for (int i = 0; i < out.length; i++) {
            out[i] = (char) (data[i] & 0xFF);
        }
        return new String(out);
    }

    /** The byte of each character that GPT-2 writes for one: itself where it shows, else one from U+0100 on. */
    private static int[] bytesOfCharacters() {
        int[] bytes = new int[0x200];
        Arrays.fill(bytes, -1);
        int hidden = 0x100;
        for (int value = 0; value < 256; value++) {
            boolean shows = value > 0x20 && value < 0x7F || value > 0xA0 && value != 0xAD;
            bytes[shows ? value : hidden++] = value;
        }
        return bytes;
    }

    private static byte[] bytes(String line, int[] bytes) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        for (int i = 0; i < line.length(); i++) {
            char c = line.charAt(i);
            if (c >= bytes.length || bytes[c] < 0) {
                throw new IllegalArgumentException("vocabulary.txt: '" + line + "' has a character that is no byte");
            }
            out.write(bytes[c]);
        }
        return out.toByteArray();
    }
}
