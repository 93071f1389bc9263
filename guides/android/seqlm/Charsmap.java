package seqlm;

import java.io.ByteArrayOutputStream;

/**
 * SentencePiece's compiled normalisation: which characters become which, the longest key first, from left to right.
 *
 * <p>The data are a trie of UTF-8 keys in a double array (as darts-clone lays it out), and the replacements with NUL between.
 */
final class Charsmap {
    private final int[] units;
    private final byte[] strings;

    Charsmap(byte[] data) {
        if (data.length == 0) {
            units = new int[0];
            strings = new byte[0];
            return;
        }
        long size = data.length < 8 ? -1 : word(data, 0) & 0xFFFFFFFFL;
        if (size < 4 || size % 1024 != 0 || size >= data.length - 4 || data[data.length - 1] != 0) {
            throw damaged();
        }
        units = new int[(int) size / 4];
        for (int i = 0; i < units.length; i++) {
            units[i] = word(data, 4 + 4 * i);
        }
        strings = new byte[data.length - 4 - (int) size];
        System.arraycopy(data, 4 + (int) size, strings, 0, strings.length);
    }

    /** A text with every replacement made. */
    String replace(String text) {
        if (units.length == 0) {
            return text;
        }
        byte[] data = Utf8.encode(text);
        ByteArrayOutputStream out = new ByteArrayOutputStream(data.length);
        for (int i = 0; i < data.length; ) {
            int length = 0;
            int place = 0;
            int node = offset(units[0]);
            for (int j = i; j < data.length; j++) {
                node ^= data[j] & 0xFF;
                int unit = unit(node);
                if ((unit & 0x800000FF) != (data[j] & 0xFF)) {
                    break;
                }
                node ^= offset(unit);
                if ((unit >>> 8 & 1) != 0) {
                    length = j + 1 - i;
                    place = unit(node) & 0x7FFFFFFF;
                }
            }
            if (length == 0) {
                do {
                    out.write(data[i++]);
                } while (i < data.length && (data[i] & 0xC0) == 0x80);
                continue;
            }
            for (int j = place; j < strings.length && strings[j] != 0; j++) {
                out.write(strings[j]);
            }
            i += length;
        }
        return Utf8.decode(out.toByteArray());
    }

    private int unit(int node) {
        if (node < 0 || node >= units.length) {
            throw damaged();
        }
        return units[node];
    }

    private static int offset(int unit) {
        return unit >>> 10 << ((unit & 0x200) >> 6);
    }

    private static int word(byte[] data, int at) {
        return data[at] & 0xFF | (data[at + 1] & 0xFF) << 8 | (data[at + 2] & 0xFF) << 16 | (data[at + 3] & 0xFF) << 24;
    }

    private static IllegalArgumentException damaged() {
        return new IllegalArgumentException("the SentencePiece model's character map is damaged");
    }
}
