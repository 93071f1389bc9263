package seqlm;

import java.io.Closeable;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;

/**
 * A language model in a .tflite file that writes text: its sidecar, its tokenizer and the loop.
 *
 * <p>One object answers one call at a time; a second thread waits.
 */
public final class LanguageModel implements Closeable {
    /** Hears of each new id as it is chosen. */
    public interface Listener {
        /** @return whether to go on. */
        boolean onToken(int id);
    }

    /** What {@link #generate} returns. */
    public static final class Answer {
        /** The new text alone. */
        public final String text;
        public final int[] tokenIds;
        /** "eos", "length", or "stopped" where the listener said so. */
        public final String stopReason;
        /** Whether the prompt's beginning was cut off. */
        public final boolean truncated;

        Answer(String text, int[] tokenIds, String stopReason, boolean truncated) {
            this.text = text;
            this.tokenIds = tokenIds;
            this.stopReason = stopReason;
            this.truncated = truncated;
        }
    }

    private static final int SPARE_IDS = 8;
    private static final int SPARE_BYTES = 3;

    public final Tokenizer tokenizer;
    public final int vocabularySize;
    /** Tokens that the model reads at most; null where there is no such limit. */
    public final Integer maxLength;

    final Map<String, Object> sidecar;
    private final Network network;
    private final int[] beforePrompt;
    private final int[] suppressedIds;
    private final Integer eosId;
    private final int maxPromptTokens;
    private final int[] promptBytes;
    private final int[] prefillLengths;
    private final Map<String, Integer> leafBytes = new TreeMap<>();
    // The leaves go round between two sets of buffers: what one call gives, the next one takes.
    private Map<String, ByteBuffer> state = new HashMap<>();
    private Map<String, ByteBuffer> nextState = new HashMap<>();
    private int position;

    /**
     * @param sidecarFile `NAME.json`, with the folder of its tokenizer beside it.
     * @param network `NAME.tflite`; it is closed with this object.
     * @throws IOException a file is missing.
     * @throws IllegalArgumentException they do not belong together, or are of a release that this reader does not know.
     */
    public LanguageModel(File sidecarFile, Network network) throws IOException {
        this.network = network;
        sidecar = Json.object(Tokenizer.read(sidecarFile));
        Map<String, Object> sampler = Json.object(sidecar, "sampler");
        require(Json.integer(sidecar, "format") == 1, "the sidecar is of another format than 1");
        require(Sampler.NAME.equals(sampler.get("name")), "the sidecar asks for the sampler " + sampler.get("name"));
        Map<String, Object> text = Json.object(sidecar, "tokenizer");
        File folder = new File(sidecarFile.getAbsoluteFile().getParentFile(), Json.string(text, "folder"));
        tokenizer = Tokenizer.load(folder, Json.string(text, "config"));
        require(tokenizer.hash().equals(text.get("hash")), folder + " is the tokenizer of another model");
        beforePrompt = Json.integers(text, "before_prompt");
        suppressedIds = Json.integers(sampler, "suppressed_ids");
        eosId = Json.integerOrNull(Json.object(sidecar, "stop"), "eos_id");
        vocabularySize = Json.integer(sidecar, "vocabulary_size");
        Map<String, Object> context = Json.object(sidecar, "context");
        maxLength = Json.integerOrNull(context, "max_length");
        maxPromptTokens = Json.integer(context, "max_prompt_tokens");
        promptBytes = Json.integers(context, "prompt_bytes");
        prefillLengths = Json.integers(sidecar, "prefill_lengths");
        Arrays.sort(prefillLengths);
        for (Map.Entry<String, Object> leaf : Json.object(sidecar, "state").entrySet()) {
            Map<String, Object> tensor = Json.object(Json.object(sidecar, "state"), leaf.getKey());
            String dtype = Json.string(tensor, "dtype");
            require(dtype.equals("float32") || dtype.equals("int32"), "the leaf " + leaf.getKey() + " is of " + dtype);
            int bytes = 4;
            for (int size : Json.integers(tensor, "shape")) {
                bytes = Math.multiplyExact(bytes, size);
            }
            leafBytes.put(leaf.getKey(), bytes);
            state.put(leaf.getKey(), buffer(bytes));
            nextState.put(leaf.getKey(), buffer(bytes));
        }
    }

    /** Whether a file is the one that the sidecar describes; it reads the whole file, once after a download will do. */
    public boolean describes(File tflite) throws IOException {
        try {
            byte[] digest = MessageDigest.getInstance("SHA-256").digest(Tokenizer.read(tflite));
            return Tokenizer.hexadecimal(digest).equals(sidecar.get("sha256"));
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException("every platform has SHA-256", error);
        }
    }

    /** {@link #generate(String, Options, Listener)} without a listener. */
    public Answer generate(String prompt, Options options) throws IOException {
        return generate(prompt, options, null);
    }

    /**
     * Writes on from a prompt.
     *
     * @param listener hears of each id, or null.
     * @throws IllegalArgumentException an option is out of its range, or there is nothing to go on from: an empty prompt
     *     where the tokenizer has no bos.
     */
    public synchronized Answer generate(String prompt, Options options, Listener listener) throws IOException {
        options.check();
        boolean[] truncated = {false};
        int[] ids = promptIds(prompt, truncated);
        int room = maxLength == null ? options.maxNewTokens : Math.max(1, maxLength - ids.length);
        room = Math.min(room, options.maxNewTokens);
        boolean afterText = truncated[0] || ids.length > beforePrompt.length;
        boolean[] seen = new boolean[vocabularySize];
        for (int id : ids) {
            seen[id] = true;
        }
        reset();
        Ints written = new Ints();
        String stopReason = "length";
        while (written.size() < room) {
            float[] logits = read(ids);
            int chosen = Sampler.choose(logits, options, seen, position, suppressedIds);
            if (eosId != null && chosen == eosId) {
                stopReason = "eos";
                break;
            }
            written.add(chosen);
            seen[chosen] = true;
            ids = new int[] {chosen};
            if (listener != null && !listener.onToken(chosen)) {
                stopReason = "stopped";
                break;
            }
        }
        int[] tokenIds = written.toArray();
        return new Answer(tokenizer.decode(tokenIds, afterText), tokenIds, stopReason, truncated[0]);
    }

    /** The ids that are read for a prompt: its last ones. No text costs more than the part of it that is read. */
    int[] promptIds(String prompt, boolean[] truncated) {
        byte[] text = Utf8.encode(prompt);
        truncated[0] = text.length > promptBytes[1];
        int[] ids = tokenizer.encode(truncated[0] ? end(text, promptBytes[0]) : text);
        if (truncated[0] && ids.length < maxPromptTokens + SPARE_IDS) {
            ids = tokenizer.encode(end(text, promptBytes[1]));
        }
        Ints all = new Ints();
        all.addAll(beforePrompt);
        all.addAll(ids);
        if (all.size() == 0) {
            throw new IllegalArgumentException("the prompt is empty and nothing stands before it");
        }
        int cut = Math.max(0, all.size() - maxPromptTokens);
        truncated[0] |= cut > 0;
        return Arrays.copyOfRange(all.toArray(), cut, all.size());
    }

    /** The last bytes of a longer text, from the beginning of a character on. */
    private static byte[] end(byte[] text, int size) {
        int start = text.length - size;
        for (int i = 0; i < SPARE_BYTES && (text[start] & 0xC0) == 0x80; i++) {
            start++;
        }
        return Arrays.copyOfRange(text, start, text.length);
    }

    private void reset() {
        position = 0;
        for (Map.Entry<String, Integer> leaf : leafBytes.entrySet()) {
            ByteBuffer zeros = state.get(leaf.getKey());
            zeros.rewind();
            zeros.put(new byte[leaf.getValue()]);
        }
    }

    /** Reads some ids, in as few pieces as fit; returns the logits after the last. */
    private float[] read(int[] ids) throws IOException {
        float[] logits = null;
        for (int done = 0; done < ids.length; ) {
            int length = pieceLength(ids.length - done);
            int real = Math.min(length, ids.length - done);
            logits = run(length == 1 ? "decode" : "prefill_" + length, ids, done, length, real);
            done += real;
            position += real;
        }
        return logits;
    }

    /** The longest full piece; else the shortest that holds the rest, if its padding fits the context; else one id. */
    private int pieceLength(int count) {
        int full = 0;
        int padded = 0;
        for (int length : prefillLengths) {
            if (length <= count) {
                full = length;
            } else if (padded == 0 && (maxLength == null || position + length <= maxLength)) {
                padded = length;
            }
        }
        return count == 1 ? 1 : full > 0 ? full : padded > 0 ? padded : 1;
    }

    private float[] run(String signature, int[] ids, int from, int length, int real) throws IOException {
        ByteBuffer tokenIds = buffer(4 * length);
        for (int i = 0; i < real; i++) {
            tokenIds.putInt(4 * i, ids[from + i]);
        }
        ByteBuffer lengths = buffer(4);
        lengths.putInt(0, real);
        ByteBuffer logits = buffer(4 * vocabularySize);
        Map<String, ByteBuffer> inputs = new HashMap<>(state);
        inputs.put("token_ids", tokenIds);
        inputs.put("lengths", lengths);
        Map<String, ByteBuffer> outputs = new HashMap<>(nextState);
        outputs.put("logits", logits);
        rewind(inputs);
        rewind(outputs);
        network.run(signature, inputs, outputs);
        rewind(outputs);
        Map<String, ByteBuffer> used = state;
        state = nextState;
        nextState = used;
        float[] values = new float[vocabularySize];
        logits.asFloatBuffer().get(values);
        return values;
    }

    @Override
    public synchronized void close() throws IOException {
        network.close();
    }

    private static void rewind(Map<String, ByteBuffer> buffers) {
        for (ByteBuffer buffer : buffers.values()) {
            buffer.rewind();
        }
    }

    private static ByteBuffer buffer(int bytes) {
        return ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
    }

    private static void require(boolean good, String wrong) {
        if (!good) {
            throw new IllegalArgumentException(wrong);
        }
    }
}
