package seqlm;

import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;
import org.tensorflow.lite.Interpreter;

/**
 * A .tflite file in LiteRT on Android.
 *
 * <p>In build.gradle: {@code implementation "com.google.ai.edge.litert:litert:2.1.0"}, whose classes still have the package
 * name org.tensorflow.lite. The sources of `seqlm/` need nothing but the platform (minSdk 24).
 */
public final class LiteRtNetwork implements Network {
    private final Interpreter interpreter;

    /** @param file it must be a file: copy it out of the assets once, or leave it uncompressed and map it. */
    public LiteRtNetwork(File file, int threads) {
        interpreter = new Interpreter(file, new Interpreter.Options().setNumThreads(threads));
    }

    @Override
    public void run(String signature, Map<String, ByteBuffer> inputs, Map<String, ByteBuffer> outputs) throws IOException {
        Map<String, Object> in = new HashMap<String, Object>(inputs);
        Map<String, Object> out = new HashMap<String, Object>(outputs);
        interpreter.runSignature(in, out, signature);
    }

    @Override
    public void close() {
        interpreter.close();
    }
}
