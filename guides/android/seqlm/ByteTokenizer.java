package seqlm;

/** Every byte of the text is the id byte + 4. */
final class ByteTokenizer extends Tokenizer {
    private static final int FIRST = 4;

    ByteTokenizer(Files files) {
        super(files);
        if (vocabularySize < FIRST + 256) {
            throw new IllegalArgumentException("a byte tokenizer has " + (FIRST + 256) + " ids and more, not " + vocabularySize);
        }
    }

    @Override
    int[] encodePlain(byte[] text) {
        int[] ids = new int[text.length];
        for (int i = 0; i < ids.length; i++) {
            ids[i] = FIRST + (text[i] & 0xFF);
        }
        return ids;
    }

    @Override
    boolean keepsBytes() {
        return true;
    }

    @Override
    byte[] shown(int id) {
        return id < FIRST || id >= FIRST + 256 ? new byte[0] : new byte[] {(byte) (id - FIRST)};
    }
}
