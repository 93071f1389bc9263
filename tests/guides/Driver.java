package seqlm;

import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;

/** Answers a test, one JSON object a line; where the network is needed it asks the test, which runs the real LiteRT file. */
final class Driver implements Network {
    private final BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    private final PrintStream out = new PrintStream(System.out, true);
    private Tokenizer tokenizer;
    private LanguageModel model;

    public static void main(String[] arguments) throws IOException {
        Driver driver = new Driver();
        for (String line = driver.in.readLine(); line != null; line = driver.in.readLine()) {
            String answer;
            try {
                answer = driver.answer(parsed(line));
            } catch (IllegalArgumentException | IOException error) {
                answer = "{\"error\":" + quoted(String.valueOf(error.getMessage())) + "}";
            }
            driver.out.println(answer);
        }
    }

    private String answer(Map<String, Object> request) throws IOException {
        switch (Json.string(request, "do")) {
            case "tokenizer":
                tokenizer = Tokenizer.load(new File(Json.string(request, "folder")), Json.string(request, "config"));
                return "{\"hash\":" + quoted(tokenizer.hash()) + "}";
            case "encode":
                List<int[]> ids = new ArrayList<>();
                for (Object text : Json.list(request, "base64")) {
                    ids.add(tokenizer.encode(SelfTest.Base64.decode((String) text)));
                }
                return "{\"ids\":" + lists(ids) + "}";
            case "encode_text":
                return "{\"ids\":" + Arrays.toString(tokenizer.encode(Json.string(request, "text"))) + "}";
            case "decode":
                int[] given = Json.integers(request, "ids");
                String data = hexadecimal(ByteBuffer.wrap(tokenizer.decodeBytes(given)));
                return "{\"text\":" + quoted(tokenizer.decode(given)) + ",\"hex\":" + quoted(data) + "}";
            case "vectors":
                return "{\"wrong\":" + strings(SelfTest.run(tokenizer, Json.object(request, "vectors"))) + "}";
            case "sample":
                return "{\"tokens\":" + Arrays.toString(sampled(request)) + "}";
            case "load":
                model = new LanguageModel(new File(Json.string(request, "sidecar")), this);
                tokenizer = model.tokenizer;
                return "{\"describes\":" + model.describes(new File(Json.string(request, "tflite"))) + "}";
            case "self_test":
                return "{\"wrong\":" + strings(SelfTest.run(model)) + "}";
            case "generate":
                return generated(request);
            default:
                throw new IllegalArgumentException("unknown: " + request);
        }
    }

    private int[] sampled(Map<String, Object> request) {
        List<Object> rows = Json.list(request, "rows");
        int[] tokens = new int[rows.size()];
        for (int i = 0; i < tokens.length; i++) {
            @SuppressWarnings("unchecked")
            Map<String, Object> row = (Map<String, Object>) rows.get(i);
            ByteBuffer data = ByteBuffer.wrap(bytes(Json.string(row, "logits"))).order(java.nio.ByteOrder.LITTLE_ENDIAN);
            float[] logits = new float[data.remaining() / 4];
            data.asFloatBuffer().get(logits);
            boolean[] seen = new boolean[logits.length];
            for (int id : Json.integers(row, "seen")) {
                seen[id] = true;
            }
            int position = Json.integer(row, "position");
            tokens[i] = Sampler.choose(logits, options(row), seen, position, Json.integers(row, "suppressed_ids"));
        }
        return tokens;
    }

    private String generated(Map<String, Object> request) throws IOException {
        Options options = options(request);
        options.maxNewTokens = Json.integer(request, "max_new_tokens");
        Integer stopAfter = Json.integerOrNull(request, "stop_after");
        int[] heard = {0};
        LanguageModel.Answer got = model.generate(
            Json.string(request, "prompt"), options, id -> stopAfter == null || ++heard[0] < stopAfter);
        return "{\"text\":" + quoted(got.text) + ",\"token_ids\":" + Arrays.toString(got.tokenIds) + ",\"stop_reason\":"
            + quoted(got.stopReason) + ",\"truncated\":" + got.truncated + "}";
    }

    private static Options options(Map<String, Object> row) {
        Map<String, Object> given = Json.object(row, "options");
        Options options = new Options();
        options.temperature = ((Number) given.get("temperature")).floatValue();
        options.topK = Json.integer(given, "top_k");
        options.topP = ((Number) given.get("top_p")).floatValue();
        options.minP = ((Number) given.get("min_p")).floatValue();
        options.repetitionPenalty = ((Number) given.get("repetition_penalty")).floatValue();
        options.seed = Json.integer(given, "seed");
        return options;
    }

    /** Asks the test to run a signature, and fills the outputs with its answer. */
    @Override
    public void run(String signature, Map<String, ByteBuffer> inputs, Map<String, ByteBuffer> outputs) throws IOException {
        StringBuilder asked = new StringBuilder("{\"run\":" + quoted(signature) + ",\"inputs\":{");
        for (Map.Entry<String, ByteBuffer> input : inputs.entrySet()) {
            asked.append(asked.charAt(asked.length() - 1) == '{' ? "" : ",");
            asked.append(quoted(input.getKey())).append(':').append(quoted(hexadecimal(input.getValue())));
        }
        out.println(asked.append("}}"));
        Map<String, Object> answer = Json.object(parsed(in.readLine()), "outputs");
        if (!answer.keySet().equals(outputs.keySet())) {
            throw new IOException("expected the outputs " + outputs.keySet() + ", got " + answer.keySet());
        }
        for (Map.Entry<String, ByteBuffer> output : outputs.entrySet()) {
            byte[] data = bytes(Json.string(answer, output.getKey()));
            if (data.length != output.getValue().remaining()) {
                throw new IOException(output.getKey() + " has " + data.length + " bytes");
            }
            output.getValue().put(data);
        }
    }

    @Override
    public void close() {}

    private static Map<String, Object> parsed(String line) {
        return Json.object(line.getBytes(StandardCharsets.UTF_8));
    }

    private static byte[] bytes(String hexadecimal) {
        byte[] data = new byte[hexadecimal.length() / 2];
        for (int i = 0; i < data.length; i++) {
            data[i] = (byte) (Character.digit(hexadecimal.charAt(2 * i), 16) << 4
                | Character.digit(hexadecimal.charAt(2 * i + 1), 16));
        }
        return data;
    }

    private static String hexadecimal(ByteBuffer buffer) {
        byte[] data = new byte[buffer.remaining()];
        buffer.get(data);
        return Tokenizer.hexadecimal(data);
    }

    private static String lists(List<int[]> rows) {
        StringBuilder text = new StringBuilder("[");
        for (int[] row : rows) {
            text.append(text.length() == 1 ? "" : ",").append(Arrays.toString(row));
        }
        return text.append(']').toString();
    }

    private static String strings(List<String> rows) {
        StringBuilder text = new StringBuilder("[");
        for (String row : rows) {
            text.append(text.length() == 1 ? "" : ",").append(quoted(row));
        }
        return text.append(']').toString();
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            out.append(c > ' ' && c < 127 && c != '"' && c != '\\' ? String.valueOf(c) : String.format("\\u%04x", (int) c));
        }
        return out.append('"').toString();
    }
}
