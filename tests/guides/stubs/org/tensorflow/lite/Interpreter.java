package org.tensorflow.lite;

import java.io.File;
import java.util.Map;

/** The part of LiteRT's class that guides/android/LiteRtNetwork.java calls, so that it is compiled here; it runs on no phone. */
public final class Interpreter implements AutoCloseable {
    /** As in LiteRT. */
    public static class Options {
        public Options setNumThreads(int threads) {
            return this;
        }
    }

    public Interpreter(File model, Options options) {}

    public void runSignature(Map<String, Object> inputs, Map<String, Object> outputs, String signatureKey) {
        throw new UnsupportedOperationException("a stub");
    }

    @Override
    public void close() {}
}
