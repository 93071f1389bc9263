package seqlm;

import java.io.IOException;
import java.util.HashMap;
import java.util.Map;

/** Every code point of the vocabulary is an id, in the order of `characters.txt`; others are `unk`. */
final class CharacterTokenizer extends Tokenizer {
    private static final int FIRST = 4;
    private final int[] characters;
    private final int unknown;
    private final Map<Integer, Integer> ids = new HashMap<>();

    CharacterTokenizer(Files files) throws IOException {
        super(files);
        unknown = specialIds.get("unk");
        characters = Utf8.codePoints(files.bytes("characters.txt"));
        if (characters.length > vocabularySize - FIRST || unknown != FIRST - 1) {
            throw new IllegalArgumentException("characters.txt must hold no more than " + (vocabularySize - FIRST) + " characters");
        }
        for (int i = 0; i < characters.length; i++) {
            ids.put(characters[i], FIRST + i);
        }
    }

    @Override
    int[] encodePlain(byte[] text) {
        int[] found = Utf8.codePoints(text);
        for (int i = 0; i < found.length; i++) {
            Integer id = ids.get(found[i]);
            found[i] = id == null ? unknown : id;
        }
        return found;
    }

    @Override
    byte[] shown(int id) {
        if (id < unknown || id >= FIRST + characters.length) {
            return new byte[0];
        }
        int point = id == unknown ? Utf8.REPLACEMENT : characters[id - FIRST];
        return Utf8.encode(new String(Character.toChars(point)));
    }
}
