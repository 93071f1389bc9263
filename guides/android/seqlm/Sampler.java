package seqlm;

import java.math.BigInteger;
import java.util.Arrays;

/** How the next id is chosen: `seqlm-sampler-1`, step by step as guides/sidecar.md says. */
public final class Sampler {
    static final String NAME = "seqlm-sampler-1";
    private static final float UNITS = 0x1p43f;  // a weight is a whole number of units of 2**-43
    private static final float KEYS = 0x1p24f;  // and a depth of 0 to 32 below the best a key of 24 bits
    private static final float DEPTH = 32f;
    private static final int PART_BITS = 30;
    private static final int BUCKETS = 1 << 12;

    private Sampler() {}

    /**
     * The next id.
     *
     * @param logits of every id; they are left as they are.
     * @param seen ids of prompt and text so far.
     * @param position how many tokens the model has read.
     * @param suppressedIds ids that are never chosen.
     */
    public static int choose(float[] logits, Options options, boolean[] seen, int position, int[] suppressedIds) {
        float[] values = adjusted(logits, options.repetitionPenalty, seen, suppressedIds);
        int best = 0;
        for (int i = 1; i < values.length; i++) {
            best = values[i] > values[best] ? i : best;
        }
        return options.temperature > 0 ? draw(values, values[best], options, position) : best;
    }

    /** A number of 24 bits, the draw of a seed at a position: Threefry-2x32 with 20 rounds. */
    public static int random(int seed, int position) {
        int[] keys = {seed, 0, seed ^ 0x1BD11BDA};
        int[][] rotations = {{13, 15, 26, 6}, {17, 29, 16, 24}};
        int x0 = position + keys[0];
        int x1 = keys[1];
        for (int group = 0; group < 5; group++) {
            for (int rotation : rotations[group % 2]) {
                x0 += x1;
                x1 = Integer.rotateLeft(x1, rotation) ^ x0;
            }
            x0 += keys[(group + 1) % 3];
            x1 += keys[(group + 2) % 3] + group + 1;
        }
        return x0 >>> 8;
    }

    private static float[] adjusted(float[] logits, float penalty, boolean[] seen, int[] suppressedIds) {
        float[] values = new float[logits.length];
        for (int i = 0; i < values.length; i++) {
            float value = logits[i];
            if (penalty != 1f && seen[i]) {
                value = value > 0 ? value / penalty : value * penalty;
            }
            value = value >= -Float.MAX_VALUE ? value : -Float.MAX_VALUE;  // false for NaN
            values[i] = Math.min(value, Float.MAX_VALUE);
        }
        for (int id : suppressedIds) {
            values[id] = Float.NEGATIVE_INFINITY;
        }
        return values;
    }

    private static int draw(float[] logits, float best, Options options, int position) {
        int size = logits.length;
        float temperature = Math.min(Math.max(options.temperature, 1e-6f), 1e6f);
        float[] weights = new float[size];
        int[] keys = new int[size];
        long[] amounts = new long[size];
        for (int i = 0; i < size; i++) {
            float scaled = (logits[i] - best) / temperature;  // at most 0
            weights[i] = (float) Math.exp(scaled);
            keys[i] = (int) Math.min(scaled * (-KEYS / DEPTH), KEYS - 1);
            amounts[i] = (long) (weights[i] * UNITS);
        }
        if (options.topK > 0 && options.topK < size) {
            long[] ones = new long[size];
            Arrays.fill(ones, 1);
            cut(amounts, keys, keyAt(keys, ones, options.topK - 1));
        }
        if (options.topP < 1) {
            long part = (long) (options.topP * (1 << PART_BITS));
            cut(amounts, keys, keyAt(keys, amounts, border(sum(amounts), part, 1)));
        }
        if (options.minP > 0) {
            for (int i = 0; i < size; i++) {
                amounts[i] = weights[i] >= options.minP ? amounts[i] : 0;
            }
        }
        long border = border(sum(amounts), (long) random(options.seed, position) << PART_BITS - 24, 0);
        long passed = 0;
        for (int i = 0; i < size; i++) {
            passed += amounts[i];
            if (passed > border) {
                return i;
            }
        }
        throw new IllegalStateException("no id is left to choose");
    }

    /** The smallest key such that the amounts up to it exceed a border: the upper 12 bits first, then the lower. */
    private static int keyAt(int[] keys, long[] amounts, long border) {
        int high = 0;
        long[] sums = new long[BUCKETS];
        for (int i = 0; i < keys.length; i++) {
            sums[keys[i] >> 12] += amounts[i];
        }
        while (sums[high] <= border) {
            border -= sums[high++];
        }
        Arrays.fill(sums, 0);
        for (int i = 0; i < keys.length; i++) {
            if (keys[i] >> 12 == high) {
                sums[keys[i] & BUCKETS - 1] += amounts[i];
            }
        }
        int low = 0;
        while (sums[low] <= border) {
            border -= sums[low++];
        }
        return high << 12 | low;
    }

    private static void cut(long[] amounts, int[] keys, int last) {
        for (int i = 0; i < amounts.length; i++) {
            amounts[i] = keys[i] <= last ? amounts[i] : 0;
        }
    }

    private static long sum(long[] amounts) {
        long sum = 0;
        for (long amount : amounts) {
            sum += amount;
        }
        return sum;
    }

    /** (total * part - reached) / 2**30, rounded down; the product has up to 93 bits. */
    private static long border(long total, long part, int reached) {
        BigInteger product = BigInteger.valueOf(total).multiply(BigInteger.valueOf(part));
        return product.subtract(BigInteger.valueOf(reached)).shiftRight(PART_BITS).longValue();
    }
}
