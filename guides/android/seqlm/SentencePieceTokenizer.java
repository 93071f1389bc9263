package seqlm;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/** Pieces of a SentencePiece model: the most probable ones (unigram), or merged characters (bpe). */
final class SentencePieceTokenizer extends Tokenizer {
    private static final char MARK = '\u2581';
    private static final int LONGEST_CHUNK = 1024;
    private static final float UNKNOWN_PENALTY = 10f;

    private final SentencePieceModel model;
    private final boolean chunks;
    private final Charsmap charsmap;
    private final byte[][] shown;
    private final int[] byteIds = new int[256];
    private final int unknown;
    // unigram: a trie, child of (node, code point), and the piece that ends in a node
    private PairMap children;
    private int[] pieceAt;
    private float unknownScore;
    // bpe
    private Merges merges;
    private Map<Integer, Integer> symbols;

    SentencePieceTokenizer(Files files) throws IOException {
        super(files);
        chunks = Boolean.TRUE.equals(files.config.get("chunks"));
        model = new SentencePieceModel(files.bytes("sentencepiece.model"));
        if (model.pieces.size() != vocabularySize) {
            throw new IllegalArgumentException("sentencepiece.model must hold " + vocabularySize + " pieces");
        }
        charsmap = new Charsmap(model.charsmap);
        unknown = model.kinds.indexOf(SentencePieceModel.UNKNOWN);
        shown = new byte[vocabularySize][];
        for (int i = 0; i < shown.length; i++) {
            int kind = model.kinds.get(i);
            String text = model.pieces.get(i);
            if (kind == SentencePieceModel.BYTE) {
                int value = Integer.parseInt(text.substring(3, 5), 16);
                byteIds[value] = i;
                shown[i] = new byte[] {(byte) value};
            } else if (kind == SentencePieceModel.CONTROL || kind == SentencePieceModel.UNKNOWN) {
                shown[i] = new byte[0];
            } else {
                shown[i] = Utf8.encode(model.escapeWhitespaces ? text.replace(MARK, ' ') : text);
            }
        }
        if (model.type == SentencePieceModel.BPE) {
            prepareMerges();
        } else {
            preparePaths();
        }
    }

    @Override
    int[] encodePlain(byte[] text) {
        Ints ids = new Ints();
        if (!chunks) {
            String normal = normalize(Utf8.decode(text));
            encode(normal.codePoints().toArray(), ids);
            return ids.toArray();
        }
        int[] points = Utf8.codePoints(text);
        for (int start = 0; start < points.length; ) {
            int end = start + 1;
            if (points[start] != '\n') {
                while (end < points.length && points[end] != ' ' && points[end] != '\n' && end - start < LONGEST_CHUNK) {
                    end++;
                }
            }
            int[] chunk = Arrays.copyOfRange(points, start, end);
            chunk[0] = chunk[0] == ' ' ? MARK : chunk[0];
            encode(chunk, ids);
            start = end;
        }
        return ids.toArray();
    }

    @Override
    byte[] shown(int id) {
        return shown[id];
    }

    @Override
    byte[] decodeBytes(int[] ids, boolean afterText) {
        byte[] data = super.decodeBytes(ids, afterText);
        if (chunks) {  // a mark that was written in bytes, for want of a piece
            data = withSpaces(data);
        }
        return model.addDummyPrefix && !afterText ? withoutLeadingSpace(data) : data;
    }

    /** Bytes with a space for each mark. */
    private static byte[] withSpaces(byte[] data) {
        byte[] mark = Utf8.encode(String.valueOf(MARK));
        ByteArrayOutputStream out = new ByteArrayOutputStream(data.length);
        for (int i = 0; i < data.length; i++) {
            if (i + 2 < data.length && data[i] == mark[0] && data[i + 1] == mark[1] && data[i + 2] == mark[2]) {
                out.write(' ');
                i += 2;
            } else {
                out.write(data[i]);
            }
        }
        return out.toByteArray();
    }

    /** A text as the model's own normalisation leaves it. */
    private String normalize(String text) {
        StringBuilder out = new StringBuilder();
        String replaced = charsmap.replace(text);
        char mark = model.escapeWhitespaces ? MARK : ' ';
        for (int i = 0; i < replaced.length(); i++) {
            char c = replaced.charAt(i);
            boolean again = c == ' ' && (i == 0 || replaced.charAt(i - 1) == ' ');
            if (!(model.removeExtraWhitespaces && again)) {
                out.append(c);
            }
        }
        if (model.removeExtraWhitespaces) {
            cutEnd(out, ' ');
        }
        if (out.length() > 0 && model.addDummyPrefix && !model.whitespaceSuffix) {
            out.insert(0, ' ');
        }
        for (int i = 0; i < out.length(); i++) {
            if (out.charAt(i) == ' ') {
                out.setCharAt(i, mark);
            }
        }
        if (model.removeExtraWhitespaces) {
            cutEnd(out, mark);
        }
        return out.length() > 0 && model.addDummyPrefix && model.whitespaceSuffix ? out.append(mark).toString() : out.toString();
    }

    private static void cutEnd(StringBuilder text, char c) {
        int end = text.length();
        while (end > 0 && text.charAt(end - 1) == c) {
            end--;
        }
        text.setLength(end);
    }

    private void encode(int[] points, Ints ids) {
        if (model.type == SentencePieceModel.BPE) {
            int[] start = new int[points.length];
            for (int i = 0; i < start.length; i++) {
                Integer symbol = symbols.get(points[i]);
                start[i] = symbol == null ? vocabularySize : symbol;
            }
            int[] found = merges.apply(start);
            int[] sizes = new int[found.length];
            for (int i = 0; i < sizes.length; i++) {
                String piece = found[i] < vocabularySize ? model.pieces.get(found[i]) : "x";
                sizes[i] = piece.codePointCount(0, piece.length());
            }
            add(points, found, sizes, found.length, ids);
        } else {
            addBestPath(points, ids);
        }
    }

    /** Adds the ids of a path in which an id beyond the pieces is a character without one. */
    private void add(int[] points, int[] path, int[] sizes, int count, Ints ids) {
        int place = 0;
        boolean before = false;
        for (int i = 0; i < count; i++) {
            boolean foreign = path[i] >= vocabularySize;
            if (!foreign) {
                ids.add(path[i]);
            } else if (model.byteFallback) {
                for (byte value : Utf8.encode(new String(points, place, sizes[i]))) {
                    ids.add(byteIds[value & 0xFF]);
                }
            } else if (!before) {
                ids.add(unknown);  // unknown characters in a row are one
            }
            before = foreign;
            place += sizes[i];
        }
    }

    private void preparePaths() {
        children = new PairMap(4 * vocabularySize);
        Ints ends = new Ints();
        int nodes = 1;
        float least = Float.POSITIVE_INFINITY;
        int[] pieceOfNode = new int[16];
        Arrays.fill(pieceOfNode, -1);
        for (int i = 0; i < vocabularySize; i++) {
            if (model.kinds.get(i) != SentencePieceModel.NORMAL) {
                continue;
            }
            least = Math.min(least, model.scores.get(i));
            int node = 0;
            for (int point : model.pieces.get(i).codePoints().toArray()) {
                int child = children.get(node, point);
                if (child < 0) {
                    child = nodes++;
                    children.put(node, point, child);
                }
                node = child;
            }
            if (nodes > pieceOfNode.length) {
                int size = pieceOfNode.length;
                pieceOfNode = Arrays.copyOf(pieceOfNode, 2 * nodes);
                Arrays.fill(pieceOfNode, size, pieceOfNode.length, -1);
            }
            pieceOfNode[node] = i;
        }
        pieceAt = pieceOfNode;
        unknownScore = (least == Float.POSITIVE_INFINITY ? 0f : least) - UNKNOWN_PENALTY;
    }

    /** The path of the highest sum: in double precision where it is compared, in single where it is kept. */
    private void addBestPath(int[] points, Ints ids) {
        int size = points.length;
        float[] best = new float[size + 1];
        int[] piece = new int[size + 1];
        int[] from = new int[size + 1];
        Arrays.fill(from, -1);
        for (int start = 0; start < size; start++) {
            boolean single = false;
            int node = 0;
            for (int end = start + 1; end <= size; end++) {
                node = children.get(node, points[end - 1]);
                if (node < 0) {
                    break;
                }
                int found = pieceAt[node];
                if (found >= 0) {
                    double score = (double) model.scores.get(found) + best[start];
                    if (from[end] < 0 || score > best[end]) {
                        best[end] = (float) score;
                        piece[end] = found;
                        from[end] = start;
                    }
                    single |= end == start + 1;
                }
            }
            if (!single) {
                float score = (float) ((double) unknownScore + best[start]);
                if (from[start + 1] < 0 || score > best[start + 1]) {
                    best[start + 1] = score;
                    piece[start + 1] = vocabularySize;
                    from[start + 1] = start;
                }
            }
        }
        int count = 0;
        for (int end = size; end > 0; end = from[end]) {
            count++;
        }
        int[] path = new int[count];
        int[] sizes = new int[count];
        int i = count;
        for (int end = size; end > 0; end = from[end]) {
            path[--i] = piece[end];
            sizes[i] = end - from[end];
        }
        add(points, path, sizes, count, ids);
    }

    /** Numbers for all characters of the pieces, and every pair whose joined text is a piece. */
    private void prepareMerges() {
        if (model.kinds.contains(SentencePieceModel.UNUSED)) {
            throw new IllegalArgumentException("bpe models with unused pieces are not supported");
        }
        symbols = new HashMap<>();
        Map<String, Integer> known = new HashMap<>();
        for (int i = 0; i < vocabularySize; i++) {
            if (model.kinds.get(i) == SentencePieceModel.NORMAL) {
                known.put(model.pieces.get(i), i);
                for (int point : model.pieces.get(i).codePoints().toArray()) {
                    symbols.put(point, vocabularySize + 1 + point);
                }
            }
        }
        for (Map.Entry<Integer, Integer> symbol : symbols.entrySet()) {
            String text = new String(Character.toChars(symbol.getKey()));
            Integer id = known.get(text);
            if (id == null) {
                known.put(text, symbol.getValue());
            } else {
                symbol.setValue(id);
            }
        }
        merges = new Merges(2 * vocabularySize);
        for (int i = 0; i < vocabularySize; i++) {
            if (model.kinds.get(i) != SentencePieceModel.NORMAL) {
                continue;
            }
            String text = model.pieces.get(i);
            for (int cut = text.offsetByCodePoints(0, 1); cut < text.length(); cut = text.offsetByCodePoints(cut, 1)) {
                Integer left = known.get(text.substring(0, cut));
                Integer right = known.get(text.substring(cut));
                if (left != null && right != null) {
                    merges.put(left, right, -(double) model.scores.get(i), i);
                }
            }
        }
    }
}
