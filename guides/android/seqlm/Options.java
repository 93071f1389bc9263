package seqlm;

/** How to write: all off by default, greedily and {@link #maxNewTokens} tokens at most. */
public final class Options {
    public int maxNewTokens = 64;
    /** 0 for the best id, above 0 for a draw. */
    public float temperature = 0f;
    public int topK = 0;
    public float topP = 1f;
    public float minP = 0f;
    public float repetitionPenalty = 1f;
    /** One seed, one text. */
    public int seed = 0;

    /** @throws IllegalArgumentException a number is out of its range. */
    void check() {
        check(maxNewTokens >= 0, "maxNewTokens must be 0 or more", maxNewTokens);
        check(temperature >= 0 && temperature <= Float.MAX_VALUE, "temperature must be finite, 0 or more", temperature);
        check(topK >= 0, "topK must be 0 (off) or more", topK);
        check(topP > 0 && topP <= 1, "topP must be above 0 and at most 1 (off)", topP);
        check(minP >= 0 && minP <= 1, "minP must be between 0 (off) and 1", minP);
        check(
            repetitionPenalty > 0 && repetitionPenalty <= Float.MAX_VALUE,
            "repetitionPenalty must be finite and above 0; 1 is off",
            repetitionPenalty);
        check(seed >= 0, "seed must be 0 or more", seed);
    }

    private static void check(boolean good, String wanted, Number got) {
        if (!good) {
            throw new IllegalArgumentException(wanted + "; got " + got);
        }
    }
}
