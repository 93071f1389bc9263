"""`seqlm cache`: what lies in the cache of tokenized corpora, and how it is made smaller."""

import time

from seqlm_cli.options import add_common, write_answer
from seqlm_cli.tables import show_table

HELP = "list the cache of tokenized corpora, or prune it"
EXAMPLES = (
    ("seqlm cache", "what lies there"),
    ("seqlm cache --prune", "delete what was not used for 30 days"),
    ("seqlm cache --prune --older-than 7", "for a week"),
    ("seqlm cache --prune --to-size 20", "what was not used for longest, until 20 GB are left"),
)


def arguments(p):
    """Add what the verb takes to its parser."""
    p.add_argument("--folder", metavar="FOLDER", help="default $KERAS_SEQLM_CACHE, else ~/.cache/keras_seqlm/tokens")
    p.add_argument("--prune", action="store_true", help="delete by --older-than (default 30) or --to-size")
    p.add_argument("--older-than", type=float, metavar="DAYS", help="what was not used for so many days")
    p.add_argument("--to-size", type=float, metavar="GB", help="what was not used for longest, until so much is left")
    add_common(p, backend=False)


def run(args):
    """`seqlm cache`: a line for each corpus in the cache; with `--prune`, for what was deleted of it."""
    from keras_seqlm import data

    if not args.prune:
        if args.older_than is not None or args.to_size is not None:
            raise ValueError("--older-than and --to-size say what is deleted: add --prune")
        entries = data.list_cache(args.folder)
        _show(entries)
        write_answer(args, {"entries": entries})
        return
    days = 30.0 if args.older_than is None and args.to_size is None else args.older_than
    deleted, kept = data.prune_cache(
        args.folder, older_than_days=days, most_bytes=None if args.to_size is None else int(args.to_size * 1e9)
    )
    _show(deleted)
    freed, left = (sum(entry["num_bytes"] for entry in entries) for entries in (deleted, kept))
    print(f"deleted {len(deleted)} ({_size(freed)}), kept {len(kept)} ({_size(left)})")
    used = sum(entry["in_use"] is True for entry in kept)
    unknown = sum(entry["in_use"] is None for entry in kept)
    if used:
        print(f"{used} of them {'is' if used == 1 else 'are'} in use, and not deleted")
    if unknown:
        print(f"of {unknown} it cannot be told on this file system whether they are in use, and so they stay")
    write_answer(args, {"deleted": deleted, "kept": kept})


def _show(entries):
    rows = []
    for entry in entries:
        tokens = "-" if entry["num_tokens"] is None else f"{entry['num_tokens']:,}"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["last_used"]))
        state = "in use" if entry["in_use"] else "finished" if entry["finished"] else "unfinished"
        rows.append((entry["name"], _size(entry["num_bytes"]), tokens, entry["tokenizer_hash"] or "-", used, state))
    if entries:
        show_table(("corpus", "size", "tokens", "tokenizer", "last used", "state"), rows)
    else:
        print("no corpus")


def _size(num_bytes):
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
