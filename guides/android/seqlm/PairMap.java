package seqlm;

import java.util.Arrays;

/** A map from two numbers to one, all of 0 or more, without an object for each entry. */
final class PairMap {
    private long[] keys;
    private int[] values;
    private int size;

    PairMap(int expected) {
        int capacity = 16;
        while (capacity < expected * 2L) {
            capacity *= 2;
        }
        make(capacity);
    }

    /** The value of a pair, or -1. */
    int get(int left, int right) {
        long key = (long) left << 32 | right;
        for (int i = place(key); keys[i] >= 0; i = i + 1 & keys.length - 1) {
            if (keys[i] == key) {
                return values[i];
            }
        }
        return -1;
    }

    void put(int left, int right, int value) {
        if (size * 2 >= keys.length) {
            long[] oldKeys = keys;
            int[] oldValues = values;
            make(keys.length * 2);
            for (int i = 0; i < oldKeys.length; i++) {
                if (oldKeys[i] >= 0) {
                    set(oldKeys[i], oldValues[i]);
                }
            }
        }
        set((long) left << 32 | right, value);
    }

    private void set(long key, int value) {
        int i = place(key);
        while (keys[i] >= 0 && keys[i] != key) {
            i = i + 1 & keys.length - 1;
        }
        size += keys[i] < 0 ? 1 : 0;
        keys[i] = key;
        values[i] = value;
    }

    private int place(long key) {
        long mixed = key * 0x9E3779B97F4A7C15L;
        return (int) (mixed >>> 32) & keys.length - 1;
    }

    private void make(int capacity) {
        keys = new long[capacity];
        Arrays.fill(keys, -1);
        values = new int[capacity];
        size = 0;
    }
}
