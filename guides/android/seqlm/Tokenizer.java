package seqlm;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;

/** Text to ids and back, from the files of a tokenizer's folder. One object may be used by one thread at a time. */
public abstract class Tokenizer {
    /** The last one says what stands around a text elsewhere, and changes no id of it. */
    private static final Set<String> KNOWN =
        new HashSet<>(Arrays.asList("format", "type", "vocabulary_size", "special_ids", "added_tokens", "post_processor"));

    final int vocabularySize;
    final Map<String, Integer> specialIds = new HashMap<>();
    final AddedTokens added;
    private String hash;

    Tokenizer(Files files) {
        List<Object> tokens = new ArrayList<>();
        added = new AddedTokens(files.config.containsKey("added_tokens") ? Json.list(files.config, "added_tokens") : tokens);
        vocabularySize = Json.integer(files.config, "vocabulary_size");
        for (String name : Json.object(files.config, "special_ids").keySet()) {
            specialIds.put(name, Json.integer(Json.object(files.config, "special_ids"), name));
        }
    }

    /**
     * Reads the tokenizer of a folder.
     *
     * @param folder the folder that the sidecar names.
     * @param config the file in it that holds the type, as the sidecar names it.
     * @throws IOException a file is missing.
     * @throws IllegalArgumentException a file does not hold what it should, or asks for what this reader does not know.
     */
    public static Tokenizer load(File folder, String config) throws IOException {
        Files files = new Files(folder, config);
        Tokenizer tokenizer = make(files, Json.string(files.config, "type"));
        tokenizer.hash = files.hash();  // when each of its files has been read
        return tokenizer;
    }

    private static Tokenizer make(Files files, String type) throws IOException {
        switch (type) {
            case "byte":
                files.knows();
                return new ByteTokenizer(files);
            case "character":
                files.knows();
                return new CharacterTokenizer(files);
            case "byte_pair":
                files.knows("max_word_bytes", "split", "add_prefix_space", "ignore_merges", "trim_offsets");
                return new BytePairTokenizer(files);
            case "word_piece":
                // What the first four say stands in the table of forms.
                files.knows("lowercase", "strip_accents", "clean_text", "handle_chinese_chars", "max_word_characters", "clean_up");
                return new WordPieceTokenizer(files);
            case "sentence_piece":
                files.knows("chunks");
                return new SentencePieceTokenizer(files);
            default:
                throw new IllegalArgumentException(files.name + ": there is no tokenizer of type \"" + type + "\" here");
        }
    }

    /** The ids of some bytes, which may be no UTF-8. */
    public final int[] encode(byte[] text) {
        if (added.shown.isEmpty()) {
            return encodePlain(text);
        }
        Ints ids = new Ints();
        for (AddedTokens.Piece piece : added.split(keepsBytes() ? text : Utf8.encode(Utf8.decode(text)))) {
            ids.addAll(piece.id < 0 ? encodePlain(piece.text) : new int[] {piece.id});
        }
        return ids.toArray();
    }

    /** The ids of some bytes in which no added token is looked for. */
    abstract int[] encodePlain(byte[] text);

    /** The bytes of one id that is no added token; none for a special one. */
    abstract byte[] shown(int id);

    /** Whether bytes that are no UTF-8 come back as they were. */
    boolean keepsBytes() {
        return false;
    }

    /** The ids of a text. */
    public final int[] encode(String text) {
        return encode(Utf8.encode(text));
    }

    /** The text of some ids; bytes that are no UTF-8 become U+FFFD. */
    public final String decode(int[] ids) {
        return Utf8.decode(decodeBytes(ids));
    }

    /** The text of some ids; where they go on with a text, the space before their first word stays. */
    public final String decode(int[] ids, boolean afterText) {
        return Utf8.decode(decodeBytes(ids, afterText));
    }

    /** The bytes of some ids. */
    public final byte[] decodeBytes(int[] ids) {
        return decodeBytes(ids, false);
    }

    /** The bytes of some ids, which go on with a text or begin one. */
    byte[] decodeBytes(int[] ids, boolean afterText) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        for (int id : ids) {
            if (id < 0 || id >= vocabularySize) {
                throw new IllegalArgumentException("ids must lie in 0 ... " + (vocabularySize - 1) + "; got " + id);
            }
            byte[] data = added.shown.containsKey(id) ? added.shown.get(id) : shown(id);
            out.write(data, 0, data.length);
        }
        return out.toByteArray();
    }

    /** Sixteen hexadecimal digits that a model and its tokenizer share. */
    public final String hash() {
        return hash;
    }

    final boolean isSpecial(int id) {
        return specialIds.containsValue(id);
    }

    static byte[] withoutLeadingSpace(byte[] data) {
        return data.length > 0 && data[0] == ' ' ? Arrays.copyOfRange(data, 1, data.length) : data;
    }

    /** The files of a folder, each read once. */
    static final class Files {
        final Map<String, Object> config;
        private final File folder;
        private final String name;
        private final Map<String, byte[]> contents = new TreeMap<>();

        Files(File folder, String name) throws IOException {
            this.folder = folder;
            this.name = name;
            config = Json.object(bytes(name));
            if (Json.integer(config, "format") != 1) {
                throw new IllegalArgumentException(name + ": expected format 1, got " + config.get("format"));
            }
        }

        byte[] bytes(String file) throws IOException {
            byte[] data = contents.get(file);
            if (data == null) {
                data = read(new File(folder, file));
                contents.put(file, data);
            }
            return data;
        }

        /** The lines of a file; only a line feed ends one. */
        String[] lines(String file) throws IOException {
            String text = Utf8.decode(bytes(file));
            text = text.endsWith("\n") ? text.substring(0, text.length() - 1) : text;
            return bytes(file).length == 0 ? new String[0] : text.split("\n", -1);
        }

        /** Refuses a field that would change the ids in a way that is not known here. */
        void knows(String... more) {
            List<String> names = Arrays.asList(more);
            for (String field : config.keySet()) {
                Object value = config.get(field);
                if (!KNOWN.contains(field) && !names.contains(field) && value != null && !Boolean.FALSE.equals(value)) {
                    throw new IllegalArgumentException(
                        name + " has the field \"" + field + "\", which this reader does not know: the ids would be "
                            + "others. Take the guide's files of the release that made the export.");
                }
            }
        }

        String hash() {
            try {
                MessageDigest digest = MessageDigest.getInstance("SHA-256");
                for (byte[] data : contents.values()) {
                    digest.update(data);
                }
                return hexadecimal(digest.digest()).substring(0, 16);
            } catch (NoSuchAlgorithmException error) {
                throw new IllegalStateException("every platform has SHA-256", error);
            }
        }
    }

    static byte[] read(File file) throws IOException {
        if (!file.isFile()) {
            throw new FileNotFoundException("there is no file " + file);
        }
        try (InputStream in = new FileInputStream(file)) {
            ByteArrayOutputStream out = new ByteArrayOutputStream((int) Math.min(file.length(), 1 << 28));
            byte[] part = new byte[1 << 16];
            for (int count = in.read(part); count > 0; count = in.read(part)) {
                out.write(part, 0, count);
            }
            return out.toByteArray();
        }
    }

    static String hexadecimal(byte[] data) {
        StringBuilder out = new StringBuilder();
        for (byte value : data) {
            out.append(Character.forDigit(value >> 4 & 15, 16)).append(Character.forDigit(value & 15, 16));
        }
        return out.toString();
    }
}
