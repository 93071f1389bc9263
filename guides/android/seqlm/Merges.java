package seqlm;

import java.util.Arrays;
import java.util.PriorityQueue;

/** Merging neighbours, the pair of the lowest rank first, of equal ones the leftmost. */
final class Merges {
    private final PairMap numbers;
    private double[] ranks = new double[16];
    private int[] merged = new int[16];
    private int count;

    Merges(int expected) {
        numbers = new PairMap(expected);
    }

    /** Two ids that are joined to another; a pair that is there gets the new rank and id. */
    void put(int left, int right, double rank, int id) {
        int number = numbers.get(left, right);
        if (number < 0) {
            number = count++;
            numbers.put(left, right, number);
            if (number == ranks.length) {
                ranks = Arrays.copyOf(ranks, 2 * number);
                merged = Arrays.copyOf(merged, 2 * number);
            }
        }
        ranks[number] = rank;
        merged[number] = id;
    }

    boolean has(int left, int right) {
        return numbers.get(left, right) >= 0;
    }

    /** The ids of one word when nothing can be merged any more; `ids` is used up. */
    int[] apply(int[] ids) {
        int size = ids.length;
        int[] following = new int[size];
        int[] previous = new int[size];
        PriorityQueue<Candidate> waiting = new PriorityQueue<>();
        for (int i = 0; i < size; i++) {
            following[i] = i + 1;
            previous[i] = i - 1;
            if (i > 0) {
                offer(waiting, ids, i - 1, i);
            }
        }
        int left = size;
        while (!waiting.isEmpty()) {
            Candidate best = waiting.poll();
            int place = best.place;
            int right = following[place];
            // Earlier merges may have used up either side since this pair was found.
            if (right == size || ids[place] != best.left || ids[right] != best.right) {
                continue;
            }
            ids[place] = best.merged;
            ids[right] = -1;
            left--;
            following[place] = following[right];
            if (following[place] < size) {
                previous[following[place]] = place;
                offer(waiting, ids, place, following[place]);
            }
            if (previous[place] >= 0) {
                offer(waiting, ids, previous[place], place);
            }
        }
        int[] out = new int[left];
        int at = 0;
        for (int id : ids) {
            if (id >= 0) {
                out[at++] = id;
            }
        }
        return out;
    }

    private void offer(PriorityQueue<Candidate> waiting, int[] ids, int place, int right) {
        int number = numbers.get(ids[place], ids[right]);
        if (number >= 0) {
            waiting.add(new Candidate(ranks[number], place, ids[place], ids[right], merged[number]));
        }
    }

    private static final class Candidate implements Comparable<Candidate> {
        final double rank;
        final int place;
        final int left;
        final int right;
        final int merged;

        Candidate(double rank, int place, int left, int right, int merged) {
            this.rank = rank;
            this.place = place;
            this.left = left;
            this.right = right;
            this.merged = merged;
        }

        @Override
        public int compareTo(Candidate other) {
            int byRank = Double.compare(rank, other.rank);
            return byRank != 0 ? byRank : Integer.compare(place, other.place);
        }
    }
}
