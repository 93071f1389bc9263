package seqlm;

import java.io.Closeable;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.Map;

/** The .tflite file, as the loop sees it: signatures that take and give tensors. */
public interface Network extends Closeable {
    /**
     * Runs one signature.
     *
     * @param signature its name in the file, as "prefill_16" or "decode".
     * @param inputs name -> direct buffer in the machine's byte order, at position 0, that holds the tensor.
     * @param outputs name -> such a buffer of the right size for each output, to be filled.
     */
    void run(String signature, Map<String, ByteBuffer> inputs, Map<String, ByteBuffer> outputs) throws IOException;
}
