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
    private final Map<String, int[]> cache = new HashMap<>();

    BytePairTokenizer(Files files) throws IOException {
        super(files);
        Integer most = Json.integerOrNull(files.config, "max_word_bytes");
        maxWordBytes = most == null ? Integer.MAX_VALUE : most;
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
                ids.put(lines[i], i);
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
    public int[] encode(byte[] text) {
        int[] points = Utf8.codePointsOrBytes(text);
        char[] kinds = new char[points.length];
        for (int i = 0; i < kinds.length; i++) {
            kinds[i] = (char) classes.get(points[i]);
        }
        Ints ids = new Ints();
        int place = 0;
        for (int start = 0; start < kinds.length; ) {
            int end = wordEnd(kinds, start);
            int from = place;
            for (int i = start; i < end; i++) {
                place += Utf8.size(points[i]);
            }
            for (int part = from; part < place; part += Math.min(maxWordBytes, place - part)) {
                ids.addAll(word(Arrays.copyOfRange(text, part, part + Math.min(maxWordBytes, place - part))));
            }
            start = end;
        }
        return ids.toArray();
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
    private static int wordEnd(char[] kinds, int start) {
        int size = kinds.length;
        char first = kinds[start];
        if (first == '\'' && start + 1 < size) {
            char second = kinds[start + 1];
            if (second == 's' || second == 't' || second == 'm' || second == 'd') {
                return start + 2;
            }
            if (start + 2 < size && isPair(second, kinds[start + 2])) {
                return start + 3;
            }
        }
        int body = first == ' ' ? start + 1 : start;
        if (body < size) {
            int kind = kind(kinds[body]);
            if (kind > 0) {
                int end = body + 1;
                while (end < size && kind(kinds[end]) == kind) {
                    end++;
                }
                return end;
            }
        }
        int end = start + 1;
        while (end < size && kind(kinds[end]) == 0) {
            end++;
        }
        return end < size && end - start > 1 ? end - 1 : end;  // the last space belongs to the word after it
    }

    private static boolean isPair(char second, char third) {
        return second == 'r' && third == 'e' || second == 'v' && third == 'e' || second == 'l' && third == 'l';
    }

    /** 0 for a space, 1 for a letter, 2 for a number, 3 for the rest. */
    private static int kind(char c) {
        if (c == ' ' || c == 'S') {
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
