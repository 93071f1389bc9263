package seqlm;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What a `sentencepiece.model` holds: pieces, and what is done to a text before. The file is a protocol buffer. */
final class SentencePieceModel {
    static final int NORMAL = 1;
    static final int UNKNOWN = 2;
    static final int CONTROL = 3;
    static final int USER_DEFINED = 4;
    static final int UNUSED = 5;
    static final int BYTE = 6;
    static final int UNIGRAM = 1;
    static final int BPE = 2;

    final List<String> pieces = new ArrayList<>();
    final List<Float> scores = new ArrayList<>();
    final List<Integer> kinds = new ArrayList<>();
    int type = UNIGRAM;
    boolean byteFallback;
    boolean whitespaceSuffix;
    boolean addDummyPrefix = true;
    boolean removeExtraWhitespaces = true;
    boolean escapeWhitespaces = true;
    byte[] charsmap = new byte[0];

    SentencePieceModel(byte[] data) {
        for (Fields file = new Fields(data); file.next(); ) {
            if (file.number == 1) {
                piece(file.bytes());
            } else if (file.number == 2) {
                for (Fields trainer = new Fields(file.bytes()); trainer.next(); ) {
                    type = trainer.number == 3 ? (int) trainer.value : type;
                    whitespaceSuffix = trainer.number == 24 ? trainer.value != 0 : whitespaceSuffix;
                    byteFallback = trainer.number == 35 ? trainer.value != 0 : byteFallback;
                }
            } else if (file.number == 3) {
                for (Fields normalizer = new Fields(file.bytes()); normalizer.next(); ) {
                    charsmap = normalizer.number == 2 ? normalizer.bytes() : charsmap;
                    addDummyPrefix = normalizer.number == 3 ? normalizer.value != 0 : addDummyPrefix;
                    removeExtraWhitespaces = normalizer.number == 4 ? normalizer.value != 0 : removeExtraWhitespaces;
                    escapeWhitespaces = normalizer.number == 5 ? normalizer.value != 0 : escapeWhitespaces;
                }
            }
        }
        if (type != UNIGRAM && type != BPE) {
            throw new IllegalArgumentException("a SentencePiece model is of type unigram or bpe here, not " + type);
        }
        if (kinds.contains(USER_DEFINED)) {
            throw new IllegalArgumentException("SentencePiece models with user-defined pieces are not supported");
        }
        if (kinds.indexOf(UNKNOWN) < 0 || kinds.contains(BYTE) != byteFallback) {
            throw new IllegalArgumentException("the SentencePiece model lacks its unknown piece or those of bytes");
        }
    }

    private void piece(byte[] data) {
        String text = "";
        float score = 0;
        int kind = NORMAL;
        for (Fields fields = new Fields(data); fields.next(); ) {
            if (fields.number == 1) {
                text = Utf8.decode(fields.bytes());
            } else if (fields.number == 2) {
                score = Float.intBitsToFloat((int) fields.value);
            } else if (fields.number == 3) {
                kind = (int) fields.value;
            }
        }
        pieces.add(text);
        scores.add(score);
        kinds.add(kind);
    }

    /** The fields of a message, one after another: numbers in `value`, the rest in `bytes()`. */
    private static final class Fields {
        int number;
        long value;
        private byte[] bytes;
        private final byte[] data;
        private int at;

        Fields(byte[] data) {
            this.data = data;
        }

        boolean next() {
            if (at == data.length) {
                return false;
            }
            long tag = varint();
            number = (int) (tag >>> 3);
            bytes = null;
            int wire = (int) tag & 7;
            if (wire == 0) {
                value = varint();
            } else if (wire == 5 || wire == 1) {
                value = 0;
                byte[] little = take(wire == 5 ? 4 : 8);
                for (int i = little.length - 1; i >= 0; i--) {
                    value = value << 8 | little[i] & 0xFF;
                }
            } else if (wire == 2) {
                bytes = take(varint());
            } else {
                throw damaged();
            }
            return true;
        }

        byte[] bytes() {
            if (bytes == null) {
                throw damaged();
            }
            return bytes;
        }

        private byte[] take(long count) {
            if (count < 0 || count > data.length - at) {
                throw damaged();
            }
            at += (int) count;
            return Arrays.copyOfRange(data, at - (int) count, at);
        }

        private long varint() {
            long result = 0;
            for (int shift = 0; shift < 70; shift += 7) {
                if (at == data.length) {
                    throw damaged();
                }
                byte part = data[at++];
                result |= (long) (part & 127) << shift;
                if (part >= 0) {
                    return result;
                }
            }
            throw damaged();
        }

        private static IllegalArgumentException damaged() {
            return new IllegalArgumentException("the SentencePiece model is damaged");
        }
    }
}
