package seqlm;

import java.io.ByteArrayOutputStream;
import java.util.Arrays;

/**
 * UTF-8, with one rule for what is none: a piece that could begin a character, as long as possible, counts as one fault.
 * (What the platform's decoders do with faults differs from one to the next.)
 */
final class Utf8 {
    static final int REPLACEMENT = 0xFFFD;
    /** A byte that is no UTF-8 is kept as this plus the byte, which no character has. */
    static final int ESCAPE = 0xDC00;

    private Utf8() {}

    /** The bytes of a text; half a surrogate pair becomes U+FFFD. */
    static byte[] encode(String text) {
        ByteArrayOutputStream out = new ByteArrayOutputStream(text.length());
        for (int i = 0; i < text.length(); ) {
            int point = text.codePointAt(i);
            i += Character.charCount(point);
            write(out, point >= 0xD800 && point <= 0xDFFF ? REPLACEMENT : point);
        }
        return out.toByteArray();
    }

    static void write(ByteArrayOutputStream out, int point) {
        if (point < 0x80) {
            out.write(point);
        } else if (point < 0x800) {
            out.write(0xC0 | point >> 6);
            out.write(0x80 | point & 0x3F);
        } else if (point < 0x10000) {
            out.write(0xE0 | point >> 12);
            out.write(0x80 | point >> 6 & 0x3F);
            out.write(0x80 | point & 0x3F);
        } else {
            out.write(0xF0 | point >> 18);
            out.write(0x80 | point >> 12 & 0x3F);
            out.write(0x80 | point >> 6 & 0x3F);
            out.write(0x80 | point & 0x3F);
        }
    }

    /** The text of some bytes; each fault becomes U+FFFD. */
    static String decode(byte[] data) {
        return string(codePoints(data));
    }

    /** The code points of some bytes; each fault becomes U+FFFD. */
    static int[] codePoints(byte[] data) {
        return points(data, false);
    }

    /** The code points of some bytes; each byte of a fault becomes {@link #ESCAPE} plus the byte. */
    static int[] codePointsOrBytes(byte[] data) {
        return points(data, true);
    }

    static String string(int[] points) {
        return new String(points, 0, points.length);
    }

    /** How many bytes a code point of {@link #codePointsOrBytes} stands for. */
    static int size(int point) {
        if (point >= ESCAPE && point <= ESCAPE + 0xFF) {
            return 1;
        }
        return point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    }

    private static int[] points(byte[] data, boolean keepBytes) {
        int[] out = new int[data.length];
        int count = 0;
        for (int i = 0; i < data.length; ) {
            int first = data[i] & 0xFF;
            int more = first < 0x80 ? 0 : first < 0xC2 ? -1 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : -1;
            int low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
            int high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
            int point = more <= 0 ? first : first & (0x3F >> more);
            int length = 1;
            while (length <= more && i + length < data.length) {
                int next = data[i + length] & 0xFF;
                if (next < low || next > high) {
                    break;
                }
                point = point << 6 | next & 0x3F;
                low = 0x80;
                high = 0xBF;
                length++;
            }
            if (length == more + 1) {
                out[count++] = point;
            } else if (keepBytes) {
                for (int j = 0; j < length; j++) {
                    out[count++] = ESCAPE + (data[i + j] & 0xFF);
                }
            } else {
                out[count++] = REPLACEMENT;
            }
            i += length;
        }
        return Arrays.copyOf(out, count);
    }
}
