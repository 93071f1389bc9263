"""Chat templates as data: what stands around what each role says. Nothing in them is run."""

import dataclasses
import json

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """The text around the turns of a conversation.

    Args:
        roles: dict of a role ("user", "assistant" ...) to the text before and the text after what it says.
        reply: the role that the model speaks for.
        start: text before the first turn.
        tokens: the parts of these texts that are tokens of their own, for `with_added_tokens(list(template.tokens))`. Not
            as special ones: these are never written, so that no reply would end.

    Raises:
        ValueError: a text is no str, or `reply` is no role.

    Example:

    >>> template = ChatTemplate({"user": ("<user>", "\\n"), "bot": ("<bot>", "\\n")}, reply="bot")
    >>> template.render([{"role": "user", "text": "Hi"}])
    '<user>Hi\\n<bot>'
    """

    roles: dict
    reply: str = "assistant"
    start: str = ""
    tokens: tuple = ()

    def __post_init__(self):
        if not isinstance(self.roles, dict) or self.reply not in self.roles:
            raise ValueError(f"Expected roles with {self.reply!r} among them, got {list(self.roles)!r}.")
        roles = {}
        for role, texts in self.roles.items():
            if not isinstance(texts, (list, tuple)) or len(texts) != 2 or not _all_text([role, *texts]):
                raise ValueError(f"Expected the text before and after what {role!r} says, got {texts!r}.")
            roles[role] = tuple(texts)
        if not isinstance(self.start, str) or not _all_text(self.tokens) or isinstance(self.tokens, str):
            raise ValueError("Expected start as a str and tokens as a list of str.")
        object.__setattr__(self, "roles", roles)
        object.__setattr__(self, "tokens", tuple(self.tokens))

    @property
    def end_of_reply(self):
        """What ends a reply, for `stop=`: the text after what the model's role says.

        The tokens in it must not be special, save for the tokenizer's `eos`.
        """
        return self.roles[self.reply][1]

    def __hash__(self):
        return hash((frozenset(self.roles.items()), self.reply, self.start, self.tokens))

    def parts(self, turns, reply=True):
        """The conversation as a list of `(text, spoken)`: spoken is true for what a role says, false for the template.

        Args:
            turns: list of dicts of `role` and `text`.
            reply: whether the beginning of the model's next turn follows.

        Raises:
            ValueError: a turn is not of this form, or of a role that the template does not have.
        """
        parts = [(self.start, False)]
        for number, turn in enumerate(turns):
            if (
                not isinstance(turn, dict)
                or not isinstance(turn.get("text"), str)
                or turn.get("role") not in self.roles
            ):
                raise ValueError(
                    f"Turn {number}: expected a dict of text and a role of {', '.join(self.roles)}, got {str(turn)[:80]}."
                )
            before, after = self.roles[turn["role"]]
            parts += [(before, False), (turn["text"], True), (after, False)]
        if reply:
            parts.append((self.roles[self.reply][0], False))
        return [part for part in parts if part[0]]

    def render(self, turns, reply=True):
        """The conversation as one text; see `parts`.

        In it a role's words may write a token of the template, which `encode` does not let them.
        """
        return "".join(text for text, _ in self.parts(turns, reply))

    def encode(self, tokenizer, turns, reply=True):
        """The ids of the conversation as a (time,) int32 array.

        They are those of `render`, save that what a role says cannot write a token of the template: added tokens are found
        in the template's own texts only.

        Args:
            tokenizer: a tokenizer of this package.
            turns, reply: see `parts`.
        """
        return tokenizer.encode_parts([(text, not spoken) for text, spoken in self.parts(turns, reply)])

    def to_json(self):
        """The template as a str of JSON."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text):
        """The template in a str of JSON.

        Raises:
            ValueError: it is no JSON, or no template.
        """
        content = json.loads(text)
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT or not set(content) <= fields:
            raise ValueError(f"Expected a chat template of format {FORMAT} with {', '.join(sorted(fields))}.")
        if "roles" not in content:
            raise ValueError("Expected a chat template with roles.")
        return cls(**content)


def _all_text(values):
    return all(isinstance(value, str) for value in values)


def _chatml():
    roles = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")}
    return ChatTemplate(roles, tokens=("<|im_start|>", "<|im_end|>"))


def _llama3():
    head, end = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"
    roles = {role: (head.format(role), end) for role in ("system", "user", "assistant")}
    return ChatTemplate(roles, tokens=("<|start_header_id|>", "<|end_header_id|>", end))


def _gemma():
    roles = {role: (f"<start_of_turn>{role}\n", "<end_of_turn>\n") for role in ("user", "model")}
    return ChatTemplate(roles, reply="model", tokens=("<start_of_turn>", "<end_of_turn>"))


# The forms that well-known models were trained on.
CHAT_TEMPLATES = {"chatml": _chatml(), "llama3": _llama3(), "gemma": _gemma()}
