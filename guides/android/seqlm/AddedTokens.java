package seqlm;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Tokens that a text may name, found before anything else and kept whole; where several begin at one place the longest. */
final class AddedTokens {
    /** White space as Unicode's property has it. */
    private static final String SPACES =
        "\t\n\u000b\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
            + "\u205f\u3000";

    /** A piece of a text: an added token, or what stands between two. */
    static final class Piece {
        final byte[] text;
        final int id;

        Piece(byte[] text, int id) {
            this.text = text;
            this.id = id;
        }
    }

    /** What a text is brought into before the tokens that are "normalized" are looked for. */
    interface Form {
        byte[] of(byte[] text);
    }

    private static final class Entry {
        byte[] content;
        int id;
        boolean takesBefore;
        boolean takesAfter;
        boolean late;
    }

    /** Bytes that an id is decoded to; none for a special one. */
    final Map<Integer, byte[]> shown = new HashMap<>();
    private final List<Entry> entries = new ArrayList<>();
    private Form form;

    @SuppressWarnings("unchecked")
    AddedTokens(List<Object> given) {
        for (Object item : given) {
            Map<String, Object> fields = (Map<String, Object>) item;
            Entry entry = new Entry();
            entry.content = Utf8.encode(Json.string(fields, "content"));
            entry.id = Json.integer(fields, "id");
            entry.takesBefore = Boolean.TRUE.equals(fields.get("lstrip"));
            entry.takesAfter = Boolean.TRUE.equals(fields.get("rstrip"));
            entry.late = Boolean.TRUE.equals(fields.get("normalized"));
            entries.add(entry);
            shown.put(entry.id, Boolean.TRUE.equals(fields.get("special")) ? new byte[0] : entry.content);
        }
        sortByLength();
    }

    /** Looks for the tokens that are "normalized" in a form, theirs and the text's, and shows them so. */
    void seekIn(Form form) {
        for (Entry entry : entries) {
            if (entry.late) {
                this.form = form;
                entry.content = form.of(entry.content);
                if (shown.get(entry.id).length > 0) {
                    shown.put(entry.id, entry.content);
                }
            }
        }
        sortByLength();
    }

    private void sortByLength() {
        Collections.sort(entries, (left, right) -> Integer.compare(right.content.length, left.content.length));
    }

    /** A text as pieces: first those that are looked for in the whole, then the others in what is left. */
    List<Piece> split(byte[] text) {
        List<Piece> pieces = new ArrayList<>();
        if (text.length > 0) {
            pieces.add(new Piece(text, -1));
        }
        for (boolean late : new boolean[] {false, true}) {
            List<Piece> found = new ArrayList<>();
            for (Piece piece : pieces) {
                if (piece.id >= 0) {
                    found.add(piece);
                } else {
                    split(late && form != null ? form.of(piece.text) : piece.text, late, found);
                }
            }
            pieces = found;
        }
        return pieces;
    }

    private void split(byte[] text, boolean late, List<Piece> found) {
        int done = 0;
        for (int i = 0; i < text.length; i++) {
            Entry entry = at(text, i, late);
            if (entry == null) {
                continue;
            }
            int start = entry.takesBefore ? i - spaces(text, done, i, false) : i;
            int end = i + entry.content.length;
            end += entry.takesAfter ? spaces(text, end, text.length, true) : 0;
            if (start > done) {
                found.add(new Piece(Arrays.copyOfRange(text, done, start), -1));
            }
            found.add(new Piece(null, entry.id));
            done = end;
            i = end - 1;
        }
        if (done < text.length) {
            found.add(new Piece(Arrays.copyOfRange(text, done, text.length), -1));
        }
    }

    private Entry at(byte[] text, int place, boolean late) {
        for (Entry entry : entries) {
            int size = entry.content.length;
            if (entry.late == late && place + size <= text.length) {
                int same = 0;
                while (same < size && text[place + same] == entry.content[same]) {
                    same++;
                }
                if (same == size) {
                    return entry;
                }
            }
        }
        return null;
    }

    /** How many bytes of white space a part of a text begins with, or ends with. */
    private static int spaces(byte[] text, int from, int to, boolean beginning) {
        int[] points = Utf8.codePointsOrBytes(Arrays.copyOfRange(text, from, to));
        int bytes = 0;
        for (int i = 0; i < points.length; i++) {
            int point = points[beginning ? i : points.length - 1 - i];
            if (point > 0xFFFF || SPACES.indexOf(point) < 0) {
                break;
            }
            bytes += Utf8.size(point);
        }
        return bytes;
    }
}
