package seqlm;

import java.io.IOException;
import java.util.HashMap;
import java.util.Map;

/** BERT's tokenizer: every code point becomes its form, then the longest piece that a word begins with, again and again. */
final class WordPieceTokenizer extends Tokenizer {
    private static final String INSIDE = "##";
    private static final int APART = 2;
    /** Beginnings of tokens that stand without a space before them where decoding cleans up. */
    private static final String[] JOINING = {".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"};
    private static final int FIRST_FORM = 4;
    private final CodePointTable table;
    private final String[] forms;
    private final byte[][] shown;
    private final Map<String, Integer> starting = new HashMap<>();
    private final Map<String, Integer> inside = new HashMap<>();
    private final int maxWordCharacters;
    private final int unknown;
    private int longest;

    WordPieceTokenizer(Files files) throws IOException {
        super(files);
        unknown = specialIds.get("unk");
        maxWordCharacters = Json.integer(files.config, "max_word_characters");
        boolean cleanUp = Boolean.TRUE.equals(files.config.get("clean_up"));
        table = new CodePointTable(files.bytes("forms.bin"), 2, "forms.bin");
        forms = files.lines("forms.txt");
        added.seekIn(text -> Utf8.encode(normal(text, false)));
        for (Map.Entry<Integer, byte[]> token : added.shown.entrySet()) {
            token.setValue(token.getValue().length == 0 ? token.getValue() : shown(Utf8.decode(token.getValue()), cleanUp));
        }
        String[] lines = files.lines("vocabulary.txt");
        if (lines.length != vocabularySize) {
            throw new IllegalArgumentException("vocabulary.txt must hold " + vocabularySize + " lines");
        }
        shown = new byte[lines.length][];
        for (int i = 0; i < lines.length; i++) {
            boolean continues = lines[i].startsWith(INSIDE);
            String piece = continues ? lines[i].substring(INSIDE.length()) : lines[i];
            shown[i] = isSpecial(i) ? new byte[0] : shown(lines[i], cleanUp);
            if (!isSpecial(i) && !lines[i].isEmpty()) {  // an empty line is an id that only the added tokens name
                (continues ? inside : starting).put(piece, i);
                longest = Math.max(longest, lines[i].codePointCount(0, lines[i].length()));
            }
        }
    }

    /** The form of a text: with the spaces that set a sign apart, or, to look for an added token in, without. */
    private String normal(byte[] text, boolean apart) {
        StringBuilder normal = new StringBuilder();
        for (int point : Utf8.codePoints(text)) {
            int form = table.get(point);
            if (form >= FIRST_FORM) {
                normal.append(apart ? forms[form - FIRST_FORM] : withoutSpaces(forms[form - FIRST_FORM]));
            } else if (form == 0 || form == APART && !apart) {
                normal.appendCodePoint(point);
            } else if (form == 1) {
                normal.append(' ');
            } else if (form == APART) {
                normal.append(' ').appendCodePoint(point).append(' ');
            }  // else nothing
        }
        return normal.toString();
    }

    private static String withoutSpaces(String form) {
        int start = 0;
        int end = form.length();
        while (start < end && form.charAt(start) == ' ') {
            start++;
        }
        while (end > start && form.charAt(end - 1) == ' ') {
            end--;
        }
        return form.substring(start, end);
    }

    @Override
    int[] encodePlain(byte[] text) {
        String normal = normal(text, true);
        Ints ids = new Ints();
        for (int start = 0; start < normal.length(); ) {
            int end = normal.indexOf(" ", start);
            end = end < 0 ? normal.length() : end;
            if (end > start) {
                ids.addAll(word(normal.substring(start, end)));
            }
            start = end + 1;
        }
        return ids.toArray();
    }

    @Override
    byte[] shown(int id) {
        return shown[id];
    }

    @Override
    byte[] decodeBytes(int[] ids, boolean afterText) {
        byte[] data = super.decodeBytes(ids, afterText);
        return afterText ? data : withoutLeadingSpace(data);
    }

    private static byte[] shown(String token, boolean cleanUp) {
        boolean joins = token.startsWith(INSIDE);
        for (int i = 0; cleanUp && i < JOINING.length; i++) {
            joins |= token.startsWith(JOINING[i]);
        }
        return Utf8.encode(joins ? token.startsWith(INSIDE) ? token.substring(INSIDE.length()) : token : " " + token);
    }

    private int[] word(String word) {
        int size = word.codePointCount(0, word.length());
        if (size > maxWordCharacters) {
            return new int[] {unknown};
        }
        Ints ids = new Ints();
        for (int start = 0; start < word.length(); ) {
            int left = word.codePointCount(start, word.length());
            int end = word.offsetByCodePoints(start, Math.min(left, longest));
            Map<String, Integer> known = start == 0 ? starting : inside;
            Integer id = null;
            while (end > start && id == null) {
                id = known.get(word.substring(start, end));
                end = id == null ? word.offsetByCodePoints(end, -1) : end;
            }
            if (id == null) {
                return new int[] {unknown};
            }
            ids.add(id);
            start = end;
        }
        return ids.toArray();
    }
}
