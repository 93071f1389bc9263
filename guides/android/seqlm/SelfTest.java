package seqlm;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;

/** Holds this program to the test vectors of a sidecar: once on each kind of phone, in a debug build, is enough. */
public final class SelfTest {
    private final Map<String, Object> vectors;
    private final List<String> wrong = new ArrayList<>();
    private int tried;

    private SelfTest(Map<String, Object> sidecar) {
        vectors = Json.object(sidecar, "test_vectors");
    }

    /**
     * Tries all of them; the model writes some dozens of tokens.
     *
     * @return what is wrong, one line each; empty where all is well.
     * @throws IllegalArgumentException the sidecar has no test vectors.
     */
    public static List<String> run(LanguageModel model) throws IOException {
        SelfTest test = new SelfTest(model.sidecar);
        test.tokenizer(model.tokenizer);
        test.random();
        test.sampler();
        test.written(model);
        if (test.tried < 20) {
            throw new IllegalArgumentException("the sidecar has " + test.tried + " test vectors, too few to say a thing");
        }
        return test.wrong;
    }

    /** Those of a tokenizer alone: `vectors` has `encode` and `decode`. */
    static List<String> run(Tokenizer tokenizer, Map<String, Object> vectors) {
        Map<String, Object> sidecar = java.util.Collections.<String, Object>singletonMap(
            "test_vectors", java.util.Collections.singletonMap("tokenizer", vectors));
        SelfTest test = new SelfTest(sidecar);
        test.tokenizer(tokenizer);
        return test.wrong;
    }

    private void tokenizer(Tokenizer tokenizer) {
        Map<String, Object> rows = Json.object(vectors, "tokenizer");
        for (Map<String, Object> row : rows(rows, "encode")) {
            boolean text = row.containsKey("text");
            byte[] data = text ? Utf8.encode(Json.string(row, "text")) : Base64.decode(Json.string(row, "base64"));
            equal("encode " + row, Arrays.toString(Json.integers(row, "ids")), Arrays.toString(tokenizer.encode(data)));
        }
        for (Map<String, Object> row : rows(rows, "decode")) {
            int[] ids = Json.integers(row, "ids");
            equal("decode " + row, Json.string(row, "text"), tokenizer.decode(ids));
            byte[] data = Base64.decode(Json.string(row, "base64"));
            equal("decode " + row, Arrays.toString(data), Arrays.toString(tokenizer.decodeBytes(ids)));
        }
    }

    private void random() {
        for (Map<String, Object> row : rows(vectors, "random")) {
            int bits = Sampler.random(Json.integer(row, "seed"), Json.integer(row, "position"));
            equal("random " + row, Json.integer(row, "bits"), bits);
        }
    }

    private void sampler() {
        Map<String, Object> sampler = Json.object(vectors, "sampler");
        List<Object> rows = Json.list(sampler, "logits");
        for (Map<String, Object> row : rows(sampler, "choices")) {
            List<?> numbers = (List<?>) rows.get(Json.integer(row, "logits"));
            float[] logits = new float[numbers.size()];
            boolean[] seen = new boolean[logits.length];
            for (int i = 0; i < logits.length; i++) {
                logits[i] = ((Number) numbers.get(i)).floatValue();
            }
            for (int id : Json.integers(row, "seen")) {
                seen[id] = true;
            }
            int position = Json.integer(row, "position");
            int[] suppressed = Json.integers(row, "suppressed_ids");
            int chosen = Sampler.choose(logits, options(row), seen, position, suppressed);
            equal("sampler " + row, Json.integer(row, "token"), chosen);
        }
    }

    private void written(LanguageModel model) throws IOException {
        for (Map<String, Object> row : rows(vectors, "written")) {
            Options options = options(row);
            options.maxNewTokens = Json.integer(row, "max_new_tokens");
            String prompt = Json.string(row, "prompt");
            LanguageModel.Answer got = model.generate(prompt, options);
            String wanted = Arrays.toString(Json.integers(row, "token_ids")) + row.get("stop_reason") + row.get("truncated");
            equal("written " + row, wanted, Arrays.toString(got.tokenIds) + got.stopReason + got.truncated);
            equal("written " + row, Json.string(row, "text"), got.text);
            String ids = Arrays.toString(Json.integers(row, "prompt_ids"));
            equal("prompt " + row, ids, Arrays.toString(model.promptIds(prompt, new boolean[1])));
        }
    }

    private static Options options(Map<String, Object> row) {
        Options options = new Options();
        for (Map.Entry<String, Object> option : Json.object(row, "options").entrySet()) {
            Number value = (Number) option.getValue();
            switch (option.getKey()) {
                case "temperature":
                    options.temperature = value.floatValue();
                    break;
                case "top_k":
                    options.topK = value.intValue();
                    break;
                case "top_p":
                    options.topP = value.floatValue();
                    break;
                case "min_p":
                    options.minP = value.floatValue();
                    break;
                case "repetition_penalty":
                    options.repetitionPenalty = value.floatValue();
                    break;
                case "seed":
                    options.seed = value.intValue();
                    break;
                default:
                    throw new IllegalArgumentException("the sampler knows no option " + option.getKey());
            }
        }
        return options;
    }

    @SuppressWarnings("unchecked")
    private static List<Map<String, Object>> rows(Map<String, Object> parent, String name) {
        return (List<Map<String, Object>>) (List<?>) Json.list(parent, name);
    }

    private void equal(String what, Object wanted, Object got) {
        tried++;
        if (!wanted.equals(got)) {
            wrong.add(what + ": got " + got);
        }
    }

    /** Base 64; `java.util.Base64` came to Android late. */
    static final class Base64 {
        private static final String DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

        private Base64() {}

        static byte[] decode(String text) {
            String digits = text.replace("=", "");
            byte[] out = new byte[digits.length() * 6 / 8];
            int bits = 0;
            int held = 0;
            int at = 0;
            for (int i = 0; i < digits.length(); i++) {
                held = held << 6 | DIGITS.indexOf(digits.charAt(i));
                bits += 6;
                if (bits >= 8) {
                    bits -= 8;
                    out[at++] = (byte) (held >> bits);
                }
            }
            return out;
        }
    }
}
