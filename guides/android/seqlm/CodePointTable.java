package seqlm;

/** A number for each code point, in a table of two levels: the block of each 256 code points, then the blocks. */
final class CodePointTable {
    private static final int BLOCKS = 0x110000 / 256;
    private final int[] numbers;

    /**
     * @param data the bytes of the file, little-endian.
     * @param width bytes of a number, 1 or 2.
     */
    CodePointTable(byte[] data, int width, String name) {
        numbers = new int[data.length / width];
        for (int i = 0; i < numbers.length; i++) {
            numbers[i] = width == 1 ? data[i] & 0xFF : data[2 * i] & 0xFF | (data[2 * i + 1] & 0xFF) << 8;
        }
        int blocks = (numbers.length - BLOCKS) / 256;
        if (blocks < 1 || (BLOCKS + blocks * 256) * width != data.length) {
            throw new IllegalArgumentException(name + ": " + data.length + " bytes are no table of code points");
        }
        for (int i = 0; i < BLOCKS; i++) {
            if (numbers[i] >= blocks) {
                throw new IllegalArgumentException(name + ": names a block that is not there");
            }
        }
    }

    int get(int point) {
        return numbers[BLOCKS + numbers[point >> 8] * 256 + (point & 255)];
    }
}
